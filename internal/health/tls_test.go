package health

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An authority signs certificates of a test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         string
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a certificate of what is wanted; with a nil authority it signs itself.
func sign(t *testing.T, want *x509.Certificate, by *authority) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key = newKey(t)
	want.SerialNumber = big.NewInt(1)
	if want.NotAfter.IsZero() {
		want.NotBefore, want.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := want, key
	if by != nil {
		parent, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, want, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	der, key := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{c, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// certificate returns what a server shows.
func certificate(t *testing.T, want *x509.Certificate, by *authority) tls.Certificate {
	t.Helper()
	der, key := sign(t, want, by)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS answers requests by handle. What names clients ask for goes to asked.
func serveTLS(t *testing.T, c tls.Certificate, asked chan<- string, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	return serve(t, "127.0.0.1:0", func(conn net.Conn) {
		server := tls.Server(conn, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			select {
			case asked <- hello.ServerName:
			default:
			}
			return &c, nil
		}})
		if err := server.Handshake(); err != nil {
			return
		}
		handle(server)
	})
}

func TestRunHTTPS(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
	known, other := newAuthority(t, "known authority"), newAuthority(t, "other authority")
	names := func(names ...string) *x509.Certificate { return &x509.Certificate{DNSNames: names} }
	www := names("www.example.com")
	address := &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	past := names("www.example.com")
	past.NotBefore, past.NotAfter = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2020, 2, 2, 3, 4, 5, 0, time.UTC)
	future := names("www.example.com")
	future.NotBefore, future.NotAfter = time.Date(2199, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2199, 2, 2, 3, 4, 5, 0, time.UTC)
	self := names("www.example.com")
	self.Subject.CommonName = "itself"
	page := func(host string) []lb.Page { return []lb.Page{{Host: host, Path: "/healthz"}} }
	for _, tt := range []struct {
		name        string
		certificate *x509.Certificate
		by          *authority
		probe       lb.Probe // CA is that of the known authority
		asks        string   // the name that the server is asked for
		want        string
	}{
		{"the name of the host", www, known, lb.Probe{Pages: page("www.example.com")}, "www.example.com", ""},
		{"the name of the host without its port", www, known, lb.Probe{Pages: page("www.example.com:8443")}, "www.example.com", ""},
		{"a wildcard", names("*.example.com"), known, lb.Probe{Pages: page("www.example.com")}, "www.example.com", ""},
		{"another name than the host's", www, known, lb.Probe{Pages: page("front.example.com"), TLS: lb.TLS{ServerName: "www.example.com"}}, "www.example.com", ""},
		{"the address", address, known, lb.Probe{Pages: page("")}, "", ""},
		{"a body", www, known, lb.Probe{Pages: page("www.example.com"), Body: regexp.MustCompile("^ok")}, "www.example.com", ""},
		{"a wrong body", www, known, lb.Probe{Pages: page("www.example.com"), Body: regexp.MustCompile("fine")}, "www.example.com", `body does not match "fine"`},
		{"for another host", www, known, lb.Probe{Pages: page("api.example.com")}, "api.example.com",
			"certificate is for www.example.com, not for api.example.com"},
		{"for many others", names("a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com"), known, lb.Probe{Pages: page("")}, "",
			"certificate is for a.example.com, b.example.com, c.example.com and 2 more, not for 127.0.0.1"},
		{"for nobody", names(), known, lb.Probe{Pages: page("www.example.com")}, "www.example.com",
			"certificate is for no name or address, not for www.example.com"},
		{"by another authority", www, other, lb.Probe{Pages: page("www.example.com")}, "www.example.com",
			"certificate is signed by CN=other authority, whom this node does not trust"},
		{"by itself", self, nil, lb.Probe{Pages: page("www.example.com")}, "www.example.com",
			"certificate is signed by itself (CN=itself), whom this node does not trust"},
		{"expired", past, known, lb.Probe{Pages: page("www.example.com")}, "www.example.com", "certificate has expired at 2020-02-02T03:04:05Z"},
		{"not yet", future, known, lb.Probe{Pages: page("www.example.com")}, "www.example.com", "certificate is not valid before 2199-01-02T03:04:05Z"},
		{"expired, for another host, by itself, not verified", past, nil, lb.Probe{Pages: page("api.example.com"), TLS: lb.TLS{Insecure: true}}, "api.example.com", ""},
		{"none of the system's", www, known, lb.Probe{Pages: page("www.example.com"), TLS: lb.TLS{CA: "system"}}, "www.example.com",
			"certificate is signed by CN=known authority, whom this node does not trust"},
		{"no certificate in the file", www, known, lb.Probe{Pages: page("www.example.com"), TLS: lb.TLS{CA: "none"}}, "www.example.com",
			"certificate is signed by CN=known authority, whom this node does not trust"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := make(chan string, 1)
			target := Target{Address: serveTLS(t, certificate(t, tt.certificate, tt.by), asked, raw(ok)), Probe: tt.probe}
			target.Probe.Type, target.Probe.Timeout = lb.ProbeHTTPS, long
			switch target.Probe.TLS.CA {
			case "":
				target.Probe.TLS.CA = known.pem
			case "system":
				target.Probe.TLS.CA = ""
			}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if got := <-asked; got != tt.asks {
				t.Errorf("the server was asked for %q, want %q", got, tt.asks)
			}
		})
	}
}

