package main

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/l7"
)

// A server that has been silent, too few times for a verdict, is down to dns and unknown to
// http, and both say what it has done.
func TestVerdictOnASilentServer(t *testing.T) {
	server := lb.Server{Address: netip.MustParseAddr("192.0.2.11"), Port: 80, Weight: 1}
	pool := lb.Pool{Name: "web", Servers: []lb.Server{server}, Probe: &lb.Probe{
		Type: lb.ProbeExec, Command: []string{"/bin/false"}, Interval: time.Hour, Timeout: time.Minute, Rise: 1, Fall: 1_000_000,
	}}
	record, upstream := &lb.DNSRecord{Pool: pool}, &lb.Upstream{Pool: pool}
	checker := health.NewChecker(slog.New(slog.DiscardHandler), nil)
	defer checker.Close()
	n := &node{}
	n.dns.share, n.http.share = checker.Share(), checker.Share()
	want := func(when, why string, wantDNS dns.State) {
		t.Helper()
		d, h := n.recordVerdict(record, server), n.upstreamVerdict(upstream, server)
		if d.State != wantDNS || !strings.HasSuffix(d.Why, why) {
			t.Errorf("%s: dns has it %s: %s, want %s: %s", when, d.State, d.Why, wantDNS, why)
		}
		if h.State != l7.StateUnknown || !h.Pending || !strings.HasSuffix(h.Why, why) {
			t.Errorf("%s: http has it %s: %s, want %s: %s", when, h.State, h.Why, l7.StateUnknown, why)
		}
	}
	want("before it is probed", "not probed yet", dns.StateUnknown)
	n.dns.share.Set(targetsOf(pool, record))
	testenv.Eventually(t, time.Minute, "a first result", func() (bool, error) {
		s, _ := checker.Status(targetOf(pool, record, server))
		return s.Tried(), nil
	})
	want("when it has failed", " of 1000000 probes have failed: exit status 1", dns.StateDown)
}
