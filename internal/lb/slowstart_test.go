package lb

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSlowStartAt(t *testing.T) {
	type result struct {
		Percent int
		Next    time.Duration
	}
	const s, ms = time.Second, time.Millisecond
	for _, tc := range []struct {
		name         string
		total, since time.Duration
		want         result
	}{
		{"at once", 19 * s, 0, result{5, s}},
		{"just before a step", 19 * s, s - 1, result{5, s}},
		{"at a step", 19 * s, s, result{10, 2 * s}},
		{"between steps", 19 * s, 9*s + 500*ms, result{50, 10 * s}},
		{"the last step", 19 * s, 18 * s, result{95, 19 * s}},
		{"over", 19 * s, 19 * s, result{100, 0}},
		{"long over", 19 * s, time.Hour, result{100, 0}},
		{"no more steps than seconds", 3 * s, s, result{36, 2 * s}},
		{"no more than 19 steps", 190 * s, 9 * s, result{5, 10 * s}},
		{"one second", s, 500 * ms, result{5, s}},
		{"less than a second", 300 * ms, 100 * ms, result{5, 300 * ms}},
		{"steps that are no whole nanoseconds", 20 * s, 0, result{5, 1052631579}},
		{"none", 0, 0, result{100, 0}},
		{"a day", 24 * time.Hour, 12 * time.Hour, result{50, 24 * time.Hour * 10 / 19}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got result
			got.Percent, got.Next = SlowStartAt(tc.total, tc.since)
			if tc.name == "a day" {
				got.Next = got.Next.Truncate(time.Microsecond)
				tc.want.Next = tc.want.Next.Truncate(time.Microsecond)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Following Next leads to the end in a bounded number of steps, each of which gives
// more, and none of which comes sooner than a second after the one before.
func TestSlowStartGrowsInSteps(t *testing.T) {
	for _, total := range []time.Duration{time.Second, 1500 * time.Millisecond, 7 * time.Second, 20 * time.Second, 30*time.Second + 1, 24 * time.Hour} {
		steps, percent, at := 0, 0, time.Duration(0)
		for percent < 100 {
			p, next := SlowStartAt(total, at)
			if p <= percent || p < 100 && next-at < LeastStep || steps > mostSteps {
				t.Fatalf("of %v, after %v: %d %% after %d %%, and %v to the next of %d steps", total, at, p, percent, next-at, steps)
			}
			percent, at = p, next
			steps++
		}
		if want := min(int(total/time.Second), mostSteps); steps-1 != want {
			t.Errorf("%v takes %d steps, want %d", total, steps-1, want)
		}
	}
}
