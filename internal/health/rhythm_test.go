package health

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := range 20 {
			f, one := newFakes(), target(n)
			f.took = 300 * time.Millisecond
			c := f.checker(t)
			set := time.Now()
			c.Set([]Target{one})
			pass(10 * time.Second)
			if first := f.starts[0].Sub(set); first >= 100*time.Millisecond {
				t.Errorf("target %d: first run after %v, want less than 100ms", n, first)
			}
			for i := 1; i < len(f.starts); i++ {
				gap := f.starts[i].Sub(f.starts[i-1])
				if i == 1 && (gap < 500*time.Millisecond || gap > 1500*time.Millisecond) {
					t.Errorf("target %d: %v from the first to the second run, want half to one and a half intervals", n, gap)
				}
				if i > 1 && gap != time.Second {
					t.Errorf("target %d: %v from run %d to run %d, want 1s", n, gap, i, i+1)
				}
			}
			if len(f.starts) < 9 {
				t.Errorf("target %d: %d runs in 10s", n, len(f.starts))
			}
			c.Close()
		}
	})
}

// A thousand targets with one interval are spread over it, and over the first
// 100 ms at the start.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var targets []Target
		for i := range 1000 {
			one := target(0)
			one.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100 + byte(i/250), byte(i % 250)}), 80)
			targets = append(targets, one)
		}
		f := newFakes()
		c := f.checker(t)
		began := time.Now()
		c.Set(targets)
		pass(10 * time.Second)
		var first, later [10]int // tenths of the first 100 ms, and of the fifth second
		for _, s := range f.starts {
			switch at := s.Sub(began); {
			case at < 100*time.Millisecond:
				first[at/(10*time.Millisecond)]++
			case at >= 5*time.Second && at < 6*time.Second:
				later[(at-5*time.Second)/(100*time.Millisecond)]++
			}
		}
		for name, counts := range map[string][10]int{"first 100 ms": first, "an interval": later} {
			sum := 0
			for _, n := range counts {
				sum += n
			}
			// 100 on average, with a standard deviation below 10.
			if sum != 1000 || slices.Max(counts[:]) > 150 || slices.Min(counts[:]) < 50 {
				t.Errorf("runs per tenth of %s: %v", name, counts)
			}
		}
	})
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one := newFakes(), target(1)
		f.took = time.Hour
		c := f.checker(t)
		c.Set([]Target{one})
		pass(time.Second)
		got := status(t, c, one)
		if got.Verdict != Down || got.LastDuration != 500*time.Millisecond {
			t.Errorf("run without end: %v after %v, want down after 500ms", got.Verdict, got.LastDuration)
		}
	})
}

func TestRunsNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one := newFakes(), target(1)
		one.Probe.Timeout = time.Hour
		f.took = 2300 * time.Millisecond
		c := f.checker(t)
		c.Set([]Target{one})
		pass(30 * time.Second)
		if f.most != 1 {
			t.Errorf("%d runs at once", f.most)
		}
		// The moments that pass during a run are left out: one run per 3 s.
		for i := 2; i < len(f.starts); i++ {
			if gap := f.starts[i].Sub(f.starts[i-1]); gap != 3*time.Second {
				t.Errorf("%v from run %d to run %d, want 3s", gap, i, i+1)
			}
		}
		if n := len(f.starts); n < 10 {
			t.Errorf("%d runs in 30s", n)
		}
	})
}
