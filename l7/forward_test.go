package l7

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// proxyTo starts a proxy in front of a handler.
func proxyTo(t *testing.T, h http.HandlerFunc, change func(*lb.HTTP)) (netip.AddrPort, *Proxy) {
	t.Helper()
	at := freePort(t)
	c := one(at, []lb.Upstream{upstreamOf("u", backend(t, h))}, prefix("/", "u"))
	if change != nil {
		change(&c)
	}
	return at, start(t, c)
}

func TestAnswersPassClean(t *testing.T) {
	server := says(t, "HTTP/1.1 418 I'm a teapot\r\nConnection: X-Hop, X-Hop-2\r\nX-Hop: 1\r\nX-Hop-2: 1\r\nKeep-Alive: timeout=5\r\n"+
		"Proxy-Authenticate: Basic\r\nTrailer: X\r\nX-End: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 15\r\n\r\nshort and stout")
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
	res, body := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res.Header.Del("Date")
	want := []string{"Content-Length: 15", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-End: 2"}
	if diff := cmp.Diff(want, sorted(res.Header)); diff != "" || res.StatusCode != http.StatusTeapot || body != "short and stout" {
		t.Errorf("%s %q, headers (-want +got):\n%s", res.Status, body, diff)
	}
}

// What a server says that is no answer is none.
func TestBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"no HTTP":              "hello\r\n\r\n",
		"two lengths":          "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a head without end":   "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10),
		"a protocol not asked": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"nothing":              "",
	} {
		t.Run(name, func(t *testing.T) {
			at := freePort(t)
			start(t, one(at, []lb.Upstream{upstreamOf("u", says(t, text))}, prefix("/", "u")))
			if res, _ := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); res.StatusCode != http.StatusBadGateway {
				t.Errorf("got %s", res.Status)
			}
		})
	}
}

// says is a server that says the same to everybody, and closes the connection.
func says(t *testing.T, text string) netip.AddrPort {
	t.Helper()
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
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, text)
			}
			c.Close()
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestInterimAnswersPass(t *testing.T) {
	at, _ := proxyTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "done")
	}, nil)
	c := dial(t, at)
	send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(c)
	tp := textproto.NewReader(r)
	line, err := tp.ReadLine()
	if err != nil || line != "HTTP/1.1 103 Early Hints" {
		t.Fatalf("first %q, %v", line, err)
	}
	if h, err := tp.ReadMIMEHeader(); err != nil || h.Get("Link") != "</a.css>; rel=preload" {
		t.Errorf("interim headers %v, %v", h, err)
	}
	res, body := readAnswer(t, r, false)
	if res.StatusCode != 200 || body != "done" || res.Header.Get("Link") != "" {
		t.Errorf("then %s %q %v", res.Status, body, res.Header)
	}
}

// HTTP/1.0 knows no interim answers: a client would take one for the answer.
func TestNoInterimAnswersOverHTTP10(t *testing.T) {
	at, _ := proxyTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "done")
	}, nil)
	if res, body := raw(t, at, "GET / HTTP/1.0\r\nHost: a\r\n\r\n"); res.StatusCode != 200 || body != "done" {
		t.Errorf("got %s %q", res.Status, body)
	}
}

func TestTrailersPass(t *testing.T) {
	at, _ := proxyTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	}, nil)
	res, body := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n")
	if diff := cmp.Diff([]string{"X-Announced: 1", "X-Late: 2"}, sorted(res.Trailer)); diff != "" || body != "body" {
		t.Errorf("%q, trailers (-want +got):\n%s", body, diff)
	}
}

// A piece of an answer reaches the client before there is another one, also compressed.
func TestStreaming(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		t.Run(fmt.Sprint("gzip ", compressed), func(t *testing.T) {
			next := make(chan string)
			at, _ := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for {
					select {
					case text := <-next:
						if text == "" {
							return
						}
						_, _ = io.WriteString(w, text)
						w.(http.Flusher).Flush()
					case <-r.Context().Done():
						return
					}
				}
			}, func(c *lb.HTTP) {
				c.Servers[0].Locations[0].Gzip = &lb.Gzip{Level: 1, Types: []string{"text/*"}}
			})
			c := dial(t, at)
			accept := ""
			if compressed {
				accept = "Accept-Encoding: gzip\r\n"
			}
			send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n"+accept+"\r\n")
			next <- "one\n"
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body := io.Reader(res.Body)
			if compressed {
				if body, err = gzip.NewReader(body); err != nil {
					t.Fatal(err)
				}
			}
			lines := bufio.NewReader(body)
			for _, text := range []string{"one\n", "two\n", "three\n"} {
				if text != "one\n" {
					next <- text
				}
				if got, err := lines.ReadString('\n'); got != text || err != nil {
					t.Fatalf("got %q, %v, want %q", got, err, text)
				}
			}
			next <- ""
			if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
				t.Errorf("at the end %q, %v", rest, err)
			}
		})
	}
}

