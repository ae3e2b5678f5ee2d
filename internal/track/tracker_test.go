package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A check counts after Fall failures in a row, and again after Rise passes.
func TestCheckMovesThePriority(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(nil)}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -2)}, nil, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(0)
		if !isReady(k) {
			t.Error("the instance is not ready after the first run")
		}
		w.fail("web_ok", "refused")
		w.after(2 * time.Second) // two failures
		w.fail("web_ok", "")
		w.after(3 * time.Second)
		w.want(t)
		w.fail("web_ok", "refused")
		w.after(5 * time.Second)
		w.want(t)
		w.after(6 * time.Second)
		w.want(t, "6s priority 98")
		if got := k.Standing(0).Sum(); got != "98 = 100 - 2 (web_ok)" {
			t.Errorf("sum %q", got)
		}
		w.fail("web_ok", "")
		w.after(8 * time.Second)
		w.want(t, "8s priority 100")
		w.set(func() { w.results["web_ok"] = syscall.EMFILE }) // says nothing about the check
		w.after(20 * time.Second)
		w.want(t)
		if got := k.Checks()[0]; got.Verdict != health.Up || got.LastError != syscall.EMFILE.Error() {
			t.Errorf("verdict %v, last error %q", got.Verdict, got.LastError)
		}
	})
}

// The reason of a fault is that of the moment when the check failed: errors that
// differ from run to run are no news.
func TestCheckFaults(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(nil)}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", 0)}, func(w *fakeWorld) {
		w.fail("web_ok", "refused")
	}, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(0)
		w.want(t, "0s fault: check web_ok fails: refused")
		if !isReady(k) {
			t.Error("the instance is not ready after the first run")
		}
		w.fail("web_ok", "timeout")
		w.after(5 * time.Second)
		w.want(t)
		w.fail("web_ok", "")
		w.after(7 * time.Second)
		w.want(t, "7s no fault")
	})
}

func TestInterfacesAndServices(t *testing.T) {
	track := []lb.Tracked{tracked(lb.TrackInterface, "eth1", 0), tracked(lb.TrackService, "web", -10)}
	runTracker(t, nil, track, nil, func(t *testing.T, k *Tracker, w *fakeWorld) {
		if isReady(k) {
			t.Error("the instance is ready before its service is known")
		}
		w.set(func() { w.services["web"] = "down" })
		k.Dirty()
		w.want(t, "0s priority 90")
		if !isReady(k) {
			t.Error("the instance is not ready")
		}
		w.set(func() { w.links["eth1"] = errors.New("interface eth1 is down") })
		k.Dirty()
		w.want(t, "0s fault: interface eth1 is down")
		w.set(func() { w.services["web"] = ""; delete(w.links, "eth1") })
		w.after(lookEvery) // nobody has called
		w.want(t, "10s priority 100", "10s no fault")
	})
}

// An instance waits for what it tracks, but no longer than its start_timeout.
func TestStartTimeout(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(nil)}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", 0)}, func(w *fakeWorld) {
		w.takes = time.Minute
	}, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(3900 * time.Millisecond)
		if isReady(k) {
			t.Error("the instance has not waited")
		}
		w.after(4 * time.Second)
		if !isReady(k) {
			t.Error("the instance still waits")
		}
		w.want(t)
	})
}

// Nothing to wait for: an instance that tracks nothing is ready at once.
func TestReadyWithoutTracking(t *testing.T) {
	runTracker(t, nil, nil, nil, func(t *testing.T, k *Tracker, w *fakeWorld) {
		if !isReady(k) {
			t.Error("the instance waits")
		}
		w.want(t)
	})
}

func recovery(attempts int) *lb.Recover {
	return &lb.Recover{Command: []string{"restart", "nginx"}, Wait: 3 * time.Second, Attempts: attempts}
}

// The seed's script: restart, wait 3 s, look again. While that goes on the
// verdict stays, and so does the VIP.
func TestRecoveryHelps(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(recovery(1))}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -2)}, func(w *fakeWorld) {
		w.onHeal = func([]string) error {
			time.Sleep(2 * time.Second) // a restart takes longer than an interval
			w.fail("web_ok", "")
			return nil
		}
	}, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(0)
		w.fail("web_ok", "refused")
		w.after(3 * time.Second)
		w.want(t, "3s recover [restart nginx]")
		if got := k.Checks()[0]; got.Verdict != health.Up || !got.Recovering || got.Attempts != 1 {
			t.Errorf("while it recovers the verdict is %v, recovering %v, attempts %d", got.Verdict, got.Recovering, got.Attempts)
		}
		w.after(20 * time.Second)
		w.want(t) // neither another recovery nor another priority
		if got := k.Checks()[0]; got.Verdict != health.Up || got.Recovering || got.Attempts != 0 {
			t.Errorf("afterwards the verdict is %v, recovering %v, attempts %d", got.Verdict, got.Recovering, got.Attempts)
		}
		// It has passed twice since: there is an attempt again.
		w.fail("web_ok", "refused")
		w.after(24 * time.Second)
		w.want(t, "23s recover [restart nginx]")
	})
}

