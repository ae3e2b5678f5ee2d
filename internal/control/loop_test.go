package control

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// healthy gives both servers of webService a verdict and a next hop.
func healthy(w *fakeWorld) {
	w.lead("192.0.2.11", 11)
	w.lead("192.0.2.12", 12)
	w.know("192.0.2.11:80", health.Up)
	w.know("192.0.2.12:80", health.Up)
}

func wantCounts(t *testing.T, w *fakeWorld, when string, tries, applied int) {
	t.Helper()
	synctest.Wait()
	if gotTries, gotApplied := w.counts(); gotTries != tries || gotApplied != applied {
		t.Fatalf("%s: Apply was called %d times and went well %d times, want %d and %d", when, gotTries, gotApplied, tries, applied)
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestLoopTellsItsHelpersWhatToFollow(t *testing.T) {
	second := webService()
	second.Name, second.Addresses = "other", []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.100:8080"))}
	unprobed := webService()
	unprobed.Pool.Probe = nil
	unprobed.Pool.Servers = []lb.Server{{Address: netip.MustParseAddr("192.0.2.1"), Port: 99}}
	runLoop(t, time.Second, []lb.Service{webService(), second, unprobed}, func(t *testing.T, _ *Loop, w *fakeWorld) {
		want := []health.Target{
			{Address: netip.MustParseAddrPort("192.0.2.12:80"), Probe: *probe},
			{Address: netip.MustParseAddrPort("192.0.2.11:80"), Probe: *probe},
			{Address: netip.MustParseAddrPort("192.0.2.12:8080"), Probe: *probe},
			{Address: netip.MustParseAddrPort("192.0.2.11:8080"), Probe: *probe},
		}
		if diff := cmp.Diff(want, w.targets, cmpAddresses); diff != "" {
			t.Errorf("targets (-want +got):\n%s", diff)
		}
		addresses := []netip.Addr{
			netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12"),
		}
		if diff := cmp.Diff(addresses, w.followed, cmpAddresses); diff != "" {
			t.Errorf("next hops (-want +got):\n%s", diff)
		}
	})
}

func TestLoopWritesNothingBeforeTheFirstVerdicts(t *testing.T) {
	const patience = 10 * time.Second
	runLoop(t, patience, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		l.Dirty()
		time.Sleep(patience - time.Millisecond)
		wantCounts(t, w, "before every server is probed", 0, 0)
		if views, problem := l.Views(); len(views) != 0 || problem != "" {
			t.Errorf("got views %v and problem %q before the first look", views, problem)
		}
		close(w.ready)
		wantCounts(t, w, "after every server is probed", 1, 1)
		if !isClosed(l.Applied()) {
			t.Error("Applied is open after the first Apply")
		}
	})
}

func TestLoopWaitsNoLongerThanItsPatience(t *testing.T) {
	const patience = 10 * time.Second
	runLoop(t, patience, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		w.mu.Lock()
		delete(w.verdicts, netip.MustParseAddrPort("192.0.2.12:80"))
		w.mu.Unlock()
		time.Sleep(patience - time.Millisecond)
		wantCounts(t, w, "before the time is over", 0, 0)
		if isClosed(l.Applied()) {
			t.Error("Applied is closed before any Apply")
		}
		time.Sleep(2 * time.Millisecond)
		wantCounts(t, w, "after the time is over", 1, 1)
		// The server without a verdict gets nothing; the backup stands in.
		want := []lb.Backend{
			{Address: netip.MustParseAddrPort("192.0.2.11:80"), Weight: 1, NextHop: hopTo(11)},
			{Address: netip.MustParseAddrPort("192.0.2.12:80"), NextHop: hopTo(12)},
		}
		if diff := cmp.Diff(want, w.last(t).Services[0].Backends, cmpAddresses); diff != "" {
			t.Errorf("backends (-want +got):\n%s", diff)
		}
	})
}

