// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A gateway is a node with a Router on each of two segments, in one group.
type gateway struct{ front, back *node }

func (g gateway) wantBoth(t *testing.T, want State) {
	t.Helper()
	g.front.wantState(want)
	g.back.wantState(want)
	if want != Active && want != Backup {
		return
	}
	for _, n := range []*node{g.front, g.back} {
		if n.holds() != (want == Active) {
			t.Fatalf("node %v is %v and holds its VIP: %v", n.link.Source, want, n.holds())
		}
	}
}

// gateways are two nodes; lb1 is Active.
func gateways(t *testing.T) (lb1, lb2 gateway, front, back *segment) {
	front, back = newSegment(), newSegment()
	start := func(last byte, priority uint8) gateway {
		group := NewGroup("pair")
		g := gateway{newNode(t, front, last), newNode(t, back, last)}
		g.front.group, g.back.group = group, group
		for i, n := range []*node{g.front, g.back} {
			n.run(func(c *Config) { c.Priority, c.Name = priority, []string{"front", "back"}[i] })
		}
		return g
	}
	lb1, lb2 = start(1, 100), start(2, 99)
	sleep(5 * time.Second)
	lb1.wantBoth(t, Active)
	lb2.wantBoth(t, Backup)
	return lb1, lb2, front, back
}

