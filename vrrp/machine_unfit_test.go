// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestUnfit(t *testing.T) {
	// giving is an Active node that has become unfit.
	giving := func(t *testing.T, change func(*MachineConfig)) *rig {
		r := activeRig(t, change)
		wantActions(t, describe(r.m.Unfit(r.now, "x", false)), "send 0")
		r.wantState(Active)
		wantActions(t, describe(r.m.Unfit(r.now, "y", false))) // again changes nothing
		return r
	}
	// last is one that nobody has taken over from.
	last := func(t *testing.T) *rig {
		r := giving(t, nil)
		r.wantTimer(4609375 * time.Microsecond)
		wantActions(t, r.expire(), "reason", "send 1", "announce", nobodyTook)
		r.wantState(Active)
		return r
	}
	// aside is one that is not Active.
	aside := func(t *testing.T, held bool) *rig {
		r := newRig(t, nil)
		wantActions(t, describe(r.m.Unfit(r.now, "x", held)), "initialize to fault")
		r.wantTimer(5992187500)
		return r
	}
	t.Run("active gives the VIPs away", func(t *testing.T) {
		r := giving(t, nil)
		wantActions(t, r.hear(lower, 99), "remove", "active to fault", "handed over to 192.0.2.1")
		r.wantTimer(5992187500)
		wantActions(t, describe(r.m.Startup(r.now, false)), "fault to backup")
	})
	t.Run("nobody takes them: the last resort", func(t *testing.T) {
		r := last(t)
		if got := r.m.Advertised(); got != 1 {
			t.Errorf("advertised %d, want 1", got)
		}
		wantActions(t, r.expire(), "send 1")
		wantActions(t, describe(r.m.Unfit(r.now, "z", false)), "reason")
	})
	t.Run("the last resort is fit again", func(t *testing.T) {
		r := last(t)
		wantActions(t, describe(r.m.Startup(r.now, false)), "send 100", "reason")
		wantActions(t, r.hear(lower, 99), "send 100", "announce")
	})
	t.Run("fit again before anybody takes over", func(t *testing.T) {
		r := giving(t, nil)
		wantActions(t, describe(r.m.Startup(r.now, false)), nobodyTook, "send 100", "announce", "reason")
		r.wantState(Active)
		wantActions(t, r.expire(), "send 100")
	})
	t.Run("the last resort makes way for anybody", func(t *testing.T) {
		for _, tt := range []struct {
			name   string
			source bool // of the higher address
			by     uint8
			goes   bool
		}{{"a fit node", false, 2, true}, {"another last resort", false, 1, false}, {"another last resort of a higher address", true, 1, true}} {
			r, source := last(t), lower
			if tt.source {
				source = upper
			}
			want := []string{"send 1", "announce"}
			if tt.goes {
				want = []string{"remove", "active to fault"}
			}
			t.Log(tt.name)
			wantActions(t, r.hear(source, tt.by), want...)
		}
	})
	t.Run("a hard fault takes it all away", func(t *testing.T) {
		wantActions(t, describe(last(t).m.Fault("link")), "send 0", "remove", "active to fault")
		wantActions(t, describe(giving(t, nil).m.Fault("link")), nobodyTook, "send 0", "remove", "active to fault")
		r := aside(t, true)
		wantActions(t, describe(r.m.Fault("link")), "remove", "reason")
		if _, runs := r.m.Deadline(); runs {
			t.Error("a timer runs")
		}
		wantActions(t, describe(r.m.Unfit(r.now, "x", false)), "reason")
		r.wantTimer(5992187500)
	})
	t.Run("aside in silence: the last resort", func(t *testing.T) {
		wantActions(t, aside(t, false).expire(), "send 1", "add", "announce", "fault to active")
	})
	t.Run("aside while somebody is active", func(t *testing.T) {
		r := aside(t, false)
		for range 10 {
			r.now = r.now.Add(time.Second)
			wantActions(t, r.hear(lower, 1))
		}
		r.wantTimer(5992187500)
		wantActions(t, r.hear(lower, PriorityRelease))
		r.wantTimer(5992187500)
	})
	t.Run("aside with VIPs of an earlier run", func(t *testing.T) {
		wantActions(t, aside(t, true).expire(), "send 1", "add", "announce", "fault to active")
		r := aside(t, true)
		wantActions(t, r.hear(lower, PriorityRelease))
		wantActions(t, r.hear(lower, 1), "remove")
		wantActions(t, r.hear(lower, 1)) // once
	})
	t.Run("backup stands aside", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, true)
		wantActions(t, describe(r.m.Unfit(r.now, "x", false)), "backup to fault")
		if !r.m.Held() {
			t.Error("what an earlier run has left is forgotten")
		}
	})
	t.Run("the owner of the addresses is fit again", func(t *testing.T) {
		r := newRig(t, func(c *MachineConfig) { c.Priority = PriorityOwner })
		r.m.Unfit(r.now, "x", false)
		wantActions(t, describe(r.m.Startup(r.now, false)), "add", "send 255", "announce", "fault to active")
		wantActions(t, r.expire(), "send 255")
	})
	t.Run("held by an operator", func(t *testing.T) {
		r := aside(t, false)
		r.m.SetHold(r.now, true)
		wantActions(t, r.expire())
		if _, _, silent := r.m.StandsBack(); !silent {
			t.Error("it does not say that nobody is active")
		}
	})
	t.Run("a handover becomes one of an unfit node", func(t *testing.T) {
		r := activeRig(t, nil)
		r.m.HandOver(r.now)
		wantActions(t, describe(r.m.Unfit(r.now, "x", false)))
		wantActions(t, r.hear(lower, 99), "remove", "active to fault", "handed over to 192.0.2.1")
	})
	t.Run("a handover of the last resort", func(t *testing.T) {
		r := last(t)
		wantActions(t, describe(r.m.HandOver(r.now)), "send 0")
		wantActions(t, r.expire(), "reason", "send 1", "announce", nobodyTook)
	})
	t.Run("a release of the last resort", func(t *testing.T) {
		r := last(t)
		wantActions(t, describe(r.m.Release(r.now)), "send 0")
		wantActions(t, describe(r.m.Unfit(r.now, "z", false)))
		wantActions(t, r.expire(), "active to initialize", nobody)
	})
	t.Run("short intervals wait for who gives the VIPs away", func(t *testing.T) {
		r := newRig(t, v3(10*time.Millisecond))
		r.m.Unfit(r.now, "x", false)
		r.wantTimer(time.Second + 9960937)
	})
}

