// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"log/slog"
	"testing"
	"time"
)

func newClock(t *testing.T) *clock {
	t.Helper()
	h := &Host{}
	c, err := h.openClock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func (c *clock) wait(t *testing.T) {
	t.Helper()
	select {
	case <-c.C:
	case <-time.After(15 * time.Second):
		t.Fatal("it never wakes anybody")
	}
}

func TestClock(t *testing.T) {
	t.Run("it wakes, and not before the time", func(t *testing.T) {
		c := newClock(t)
		for _, d := range []time.Duration{3 * time.Millisecond, time.Microsecond} {
			began := time.Now()
			c.set(d)
			c.wait(t)
			if took := time.Since(began); took < d {
				t.Errorf("it wakes after %v, want %v", took, d)
			}
		}
	})
	t.Run("what was set last counts", func(t *testing.T) {
		c := newClock(t)
		c.set(time.Hour)
		c.set(time.Millisecond)
		c.wait(t)
		c.set(time.Millisecond)
		c.set(time.Hour)
		select {
		case <-c.C: // the first was over before the second was set: the machine is busy
		case <-time.After(20 * time.Millisecond):
		}
		select {
		case <-c.C:
			t.Error("it wakes twice")
		case <-time.After(20 * time.Millisecond):
		}
	})
	t.Run("what is due already", func(t *testing.T) {
		c := newClock(t)
		for _, d := range []time.Duration{0, -time.Hour} {
			c.set(d)
			c.wait(t)
		}
	})
	t.Run("it makes no garbage", func(t *testing.T) {
		c := newClock(t)
		if n := testing.AllocsPerRun(100, func() { c.set(time.Hour) }); n > 0 {
			t.Errorf("setting it allocates %v times", n)
		}
	})
}

// A Router has a clock of the kernel's in fast mode, on a host that has one.
func TestWhoHasAClock(t *testing.T) {
	for _, tc := range []struct {
		name    string
		network Network
		beat    time.Duration
		want    bool
	}{
		{"in fast mode", &Host{}, beatInterval, true},
		{"without heartbeats", &Host{}, 0, false},
		{"on another network", &node{}, beatInterval, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &Router{cfg: Config{Heartbeat: tc.beat}, deps: Deps{Network: tc.network}, log: slog.New(slog.DiscardHandler)}
			w := r.openWakers()
			defer w.close()
			if got := w.clock != nil; got != tc.want {
				t.Errorf("it has one: %v, want %v", got, tc.want)
			}
			w.set(time.Now().Add(time.Millisecond))
			select {
			case <-w.timer.C:
			case <-w.sharp:
			case <-time.After(15 * time.Second):
				t.Error("nothing wakes it")
			}
		})
	}
}

// Where a node is gone, its VIPs are announced before they are on the interface, and
// once they are, again; where it lives, it has them until then.
func TestFastTakeoverAnnouncesFirst(t *testing.T) {
	fastNode := func(t *testing.T) *node {
		n, _ := fenced(t, newSegment(), 2)
		n.heartbeats = &fakeBeats{}
		n.run(func(c *Config) { c.Heartbeat = beatInterval })
		return n
	}
	beat := func(p uint8) Beat {
		return Beat{Node: NodeID{9}, Source: addr("192.0.2.9"), State: Active, Priority: p, Interval: beatInterval}
	}
	virtual(t, "the other node is gone", func(t *testing.T) {
		n := fastNode(t)
		n.router.Hear(beat(200))
		sleep(0)
		n.taken()
		sleep(silence(beatInterval) + time.Millisecond)
		n.wantState(Active)
		wantActions(t, n.taken(), "send 100", "hold", "announce", "add", "present", "announce")
	})
	virtual(t, "the other node lives, and is preempted", func(t *testing.T) {
		n := fastNode(t)
		n.taken()
		for range 1000 {
			if n.router.Status().State == Active {
				break
			}
			n.router.Hear(beat(50))
			sleep(beatInterval)
		}
		n.wantState(Active)
		wantActions(t, n.taken(), "hold", "add", "present", "send 100", "announce")
	})
}