func TestGroup(t *testing.T) {
	virtual(t, "a fault of one is one of all", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		lb1.back.cut.Store(true)
		lb1.back.change(func() { lb1.back.link.Up = false })
		lb1.back.wantState(Fault)
		lb1.front.wantState(Active)
		if !lb1.front.router.Status().Releasing {
			t.Error("the front side does not give its VIP away")
		}
		sleep(time.Second)
		// The other front side has heard the goodbye. It waits for the back side,
		// which hears nothing.
		lb2.wantBoth(t, Backup)
		if got := lb2.front.router.Status().Waits; got != "back" {
			t.Errorf("it waits for %q, want back", got)
		}
		sleep(3 * time.Second)
		lb1.wantBoth(t, Fault)
		if got, want := lb1.front.router.Status().Reason, "back of group pair is in fault: interface eth0 is down"; got != want {
			t.Errorf("got reason %q, want %q", got, want)
		}
		if got, want := lb1.back.router.Status().Reason, "interface eth0 is down"; got != want {
			t.Errorf("got reason %q, want %q", got, want)
		}
		lb2.wantBoth(t, Active)
		if got := lb2.front.router.Status().Waits; got != "" {
			t.Errorf("it waits for %q still", got)
		}
		lb1.back.cut.Store(false)
		lb1.back.change(func() { lb1.back.link.Up = true })
		lb1.wantBoth(t, Backup)
		sleep(4 * time.Second)
		lb1.wantBoth(t, Active)
		lb2.wantBoth(t, Backup)
		for _, n := range []*node{lb1.front, lb1.back, lb2.front, lb2.back} {
			var states []string
			for _, c := range n.changes {
				states = append(states, c.To.String())
			}
			want := "backup active fault backup active"
			if n == lb2.front || n == lb2.back {
				want = "backup active backup"
			}
			if got := strings.Join(states, " "); got != want {
				t.Errorf("%s of %v: told of %q, want %q", n.router.Status().Name, n.link.Source, got, want)
			}
		}
	})
	virtual(t, "one that becomes active takes the others along", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		if err := lb2.front.router.SetPriority(90); err != nil { // its skew is longer
			t.Fatal(err)
		}
		lb1.front.crash()
		sleep(1200 * time.Millisecond)
		lb1.back.crash()
		sleep(4 * time.Second)
		lb2.wantBoth(t, Active)
		if got, want := lb2.front.router.Status().Reason, "back of group pair became active"; got != want {
			t.Errorf("got reason %q, want %q", got, want)
		}
	})
	virtual(t, "who loses one VIP gives the other one away, too", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		for _, n := range []*node{lb2.front, lb2.back} {
			if err := n.router.SetPriority(150); err != nil {
				t.Fatal(err)
			}
		}
		// The back side does not hear that it has been preempted.
		lb2.back.cut.Store(true)
		sleep(4 * time.Second)
		lb2.wantBoth(t, Active)
		lb1.front.wantState(Backup)
		lb1.back.wantState(Active)
		if !lb1.back.router.Status().Releasing {
			t.Error("the back side does not give its VIP away")
		}
		lb2.back.cut.Store(false)
		sleep(time.Second)
		lb1.wantBoth(t, Backup)
		if r := lb1.back.router.Status().Reason; r != "192.0.2.2 took over, as of the group" {
			t.Errorf("got reason %q", r)
		}
	})
	virtual(t, "whom nobody takes the VIP from keeps it", func(t *testing.T) {
		lb1, lb2, front, _ := gateways(t)
		lb2.back.taken()
		for range 20 {
			front.speak("192.0.2.3", priority(200))
			sleep(500 * time.Millisecond)
		}
		lb1.front.wantState(Backup)
		lb1.back.wantState(Active)
		lb2.wantBoth(t, Backup)
		if !lb1.back.holds() {
			t.Error("the VIP of the back side is nowhere")
		}
		wantActions(t, lb2.back.taken())
	})
	virtual(t, "a cut on one side moves nothing", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		lb1.back.cut.Store(true)
		lb2.front.taken()
		for range 30 {
			sleep(time.Second)
			lb2.wantBoth(t, Backup)
		}
		lb1.wantBoth(t, Active)
		if got := lb2.back.router.Status().Waits; got != "front" {
			t.Errorf("it waits for %q, want front", got)
		}
		wantActions(t, lb2.front.taken())
		lb1.back.cut.Store(false)
		sleep(2 * time.Second)
		if got := lb2.back.router.Status().Waits; got != "" {
			t.Errorf("it waits for %q still", got)
		}
	})
	virtual(t, "a planned stop", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		for _, n := range []*node{lb1.front, lb1.back} {
			go func() {
				h, err := n.router.Release(t.Context())
				if err != nil || !h.TookOver() {
					t.Errorf("got %+v, %v", h, err)
				}
			}()
		}
		sleep(time.Second)
		<-lb1.front.ended
		<-lb1.back.ended
		lb2.wantBoth(t, Active)
	})
	virtual(t, "a handover stays", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		for _, n := range []*node{lb1.front, lb1.back} {
			go func() {
				h, err := n.router.HandOver(t.Context())
				if err != nil || !h.TookOver() {
					t.Errorf("got %+v, %v", h, err)
				}
			}()
		}
		sleep(time.Minute)
		lb1.wantBoth(t, Backup)
		lb2.wantBoth(t, Active)
		if s := lb1.back.router.Status(); !s.Yielded {
			t.Errorf("got status %+v", s)
		}
	})
	virtual(t, "a handover of which one side stays comes back", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		lb1.back.cut.Store(true) // its goodbye is not heard, nor what it says later
		lb2.back.cut.Store(true)
		for _, n := range []*node{lb1.front, lb1.back} {
			go func() { _, _ = n.router.HandOver(t.Context()) }() // whatever comes of it
		}
		sleep(4200 * time.Millisecond)
		lb1.front.wantState(Backup)
		lb1.back.wantState(Active)
		if !lb1.front.router.Status().Yielded {
			t.Error("the front side does not leave its VIP to who took over")
		}
		sleep(time.Second)
		if s := lb1.back.router.Status(); s.State != Active || s.Releasing || lb1.front.router.Status().Yielded {
			t.Errorf("the back side has stayed (%v, giving %v), and the front side leaves its VIP to others still", s.State, s.Releasing)
		}
		lb1.back.cut.Store(false)
		lb2.back.cut.Store(false)
		sleep(10 * time.Second)
		lb1.wantBoth(t, Active)
	})
	virtual(t, "one that is held does not follow", func(t *testing.T) {
		lb1, lb2, _, _ := gateways(t)
		lb2.back.router.Hold(true)
		lb1.front.router.Fault("x")
		sleep(10 * time.Second)
		lb2.front.wantState(Active)
		lb2.back.wantState(Backup)
	})
	virtual(t, "faults of two at once", func(t *testing.T) {
		lb1, _, _, _ := gateways(t)
		lb1.front.router.Fault("x")
		lb1.back.router.Fault("y")
		sleep(5 * time.Second)
		lb1.wantBoth(t, Fault)
		lb1.front.router.ClearFault()
		synctest.Wait()
		lb1.wantBoth(t, Fault)
		lb1.back.router.ClearFault()
		sleep(5 * time.Second)
		lb1.wantBoth(t, Active)
	})
}
