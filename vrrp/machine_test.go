// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	self  = addr("192.0.2.2")
	lower = addr("192.0.2.1")
	upper = addr("192.0.2.200")
)

// A rig drives a Machine in virtual time and notes what it does.
type rig struct {
	t   *testing.T
	m   *Machine
	now time.Time
}

func newRig(t *testing.T, change func(*MachineConfig)) *rig {
	cfg := MachineConfig{Version: V2, Priority: 100, Interval: time.Second, Preempt: true, Local: self}
	if change != nil {
		change(&cfg)
	}
	return &rig{t: t, m: NewMachine(cfg), now: epoch}
}

func v3(interval time.Duration) func(*MachineConfig) {
	return func(c *MachineConfig) { c.Version, c.Interval = V3, interval }
}

// activeRig is one that has just become Active.
func activeRig(t *testing.T, change func(*MachineConfig)) *rig {
	r := newRig(t, change)
	r.m.Startup(r.now, false)
	if r.m.State() != Active {
		r.expire()
	}
	r.wantState(Active)
	return r
}

// expire goes to the deadline and returns what happens there.
func (r *rig) expire() []string {
	r.t.Helper()
	d, ok := r.m.Deadline()
	if !ok {
		r.t.Fatal("no timer runs")
	}
	if early := r.m.Expire(d.Add(-1)); len(early) > 0 {
		r.t.Fatalf("a nanosecond early: %v", describe(early))
	}
	r.now = d
	return describe(r.m.Expire(r.now))
}

func (r *rig) hear(source netip.Addr, priority uint8) []string {
	return describe(r.m.Receive(r.now, Heard{Source: source, Priority: priority, Interval: r.m.cfg.Interval}))
}

func (r *rig) wantState(want State) {
	r.t.Helper()
	if got := r.m.State(); got != want {
		r.t.Fatalf("got state %v, want %v", got, want)
	}
}

func (r *rig) wantTimer(want time.Duration) {
	r.t.Helper()
	d, ok := r.m.Deadline()
	if !ok || d.Sub(r.now) != want {
		r.t.Fatalf("got timer %v (runs: %v), want %v", d.Sub(r.now), ok, want)
	}
}

func wantActions(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("actions (-want +got):\n%s", diff)
	}
}

// describe writes actions down shortly, without reasons.
func describe(actions []Action) []string {
	var all []string
	for _, a := range actions {
		switch a.Kind {
		case ActionSend:
			all = append(all, fmt.Sprint("send ", a.Priority))
		case ActionAdd:
			all = append(all, "add")
		case ActionRemove:
			all = append(all, "remove")
		case ActionAnnounce:
			all = append(all, "announce")
		case ActionState:
			all = append(all, fmt.Sprintf("%v to %v", a.From, a.To))
		case ActionReason:
			all = append(all, "reason")
		case ActionReleased:
			all = append(all, fmt.Sprint("released to ", a.Peer))
		case ActionHandedOver:
			all = append(all, fmt.Sprint("handed over to ", a.Peer))
		}
	}
	return all
}

const nobody = "released to invalid IP"

func TestSkewAndActiveDown(t *testing.T) {
	for _, tt := range []struct {
		name       string
		version    Version
		priority   uint8
		interval   time.Duration
		skew, down time.Duration
	}{
		{"v2 priority 100", V2, 100, time.Second, 609375 * time.Microsecond, 3609375 * time.Microsecond},
		{"v2 skew does not depend on the interval", V2, 100, 10 * time.Second, 609375 * time.Microsecond, 30609375 * time.Microsecond},
		{"v2 priority 1", V2, 1, time.Second, 996093750, 3996093750},
		{"v2 priority 254", V2, 254, time.Second, 7812500, 3007812500},
		{"v3 priority 100, 1 s", V3, 100, time.Second, 609375 * time.Microsecond, 3609375 * time.Microsecond},
		{"v3 keeps what is below a centisecond", V3, 100, 10 * time.Millisecond, 6093750, 36093750},
		{"v3 priority 254, 10 ms", V3, 254, 10 * time.Millisecond, 78125, 30078125},
		{"v3 longest interval", V3, 1, 40950 * time.Millisecond, 40790039062, 163640039062},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMachine(MachineConfig{Version: tt.version, Priority: tt.priority, Interval: tt.interval})
			if m.Skew() != tt.skew || m.ActiveDown() != tt.down {
				t.Errorf("got skew %v and down %v, want %v and %v", m.Skew(), m.ActiveDown(), tt.skew, tt.down)
			}
		})
	}
}

