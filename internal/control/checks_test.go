package control

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// byCheck is webService, as healthy as a check.
func byCheck(check string) lb.Service {
	s := webService()
	s.Pool.Probe = &lb.Probe{Type: lb.ProbeCheck, Check: check}
	return s
}

func TestServersAsHealthyAsACheck(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verdict health.Verdict
		state   ServerState
		why     string
	}{
		{"passes", health.Up, ServerUp, ""},
		{"fails", health.Down, ServerDown, "check ok fails: no answer"},
		{"no result", health.Unknown, ServerUnknown, "check ok has no result yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newFakeWorld()
			w.lead("192.0.2.11", 1)
			w.lead("192.0.2.12", 2)
			w.checks["ok"] = tt.verdict
			for _, s := range view(byCheck("ok"), w).Servers {
				if s.State != tt.state || s.Why != tt.why {
					t.Errorf("%v is %s: %q, want %s: %q", s.Address, s.State, s.Why, tt.state, tt.why)
				}
			}
		})
	}
}

// weights are those of the servers of the only service.
func weights(t *testing.T, w *fakeWorld) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, b := range w.last(t).Services[0].Backends {
		if !b.Failed {
			all[b.Address.String()] = b.Weight
		}
	}
	return all
}

// The loop waits for the check's first verdict as for those of probes, probes none of
// the servers itself, and follows the check from then on.
func TestLoopFollowsACheck(t *testing.T) {
	runLoop(t, time.Minute, []lb.Service{byCheck("ok")}, func(t *testing.T, l *Loop, w *fakeWorld) {
		w.lead("192.0.2.11", 1)
		w.lead("192.0.2.12", 2)
		close(w.ready)
		l.Dirty()
		synctest.Wait()
		if _, applied := w.counts(); applied != 0 {
			t.Fatal("the loop has not waited for the check")
		}
		w.mu.Lock()
		if len(w.targets) > 0 {
			t.Errorf("targets %v, want none", w.targets)
		}
		w.mu.Unlock()
		for _, step := range []struct {
			name    string
			verdict health.Verdict
			want    map[string]int
		}{
			{"passes", health.Up, map[string]int{"192.0.2.12:80": 3, "192.0.2.11:80": 0}},
			{"fails", health.Down, map[string]int{}},
			{"passes again", health.Up, map[string]int{"192.0.2.12:80": 3, "192.0.2.11:80": 0}},
		} {
			w.decide("ok", step.verdict)
			l.Dirty()
			synctest.Wait()
			if diff := cmp.Diff(step.want, weights(t, w)); diff != "" {
				t.Errorf("%s: weights (-want +got):\n%s", step.name, diff)
			}
		}
	})
}

// A check that has no verdict keeps the loop waiting no longer than its patience.
func TestLoopIsPatientWithACheck(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{byCheck("ok")}, func(t *testing.T, _ *Loop, w *fakeWorld) {
		close(w.ready)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, applied := w.counts(); applied != 1 {
			t.Errorf("applied %d times after the patience, want once", applied)
		}
	})
}

// A reload that makes a check the health of servers waits for its verdict while the
// services of before serve; one that fails is a verdict, too.
func TestReloadWaitsForACheck(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verdict health.Verdict
	}{{"passes", health.Up}, {"fails", health.Down}} {
		t.Run(tt.name, func(t *testing.T) {
			runReload(t, func(r *reloadRig) {
				next := byCheck("ok")
				// Without a way to it; nobody waits for that of a server that is down.
				next.Pool.Servers = append(next.Pool.Servers, lb.Server{Address: netip.MustParseAddr("192.0.2.13"), Weight: 1})
				r.begin(next)
				if tt.verdict == health.Up {
					r.lead("192.0.2.13", 3)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				select {
				case err := <-r.done:
					t.Fatalf("the reload has not waited: %v", err)
				default:
				}
				r.decide("ok", tt.verdict)
				r.loop.Dirty()
				synctest.Wait()
				select {
				case err := <-r.done:
					if err != nil {
						t.Fatal(err)
					}
				default:
					t.Fatal("the reload waits although there is a verdict")
				}
				views, _ := r.loop.Views()
				want := map[health.Verdict]ServerState{health.Up: ServerUp, health.Down: ServerDown}[tt.verdict]
				for _, s := range views[0].Servers {
					if s.State != want {
						t.Errorf("%v is %s, want %s", s.Address, s.State, want)
					}
				}
			})
		})
	}
}

// One that names a check of before waits for nothing: what is known is known.
func TestReloadWithACheckOfBefore(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{byCheck("ok")}, func(t *testing.T, l *Loop, w *fakeWorld) {
		w.lead("192.0.2.11", 1)
		w.lead("192.0.2.12", 2)
		close(w.ready)
		time.Sleep(2 * time.Second) // the patience is over, without a verdict
		synctest.Wait()
		r := &reloadRig{T: t, fakeWorld: w, loop: l, fail: nil}
		other := byCheck("ok")
		other.Quorum = 2
		began := time.Now()
		r.begin(other)
		if err := <-r.done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the reload took %v", took)
		}
	})
}

// Where nobody has told the loop of checks, none is known.
func TestLoopWithoutChecks(t *testing.T) {
	l := &Loop{}
	if v, why := l.check("ok"); v != health.Unknown || why != "" || l.decided([]string{"ok"}) || !l.decided(nil) {
		t.Errorf("got %v, %q", v, why)
	}
}
