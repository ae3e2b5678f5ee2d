package dns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// A conn is a connection of a client.
type conn struct {
	net.Conn
	listener *listener
	active   time.Time // when its last message came; guarded by conns.mu
}

// conns are the connections of all listeners.
type conns struct {
	mu      sync.Mutex
	all     map[*conn]bool
	evicted uint64 // connections that made room for newer ones
}

// add remembers a connection. Where there are too many, the one that is idle for longest
// makes room: a client that was told to come over TCP finds a place.
func (c *conns) add(n *conn, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[*conn]bool{}
	}
	for len(c.all) >= max(most, 1) { // none are wanted any more where a listener is about to go
		var oldest *conn
		for o := range c.all {
			if oldest == nil || o.active.Before(oldest.active) {
				oldest = o
			}
		}
		delete(c.all, oldest)
		c.evicted++
		oldest.Close()
	}
	c.all[n] = true
}

func (c *conns) remove(n *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, n)
}

func (c *conns) touch(n *conn, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.active = now
}

// end ends the connections of a listener, each after the message that it is at, whose
// answer is to be taken until then.
func (c *conns) end(of *listener, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.all {
		if n.listener == of {
			_ = n.SetReadDeadline(past) // it may be closed already
			_ = n.SetWriteDeadline(until)
		}
	}
}

func (c *conns) count() (open int, evicted uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all), c.evicted
}

// accept serves connections until the listener is closed.
func (l *listener) accept() {
	wait := retryAfter
	for {
		c, err := l.streams.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // there are too many open files, most likely
			l.log.Error("cannot accept connections", "error", err, "retry", wait)
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
			continue
		}
		wait = retryAfter
		l.accepted.Add(1)
		n := &conn{Conn: c, listener: l, active: time.Now()}
		l.responder.conns.add(n, l.responder.now.Load().config.TCP.MaxConnections)
		l.goroutines.Go(func() {
			defer n.Close()
			defer l.responder.conns.remove(n)
			l.answerStream(n)
		})
	}
}

// answerStream answers the messages of a connection in their order (RFC 7766), until the
// client has had its time, or says what is no query.
func (l *listener) answerStream(c *conn) {
	r := bufio.NewReaderSize(c, 512)
	from := client{address: addressOf(c.RemoteAddr()).Addr(), tcp: true}
	var length [2]byte
	var query, out []byte
	for {
		idle := l.responder.now.Load().config.TCP.IdleTimeout
		if c.SetDeadline(time.Now().Add(idle)) != nil {
			return
		}
		if until := l.closing.Load(); until != nil { // end may have been before the deadline was set
			if r.Buffered() == 0 {
				return
			}
			_ = c.SetReadDeadline(past) // what is here already is answered
			_ = c.SetWriteDeadline(*until)
		}
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > maxQuery {
			l.responder.counts.drop(dropMalformed)
			return
		}
		if cap(query) < n {
			query = make([]byte, n)
		}
		query = query[:n]
		if _, err := io.ReadFull(r, query); err != nil {
			return
		}
		l.overTCP.Add(1)
		l.responder.conns.touch(c, time.Now())
		reply := l.responder.respond(query, from)
		if reply == nil {
			return
		}
		out = append(binary.BigEndian.AppendUint16(out[:0], uint16(len(reply))), reply...)
		if _, err := c.Write(out); err != nil {
			l.responder.counts.drop(dropUnsent)
			return
		}
	}
}
