package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// serveTLS answers at port 443 of a host, with a certificate for a name that signs
// itself. It returns that in PEM.
func (r *rig) serveTLS(on, name string) (ca string) {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		r.Fatal(err)
	}
	l, err := r.host(on).Listen("tcp", "0.0.0.0:443")
	if err != nil {
		r.Fatal(err)
	}
	server := &http.Server{
		Handler:   r.host(on).NameHandler(),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	r.Cleanup(func() {
		if err := errors.Join(server.Close(), <-done); !errors.Is(err, http.ErrServerClosed) {
			r.Errorf("server with TLS on %s: %v", on, err)
		}
	})
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// `sluice probe` runs the probes of each server by the way that they go, TLS to a VIP
// and datagrams among them, and says what came back.
func TestProbeCommand(t *testing.T) {
	r := newRig(t, testenv.Default(2))
	if err := r.host("b1").AddVIPOnLoopback(vip); err != nil { // and not on b2
		t.Fatal(err)
	}
	for _, on := range []string{"b1", "b2"} {
		r.serve(on, r.host(on).NameHandler())
		if _, err := r.host(on).StartUDPEcho(5060); err != nil {
			t.Fatal(err)
		}
	}
	ca := r.file("ca.pem", r.serveTLS("b1", "www.example.com"))
	path := r.file("sluice.yaml", roster, fmt.Sprintf(`
checks: [{name: here, type: exec, command: [/bin/false]}]
pools:
  - {name: web, health: {type: http}, servers: [{address: 192.0.2.11}, {address: 192.0.2.12}]}
  - {name: names, health: {type: tcp, port: 80}, servers: [{address: 192.0.2.11}]}
http:
  upstreams: [{name: app, servers: [{address: "192.0.2.12:80"}], health: {type: tcp}}]
  servers: [{listen: "192.0.2.1:8080", locations: [{path: /, upstream: app}]}]
dns:
  listen: ["192.0.2.1:53"]
  records: [{name: www.example.com, pool: names}, {name: www.example.net, pool: names}]
services:
  - {name: nat, address: "192.0.2.101:80", pool: web}
  - {name: dsr, address: "192.0.2.100:80", forward: dsr, pool: web}
  - name: tls
    address: "192.0.2.100:443"
    forward: dsr
    backends: [{address: 192.0.2.11}]
    health: {type: https, host: www.example.com, tls: {ca: %s}}
  - name: sip
    address: "192.0.2.101:5060"
    protocol: udp
    backends: [{address: 192.0.2.12}]
    health: {type: udp, send: hello, expect: hello}
  - {name: local, address: "192.0.2.101:81", backends: [{address: 192.0.2.12}], health: {check: here}}
`, ca), vrrps(pair))
	if got := r.wantRun(1, "lb1", "probe"); !strings.Contains(got.stderr, "sluice is not running: start it first") {
		t.Errorf("without a daemon: %q", got.stderr)
	}
	r.start("lb1", path)
	r.waitServers("lb1", "nat", soon, control.ServerUp, control.ServerUp)
	r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerDown)
	r.waitServers("lb1", "tls", soon, control.ServerUp)
	r.waitServers("lb1", "sip", soon, control.ServerUp)
	r.waitServers("lb1", "local", soon, control.ServerDown)

	var all []control.ProbeResult
	if err := json.Unmarshal([]byte(r.wantRun(1, "lb1", "probe", "--json").stdout), &all); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range all {
		got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %v %s %s: %v %s: %s", p.Service, p.Server, p.Type, p.Path, p.OK, p.Answer, p.Error), ": "))
		if p.Took <= 0 {
			t.Errorf("%+v took no time", p)
		}
	}
	want := []string{
		"nat 192.0.2.11:80 http direct: true status 200",
		"nat 192.0.2.12:80 http direct: true status 200",
		"dsr 192.0.2.11:80 http via VIP 192.0.2.100: true status 200",
		"dsr 192.0.2.12:80 http via VIP 192.0.2.100: false : http 192.0.2.100:80 at 192.0.2.12: connect: no answer within 500ms: is the VIP on its lo?",
		"tls 192.0.2.11:443 https via VIP 192.0.2.100: true status 200",
		"sip 192.0.2.12:5060 udp direct: true answer of 5 bytes",
		"local 192.0.2.12:81 check check here: false : exit status 1",
		"app 192.0.2.12:80 tcp direct: true connected",
		"names 192.0.2.11:80 tcp direct: true connected",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	text := r.wantRun(0, "lb1", "probe", "tls").stdout
	if lines := strings.Split(strings.TrimSpace(text), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "SERVICE") ||
		!strings.Contains(lines[1], "192.0.2.11:443  https  via VIP 192.0.2.100  ok") || !strings.Contains(lines[1], "status 200") {
		t.Errorf("the probe of one service:\n%s", text)
	}
	if got := r.wantRun(1, "lb1", "probe", "wep").stderr; !strings.Contains(got, `there is no service, upstream or pool of dns "wep": there are nat, dsr, tls, sip, local, app, names`) {
		t.Errorf("an unknown service: %q", got)
	}
}

func TestPrintProbes(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		name    string
		results []control.ProbeResult
		json    bool
		want    string
	}{
		{"none", []control.ProbeResult{}, false, "nothing has health: there is nothing to probe\n"},
		{"none, as JSON", []control.ProbeResult{}, true, "[]\n"},
		{"some", []control.ProbeResult{
			{Service: "web", Server: at("192.0.2.11:80"), Type: "tcp", Path: "direct", OK: true, Answer: "connected", Took: 1234567},
			{Service: "web", Server: at("192.0.2.12:80"), Type: "tcp", Path: "direct", Took: 2e9, Error: "connect: connection refused"},
			{Service: "names", Server: at("192.0.2.13:0"), Type: "check", Path: "check ok", OK: true, Took: 1e9},
		}, false, `
SERVICE  SERVER         TYPE   PATH      RESULT  ANSWER     TIME    ERROR
web      192.0.2.11:80  tcp    direct    ok      connected  1.23ms  
web      192.0.2.12:80  tcp    direct    failed  -          2s      connect: connection refused
names    192.0.2.13     check  check ok  ok      -          1s      
`[1:]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := printProbes(&b, tt.results, tt.json); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Errorf("printed (-want +got):\n%s", diff)
			}
		})
	}
}