// After the last attempt the instance is in Fault although the check has a
// weight. No more is tried, and it comes back when the check passes.
func TestRecoveryInVain(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(recovery(2))}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -2)}, func(w *fakeWorld) {
		w.onHeal = func([]string) error { return errors.New("exit status 1") }
	}, func(t *testing.T, _ *Tracker, w *fakeWorld) {
		w.after(0)
		w.fail("web_ok", "refused")
		w.after(time.Minute)
		w.want(t, "3s recover [restart nginx]", "6s recover [restart nginx]",
			"9s fault: check web_ok fails, and recovery was in vain: refused")
		w.fail("web_ok", "")
		w.after(62 * time.Second)
		w.want(t, "1m2s no fault")
		w.fail("web_ok", "refused")
		w.after(66 * time.Second)
		w.want(t, "1m5s recover [restart nginx]")
	})
}

// What dies again right after each recovery is not recovered for ever.
func TestRecoveryThatDoesNotLast(t *testing.T) {
	check := webCheck(recovery(2))
	check.Rise = 5
	runTracker(t, []lb.Check{check}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -2)}, func(w *fakeWorld) {
		w.onHeal = func([]string) error {
			w.fail("web_ok", "")
			time.AfterFunc(3500*time.Millisecond, func() { w.fail("web_ok", "refused") })
			return nil
		}
	}, func(t *testing.T, _ *Tracker, w *fakeWorld) {
		w.after(0)
		w.fail("web_ok", "refused")
		w.after(time.Minute)
		w.want(t, "3s recover [restart nginx]", "9s recover [restart nginx]",
			"15s fault: check web_ok fails, and recovery was in vain: refused")
	})
}

// Start the web server before VRRP: the recovery of a check that has never passed
// comes before its first verdict, and the instance waits for that.
func TestRecoveryBeforeTheStart(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(recovery(1))}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", 0)}, func(w *fakeWorld) {
		w.fail("web_ok", "refused")
		w.onHeal = func([]string) error { w.fail("web_ok", ""); return nil }
	}, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(2 * time.Second)
		w.want(t, "0s recover [restart nginx]")
		if isReady(k) {
			t.Error("the instance does not wait for the recovery")
		}
		w.after(3 * time.Second)
		w.want(t)
		if got := k.Checks()[0].Verdict; got != health.Up || !isReady(k) {
			t.Errorf("verdict %v, ready %v", got, isReady(k))
		}
	})
}

// A run takes as long as it takes: the next one comes after it.
func TestRunsDoNotOverlap(t *testing.T) {
	runTracker(t, []lb.Check{webCheck(nil)}, []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -1)}, func(w *fakeWorld) {
		w.takes = 1500 * time.Millisecond
		w.fail("web_ok", "slow")
	}, func(t *testing.T, k *Tracker, w *fakeWorld) {
		w.after(1500 * time.Millisecond)
		w.want(t, "1.5s priority 99")
		w.fail("web_ok", "")
		w.after(4500 * time.Millisecond)
		w.want(t, "4.5s priority 100")
		if got := k.Checks()[0].LastDuration; got != 1500*time.Millisecond {
			t.Errorf("a run took %v", got)
		}
	})
}

// Who is told hears of each verdict, attempt and priority, once.
func TestTold(t *testing.T) {
	for _, tc := range []struct {
		name    string
		recover *lb.Recover
		heals   bool
		want    []string
	}{
		{"without recovery", nil, false, []string{
			"0s check unknown -> up", "3s check up -> down: refused", "3s priority 100 -> 98",
			"9s check down -> up", "9s priority 98 -> 100",
		}},
		{"recovery in vain", recovery(1), false, []string{
			"0s check unknown -> up", "3s recovering, attempt 1", "6s check up -> down: refused",
			"9s check down -> up",
		}},
		{"recovery helps", recovery(1), true, []string{
			"0s check unknown -> up", "3s recovering, attempt 1", "6s recovered",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorld{began: time.Now(), results: map[string]error{}, links: map[string]error{}, services: map[string]string{}}
				k := New([]lb.Check{webCheck(tc.recover)}, []Instance{{
					Name: "VI_1", Priority: 100, Track: []lb.Tracked{tracked(lb.TrackCheck, "web_ok", -2)}, StartTimeout: 4 * time.Second, Router: w,
				}}, w.world(), slog.New(slog.DiscardHandler))
				var mu sync.Mutex
				var got []string
				note := func(format string, args ...any) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, fmt.Sprintf("%v ", time.Since(w.began).Truncate(time.Second))+strings.TrimSuffix(fmt.Sprintf(format, args...), ": "))
				}
				k.Tell(Told{
					Check: func(before, now CheckStatus) {
						switch {
						case now.Recovering:
							note("recovering, attempt %d", now.Attempts)
						case before.Verdict == now.Verdict:
							note("recovered")
						default:
							note("check %v -> %v: %s", before.Verdict, now.Verdict, now.Why)
						}
					},
					Standing: func(_ string, before, now Standing) { note("priority %d -> %d", before.Priority, now.Priority) },
				})
				ctx, cancel := context.WithCancel(t.Context())
				var done sync.WaitGroup
				done.Go(func() { k.Run(ctx) })
				w.after(500 * time.Millisecond)
				w.fail("web_ok", "refused")
				w.after(4 * time.Second)
				if tc.heals {
					w.fail("web_ok", "")
				}
				w.after(7500 * time.Millisecond)
				w.fail("web_ok", "")
				w.after(20 * time.Second)
				cancel()
				done.Wait()
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			})
		})
	}
}
