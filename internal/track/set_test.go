package track

import (
	"regexp"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// another is a Router beside the fakeWorld.
type another struct{ *fakeWorld }

func (a another) SetPriority(p uint8) error { a.note("another: priority %d", p); return nil }
func (a another) Fault(reason string)       { a.note("another: fault: %s", reason) }
func (a another) ClearFault()               { a.note("another: no fault") }

// Checks and instances that are the same go on; others come, go and change.
func TestSet(t *testing.T) {
	down := tracked(lb.TrackCheck, "web_ok", -2)
	runTracker(t, []lb.Check{webCheck(nil)}, []lb.Tracked{down}, nil, func(t *testing.T, k *Tracker, w *fakeWorld) {
		instance := func(priority uint8, track ...lb.Tracked) Instance {
			return Instance{Name: "VI_1", Priority: priority, Track: track, StartTimeout: 4 * time.Second, Router: w}
		}
		w.after(500 * time.Millisecond)
		w.fail("web_ok", "refused")
		w.after(4 * time.Second)
		w.want(t, "3s priority 98")

		// The same once more: no run is out of turn, and nothing happens.
		before := k.Checks()[0]
		k.Set([]lb.Check{webCheck(nil)}, []Instance{instance(100, down)})
		w.want(t)
		if after := k.Checks()[0]; after.LastRun != before.LastRun || after.Since != before.Since || after.Verdict != health.Down {
			t.Errorf("the check is %+v, was %+v", after, before)
		}
		if !isReady(k) {
			t.Error("the instance is not ready any more")
		}

		// The priority, and what is tracked.
		k.Set([]lb.Check{webCheck(nil)}, []Instance{instance(150, down)})
		w.want(t, "4.001s priority 148")
		k.Set([]lb.Check{webCheck(nil)}, []Instance{instance(150, tracked(lb.TrackCheck, "web_ok", 0))})
		w.want(t, "4.001s priority 150", "4.001s fault: check web_ok fails: refused")
		k.Set([]lb.Check{webCheck(nil)}, []Instance{instance(150)})
		w.want(t, "4.001s no fault")
		if got := k.Standing(0); got.Priority != 150 || len(got.Items) != 0 {
			t.Errorf("the standing is %+v", got)
		}

		// A check that is another one now keeps its verdict until it has passed, or
		// failed, often enough.
		other := webCheck(nil)
		other.Process, other.Fall = "other", 2
		k.Set([]lb.Check{other}, []Instance{instance(150, down)})
		w.want(t, "4.001s priority 148")
		w.fail("web_ok", "")
		w.after(4500 * time.Millisecond)
		w.want(t)
		w.after(6500 * time.Millisecond)
		w.want(t, "6.001s priority 150")
		w.fail("web_ok", "gone")
		w.after(8500 * time.Millisecond)
		w.want(t, "8.001s priority 148")

		// Another Router begins anew, and waits for its first verdicts alone.
		slow := lb.Check{Name: "slow", Type: lb.CheckProcess, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1}
		w.set(func() { w.takes = 500 * time.Millisecond })
		k.Set([]lb.Check{other, slow}, []Instance{instance(150, down), {
			Name: "VI_2", Priority: 90, Track: []lb.Tracked{tracked(lb.TrackCheck, "slow", 5)}, StartTimeout: 4 * time.Second, Router: another{w},
		}})
		w.want(t)
		if !isReady(k) {
			t.Error("the first instance is not ready any more")
		}
		select {
		case <-k.Ready(1):
			t.Error("the second one has not waited")
		default:
		}
		w.after(9500 * time.Millisecond)
		w.want(t, "9.001s another: priority 95")
		<-k.Ready(1)

		// Nothing is left of what is taken away.
		k.Set(nil, nil)
		w.after(20 * time.Second)
		w.want(t)
		if n := len(k.Checks()); n != 0 {
			t.Errorf("%d checks", n)
		}
		w.set(func() { w.ran = 0 })
		w.after(30 * time.Second)
		w.set(func() {
			if w.ran != 0 {
				t.Errorf("a check that is gone has run %d times", w.ran)
			}
		})
	})
}

// Checks that are read anew are the same if all that they say is.
func TestSameCheck(t *testing.T) {
	check := func() lb.Check {
		return lb.Check{
			Name: "c", Type: lb.CheckUDP, Body: regexp.MustCompile("a"), Expect: regexp.MustCompile("b"), Send: "x",
			TLS: lb.TLS{CA: "ca"}, URLs: []lb.URL{{Path: "/"}}, Recover: &lb.Recover{Attempts: 1},
		}
	}
	if !sameCheck(check(), check()) {
		t.Error("the same is not the same")
	}
	for name, change := range map[string]func(*lb.Check){
		"body":     func(c *lb.Check) { c.Body = regexp.MustCompile("b") },
		"no body":  func(c *lb.Check) { c.Body = nil },
		"expect":   func(c *lb.Check) { c.Expect = regexp.MustCompile("a") },
		"send":     func(c *lb.Check) { c.Send = "" },
		"query":    func(c *lb.Check) { c.Query.Name = "." },
		"ca":       func(c *lb.Check) { c.TLS.CA = "" },
		"https":    func(c *lb.Check) { c.URLs[0].TLS = true },
		"attempts": func(c *lb.Check) { c.Recover.Attempts = 2 },
	} {
		other := check()
		change(&other)
		if sameCheck(check(), other) {
			t.Errorf("%s: another one is the same", name)
		}
	}
}
