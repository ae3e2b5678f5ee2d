package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

// outcomeOf is how often a node has counted an outcome.
func outcomeOf(s control.Status, name string) uint64 {
	for _, o := range s.Outcomes {
		if o.Name == name {
			return o.Packets
		}
	}
	return 0
}

// A VIP that accepts nothing but services: who tries another port hears nothing, and
// services, probes through the VIP and ARP go on, with the daemon and without it. A
// reload opens it.
func TestClosedVIP(t *testing.T) {
	r := webRig(t, 2)
	closed := `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, accept: false, addresses: [192.0.2.100/24, 192.0.2.101/24]}`
	write := func(instance string) string {
		return r.file("closed.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(dsr, nat), vrrps(instance))
	}
	file := write(closed)
	daemon := r.start("lb1", file)
	s := r.waitReady("lb1")
	if i, err := instanceOf(s, "VI_1"); err != nil || !i.Closed || len(s.Problems) > 0 {
		t.Errorf("instance %+v, %v; problems %q", i, err, s.Problems)
	}
	if got := r.wantRun(0, "lb1", "status", "-c", file, "--node", "lb1").stdout; !strings.Contains(got, "accepts nothing but services") {
		t.Errorf("status does not say it:\n%s", got)
	}
	ask := r.asker("client")
	ask.wait(vip, "lb1")
	silent := func() {
		t.Helper()
		r.answers("client", dsrService, 10)
		r.answers("client", natService, 10)
		ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond)
		defer cancel()
		conn, err := r.host("client").Dial(ctx, "tcp", netip.AddrPortFrom(vip, 9).String())
		if err == nil {
			conn.Close()
		}
		var late interface{ Timeout() bool }
		if !errors.As(err, &late) || !late.Timeout() {
			t.Errorf("a connection to a port that is no service: %v, want silence", err)
		}
		if got := ask.answers(vip); !slices.Equal(got, []string{"lb1"}) {
			t.Errorf("%v answer ARP, want lb1", got)
		}
	}
	silent()
	if n := outcomeOf(r.mustStatus("lb1"), "not_accepted"); n == 0 {
		t.Error("nothing is counted as not accepted")
	}
	// The node itself is reached at its own address.
	r.refuses("client", netip.MustParseAddr("192.0.2.1"))

	r.kill(daemon)
	silent()
	r.start("lb1", file)
	r.waitReady("lb1")
	silent()
	write(strings.Replace(closed, "accept: false, ", "", 1))
	r.wantRun(0, "lb1", "reload", "-c", file)
	r.waitReady("lb1")
	r.refuses("client", vip)
	r.answers("client", dsrService, 10)

	// check and the daemon refuse what has no effect.
	if err := os.WriteFile(file, []byte(roster+vrrps(closed)), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := r.runSluice("lb1", "check", "-c", file, "--node", "lb1"); got.code == 0 || !strings.Contains(got.stderr+got.stdout, "accept: false needs the XDP program") {
		t.Errorf("check of a file without services says: %+v", got)
	}
}
