package dns

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// A listener answers what comes to one address. It outlives reloads.
type listener struct {
	at        netip.AddrPort
	responder *Responder
	log       *slog.Logger
	datagrams *net.UDPConn
	streams   *net.TCPListener

	overUDP, overTCP, accepted atomic.Uint64 // messages, messages, connections

	goroutines sync.WaitGroup
	closing    atomic.Pointer[time.Time] // until when its last answers may be taken; nil: it stays
}

// lastAnswer is how long a client of a listener that goes may take to read its last
// answer: one that reads none must hold up no reload.
const lastAnswer = time.Second

// open opens a listener, beside others that there are.
func (r *Responder) open(at netip.AddrPort, beside []*listener) (*listener, error) {
	datagrams, streams, err := bind(at, beside)
	if err != nil {
		return nil, err
	}
	return &listener{at: at, responder: r, log: r.log.With("listen", at), datagrams: datagrams, streams: streams}, nil
}

// discard closes the sockets of a listener that does not serve.
func (l *listener) discard() {
	l.datagrams.Close()
	l.streams.Close()
}

// serve answers until the listener is closed.
func (l *listener) serve() {
	for range max(2, runtime.GOMAXPROCS(0)) {
		l.goroutines.Go(l.answerDatagrams)
	}
	l.goroutines.Go(l.accept)
}

// close ends the listener. Messages that have been read are answered, to clients that
// take the answers in time.
func (l *listener) close() {
	until := time.Now().Add(lastAnswer)
	l.closing.Store(&until)
	l.discard()
	l.responder.conns.end(l, until)
	l.goroutines.Wait()
}

// retryAfter is the wait after an error of a socket, which doubles up to a second.
const retryAfter = time.Millisecond

// answerDatagrams answers one message after the other: what this cannot do in time waits
// in the socket's buffer, and does not fill the memory.
func (l *listener) answerDatagrams() {
	buffer := make([]byte, maxQuery)
	wait := retryAfter
	for {
		n, session, err := dns.ReadFromSessionUDP(l.datagrams, buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.log.Error("cannot read queries", "error", err, "retry", wait)
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
			continue
		}
		wait = retryAfter
		l.overUDP.Add(1)
		from := addressOf(session.RemoteAddr())
		if from.Port() == 0 { // nobody can be answered there
			l.responder.counts.drop(dropMalformed)
			continue
		}
		reply := l.responder.respond(buffer[:n], client{address: from.Addr()})
		if reply == nil {
			continue
		}
		if _, err := dns.WriteToSessionUDP(l.datagrams, reply, session); err != nil {
			l.responder.counts.drop(dropUnsent)
			l.log.Debug("an answer cannot be sent", "to", from, "error", err)
		}
	}
}

// addressOf is an address as package netip has it, without a zone.
func addressOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
