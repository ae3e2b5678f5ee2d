package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/l7"
)

// seedHTTP is a well-known nginx.conf in the words of sluice: a virtual host in front of
// three servers, here with more hosts and paths.
const seedHTTP = `
http:
  upstreams:
    - {name: opslinux, pool: web}
    - {name: second, servers: [{address: 192.0.2.12}], max_fails: 0}
  servers:
    - listen: "192.0.2.100:80"
      names: [opslinux.com]
      locations:
        - {path: /, upstream: opslinux}
        - {path: /second/, upstream: second, strip_prefix: true}
        - {exact: /ping, return: {status: 200, body: pong}}
        - {path: /old/, redirect: {to: "http://opslinux.com/", status: 301}}
        - {path: /dl/, redirect: {upstream: second}}
    - {listen: "192.0.2.100:80", names: ["*.second.example"], locations: [{path: /, upstream: second}]}
`

// pairOfHTTP is the instance of the VIPs, which depends on the upstream.
var pairOfHTTP = strings.Replace(pair, "addresses:", "track: [{upstream: opslinux, weight: -20}], addresses:", 1)

// curl runs curl on a host and returns what it prints; it must not fail.
func (r *rig) curl(on string, args ...string) string {
	r.Helper()
	out, err := r.tryCurl(on, args...)
	if err != nil {
		r.Fatalf("curl %v on %s: %v: %s", args, on, err, out)
	}
	return out
}

