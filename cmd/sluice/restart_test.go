package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A daemon that starts with another file than the one before it changes what
// differs: services, backends, VIPs, interfaces.
func TestRestartWithAnotherConfiguration(t *testing.T) {
	r := webRig(t, 3)
	daemon := r.start("lb1", r.usual())
	r.waitReady("lb1")
	before := r.mustStatus("lb1")
	r.answers("client", dsrService, burst)
	r.kill(daemon)

	moved := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.102"), 8080)
	daemon = r.start("lb1", r.file("other.yaml", roster,
		pool("{address: 192.0.2.11}, {address: 192.0.2.12}"),
		services(dsr, `{name: moved, address: "192.0.2.102:8080", forward: nat, backends: [{address: "192.0.2.13:80"}]}`),
		vrrps(`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [192.0.2.100/24, 192.0.2.102/24]}`)))
	after := r.waitReady("lb1")
	if r.has("lb1", natVIP) {
		t.Errorf("%v is no longer configured, and still there", natVIP)
	}
	if !r.has("lb1", vip) || !r.has("lb1", moved.Addr()) {
		t.Errorf("lb1 lacks a VIP")
	}
	if was, is := packetsOf(before, "dsr"), packetsOf(after, "dsr"); is < was {
		t.Errorf("the service that stayed has counted %d packets, and %d before", is, was)
	}
	r.wantServing(dsrService, "b1", "b2")
	r.wantServing(moved, "b3")
	p, err := r.host("client").StartProber(testenv.ProbeConfig{Target: natService, Count: 3, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Wait(); err != nil || got.Answered > 0 {
		t.Errorf("%d requests to a service that is gone were answered (%v)", got.Answered, err)
	}

	// Nothing but VRRP is left: the data plane of before is not wanted any more.
	r.stop(daemon)
	r.wantRun(0, "lb1", "detach", "--force")
	r.wantNothing("lb1")
	if r.has("lb1", moved.Addr()) {
		t.Errorf("%v is still there after detach --force", moved.Addr())
	}
}

// What is on the wire decides: a link that goes away and comes back.
func TestLinkOfTheActiveNodeGoesAndComesBack(t *testing.T) {
	r := webRig(t, 3)
	r.startPair(r.usual())
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb2", "lb1")
	s := r.waitStatus("lb1", soon, "a fault that names the interface", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "fault" || !strings.Contains(i.Reason, "eth0") {
			return fmt.Errorf("%s: %s, %w", i.State, i.Reason, err)
		}
		return nil
	})
	if !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "VI_1") }) {
		t.Errorf("the problems do not name the instance: %v", s.Problems)
	}
	r.wantServing(dsrService, "b1", "b2", "b3")
	if err := r.host("lb1").LinkUp(); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitReady("lb1")
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantServing(natService, "b1", "b2", "b3")
}

func TestSignals(t *testing.T) {
	r := webRig(t, 3)
	daemon := r.start("lb1", r.usual())
	r.waitReady("lb1")
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.eventually(soon, "a word about SIGHUP", func() (bool, error) {
		return strings.Contains(daemon.Tail(3), "the configuration has not changed"), nil
	})
	if s := r.mustStatus("lb1"); s.PID != daemon.ID().PID {
		t.Errorf("process %d answers, want %d", s.PID, daemon.ID().PID)
	}
	r.wantServing(dsrService, "b1", "b2", "b3")
	// Ctrl-C is a planned stop, too.
	if err := daemon.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Errorf("after SIGINT sluice ended with %v", err)
	}
	r.wantServing(dsrService, "b1", "b2", "b3")
}

// A daemon that cannot start says why and changes nothing.
func TestRunThatCannotStart(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config []string
		want   string
	}{
		{"an interface that does not exist", []string{
			strings.Replace(roster, "[eth0]", "[eth0, eth9]", 1), webPool, services(dsr), vrrps(pair)}, "attach to eth9"},
		{"an interface that is no Ethernet", []string{
			strings.Replace(roster, "[eth0]", "[eth0, lo]", 1), webPool, services(dsr), vrrps(pair)}, "attach to lo"},
		{"a file where the socket should be", []string{
			roster, webPool, services(dsr), vrrps(pair), "admin: {socket: FILE}"}, "is no socket"},
		// Here the control loop is at work when the start fails.
		{"a file where the socket should be, and nothing to wait for", []string{
			roster, services(`{name: dsr, address: "192.0.2.100:80", forward: dsr, backends: [{address: 192.0.2.11}]}`), vrrps(pair), "admin: {socket: FILE}"}, "is no socket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, lab1())
			precious := r.file("precious", "keep me")
			file := r.file("sluice.yaml", strings.ReplaceAll(strings.Join(tc.config, "\n"), "FILE", precious))
			got := r.wantRun(exitFailed, "lb1", "run", "-c", file, "--node", "lb1")
			if !strings.Contains(got.stderr, tc.want) {
				t.Errorf("stderr %q does not name %s", got.stderr, tc.want)
			}
			r.wantNothing("lb1")
			r.wantRun(0, "lb1", "detach")
		})
	}
}
