package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A reloadRig reloads the loop of a fakeWorld.
type reloadRig struct {
	*testing.T
	*fakeWorld
	loop *Loop

	mu    sync.Mutex
	diary []string // what Prepare, Finish and Undo saw
	fail  error    // what Prepare answers
	done  chan error
}

func runReload(t *testing.T, f func(*reloadRig)) {
	t.Helper()
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		close(w.ready)
		synctest.Wait()
		f(&reloadRig{T: t, fakeWorld: w, loop: l})
	})
}

func (r *reloadRig) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, applied := r.counts()
	r.diary = append(r.diary, fmt.Sprintf("%s at %d", what, applied))
}

// begin begins a reload.
func (r *reloadRig) begin(services ...lb.Service) {
	done := make(chan error, 1)
	r.done = done
	go func() {
		done <- r.loop.Reload(r.Context(), Reload{
			Services: services, Patience: 5 * time.Second,
			Prepare: func() error { r.note("prepare"); return r.fail },
			Finish:  func() error { r.note("finish"); return nil },
			Undo:    func() { r.note("undo") },
		})
	}()
	synctest.Wait()
}

// wantDone fails unless the reload has ended with this error; "": with none.
func (r *reloadRig) wantDone(want string, diary ...string) {
	r.Helper()
	synctest.Wait()
	select {
	case err := <-r.done:
		if got := fmt.Sprint(err); err == nil && want != "" || err != nil && got != want {
			r.Errorf("the reload ended with %v, want %q", err, want)
		}
	default:
		r.Fatal("the reload has not ended")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(diary, r.diary); diff != "" {
		r.Errorf("what was called, after how many writes (-want +got):\n%s", diff)
	}
	r.diary = nil
}

func (r *reloadRig) wantGoingOn() {
	r.Helper()
	synctest.Wait()
	select {
	case err := <-r.done:
		r.Fatalf("the reload has ended already: %v", err)
	default:
	}
}

// wantApplied compares the last write: services with their backends.
func (r *reloadRig) wantApplied(when string, want ...string) {
	r.Helper()
	synctest.Wait()
	var got []string
	for _, s := range r.last(r.T).Services {
		var backends []string
		for _, b := range s.Backends {
			backends = append(backends, fmt.Sprintf("%v/%d", b.Address.Addr().As4()[3], b.Weight))
		}
		got = append(got, s.Name+" "+strings.Join(backends, " "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.Errorf("%s: written (-want +got):\n%s", when, diff)
	}
}

// wantFollowed compares what is probed, and whose next hops are followed, by the
// last bytes of addresses.
func (r *reloadRig) wantFollowed(when string, want ...int) {
	r.Helper()
	synctest.Wait()
	r.fakeWorld.mu.Lock()
	defer r.fakeWorld.mu.Unlock()
	var probed, followed []int
	for _, t := range r.targets {
		probed = append(probed, int(t.Address.Addr().As4()[3]))
	}
	for _, a := range r.followed {
		followed = append(followed, int(a.As4()[3]))
	}
	slices.Sort(probed)
	if diff := cmp.Diff(want, slices.Compact(probed)); diff != "" {
		r.Errorf("%s: probed (-want +got):\n%s", when, diff)
	}
	if diff := cmp.Diff(want, followed); diff != "" {
		r.Errorf("%s: next hops (-want +got):\n%s", when, diff)
	}
}

// otherService has one server.
func otherService(name string, port uint16, server byte) lb.Service {
	s := webService()
	s.Name, s.Addresses = name, []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.101"), port))}
	s.Pool = lb.Pool{Name: name, Probe: probe, Servers: []lb.Server{{Address: netip.AddrFrom4([4]byte{192, 0, 2, server}), Weight: 1}}}
	return s
}

func TestReloadOfAWeight(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		web := webService()
		web.Pool.Servers[0].Weight, web.Pool.Servers[1].Backup = 7, false
		r.begin(web)
		r.wantDone("", "prepare at 1", "finish at 2")
		r.wantApplied("with other weights", "web 11/1 12/7")
		if views, _ := r.loop.Views(); len(views) != 1 || views[0].Servers[0].Configured != 7 {
			t.Errorf("views %+v", views)
		}
		// What was not changed by the services may be changed by the reload.
		r.begin(web)
		r.wantDone("", "prepare at 2", "finish at 3")
	})
}

// A service that is new is written when its servers are known; what is there is
// served meanwhile, and fails as ever.
func TestReloadWaitsForVerdicts(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		r.begin(webService(), otherService("mail", 80, 13))
		r.wantGoingOn()
		r.wantFollowed("while it waits", 11, 12, 13)
		r.wantApplied("while it waits", "web 11/0 12/3")
		r.say("192.0.2.12:80", health.Down)
		r.wantApplied("while it waits", "web 11/1 12/0")
		r.say("192.0.2.13:80", health.Up)
		r.wantGoingOn() // for its next hop
		r.lead("192.0.2.13", 13)
		r.loop.Dirty()
		r.wantDone("", "prepare at 1", "finish at 3")
		r.wantApplied("after it", "mail 13/1", "web 11/1 12/0")

		// A service is taken out, and nothing of it is followed.
		r.begin(otherService("mail", 80, 13))
		r.wantDone("", "prepare at 3", "finish at 4")
		r.wantApplied("with one service", "mail 13/1")
		r.wantFollowed("with one service", 13)
	})
}

