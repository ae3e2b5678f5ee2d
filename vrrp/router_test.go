// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// virtual runs a test in virtual time.
func virtual(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestRouterTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		n.wantState(Backup)
		sleep(3600 * time.Millisecond)
		if got := n.taken(); got != nil {
			t.Fatalf("a backup did %v", got)
		}
		sleep(10 * time.Millisecond)
		// Advertisement, address, gratuitous ARP.
		wantActions(t, n.taken(), "send 100", "add", "announce")
		n.wantState(Active)
		sleep(3100 * time.Millisecond)
		wantActions(t, n.taken(), "announce", "send 100", "announce", "send 100", "send 100", "announce")
		s := n.router.Status()
		if s.Sent != 4 || s.Reason != "no active node heard for 3.609375s" || s.Source != n.link.Source {
			t.Errorf("got status %+v", s)
		}
		if diff := cmp.Diff(prefixes("192.0.2.100/24"), s.Addresses, cmpAddr); diff != "" {
			t.Errorf("addresses (-want +got):\n%s", diff)
		}
		sleep(59 * time.Second)
		n.taken()
		sleep(time.Second)
		if got := n.taken(); !slices.Contains(got, "announce") {
			t.Errorf("a minute later it did %v, want an announcement too", got)
		}
	})
}