const nobodyTook = "handed over to invalid IP"

// A fit node takes over from the last resort at once.
func TestLastResortIsPreempted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*MachineConfig)
		setUp  func(*rig)
		within time.Duration // 0: never
	}{
		{"as ever", nil, nil, 609375 * time.Microsecond},
		{"without preemption", func(c *MachineConfig) { c.Preempt = false }, nil, 609375 * time.Microsecond},
		{"with a delay", func(c *MachineConfig) { c.PreemptDelay = time.Hour }, nil, 609375 * time.Microsecond},
		{"after a handover", nil, func(r *rig) { r.m.yielded = true }, 609375 * time.Microsecond},
		{"by an owner", func(c *MachineConfig) { c.Priority = PriorityOwner }, func(r *rig) { r.m.SetHold(r.now, true); r.m.Startup(r.now, false); r.m.SetHold(r.now, false) }, 3906250},
		{"not by one that is held", nil, func(r *rig) { r.m.SetHold(r.now, true) }, 0},
		{"not by a priority of 1", func(c *MachineConfig) { c.Priority = 1 }, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.change)
			if tt.setUp != nil {
				tt.setUp(r)
			}
			r.m.Startup(r.now, false)
			wantActions(t, r.hear(lower, 1))
			if tt.within == 0 {
				r.wantTimer(r.m.ActiveDown())
				return
			}
			r.wantTimer(tt.within)
			// A second advertisement delays nothing.
			r.now = r.now.Add(tt.within / 2)
			wantActions(t, r.hear(lower, 1))
			r.wantTimer(tt.within - tt.within/2)
			r.expire()
			r.wantState(Active)
		})
	}
}