func TestReloadDoesNotWaitForEver(t *testing.T) {
	for _, tc := range []struct {
		name    string
		verdict health.Verdict
		takes   time.Duration
	}{
		{"no verdict", health.Unknown, 5 * time.Second},
		{"up, and no way to it", health.Up, 5 * time.Second},
		{"down, and no way to it", health.Down, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			runReload(t, func(r *reloadRig) {
				r.know("192.0.2.13:80", tc.verdict)
				r.begin(webService(), otherService("mail", 80, 13))
				if tc.takes > 0 {
					time.Sleep(tc.takes - time.Millisecond)
					r.wantGoingOn()
					time.Sleep(time.Millisecond)
				}
				r.wantDone("", "prepare at 1", "finish at 2")
				r.wantApplied("after it", "mail 13/0", "web 11/0 12/3")
			})
		})
	}
}

// A reload waits for no server that is silent where the service can do without it, but for
// the way to one that is up.
func TestReloadDoesWithoutASilentServer(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		r.know("192.0.2.13:80", health.Up)
		r.fails("192.0.2.14:80")
		mail := otherService("mail", 80, 13)
		mail.Pool.Servers = append(mail.Pool.Servers, lb.Server{Address: netip.MustParseAddr("192.0.2.14"), Weight: 1})
		r.begin(webService(), mail)
		r.wantGoingOn()
		r.lead("192.0.2.13", 13)
		r.loop.Dirty()
		r.wantDone("", "prepare at 1", "finish at 2")
		r.wantApplied("after it", "mail 13/1 14/0", "web 11/0 12/3")
	})
}

// A reload that fails leaves everything as it was.
func TestReloadThatFails(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		r.fail = errors.New("no interface eth9")
		r.begin(otherService("mail", 80, 12))
		r.wantDone("no interface eth9", "prepare at 1", "undo at 1")
		r.wantFollowed("after what it needs was not there", 11, 12)

		r.fail = nil
		r.onApply = func() { // once
			r.refused = errRefused
			if r.tries > 2 {
				r.refused = nil
			}
		}
		r.begin(otherService("mail", 80, 12))
		r.wantDone("write the data plane: no room", "prepare at 1", "undo at 1")
		r.wantApplied("after it could not be written", "web 11/0 12/3")
		r.wantFollowed("after it could not be written", 11, 12)
		if tries, applied := r.counts(); tries != 3 || applied != 2 {
			t.Errorf("%d writes, of which %d went well, want 3 and 2", tries, applied)
		}
		if _, problem := r.loop.Views(); problem != "" {
			t.Errorf("problem %q", problem)
		}
	})
}

func TestOneReloadAtATime(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		r.begin(webService(), otherService("mail", 80, 13))
		first := r.done
		time.Sleep(time.Second)
		r.begin(webService())
		r.wantDone(errReloading.Error(), "prepare at 1")
		r.done = first
		time.Sleep(4 * time.Second) // the patience of the first one
		r.wantDone("", "finish at 2")
	})
}

// A change of how a server is probed, or how often, takes it out of no service.
func TestReloadOfAProbe(t *testing.T) {
	runReload(t, func(r *reloadRig) {
		web := webService()
		other := *probe
		other.Type, other.Pages, other.Interval = lb.ProbeHTTP, []lb.Page{{Path: "/"}}, 3*time.Second
		web.Pool.Probe = &other
		r.begin(web)
		r.wantDone("", "prepare at 1", "finish at 2")
		r.fakeWorld.mu.Lock()
		defer r.fakeWorld.mu.Unlock()
		if n := len(r.targets); n != 2 || r.targets[0].Probe.Type != lb.ProbeHTTP {
			t.Errorf("%d targets: %v", n, r.targets)
		}
	})
}

func TestEverything(t *testing.T) {
	s := Everything([]lb.Service{webService()})
	if len(s.Services) != 1 || len(s.Services[0].Backends) != 2 || s.Services[0].Backends[1].Weight != 3 {
		t.Errorf("got %+v", s)
	}
}
