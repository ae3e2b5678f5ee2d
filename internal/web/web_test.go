package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	quiet = slog.New(slog.DiscardHandler)
	now   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// gather returns all metrics of a report as text.
func gather(t *testing.T, r Report) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{func() Report { return r }})
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range all {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// Names and help texts are as Prometheus wants them, and each metric is there.
func TestMetricsAreGoodOnes(t *testing.T) {
	c := collector{fullReport}
	mistakes, err := testutil.CollectAndLint(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mistakes {
		t.Errorf("%s: %s", m.Metric, m.Text)
	}
	text := gather(t, fullReport())
	for _, f := range families {
		if !strings.Contains(text, "# HELP "+f.name+" ") {
			t.Errorf("a report of everything has no %s", f.name)
		}
	}
	gather(t, Report{}) // of a daemon that knows nothing yet
}

func TestMetricValues(t *testing.T) {
	text := gather(t, fullReport())
	for _, want := range []string{
		`sluice_backend_bytes_total{backend="192.0.2.11:80",direction="forward",service="web"} 1200`,
		`sluice_backend_slow_start_ratio{backend="192.0.2.11:80",service="web"} 0.3`,
		`sluice_check_duration_seconds{check="ok"} 1.5`,
		`sluice_check_state{check="ok",state="down"} 1`,
		`sluice_check_state{check="ok",state="up"} 0`,
		`sluice_events_total{type="daemon.stop"} 0`,
		`sluice_events_total{type="vrrp.state"} 3`,
		`sluice_outcome_packets_total{action="answer",outcome="who_has"} 22`,
		`sluice_outcome_packets_total{action="drop",outcome="ttl"} 21`,
		`sluice_outcome_packets_total{action="pass",outcome="not_vip"} 23`,
		`sluice_probe_duration_seconds{probe="tcp 192.0.2.11:80"} 0.25`,
		`sluice_service_lost_total{reason="no_port",service="web"} 2`,
		`sluice_service_state{service="web",state="below_quorum"} 1`,
		`sluice_vrrp_state{instance="VI_1",state="active"} 1`,
		`sluice_heartbeats_received_total{address="192.0.2.2",result="forged"} 32`,
		`sluice_sync_connections_at_risk 41`,
		`sluice_sync_unread_changes 59`,
		`sluice_sync_peer_refusing_flows{peer="lb2"} 60`,
		`sluice_sync_peer_in_sync{peer="lb2"} 1`,
		`sluice_sync_flows_refused_total{reason="port_in_use"} 58`,
		`sluice_vrrp_state{instance="VI_1",state="backup"} 0`,
		`sluice_vrrp_transitions_total{instance="VI_1",to="active"} 2`,
		`sluice_vrrp_transitions_total{instance="VI_1",to="fault"} 0`,
		`sluice_http_answers_total{class="2xx",server="a.example"} 3`,
		`sluice_upstream_server_state{server="192.0.2.11:8080",state="failing",upstream="app"} 1`,
		`sluice_upstream_server_slow_start_ratio{server="192.0.2.11:8080",upstream="app"} 0.4`,
		`sluice_upstream_sticky_moved_total{upstream="app"} 6`,
		`sluice_alarm{instance="VI_1",interface="eth0",kind="no_port",peer="192.0.2.2",server="192.0.2.11:80",service="web"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}

// notInMetrics is what `sluice status --json` tells and metrics do not: words for
// people, and what does not change while the daemon runs.
var notInMetrics = []string{
	"config", "time", "running", "pid", "alarms.text", "problems", "interfaces.warning",
	"vrrp.virtual_mac", "vrrp.closed", "vrrp.reason", "vrrp.addresses", "vrrp.present", "vrrp.alarms", "vrrp.tracking.sum", "vrrp.tracking.fault", "vrrp.tracking.priority",
	"vrrp.tracking.items.why", "vrrp.tracking.items.faults",
	"heartbeats.node", "heartbeats.mistake", "sync.peers.address", "sync.peers.problem", "sync.peers.differs",
	"sync.strangers.address", "sync.strangers.why", "sync.strangers.error", "sync.strangers.count", "sync.strangers.last", "sync.taken.refused.port_in_use.example",
	"checks.type", "checks.since", "checks.why", "checks.last_error",
	"services.backends.why", "services.backends.slow_start.ends", "upgrade.from_layout", "upgrade.to_layout", "upgrade.not_kept",
	"http.upstreams.servers.why", "http.upstreams.servers.slow_start.ends", "dns.pools.servers.why", "dns.pools.port",
}

// Everything else that a status tells is in the metrics: they change with it.
func TestMetricsTellWhatAStatusDoes(t *testing.T) {
	before := gather(t, fullReport())
	text, err := json.Marshal(fullStatus())
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	check := func(path string) {
		text, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		r := fullReport()
		r.Status = control.Status{}
		if err := json.Unmarshal(text, &r.Status); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		found[path] = true
		// Rates are of counters that are among the metrics: who collects them makes their own.
		excused := slices.Contains(notInMetrics, path) || strings.Contains(path, ".rate.")
		if gather(t, r) == before && !excused {
			t.Errorf("the metrics do not tell of %s", path)
		}
	}
	walk(tree, "", check)
	for _, path := range notInMetrics {
		if !found[path] && !slices.Contains([]string{"interfaces.warning"}, path) {
			t.Errorf("%s is no key of a status", path)
		}
	}
}

// walk changes one leaf of a tree after another, and calls f while it is changed.
func walk(v any, path string, f func(path string)) {
	try := func(old any, set func(any), at string) {
		if other, ok := another(old); ok {
			set(other)
			f(strings.Trim(at, "."))
			set(old)
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			try(e, func(x any) { v[k] = x }, path+"."+k)
			walk(e, path+"."+k, f)
		}
	case []any:
		for i, e := range v {
			try(e, func(x any) { v[i] = x }, path)
			walk(e, path, f)
		}
	}
}

// another returns a value of the same kind.
func another(v any) (any, bool) {
	switch v := v.(type) {
	case bool:
		return !v, true
	case float64:
		return v + 1, true
	case string:
		if _, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return "2001-02-03T04:05:06Z", true
		}
		if strings.HasPrefix(v, "192.0.2.") {
			return strings.Replace(v, "192.0.2.", "198.51.100.", 1), true
		}
		return v + "x", true
	}
	return nil, false
}

func TestProbesOfOneName(t *testing.T) {
	r := fullReport()
	worse := r.Probes[0]
	worse.Verdict, worse.Target.Probe.Pages = health.Down, []lb.Page{{Path: "/other"}}
	r.Probes = append(r.Probes, worse, r.Probes[0])
	if text := gather(t, r); !strings.Contains(text, `sluice_probe_up{probe="tcp 192.0.2.11:80"} 0`) {
		t.Errorf("of three probes one fails:\n%s", text)
	}
}

func TestHandler(t *testing.T) {
	good, starting := fullReport(), fullReport()
	starting.Ready = false
	starting.Status.Problems = []string{"write the data plane: no room"}
	for _, tc := range []struct {
		name, method, path string
		report             Report
		code               int
		want               []string
	}{
		{"metrics", "GET", "/metrics", good, 200, []string{"sluice_build_info{", "go_goroutines ", "process_resident_memory_bytes "}},
		{"healthy", "GET", "/healthz", good, 200, []string{"ok\n"}},
		{"not healthy", "GET", "/healthz", starting, 503, []string{"not ready\nwrite the data plane: no room\n"}},
		{"page", "GET", "/", good, 200, []string{
			"sluice lb1", "service web is &lt;below&gt; its quorum", `<td class="good">active</td>`, "192.0.2.2 gave up", "100 = 102 - 2 (ok)",
			"192.0.2.11:80", "slow start, 30 %, 1m0s left", "1.2 kB", "18 of 19 source ports in use", "12.5 connections/s, 1234 packets/s, 8.0 Mbit/s", `<td>ttl</td><td class="n">21</td>`, "below quorum",
		}},
		{"page of a daemon that starts", "GET", "/", Report{}, 200, []string{"No problems."}},
		{"another path", "GET", "/status", good, 404, nil},
		{"nothing is changed here", "POST", "/", good, 405, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			Handler(func() Report { return tc.report }, quiet).ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
			if w.Code != tc.code {
				t.Errorf("code %d, want %d", w.Code, tc.code)
			}
			for _, want := range tc.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%q is not in\n%s", want, w.Body)
				}
			}
		})
	}
}

func TestBytesForPeople(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 999499: "999 kB", 999999: "1 MB", 1 << 63: "9.22 EB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// serve runs a server on a free port until the test ends.
func serve(t *testing.T, s *Server, report func() Report) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { s.Serve(ctx, report) })
	t.Cleanup(func() { cancel(); done.Wait() })
}

func freePort(t *testing.T) (netip.AddrPort, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort(), l
}

func get(at netip.AddrPort, path string) (string, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(fmt.Sprintf("http://%v%s", at, path))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

// A port that somebody has is a problem that says what to do, and is tried again.
func TestPortInUse(t *testing.T) {
	at, other := freePort(t)
	s := Listen(at, quiet)
	want := fmt.Sprintf("no metrics and no status page: listen tcp %v: bind: address already in use: `ss -ltnp sport = :%d` says who has it; end that, or set another admin.listen, or none", at, at.Port())
	if diff := cmp.Diff(want, s.Problem()); diff != "" {
		t.Errorf("problem (-want +got):\n%s", diff)
	}
	s.again = 20 * time.Millisecond
	serve(t, s, fullReport)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, "an answer", func() (bool, error) {
		_, err := get(at, "/healthz")
		return err == nil, err
	})
	if p := s.Problem(); p != "" {
		t.Errorf("problem %q while it is served", p)
	}
}

func TestAddressOfNobody(t *testing.T) {
	s := Listen(netip.MustParseAddrPort("192.0.2.1:9780"), quiet)
	defer s.Close()
	if p := s.Problem(); !strings.Contains(p, "it is no address of this node") {
		t.Errorf("problem %q", p)
	}
}

// Who asks and does not read keeps nobody else from an answer, and the data plane
// is not read more often for it.
func TestSlowReaders(t *testing.T) {
	at, l := freePort(t)
	l.Close()
	s := Listen(at, quiet)
	var mu sync.Mutex
	reports := 0
	big := fullReport()
	for i := range 2000 {
		p := big.Probes[0]
		p.Target.Address = netip.AddrPortFrom(p.Target.Address.Addr(), uint16(1000+i))
		big.Probes = append(big.Probes, p)
	}
	serve(t, s, func() Report {
		mu.Lock()
		defer mu.Unlock()
		reports++
		return big
	})
	began := time.Now()
	for range mostReaders / 2 {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.(*net.TCPConn).SetReadBuffer(1024); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		// Its answer has begun, and stands.
		if _, err := bufio.NewReaderSize(c, 16).ReadByte(); err != nil {
			t.Fatal(err)
		}
	}
	text, err := get(at, "/metrics")
	if err != nil || !strings.Contains(text, "sluice_build_info") {
		t.Errorf("who reads gets %q, %v", text[:min(len(text), 100)], err)
	}
	mu.Lock()
	defer mu.Unlock()
	if most := int(time.Since(began)/fresh) + 2; reports > most {
		t.Errorf("%d reports for %d readers in %v, want at most %d", reports, mostReaders/2+1, time.Since(began), most)
	}
}

// Who connects and says nothing gets no more than a share of what the daemon may
// have open: it needs the rest to probe servers.
func TestTooManyConnections(t *testing.T) {
	at, l := freePort(t)
	l.Close()
	s := Listen(at, quiet)
	serve(t, s, fullReport)
	var idle []net.Conn
	for range mostConnections {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	more, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	began := time.Now()
	if err := more.SetReadDeadline(began.Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The others were accepted before it. They have until headersPatience.
	if _, err := more.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) >= headersPatience {
		t.Errorf("one more is let be, %v after %v", err, time.Since(began))
	}
	for _, c := range idle[:2] {
		c.Close()
	}
	testenv.Eventually(t, 30*time.Second, "an answer when there is room again", func() (bool, error) {
		_, err := get(at, "/healthz")
		return err == nil, err
	})
}

// What is there twice costs itself, and not all the rest.
func TestMetricsThatAreThereTwice(t *testing.T) {
	r := fullReport()
	r.Status.Services[0].Backends = append(r.Status.Services[0].Backends, r.Status.Services[0].Backends[0])
	w := httptest.NewRecorder()
	Handler(func() Report { return r }, quiet).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"sluice_build_info", "sluice_vrrp_state", "sluice_backend_up"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("status %d, and no %s", w.Code, want)
		}
	}
}

func TestTooManyReaders(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{}, mostReaders)
	h := bounded(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-release
	}))
	var all sync.WaitGroup
	for range mostReaders {
		all.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) })
	}
	for range mostReaders {
		<-entered
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("one more gets %d", w.Code)
	}
	close(release)
	all.Wait()
}
