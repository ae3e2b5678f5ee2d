package l7

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

var quiet = slog.New(slog.DiscardHandler)

// freePort returns an address of loopback that is nobody else's as long as the test
// runs: a socket that does not listen holds the port.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
}

// testLimits are long enough for a machine that is busy.
var testLimits = lb.ClientLimits{
	HeaderTimeout: 30 * time.Second, BodyTimeout: 30 * time.Second, SendTimeout: 30 * time.Second, KeepaliveTimeout: 60 * time.Second, MaxHeader: 16 << 10,
}

// upstreamOf is an upstream of servers, as the configuration makes one.
func upstreamOf(name string, servers ...netip.AddrPort) lb.Upstream {
	u := lb.Upstream{
		Name: name, Policy: lb.RoundRobin, Host: lb.HostClient, Keepalive: 16, ConnectTimeout: 5 * time.Second, SendTimeout: 30 * time.Second,
		ReadTimeout: 30 * time.Second, Next: lb.NextUpstream{Error: true, Timeout: true}, MaxFails: 1, FailTimeout: 10 * time.Second,
	}
	for _, s := range servers {
		u.Pool.Servers = append(u.Pool.Servers, lb.Server{Address: s.Addr(), Port: s.Port(), Weight: 1})
	}
	return u
}

// prefix is a location as the configuration makes one.
func prefix(path, upstream string) lb.Location {
	return lb.Location{Kind: lb.LocationPrefix, Path: path, Upstream: upstream, RequestBuffering: true, RequestBuffer: 64 << 10}
}

func exact(path, upstream string) lb.Location {
	l := prefix(path, upstream)
	l.Kind = lb.LocationExact
	return l
}

func regex(pattern, upstream string) lb.Location {
	l := prefix("", upstream)
	l.Kind, l.Regex = lb.LocationRegex, regexp.MustCompile(pattern)
	return l
}

// one is a configuration of one server with these locations.
func one(at netip.AddrPort, upstreams []lb.Upstream, locations ...lb.Location) lb.HTTP {
	return lb.HTTP{
		Upstreams: upstreams, Client: testLimits,
		Servers: []lb.HTTPServer{{Listen: []lb.HTTPListen{{Address: at}}, Locations: locations}},
	}
}

// start returns a proxy that serves a configuration until the test ends.
func start(t *testing.T, config lb.HTTP) *Proxy {
	t.Helper()
	p := New(Options{Log: quiet})
	if err := p.Apply(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(t.Context()) })
	return p
}

// backend is a real server whose handler is the test's.
func backend(t *testing.T, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// named is a backend that says who it is.
func named(t *testing.T, name string) netip.AddrPort {
	return backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", name, r.RequestURI) })
}

// raw sends bytes on a connection of its own and returns the answer and its body.
func raw(t *testing.T, at netip.AddrPort, request string) (*http.Response, string) {
	t.Helper()
	c := dial(t, at)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, bufio.NewReader(c), strings.HasPrefix(request, "HEAD "))
}

func dial(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

func readAnswer(t *testing.T, r *bufio.Reader, head bool) (*http.Response, string) {
	t.Helper()
	var of *http.Request
	if head {
		of = &http.Request{Method: http.MethodHead}
	}
	res, err := http.ReadResponse(r, of)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read the body of %s: %v", res.Status, err)
	}
	return res, string(body)
}

// get asks for a path of a host.
func get(t *testing.T, at netip.AddrPort, host, path string) (int, string) {
	t.Helper()
	res, body := raw(t, at, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host))
	return res.StatusCode, body
}

// sorted is what a test compares of a header.
func sorted(h http.Header) []string {
	var all []string
	for name, values := range h {
		for _, v := range values {
			all = append(all, name+": "+v)
		}
	}
	slices.Sort(all)
	return all
}
