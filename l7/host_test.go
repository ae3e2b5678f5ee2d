package l7

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A host that is an address is found however it is written; one that can be read in two
// ways is nobody's.
func TestHostsThatAreAddresses(t *testing.T) {
	at := freePort(t)
	says := func(name string, names ...string) lb.HTTPServer {
		l := prefix("/", "")
		l.Return = &lb.Return{Status: http.StatusOK, Body: name + " $host"}
		return lb.HTTPServer{Listen: []lb.HTTPListen{{Address: at}}, Names: names, Locations: []lb.Location{l}}
	}
	start(t, lb.HTTP{Client: testLimits, Servers: []lb.HTTPServer{says("first"), says("six", "[2001:db8::1]"), says("four", "192.0.2.1")}})
	for _, tt := range []struct{ host, want string }{
		{"[2001:db8::1]", "200 six [2001:db8::1]"}, {"[2001:DB8:0::0001]:8080", "200 six [2001:db8::1]"}, {"192.0.2.1:8080", "200 four 192.0.2.1"},
		{"[2001:db8::2]:80", "200 first [2001:db8::2]"}, {"a:", "200 first a"}, {"[::1]:", "200 first [::1]"}, {"", "200 first 127.0.0.1"},
		{"2001:db8::1", "400"}, {"[2001:db8::1", "400"}, {"[2001:db8::1]a", "400"}, {"[2001:db8::1]:x", "400"}, {"[::1%25eth0]", "400"}, {"[192.0.2.1]", "400"},
		{"a:b", "400"}, {"a:80:90", "400"}, {"a]:80", "400"}, {"a:80,b", "400"},
	} {
		t.Run(tt.host, func(t *testing.T) {
			status, body := get(t, at, tt.host, "/")
			got := fmt.Sprint(status)
			if status == http.StatusOK {
				got += " " + body
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// HTTP/1.0 need not say a host, and HTTP/1.1 may say an empty one: then it is the virtual
// host's first name, or the address that the client has connected to. A server is told so, too: many
// refuse a request of HTTP/1.1 without one.
func TestNoHost(t *testing.T) {
	told := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, " ", r.Header["X-Forwarded-Host"]) })
	away := prefix("/away", "")
	away.Redirect = &lb.Redirect{Status: http.StatusFound, To: "https://$host$request_uri"}
	for _, tt := range []struct {
		name  string
		names []string
		want  string // ADDRESS is where the client has connected to, IP that without the port
	}{
		{"with names", []string{"*.example", "b.example", "c.example"}, "b.example [b.example]|https://b.example/away|http://b.example/told/"},
		{"with a wildcard alone", []string{"*.example"}, "ADDRESS [ADDRESS]|https://IP/away|http://ADDRESS/told/"},
		{"without names", nil, "ADDRESS [ADDRESS]|https://IP/away|http://ADDRESS/told/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			c := one(at, []lb.Upstream{upstreamOf("u", told)}, prefix("/told/", "u"), away)
			c.Servers[0].Names = tt.names
			start(t, c)
			for _, end := range []string{" HTTP/1.0\r\n\r\n", " HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"} {
				_, body := raw(t, at, "GET /told/"+end)
				redirect, _ := raw(t, at, "GET /away"+end)
				slash, _ := raw(t, at, "GET /told"+end)
				want := strings.NewReplacer("ADDRESS", at.String(), "IP", at.Addr().String()).Replace(tt.want)
				got := strings.Join([]string{body, redirect.Header.Get("Location"), slash.Header.Get("Location")}, "|")
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%q (-want +got):\n%s", end, diff)
				}
			}
		})
	}
}

// What a client asks for by a URL is its path and query, in texts too; and two methods are
// nobody's.
func TestRequestURIAndMethods(t *testing.T) {
	at := freePort(t)
	l := prefix("/", "")
	l.Redirect = &lb.Redirect{Status: http.StatusFound, To: "https://$host$request_uri"}
	start(t, one(at, nil, l))
	for _, tt := range []struct{ request, want string }{
		{"GET /a%20b?c=d HTTP/1.1\r\nHost: a.example\r\n\r\n", "302 https://a.example/a%20b?c=d"},
		{"GET http://a.example/a?b HTTP/1.1\r\nHost: a.example\r\n\r\n", "302 https://a.example/a?b"},
		{"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "405 "}, {"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "405 "},
	} {
		res, _ := raw(t, at, tt.request)
		if got := fmt.Sprint(res.StatusCode, " ", res.Header.Get("Location")); got != tt.want {
			t.Errorf("%.20q: %s, want %s", tt.request, got, tt.want)
		}
	}
}
