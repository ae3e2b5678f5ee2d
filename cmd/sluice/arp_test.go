package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// setting reads one of a node's.
func (r *rig) setting(node, path string) (value string) {
	r.Helper()
	if err := r.host(node).Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", path))
		value = strings.TrimSpace(string(b))
		return err
	}); err != nil {
		r.Fatal(err)
	}
	return value
}

// A VIP is answered for on its own interface alone, whatever the node's other ones
// are. What was changed for that stays as long as the VIP does, and is put back then.
func TestVIPDoesNotLeakToOtherInterfaces(t *testing.T) {
	r := newRig(t, testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: interfaces(on("lan", "192.0.2.200/24"))},
		{Name: "side", Interfaces: interfaces(on("back", "198.51.100.200/24"))},
		{Name: "lb1", Node: true, Interfaces: interfaces(on("lan", "192.0.2.1/24"), second("back", "198.51.100.1/24"))},
	}})
	front, side := r.asker("client"), r.asker("side")
	if got := r.setting("lb1", "eth1/arp_ignore"); got != "0" {
		t.Fatalf("arp_ignore is %s already", got)
	}
	daemon := r.start("lb1", r.file("sluice.yaml", roster, vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, addresses: [192.0.2.100/24]}`)))
	front.wait(vip, "lb1")
	// Without a service there is no program, and the status says what that means.
	if out := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(out, "not fenced") || !strings.Contains(out, errNoDatapath.Error()) {
		t.Errorf("status says:\n%s", out)
	}
	// Both are asked in the same way, so silence about the VIP is no accident.
	r.eventually(soon, "an answer for eth1's own address", func() (bool, error) {
		return len(side.answers(prefix("198.51.100.1/24").Addr())) == 1, nil
	})
	for range 5 {
		if got := side.answers(vip); len(got) > 0 {
			t.Fatalf("%v answers for the VIP on another interface", got)
		}
	}

	// Without the setting it would be known there.
	if err := r.host("lb1").Sysctl("net/ipv4/conf/eth1/arp_ignore", "0"); err != nil {
		t.Fatal(err)
	}
	r.eventually(soon, "the leak", func() (bool, error) { return len(side.answers(vip)) == 1, nil })
	if err := r.host("lb1").Sysctl("net/ipv4/conf/eth1/arp_ignore", "1"); err != nil {
		t.Fatal(err)
	}

	r.stop(daemon) // nobody takes over: the VIP stays
	if got := r.setting("lb1", "eth1/arp_ignore"); got != "1" || !r.has("lb1", vip) {
		t.Errorf("arp_ignore is %s while the VIP is there, %v", got, r.has("lb1", vip))
	}
	out := r.wantRun(0, "lb1", "status").stdout
	if !strings.HasPrefix(out, "sluice is not running, not forwarding\nvip 192.0.2.100/24 is left on eth0\n") {
		t.Errorf("status without a daemon says:\n%s", out)
	}
	r.wantRun(0, "lb1", "detach", "--force")
	for _, path := range []string{"eth1/arp_ignore", "eth1/arp_announce", "eth0/arp_announce"} {
		if got := r.setting("lb1", path); got != "0" {
			t.Errorf("%s is %s after detach, want 0", path, got)
		}
	}
}
