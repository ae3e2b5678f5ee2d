package l7

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
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

// newForwarder returns what sends a location's requests to its upstream.
func newForwarder(l *lb.Location, u *upstream, b *buffers, log *slog.Logger) http.Handler {
	request, answer := newChanges(l.RequestHeaders), newChanges(l.ResponseHeaders)
	return &httputil.ReverseProxy{
		Transport:  u,
		BufferPool: b,
		ErrorLog:   slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			x := exchangeOf(r.In.Context())
			// The query goes as it came: a server may read it in its own way.
			r.Out.URL = target(l, r.In.URL, x.path)
			dropUnderscores(r.Out.Header)
			r.Out.Header.Del("Expect") // the body is asked for when it is read
			x.tellForwarded(r.Out.Header)
			if h := x.world.config.RequestID; h != "" {
				r.Out.Header.Set(h, x.id)
			}
			request.apply(r.Out.Header, x)
		},
		ModifyResponse: func(r *http.Response) error {
			x := exchangeOf(r.Request.Context())
			if r.StatusCode == http.StatusSwitchingProtocols {
				return nil
			}
			if l.InterceptErrors {
				if p := errorPage(l.ErrorPages, r.StatusCode); p != nil {
					replace(r, p, x.request.Method)
				}
			}
			answer.apply(r.Header, x)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			x := exchangeOf(r.Context())
			x.err = err
			x.fail(x.statusOf(err))
		},
	}
}

// statusOf is what a client gets of whose request nothing has become.
func (x *exchange) statusOf(err error) int {
	switch bodyError := x.bodyFailure(); {
	case bodyError != nil:
		x.err = bodyError
		return statusOf(bodyError)
	case x.request.Context().Err() != nil && errors.Is(x.request.Context().Err(), context.Canceled):
		return statusClientGone
	case timedOut(err):
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// dropUnderscores takes headers away whose names a server may take for others: CGI
// makes X_Forwarded_For and X-Forwarded-For the same.
func dropUnderscores(h http.Header) {
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 {
			delete(h, name)
		}
	}
}

// onlyWebSocket takes the wish for another protocol away, unless that is WebSocket: a
// server that changes to one which nobody here speaks would have the connection for
// itself.
func onlyWebSocket(r *http.Request) *http.Request {
	wish := r.Header["Upgrade"]
	if wish == nil {
		return r
	}
	if len(wish) == 1 && strings.EqualFold(wish[0], "websocket") && r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) &&
		r.ContentLength == 0 && len(r.Header["Sec-Websocket-Key"]) == 1 {
		return r
	}
	c := *r
	c.Header = r.Header.Clone()
	c.Header.Del("Upgrade")
	c.Header.Del("Http2-Settings")
	return &c
}

// changes are those of headers, ready to be made.
type changes struct {
	remove   []string
	set, add []headerText
}

type headerText struct {
	name string
	text text
}

func newChanges(c lb.HeaderChanges) *changes {
	texts := func(hs []lb.Header) (all []headerText) {
		for _, h := range hs {
			all = append(all, headerText{h.Name, newText(h.Value)})
		}
		return all
	}
	return &changes{c.Remove, texts(c.Set), texts(c.Add)}
}

// apply makes the changes. A value that came out empty is not sent, as in nginx.
func (c *changes) apply(h http.Header, x *exchange) {
	for _, name := range c.remove {
		delete(h, name)
	}
	for _, t := range c.set {
		if v := t.text.expand(x); v != "" {
			h[t.name] = []string{v}
		} else {
			delete(h, t.name)
		}
	}
	for _, t := range c.add {
		if v := t.text.expand(x); v != "" {
			h[t.name] = append(h[t.name], v)
		}
	}
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
	r.Header.Set("Content-Type", p.ContentType)
	r.Header.Set("Content-Length", strconv.Itoa(len(p.Body)))
	r.ContentLength = int64(len(p.Body))
	text := string(p.Body)
	if method == http.MethodHead {
		text = ""
	}
	r.Body = io.NopCloser(strings.NewReader(text))
}
