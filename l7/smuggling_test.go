package l7

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Smuggling are requests that two programs may read as two different ones. None of them
// may reach a server.
var smuggling = []struct{ name, request string }{
	{"length and chunks", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"},
	{"chunks and length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX"},
	{"length 0 and chunks", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"two lengths that differ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"},
	{"two lengths that are equal", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"},
	{"a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc"},
	{"length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc"},
	{"negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"},
	{"length in hexadecimal", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc"},
	{"length with a fraction", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3.0\r\n\r\nabc"},
	{"length with a space inside", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 0\r\n\r\n0123456789"},
	{"length with an underscore", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n0123456789"},
	{"empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"},
	{"length beyond 64 bits", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551619\r\n\r\nabc"},
	{"length with a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \v3\r\n\r\nabc"},
	{"name with a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc"},
	{"name with a tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"},
	{"name with a space inside", "GET / HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n"},
	{"name with a NUL", "GET / HTTP/1.1\r\nHost: a\r\nX\x00Y: 1\r\n\r\n"},
	{"name with a byte above 127", "GET / HTTP/1.1\r\nHost: a\r\nX\xe9: 1\r\n\r\n"},
	{"no name", "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n"},
	{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"},
	{"header before the first", "GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n"},
	{"folded line with a space", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"},
	{"folded line with a tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n"},
	{"folded length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n 3\r\n\r\nabc"},
	{"bare LF behind a header", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n"},
	{"bare LF as the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"bare LFs all over", "GET / HTTP/1.1\nHost: a\n\n"},
	{"bare CR behind a header", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n"},
	{"bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\r\n\r\n"},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n"},
	{"form feed in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\f2\r\n\r\n"},
	{"backspace in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\b2\r\n\r\n"},
	{"DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x7f\r\n\r\n"},
	{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc"},
	{"gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{"chunked, identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"chunked and identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"},
	{"xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{"chunked in quotes", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"},
	{"chunked behind a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n"},
	{"chunked and a parameter", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"},
	{"chunked, and far behind it another word", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked" + strings.Repeat(" ", 400) + "x\r\n\r\n0\r\n\r\n"},
	{"empty transfer encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\nContent-Length: 3\r\n\r\nabc"},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
	{"two equal hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"},
	{"two hosts in one", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"},
	{"host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"},
	{"host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"},
	{"host with a brace", "GET / HTTP/1.1\r\nHost: a{b\r\n\r\n"},
	{"host with a byte above 127", "GET / HTTP/1.1\r\nHost: a\xe9\r\n\r\n"},
	{"host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"},
	{"no host", "GET / HTTP/1.1\r\n\r\n"},
	{"two spaces in the request line", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"tab in the request line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"no version", "GET /\r\nHost: a\r\n\r\n"},
	{"version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"},
	{"version 2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{"version in lower case", "GET / http/1.1\r\nHost: a\r\n\r\n"},
	{"version with zeros", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"},
	{"method with a colon", "GE:T / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"empty line before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"%00 in the target", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"half a % in the target", "GET /%2 HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"out of the root", "GET /a/../../b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"out of the root, encoded", "GET /a/%2e%2e/%2e%2e/b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target without a host", "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target with one slash", "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target with two hosts", "GET http://a,b/x HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target with quotes", "GET http://a\"<b/x HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target that is not ASCII", "GET http://a\xc3\xa9/x HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target that is not ASCII when decoded", "GET http://a%c3%a9/x HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"absolute target with a user", "GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"target that is no path", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"chunk size that is no number", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\na\r\n0\r\n\r\n"},
	{"chunk size with 0x", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"},
	{"chunk size with a sign", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n"},
	{"chunk size behind a space", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n"},
	{"chunk size before a space", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n"},
	{"chunk size with an underscore", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\n0123456789abcdef\r\n0\r\n\r\n"},
	{"no chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\na\r\n0\r\n\r\n"},
	{"chunk size beyond 64 bits", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n"},
	{"chunk size ended by LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"},
	{"chunk size ended by CR", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\ra\r\n0\r\n\r\n"},
	{"LF in a chunk's extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n"},
	{"CR in a chunk's extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n"},
	{"chunk longer than it says", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"},
	{"chunk shorter than it says", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na\r\n0\r\n\r\n"},
	{"chunk ended by LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n"},
	{"trailer that is folded", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: 1\r\n 2\r\n\r\n"},
	{"trailer without a colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX\r\n\r\n"},
	{"trailers ended by LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\n"},
	{"body that is cut off", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"},
	{"chunks that are cut off", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"},
	{"bytes that are no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
}

// A recorder is a server that answers everything with 200 and keeps what it got.
type recorder struct {
	at netip.AddrPort
	mu sync.Mutex
	// got is what came on all connections; conns their number.
	got   strings.Builder
	conns int
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{at: netip.MustParseAddrPort(l.Addr().String())}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns++
			r.mu.Unlock()
			all.Go(func() { r.serve(c) })
		}
	})
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(io.TeeReader(c, r))
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(p)
}

func (r *recorder) take() (string, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, n := r.got.String(), r.conns
	r.got.Reset()
	r.conns = 0
	return s, n
}

// Nothing that is ambiguous reaches a server, whether it comes first on a connection or
// behind a good request; the answer is 400, and the last one.
func TestSmuggling(t *testing.T) {
	if len(smuggling) < 50 {
		t.Fatalf("%d payloads", len(smuggling))
	}
	server := newRecorder(t)
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{upstreamOf("u", server.at)}, prefix("/", "u")))
	const good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, tt := range smuggling {
		t.Run(tt.name, func(t *testing.T) {
			for _, before := range []string{"", good} {
				server.take()
				malformed := p.Status().Listeners[0].Malformed
				c := dial(t, at)
				r := bufio.NewReader(c)
				cut := strings.Contains(tt.name, "cut off") // a client that closes is one that has gone
				if !cut {
					send(t, c, before+tt.request)
				} else {
					send(t, c, before)
				}
				if before != "" {
					if res, body := readAnswer(t, r, false); res.StatusCode != http.StatusOK || body != "ok" {
						t.Fatalf("the good request is answered with %s, %q", res.Status, body)
					}
					if got, _ := server.take(); !strings.HasPrefix(got, "GET /good HTTP/1.1\r\n") {
						t.Fatalf("the server has got %q", got)
					}
				}
				if cut {
					send(t, c, tt.request)
					if err := c.(*net.TCPConn).CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				res, _ := readAnswer(t, r, false)
				if res.StatusCode != http.StatusBadRequest || !res.Close {
					t.Errorf("answered with %s, close %v", res.Status, res.Close)
				}
				if n := p.Status().Listeners[0].Malformed; strings.HasPrefix(tt.name, "host ") && n != malformed+1 {
					t.Errorf("%d requests are counted as malformed, want %d", n, malformed+1)
				}
				if more, err := io.ReadAll(r); len(more) > 0 {
					t.Errorf("another answer: %q, %v", more, err)
				}
				if got, conns := server.take(); got != "" || before == "" && conns != 0 {
					t.Errorf("the server has got %q on %d connections", got, conns)
				}
			}
		})
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// What is odd but plain goes on without what a server could misread.
func TestOddRequestsArriveClean(t *testing.T) {
	server := newRecorder(t)
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server.at)}, prefix("/", "u")))
	const told = "Forwarded: for=127.0.0.1;host=\"a\";proto=http\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: a\r\nX-Forwarded-Proto: http\r\nX-Real-Ip: 127.0.0.1\r\n"
	withKey := strings.Replace(told, "X-Forwarded-For", "Sec-Websocket-Key: eA==\r\nX-Forwarded-For", 1)
	for _, tt := range []struct{ name, in, want string }{
		{"underscores", "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 192.0.2.1\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\nX-Ok: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Replace(told, "X-Real", "X-Ok: 1\r\nX-Real", 1) + "\r\n"},
		{"h2c", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"upgrade to another protocol", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"upgrade to two", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: eA==\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + withKey + "\r\n"},
		{"WebSocket with a body", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nContent-Length: 1\r\n\r\na",
			"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n" + withKey + "\r\na"},
		{"WebSocket by POST", "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nContent-Length: 0\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + withKey + "\r\n"},
		{"our headers named in Connection", "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-For, X-Real-IP, Forwarded, X-Secret\r\nX-Secret: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"hop by hop", "GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nTE: gzip\r\nTrailer: X\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"forged addresses", "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"absolute target and another host", "GET http://a/x?y HTTP/1.1\r\nHost: b\r\n\r\n",
			"GET /x?y HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"absolute target without a path", "GET http://a HTTP/1.1\r\nHost: b\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"chunks become a length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX-Real-IP: 192.0.2.1\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n" + told + "\r\nabc"},
		{"trailers", "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum, X-Real-IP, X_Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Real-IP: 192.0.2.1\r\nX-Other: 2\r\nX_Sum: 3\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n" + told + "\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"},
		{"query that Go would mend", "GET /?a=1;b=2&c=%zz HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /?a=1;b=2&c=%zz HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
		{"path as it came", "GET //a/./b%2Fc/../d HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET //a/./b%2Fc/../d HTTP/1.1\r\nHost: a\r\n" + told + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.take()
			if res, body := raw(t, at, tt.in); res.StatusCode != http.StatusOK || body != "ok" {
				t.Fatalf("answered with %s, %q", res.Status, body)
			}
			got, _ := server.take()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("the server got (-want +got):\n%s", diff)
			}
		})
	}
}

// A body that turns out wrong behind what is read ahead is answered with 400, and the
// server sees that it did not end.
func TestBadChunkFarBehind(t *testing.T) {
	var mu sync.Mutex
	var ended []error
	server := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		mu.Lock()
		ended = append(ended, err)
		mu.Unlock()
	})
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
	long := strings.Repeat("x", 100_000)
	res, _ := raw(t, at, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n"+long+"\r\nzz\r\n")
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("answered with %s", res.Status)
	}
	testenv.Eventually(t, time.Minute, "the server sees the end", func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return len(ended) == 1, nil
	})
	if ended[0] == nil {
		t.Error("the server takes half a body for a whole one")
	}
}
