// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"testing"
	"time"
)

func TestHeldVIP(t *testing.T) {
	start := func(t *testing.T) *rig {
		r := newRig(t, nil)
		wantActions(t, describe(r.m.Startup(r.now, true)), "initialize to backup")
		return r
	}
	t.Run("goes when an active node is heard", func(t *testing.T) {
		r := start(t)
		wantActions(t, r.hear(lower, 200), "remove")
		wantActions(t, r.hear(lower, 200)) // once
	})
	t.Run("goes also for one of lower priority", func(t *testing.T) {
		wantActions(t, start(t).hear(lower, 1), "remove")
	})
	t.Run("stays when the active node gives up", func(t *testing.T) {
		r := start(t)
		wantActions(t, r.hear(lower, PriorityRelease))
		wantActions(t, r.expire(), "add", "send 100", "announce", "backup to active")
	})
	t.Run("stays when this node becomes active", func(t *testing.T) {
		r := start(t)
		wantActions(t, r.expire(), "send 100", "add", "announce", "backup to active")
		if r.m.Held() {
			t.Error("still held")
		}
	})
	t.Run("goes with a fault", func(t *testing.T) {
		wantActions(t, describe(start(t).m.Fault("interface eth0 is down")), "remove", "backup to fault")
	})
	t.Run("goes when the first thing is a fault", func(t *testing.T) {
		wantActions(t, describe(newRig(t, nil).m.Fault("interface eth0 is down")), "remove", "initialize to fault")
	})
	t.Run("stays when a backup is released", func(t *testing.T) {
		wantActions(t, describe(start(t).m.Release(epoch)), "backup to initialize", nobody)
	})
}

func TestFault(t *testing.T) {
	t.Run("active tells the others", func(t *testing.T) {
		r := activeRig(t, nil)
		got := r.m.Fault("interface eth0 is down")
		wantActions(t, describe(got), "send 0", "remove", "active to fault")
		if reason := got[2].Reason; reason != "interface eth0 is down" {
			t.Errorf("got reason %q", reason)
		}
		if _, runs := r.m.Deadline(); runs {
			t.Error("a timer runs")
		}
		wantActions(t, r.hear(lower, 1))
		wantActions(t, describe(r.m.Fault("again")))
		wantActions(t, describe(r.m.Startup(r.now, false)), "fault to backup")
	})
	t.Run("backup says nothing", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		wantActions(t, describe(r.m.Fault("x")), "remove", "backup to fault")
	})
	t.Run("owner becomes active afterwards", func(t *testing.T) {
		r := activeRig(t, func(c *MachineConfig) { c.Priority = PriorityOwner })
		r.m.Fault("x")
		wantActions(t, describe(r.m.Startup(r.now, false)), "add", "send 255", "announce", "fault to active")
	})
}

func TestRelease(t *testing.T) {
	release := func(t *testing.T) *rig {
		r := activeRig(t, nil)
		wantActions(t, describe(r.m.Release(r.now)), "send 0")
		r.wantState(Active)
		// Active_Down_Interval and one interval.
		r.wantTimer(4609375 * time.Microsecond)
		wantActions(t, describe(r.m.Release(r.now))) // asking twice changes nothing
		return r
	}
	t.Run("a peer of lower priority takes over", func(t *testing.T) {
		r := release(t)
		r.now = r.now.Add(700 * time.Millisecond)
		wantActions(t, r.hear(lower, 99), "remove", "active to initialize", "released to 192.0.2.1")
	})
	t.Run("a peer of higher priority takes over", func(t *testing.T) {
		wantActions(t, release(t).hear(lower, 101), "remove", "active to initialize", "released to 192.0.2.1")
	})
	t.Run("another goodbye is no takeover", func(t *testing.T) {
		wantActions(t, release(t).hear(lower, PriorityRelease))
	})
	t.Run("nobody takes over and the addresses stay", func(t *testing.T) {
		r := release(t)
		wantActions(t, r.expire(), "active to initialize", nobody)
	})
	t.Run("the wait is a second at least", func(t *testing.T) {
		r := activeRig(t, func(c *MachineConfig) { c.Version, c.Interval = V3, 10*time.Millisecond })
		wantActions(t, describe(r.m.Release(r.now)), "send 0")
		r.wantTimer(time.Second)
	})
	t.Run("no advertisement while waiting", func(t *testing.T) {
		r := release(t)
		r.now = r.now.Add(4 * time.Second)
		wantActions(t, describe(r.m.Expire(r.now)))
	})
	t.Run("a fault does not cut it short", func(t *testing.T) {
		wantActions(t, describe(release(t).m.Fault("a check fails")))
	})
	t.Run("shutdown ends the wait and the addresses stay", func(t *testing.T) {
		wantActions(t, describe(release(t).m.Shutdown()), "active to initialize", nobody)
	})
	t.Run("backup just stops", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		wantActions(t, describe(r.m.Release(r.now)), "backup to initialize", nobody)
	})
	t.Run("v3 waits by its own interval, not by the one learnt before", func(t *testing.T) {
		r := newRig(t, v3(time.Second))
		r.m.Startup(r.now, false)
		r.m.Receive(r.now, Heard{Source: lower, Priority: 200, Interval: 300 * time.Millisecond})
		r.expire()
		r.m.Release(r.now)
		r.wantTimer(4609375 * time.Microsecond)
	})
}

func TestShutdown(t *testing.T) {
	r := activeRig(t, nil)
	wantActions(t, describe(r.m.Shutdown()), "send 0", "remove", "active to initialize")
	wantActions(t, describe(r.m.Shutdown()))
	r = newRig(t, nil)
	r.m.Startup(r.now, false)
	wantActions(t, describe(r.m.Shutdown()), "remove", "backup to initialize")
}

func TestReasonsOfTakeover(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*rig)
		want string
	}{
		{"nobody", func(r *rig) {}, "no active node heard for 3.609375s"},
		{"silence", func(r *rig) { r.hear(lower, 200) }, "192.0.2.1 fell silent for 3.609375s"},
		{"goodbye", func(r *rig) { r.hear(lower, 0) }, "192.0.2.1 gave up"},
		{"preemption", func(r *rig) { r.now = r.now.Add(3 * time.Second); r.hear(lower, 99) }, "preempting 192.0.2.1 with priority 99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.m.Startup(r.now, false)
			tt.do(r)
			d, _ := r.m.Deadline()
			actions := r.m.Expire(d)
			if got := actions[len(actions)-1].Reason; got != tt.want {
				t.Errorf("got reason %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMachineDoesNotAllocate(t *testing.T) {
	r := activeRig(t, nil)
	b := newRig(t, nil)
	b.m.Startup(b.now, false)
	if n := testing.AllocsPerRun(100, func() {
		d, _ := r.m.Deadline()
		r.m.Expire(d)
		r.m.Receive(d, Heard{Source: lower, Priority: 1})
		b.m.Receive(d, Heard{Source: lower, Priority: 200})
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}