// A server that has failed, and not often enough for a verdict, is not waited for where its
// service has as many others as it needs; where it has not, the service is down, or below
// its quorum, by a verdict only.
func TestLoopWaitsForVerdictsThatDecide(t *testing.T) {
	const patience = 10 * time.Second
	const backup, one, two = "192.0.2.11:80", "192.0.2.12:80", "192.0.2.13:80"
	service := webService()
	service.Pool.Servers = append(service.Pool.Servers, lb.Server{Address: netip.MustParseAddr("192.0.2.13"), Weight: 1})
	disabled := func(w *fakeWorld) {
		if _, err := w.changes.Apply(Change{Action: Disable, Scope: service.Name, Address: "192.0.2.13"}, []lb.Service{service}); err != nil {
			t.Error(err)
		}
	}
	for _, tc := range []struct {
		name   string
		quorum int
		change func(*fakeWorld)
		waits  bool
		idle   []string // in the data plane of before
	}{
		{"all have verdicts, and there is no way to one", 1, func(w *fakeWorld) { w.mislead("192.0.2.12") }, false, nil},
		{"nor are all there that are wanted", 3, func(w *fakeWorld) { w.mislead("192.0.2.12") }, false, nil},
		{"one has failed, and an operator has disabled it", 1, func(w *fakeWorld) { w.fails(two); disabled(w) }, false, nil},
		{"one of two has failed", 1, func(w *fakeWorld) { w.fails(two) }, false, nil},
		{"and the backup", 1, func(w *fakeWorld) { w.fails(two); w.fails(backup) }, false, nil},
		{"both have, and the backup would serve", 1, func(w *fakeWorld) { w.fails(one); w.fails(two) }, true, nil},
		{"one is down, and the other one has failed", 1, func(w *fakeWorld) { w.know(one, health.Down); w.fails(two) }, true, nil},
		{"all have", 1, func(w *fakeWorld) { w.fails(one); w.fails(two); w.fails(backup) }, true, nil},
		{"all are wanted", 3, func(w *fakeWorld) { w.fails(two) }, true, nil},
		{"the other one is not probed yet", 1, func(w *fakeWorld) { w.fails(two); w.know(backup, health.Unknown) }, true, nil},
		{"there is no way to the other one", 1, func(w *fakeWorld) { w.fails(two); w.mislead("192.0.2.12") }, true, nil},
		{"all have, and did before", 1, func(w *fakeWorld) { w.fails(one); w.fails(two); w.fails(backup) }, false, []string{one, two, backup}},
		{"all have, and did before, and there is no way to one that is up", 1, func(w *fakeWorld) { w.fails(one); w.mislead("192.0.2.13"); w.fails(backup) },
			false, []string{one, two, backup}},
		{"all have, and one served before", 1, func(w *fakeWorld) { w.fails(one); w.fails(two); w.fails(backup) }, true, []string{one, backup}},
		{"one has not been probed yet, and served nothing before", 1, func(w *fakeWorld) { w.fails(one); w.fails(two); w.know(backup, health.Unknown) },
			true, []string{one, two, backup}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			service := service
			service.Quorum = tc.quorum
			before := func(l *Loop) {
				stats := loader.ServiceStats{Addresses: service.Addresses, Protocol: service.Protocol}
				for _, a := range []string{one, two, backup} {
					b := loader.BackendStats{Address: netip.MustParseAddrPort(a)}
					if !slices.Contains(tc.idle, a) {
						b.Slots = 7
					}
					stats.Backends = append(stats.Backends, b)
				}
				w := l.tables.(*fakeWorld)
				w.stats.Services = []loader.ServiceStats{stats}
				w.changes.path = filepath.Join(t.TempDir(), "overrides.json")
			}
			runLoopWith(t, patience, []lb.Service{service}, before, func(t *testing.T, _ *Loop, w *fakeWorld) {
				healthy(w)
				w.lead("192.0.2.13", 13)
				w.know(two, health.Up)
				tc.change(w)
				w.say("192.0.2.99:80", health.Up) // something has changed
				wantCounts(t, w, "before the first results of all", 0, 0)
				close(w.ready)
				if tc.waits {
					wantCounts(t, w, "before the verdicts", 0, 0)
					for _, a := range []string{backup, one, two} {
						if w.verdicts[netip.MustParseAddrPort(a)].Verdict == health.Unknown {
							w.know(a, health.Down)
						}
					}
					w.say("192.0.2.99:80", health.Up)
				}
				wantCounts(t, w, "when what decides is known", 1, 1)
			})
		})
	}
}

func TestLoopAppliesEachChangeOnce(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		close(w.ready)
		wantCounts(t, w, "at start", 1, 1)

		// Nothing has changed about services: nothing is written.
		l.Dirty()
		time.Sleep(time.Minute)
		wantCounts(t, w, "after a look that finds nothing", 1, 1)
		if w.looks < 2 {
			t.Errorf("the interfaces were looked at %d times, want once for each look", w.looks)
		}

		// A failed primary gives way to the backup at once.
		w.say("192.0.2.12:80", health.Down)
		wantCounts(t, w, "after a verdict", 2, 2)
		want := []lb.Backend{
			{Address: netip.MustParseAddrPort("192.0.2.11:80"), Weight: 1, NextHop: hopTo(11)},
			{Address: netip.MustParseAddrPort("192.0.2.12:80"), Failed: true, NextHop: hopTo(12)},
		}
		if diff := cmp.Diff(want, w.last(t).Services[0].Backends, cmpAddresses); diff != "" {
			t.Errorf("backends after a failure (-want +got):\n%s", diff)
		}

		// A neighbour that moved is a change, too, and several events are one.
		w.lead("192.0.2.11", 99)
		l.Dirty()
		l.Dirty()
		w.say("192.0.2.12:80", health.Down)
		time.Sleep(time.Minute)
		wantCounts(t, w, "after a neighbour moved", 3, 3)
		if got := w.last(t).Services[0].Backends[0].NextHop; got != hopTo(99) {
			t.Errorf("next hop %v, want %v", got, hopTo(99))
		}
	})
}

