package health

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestSetKeepsState(t *testing.T) {
	http := func(n int, path string) Target {
		one := target(n)
		one.Probe.Type, one.Probe.Pages, one.Probe.Body = lb.ProbeHTTP, []lb.Page{{Path: path}}, regexp.MustCompile("ok")
		return one
	}
	faster := http(1, "/")
	faster.Probe.Interval = 100 * time.Millisecond
	elsewhere := http(1, "/")
	elsewhere.Probe.Port = 8080
	for _, tt := range []struct {
		name    string
		before  []Target
		down    bool // all of before
		after   Target
		verdict Verdict
		kept    bool // the counts, too
	}{
		{"the same, built anew", []Target{http(1, "/")}, false, http(1, "/"), Up, true},
		{"the same, down", []Target{http(1, "/")}, true, http(1, "/"), Down, true},
		{"another beside it", []Target{http(1, "/"), http(2, "/")}, false, http(1, "/"), Up, true},
		{"another interval", []Target{http(1, "/")}, false, faster, Up, true},
		{"another path", []Target{http(1, "/")}, false, http(1, "/new"), Up, false},
		{"another path, down", []Target{http(1, "/")}, true, http(1, "/new"), Down, false},
		{"another type", []Target{http(1, "/")}, false, target(1), Up, false},
		{"another port", []Target{http(1, "/")}, false, elsewhere, Unknown, false},
		{"another address", []Target{http(1, "/")}, false, http(2, "/"), Unknown, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakes()
				if tt.down {
					for _, b := range tt.before {
						f.set(b, errRefused)
					}
				}
				c := f.checker(t)
				c.Set(tt.before)
				pass(5 * time.Second)
				want := status(t, c, tt.before[0])
				c.Set([]Target{tt.after})
				got := status(t, c, tt.after)
				if got.Verdict != tt.verdict {
					t.Errorf("verdict after the change: got %v, want %v", got.Verdict, tt.verdict)
				}
				if kept := got.Checks == want.Checks && got.Since.Equal(want.Since); kept != tt.kept {
					t.Errorf("kept its state: got %v, want %v:\nbefore %+v\nafter  %+v", kept, tt.kept, want, got)
				}
				if n := len(c.Statuses()); n != 1 {
					t.Errorf("%d targets after the change, want 1", n)
				}
			})
		})
	}
}

// The verdict of a replaced probe stands only until the first result.
func TestSetReplacedProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, old, replaced := newFakes(), target(1), target(1)
		replaced.Probe.Type, replaced.Probe.Pages = lb.ProbeHTTP, []lb.Page{{Path: "/"}}
		c := f.checker(t)
		c.Set([]Target{old})
		pass(3 * time.Second)
		f.set(replaced, errRefused)
		c.Set([]Target{replaced})
		if got := c.Verdict(replaced); got != Up || !isClosed(c.Ready()) {
			t.Errorf("before the first result: %v, ready %v, want up and ready", got, isClosed(c.Ready()))
		}
		pass(100 * time.Millisecond)
		if got := c.Verdict(replaced); got != Down {
			t.Errorf("after the first result: %v, want down", got)
		}
	})
}

func TestSetSameTargetOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mapped := target(1)
		mapped.Address = netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")
		other := target(1)
		other.Address = netip.AddrPortFrom(other.Address.Addr(), 443)
		other.Probe.Port = 80
		f := newFakes()
		c := f.checker(t)
		c.Set([]Target{target(1), target(1), mapped, other})
		pass(100 * time.Millisecond)
		if n := f.runs(); n != 1 {
			t.Errorf("%d first runs, want 1", n)
		}
		for _, one := range []Target{target(1), mapped, other} {
			if got := c.Verdict(one); got != Up {
				t.Errorf("verdict on %v: %v, want up", one, got)
			}
		}
	})
}

// A target that goes and comes back, or changes its rhythm, while a run is under
// way: the result of that run is dropped and the next one waits for its end.
func TestSetDuringRun(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 2 * time.Second} {
		t.Run(fmt.Sprintf("back with interval %v", interval), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, one := newFakes(), target(1)
				f.took, f.deaf = 400*time.Millisecond, 5*time.Second
				c := f.checker(t)
				c.Set([]Target{one})
				pass(200 * time.Millisecond)
				if n := f.runs(); n != 1 {
					t.Fatalf("%d runs, want one under way", n)
				}
				c.Set(nil)
				if _, ok := c.Status(one); ok {
					t.Error("a target that was removed has a status")
				}
				back := one
				back.Probe.Interval = interval
				c.Set([]Target{back})
				pass(4 * time.Second)
				if got := status(t, c, back); got.Checks != 0 {
					t.Errorf("the result of a run that was broken off counts: %+v", got)
				}
				pass(2 * time.Second)
				if got := c.Verdict(back); got != Up || f.most != 1 {
					t.Errorf("got %v with %d runs at once, want up with 1", got, f.most)
				}
			})
		})
	}
}

// A result that comes in just as Set removes its target counts for nothing.
func TestResultAfterRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		c := f.checker(t)
		c.Set([]Target{target(1)})
		removed := c.runners[target(1).Identity()]
		f.took = 200 * time.Millisecond
		c.Set([]Target{target(2)})
		c.record(removed, time.Now(), nil)
		if isClosed(c.Ready()) || isClosed(c.Changed()) {
			t.Error("the result of a target that was removed is taken for that of another")
		}
	})
}

func TestInheritFromSeveral(t *testing.T) {
	ago := time.Now().Add(-time.Hour)
	old := func(path string, v Verdict) *runner {
		one := target(1)
		one.Probe.Type, one.Probe.Pages = lb.ProbeHTTP, []lb.Page{{Path: path}}
		r := newRunner(one, nil)
		r.status.Verdict, r.status.Since = v, ago
		return r
	}
	for _, tt := range []struct {
		name    string
		removed []*runner
		want    Verdict
	}{
		{"nothing", nil, Unknown},
		{"no verdict", []*runner{old("/a", Unknown)}, Unknown},
		{"both down", []*runner{old("/a", Down), old("/b", Down)}, Down},
		{"down and unknown", []*runner{old("/a", Down), old("/b", Unknown)}, Down},
		{"down and up", []*runner{old("/a", Down), old("/b", Up)}, Up},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRunner(target(1), nil)
			r.inherit(tt.removed)
			if r.status.Verdict != tt.want || r.decided || r.status.Checks != 0 {
				t.Errorf("got %v, decided %v, %d checks, want %v undecided without checks",
					r.status.Verdict, r.decided, r.status.Checks, tt.want)
			}
			if r.status.Since.IsZero() != (tt.want == Unknown) {
				t.Errorf("verdict %v since %v", tt.want, r.status.Since)
			}
		})
	}
}
