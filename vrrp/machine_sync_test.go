// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"testing"
	"time"
)

// wait hears an Active node every second, from the next one on, until this one takes
// over, and returns how long that is after the first, and why. Each is called before
// the advertisement at its second.
func (r *rig) wait(priority uint8, seconds int, each func(second int)) (took time.Duration, why string) {
	r.t.Helper()
	first := r.now.Add(time.Second)
	for i := 1; i <= seconds; i++ {
		r.now = epoch.Add(time.Duration(i) * time.Second)
		if d, _ := r.m.Deadline(); d.Before(r.now) {
			for _, a := range r.m.Expire(d) {
				if a.Kind == ActionState {
					why = a.Reason
				}
			}
			r.wantState(Active)
			return d.Sub(first), why
		}
		each(i)
		r.hear(lower, priority)
	}
	return 0, "it has not taken over"
}

func TestWaitForState(t *testing.T) {
	const down = 3609375 * time.Microsecond
	wait := func(delay, state time.Duration) func(*MachineConfig) {
		return func(c *MachineConfig) { c.PreemptDelay, c.SyncWait = delay, state }
	}
	const s = time.Second
	for _, tt := range []struct {
		name         string
		delay, state time.Duration
		synced       int // at this second; 0: before all, -1: never
		want         time.Duration
		reason       string
	}{
		// The timer was reset by the last advertisement that was respected.
		{"the state comes", 0, 30 * s, 8, 6*s + down, "preempting 192.0.2.1 with priority 99"},
		{"it is there already", 0, 30 * s, 0, down - s, "preempting 192.0.2.1 with priority 99"},
		{"it never comes", 0, 30 * s, -1, 29*s + down, "preempting 192.0.2.1 with priority 99, without its state or the servers that it reaches: they have not come within 30s"},
		{"it comes before the delay is over", 10 * s, 30 * s, 5, 9*s + down, "preempting 192.0.2.1 with priority 99"},
		{"it comes after the delay", 5 * s, 30 * s, 12, 10*s + down, "preempting 192.0.2.1 with priority 99"},
		{"the delay is longer than the wait", 40 * s, 30 * s, -1, 39*s + down, "preempting 192.0.2.1 with priority 99, without its state or the servers that it reaches: they have not come within 30s"},
		{"nobody waits for it", 0, 0, -1, down - s, "preempting 192.0.2.1 with priority 99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, wait(tt.delay, tt.state))
			if tt.synced == 0 {
				r.m.SetSynced(true)
			}
			r.m.Startup(r.now, false)
			got, why := r.wait(99, 60, func(second int) {
				if second == tt.synced {
					r.m.SetSynced(true)
				}
			})
			if got != tt.want || why != tt.reason {
				t.Errorf("took over %v after it heard the other node, %q; want %v, %q", got, why, tt.want, tt.reason)
			}
		})
	}

	began := func(t *testing.T) *rig {
		r := newRig(t, wait(0, 30*s))
		r.m.Startup(r.now, false)
		r.hear(lower, 99)
		if got, want := r.m.AwaitsState(), epoch.Add(30*s); got != want {
			t.Fatalf("waits until %v, want %v", got, want)
		}
		return r
	}
	t.Run("nobody is heard", func(t *testing.T) {
		r := newRig(t, wait(0, 30*s))
		r.m.Startup(r.now, false)
		r.wantTimer(down)
		r.expire()
		r.wantState(Active)
	})
	t.Run("the other node falls silent", func(t *testing.T) {
		r := began(t)
		r.wantTimer(down)
		r.expire()
		r.wantState(Active)
		if got := r.m.AwaitsState(); !got.IsZero() {
			t.Errorf("an active node waits until %v", got)
		}
	})
	t.Run("the other node gives up", func(t *testing.T) {
		r := began(t)
		r.hear(lower, PriorityRelease)
		r.wantTimer(r.m.Skew())
		r.expire()
		r.wantState(Active)
	})
	t.Run("the other node is a last resort", func(t *testing.T) {
		r := began(t)
		r.hear(lower, PriorityLastResort)
		r.wantTimer(r.m.Skew())
		r.expire()
		r.wantState(Active)
	})
	t.Run("a better one is heard between", func(t *testing.T) {
		r := began(t)
		r.now = epoch.Add(20 * s)
		r.hear(upper, 200)
		if got := r.m.AwaitsState(); !got.IsZero() {
			t.Errorf("it waits until %v, and would not preempt", got)
		}
		r.now = epoch.Add(21 * s)
		r.hear(lower, 99) // the time begins anew
		if got, want := r.m.AwaitsState(), epoch.Add(51*s); got != want {
			t.Errorf("waits until %v, want %v", got, want)
		}
	})
	t.Run("the state is lost again", func(t *testing.T) {
		r := began(t)
		r.m.SetSynced(true)
		if got := r.m.AwaitsState(); !got.IsZero() {
			t.Errorf("in sync, and waits until %v", got)
		}
		r.m.SetSynced(false)
		r.now = epoch.Add(s)
		r.hear(lower, 99)
		r.wantTimer(down)
	})
	t.Run("the lower one waits for nothing", func(t *testing.T) {
		r := newRig(t, wait(0, 30*s))
		r.m.Startup(r.now, false)
		r.hear(upper, 200)
		if got := r.m.AwaitsState(); !got.IsZero() {
			t.Errorf("it waits until %v", got)
		}
	})
}

// A node that comes back leaves the VIP where it is until it is in sync, and says so.
func TestRouterWaitsForState(t *testing.T) {
	virtual(t, "pair", func(t *testing.T) {
		s := newSegment()
		a, b := newNode(t, s, 1), newNode(t, s, 2)
		b.run(func(c *Config) { c.Priority, c.SyncWait = 99, 30*time.Second })
		sleep(5 * time.Second)
		b.wantState(Active)
		a.run(func(c *Config) { c.SyncWait = 30 * time.Second })
		sleep(20 * time.Second)
		a.wantState(Backup)
		if got := time.Until(a.router.Status().AwaitsState); got <= 9*time.Second || got > 11*time.Second {
			t.Errorf("it says that it waits for %v, want some 10s", got)
		}
		a.router.SetSynced(true)
		sleep(5 * time.Second)
		a.wantState(Active)
		b.wantState(Backup)
		if got := a.router.Status(); !got.AwaitsState.IsZero() || got.Reason != "preempting 192.0.2.2 with priority 99" {
			t.Errorf("got %v, %q", got.AwaitsState, got.Reason)
		}

		// A stop of the Active one waits for nothing.
		b.router.SetSynced(false)
		if _, err := a.router.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wantState(Active)
	})
}
