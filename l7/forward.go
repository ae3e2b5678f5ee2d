package l7

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sluice-lb/sluice/internal/lb"
)

// statusClientGone is what a log says of a client that does not wait for its answer,
// as nginx's does.
const statusClientGone = 499

// buffers are what answers are copied by.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[copyBuffer]byte); ok {
		return p[:]
	}
	return make([]byte, copyBuffer)
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[copyBuffer]byte)(p)) }

// A forwarder sends the requests of a location to its upstream.
type forwarder struct {
	location        *lb.Location
	upstream        *upstream
	buffers         *buffers
	request, answer *changes
	upgrades        *httputil.ReverseProxy // what asks for another protocol
}

func newForwarder(l *lb.Location, u *upstream, b *buffers, log *slog.Logger) *forwarder {
	f := &forwarder{location: l, upstream: u, buffers: b, request: newChanges(l.RequestHeaders), answer: newChanges(l.ResponseHeaders)}
	f.upgrades = &httputil.ReverseProxy{
		Transport:  u,
		BufferPool: b,
		ErrorLog:   slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			x := exchangeOf(r.In.Context())
			// The query goes as it came: a server may read it in its own way.
			r.Out.URL = x.target
			dropUnderscores(r.Out.Header)
			r.Out.Header.Del("Expect") // the body is asked for when it is read
			f.tell(r.Out.Header, x)
		},
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode != http.StatusSwitchingProtocols {
				f.change(r, exchangeOf(r.Request.Context()))
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r.Context()).failBy(err) },
	}
	return f
}

// serve has a server answer the request.
func (f *forwarder) serve(x *exchange) {
	r := onlyWebSocket(x.request, f.upstream)
	if _, x.upgrade = r.Header["Upgrade"]; x.upgrade {
		f.upgrades.ServeHTTP(x.writer, r.WithContext(withExchange(r.Context(), x)))
		return
	}
	x.out = http.Request{
		Method: r.Method, URL: x.target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: headers.Get().(http.Header), Host: r.Host, Body: http.NoBody,
	}
	endToEnd(x.out.Header, r.Header)
	f.tell(x.out.Header, x)
	f.exchange(x)
	if !x.full { // it may have not done with it yet
		clear(x.out.Header)
		headers.Put(x.out.Header)
	}
}

// headers has the memory of headers that are sent.
var headers = sync.Pool{New: func() any { return http.Header{} }}

// exchange sends the request that is ready, and the answer to the client.
func (f *forwarder) exchange(x *exchange) {
	res, err := f.upstream.roundTrip(&x.out, x)
	if err != nil {
		x.failBy(err)
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.failBy(errSwitched)
		return
	}
	removeHopByHop(res.Header)
	f.change(res, x)
	f.giveAnswer(res, x)
}

// tell tells a server what it is to know beside what the client says.
func (f *forwarder) tell(out http.Header, x *exchange) {
	x.tellForwarded(out)
	if h := x.world.config.RequestID; h != "" {
		out.Set(h, x.id)
	}
	f.request.apply(out, x)
}

// change makes an answer what the location wants it to be.
func (f *forwarder) change(r *http.Response, x *exchange) {
	if f.location.InterceptErrors {
		if p := errorPage(f.location.ErrorPages, r.StatusCode); p != nil {
			replace(r, p, x.request.Method)
		}
	}
	f.answer.apply(r.Header, x)
}

// giveAnswer sends the client an answer. One that breaks off does not end as a whole one.
func (f *forwarder) giveAnswer(res *http.Response, x *exchange) {
	h := x.writer.Header()
	maps.Copy(h, res.Header)
	if res.StatusCode == http.StatusNoContent { // its length is a mistake, which HTTP/1 hides, and HTTP/2 does not
		delete(h, "Content-Length")
	}
	announced := len(res.Trailer)
	if announced > 0 {
		h["Trailer"] = []string{strings.Join(slices.Sorted(maps.Keys(res.Trailer)), ", ")}
	}
	x.writer.WriteHeader(res.StatusCode)
	if err := f.copy(res, x); err != nil {
		panic(http.ErrAbortHandler)
	}
	if len(res.Trailer) == 0 {
		return
	}
	_ = x.writer.FlushError() // or net/http may find out a length, and there are no chunks; an error ends the connection
	prefix := ""
	if len(res.Trailer) > announced {
		prefix = http.TrailerPrefix
	}
	for name, values := range res.Trailer {
		h[prefix+name] = append(h[prefix+name], values...)
	}
}

