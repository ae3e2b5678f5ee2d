package l7

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What keeps a request from an answer.
var (
	errNoServer = errors.New("no server of the upstream may have the request")
	errTimeout  = errors.New("the server takes too long")
	errUnsent   = errors.New("the request is none that a server could be sent")
)

// RoundTrip is roundTrip for net/http.
func (u *upstream) RoundTrip(out *http.Request) (*http.Response, error) {
	return u.roundTrip(out, exchangeOf(out.Context()))
}

// roundTrip sends a request to a server of the upstream and, where that does not
// work and the request may be repeated, to others: none of them has it twice.
func (u *upstream) roundTrip(out *http.Request, x *exchange) (*http.Response, error) {
	g := u.now.Load()
	u.requests.Add(1)
	c := x.choice(g)
	most := g.config.Next.Tries
	if most == 0 {
		most = g.count()
	}
	s := u.pick(g, c, time.Now())
	if s == nil {
		u.failures.Add(1)
		return nil, errNoServer
	}
	for {
		a := x.attempt()
		a.upstream, a.generation, a.server = u, g, s
		a.send(out, x)
		if !a.failed() {
			u.judge(g, s, false, a.began.Add(a.took))
			u.bind(g, x, c.bound, s, a.response.Header)
			return a.response, nil
		}
		if a.err != nil && (x.clientGone() != nil || x.bodyFailure() != nil) {
			a.end() // it is the client's doing
			return nil, a.err
		}
		if a.unasked() {
			a.end() // it is the request's doing: no server would have it
			return nil, fmt.Errorf("%w: %w", errUnsent, a.err)
		}
		if errors.Is(a.err, errTooMany) {
			a.end() // it is the proxy's doing: the same
			return nil, a.err
		}
		if !a.stale {
			// A server that says that there is no such thing, or that it is not for
			// everybody, works.
			u.judge(g, s, a.status != http.StatusForbidden && a.status != http.StatusNotFound, time.Now())
		}
		c.tried = append(c.tried, s)
		var next *server
		if len(c.tried) < most && a.repeatable(x) {
			next = u.pick(g, c, time.Now())
		}
		if next != nil && !a.reader.yield() { // the upload has gone on meanwhile
			u.release(next)
			next = nil
		}
		switch {
		case next != nil:
			a.drop()
			s = next
		case a.err != nil:
			a.end()
			u.failures.Add(1)
			return nil, a.err
		default:
			u.bind(g, x, c.bound, s, a.response.Header)
			return a.response, nil // the last word of the last server
		}
	}
}

// attempt returns a new one.
func (x *exchange) attempt() *attempt {
	if x.attempts == nil {
		x.first.of = x
		x.list[0] = &x.first
		x.attempts = x.list[:]
		return &x.first
	}
	a := &attempt{of: x}
	x.attempts = append(x.attempts, a)
	return a
}

// An attempt is a request that one server has.
type attempt struct {
	of         *exchange
	upstream   *upstream
	generation *generation
	server     *server

	began  time.Time
	took   time.Duration // until the head of the answer, or the failure
	status int           // 0: none

	sent     atomic.Bool // something of the request has been
	asked    atomic.Bool // a connection was asked for
	stale    bool        // the server had closed the connection before it was asked
	reader   *bodyReader // of the request's body; nil: there is none
	response *http.Response
	err      error
	cancel   context.CancelFunc // nil: the transport is told by the body's Close
	over     sync.Once

	mu      sync.Mutex
	settled bool // interim answers come too late

	plain plainExchange // of a plainTransport
	body  answerBody
}

// send sends the request and waits for the head of the answer.
func (a *attempt) send(out *http.Request, x *exchange) {
	config := a.generation.config
	a.began = time.Now()
	plain := a.generation.transport.plain
	if x.upgrade {
		plain = nil
	}
	r := out
	switch {
	case plain == nil:
		x.full = true
		ctx := withExchange(x.request.Context(), x)
		if x.upgrade {
			ctx = out.Context() // net/http's proxy has put more into it
		}
		r = a.forFull(ctx, out, x)
	case len(x.attempts) > 1: // the one before may not have done with out yet
		again := *out
		r = &again
	}
	switch config.Host {
	case lb.HostClient:
	case lb.HostUpstream:
		r.Host = a.server.text
	default:
		r.Host = config.Host
	}
	a.reader = x.giveBody(r)
	if plain != nil {
		a.response, a.err = plain.roundTrip(r, a, x)
	} else {
		a.response, a.err = a.generation.transport.full.RoundTrip(r)
		a.settle()
	}
	a.took = time.Since(a.began)
	if a.err != nil {
		return
	}
	a.status = a.response.StatusCode
	a.response.Body = a.watch(a.response)
}