// The server reads the same request as without TLS.
func TestRunHTTPSRequest(t *testing.T) {
	known := newAuthority(t, "known authority")
	got := make(chan string, 1)
	address := serveTLS(t, certificate(t, &x509.Certificate{DNSNames: []string{"www.example.com"}}, known), nil, func(conn net.Conn) {
		got <- readRequest(conn)
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	target := Target{Address: address, Probe: lb.Probe{
		Type: lb.ProbeHTTPS, Timeout: long, Pages: []lb.Page{{Host: "www.example.com", Path: "/up?x=1"}}, TLS: lb.TLS{CA: known.pem},
	}}
	if err := Run(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	want := "GET /up?x=1 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestRunHTTPSHandshake(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handle  func(net.Conn)
		timeout time.Duration
		want    string
	}{
		{"plain HTTP", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			untilClosed(conn)
		}, long, "the server does not speak TLS on this port"},
		{"silence", untilClosed, short, "no end of the TLS handshake within 500ms"},
		{"closed", func(conn net.Conn) {
			_ = conn.(*net.TCPConn).CloseWrite()
			untilClosed(conn)
		}, long, "closed during the TLS handshake"},
		{"refused", func(conn net.Conn) {
			_ = tls.Server(conn, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}).Handshake()
		}, long, "the server refuses the TLS handshake: unrecognized name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{Address: serve(t, "127.0.0.1:0", tt.handle), Probe: lb.Probe{
				Type: lb.ProbeHTTPS, Timeout: tt.timeout, Pages: []lb.Page{{Host: "www.example.com", Path: "/"}},
			}}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// A probe through a VIP dials an address that leads there, and wants a certificate
// for the VIP where no host is named.
func TestRunHTTPSThroughAVIP(t *testing.T) {
	known := newAuthority(t, "known authority")
	for _, tt := range []struct {
		name, host  string
		certificate *x509.Certificate
		want        string
	}{
		{"the VIP", "", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 100)}}, ""},
		{"a name", "www.example.com", &x509.Certificate{DNSNames: []string{"www.example.com"}}, ""},
		{"the server", "", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 11)}}, "certificate is for 192.0.2.11, not for 192.0.2.100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := serveTLS(t, certificate(t, tt.certificate, known), nil, raw("HTTP/1.1 204 No Content\r\n\r\n"))
			target := through(dsrPath, address.Port(), lb.Probe{
				Type: lb.ProbeHTTPS, Timeout: long, Pages: []lb.Page{{Host: tt.host, Path: "/"}}, TLS: lb.TLS{CA: known.pem},
			})
			want := tt.want
			if want != "" {
				want = fmt.Sprintf("https 192.0.2.100:%d at 192.0.2.11: %s", address.Port(), want)
			}
			got := text(bounded(t.Context(), target, prober{&fakePaths{address: loopback}}.probe))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// Several pages are asked for one after the other, all within one timeout; the one
// that is not good is named.
func TestRunPages(t *testing.T) {
	asked := make(chan string, 10)
	address := serve(t, "127.0.0.1:0", func(conn net.Conn) {
		line, rest, _ := strings.Cut(readRequest(conn), "\r\n")
		host, _, _ := strings.Cut(rest, "\r\n")
		asked <- strings.TrimPrefix(host, "Host: ") + strings.TrimSuffix(strings.TrimPrefix(line, "GET "), " HTTP/1.1")
		switch {
		case strings.Contains(line, "/broken"):
			_, _ = io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		case strings.Contains(line, "/hangs"):
			untilClosed(conn)
		default:
			_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	pages := func(paths ...string) (all []lb.Page) {
		for _, p := range paths {
			host, path, _ := strings.Cut(p, "/")
			all = append(all, lb.Page{Host: host, Path: "/" + path})
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		pages   []lb.Page
		timeout time.Duration
		asks    string
		want    string
	}{
		{"all good", pages("a.example.com/", "b.example.com/app/"), long, "a.example.com/ b.example.com/app/", ""},
		{"one is not", pages("a/", "b/broken", "c/never"), long, "a/ b/broken", "b/broken: status 502, want 200-399"},
		{"one hangs", pages("a/", "b/hangs"), short, "a/ b/hangs", "b/hangs: no answer within 500ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{Address: address, Probe: lb.Probe{Type: lb.ProbeHTTP, Timeout: tt.timeout, Pages: tt.pages}}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			var all []string
			for len(asked) > 0 {
				all = append(all, <-asked)
			}
			if got := strings.Join(all, " "); got != tt.asks {
				t.Errorf("asked for %q, want %q", got, tt.asks)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	web := serve(t, "127.0.0.1:0", raw("HTTP/1.1 302 Found\r\n\r\n"))
	for _, tt := range []struct {
		name, want string
		probe      lb.Probe
	}{
		{"tcp", "connected", lb.Probe{Type: lb.ProbeTCP}},
		{"http", "status 302", lb.Probe{Type: lb.ProbeHTTP, Pages: []lb.Page{{Path: "/"}}}},
		{"http, not good", "status 302", lb.Probe{Type: lb.ProbeHTTP, Pages: []lb.Page{{Path: "/"}}, Status: []lb.StatusRange{{First: 200, Last: 200}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			got, _ := prober{}.ask(ctx, Target{Address: web, Probe: tt.probe})
			if got != tt.want {
				t.Errorf("answer %q, want %q", got, tt.want)
			}
		})
	}
}
