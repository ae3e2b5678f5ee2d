package l7

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// refusing is an address at which nobody listens.
func refusing(t *testing.T) netip.AddrPort { return freePort(t) }

// breaking is a server that reads a request and closes the connection; it counts them.
func breaking(t *testing.T) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	var n atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					n.Add(1)
				}
			})
		}
	})
	return netip.MustParseAddrPort(l.Addr().String()), &n
}

// A request goes to another server only where it can do no harm twice.
func TestNextUpstream(t *testing.T) {
	broken, seen := breaking(t)
	answers := func(status int) netip.AddrPort {
		return backend(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.WriteHeader(status)
			fmt.Fprintf(w, "%d %s", len(body), r.Method)
		})
	}
	good, busy := answers(200), answers(503)
	small, large := strings.Repeat("x", 1000), strings.Repeat("x", 200_000)
	request := func(method, body string) string {
		return fmt.Sprintf("%s / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, len(body), body)
	}
	with := func(change func(*lb.NextUpstream)) func(*lb.Upstream) {
		return func(u *lb.Upstream) { change(&u.Next) }
	}
	for _, tt := range []struct {
		name    string
		servers []netip.AddrPort
		change  func(*lb.Upstream)
		request string
		status  int
		body    string
		broken  int64 // requests that the breaking server has seen
	}{
		{"refused, GET", []netip.AddrPort{refusing(t), good}, nil, request("GET", ""), 200, "0 GET", 0},
		{"refused, POST: it was not sent", []netip.AddrPort{refusing(t), good}, nil, request("POST", small), 200, "1000 POST", 0},
		{"refused, POST that is not read yet", []netip.AddrPort{refusing(t), good}, nil, request("POST", large), 200, "200000 POST", 0},
		{"broken off, GET", []netip.AddrPort{broken, good}, nil, request("GET", ""), 200, "0 GET", 1},
		{"broken off, PUT with a body", []netip.AddrPort{broken, good}, nil, request("PUT", small), 200, "1000 PUT", 1},
		{"broken off, PUT with a body that is not kept", []netip.AddrPort{broken, good}, nil, request("PUT", large), 502, "502 Bad Gateway\n", 1},
		{"broken off, POST", []netip.AddrPort{broken, good}, nil, request("POST", small), 502, "502 Bad Gateway\n", 1},
		{"broken off, POST that may be repeated", []netip.AddrPort{broken, good}, with(func(n *lb.NextUpstream) { n.NonIdempotent = true }), request("POST", small), 200, "1000 POST", 1},
		{"broken off, not on errors", []netip.AddrPort{broken, good}, with(func(n *lb.NextUpstream) { n.Error = false }), request("GET", ""), 502, "502 Bad Gateway\n", 1},
		{"never the same one twice", []netip.AddrPort{broken}, nil, request("GET", ""), 502, "502 Bad Gateway\n", 1},
		{"503 is an answer", []netip.AddrPort{busy, good}, nil, request("GET", ""), 503, "0 GET", 0},
		{"503 is chosen", []netip.AddrPort{busy, good}, with(func(n *lb.NextUpstream) { n.Status = []int{503} }), request("GET", ""), 200, "0 GET", 0},
		{"503 is chosen, POST", []netip.AddrPort{busy, good}, with(func(n *lb.NextUpstream) { n.Status = []int{503} }), request("POST", small), 503, "1000 POST", 0},
		{"503 everywhere", []netip.AddrPort{busy, answers(503)}, with(func(n *lb.NextUpstream) { n.Status = []int{503} }), request("GET", ""), 503, "0 GET", 0},
		{"as many tries as allowed", []netip.AddrPort{refusing(t), refusing(t), good}, with(func(n *lb.NextUpstream) { n.Tries = 2 }), request("GET", ""), 502, "502 Bad Gateway\n", 0},
		{"all of them", []netip.AddrPort{refusing(t), refusing(t), good}, nil, request("GET", ""), 200, "0 GET", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen.Store(0)
			u := upstreamOf("u", tt.servers...)
			if tt.change != nil {
				tt.change(&u)
			}
			at := freePort(t)
			start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
			res, body := raw(t, at, tt.request)
			if res.StatusCode != tt.status || body != tt.body {
				t.Errorf("got %d, %q, want %d, %q", res.StatusCode, body, tt.status, tt.body)
			}
			if got := seen.Load(); got != tt.broken {
				t.Errorf("the server that breaks off has seen %d requests, want %d", got, tt.broken)
			}
		})
	}
}

// A server that says nothing is a timeout: the next one answers, or the client gets 504.
func TestUpstreamTimeout(t *testing.T) {
	release := make(chan struct{})
	silent := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	for _, tt := range []struct {
		name    string
		servers []netip.AddrPort
		timeout bool
		status  int
	}{
		{"alone", []netip.AddrPort{silent}, true, 504},
		{"another answers", []netip.AddrPort{silent, named(t, "b")}, true, 200},
		{"not on timeouts", []netip.AddrPort{silent, named(t, "b")}, false, 504},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := upstreamOf("u", tt.servers...)
			u.ReadTimeout, u.Next.Timeout = 100*time.Millisecond, tt.timeout
			at := freePort(t)
			start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
			if status, _ := get(t, at, "a", "/"); status != tt.status {
				t.Errorf("got %d, want %d", status, tt.status)
			}
		})
	}
}

// An answer that stops in the middle does not end as a whole one, and counts against the
// server.
func TestAnswerThatStops(t *testing.T) {
	release := make(chan struct{})
	stops := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	u := upstreamOf("u", stops)
	u.ReadTimeout = 100 * time.Millisecond
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
	c := dial(t, at)
	send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); string(body) != "half" || err == nil {
		t.Errorf("got %q, error %v", body, err)
	}
	if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 1 || s.InFlight != 0 || s.State != StateFailing {
		t.Errorf("the server: %+v", s)
	}
}

// No server that may have a request: the client gets the page for 502.
func TestSorryPage(t *testing.T) {
	at := freePort(t)
	u := upstreamOf("u", named(t, "a"))
	l := prefix("/", "u")
	l.ErrorPages = []lb.ErrorPage{{Status: []lb.StatusRange{{First: 502, Last: 504}}, As: 503, Body: []byte("<p>sorry"), ContentType: "text/html"}}
	p := New(Options{Log: quiet, Health: func(_ *lb.Upstream, s lb.Server) Standing {
		return Standing{State: StateDown, Why: "no answer", Weight: s.Weight}
	}})
	if err := p.Apply(one(at, []lb.Upstream{u}, l)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(t.Context()) })
	res, body := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if res.StatusCode != 503 || body != "<p>sorry" || res.Header.Get("Content-Type") != "text/html" {
		t.Errorf("got %s %q", res.Status, body)
	}
	res, body = raw(t, at, "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if res.StatusCode != 503 || body != "" || res.ContentLength != 8 {
		t.Errorf("HEAD got %s %q, length %d", res.Status, body, res.ContentLength)
	}
}
