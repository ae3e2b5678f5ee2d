package l7

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// reapEvery is how often idle connections are looked at: whether the server has closed
// them, and whether they have been idle for too long.
const reapEvery = 5 * time.Second

// A plainTransport is the connections to servers that are spoken to in HTTP/1 without TLS.
// It does for the proxy what net/http's Transport does, but in the goroutine of the
// request: one without a body, or with a small one, needs no other. Requests for another
// protocol are not for it.
type plainTransport struct {
	dialer      dialer
	keepalive   int // idle connections that are kept to each server; 0: none is used twice
	readTimeout time.Duration

	mu      sync.Mutex
	idle    map[string][]*plainConn // by server; whose turn is next comes last
	reaping bool                    // a timer runs
	retired bool                    // nothing is kept any more
}

// roundTrip sends a request to a server and returns when the head of its answer has
// come. What the request's context ends is broken off.
func (t *plainTransport) roundTrip(r *http.Request, a *attempt, x *exchange) (*http.Response, error) {
	head := heads.Get().(*[]byte)
	defer heads.Put(head)
	var err error
	if *head, err = appendHead((*head)[:0], r, t.keepalive > 0); err != nil {
		return nil, err
	}
	text, body, err := inline(*head, r)
	if err != nil {
		return nil, x.causeOf(err)
	}
	a.asked.Store(true)
	for {
		c := t.take(a.server.text)
		if c == nil {
			if c, err = t.dial(x.request.Context(), a.server.text, x); err != nil {
				return nil, x.causeOf(err)
			}
		}
		a.plain = plainExchange{transport: t, conn: c, request: r, of: x}
		res, err := a.plain.run(text, body, a)
		switch {
		case err == nil:
			return res, nil
		case errors.Is(err, errStale) && x.clientGone() == nil:
			a.sent.Store(false)
		case x.clientGone() != nil || !c.reused || c.heard || timedOut(err):
			return nil, x.causeOf(err)
		case r.Body != nil || !safe(r.Method):
			a.stale = true
			return nil, x.causeOf(err)
		}
		// The server has closed the connection while it had nothing to do, or while the request
		// was on its way. That says nothing of the server: it gets it on another connection.
	}
}

// clientGone tells whether the client waits for an answer, and if not, why.
func (x *exchange) clientGone() error {
	if x.gone.Load() {
		return context.Canceled
	}
	return x.request.Context().Err()
}

// causeOf is why something has failed: because of the client's body or because the client
// has gone, if that is so.
func (x *exchange) causeOf(err error) error {
	if failure := x.bodyFailure(); failure != nil {
		return failure
	}
	if gone := x.clientGone(); gone != nil {
		return gone
	}
	return err
}

// safe tells whether a request changes nothing at the server (RFC 9110, section 9.2.1).
func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// dial makes a connection.
func (t *plainTransport) dial(ctx context.Context, server string, x *exchange) (*plainConn, error) {
	if t.dialer.proxyProtocol != 0 {
		ctx = withExchange(ctx, x)
	}
	c, err := t.dialer.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	return newPlainConn(c, server, t.readTimeout), nil
}

// take returns an idle connection to a server, which may have closed it; nil: there is none.
func (t *plainTransport) take(server string) *plainConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.idle[server]
	if len(all) == 0 {
		return nil
	}
	last := len(all) - 1
	c := all[last]
	all[last], t.idle[server] = nil, all[:last]
	c.reused = true
	return c
}

// put keeps a connection that has nothing to do.
func (t *plainTransport) put(c *plainConn) {
	c.since = time.Now()
	t.mu.Lock()
	keep := !t.retired && len(t.idle[c.server]) < t.keepalive
	if keep {
		if t.idle == nil {
			t.idle = map[string][]*plainConn{}
		}
		t.idle[c.server] = append(t.idle[c.server], c)
		if !t.reaping {
			t.reaping = true
			time.AfterFunc(reapEvery, t.reap)
		}
	}
	t.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// reap closes idle connections whose time is over, or which servers have closed.
func (t *plainTransport) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for server, all := range t.idle {
		kept := all[:0]
		for _, c := range all {
			if time.Since(c.since) > idleFor || !c.quiet() {
				c.Close()
				continue
			}
			kept = append(kept, c)
		}
		clear(all[len(kept):])
		if t.idle[server] = kept; len(kept) == 0 {
			delete(t.idle, server)
		}
	}
	if t.reaping = len(t.idle) > 0; t.reaping {
		time.AfterFunc(reapEvery, t.reap)
	}
}

// retire closes the connections that are idle; the others end with their requests.
func (t *plainTransport) retire() {
	t.mu.Lock()
	t.retired = true
	t.mu.Unlock()
	t.closeIdle()
}

// closeIdle closes the connections that are idle.
func (t *plainTransport) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, all := range t.idle {
		for _, c := range all {
			c.Close()
		}
	}
	t.idle = nil
}

// heads has the memory of heads that are sent.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// errSwitched is the error of an answer in another protocol.
var errSwitched = errors.New("the server has changed to a protocol that it was not asked for")

// newPlainConn returns a connection that is used once at the least.
func newPlainConn(c net.Conn, server string, timeout time.Duration) *plainConn {
	p := &plainConn{Conn: c, server: server, deadline: deadline{set: c.SetReadDeadline, timeout: timeout}}
	p.reader.Reset(p)
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			p.raw, p.look = raw, p.lookAt
			p.asking.next = p.asking.step
		}
	}
	return p
}

// errLongHead is the error of an answer whose head does not end.
var errLongHead = fmt.Errorf("the head of the answer is longer than %d bytes", maxAnswerHead)