// A WebSocket is a connection of its own: it outlives the listener, and what limits
// requests does not limit it.
func TestWebSocketOutlivesReload(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Connection") != "Upgrade" {
			http.Error(w, fmt.Sprint(r.Header), http.StatusBadRequest)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, rw)
	}
	at, p := proxyTo(t, echo, nil)
	c := dial(t, at)
	send(t, c, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: eA==\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %v, %v", res, err)
	}
	say := func(text string) {
		t.Helper()
		send(t, c, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != text {
			t.Fatalf("said %q, heard %q, %v", text, got, err)
		}
	}
	say("\x81\x05 no HTTP\r\n\r\n\x00")
	if n := p.Status().Upstreams[0].Servers[0].InFlight; n != 1 {
		t.Errorf("%d in flight", n)
	}
	if err := p.Apply(lb.HTTP{Client: testLimits}); err != nil {
		t.Fatal(err)
	}
	say("after the listener is gone")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestHeaderChanges(t *testing.T) {
	at, _ := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "secret")
		w.Header().Set("X-Powered-By", "secret")
		w.Header().Set("Cache-Control", "private")
		for _, h := range []string{"X-Host", "X-Added", "Cookie", "X-Id", "X-Empty"} {
			fmt.Fprintf(w, "%s=%s ", h, strings.Join(r.Header[h], "|"))
		}
		fmt.Fprintf(w, "host=%s", r.Host)
	}, func(c *lb.HTTP) {
		c.RequestID = "X-Id"
		c.Upstreams[0].Host = "inner.example"
		l := &c.Servers[0].Locations[0]
		l.RequestHeaders = lb.HeaderChanges{
			Remove: []string{"Cookie"}, Set: []lb.Header{{Name: "X-Host", Value: "${host}:$server_port$$"}, {Name: "X-Empty", Value: "$query"}},
			Add: []lb.Header{{Name: "X-Added", Value: "2"}},
		}
		l.ResponseHeaders = lb.HeaderChanges{
			Remove: []string{"X-Powered-By"}, Set: []lb.Header{{Name: "Server", Value: "sluice"}, {Name: "X-Id", Value: "$request_id"}},
			Add: []lb.Header{{Name: "Cache-Control", Value: "no-store"}},
		}
	})
	res, body := raw(t, at, "GET / HTTP/1.1\r\nHost: A.example:80\r\nCookie: a=1\r\nX-Host: forged\r\nX-Added: 1\r\nX-Id: forged\r\nX-Empty: 1\r\n\r\n")
	id := res.Header.Get("X-Id")
	if len(id) != 32 {
		t.Errorf("request id %q", id)
	}
	want := fmt.Sprintf("X-Host=a.example:%d$ X-Added=1|2 Cookie= X-Id=%s X-Empty= host=inner.example", at.Port(), id)
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("the server got (-want +got):\n%s", diff)
	}
	for name, want := range map[string][]string{"Server": {"sluice"}, "X-Powered-By": nil, "Cache-Control": {"private", "no-store"}} {
		if got := res.Header[name]; !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// Only a trusted proxy's word about the client counts.
func TestForwardedFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		trusted string
		headers string
		want    string // X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, Forwarded
	}{
		{"stranger", "192.0.2.0/24", "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=198.51.100.1\r\n",
			`127.0.0.1; 127.0.0.1; http; for=127.0.0.1;host="a";proto=http`},
		{"trusted", "127.0.0.0/8", "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=198.51.100.1\r\n",
			`203.0.113.9, 198.51.100.1, 127.0.0.1; 198.51.100.1; https; for=198.51.100.1, for=127.0.0.1;host="a";proto=http`},
		{"a chain of trusted ones", "127.0.0.0/8", "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: [2001:db8::1]:443, 127.0.0.9\r\n",
			`203.0.113.9, [2001:db8::1]:443, 127.0.0.9, 127.0.0.1; 2001:db8::1; http; for=127.0.0.1;host="a";proto=http`},
		{"rubbish from a trusted one", "127.0.0.0/8", "X-Forwarded-For: 198.51.100.1, unknown\r\n",
			`198.51.100.1, unknown, 127.0.0.1; 127.0.0.1; http; for=127.0.0.1;host="a";proto=http`},
		{"trusted, and says nothing", "127.0.0.0/8", "", `127.0.0.1; 127.0.0.1; http; for=127.0.0.1;host="a";proto=http`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at, _ := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
				var all []string
				for _, h := range []string{"X-Forwarded-For", "X-Real-Ip", "X-Forwarded-Proto", "Forwarded"} {
					all = append(all, strings.Join(r.Header[h], "|"))
				}
				_, _ = io.WriteString(w, strings.Join(all, "; "))
			}, func(c *lb.HTTP) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(tt.trusted)} })
			_, body := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\n"+tt.headers+"\r\n")
			if diff := cmp.Diff(tt.want, body); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestReturnsAndRedirects(t *testing.T) {
	at := freePort(t)
	location := func(path string, r *lb.Return, to *lb.Redirect) lb.Location {
		return lb.Location{Kind: lb.LocationPrefix, Path: path, Return: r, Redirect: to}
	}
	c := one(at, []lb.Upstream{upstreamOf("mirrors", aServer(1), netip.MustParseAddrPort("192.0.2.2:8080"), netip.MustParseAddrPort("[2001:db8::3]:80"))},
		location("/ping", &lb.Return{Status: 200, Body: "pong from $host", ContentType: "text/plain"}, nil),
		location("/gone", &lb.Return{Status: 410, ContentType: "text/plain"}, nil),
		location("/empty", &lb.Return{Status: 204, ContentType: "text/plain"}, nil),
		location("/old/", nil, &lb.Redirect{Status: 301, To: "https://new.example/"}),
		location("/secure/", nil, &lb.Redirect{Status: 308, To: "https://$host$request_uri"}),
		location("/path/", nil, &lb.Redirect{Status: 302, To: "https://$host$path?was=$scheme"}),
		location("/dl/", nil, &lb.Redirect{Status: 302, Upstream: "mirrors"}))
	p := start(t, c)
	want := []string{
		"/ping: 200  pong from a.example", "/gone: 410  ", "/empty: 204  ", "/old/x?y: 301 https://new.example/ Moved Permanently\n",
		"/secure/a%20b?c: 308 https://a.example/secure/a%20b?c Permanent Redirect\n",
		"/path/%0d%0aX:%201/%3Fa%23%25%c3%a9?b: 302 https://a.example/path/%0D%0AX:%201/%3Fa%23%25%C3%A9?was=http Found\n",
		"/dl/file?x=1: 302 http://192.0.2.1/dl/file?x=1 Found\n", "/dl/file?x=1: 302 http://192.0.2.2:8080/dl/file?x=1 Found\n",
		"/dl/file?x=1: 302 http://[2001:db8::3]/dl/file?x=1 Found\n", "/nowhere: 404  404 Not Found\n",
	}
	var got []string
	for _, w := range want {
		path, _, _ := strings.Cut(w, ": ")
		res, body := raw(t, at, "GET "+path+" HTTP/1.1\r\nHost: A.example:80\r\nConnection: close\r\n\r\n")
		got = append(got, fmt.Sprintf("%s: %d %s %s", path, res.StatusCode, res.Header.Get("Location"), body))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	for _, s := range p.Status().Upstreams[0].Servers {
		if s.Requests != 1 || s.InFlight != 0 {
			t.Errorf("%v: %d requests, %d in flight", s.Address, s.Requests, s.InFlight)
		}
	}
}

func TestAccessAndLimits(t *testing.T) {
	at := freePort(t)
	l := func(path string) lb.Location { return prefix(path, "u") }
	denied, allowed, limited, small := l("/denied/"), l("/allowed/"), l("/limited/"), l("/small/")
	denied.Rules = []lb.Rule{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	allowed.Rules, allowed.AllowOnly = []lb.Rule{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("127.0.0.1/32"), Allow: true}}, true
	limited.RateLimit = &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyHeader, Name: "X-Key"}, Rate: 0.001, Burst: 1, Status: 429}
	small.MaxBody = 10
	start(t, one(at, []lb.Upstream{upstreamOf("u", named(t, "s"))}, denied, allowed, limited, small))
	for _, tt := range []struct {
		request string
		want    int
	}{
		{"GET /denied/ HTTP/1.1\r\nHost: a\r\n\r\n", 403},
		{"GET /allowed/ HTTP/1.1\r\nHost: a\r\n\r\n", 200},
		{"GET /limited/ HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\n\r\n", 200},
		{"GET /limited/ HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\n\r\n", 200},
		{"GET /limited/ HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\n\r\n", 429},
		{"GET /limited/ HTTP/1.1\r\nHost: a\r\nX-Key: 2\r\n\r\n", 200},
		{"POST /small/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", 200},
		{"POST /small/ HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n01234567890", 413},
		{"POST /small/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n", 413},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405},
		{"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", 431},
	} {
		if res, _ := raw(t, at, tt.request); res.StatusCode != tt.want {
			t.Errorf("%.60q: got %d, want %d", tt.request, res.StatusCode, tt.want)
		}
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter(&lb.RateLimit{Rate: 1, Burst: 0})
	l.most = 100
	now := l.begun
	for i := range 10_000 {
		if !l.allows(fmt.Sprint(i), now) {
			t.Fatalf("key %d is refused at once", i)
		}
		if i%50 == 49 && l.allows("busy", now) != (i == 49) {
			t.Fatalf("a key that is in use is forgotten at %d", i)
		}
	}
	if n := len(l.young) + len(l.older); n > 202 {
		t.Errorf("%d keys are kept", n)
	}
	if !l.allows("busy", now.Add(time.Second)) {
		t.Error("a second later it is refused")
	}
}

