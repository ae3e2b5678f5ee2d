package l7

import (
	"bytes"
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
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// selfSigned writes a certificate for names, and its key, into files.
func selfSigned(t *testing.T, files lb.ServerTLS, names ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{files.Certificate: {Type: "CERTIFICATE", Bytes: der}, files.Key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func tlsFiles(t *testing.T, names ...string) lb.ServerTLS {
	t.Helper()
	dir := t.TempDir()
	f := lb.ServerTLS{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), HTTP2: true}
	selfSigned(t, f, names...)
	return f
}

// shown is the name in the certificate that a client is shown.
func shown(t *testing.T, at netip.AddrPort, sni string) string {
	t.Helper()
	c, err := tls.Dial("tcp", at.String(), &tls.Config{ServerName: sni, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestCertificatesBySNIAndRenewal(t *testing.T) {
	at := freePort(t)
	a, b := tlsFiles(t, "a.example"), tlsFiles(t, "b.example")
	server := func(f lb.ServerTLS, names ...string) lb.HTTPServer {
		return lb.HTTPServer{Listen: []lb.HTTPListen{{Address: at, TLS: &f}}, Names: names, Locations: []lb.Location{prefix("/", "u")}}
	}
	c := one(at, []lb.Upstream{upstreamOf("u", named(t, "s"))})
	c.Servers = []lb.HTTPServer{server(a, "a.example"), server(b, "b.example", "*.b.example")}
	p := start(t, c)
	got := map[string]string{}
	want := map[string]string{"a.example": "a.example", "b.example": "b.example", "x.y.b.example": "b.example", "unknown.example": "a.example"}
	for sni := range want {
		got[sni] = shown(t, at, sni)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("certificates (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(b.Key, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "a problem", func() (bool, error) { return len(p.Status().Problems) == 1, nil })
	if got := shown(t, at, "b.example"); got != "b.example" {
		t.Errorf("while the new key is rubbish: %s", got)
	}
	selfSigned(t, b, "renewed.example")
	testenv.Eventually(t, time.Minute, "the new certificate", func() (bool, error) { return shown(t, at, "b.example") == "renewed.example", nil })
	if s := p.Status(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

// insecure is a client that speaks HTTP/2 or HTTP/1 with TLS.
func insecure(http2 bool) *http.Client {
	p := &http.Protocols{}
	p.SetHTTP1(!http2)
	p.SetHTTP2(http2)
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{Protocols: p, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

func TestTLSAndHTTP2(t *testing.T) {
	at := freePort(t)
	files := tlsFiles(t, "a.example")
	server := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %d", r.Proto, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-For"), len(body))
	})
	c := one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u"))
	c.Servers[0].Listen[0].TLS = &files
	start(t, c)
	for _, http2 := range []bool{false, true} {
		client := insecure(http2)
		res, err := client.Post(fmt.Sprintf("https://%v/", at), "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		client.CloseIdleConnections()
		if want := "HTTP/1.1 https 127.0.0.1 100000"; string(body) != want || err != nil || (res.ProtoMajor == 2) != http2 {
			t.Errorf("HTTP/2 %v: %s %q, %v", http2, res.Proto, body, err)
		}
	}
	res, body := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "HTTPS") {
		t.Errorf("plain HTTP gets %s %q", res.Status, body)
	}
}

// A stream of messages in both directions, with trailers: what gRPC is made of.
func TestStreamsBothWays(t *testing.T) {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		buf := make([]byte, 16)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(bytes.ToUpper(buf[:n]))
			w.(http.Flusher).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("X-Proto", r.Proto+" "+r.Header.Get("Te"))
	}))
	s.Config.Protocols = protocols
	s.Start()
	t.Cleanup(s.Close)
	u := upstreamOf("u", netip.MustParseAddrPort(s.Listener.Addr().String()))
	u.HTTP2 = true
	at := freePort(t)
	files := tlsFiles(t, "a.example")
	c := one(at, []lb.Upstream{u}, prefix("/", "u"))
	c.Servers[0].Listen[0].TLS = &files
	start(t, c)
	in, out := io.Pipe()
	r, err := http.NewRequest(http.MethodPost, fmt.Sprintf("https://%v/svc/Method", at), in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	client := insecure(true)
	defer client.CloseIdleConnections()
	go func() { _, _ = io.WriteString(out, "first") }()
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	buf := make([]byte, 16)
	for _, word := range []string{"first", "second", "third"} {
		if word != "first" {
			if _, err := io.WriteString(out, word); err != nil {
				t.Fatal(err)
			}
		}
		n, err := io.ReadFull(res.Body, buf[:len(word)])
		if err != nil || string(buf[:n]) != strings.ToUpper(word) {
			t.Fatalf("said %s, heard %q, %v", word, buf[:n], err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
		t.Fatalf("rest %q, %v", rest, err)
	}
	if res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailers %v", res.Trailer)
	}
}

func TestTLSToServers(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS.ServerName, " ", r.Host) }))
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for _, tt := range []struct {
		name   string
		tls    lb.UpstreamTLS
		host   string
		status int
		body   string
	}{
		{"right name", lb.UpstreamTLS{CA: ca, ServerName: "example.com", Verify: true}, lb.HostClient, 200, "example.com a"},
		{"name of the host", lb.UpstreamTLS{CA: ca, Verify: true}, "example.com", 200, "example.com example.com"},
		{"wrong name", lb.UpstreamTLS{CA: ca, ServerName: "other.invalid", Verify: true}, lb.HostClient, 502, "502 Bad Gateway\n"},
		{"unknown authority", lb.UpstreamTLS{ServerName: "example.com", Verify: true}, lb.HostClient, 502, "502 Bad Gateway\n"},
		{"not verified", lb.UpstreamTLS{ServerName: "other.invalid"}, lb.HostClient, 200, "other.invalid a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := upstreamOf("u", netip.MustParseAddrPort(s.Listener.Addr().String()))
			u.TLS, u.Host = &tt.tls, tt.host
			at := freePort(t)
			start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
			if status, body := get(t, at, "a", "/"); status != tt.status || body != tt.body {
				t.Errorf("got %d %q, want %d %q", status, body, tt.status, tt.body)
			}
		})
	}
}

func TestProxyProtocol(t *testing.T) {
	client := &net.TCPAddr{IP: net.ParseIP("198.51.100.7"), Port: 4711}
	vip := &net.TCPAddr{IP: net.ParseIP("192.0.2.100"), Port: 80}
	header := func(version byte) string {
		var b bytes.Buffer
		if _, err := proxyproto.HeaderProxyFromAddrs(version, client, vip).WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	const request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for _, tt := range []struct {
		name, trusted, in string
		status            int // 0: the connection is closed
		body              string
	}{
		{"version 1", "127.0.0.0/8", header(1) + request, 200, "198.51.100.7 192.0.2.100"},
		{"version 2", "127.0.0.0/8", header(2) + request, 200, "198.51.100.7 192.0.2.100"},
		{"a trusted proxy must begin with it", "127.0.0.0/8", request, 0, ""},
		{"rubbish", "127.0.0.0/8", "PROXY TCP4 1.2.3\r\n" + request, 0, ""},
		{"a stranger's is no request", "192.0.2.0/24", header(1) + request, 400, "400 Bad Request"},
		{"a stranger without it", "192.0.2.0/24", request, 200, "127.0.0.1 127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at, _ := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Header.Get("X-Real-Ip"), " ", r.Header.Get("X-Local"))
			}, func(c *lb.HTTP) {
				c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(tt.trusted)}
				c.Servers[0].Listen[0].ProxyProtocol = true
				c.Servers[0].Locations[0].RequestHeaders.Set = []lb.Header{{Name: "X-Local", Value: "$server_address"}}
			})
			if tt.status == 0 {
				c := dial(t, at)
				send(t, c, tt.in)
				if b, err := io.ReadAll(c); len(b) > 0 {
					t.Errorf("got %q, %v", b, err)
				}
				return
			}
			if res, body := raw(t, at, tt.in); res.StatusCode != tt.status || body != tt.body {
				t.Errorf("got %s %q", res.Status, body)
			}
		})
	}
}

