package health

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestRunHTTP(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
	status := func(code int) func(net.Conn) {
		return raw(fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Length: 0\r\n\r\n", code, http.StatusText(code)))
	}
	endless := func(head, body string) func(net.Conn) {
		return func(conn net.Conn) {
			readRequest(conn)
			_, err := io.WriteString(conn, head)
			for err == nil {
				_, err = io.WriteString(conn, body)
			}
		}
	}
	// hang answers with a part of an answer and then keeps the connection open.
	hang := func(part string) func(net.Conn) {
		return func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, part)
			untilClosed(conn)
		}
	}
	// drip sends one byte at a time, each well within the timeout, without end.
	drip := func(head string) func(net.Conn) {
		return func(conn net.Conn) {
			readRequest(conn)
			_, err := io.WriteString(conn, head)
			for ticker := time.NewTicker(short / 20); err == nil; <-ticker.C {
				_, err = io.WriteString(conn, "x")
			}
		}
	}
	body := regexp.MustCompile
	for _, tt := range []struct {
		name   string
		handle func(net.Conn)
		probe  lb.Probe
		want   string
	}{
		{"200", raw(ok), lb.Probe{}, ""},
		{"204 without a body", raw("HTTP/1.1 204 No Content\r\n\r\n"), lb.Probe{}, ""},
		{"HTTP/1.0 with a body up to the close", raw("HTTP/1.0 200 OK\r\n\r\nok"), lb.Probe{Body: body("^ok$")}, ""},
		{"redirect is an answer", raw("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"), lb.Probe{}, ""},
		{
			"redirect not wanted",
			raw("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
			lb.Probe{Status: []lb.StatusRange{{First: 200, Last: 299}}}, "status 302, want 200-299",
		},
		{"503", status(503), lb.Probe{}, "status 503, want 200-399"},
		{
			"404 wanted", status(404),
			lb.Probe{Status: []lb.StatusRange{{First: 200, Last: 299}, {First: 404, Last: 404}}}, "",
		},
		{
			"several ranges missed", status(403),
			lb.Probe{Status: []lb.StatusRange{{First: 200, Last: 299}, {First: 404, Last: 404}}}, "status 403, want 200-299, 404",
		},
		{
			"interim answers first",
			raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + ok),
			lb.Probe{Body: body("ok")}, "",
		},
		{"interim answers without end", endless("", "HTTP/1.1 103 Early Hints\r\n\r\n"), lb.Probe{}, "header of the answer exceeds 65536 bytes"},
		{"switching protocols", status(101), lb.Probe{}, "status 101, want 200-399"},
		{"body matches", raw(ok), lb.Probe{Body: body(`^ok\s$`)}, ""},
		{"body does not match", raw(ok), lb.Probe{Body: body("ready")}, `body does not match "ready"`},
		{"chunked body", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nre\r\n3\r\nady\r\n0\r\n\r\n"), lb.Probe{Body: body("^ready$")}, ""},
		{
			"body cut short", raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nready"),
			lb.Probe{Body: body("ready")}, "read body: unexpected EOF",
		},
		{
			"match at the end of 64 KiB", raw("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(".", 64<<10-5) + "ready..."),
			lb.Probe{Body: body("ready$")}, "",
		},
		{
			"match beyond 64 KiB", raw("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(".", 64<<10-4) + "ready"),
			lb.Probe{Body: body("ready")}, `body does not match "ready"`,
		},
		{"endless body, not asked for", endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 4096)), lb.Probe{}, ""},
		{"endless body, match early", endless("HTTP/1.1 200 OK\r\n\r\nready", strings.Repeat("x", 4096)), lb.Probe{Body: body("^ready")}, ""},
		{
			"endless chunk extensions", endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 3000)+"\r\ny\r\n"),
			lb.Probe{Body: body("ready")}, "read body: chunked encoding contains too much non-data",
		},
		{"endless header", endless("HTTP/1.1 200 OK\r\n", "X-Filler: "+strings.Repeat("x", 1000)+"\r\n"), lb.Probe{}, "header of the answer exceeds 65536 bytes"},
		{"no answer", hang(""), lb.Probe{Timeout: short}, "no answer within 500ms"},
		{"hangs within the header", hang("HTTP/1.1 200 OK\r\nContent-Le"), lb.Probe{Timeout: short}, "no answer within 500ms"},
		{"hangs within the body", hang("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nready"), lb.Probe{Timeout: short, Body: body("ready")}, "body incomplete after 500ms"},
		{"dripping header", drip("HTTP/1.1 200 OK\r\nX-Slow: "), lb.Probe{Timeout: short}, "no answer within 500ms"},
		{"dripping body", drip("HTTP/1.1 200 OK\r\n\r\n"), lb.Probe{Timeout: short, Body: body("x")}, "body incomplete after 500ms"},
		{
			"endless small chunks", endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("1;xxxxxxxxxxxx\r\ny\r\n", 100)),
			lb.Probe{Body: body("ready")}, "read body: too many bytes",
		},
		{"closed at once", func(conn net.Conn) { readRequest(conn) }, lb.Probe{}, "closed without a complete answer"},
		{"closed within the header", raw("HTTP/1.1 200 OK\r\nContent-Le"), lb.Probe{}, "closed without a complete answer"},
		{
			"reset", func(conn net.Conn) {
				readRequest(conn)
				_ = conn.(*net.TCPConn).SetLinger(0)
			},
			lb.Probe{}, "read: connection reset by peer",
		},
		{"another protocol", raw("SSH-2.0-OpenSSH_9.2\r\n"), lb.Probe{}, `no valid HTTP: malformed HTTP response "SSH-2.0-OpenSSH_9.2"`},
		{"binary garbage", raw("\x15\x03\x01\x00\x02\x02\n\n"), lb.Probe{}, `no valid HTTP: malformed HTTP response "\x15\x03\x01\x00\x02\x02"`},
		{"escape sequences", raw("HTTP/1.1 200 OK\r\n\x1b[31mred\r\n\r\n"), lb.Probe{}, "no valid HTTP: malformed MIME header: missing colon: \"\\x1b[31mred\""},
		{
			"long garbage", raw(strings.Repeat("x", 1000) + "\n\n"), lb.Probe{},
			`no valid HTTP: malformed HTTP response "` + strings.Repeat("x", 75) + "...",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := Target{Address: serve(t, "127.0.0.1:0", tt.handle), Probe: tt.probe}
			target.Probe.Type, target.Probe.Pages = lb.ProbeHTTP, []lb.Page{{Path: "/healthz"}}
			if target.Probe.Timeout == 0 {
				target.Probe.Timeout = long
			}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunHTTPConnect(t *testing.T) {
	for _, tt := range []struct {
		name    string
		address func(*testing.T) netip.AddrPort
		timeout time.Duration
		want    string
	}{
		{"refused", closedPort, long, "connect: connection refused"},
		{"does not answer", fullBacklog, short, "connect: no answer within 500ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{Address: tt.address(t), Probe: lb.Probe{Type: lb.ProbeHTTP, Pages: []lb.Page{{Path: "/"}}, Timeout: tt.timeout}}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunHTTPRequest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bind  string
		probe lb.Probe
		want  string // with ADDRESS for the server's address and port
	}{
		{
			"defaults", "127.0.0.1:0", lb.Probe{Pages: []lb.Page{{Path: "/healthz"}}},
			"GET /healthz HTTP/1.1\r\nHost: ADDRESS\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		},
		{
			"host and query", "127.0.0.1:0", lb.Probe{Pages: []lb.Page{{Host: "www.example.com", Path: "//a%20b?x=1&y=/"}}},
			"GET //a%20b?x=1&y=/ HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		},
		{
			"IPv6", "[::1]:0", lb.Probe{Pages: []lb.Page{{Path: "/"}}},
			"GET / HTTP/1.1\r\nHost: ADDRESS\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HTTP_PROXY", "http://127.0.0.1:1/")
			t.Setenv("http_proxy", "http://127.0.0.1:1/")
			if l, err := net.Listen("tcp", tt.bind); err != nil {
				t.Skipf("no IPv6 here: %v", err)
			} else if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 2)
			address := serve(t, tt.bind, func(conn net.Conn) {
				got <- readRequest(conn)
				_, _ = io.WriteString(conn, "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
			})
			target := Target{Address: address, Probe: tt.probe}
			target.Probe.Type, target.Probe.Timeout = lb.ProbeHTTP, long
			if err := Run(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, "ADDRESS", address.String()), <-got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if len(got) > 0 {
				t.Errorf("a second request, after a redirect: %q", <-got)
			}
		})
	}
}

func TestRunHTTPRefusesRequest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		probe lb.Probe
		want  string
	}{
		{"no page", lb.Probe{}, `send request: there is no page to ask for`},
		{"no path", lb.Probe{Pages: []lb.Page{{}}}, `send request: path "" does not start with / or needs percent-encoding`},
		{"relative path", lb.Probe{Pages: []lb.Page{{Path: "healthz"}}}, `send request: path "healthz" does not start with / or needs percent-encoding`},
		{"space", lb.Probe{Pages: []lb.Page{{Path: "/a b"}}}, `send request: path "/a b" does not start with / or needs percent-encoding`},
		{"second header", lb.Probe{Pages: []lb.Page{{Host: "a\r\nX: y", Path: "/"}}}, `send request: host "a\r\nX: y" has a space or control character`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.probe.Type, tt.probe.Timeout = lb.ProbeHTTP, long
			err := Run(t.Context(), Target{Address: closedPort(t), Probe: tt.probe})
			if diff := cmp.Diff(tt.want, text(err)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}
