package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// monitoring is where a daemon answers monitoring by default.
var monitoring = netip.MustParseAddrPort("127.0.0.1:9780")

// fetch asks a daemon as monitoring on its node does.
func (r *rig) fetch(on, path string) (code int, body string, err error) {
	client := http.Client{Timeout: atOnce, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			err = r.host(on).Do(func() (err error) { c, err = net.DialTimeout(network, addr, atOnce); return err })
			return c, err
		},
	}}
	response, err := client.Get(fmt.Sprintf("http://%v%s", monitoring, path))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

// metric is the value of the first series of a metric whose text has all words.
func (r *rig) metric(on, name string, words ...string) (float64, error) {
	_, text, err := r.fetch(on, "/metrics")
	if err != nil {
		return 0, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return 0, err
	}
	for _, m := range all[name].GetMetric() {
		labels := m.String()
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(labels, `"`+w+`"`) }) {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue(), nil
		}
	}
	return 0, fmt.Errorf("there is no %s with %q", name, words)
}

// waitMetric waits until a metric has a value.
func (r *rig) waitMetric(on string, want float64, name string, words ...string) {
	r.Helper()
	r.eventually(soon, name, func() (bool, error) {
		got, err := r.metric(on, name, words...)
		if err == nil && got != want {
			err = fmt.Errorf("%s %q is %v, want %v", name, words, got, want)
		}
		return err == nil, err
	})
}

// Metrics, health and page of a daemon follow what happens; a port that somebody
// else has stops nothing.
func TestMonitoring(t *testing.T) {
	r := webRig(t, 2)
	other, err := r.host("lb1").StartTCP(monitoring, testenv.Echo)
	if err != nil {
		t.Fatal(err)
	}
	daemon := r.start("lb1", r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(dsr), vrrps(pair)))
	r.waitReady("lb1")
	r.wantServing(dsrService, "b1", "b2")
	r.waitStatus("lb1", soon, "an alarm about the port", func(s control.Status) error {
		if !slices.ContainsFunc(s.Alarms, func(a control.Alarm) bool {
			return a.Kind == control.AlarmMonitoring && strings.Contains(a.Text, "ss -ltnp sport = :9780") && slices.Contains(s.Problems, a.Text)
		}) {
			return fmt.Errorf("alarms %v, problems %q", s.Alarms, s.Problems)
		}
		return nil
	})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	r.eventually(2*soon, "an answer on the port", func() (bool, error) {
		code, body, err := r.fetch("lb1", "/healthz")
		if err == nil && (code != http.StatusOK || body != "ok\n") {
			err = fmt.Errorf("%d: %s", code, body)
		}
		return err == nil, err
	})
	r.waitEvents("lb1", soon, "alarm.begin monitoring", "alarm.end monitoring")

	r.waitMetric("lb1", 1, "sluice_vrrp_state", "VI_1", "active")
	r.waitMetric("lb1", 1, "sluice_vrrp_transitions_total", "VI_1", "active")
	r.waitMetric("lb1", 1, "sluice_probe_up", "tcp 192.0.2.100:80 at 192.0.2.11")
	r.answers("client", dsrService, burst)
	sum := func() (total float64) {
		for _, b := range []string{"192.0.2.11:80", "192.0.2.12:80"} {
			n, err := r.metric("lb1", "sluice_backend_connections_total", "dsr", b)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		return total
	}
	r.eventually(soon, "the connections are counted", func() (bool, error) {
		if n := sum(); n < burst {
			return false, fmt.Errorf("%v connections", n)
		}
		return true, nil
	})
	r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.11")
	r.waitMetric("lb1", 0, "sluice_backend_serving", "192.0.2.11:80")
	r.waitMetric("lb1", 1, "sluice_backend_state", "192.0.2.11:80", "drained")
	r.waitMetric("lb1", 1, "sluice_events_total", "operator.change")

	code, page, err := r.fetch("lb1", "/")
	if err != nil || code != http.StatusOK {
		t.Fatalf("the page: %d, %v", code, err)
	}
	for _, want := range []string{"sluice lb1", "VI_1", "192.0.2.11:80", "drained", "No problems."} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
	r.stop(daemon)
}

// A node that cannot write its tables, or has not yet, is not healthy.
func TestHealthOfANodeThatStarts(t *testing.T) {
	r := newRig(t, lab1())
	r.start("lb1", r.file("sluice.yaml", roster, `
pools:
  - {name: web, health: {type: tcp, interval: 5s, timeout: 5s, fall: 1}, servers: [{address: 192.0.2.99}]}
`, services(dsr), vrrps(pair)))
	var first int
	r.eventually(soon, "an answer", func() (bool, error) {
		code, _, err := r.fetch("lb1", "/healthz")
		first = code
		return err == nil, err
	})
	if first != http.StatusServiceUnavailable {
		t.Errorf("before the first verdicts the code is %d", first)
	}
	r.eventually(soon, "health although the service is down", func() (bool, error) {
		code, body, err := r.fetch("lb1", "/healthz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d: %s", code, body)
		}
		return err == nil, err
	})
}