func TestRouterPair(t *testing.T) {
	pair := func(t *testing.T, change func(*Config)) (a, b *node) {
		s := newSegment()
		a, b = newNode(t, s, 1), newNode(t, s, 2)
		a.run(change)
		b.run(func(c *Config) {
			if change != nil {
				change(c)
			}
			c.Priority = 99
		})
		sleep(5 * time.Second)
		a.wantState(Active)
		b.wantState(Backup)
		return a, b
	}
	wantOne := func(t *testing.T, holder, other *node) {
		t.Helper()
		holder.wantState(Active)
		if !holder.holds() || other.holds() {
			t.Fatalf("the vip is on the wrong node: on the active one %v, on the other %v", holder.holds(), other.holds())
		}
	}
	virtual(t, "one is active", func(t *testing.T) {
		a, b := pair(t, nil)
		wantOne(t, a, b)
		sleep(time.Hour)
		wantOne(t, a, b)
		s := b.router.Status()
		want := Peer{Address: a.link.Source, Priority: 100, Interval: time.Second, Heard: s.Peer.Heard}
		if diff := cmp.Diff(want, s.Peer, cmpAddr); diff != "" || time.Since(s.Peer.Heard) > time.Second {
			t.Errorf("peer (-want +got):\n%s", diff)
		}
	})
	virtual(t, "the other takes over and the first comes back", func(t *testing.T) {
		a, b := pair(t, nil)
		died := time.Now()
		a.crash()
		sleep(3700 * time.Millisecond)
		b.wantState(Active)
		if took := b.router.Status().Since.Sub(died); took > 3*time.Second+157*time.Second/256 {
			t.Errorf("takeover took %v", took)
		}
		if !a.holds() {
			t.Fatal("the crashed node lost its address in this test")
		}
		a.cut.Store(false)
		a.run(nil)
		sleep(time.Second)
		a.wantState(Backup)
		wantOne(t, b, a) // what it held went when the other was heard
		sleep(4 * time.Second)
		wantOne(t, a, b)
		if r := a.router.Status().Reason; r != "preempting 192.0.2.2 with priority 99" {
			t.Errorf("got reason %q", r)
		}
	})
	virtual(t, "without preemption it stays where it is", func(t *testing.T) {
		change := func(c *Config) { c.Preempt = false }
		a, b := pair(t, change)
		a.crash()
		sleep(5 * time.Second)
		a.cut.Store(false)
		a.run(change)
		sleep(time.Hour)
		a.wantState(Backup)
		wantOne(t, b, a)
	})
	virtual(t, "a planned stop loses nothing", func(t *testing.T) {
		a, b := pair(t, nil)
		h, err := a.router.Release(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if !h.WasActive || h.Peer != b.link.Source {
			t.Errorf("got %+v, want that %v took over", h, b.link.Source)
		}
		wantOne(t, b, a)
		<-a.ended
		if s := a.router.Status(); s.State != Initialize || s.Reason != "released: 192.0.2.2 took over" {
			t.Errorf("got state %v, %q", s.State, s.Reason)
		}
		// The old one removes only after the new one has advertised; the
		// new one has the address by then or a moment later.
		j := a.taken()
		if i, k := slices.Index(j, "send 0"), slices.Index(j, "remove"); i < 0 || k < i {
			t.Errorf("the old one did %v", j)
		}
	})
	virtual(t, "a split brain heals", func(t *testing.T) {
		a, b := pair(t, nil)
		a.cut.Store(true)
		sleep(5 * time.Second)
		b.wantState(Active)
		// It hears b, whose priority is lower, and stays.
		a.wantState(Active)
		a.taken()
		a.cut.Store(false)
		sleep(time.Second)
		b.wantState(Backup)
		wantOne(t, a, b)
		if got := a.taken(); !slices.Contains(got, "announce") {
			t.Errorf("it did %v, want an announcement too", got)
		}
	})
	virtual(t, "equal priorities", func(t *testing.T) {
		s := newSegment()
		a, b := newNode(t, s, 1), newNode(t, s, 2)
		// Whoever is first to be heard stays: the tie is one of two that are
		// Active before they hear of each other.
		a.cut.Store(true)
		b.cut.Store(true)
		a.run(nil)
		b.run(nil)
		sleep(5 * time.Second)
		a.wantState(Active)
		b.wantState(Active)
		a.cut.Store(false)
		b.cut.Store(false)
		sleep(5 * time.Second)
		wantOne(t, b, a) // the higher address
	})
	virtual(t, "v3 at 10 ms with different intervals", func(t *testing.T) {
		a, b := pair(t, func(c *Config) { c.Version, c.Password, c.Interval = V3, "", 10*time.Millisecond })
		wantOne(t, a, b)
		died := time.Now()
		a.crash()
		sleep(40 * time.Millisecond)
		wantOne(t, b, &node{})
		if took := b.router.Status().Since.Sub(died); took > 40*time.Millisecond {
			t.Errorf("takeover took %v", took)
		}
	})
	virtual(t, "priority lowered and raised", func(t *testing.T) {
		a, b := pair(t, nil)
		if err := a.router.SetPriority(98); err != nil {
			t.Fatal(err)
		}
		sleep(5 * time.Second)
		wantOne(t, b, a)
		if p := a.router.Status().Priority; p != 98 {
			t.Errorf("got priority %d, want 98", p)
		}
		if err := a.router.SetPriority(100); err != nil {
			t.Fatal(err)
		}
		sleep(5 * time.Second)
		wantOne(t, a, b)
	})
	virtual(t, "a fault and its end", func(t *testing.T) {
		a, b := pair(t, nil)
		a.router.Fault("check web_ok fails")
		a.wantState(Active) // until somebody takes over
		sleep(time.Second)
		wantOne(t, b, a)
		a.wantState(Fault)
		if r := a.router.Status().Reason; r != "check web_ok fails" {
			t.Errorf("got reason %q", r)
		}
		a.router.ClearFault()
		sleep(5 * time.Second)
		wantOne(t, a, b)
	})
	virtual(t, "stopping without release", func(t *testing.T) {
		a, b := pair(t, nil)
		a.stop()
		<-a.ended
		if a.holds() {
			t.Error("the vip is still on the stopped node")
		}
		sleep(time.Second)
		wantOne(t, b, a)
	})
}

func TestRouterRelease(t *testing.T) {
	virtual(t, "nobody takes over and the vip stays", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.wantState(Active)
		n.taken()
		began := time.Now()
		h, err := n.router.Release(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if !h.WasActive || h.TookOver() {
			t.Errorf("got %+v, want that nobody took over", h)
		}
		if got, want := time.Since(began), 4609375*time.Microsecond; got != want {
			t.Errorf("waited %v, want %v", got, want)
		}
		<-n.ended
		wantActions(t, n.taken(), "send 0")
		if s := n.router.Status(); !n.holds() || s.State != Initialize || !strings.Contains(s.Reason, "no peer took over") {
			t.Errorf("vip held: %v, state %v, %q", n.holds(), s.State, s.Reason)
		}
	})
	virtual(t, "a backup just stops", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		h, err := n.router.Release(context.Background())
		if err != nil || h.WasActive {
			t.Errorf("got %+v, error %v", h, err)
		}
		<-n.ended
		wantActions(t, n.taken())
	})
	virtual(t, "the caller gives up", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := n.router.Release(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		if !n.router.Status().Releasing {
			t.Error("the release itself has ended too")
		}
		n.stop() // cuts the wait short
		<-n.ended
		if !n.holds() {
			t.Error("the vip was removed though nobody took over")
		}
	})
	virtual(t, "not running", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Release(context.Background()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("before: got error %v", err)
		}
		n.run(nil)
		n.stop()
		<-n.ended
		if _, err := n.router.Release(context.Background()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after: got error %v", err)
		}
		if err := n.router.Run(context.Background()); err == nil {
			t.Error("running a second time: got no error")
		}
	})
}
