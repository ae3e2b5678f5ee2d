package loader

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// newProbes has room for three addresses of a family, and no network.
func newProbes(t *testing.T) *Probes {
	t.Helper()
	d := newDatapathWith(t, Options{
		MaxFlows: 1024, Ports: allPorts,
		ProbeAddresses4: netip.MustParsePrefix("203.0.113.0/30"), ProbeAddresses6: netip.MustParsePrefix("2001:db8:9::/126"),
	}, natTimeouts)
	return &Probes{d: d, log: d.log, paths: map[lb.ProbePath]*probePath{}, changed: make(chan struct{})}
}

func probePathOf(vip, server string) lb.ProbePath {
	return lb.ProbePath{VIP: netip.MustParseAddr(vip), Server: netip.MustParseAddr(server), Forward: lb.DSR}
}

// Each path has an address of its VIP's family, which it keeps as others come and
// go; what has no room says so.
func TestProbeAddressesOfPaths(t *testing.T) {
	const noRoom4, noRoom6 = "no address is left in 203.0.113.0/30 of datapath.probe_addresses", "no address is left in 2001:db8:9::/126 of datapath.probe_addresses"
	a, b, c, e := probePathOf("192.0.2.100", "192.0.2.11"), probePathOf("192.0.2.100", "192.0.2.12"),
		probePathOf("192.0.2.101", "192.0.2.11"), probePathOf("192.0.2.102", "192.0.2.11")
	a6 := probePathOf("2001:db8::100", "192.0.2.11")
	p := newProbes(t)
	for _, step := range []struct {
		name string
		set  []lb.ProbePath
		want map[lb.ProbePath]string // address, or why there is none
	}{
		{"one of each family", []lb.ProbePath{a, a6}, map[lb.ProbePath]string{a: "203.0.113.1", a6: "2001:db8:9::1"}},
		{"twice the same", []lb.ProbePath{b, a, b, a6}, map[lb.ProbePath]string{a: "203.0.113.1", b: "203.0.113.2", a6: "2001:db8:9::1"}},
		{"too many", []lb.ProbePath{a, b, c, e}, map[lb.ProbePath]string{a: "203.0.113.1", b: "203.0.113.2", c: "203.0.113.3", e: noRoom4}},
		{"one goes", []lb.ProbePath{b, c}, map[lb.ProbePath]string{b: "203.0.113.2", c: "203.0.113.3"}},
		{"another takes its place", []lb.ProbePath{b, c, e}, map[lb.ProbePath]string{b: "203.0.113.2", c: "203.0.113.3", e: "203.0.113.1"}},
		{"too many of IPv6", []lb.ProbePath{probePathOf("2001:db8::1", "192.0.2.1"), probePathOf("2001:db8::2", "192.0.2.1"),
			probePathOf("2001:db8::3", "192.0.2.1"), probePathOf("2001:db8::4", "192.0.2.1")}, map[lb.ProbePath]string{
			probePathOf("2001:db8::1", "192.0.2.1"): "2001:db8:9::1", probePathOf("2001:db8::2", "192.0.2.1"): "2001:db8:9::2",
			probePathOf("2001:db8::3", "192.0.2.1"): "2001:db8:9::3", probePathOf("2001:db8::4", "192.0.2.1"): noRoom6}},
		{"none", nil, map[lb.ProbePath]string{}},
	} {
		if err := p.Set(step.set); err != nil {
			t.Fatal(err)
		}
		got := map[lb.ProbePath]string{}
		for path, known := range p.paths {
			if got[path] = known.err.Error(); known.address.IsValid() {
				got[path] = known.address.String()
			}
		}
		if diff := cmp.Diff(step.want, got, equateAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if on := p.d.tables.arrays.Probes != 0; on != (len(step.set) > 0) {
			t.Errorf("%s: the program looks for answers: %v", step.name, on)
		}
	}
}

// Who asks for a path waits until there is a way, or for as long as he has time.
func TestProbeFindWaits(t *testing.T) {
	p := newProbes(t)
	path := probePathOf("192.0.2.100", "192.0.2.11")
	if err := p.Set([]lb.ProbePath{path}); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Find(over, path); !errors.Is(err, errNoPath) {
		t.Errorf("without time: %v, want %v", err, errNoPath)
	}
	if _, err := p.Find(over, probePathOf("192.0.2.1", "192.0.2.1")); !errors.Is(err, errNoPath) {
		t.Errorf("a path that nobody has set: %v", err)
	}
	found := make(chan netip.Addr, 1)
	go func() {
		a, err := p.Find(t.Context(), path)
		if err != nil {
			t.Error(err)
		}
		found <- a
	}()
	p.mu.Lock()
	p.paths[path].err = nil
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	select {
	case got := <-found:
		if want := netip.MustParseAddr("203.0.113.1"); got != want {
			t.Errorf("address %v, want %v", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for ever")
	}
}