// copy copies the body of an answer. What comes piece by piece goes on piece by piece: of
// an unknown length, and events.
func (f *forwarder) copy(res *http.Response, x *exchange) error {
	streams := res.ContentLength < 0 || isEventStream(res.Header)
	buffer := f.buffers.Get()
	defer f.buffers.Put(buffer)
	pending := true // something waits to be sent, the head at the least
	for {
		if streams && pending && !allThere(res.Body) {
			if err := x.writer.FlushError(); err != nil {
				return err
			}
			pending = false
		}
		n, err := res.Body.Read(buffer)
		if n > 0 {
			if _, err := x.writer.Write(buffer[:n]); err != nil {
				return err
			}
			pending = true
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// allThere tells whether the rest of a body has come, and reading it waits for nobody.
func allThere(body io.Reader) bool {
	b, ok := body.(*answerBody)
	if !ok {
		return false
	}
	e, ok := b.ReadCloser.(*plainExchange)
	return ok && e.allThere()
}

// isEventStream tells whether an answer is one of server-sent events.
func isEventStream(h http.Header) bool {
	for _, kind := range h["Content-Type"] {
		kind, _, _ = strings.Cut(kind, ";")
		return strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
	}
	return false
}

// failBy answers a request of which nothing has become.
func (x *exchange) failBy(err error) {
	x.err = err
	x.fail(x.statusOf(err))
}

// statusOf is what a client gets of whose request nothing has become.
func (x *exchange) statusOf(err error) int {
	switch bodyError := x.bodyFailure(); {
	case bodyError != nil:
		x.err = bodyError
		return statusOf(bodyError)
	case errors.Is(x.clientGone(), context.Canceled):
		return statusClientGone
	case errors.Is(err, errUnsent):
		return http.StatusBadRequest
	case errors.Is(err, errTooMany):
		return http.StatusServiceUnavailable
	case timedOut(err):
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// onlyWebSocket takes the wish for another protocol away, unless that is WebSocket: a
// server that changes to one which nobody here speaks would have the connection for
// itself. Over HTTP/2 a server cannot change; with TLS it is asked in HTTP/1.1.
func onlyWebSocket(r *http.Request, to *upstream) *http.Request {
	wish := r.Header["Upgrade"]
	if wish == nil {
		return r
	}
	u := to.now.Load().config
	able := !u.HTTP2 || u.TLS != nil
	if able && len(wish) == 1 && strings.EqualFold(wish[0], "websocket") && r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) &&
		r.ContentLength == 0 && len(r.Header["Sec-Websocket-Key"]) == 1 {
		return r
	}
	c := *r
	c.Header = r.Header.Clone()
	c.Header.Del("Upgrade")
	c.Header.Del("Http2-Settings")
	return &c
}

// errorPage returns the page for a status; nil: there is none.
func errorPage(pages []lb.ErrorPage, status int) *lb.ErrorPage {
	for i, p := range pages {
		for _, r := range p.Status {
			if r.First <= status && status <= r.Last {
				return &pages[i]
			}
		}
	}
	return nil
}

// replace makes an answer one with another body.
func replace(r *http.Response, p *lb.ErrorPage, method string) {
	r.Body.Close()
	if p.As != 0 {
		r.StatusCode = p.As
	}
	for _, name := range []string{"Content-Encoding", "Content-Range", "Etag", "Last-Modified", "Accept-Ranges", "Trailer", "Transfer-Encoding"} {
		r.Header.Del(name)
	}
	r.Trailer = nil
	r.Header.Del("Content-Type")
	r.Header.Del("Content-Length")
	r.Body, r.ContentLength = http.NoBody, 0
	if bodiless(r.StatusCode) {
		return
	}
	r.Header.Set("Content-Type", p.ContentType)
	r.Header.Set("Content-Length", strconv.Itoa(len(p.Body)))
	if method != http.MethodHead {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(p.Body)), int64(len(p.Body))
	}
}
