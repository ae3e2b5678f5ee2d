package health

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What two users have in common is probed once, and stays as long as one of them wants
// it; both are told of what changes.
func TestShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		runs := map[netip.AddrPort]int{}
		failing := false
		c := newChecker(slog.New(slog.DiscardHandler), func(_ context.Context, target Target) error {
			mu.Lock()
			defer mu.Unlock()
			runs[target.Address]++
			if failing {
				return errors.New("down")
			}
			return nil
		})
		defer c.Close()
		at := func(n byte) Target {
			return Target{
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 80),
				Probe:   lb.Probe{Type: lb.ProbeTCP, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1},
			}
		}
		took := func() map[netip.AddrPort]int {
			mu.Lock()
			defer mu.Unlock()
			was := runs
			runs = map[netip.AddrPort]int{}
			return was
		}
		a, b := c.Share(), c.Share()
		a.Set([]Target{at(1), at(2)})
		b.Set([]Target{at(2), at(3)})
		<-a.Ready()
		<-a.Changed()
		<-b.Changed()
		took()
		time.Sleep(10 * time.Second)
		for target, n := range took() {
			if n != 10 {
				t.Errorf("%v was probed %d times in 10 s", target, n)
			}
		}
		a.Set(nil)
		time.Sleep(time.Second)
		took()
		time.Sleep(10 * time.Second)
		if got := took(); len(got) != 2 || got[at(2).Address] != 10 || got[at(3).Address] != 10 {
			t.Errorf("what one of them wants: %v", got)
		}
		mu.Lock()
		failing = true
		mu.Unlock()
		<-b.Changed()
		<-a.Changed()
		time.Sleep(time.Second)
		if s, ok := b.Status(at(3)); !ok || s.Verdict != Down {
			t.Errorf("status %+v, %v", s, ok)
		}
	})
}

// Who has another probe from now on goes on with the verdict of the one before, also where
// that goes on for somebody else.
func TestShareTakesOverFromWhatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChecker(slog.New(slog.DiscardHandler), func(context.Context, Target) error { return errors.New("down") })
		defer c.Close()
		at := func(path string) Target {
			return Target{
				Address: netip.MustParseAddrPort("192.0.2.1:80"),
				Probe:   lb.Probe{Type: lb.ProbeHTTP, Pages: []lb.Page{{Path: path}}, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1},
			}
		}
		a, b := c.Share(), c.Share()
		a.Set([]Target{at("/a")})
		b.Set([]Target{at("/a"), at("/b")})
		<-a.Ready()
		b.Set([]Target{at("/b"), at("/c")})
		if s, ok := b.Status(at("/c")); !ok || s.Verdict != Down {
			t.Errorf("the new probe: %+v, %v", s, ok)
		}
		a.Set([]Target{at("/c")})
		if s, ok := a.Status(at("/c")); !ok || s.Verdict != Down {
			t.Errorf("of the other one: %+v, %v", s, ok)
		}
		b.Set([]Target{at("/b"), at("/c"), at("/d")}) // nobody has left anything
		if s, ok := b.Status(at("/d")); !ok || s.Verdict != Unknown {
			t.Errorf("one that is no other's successor: %+v, %v", s, ok)
		}
	})
}