func TestRouterLastResort(t *testing.T) {
	virtual(t, "a fault that is over at once: the VIPs are announced as ever", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(time.Minute)
		n.router.Fault("check gate fails")
		sleep(time.Second)
		n.router.ClearFault()
		sleep(time.Minute)
		n.wantState(Active)
		n.taken()
		sleep(2 * defaultAnnounceRefresh)
		if got := n.taken(); !slices.Contains(got, "announce") {
			t.Errorf("no announcement in %v: %v", 2*defaultAnnounceRefresh, got)
		}
	})
	virtual(t, "a fault that both share", func(t *testing.T) {
		a, b := handoverPair(t)
		a.router.Fault("check gate fails")
		b.router.Fault("check gate fails")
		for range 20 {
			sleep(time.Second)
			if !a.holds() {
				t.Fatal("the VIP was nowhere")
			}
		}
		a.wantState(Active)
		b.wantState(Fault)
		s := a.router.Status()
		if want := "last resort, no fit node is active: check gate fails"; s.Reason != want || !s.LastResort || s.Priority != 1 || s.Releasing {
			t.Errorf("got status %+v, want reason %q", s, want)
		}
		a.router.Fault("check gate fails; check disk fails")
		synctest.Wait()
		if s, want := a.router.Status(), "last resort, no fit node is active: check gate fails; check disk fails"; s.Reason != want {
			t.Errorf("got reason %q, want %q", s.Reason, want)
		}
		// The VIP comes back when something deletes it, as ever.
		a.change(func() { a.vips = nil })
		if !a.holds() {
			t.Error("the VIP is gone")
		}

		b.router.ClearFault()
		sleep(5 * time.Second)
		a.wantState(Fault)
		b.wantState(Active)
		if s := a.router.Status(); s.LastResort || s.Priority != 100 || s.Reason != "check gate fails; check disk fails" || a.holds() {
			t.Errorf("got status %+v, holds %v", s, a.holds())
		}
		a.router.ClearFault()
		sleep(5 * time.Second)
		a.wantState(Active)
		b.wantState(Backup)
	})
	virtual(t, "the fit one dies", func(t *testing.T) {
		a, b := handoverPair(t)
		a.router.Fault("check gate fails")
		sleep(time.Second)
		b.wantState(Active)
		b.crash()
		sleep(6 * time.Second)
		a.wantState(Active)
		if s := a.router.Status(); !s.LastResort {
			t.Errorf("got status %+v", s)
		}
		a.router.ClearFault()
		synctest.Wait()
		if s := a.router.Status(); s.LastResort || s.Priority != 100 || s.Reason != "fault is over" || s.State != Active {
			t.Errorf("got status %+v", s)
		}
	})
	virtual(t, "a restart in the middle of it", func(t *testing.T) {
		n := newNode(t, newSegment(), 1)
		n.run(nil)
		sleep(5 * time.Second)
		n.crash() // it leaves the VIP
		n.cut.Store(false)
		n.setUp = func(r *Router) { r.Fault("check gate fails") }
		n.run(nil)
		for range 10 {
			if !n.holds() {
				t.Fatal("the VIP was nowhere")
			}
			sleep(time.Second)
		}
		n.wantState(Active)
	})
	virtual(t, "an interface that is down is another matter", func(t *testing.T) {
		n := newNode(t, newSegment(), 1)
		n.run(nil)
		n.router.Fault("check gate fails")
		sleep(10 * time.Second)
		n.wantState(Active)
		n.change(func() { n.link.Up = false })
		n.wantState(Fault)
		if r := n.router.Status().Reason; r != "interface eth0 is down; check gate fails" || n.holds() {
			t.Errorf("got reason %q, holds %v", r, n.holds())
		}
		n.change(func() { n.link.Up = true })
		n.wantState(Fault)
		if r := n.router.Status().Reason; r != "check gate fails" {
			t.Errorf("got reason %q", r)
		}
		sleep(10 * time.Second)
		n.wantState(Active)
	})
}
