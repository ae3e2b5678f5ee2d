// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHandOver(t *testing.T) {
	// begun is a node that has begun to hand over.
	begun := func(t *testing.T, change func(*MachineConfig)) *rig {
		r := activeRig(t, change)
		wantActions(t, describe(r.m.HandOver(r.now)), "send 0")
		r.wantState(Active)
		wantActions(t, describe(r.m.HandOver(r.now))) // asking twice changes nothing
		return r
	}
	// over is one that has handed over to a node of lower priority.
	over := func(t *testing.T, change func(*MachineConfig)) *rig {
		r := begun(t, change)
		r.now = r.now.Add(700 * time.Millisecond)
		wantActions(t, r.hear(lower, 99), "remove", "active to backup", "handed over to 192.0.2.1")
		return r
	}
	// lives has the peer advertise for a while; nothing may come of it.
	lives := func(t *testing.T, r *rig, priority uint8) {
		t.Helper()
		for range 20 {
			r.now = r.now.Add(r.m.cfg.Interval)
			wantActions(t, r.hear(lower, priority))
			wantActions(t, describe(r.m.Expire(r.now)))
		}
	}
	t.Run("stays backup of a lower priority", func(t *testing.T) {
		r := over(t, nil)
		lives(t, r, 99)
		r.wantTimer(3609375 * time.Microsecond)
	})
	t.Run("the owner stays backup, too, also after a fault", func(t *testing.T) {
		r := over(t, func(c *MachineConfig) { c.Priority = PriorityOwner })
		lives(t, r, 99)
		r.m.Fault("x")
		wantActions(t, describe(r.m.Startup(r.now, false)), "fault to backup")
		lives(t, r, 99)
	})
	t.Run("takes over when the peer dies, and preempts from then on", func(t *testing.T) {
		r := over(t, nil)
		lives(t, r, 99)
		wantActions(t, r.expire(), "send 100", "add", "announce", "backup to active")
		wantActions(t, r.hear(upper, 101), "remove", "active to backup")
		wantActions(t, r.hear(lower, 99))
		r.wantTimer(3609375 * time.Microsecond)
		r.now = r.now.Add(time.Second)
		wantActions(t, r.hear(lower, 99))
		r.wantTimer(2609375 * time.Microsecond)
	})
	t.Run("takes over when the peer gives up", func(t *testing.T) {
		r := over(t, nil)
		wantActions(t, r.hear(lower, PriorityRelease))
		r.wantTimer(609375 * time.Microsecond)
		wantActions(t, r.expire(), "add", "send 100", "announce", "backup to active")
	})
	t.Run("preempts a third node that came after the peer's death", func(t *testing.T) {
		r := over(t, nil)
		r.now = r.now.Add(3100 * time.Millisecond)
		wantActions(t, r.hear(upper, 98))
		r.wantTimer(509375 * time.Microsecond)
	})
	t.Run("does not preempt a third node that preempts the peer", func(t *testing.T) {
		r := over(t, nil)
		r.now = r.now.Add(900 * time.Millisecond)
		wantActions(t, r.hear(upper, 99))
		r.now = r.now.Add(900 * time.Millisecond)
		wantActions(t, r.hear(upper, 99))
		r.wantTimer(3609375 * time.Microsecond)
	})
	t.Run("goes on as active where nobody takes over", func(t *testing.T) {
		r := begun(t, nil)
		r.wantTimer(4609375 * time.Microsecond)
		wantActions(t, r.expire(), "send 100", "announce", "handed over to invalid IP")
		r.wantState(Active)
		r.wantTimer(time.Second)
		wantActions(t, r.expire(), "send 100")
	})
	t.Run("is nothing to a backup", func(t *testing.T) {
		r := newRig(t, nil)
		r.m.Startup(r.now, false)
		wantActions(t, describe(r.m.HandOver(r.now)))
	})
	t.Run("becomes a release", func(t *testing.T) {
		r := begun(t, nil)
		wantActions(t, describe(r.m.Release(r.now)))
		r.wantTimer(4609375 * time.Microsecond)
		wantActions(t, r.hear(lower, 99), "remove", "active to initialize", "released to 192.0.2.1")
	})
	t.Run("is cut short by a fault", func(t *testing.T) {
		wantActions(t, describe(begun(t, nil).m.Fault("interface eth0 is down")),
			"handed over to invalid IP", "send 0", "remove", "active to fault")
	})
	t.Run("is cut short by a shutdown", func(t *testing.T) {
		wantActions(t, describe(begun(t, nil).m.Shutdown()),
			"handed over to invalid IP", "send 0", "remove", "active to initialize")
	})
	t.Run("learns the interval of who took over", func(t *testing.T) {
		r := begun(t, v3(time.Second))
		r.m.Receive(r.now, Heard{Source: lower, Priority: 99, Interval: 200 * time.Millisecond})
		r.wantTimer(721875 * time.Microsecond)
	})
	t.Run("the operator ends it", func(t *testing.T) {
		r := over(t, nil)
		wantActions(t, describe(r.m.SetHold(r.now, false)))
		r.now = r.now.Add(time.Second)
		wantActions(t, r.hear(lower, 99))
		r.wantTimer(2609375 * time.Microsecond)
	})
}