func TestIntervalIsLearntInV3Only(t *testing.T) {
	hear := func(r *rig) {
		r.m.Receive(r.now, Heard{Source: lower, Priority: 200, Interval: 300 * time.Millisecond})
	}
	r := newRig(t, v3(time.Second))
	r.m.Startup(r.now, false)
	hear(r)
	r.wantTimer(900*time.Millisecond + 300*time.Millisecond*156/256)
	// The node's own interval counts again once it is Active.
	r.expire()
	r.wantTimer(time.Second)
	// And an Active node learns when it yields.
	hear(r)
	r.wantState(Backup)
	r.wantTimer(900*time.Millisecond + 300*time.Millisecond*156/256)

	r = newRig(t, nil)
	r.m.Startup(r.now, false)
	hear(r)
	r.wantTimer(3609375 * time.Microsecond)
}

// Where another node has the VIPs until it hears the advertisement, they are here
// before it is sent; where none has, the other candidates are told first.
func TestPlannedTakeover(t *testing.T) {
	planned := []string{"add", "send 100", "announce", "backup to active"}
	unplanned := []string{"send 100", "add", "announce", "backup to active"}
	for _, tt := range []struct {
		name string
		hear func(*rig)
		want []string
	}{
		{"nobody was ever heard", func(*rig) {}, unplanned},
		{"silence", func(r *rig) { r.hear(lower, 200) }, unplanned},
		{"silence of a worse node", func(r *rig) { r.hear(lower, 99) }, unplanned},
		{"a goodbye", func(r *rig) { r.hear(lower, PriorityRelease) }, planned},
		{"preemption", func(r *rig) { r.now = r.now.Add(3 * time.Second); r.hear(lower, 99) }, planned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.m.Startup(r.now, false)
			tt.hear(r)
			wantActions(t, r.expire(), tt.want...)
		})
	}
}

func TestPriorityZeroReceived(t *testing.T) {
	t.Run("backup waits skew time", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		wantActions(t, r.hear(lower, PriorityRelease))
		r.wantTimer(609375 * time.Microsecond)
		wantActions(t, r.expire(), "add", "send 100", "announce", "backup to active")
	})
	t.Run("v3 skew follows the learnt interval", func(t *testing.T) {
		r := newRig(t, v3(time.Second))
		r.m.Startup(r.now, false)
		r.m.Receive(r.now, Heard{Source: lower, Priority: 200, Interval: 100 * time.Millisecond})
		r.hear(lower, PriorityRelease)
		r.wantTimer(60937500)
	})
	t.Run("also without preemption", func(t *testing.T) {
		r := newRig(t, func(c *MachineConfig) { c.Preempt = false })
		r.m.Startup(r.now, false)
		r.hear(lower, PriorityRelease)
		r.wantTimer(609375 * time.Microsecond)
	})
	t.Run("active advertises at once", func(t *testing.T) {
		r := activeRig(t, nil)
		r.now = r.now.Add(300 * time.Millisecond)
		wantActions(t, r.hear(upper, PriorityRelease), "send 100")
		r.wantTimer(time.Second)
		r.wantState(Active)
	})
}

func TestStart(t *testing.T) {
	t.Run("owner starts active", func(t *testing.T) {
		r := newRig(t, func(c *MachineConfig) { c.Priority = PriorityOwner })
		wantActions(t, describe(r.m.Startup(r.now, false)), "add", "send 255", "announce", "initialize to active")
		r.wantTimer(time.Second)
	})
	t.Run("any other starts backup", func(t *testing.T) {
		r := newRig(t, func(c *MachineConfig) { c.Priority = 254 })
		wantActions(t, describe(r.m.Startup(r.now, false)), "initialize to backup")
		r.wantTimer(3007812500)
	})
	t.Run("starting twice changes nothing", func(t *testing.T) {
		r := activeRig(t, nil)
		wantActions(t, describe(r.m.Startup(r.now, false)))
		r.wantState(Active)
	})
}

func TestBackupResetsItsTimer(t *testing.T) {
	const full = 3609375 * time.Microsecond
	for _, tt := range []struct {
		name     string
		preempt  bool
		priority uint8 // heard
		resets   bool
	}{
		{"higher", true, 101, true},
		{"equal", true, 100, true},
		{"lower", true, 99, false},
		{"lower, no preemption", false, 99, true},
		{"higher, no preemption", false, 101, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(c *MachineConfig) { c.Preempt = tt.preempt })
			r.m.Startup(r.now, false)
			r.now = r.now.Add(time.Second)
			wantActions(t, r.hear(lower, tt.priority))
			if tt.resets {
				r.wantTimer(full)
			} else {
				r.wantTimer(full - time.Second)
			}
		})
	}
}

func TestActiveHears(t *testing.T) {
	for _, tt := range []struct {
		name     string
		source   netip.Addr
		priority uint8
		yields   bool
	}{
		{"higher priority", lower, 101, true},
		{"owner", lower, 255, true},
		{"equal priority from a higher address", upper, 100, true},
		{"equal priority from a lower address", lower, 100, false},
		{"lower priority from a higher address", upper, 99, false},
		// 192.0.2.2 is negative as a signed number.
		{"equal priority from an address that is lower unsigned only", addr("10.0.0.1"), 100, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := activeRig(t, nil)
			r.now = r.now.Add(200 * time.Millisecond)
			got := r.hear(tt.source, tt.priority)
			if tt.yields {
				wantActions(t, got, "remove", "active to backup")
				r.wantTimer(3609375 * time.Microsecond)
				return
			}
			wantActions(t, got, "send 100", "announce")
			r.wantState(Active)
			r.wantTimer(time.Second)
		})
	}
}

