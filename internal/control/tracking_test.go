package control

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/track"
)

// Whoever tracks a service is told when it falls below its quorum, and when it is
// back.
func TestLoopTellsOfQuorums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		service := webService()
		service.Quorum = 2
		l := NewLoop([]lb.Service{service}, w, fakeChecker{w}, fakeHops{w}, fakePaths{w}, w.changes, slog.New(slog.DiscardHandler))
		var told atomic.Int32
		l.Tell(func() { told.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { l.Run(ctx, time.Hour) })
		want := func(when string, wantKnown bool, wantProblem string, news bool) {
			t.Helper()
			synctest.Wait()
			if known, problem := l.Quorum("web"); known != wantKnown || problem != wantProblem {
				t.Errorf("%s: known %v, problem %q, want %v, %q", when, known, problem, wantKnown, wantProblem)
			}
			if got := told.Swap(0) > 0; got != news {
				t.Errorf("%s: told %v, want %v", when, got, news)
			}
		}
		want("before the first verdicts", false, "", false)
		healthy(w)
		close(w.ready)
		want("all healthy", true, "", true)
		w.say("192.0.2.12:80", health.Down)
		want("one is down", true, "below its quorum: 1 healthy, 2 wanted", true)
		w.say("192.0.2.12:80", health.Up)
		want("it is back", true, "", true)
		if known, _ := l.Quorum("none"); known {
			t.Error("a service that is not there is known")
		}
		cancel()
		done.Wait()
	})
}

func TestTrackingInAStatus(t *testing.T) {
	if got := NewTracking(track.Standing{Base: 100, Priority: 100}); got != nil {
		t.Errorf("nothing tracked: got %+v", got)
	}
	s := track.Standing{Base: 100, Priority: 98, Fault: "interface eth1 is down", Items: []track.Item{
		{Tracked: lb.Tracked{Kind: lb.TrackCheck, Name: "web_ok", Weight: -2}, State: track.Failing, Why: "check web_ok fails: refused", Effect: -2},
		{Tracked: lb.Tracked{Kind: lb.TrackInterface, Name: "eth1"}, State: track.Failing, Why: "interface eth1 is down", Faults: true},
	}}
	want := &Tracking{Base: 100, Priority: 98, Sum: "98 = 100 - 2 (web_ok)", Fault: "interface eth1 is down", Items: []TrackedItem{
		{Kind: "check", Name: "web_ok", Weight: -2, State: "failing", Why: "check web_ok fails: refused", Effect: -2},
		{Kind: "interface", Name: "eth1", State: "failing", Why: "interface eth1 is down", Faults: true},
	}}
	if diff := cmp.Diff(want, NewTracking(s)); diff != "" {
		t.Errorf("tracking (-want +got):\n%s", diff)
	}
}

func TestChecksInAStatus(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := Checks([]track.CheckStatus{
		{Check: lb.Check{Name: "new", Type: lb.CheckExec}},
		{Check: lb.Check{Name: "web_ok", Type: lb.CheckHTTP}, Verdict: health.Down, Since: at, Why: "refused", Attempts: 1, Exhausted: true,
			LastRun: at.Add(time.Second), LastDuration: time.Millisecond, LastError: "timeout"},
	})
	later := at.Add(time.Second)
	want := []CheckStatus{
		{Name: "new", Type: "exec", Verdict: "unknown"},
		{Name: "web_ok", Type: "http", Verdict: "down", Since: &at, Why: "refused", Attempts: 1, Exhausted: true,
			LastRun: &later, Took: time.Millisecond, LastError: "timeout"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
}