func TestHold(t *testing.T) {
	held := func(t *testing.T, change func(*MachineConfig)) *rig {
		r := newRig(t, change)
		wantActions(t, describe(r.m.SetHold(r.now, true)))
		wantActions(t, describe(r.m.Startup(r.now, false)), "initialize to backup")
		return r
	}
	wantSilent := func(t *testing.T, r *rig, want bool) {
		t.Helper()
		if _, _, got := r.m.StandsBack(); got != want {
			t.Errorf("silent: %v, want %v", got, want)
		}
	}
	t.Run("does not preempt", func(t *testing.T) {
		r := held(t, nil)
		wantActions(t, r.hear(lower, 99))
		r.now = r.now.Add(time.Second)
		wantActions(t, r.hear(lower, 99))
		r.wantTimer(3609375 * time.Microsecond)
	})
	t.Run("takes over neither for a goodbye nor for silence", func(t *testing.T) {
		r := held(t, nil)
		wantActions(t, r.hear(lower, PriorityRelease))
		wantActions(t, r.expire())
		if _, runs := r.m.Deadline(); runs {
			t.Error("a timer runs")
		}
		wantSilent(t, r, true)
		wantActions(t, describe(r.m.SetPriority(50))) // nor does this start a timer
		if _, runs := r.m.Deadline(); runs {
			t.Error("a timer runs")
		}
		wantActions(t, r.hear(lower, 99))
		wantSilent(t, r, false)
	})
	t.Run("its end in silence", func(t *testing.T) {
		r := held(t, nil)
		wantActions(t, r.expire())
		wantActions(t, describe(r.m.SetHold(r.now, false)))
		wantSilent(t, r, false)
		r.wantTimer(609375 * time.Microsecond)
		wantActions(t, r.expire(), "send 100", "add", "announce", "backup to active")
	})
	t.Run("the owner of the addresses", func(t *testing.T) {
		r := held(t, func(c *MachineConfig) { c.Priority = PriorityOwner })
		wantActions(t, r.hear(lower, 99))
		wantActions(t, describe(r.m.SetHold(r.now, false)))
		wantActions(t, r.expire(), "send 255", "add", "announce", "backup to active")
	})
	t.Run("an active node stays", func(t *testing.T) {
		r := activeRig(t, nil)
		wantActions(t, describe(r.m.SetHold(r.now, true)))
		wantActions(t, r.expire(), "send 100")
	})
}

// handoverPair is a pair whose first node is Active.
func handoverPair(t *testing.T) (a, b *node) {
	s := newSegment()
	a, b = newNode(t, s, 1), newNode(t, s, 2)
	a.run(nil)
	b.run(func(c *Config) { c.Priority = 99 })
	sleep(5 * time.Second)
	a.wantState(Active)
	b.wantState(Backup)
	return a, b
}