func TestOwnerPreemptsWhateverIsConfigured(t *testing.T) {
	r := activeRig(t, func(c *MachineConfig) { c.Priority, c.Preempt, c.PreemptDelay = PriorityOwner, false, time.Hour })
	r.hear(upper, 255) // another owner, by mistake
	r.wantState(Backup)
	before, _ := r.m.Deadline()
	r.now = r.now.Add(time.Second)
	r.hear(lower, 100)
	if after, _ := r.m.Deadline(); after != before {
		t.Errorf("timer was reset by a lower priority: got %v, want %v", after, before)
	}
}

func TestAdvertisesEveryInterval(t *testing.T) {
	r := activeRig(t, v3(10*time.Millisecond))
	for range 5 {
		wantActions(t, r.expire(), "send 100")
		r.wantTimer(10 * time.Millisecond)
	}
	// A millisecond late: the next one is on time.
	d, _ := r.m.Deadline()
	r.now = d.Add(time.Millisecond)
	wantActions(t, describe(r.m.Expire(r.now)), "send 100")
	r.wantTimer(9 * time.Millisecond)
	// After a long pause one is sent, not hundreds.
	r.now = r.now.Add(5 * time.Second)
	wantActions(t, describe(r.m.Expire(r.now)), "send 100")
	r.wantTimer(10 * time.Millisecond)
}

func TestPreemptDelay(t *testing.T) {
	delayed := func(c *MachineConfig) { c.PreemptDelay = 10 * time.Second }
	t.Run("holds back while a lower priority is active", func(t *testing.T) {
		r := newRig(t, delayed)
		r.m.Startup(r.now, false)
		first := r.now.Add(time.Second)
		var active time.Time
		for active.IsZero() {
			r.now = r.now.Add(time.Second)
			if d, _ := r.m.Deadline(); d.Before(r.now) {
				r.m.Expire(d)
				active = d
				break
			}
			r.hear(lower, 99)
		}
		r.wantState(Active)
		// Heard first at 1 s, held back until 11 s, the timer last reset at 10 s.
		if got, want := active.Sub(first), 9*time.Second+3609375*time.Microsecond; got != want {
			t.Errorf("took over %v after hearing the peer, want %v", got, want)
		}
	})
	t.Run("does not wait where nobody is heard", func(t *testing.T) {
		r := newRig(t, delayed)
		r.m.Startup(r.now, false)
		r.expire()
		r.wantState(Active)
		if got := r.now.Sub(epoch); got != 3609375*time.Microsecond {
			t.Errorf("took over after %v", got)
		}
	})
	t.Run("does not wait for a peer that falls silent", func(t *testing.T) {
		r := newRig(t, delayed)
		r.m.Startup(r.now, false)
		r.hear(lower, 99)
		r.expire()
		r.wantState(Active)
		if got := r.now.Sub(epoch); got != 3609375*time.Microsecond {
			t.Errorf("took over after %v", got)
		}
	})
	t.Run("begins again after a peer of higher priority", func(t *testing.T) {
		r := newRig(t, delayed)
		r.m.Startup(r.now, false)
		r.hear(lower, 99)
		r.now = r.now.Add(2 * time.Second)
		r.hear(upper, 101)
		r.now = r.now.Add(9 * time.Second)
		r.m.Expire(epoch) // not due: only the clock of this test moved
		r.hear(lower, 99)
		r.wantTimer(3609375 * time.Microsecond)
	})
}

func TestPriorityChange(t *testing.T) {
	t.Run("active advertises the new one", func(t *testing.T) {
		r := activeRig(t, nil)
		wantActions(t, describe(r.m.SetPriority(98)))
		wantActions(t, r.expire(), "send 98")
		wantActions(t, r.hear(lower, 99), "remove", "active to backup")
	})
	t.Run("backup keeps the silence so far", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		r.now = r.now.Add(2 * time.Second)
		r.m.SetPriority(228) // skew 28/256 s
		r.wantTimer(time.Second + 109375*time.Microsecond)
		r.m.SetPriority(100)
		r.wantTimer(time.Second + 609375*time.Microsecond)
	})
	t.Run("raised above the active node it preempts", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		r.hear(lower, 150)
		r.m.SetPriority(200)
		r.hear(lower, 150)
		r.wantTimer(3*time.Second + 56*time.Second/256)
		r.expire()
		r.wantState(Active)
	})
	t.Run("after a fault the new one counts", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Fault("a check fails")
		r.m.SetPriority(50)
		r.m.Startup(r.now, false)
		r.wantTimer(3*time.Second + 206*time.Second/256)
	})
}