// forFull makes a request one for net/http's transport.
func (a *attempt) forFull(ctx context.Context, out *http.Request, x *exchange) *http.Request {
	ctx, a.cancel = context.WithCancel(ctx)
	trace := &httptrace.ClientTrace{WroteHeaders: func() { a.sent.Store(true) }, GetConn: func(string) { a.asked.Store(true) }}
	if !x.upgrade {
		trace.Got1xxResponse = func(status int, h textproto.MIMEHeader) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			if !a.settled {
				x.interim(status, http.Header(h))
			}
			return nil
		}
	}
	r := out.WithContext(httptrace.WithClientTrace(ctx, trace))
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = []string{""} // or net/http would say what it is
	}
	url := *out.URL
	url.Scheme, url.Host = scheme(a.generation.config), a.server.text
	r.URL = &url
	return r
}

// settle has interim answers that are still on their way be dropped: the final one has
// come, or there is none.
func (a *attempt) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled = true
}

// failed tells whether another server should have the request.
func (a *attempt) failed() bool {
	next := &a.generation.config.Next
	return a.err != nil || slices.Contains(next.Status, a.status)
}

// unasked tells whether the request could not be sent: to anybody, or to a server that has
// said how long a head it takes.
func (a *attempt) unasked() bool {
	return a.err != nil && (!a.asked.Load() || strings.HasSuffix(a.err.Error(), headTooLong))
}

// headTooLong is what net/http says of a head that is longer than a server of HTTP/2 takes. It
// has no type for that.
const headTooLong = "request header list larger than peer's advertised limit"

// repeatable tells whether another server may have it: nothing was sent, or it does no
// harm twice; and there is all of its body.
func (a *attempt) repeatable(x *exchange) bool {
	next := &a.generation.config.Next
	switch {
	case a.err != nil && timedOut(a.err) && !next.Timeout, a.err != nil && !timedOut(a.err) && !next.Error:
		return false
	case !x.body.repeatable():
		return false
	}
	return !a.sent.Load() || idempotent(x.request.Method) || next.NonIdempotent
}

// idempotent tells whether a request does the same once or twice (RFC 9110, section
// 9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

func timedOut(err error) bool {
	if errors.Is(err, errTimeout) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// drop gives up what there is of an answer.
func (a *attempt) drop() {
	if a.response != nil {
		a.response.Body.Close()
		return
	}
	a.end()
}

// end lets go of the server.
func (a *attempt) end() {
	a.over.Do(func() {
		if a.cancel != nil {
			a.cancel()
		}
		a.upstream.release(a.server)
	})
}

// watch returns the answer's body, which ends the attempt when it is closed.
func (a *attempt) watch(r *http.Response) io.ReadCloser {
	if rw, ok := r.Body.(io.ReadWriteCloser); ok && r.StatusCode == http.StatusSwitchingProtocols {
		return &upgraded{rw, a}
	}
	b := &a.body
	b.ReadCloser, b.attempt, b.timeout = r.Body, a, a.generation.config.ReadTimeout
	if a.cancel != nil {
		b.timer = time.AfterFunc(b.timeout, func() {
			b.late.Store(true)
			a.cancel()
		})
	}
	return b
}

// An answerBody is the body of an answer. A server that says nothing for the
// upstream's ReadTimeout is given up.
type answerBody struct {
	io.ReadCloser
	attempt *attempt
	timeout time.Duration
	timer   *time.Timer // nil: the transport has one
	late    atomic.Bool
	judged  bool
	once    sync.Once
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.timer != nil {
		b.timer.Reset(b.timeout)
	}
	n, err := b.ReadCloser.Read(p)
	if b.timer != nil {
		b.timer.Stop() // how long the client takes is not the server's fault
	}
	b.attempt.server.bytes.Add(uint64(n))
	if err != nil && err != io.EOF && !b.judged {
		b.judged = true
		err = b.judge(err)
	}
	return n, err
}

// judge has the end of an answer before its time count against the server, if it is the
// server's doing, and returns why it is.
func (b *answerBody) judge(err error) error {
	switch failure := b.attempt.of.bodyFailure(); {
	case failure != nil: // the upload has ended the connection
		return failure
	case b.late.Load():
		err = errTimeout
	case errors.Is(err, context.Canceled):
		return err
	}
	b.attempt.upstream.judge(b.attempt.generation, b.attempt.server, true, time.Now())
	return err
}

func (b *answerBody) Close() error {
	var err error
	b.once.Do(func() {
		if b.timer != nil {
			b.timer.Stop()
		}
		err = b.ReadCloser.Close()
		b.attempt.end()
	})
	return err
}

// An upgraded is a connection that is no HTTP any more.
type upgraded struct {
	io.ReadWriteCloser
	attempt *attempt
}

func (u *upgraded) Close() error {
	err := u.ReadWriteCloser.Close()
	u.attempt.end()
	return err
}

// CloseWrite ends one direction.
func (u *upgraded) CloseWrite() error {
	if w, ok := u.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
