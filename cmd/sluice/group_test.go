package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Two sides of a gateway move together: when the link of one fails, when it is
// back, and by an operator's order for one of them.
func TestGroupMovesTogether(t *testing.T) {
	t.Parallel() // most of it is waiting
	spec := testenv.Spec{Hosts: testenv.Default(0).Hosts[1:3]}
	for i := range spec.Hosts {
		spec.Hosts[i].Interfaces = append(spec.Hosts[i].Interfaces, testenv.InterfaceSpec{
			Name: "eth1", Segment: "back", Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)}), 24)},
		})
	}
	r := newRig(t, spec)
	back := netip.MustParseAddr("198.51.100.254")
	file := r.file("sluice.yaml", roster, vrrps(
		`{name: front, group: pair, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [192.0.2.100/24]}`,
		`{name: back, group: pair, interface: eth1, virtual_router_id: 52, advertisement_interval: 200ms, addresses: [198.51.100.254/24]}`))
	both := func(on, other string) {
		t.Helper()
		r.waitVIP(soon, vip, on, other)
		r.waitVIP(soon, back, on, other)
	}
	r.start("lb1", file)
	r.start("lb2", file)
	both("lb1", "lb2")
	r.waitStatus("lb2", soon, "two backups", func(s control.Status) error {
		for _, i := range s.VRRP {
			if i.State != "backup" || i.Peer == nil {
				return fmt.Errorf("%s is %s", i.Name, i.State)
			}
		}
		return nil
	})

	if err := r.host("lb1").LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	both("lb2", "lb1")
	r.waitStatus("lb1", soon, "the fault of both", func(s control.Status) error {
		i, err := instanceOf(s, "front")
		if err != nil || i.State != "fault" || i.Reason != "back of group pair is in fault: interface eth1 is down" {
			return fmt.Errorf("front is %s: %s, %w", i.State, i.Reason, err)
		}
		return nil
	})
	if err := r.host("lb1").LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	both("lb1", "lb2")

	if text := r.wantRun(0, "lb1", "status").stdout; strings.Count(text, "moves with group pair") != 2 {
		t.Errorf("status does not tell of the group:\n%s", text)
	}
	got := r.wantRun(0, "lb1", "handover", "front")
	if !strings.Contains(got.stdout, "front: 192.0.2.2 has taken over") || !strings.Contains(got.stdout, "back: 198.51.100.2 has taken over") {
		t.Errorf("handover says %q", got.stdout)
	}
	both("lb2", "lb1")
}
