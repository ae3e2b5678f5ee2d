package main

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
)

// Two nodes that do not hear each other are Active both, and each has connections of its
// own, and operators' changes. When they meet again the one that stays has all connections,
// and of two changes to one server both have the later one.
func TestSplitBrainHeals(t *testing.T) {
	r := newSyncRig(t, forwardModes[1])
	for _, node := range []string{"lb1", "lb2"} {
		r.nft(node, `table inet split {
	chain in {
		type filter hook input priority 0
		meta l4proto 112 drop
		tcp dport 3780 drop
		tcp sport 3780 drop
	}
}`)
	}
	for _, node := range []string{"lb1", "lb2"} {
		r.waitStatus(node, soon, "a node that is alone", func(s control.Status) error {
			if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "active" || s.Sync.Peers[0].Connected {
				return fmt.Errorf("it is %s, sync is %+v: %w", i.State, s.Sync, err)
			}
			return nil
		})
	}
	r.leadTo("lb1")
	r.goesOn("through lb1, cut off")
	known := r.crowd.members
	r.leadTo("lb2")
	r.crowd.members = nil // those that only lb1 knows do not go this way
	r.crowd.mustOpen(r.services, 50)
	r.crowd.talk("through lb2, cut off")
	ofLB2 := r.crowd.members
	r.wantRun(0, "lb2", "backend", "weight", "web6", "2001:db8::13", "4")
	r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.11")
	r.wantRun(0, "lb2", "backend", "weight", "web", "192.0.2.11", "3")
	r.wantRun(0, "lb1", "backend", "drain", "web6", "2001:db8::13")

	for _, node := range []string{"lb1", "lb2"} {
		r.nft(node, "delete table inet split")
	}
	r.waitBackup("lb2")
	r.waitShared("lb1")
	for _, node := range []string{"lb1", "lb2"} {
		r.waitStatus(node, soon, "the later changes", func(s control.Status) error {
			web, err := serviceOf(s, "crowd")
			web6, err6 := serviceOf(s, "crowd6")
			if err := errors.Join(err, err6); err != nil {
				return err
			}
			if b := web.Backends[0]; b.State != control.ServerUp || b.Weight != 3 {
				return fmt.Errorf("%v is %s, of weight %d", b.Address, b.State, b.Weight)
			}
			if b := web6.Backends[2]; b.State != control.ServerDrained {
				return fmt.Errorf("%v is %s", b.Address, b.State)
			}
			return nil
		})
	}
	r.leadTo("lb1")
	r.crowd.members = append(known, ofLB2...)
	r.goesOn("they have met again")
	r.waitShared("lb1")
	if s := r.mustStatus("lb1"); len(s.Sync.Taken.Refused) > 0 || s.Sync.Taken.Applied < 50 {
		t.Errorf("lb1 has taken %+v of lb2", s.Sync.Taken)
	}
	// And the other one has them, too.
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.kill(r.daemons["lb1"])
	r.waitVIP(soon, r.mode.vip, "lb2")
	r.leadTo("lb2")
	r.goesOn("lb1 has died")
}

// leadTo has everybody else take a node for who has the VIPs, whatever the nodes say.
func (r *syncRig) leadTo(node string) {
	r.Helper()
	for _, host := range []string{"client", "b1", "b2", "b3"} {
		for _, vip := range []netip.Addr{r.mode.vip, r.mode.v6} {
			r.ip(host, "neigh", "replace", vip.String(), "lladdr", r.host(node).MAC("eth0").String(), "dev", "eth0", "nud", "permanent")
		}
	}
}