func TestLoopRetriesAWriteThatFailed(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		w.refuse(errRefused)
		close(w.ready)
		wantCounts(t, w, "at start", 1, 0)
		if isClosed(l.Applied()) {
			t.Error("Applied is closed although Apply failed")
		}
		views, problem := l.Views()
		if want := "write the data plane: no room"; problem != want {
			t.Errorf("problem %q, want %q", problem, want)
		}
		if len(views) != 1 || views[0].Serving() != 1 {
			t.Errorf("views %v, want those of the world as it is", views)
		}
		time.Sleep(retryAfter - time.Millisecond)
		wantCounts(t, w, "just before the retry", 1, 0)
		time.Sleep(2 * time.Millisecond)
		wantCounts(t, w, "after the retry", 2, 0)

		w.refuse(nil)
		time.Sleep(retryAfter)
		wantCounts(t, w, "after the next retry", 3, 1)
		if !isClosed(l.Applied()) {
			t.Error("Applied is open after Apply")
		}
		if _, problem := l.Views(); problem != "" {
			t.Errorf("problem %q after Apply went well", problem)
		}
		time.Sleep(time.Minute)
		wantCounts(t, w, "a minute later", 3, 1)

		// What failed to be written later is known to be missing as well: going
		// back to what was applied before is no way out.
		w.refuse(errRefused)
		w.say("192.0.2.12:80", health.Down)
		wantCounts(t, w, "after a change that is refused", 4, 1)
		w.say("192.0.2.12:80", health.Up)
		w.refuse(nil)
		time.Sleep(time.Minute)
		if tries, applied := w.counts(); applied != 2 || tries < 5 {
			t.Errorf("Apply was called %d times and went well %d times, want the old state written again", tries, applied)
		}
	})
}

// Who reads that a server serves may rely on it.
func TestLoopWritesBeforeItReports(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		w.onApply = func() {
			if views, _ := l.Views(); len(views) > 0 && views[0].Serving() > 0 {
				t.Errorf("views say that %d servers serve before the write", views[0].Serving())
			}
		}
		w.know("192.0.2.11:80", health.Down)
		w.know("192.0.2.12:80", health.Down)
		close(w.ready)
		wantCounts(t, w, "at start", 1, 1)
		w.say("192.0.2.12:80", health.Up)
		wantCounts(t, w, "after a verdict", 2, 2)
		if views, _ := l.Views(); views[0].Serving() != 1 {
			t.Errorf("views say that %d servers serve after the write, want 1", views[0].Serving())
		}
	})
}

func TestLoopReportsServicesThatGoDownAndComeBack(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		close(w.ready)
		synctest.Wait()
		for _, step := range []struct {
			name             string
			verdict          health.Verdict
			healthy, serving int
		}{
			{"all fail", health.Down, 0, 0},
			{"all are back", health.Up, 2, 1},
		} {
			w.say("192.0.2.11:80", step.verdict)
			w.say("192.0.2.12:80", step.verdict)
			synctest.Wait()
			views, _ := l.Views()
			if views[0].Healthy() != step.healthy || views[0].Serving() != step.serving {
				t.Errorf("%s: %d healthy and %d serving, want %d and %d", step.name,
					views[0].Healthy(), views[0].Serving(), step.healthy, step.serving)
			}
		}
	})
}

// The data plane is maintained once a second, but not before it holds something.
func TestLoopMaintains(t *testing.T) {
	runLoop(t, time.Hour, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := w.maintained(); n != 0 {
			t.Errorf("maintained %d times before the first Apply", n)
		}
		close(w.ready)
		synctest.Wait()
		before := w.maintained()
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if n := w.maintained() - before; n < 9 || n > 10 {
			t.Errorf("maintained %d times in 10 s", n)
		}
		w.mu.Lock()
		w.untidy = errRefused
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, problem := l.Views(); problem != errRefused.Error() {
			t.Errorf("problem %q, want %q", problem, errRefused)
		}
		w.mu.Lock()
		w.untidy = nil
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, problem := l.Views(); problem != "" {
			t.Errorf("problem %q after maintenance went well", problem)
		}
	})
}

// A service that nobody serves yet is there all the same.
func TestUnserved(t *testing.T) {
	got := Unserved([]lb.Service{webService()})
	if len(got.Services) != 1 || got.Services[0].Name != "web" || len(got.Services[0].Backends) != 0 {
		t.Errorf("got %+v", got)
	}
}
