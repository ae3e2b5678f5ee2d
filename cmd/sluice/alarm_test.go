package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

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
			if err == nil && (!slices.Equal(i.Alarms, []string{want}) || !slices.Contains(s.Problems, "vrrp instance VI_1: "+want)) {
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