func (r *rig) tryCurl(on string, args ...string) (string, error) {
	cmd := exec.Command("curl", append([]string{"-sS", "--max-time", "10"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := r.host(on).Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return strings.TrimSpace(out.String()), err
}

// The seed's way of access: first by address, then by name and path, over a VIP that no
// service has; and what the daemon says of it.
func TestHTTP(t *testing.T) {
	testenv.RequireProgram(t, "curl")
	r := webRig(t, 3)
	file := r.file("sluice.yaml", roster, webPool, vrrps(pairOfHTTP), seedHTTP)
	r.start("lb1", file)
	r.waitStatus("lb1", soon, "the VIP, and servers that are up", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "active" || len(i.Present) != 2 {
			return fmt.Errorf("instance %+v, %v", i, err)
		}
		return allUp(s.HTTP, "opslinux")
	})

	t.Run("by address, in turn and by weight", func(t *testing.T) {
		got := map[string]int{}
		for range 8 {
			got[r.curl("client", "http://192.0.2.100/")]++
		}
		if diff := cmp.Diff(map[string]int{"b1": 2, "b2": 4, "b3": 2}, got); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	t.Run("by name and path", func(t *testing.T) {
		const names = "opslinux.com:80:192.0.2.100,x.second.example:80:192.0.2.100"
		resolve := []string{}
		for n := range strings.SplitSeq(names, ",") {
			resolve = append(resolve, "--resolve", n)
		}
		for _, tt := range []struct{ url, want string }{
			{"http://opslinux.com/ping", "pong 200 "},
			{"http://opslinux.com/second/", "b2 200 "},
			{"http://opslinux.com/second", "Moved Permanently 301 http://opslinux.com/second/"},
			{"http://x.second.example/anything", "b2 200 "},
			{"http://opslinux.com/old/x", "Moved Permanently 301 http://opslinux.com/"},
			{"http://opslinux.com/dl/file?x=1", "Found 302 http://192.0.2.12/dl/file?x=1"},
		} {
			got := r.curl("client", append(resolve, "-w", " %{http_code} %{redirect_url}", tt.url)...)
			if got = strings.ReplaceAll(got, "\n", ""); got != strings.TrimSpace(tt.want) {
				t.Errorf("%s: got %q, want %q", tt.url, got, tt.want)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		out := r.wantRun(0, "lb1", "status", "--json").stdout
		if diff := cmp.Diff(httpStatusKeys, keysOf(t, out, "http")); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		text := r.wantRun(0, "lb1", "status", "-c", file, "--node", "lb1").stdout
		for _, want := range []string{"\nhttp: ", "opslinux.com ", "upstream opslinux: round robin, 8 requests, 0 answered by nobody", "192.0.2.12:80"} {
			if !strings.Contains(text, want) {
				t.Errorf("status does not say %q:\n%s", want, text)
			}
		}
		r.waitMetric("lb1", 8, "sluice_upstream_requests_total", "opslinux")
		r.waitMetric("lb1", 1, "sluice_upstream_server_state", "opslinux", "192.0.2.13:80", "up")
	})
	t.Run("reload under load", func(t *testing.T) { r.reloadHTTPUnderLoad(file) })
	t.Run("an operator drains a server", func(t *testing.T) {
		r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.12", "--wait", "--timeout", "10s")
		for range 6 {
			if got := r.curl("client", "http://192.0.2.100/"); got != "b1" && got != "b3" {
				t.Errorf("got %q", got)
			}
		}
		if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "drained by an operator") {
			t.Errorf("status says\n%s", text)
		}
		r.wantRun(0, "lb1", "backend", "reset", "web", "192.0.2.12")
	})
	t.Run("a server fails", func(t *testing.T) {
		if err := r.host("b1").LinkDown("eth0"); err != nil {
			t.Fatal(err)
		}
		r.waitStatus("lb1", soon, "b1 is down", func(s control.Status) error {
			if b := s.HTTP.Upstreams[0].Servers[0]; b.State != l7.StateDown {
				return fmt.Errorf("it is %s", b.State)
			}
			return nil
		})
		for range 6 {
			if got := r.curl("client", "http://192.0.2.100/"); got != "b2" && got != "b3" {
				t.Errorf("got %q", got)
			}
		}
		text := r.wantRun(0, "lb1", "events", "--json").stdout
		if !strings.Contains(text, `"type":"upstream.state"`) || !strings.Contains(text, `"server":"192.0.2.11:80"`) {
			t.Errorf("events say\n%s", text)
		}
	})
	t.Run("and has failed still over a reload with another probe", func(t *testing.T) {
		changes := func() int {
			return strings.Count(r.wantRun(0, "lb1", "events", "--json").stdout, `"type":"upstream.state"`)
		}
		before := changes()
		r.file("sluice.yaml", roster, strings.Replace(webPool, "type: tcp", "type: http, path: /", 1), vrrps(pairOfHTTP), seedHTTP)
		if got := r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1").stdout; !strings.Contains(got, "upstream opslinux: health") {
			t.Errorf("reload says %q", got)
		}
		for range 6 {
			if got := r.curl("client", "http://192.0.2.100/"); got != "b2" && got != "b3" {
				t.Errorf("got %q", got)
			}
		}
		r.waitStatus("lb1", soon, "b1 is down, and the others are up", func(s control.Status) error {
			for i, want := range []l7.State{l7.StateDown, l7.StateUp, l7.StateUp} {
				if b := s.HTTP.Upstreams[0].Servers[i]; b.State != want {
					return fmt.Errorf("%v is %s", b.Address, b.State)
				}
			}
			return nil
		})
		if after := changes(); after != before {
			t.Errorf("%d changes of servers over the reload", after-before)
		}
	})
	t.Run("what the VIP depends on", func(t *testing.T) {
		priority := func(want int) {
			r.waitStatus("lb1", soon, fmt.Sprintf("priority %d", want), func(s control.Status) error {
				i, err := instanceOf(s, "VI_1")
				if err == nil && int(i.Priority) != want {
					err = fmt.Errorf("it is %d", i.Priority)
				}
				return err
			})
		}
		priority(100)
		for _, a := range []string{"192.0.2.12", "192.0.2.13"} {
			r.wantRun(0, "lb1", "backend", "disable", "web", a)
		}
		priority(80)
		if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "upstream opslinux is down: no server can serve") {
			t.Errorf("status says\n%s", text)
		}
		r.wantRun(0, "lb1", "backend", "enable", "web", "192.0.2.13")
		priority(100)
	})
}

// httpStatusKeys are the contract with whoever reads http of `sluice status --json`.
var httpStatusKeys = strings.Fields(`
http http.connections http.connections.closed http.connections.max http.connections.max_servers http.connections.open
http.connections.servers http.connections.waited http.connections.waiting
http.listeners http.listeners.accepted http.listeners.address http.listeners.malformed http.listeners.refused http.listeners.tls http.log_dropped
http.servers http.servers.answers http.servers.answers.1xx http.servers.answers.2xx http.servers.answers.3xx http.servers.answers.4xx
http.servers.answers.5xx http.servers.in_flight http.servers.listen http.servers.name http.servers.received_bytes
http.servers.requests http.servers.sent_bytes
http.upstreams http.upstreams.failures http.upstreams.name http.upstreams.policy http.upstreams.pool http.upstreams.requests
http.upstreams.servers http.upstreams.servers.address http.upstreams.servers.backup http.upstreams.servers.bytes
http.upstreams.servers.failures http.upstreams.servers.in_flight http.upstreams.servers.requests http.upstreams.servers.since
http.upstreams.servers.state http.upstreams.servers.weight
`)

// writeCertificate writes a certificate for www.example.com that has signed itself.
func writeCertificate(t *testing.T, certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: cert}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// allUp tells which server of an upstream is not up.
func allUp(s *l7.Status, upstream string) error {
	if s == nil {
		return fmt.Errorf("nothing is served")
	}
	i := slices.IndexFunc(s.Upstreams, func(u l7.UpstreamStatus) bool { return u.Name == upstream })
	if i < 0 {
		return fmt.Errorf("there is no upstream %s", upstream)
	}
	for _, b := range s.Upstreams[i].Servers {
		if b.State != l7.StateUp {
			return fmt.Errorf("%v is %s: %s", b.Address, b.State, b.Why)
		}
	}
	return nil
}

// reloadHTTPUnderLoad changes upstreams and locations while a client asks, of whose
// requests none may fail.
func (r *rig) reloadHTTPUnderLoad(file string) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	fail := make(chan string, 1)
	asked := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if out, err := r.tryCurl("client", "-f", "http://192.0.2.100/", "http://192.0.2.100/ping"); err != nil {
				fail <- fmt.Sprintf("%v: %s", err, out)
				return
			}
			asked++
		}
	})
	for i := range 4 {
		changed := strings.Replace(seedHTTP, "{name: opslinux, pool: web}", fmt.Sprintf("{name: opslinux, pool: web, policy: least_conn, keepalive: %d}", i+1), 1)
		r.file("sluice.yaml", roster, webPool, vrrps(pairOfHTTP), changed)
		got := r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1").stdout
		if !strings.Contains(got, "upstream opslinux: ") {
			r.Errorf("reload says %q", got)
		}
	}
	bad := strings.Replace(seedHTTP, "upstream: second, strip_prefix", "upstream: third, strip_prefix", 1)
	r.file("sluice.yaml", roster, webPool, vrrps(pairOfHTTP), bad)
	if got := r.wantRun(exitFailed, "lb1", "reload", "-c", file, "--node", "lb1"); !strings.Contains(got.stderr, `there is no upstream "third"`) {
		r.Errorf("a bad reload says %q", got.stderr)
	}
	close(stop)
	wg.Wait()
	select {
	case text := <-fail:
		r.Errorf("a request failed: %s", text)
	default:
	}
	if asked == 0 {
		r.Error("nothing was asked meanwhile")
	}
}