// A server that is told of clients by the PROXY protocol has a connection for each.
func TestProxyProtocolToServers(t *testing.T) {
	for _, version := range []int{1, 2} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) }))
		s.Listener.Close()
		s.Listener = &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }}
		s.Start()
		t.Cleanup(s.Close)
		u := upstreamOf("u", netip.MustParseAddrPort(l.Addr().String()))
		u.ProxyProtocol = version
		at := freePort(t)
		start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
		for range 2 {
			c := dial(t, at)
			send(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			got, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(got), "\r\n\r\n"+c.LocalAddr().String()) {
				t.Errorf("version %d: the server sees %q, the client is %v, %v", version, got, c.LocalAddr(), err)
			}
		}
	}
}

// A body that only calls itself gRPC has no more time than others: towards servers that
// cannot know gRPC, and with names that begin alike.
func TestWhatIsNoGRPC(t *testing.T) {
	for _, tt := range []struct {
		contentType string
		http2       bool // to servers
		want        int
	}{
		{"application/grpc", false, http.StatusRequestTimeout}, {"application/grpc-web", true, http.StatusRequestTimeout},
		{"text/plain", true, http.StatusRequestTimeout},
	} {
		t.Run(tt.contentType, func(t *testing.T) {
			at := freePort(t)
			c := overHTTP2(t, at, named2, prefix("/", "u"))
			c.Upstreams[0].HTTP2 = tt.http2
			c.Client.BodyTimeout = 200 * time.Millisecond
			start(t, c)
			in, out := io.Pipe()
			defer out.Close()
			r, err := http.NewRequest(http.MethodPost, fmt.Sprintf("https://%v/", at), in)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", tt.contentType)
			client := insecure(true)
			defer client.CloseIdleConnections()
			go func() { _, _ = io.WriteString(out, "a") }()
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != tt.want {
				t.Errorf("got %s, want %d", res.Status, tt.want)
			}
		})
	}
}

// What a client asks for, and a server that speaks HTTP/2 cannot have, is no failure of that
// server: a client must not be able to take it out.
func TestRequestsThatHTTP2DoesNotTake(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(named2))
	s.Config.MaxHeaderBytes = 4 << 10
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	u := upstreamOf("u", netip.MustParseAddrPort(s.Listener.Addr().String()))
	u.HTTP2 = true
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
	const webSocket = "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, tt := range []struct {
		name, header string
		want         int
	}{
		{"an ordinary one", "Connection: close\r\n", http.StatusOK},
		{"another protocol", webSocket, http.StatusOK}, // it is asked without
		{"a head that is too long", "Connection: close\r\nX: " + strings.Repeat("x", 8<<10) + "\r\n", http.StatusBadRequest},
		{"an ordinary one again", "Connection: close\r\n", http.StatusOK},
	} {
		res, _ := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\n"+tt.header+"\r\n")
		if res.StatusCode != tt.want {
			t.Errorf("%s: %s, want %d", tt.name, res.Status, tt.want)
		}
	}
	if got := p.Status().Upstreams[0].Servers[0]; got.State != StateUnknown || got.Failures != 0 {
		t.Errorf("the server is %s, with %d failures", got.State, got.Failures)
	}
}
