package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A fakeWorld is a World, a Router, and a diary of what both were asked for.
type fakeWorld struct {
	began time.Time

	mu       sync.Mutex
	results  map[string]error // of checks; absent: it passes
	takes    time.Duration    // by a run of a check
	links    map[string]error
	services map[string]string    // absent: not known
	onHeal   func([]string) error // what a recovery does
	healing  int                  // recoveries that are under way
	ran      int                  // runs of checks
	diary    []string
}

func (w *fakeWorld) world() World {
	return World{Run: w.run, Recover: w.heal, Link: w.link, Service: w.service}
}

// note takes down what happened, with the time since the start.
func (w *fakeWorld) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.diary = append(w.diary, fmt.Sprintf("%v ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

func (w *fakeWorld) run(ctx context.Context, c lb.Check) error {
	w.mu.Lock()
	takes, healing := w.takes, w.healing
	w.ran++
	w.mu.Unlock()
	if healing > 0 {
		w.note("check %s runs beside its recovery", c.Name)
	}
	if !wait(ctx, takes) {
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.results[c.Name]
}

func (w *fakeWorld) heal(_ context.Context, args []string) error {
	w.note("recover %v", args)
	w.mu.Lock()
	f := w.onHeal
	w.healing++
	w.mu.Unlock()
	var err error
	if f != nil {
		err = f(args)
	}
	w.mu.Lock()
	w.healing--
	w.mu.Unlock()
	return err
}

func (w *fakeWorld) link(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.links[name]
}

func (w *fakeWorld) service(name string) (bool, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	problem, known := w.services[name]
	return known, problem
}

// A fakeWorld is every instance's Router.
func (w *fakeWorld) SetPriority(p uint8) error { w.note("priority %d", p); return nil }
func (w *fakeWorld) Fault(reason string)       { w.note("fault: %s", reason) }
func (w *fakeWorld) ClearFault()               { w.note("no fault") }

// set changes what the world answers.
func (w *fakeWorld) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// fail sets the result of a check: "" is a pass.
func (w *fakeWorld) fail(check, why string) {
	w.set(func() {
		delete(w.results, check)
		if why != "" {
			w.results[check] = errors.New(why)
		}
	})
}

// want compares what has happened since the last call.
func (w *fakeWorld) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	got := w.diary
	w.diary = nil
	w.mu.Unlock()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// after lets virtual time pass until some time after the start. Half a step more
// keeps it out of the way of what happens then.
func (w *fakeWorld) after(d time.Duration) {
	time.Sleep(time.Until(w.began.Add(d + time.Millisecond)))
	synctest.Wait()
}

// runTracker runs a tracker of one instance of priority 100 in virtual time until
// f returns.
func runTracker(t *testing.T, checks []lb.Check, track []lb.Tracked, before func(*fakeWorld), f func(*testing.T, *Tracker, *fakeWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{began: time.Now(), results: map[string]error{}, links: map[string]error{}, services: map[string]string{}}
		if before != nil {
			before(w)
		}
		instances := []Instance{{Name: "VI_1", Priority: 100, Track: track, StartTimeout: 4 * time.Second, Router: w}}
		k := New(checks, instances, w.world(), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { k.Run(ctx) })
		synctest.Wait()
		f(t, k, w)
		cancel()
		done.Wait()
	})
}

func isReady(k *Tracker) bool {
	select {
	case <-k.Ready(0):
		return true
	default:
		return false
	}
}

// webCheck runs once a second and wants three failures, or two passes.
func webCheck(r *lb.Recover) lb.Check {
	return lb.Check{Name: "web_ok", Type: lb.CheckProcess, Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3, Recover: r}
}

func tracked(kind lb.TrackKind, name string, weight int) lb.Tracked {
	return lb.Tracked{Kind: kind, Name: name, Weight: weight}
}
