package l7

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestProxyHeader(t *testing.T) {
	const v4, v6 = "198.51.100.7:4660", "[2001:db8::7]:4660"
	const sig = "0d0a0d0a000d0a515549540a"
	for _, tt := range []struct{ name, source, destination, one, two string }{
		{"IPv4", v4, "192.0.2.100:80", "PROXY TCP4 198.51.100.7 192.0.2.100 4660 80\r\n",
			"21 11 000c c6336407 c0000264 1234 0050"},
		{"IPv6", v6, "[2001:db8::100]:80", "PROXY TCP6 2001:db8::7 2001:db8::100 4660 80\r\n",
			"21 21 0024 20010db8000000000000000000000007 20010db8000000000000000000000100 1234 0050"},
		{"an IPv6 client at an IPv4 address", v6, "192.0.2.100:80", "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.100 4660 80\r\n",
			"21 21 0024 20010db8000000000000000000000007 00000000000000000000ffffc0000264 1234 0050"},
		{"an IPv4 client at an IPv6 address", v4, "[2001:db8::100]:80", "PROXY TCP6 ::ffff:198.51.100.7 2001:db8::100 4660 80\r\n",
			"21 21 0024 00000000000000000000ffffc6336407 20010db8000000000000000000000100 1234 0050"},
		{"nobody knows", "", "192.0.2.100:80", "PROXY UNKNOWN\r\n", "20 00 0000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var source netip.AddrPort
			if tt.source != "" {
				source = netip.MustParseAddrPort(tt.source)
			}
			destination := netip.MustParseAddrPort(tt.destination)
			if diff := cmp.Diff(tt.one, string(proxyHeader(1, source, destination))); diff != "" {
				t.Errorf("version 1 (-want +got):\n%s", diff)
			}
			two := proxyHeader(2, source, destination)
			if diff := cmp.Diff(sig+strings.ReplaceAll(tt.two, " ", ""), fmt.Sprintf("%x", two)); diff != "" {
				t.Errorf("version 2 (-want +got):\n%s", diff)
			}
			for version, b := range map[int][]byte{1: proxyHeader(1, source, destination), 2: two} {
				h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
				if err != nil {
					t.Fatalf("version %d is read by nobody: %v", version, err)
				}
				if a, _, ok := h.TCPAddrs(); ok && addrPort(a) != source {
					t.Errorf("version %d is read as %v", version, a)
				}
			}
		})
	}
}

// A server is told the client that a trusted proxy has named, of whatever family.
func TestProxyHeaderOfAnotherFamily(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		line, _ := r.ReadString('\n')
		said <- line
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	u := upstreamOf("u", netip.MustParseAddrPort(l.Addr().String()))
	u.ProxyProtocol = 1
	at := freePort(t)
	c := one(at, []lb.Upstream{u}, prefix("/", "u"))
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	start(t, c)
	res, _ := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 2001:db8::7\r\nConnection: close\r\n\r\n")
	want := fmt.Sprintf("PROXY TCP6 2001:db8::7 ::ffff:127.0.0.1 0 %d\r\n", at.Port())
	if got := <-said; res.StatusCode != http.StatusOK || got != want {
		t.Errorf("%s, the server is told %q, want %q", res.Status, got, want)
	}
}