func TestGzip(t *testing.T) {
	long := strings.Repeat("compress me ", 100)
	at, _ := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
		kind := map[string]string{"/html": "text/html", "/png": "image/png", "/encoded": "text/html", "/short": "text/html", "/part": "text/html"}[r.URL.Path]
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Etag", `"1"`)
		switch r.URL.Path {
		case "/encoded":
			w.Header().Set("Content-Encoding", "br")
		case "/short":
			_, _ = io.WriteString(w, "short")
			return
		case "/part":
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = io.WriteString(w, long)
	}, func(c *lb.HTTP) {
		c.Servers[0].Locations[0].Gzip = &lb.Gzip{Level: 5, MinLength: 100, Types: []string{"text/html"}}
	})
	for _, tt := range []struct {
		path, accept string
		compressed   bool
	}{
		{"/html", "gzip, br", true}, {"/html", "*", true}, {"/html", "gzip;q=0", false}, {"/html", "br", false}, {"/html", "", false},
		{"/png", "gzip", false}, {"/encoded", "gzip", false}, {"/short", "gzip", false}, {"/part", "gzip", false},
	} {
		res, body := raw(t, at, "GET "+tt.path+" HTTP/1.1\r\nHost: a\r\nAccept-Encoding: "+tt.accept+"\r\n\r\n")
		if got := res.Header.Get("Content-Encoding") == "gzip"; got != tt.compressed {
			t.Errorf("%s with %q: compressed %v", tt.path, tt.accept, got)
			continue
		}
		if !tt.compressed {
			continue
		}
		z, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if string(text) != long || err != nil || res.Header.Get("Vary") != "Accept-Encoding" || res.Header.Get("Etag") != `W/"1"` {
			t.Errorf("%s: %d bytes, %v, %v", tt.path, len(text), err, res.Header)
		}
	}
}

// A client that is gone before its answer counts against no server.
func TestClientGone(t *testing.T) {
	entered := make(chan struct{})
	at, p := proxyTo(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}, nil)
	c := dial(t, at)
	send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	c.Close()
	testenv.Eventually(t, time.Minute, "the request is over", func() (bool, error) { return p.Status().Servers[0].InFlight == 0, nil })
	if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.InFlight != 0 {
		t.Errorf("the server: %+v", s)
	}
}