// Layers 4 and 7 share a VIP, a pool and its probes: packets for ports that no service
// has are the kernel's, also under the XDP program.
func TestHTTPBesideServices(t *testing.T) {
	testenv.RequireProgram(t, "curl")
	r := webRig(t, 2)
	const front = `
http:
  upstreams: [{name: app, pool: web}]
  servers: [{listen: "192.0.2.100:8080", locations: [{path: /, upstream: app}]}]
`
	pool := strings.Replace(webPool, "      - {address: 192.0.2.13, weight: 1}\n", "", 1)
	proxied := `{name: app, address: "192.0.2.100:8080", forward: proxy}`
	file := r.file("sluice.yaml", roster, pool, services(dsr, nat, proxied), vrrps(pair), front)
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	r.waitStatus("lb1", soon, "servers of the upstream", func(s control.Status) error { return allUp(s.HTTP, "app") })
	r.wantServing(dsrService, "b1", "b2")
	r.wantServing(natService, "b1", "b2")
	got := map[string]int{}
	for range 6 {
		got[r.curl("client", "http://192.0.2.100:8080/")]++
	}
	if diff := cmp.Diff(map[string]int{"b1": 2, "b2": 4}, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	// Two servers, probed for nat and http alike, and through their VIP for dsr.
	_, text, err := r.fetch("lb1", "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "\nsluice_probe_runs_total{"); n != 4 {
		t.Errorf("%d probes, want 4", n)
	}
	// One change for both layers.
	r.wantRun(0, "lb1", "backend", "disable", "web", "192.0.2.11")
	r.waitServers("lb1", "nat", soon, control.ServerDisabled, control.ServerUp)
	r.wantServing(natService, "b2")
	for range 3 {
		if got := r.curl("client", "http://192.0.2.100:8080/"); got != "b2" {
			t.Errorf("got %q", got)
		}
	}
	r.stop(daemon)
}

// Servers of an upstream may be as healthy as a check, without a service.
func TestUpstreamByCheck(t *testing.T) {
	testenv.RequireProgram(t, "curl")
	r := webRig(t, 1)
	flag := r.file("healthy")
	r.start("lb1", r.file("sluice.yaml", fmt.Sprintf(`
pools: [{name: web, health: {check: here}, servers: [{address: "192.0.2.11:80"}]}]
checks: [{name: here, type: exec, command: [test, -e, %s], interval: 200ms, rise: 1, fall: 1}]
http:
  upstreams: [{name: app, pool: web}]
  servers: [{listen: "192.0.2.1:8080", locations: [{path: /, upstream: app}]}]
`, flag)))
	state := func(want l7.State, why string) {
		t.Helper()
		r.waitStatus("lb1", soon, "a server that is "+string(want), func(s control.Status) error {
			if got := s.HTTP.Upstreams[0].Servers[0]; got.State != want || !strings.HasPrefix(got.Why, why) {
				return fmt.Errorf("it is %s: %s", got.State, got.Why)
			}
			return nil
		})
	}
	const status = "%{http_code}"
	state(l7.StateUp, "")
	if got := r.curl("client", "-o", "/dev/null", "-w", status, "http://192.0.2.1:8080/"); got != "200" {
		t.Errorf("with a check that passes curl says %s", got)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	state(l7.StateDown, "check here fails: ")
	if got := r.curl("client", "-o", "/dev/null", "-w", status, "http://192.0.2.1:8080/"); got != "502" && got != "503" {
		t.Errorf("with a check that fails curl says %s", got)
	}
	r.file("healthy")
	state(l7.StateUp, "")
}
