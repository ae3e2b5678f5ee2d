package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// testCA makes a certificate in PEM.
func testCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestPages(t *testing.T) {
	ca := testCA(t)
	files := func(yaml string) memFiles {
		return memFiles{"conf/sluice.yaml": yaml, "conf/ca.pem": ca, "/etc/ssl/ca.pem": "# a comment\n" + ca + ca}
	}
	type settings struct {
		Pages []lb.Page
		TLS   lb.TLS
	}
	page := func(host, path string) lb.Page { return lb.Page{Host: host, Path: path} }
	for _, tt := range []struct {
		name, defaults, health string
		want                   settings
	}{
		{"nothing said", "", "type: https", settings{[]lb.Page{page("", "/")}, lb.TLS{}}},
		{"a path and a host", "", "type: https, path: /up, host: www.example.com", settings{[]lb.Page{page("www.example.com", "/up")}, lb.TLS{}}},
		{"paths", "", "type: http, urls: [/a, '/b?c=%20'], host: www.example.com",
			settings{[]lb.Page{page("www.example.com", "/a"), page("www.example.com", "/b?c=%20")}, lb.TLS{}}},
		{"paths and URLs", "", "type: http, urls: [/a, 'http://b.example.com:8080/b', 'http://c.example.com']",
			settings{[]lb.Page{page("", "/a"), page("b.example.com:8080", "/b"), page("c.example.com", "/")}, lb.TLS{}}},
		{"URLs over a default path", "path: /default", "type: http, urls: [/a]", settings{[]lb.Page{page("", "/a")}, lb.TLS{}}},
		{"a path over default URLs", "urls: [/a, /b]", "type: http, path: /own", settings{[]lb.Page{page("", "/own")}, lb.TLS{}}},
		{"default URLs", "urls: [/a, /b]", "type: http", settings{[]lb.Page{page("", "/a"), page("", "/b")}, lb.TLS{}}},
		{"tls", "", "type: https, tls: {server_name: www.example.com, verify: true, ca: ca.pem}",
			settings{[]lb.Page{page("", "/")}, lb.TLS{CA: ca, ServerName: "www.example.com"}}},
		{"tls by default", "tls: {ca: /etc/ssl/ca.pem}", "type: https", settings{[]lb.Page{page("", "/")}, lb.TLS{CA: "# a comment\n" + ca + ca}}},
		{"tls by default, and a probe without", "tls: {ca: /etc/ssl/ca.pem}", "type: http", settings{[]lb.Page{page("", "/")}, lb.TLS{}}},
		{"not verified", "", "type: https, tls: {verify: false, server_name: 192.0.2.1}",
			settings{[]lb.Page{page("", "/")}, lb.TLS{ServerName: "192.0.2.1", Insecure: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(files("defaults: {health: {"+tt.defaults+"}}\npools: [{name: p, servers: [{address: 192.0.2.1}], health: {"+tt.health+"}}]\n"), "conf/sluice.yaml", Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := c.Pools[0].Probe
			if diff := cmp.Diff(tt.want, settings{p.Pages, p.TLS}); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPageMistakes(t *testing.T) {
	health := func(text string) string {
		return "pools:\n- name: p\n  servers: [{address: 192.0.2.1}]\n  health: {" + text + "}\n"
	}
	for _, tt := range []mistakeCase{
		{"path and URLs", health("type: http, path: /a, urls: [/b]"), []string{"4:24: path goes with no urls: write it as one of them"}},
		{"no URLs", health("type: http, urls: []"), []string{"4:30: urls is empty: name at least one"}},
		{"one URL", health("type: http, urls: /a"), []string{"4:30: urls must be a list: write [/a]"}},
		{"URLs", health("type: http, urls: [a, 'ftp://b/', 'https://c/', 'http://u@d/', 'http://e/#f', '/g h']"), []string{
			`4:31: url must be a path such as /healthz, or like http://www.example.com/healthz for a Host header of its own, not "a"`,
			`4:34: url must be a path such as /healthz, or like http://www.example.com/healthz for a Host header of its own, not "ftp://b/"`,
			"4:46: url must start with http://, as the type of the probe is http",
			"4:60: url must have no user and no fragment",
			"4:75: url must have no user and no fragment",
			"4:90: url must have no space in it (write %20)",
		}},
		{"URLs of other probes", health("type: tcp, urls: [/a], tls: {verify: false}"), []string{
			"4:23: urls is for probes of type http or https, this one's type is tcp",
			"4:35: tls is for probes of type https, this one's type is tcp",
		}},
		{"tls without TLS", health("type: http, tls: {verify: false}"), []string{"4:24: tls is for probes of type https, this one's type is http"}},
		{"tls", health("type: https, tls: {verify: no, server_name: 'a:443', ca: none.pem, sni: x}"), []string{
			"4:39: verify must be true or false: write false for no",
			`4:56: server_name must be a host name or an address, without a port, not "a:443"`,
			"4:69: ca: cannot read none.pem: file does not exist",
			`4:79: unknown key "sni" in tls; the name is "server_name"`,
		}},
		{"tls that is no mapping", health("type: https, tls: true"), []string{`4:30: tls must be a mapping ("key: value"), not "true"`}},
		{"a file without a certificate", health("type: https, tls: {ca: sync.key}"), []string{
			"4:35: ca: there is no certificate in sync.key: it must hold PEM, with lines -----BEGIN CERTIFICATE-----",
		}},
		{"a file that nobody reads", health("type: https, tls: {ca: sync.key, verify: false}"), []string{
			"4:31: ca says nothing with verify: false: leave one of them out",
		}},
		{"mistakes in defaults", "defaults: {health: {path: x, urls: [y], tls: {ca: none.pem}}}\n", []string{
			`1:21: path goes with no urls: write it as one of them`,
			`1:27: path must start with /, not "x"`,
			"1:51: ca: cannot read none.pem: file does not exist",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// A certificate that cannot be read is a mistake, also behind a good one.
func TestBrokenAuthorities(t *testing.T) {
	broken := testCA(t) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	_, err := load(memFiles{"f": "checks: [{name: c, type: https, path: /, tls: {ca: ca.pem}}]\n", "ca.pem": broken}, "f", Options{})
	if got := mistakesOf(err); !strings.HasPrefix(got, "1:52: ca: certificate 2 in ca.pem cannot be read: x509: ") {
		t.Errorf("mistakes: %s", got)
	}
}