func TestRouterHandOver(t *testing.T) {
	virtual(t, "and back", func(t *testing.T) {
		a, b := handoverPair(t)
		h, err := a.router.HandOver(t.Context())
		if want := (Handover{WasActive: true, Peer: b.link.Source}); err != nil || h != want {
			t.Fatalf("got %+v, %v, want %+v", h, err, want)
		}
		sleep(time.Hour)
		a.wantState(Backup)
		b.wantState(Active)
		if s := a.router.Status(); !s.Yielded || s.Held || s.Releasing || s.Reason != "handed over to 192.0.2.2" || a.holds() {
			t.Errorf("got status %+v, holds the VIP: %v", s, a.holds())
		}
		if h, err = b.router.HandOver(t.Context()); err != nil || h.Peer != a.link.Source {
			t.Errorf("back: got %+v, %v", h, err)
		}
		sleep(time.Hour)
		a.wantState(Active)
		b.wantState(Backup)
		if s := a.router.Status(); s.Yielded {
			t.Error("it still leaves the VIP to its peer")
		}
	})
	virtual(t, "nobody is there", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		began := time.Now()
		n.taken()
		h, err := n.router.HandOver(t.Context())
		if want := (Handover{WasActive: true}); err != nil || h != want {
			t.Fatalf("got %+v, %v, want %+v", h, err, want)
		}
		if got, want := time.Since(began), 4609375*time.Microsecond; got != want {
			t.Errorf("waited %v, want %v", got, want)
		}
		wantActions(t, n.taken(), "send 0", "send 100", "announce")
		n.wantState(Active)
		if s := n.router.Status(); s.Releasing {
			t.Error("status says that it goes on")
		}
	})
	virtual(t, "held", func(t *testing.T) {
		a, b := handoverPair(t)
		if _, err := a.router.HandOver(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.router.Hold(true)
		b.crash()
		sleep(time.Minute)
		a.wantState(Backup)
		if s := a.router.Status(); !s.Held || !s.Silent {
			t.Errorf("got status %+v", s)
		}
		if n := a.log.count("the vips are nowhere"); n != 1 {
			t.Errorf("the log says %d times that nobody has the VIP", n)
		}
		a.router.Hold(false)
		sleep(time.Second)
		a.wantState(Active)
		if s := a.router.Status(); s.Held || s.Silent || s.Yielded {
			t.Errorf("got status %+v", s)
		}
	})
	virtual(t, "held from the start", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.setUp = func(r *Router) {
			r.Hold(true)
			if !r.Status().Held {
				t.Error("before it runs, status does not say that it is held")
			}
		}
		n.run(func(c *Config) { c.Priority = PriorityOwner })
		sleep(time.Minute)
		n.wantState(Backup)
	})
	virtual(t, "released before the end", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		var h Handover
		var err error
		done := make(chan struct{})
		go func() { defer close(done); h, err = n.router.HandOver(context.Background()) }()
		synctest.Wait()
		if _, busy := n.router.HandOver(t.Context()); !errors.Is(busy, ErrBusy) {
			t.Errorf("a second one: got error %v", busy)
		}
		if _, err := n.router.Release(t.Context()); err != nil {
			t.Error(err)
		}
		<-done
		if diff := cmp.Diff(Handover{WasActive: true}, h, cmpAddr); diff != "" || err != nil {
			t.Errorf("error %v, (-want +got):\n%s", err, diff)
		}
		if !n.holds() {
			t.Error("the VIP is gone")
		}
	})
	virtual(t, "where there is nothing to hand over", func(t *testing.T) {
		_, b := handoverPair(t)
		if h, err := b.router.HandOver(t.Context()); err != nil || h.WasActive {
			t.Errorf("a backup: got %+v, %v", h, err)
		}
		b.stop()
		<-b.ended
		if _, err := b.router.HandOver(t.Context()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("one that has stopped: got error %v", err)
		}
	})
	virtual(t, "the caller gives up", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.router.HandOver(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		sleep(5 * time.Second)
		n.wantState(Active)
		if s := n.router.Status(); s.Releasing {
			t.Error("it goes on for ever")
		}
	})
}

func TestReleaseWait(t *testing.T) {
	for _, tt := range []struct {
		name     string
		version  Version
		interval time.Duration
		want     time.Duration
	}{
		{"the classic pair", V2, time.Second, 4996093750},
		{"the longest of version 2", V2, 255 * time.Second, 1020*time.Second + 996093750},
		{"short intervals", V3, 10 * time.Millisecond, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Version, cfg.Interval, cfg.Password = tt.version, tt.interval, ""
			r, err := New(cfg, Deps{Log: discard})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.ReleaseWait(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
