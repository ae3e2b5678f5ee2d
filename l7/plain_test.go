package l7

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A deadline is set anew where a piece would get less than its time, and a piece never
// gets much more.
func TestDeadline(t *testing.T) {
	var set []time.Time
	d := deadline{set: func(at time.Time) error { set = append(set, at); return nil }, timeout: time.Hour}
	began := time.Now()
	for range 10 {
		if err := d.extend(); err != nil {
			t.Fatal(err)
		}
	}
	if len(set) != 1 || set[0].Before(began.Add(time.Hour)) || set[0].After(time.Now().Add(time.Hour+time.Second)) {
		t.Errorf("ten pieces set %v, want one deadline in an hour", set)
	}
	d.at = began.Add(time.Hour - time.Second) // as a second later
	if err := d.extend(); err != nil || len(set) != 2 || !set[1].After(began.Add(time.Hour)) {
		t.Errorf("later it is %v, %v", set, err)
	}
	if err := errors.Join(d.lift(), d.lift()); err != nil || len(set) != 3 || !set[2].IsZero() {
		t.Errorf("lifted twice: %v, %v", set, err)
	}
	if err := d.extend(); err != nil || len(set) != 4 || set[3].IsZero() {
		t.Errorf("set again: %v, %v", set, err)
	}
	none := deadline{set: d.set}
	if err := errors.Join(none.extend(), none.lift()); err != nil || len(set) != 4 {
		t.Errorf("without a timeout: %v, %v", set, err)
	}
	fails := deadline{set: func(time.Time) error { return net.ErrClosed }, timeout: time.Hour}
	if err := fails.extend(); err != net.ErrClosed || !fails.at.IsZero() {
		t.Errorf("of a closed connection: %v", err)
	}
}

func TestHeadsToServers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request http.Request
		close   bool
		want    string // "": it cannot be sent
	}{
		{"GET", http.Request{Method: "GET", Host: "a:80", Header: http.Header{"X": {"1", "2"}}}, false, "GET /p?q HTTP/1.1\r\nHost: a:80\r\nX: 1\r\nX: 2\r\n\r\n"},
		{"used once", http.Request{Method: "GET", Host: "a"}, true, "GET /p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{"POST without a body", http.Request{Method: "POST", Host: "a"}, false, "POST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"},
		{"a length", http.Request{Method: "PUT", Host: "a", Body: http.NoBody, ContentLength: 7}, false, "PUT /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n"},
		{"chunks", http.Request{Method: "PUT", Host: "a", Body: http.NoBody, ContentLength: -1}, false, "PUT /p?q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"trailers", http.Request{Method: "PUT", Host: "a", Body: http.NoBody, ContentLength: -1, Trailer: http.Header{"B": nil, "A": nil}}, false,
			"PUT /p?q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: A, B\r\n\r\n"},
		{"lengths of somebody else", http.Request{Method: "GET", Host: "a", Header: http.Header{"Content-Length": {"5"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"X"}, "Host": {"b"}}}, false,
			"GET /p?q HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a zone", http.Request{Method: "GET", Host: "[fe80::1%eth0]:80"}, false, "GET /p?q HTTP/1.1\r\nHost: [fe80::1]:80\r\n\r\n"},
		{"no host", http.Request{Method: "GET", Host: "a b"}, false, "GET /p?q HTTP/1.1\r\nHost: \r\n\r\n"},
		{"a line in a value", http.Request{Method: "GET", Host: "a", Header: http.Header{"X": {"1\r\nY: 2"}}}, false, ""},
		{"a name that is none", http.Request{Method: "GET", Host: "a", Header: http.Header{"X Y": {"1"}}}, false, ""},
		{"a trailer that is none", http.Request{Method: "PUT", Host: "a", Body: http.NoBody, ContentLength: -1, Trailer: http.Header{"X Y": nil}}, false, ""},
		{"a space in the target", http.Request{Method: "GET", Host: "a", URL: &url.URL{Opaque: "/a b"}}, false, ""},
		{"a line in the query", http.Request{Method: "GET", Host: "a", URL: &url.URL{Path: "/", RawQuery: "a\r\nb"}}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.request.URL == nil {
				tt.request.URL = &url.URL{Path: "/p", RawQuery: "q"}
			}
			got, err := appendHead(nil, &tt.request, !tt.close)
			if err != nil {
				got = nil
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" || (err != nil) != (tt.want == "") {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Connections are used again behind every kind of answer that has an end.
func TestConnectionsAreKept(t *testing.T) {
	var opened atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/chunks":
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "b")
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.WriteHeader(http.StatusNotModified)
		case "/interim":
			w.WriteHeader(http.StatusEarlyHints)
			fallthrough
		default:
			fmt.Fprint(w, n)
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", netip.MustParseAddrPort(s.Listener.Addr().String()))}, prefix("/", "u")))
	large := strings.Repeat("x", 300_000)
	for _, tt := range []struct{ method, path, body, want string }{
		{"GET", "/", "", "0"},
		{"GET", "/chunks", "", "ab"},
		{"HEAD", "/", "", ""},
		{"GET", "/204", "", ""},
		{"GET", "/304", "", ""},
		{"GET", "/interim", "", "0"},
		{"POST", "/", "small", "5"},
		{"PUT", "/", large[:20_000], "20000"},
	} {
		request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", tt.method, tt.path, len(tt.body), tt.body)
		c := dial(t, at)
		send(t, c, request)
		r := bufio.NewReader(c)
		var of *http.Request
		if tt.method == "HEAD" {
			of = &http.Request{Method: "HEAD"}
		}
		res, err := http.ReadResponse(r, of)
		for err == nil && res.StatusCode < 200 {
			res, err = http.ReadResponse(r, of)
		}
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != tt.want || err != nil {
			t.Errorf("%s %s: %q, %v, want %q", tt.method, tt.path, body, err, tt.want)
		}
		c.Close()
	}
	// Whether the end of a large body is noted before its answer is read is chance.
	if n := opened.Load(); n > 2 {
		t.Errorf("the server has had %d connections, want one, or two", n)
	}
}

// A scripted server answers the n-th request that it gets with what script says of it,
// and closes the connection where that ends with "!".
func scripted(t *testing.T, script ...string) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Int64
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	serve := func(c net.Conn) {
		defer c.Close()
		for r := bufio.NewReader(c); ; {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if request.Header.Get("X-Unread") == "" {
				_, _ = io.Copy(io.Discard, request.Body)
			}
			text := script[min(int(seen.Add(1)), len(script))-1]
			answer, closes := strings.CutSuffix(text, "!")
			if _, _ = io.WriteString(c, answer); closes {
				return
			}
		}
	}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() { serve(c) })
		}
	})
	return netip.MustParseAddrPort(l.Addr().String()), &seen
}

