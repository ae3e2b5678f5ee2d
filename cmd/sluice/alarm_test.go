package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The classic mistake of a pair: 51 on one node, 61 on the other. Both hold the
// VIP, and both say so and what to change; put right, they say nothing.
func TestAnotherVirtualRouterIDIsNamed(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRig(t, testenv.Spec{Hosts: testenv.Default(0).Hosts[1:3]})
	file := func(name string, vrid int) string {
		return r.file(name, roster, fmt.Sprintf(
			"vrrp:\n  - {name: VI_1, interface: eth0, virtual_router_id: %d, advertisement_interval: 200ms, addresses: [192.0.2.100/24]}\n", vrid))
	}
	r.start("lb1", file("51.yaml", 51))
	second := r.start("lb2", file("61.yaml", 61))
	for node, want := range map[string]string{
		"lb1": "192.0.2.2 advertises 192.0.2.100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes",
		"lb2": "192.0.2.1 advertises 192.0.2.100 as virtual router 51, this node as 61: set one virtual_router_id on all nodes",
	} {
		r.waitStatus(node, soon, "the alarm", func(s control.Status) error {
			i, err := instanceOf(s, "VI_1")
			// That the other one answers for the VIP is another alarm.
			if err == nil && (!slices.Contains(i.Alarms, want) || !slices.Contains(s.Problems, "vrrp instance VI_1: "+want)) {
				err = fmt.Errorf("alarms %q, problems %q", i.Alarms, s.Problems)
			}
			return err
		})
		if out := r.wantRun(0, node, "status").stdout; !strings.Contains(out, "problem: vrrp instance VI_1: "+want+"\n") {
			t.Errorf("status on %s says:\n%s", node, out)
		}
	}

	r.stop(second)
	r.start("lb2", file("51.yaml", 51))
	r.waitStatus("lb1", 2*soon, "no alarm", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || len(i.Alarms) > 0 {
			return fmt.Errorf("alarms %q: %w", i.Alarms, err)
		}
		return nil
	})
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitEvents("lb1", soon, "alarm.begin VI_1 virtual_router_id", "alarm.end VI_1 virtual_router_id")
}

// A host that answers for the VIP by mistake is named, whenever it begins to, and forgotten
// when it stops.
func TestStrangerThatAnswersIsNamed(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRig(t, testenv.Spec{Hosts: testenv.Default(1).Hosts})
	r.start("lb1", r.file("sluice.yaml", roster, vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, addresses: [192.0.2.100/24]}`)))
	r.eventually(soon, "the VIP on lb1", func() (bool, error) { return r.has("lb1", vip), nil })
	if err := r.host("b1").AddAddress("eth0", prefix("192.0.2.100/24")); err != nil { // the kernel says nothing of it
		t.Fatal(err)
	}
	want := fmt.Sprintf("192.0.2.100 is answered by %v, too: find the host with that MAC address, and take 192.0.2.100 off it", r.host("b1").MAC("eth0"))
	r.waitStatus("lb1", soon, "the alarm", func(s control.Status) error {
		i, err := instanceOf(s, "VI_1")
		if err == nil && (!slices.Equal(i.Alarms, []string{want}) || !slices.Contains(s.Problems, "vrrp instance VI_1: "+want)) {
			err = fmt.Errorf("alarms %q, problems %q", i.Alarms, s.Problems)
		}
		return err
	})
	// Whoever has heard the stranger hears this node again.
	client := r.host("client")
	lb1 := r.host("lb1").MAC("eth0")
	link := r.linkIndex("client")
	for range 2 {
		if err := client.Netlink().NeighSet(&netlink.Neigh{
			LinkIndex: link, IP: vip.AsSlice(), HardwareAddr: r.host("b1").MAC("eth0"), State: netlink.NUD_STALE,
		}); err != nil {
			t.Fatal(err)
		}
		r.eventually(soon, "the VIP at lb1 for the client", func() (bool, error) {
			all, err := client.Netlink().NeighList(link, netlink.FAMILY_V4)
			return slices.ContainsFunc(all, func(n netlink.Neigh) bool {
				return n.IP.Equal(vip.AsSlice()) && slices.Equal(n.HardwareAddr, lb1)
			}), err
		})
	}

	if err := deleteAddress(r.host("b1"), "eth0", vip); err != nil {
		t.Fatal(err)
	}
	r.waitStatus("lb1", 2*soon, "no alarm", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || len(i.Alarms) > 0 {
			return fmt.Errorf("alarms %q: %w", i.Alarms, err)
		}
		return nil
	})
}