// says200 is an answer.
func says200(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// plainOf is the transport of a proxy's only upstream.
func plainOf(p *Proxy) *plainTransport { return p.upstreams["u"].now.Load().transport.plain }

// idleOf are the connections that a transport keeps.
func idleOf(t *plainTransport) (all []*plainConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, conns := range t.idle {
		all = append(all, conns...)
	}
	return all
}

// A connection that the server has closed, or has said too much on, is not used again.
// Where it closes it in the moment of a request, one that changes nothing is sent anew,
// to the same server, and others are not; neither counts against the server.
func TestConnectionsThatAreNotUsedAgain(t *testing.T) {
	const broken = "!"
	get, post := "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
	for _, tt := range []struct {
		name    string
		script  []string
		closed  bool // the second request comes when the connection is known to be closed
		request string
		status  int
		body    string
		seen    int64
	}{
		{"closed behind the answer, GET", []string{says200("one") + "!", says200("two")}, true, get, 200, "two", 2},
		{"closed behind the answer, POST", []string{says200("one") + "!", says200("two")}, true, post, 200, "two", 2},
		{"two answers to one request", []string{says200("one") + says200("evil"), says200("two")}, false, post, 200, "two", 2},
		{"an answer that says so", []string{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\none", says200("two")}, false, post, 200, "two", 2},
		{"HTTP/1.0", []string{"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\none", says200("two")}, false, post, 200, "two", 2},
		{"closed on the request, GET", []string{says200("one"), broken, says200("two")}, false, get, 200, "two", 3},
		{"closed on the request, POST", []string{says200("one"), broken, says200("two")}, false, post, 502, "502 Bad Gateway\n", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, seen := scripted(t, tt.script...)
			at := freePort(t)
			p := start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
			if status, body := get200(t, at); status != 200 || body != "one" {
				t.Fatalf("first got %d %q", status, body)
			}
			if tt.closed {
				testenv.Eventually(t, time.Minute, "the server's end", func() (bool, error) {
					return !slices.ContainsFunc(idleOf(plainOf(p)), (*plainConn).quiet), nil
				})
			}
			res, body := raw(t, at, tt.request)
			if res.StatusCode != tt.status || body != tt.body || seen.Load() != tt.seen {
				t.Errorf("got %d %q, the server has seen %d requests; want %d %q and %d", res.StatusCode, body, seen.Load(), tt.status, tt.body, tt.seen)
			}
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.State == StateFailing { // it may close what is idle
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// Connections are kept behind answers of HTTP/1.1 alone, whatever an older server says.
func TestWhichAnswersKeepAConnection(t *testing.T) {
	for _, tt := range []struct {
		name, head string
		kept       int
	}{
		{"HTTP/1.1", "HTTP/1.1 200 OK\r\n", 1},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", 0},
		{"HTTP/1.0, chunks", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, _ := scripted(t, tt.head+"Content-Length: 3\r\n\r\none")
			at := freePort(t)
			p := start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
			if status, body := get200(t, at); status != 200 || body != "one" {
				t.Errorf("got %d %q", status, body)
			}
			testenv.Eventually(t, time.Minute, "the request is over", func() (bool, error) { return p.Status().Servers[0].InFlight == 0, nil })
			if n := len(idleOf(plainOf(p))); n != tt.kept {
				t.Errorf("%d connections are kept, want %d", n, tt.kept)
			}
		})
	}
}

func get200(t *testing.T, at netip.AddrPort) (int, string) {
	t.Helper()
	return get(t, at, "a", "/")
}

// Idle connections end with their upstream, and when the server has closed them.
func TestIdleConnectionsToServersEnd(t *testing.T) {
	for _, tt := range []struct {
		name, first string
		end         func(*plainTransport)
		kept        int
	}{
		{"of a server that keeps them", says200("one"), (*plainTransport).reap, 1},
		{"of one that has closed them", says200("one") + "!", (*plainTransport).reap, 0},
		{"idle for long", says200("one"), func(tr *plainTransport) {
			for _, c := range idleOf(tr) {
				c.since = c.since.Add(-2 * idleFor)
			}
			tr.reap()
		}, 0},
		{"of an upstream that was", says200("one"), (*plainTransport).retire, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, _ := scripted(t, tt.first)
			at := freePort(t)
			tr := plainOf(start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u"))))
			get200(t, at)
			testenv.Eventually(t, time.Minute, "the connections that are kept", func() (bool, error) {
				tt.end(tr)
				return len(idleOf(tr)) == tt.kept, nil
			})
			if tt.name == "of an upstream that was" {
				get200(t, at)
				if n := len(idleOf(tr)); n != 0 {
					t.Errorf("%d are kept afterwards", n)
				}
			}
		})
	}
}

// A body may come for longer than a server may take to answer; then the time for the
// answer begins. Trailers come with it.
func TestLongUpload(t *testing.T) {
	const timeout = 200 * time.Millisecond
	silent := make(chan struct{})
	server := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.URL.Path == "/silent" {
			<-silent
		}
		fmt.Fprint(w, len(body), err, r.Trailer.Get("X-Sum"))
	})
	t.Cleanup(func() { close(silent) })
	u := upstreamOf("u", server)
	u.ReadTimeout = timeout
	at := freePort(t)
	l := prefix("/", "u")
	l.RequestBuffering = false
	start(t, one(at, []lb.Upstream{u}, l))
	for path, want := range map[string]int{"/": 200, "/silent": 504} {
		c := dial(t, at)
		send(t, c, "POST "+path+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
		for range 4 {
			send(t, c, "1\r\nx\r\n")
			<-time.After(timeout) // of what is tested
		}
		send(t, c, "0\r\nX-Sum: 4711\r\n\r\n")
		res, body := readAnswer(t, bufio.NewReader(c), false)
		if res.StatusCode != want || want == 200 && body != "4 <nil>4711" {
			t.Errorf("%s: got %s %q, want %d", path, res.Status, body, want)
		}
	}
}

// What is cut off on its way to a server does not arrive as a whole.
func TestUploadThatBreaksOff(t *testing.T) {
	for _, framing := range []string{"Content-Length: 1000", "Transfer-Encoding: chunked"} {
		t.Run(framing, func(t *testing.T) {
			began, read := make(chan struct{}), make(chan error, 1)
			server := backend(t, func(_ http.ResponseWriter, r *http.Request) {
				close(began)
				_, err := io.ReadAll(r.Body)
				read <- err
			})
			at := freePort(t)
			l := prefix("/", "u")
			l.RequestBuffering = false
			p := start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, l))
			c := dial(t, at)
			send(t, c, "POST / HTTP/1.1\r\nHost: a\r\n"+framing+"\r\n\r\n5\r\nhello\r\n")
			<-began
			c.Close()
			if err := <-read; err == nil {
				t.Error("the server takes what has come for all of it")
			}
			testenv.Eventually(t, time.Minute, "the request is over", func() (bool, error) { return p.Status().Servers[0].InFlight == 0, nil })
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.InFlight != 0 {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// Interim answers without an end are no answer.
func TestEndlessInterimAnswers(t *testing.T) {
	server, _ := scripted(t, strings.Repeat("HTTP/1.1 102 Processing\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 300)+says200("late"))
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
	c := dial(t, at)
	send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	for err == nil && res.StatusCode < 200 {
		res, err = http.ReadResponse(r, nil)
	}
	if err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("got %v, %v", res, err)
	}
}
