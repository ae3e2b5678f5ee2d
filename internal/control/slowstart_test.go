package control

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/maglev"
	"github.com/sluice-lb/sluice/loader"
)

func TestEffective(t *testing.T) {
	server := func(weight, percent int, serving bool) Server {
		return Server{Server: lb.Server{Weight: weight}, Serving: serving, SlowStart: SlowStart{Percent: percent}}
	}
	for _, tc := range []struct {
		name    string
		servers []Server
		want    []int
	}{
		{"none", nil, []int{}},
		{"no slow start", []Server{server(2, 0, true), server(4, 0, true)}, []int{2, 4}},
		{"one of three", []Server{server(1, 0, true), server(1, 5, true), server(1, 0, true)}, []int{20, 1, 20}},
		{"towards its weight", []Server{server(2, 0, true), server(6, 50, true)}, []int{4, 6}},
		{"alone", []Server{server(3, 5, true), server(1, 0, false)}, []int{3, 0}},
		{"all together", []Server{server(2, 35, true), server(4, 35, true)}, []int{2, 4}},
		{"one after the other", []Server{server(1, 10, true), server(1, 5, true)}, []int{2, 1}},
		{"as fine as it gets", []Server{server(1, 0, true), server(1, 97, true)}, []int{100, 97}},
		{"the largest weights", []Server{server(MaxWeight, 0, true), server(MaxWeight, 97, true)}, []int{100 * MaxWeight, 97 * MaxWeight}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := effective(tc.servers)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("weights (-want +got):\n%s", diff)
			}
			for _, w := range got {
				if w > maglev.MaxWeight {
					t.Errorf("weight %d, and %d is the most that a table takes", w, maglev.MaxWeight)
				}
			}
		})
	}
}

// slowService has three servers of weights 1, 1 and 2, and a backup.
func slowService() lb.Service {
	s := webService()
	s.SlowStart = 19 * time.Second
	s.Pool.Servers = []lb.Server{
		{Address: netip.MustParseAddr("192.0.2.11"), Weight: 1},
		{Address: netip.MustParseAddr("192.0.2.12"), Weight: 1},
		{Address: netip.MustParseAddr("192.0.2.13"), Weight: 2},
		{Address: netip.MustParseAddr("192.0.2.14"), Weight: 1, Backup: true},
	}
	return s
}

// A slowWorld is a loop over slowService in virtual time.
type slowWorld struct {
	*testing.T
	*fakeWorld
	loop *Loop
}

func runSlow(t *testing.T, stats loader.Stats, s lb.Service, f func(w *slowWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &slowWorld{t, newFakeWorld(), nil}
		w.stats = stats
		w.changes.path = t.TempDir() + "/overrides.json"
		w.loop = NewLoop([]lb.Service{s}, w, fakeChecker{w.fakeWorld}, fakeHops{w.fakeWorld}, fakePaths{w.fakeWorld}, w.changes, slog.New(slog.DiscardHandler))
		for i, server := range s.Pool.Servers {
			w.lead(server.Address.String(), byte(i+1))
			w.know(endpoint(s, server).String(), health.Up)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { w.loop.Run(ctx, 10*time.Second) })
		defer done.Wait()
		defer cancel()
		synctest.Wait()
		f(w)
	})
}

// start lets the loop have a look; all that the test knows of is known by then.
func (w *slowWorld) start() {
	close(w.ready)
	synctest.Wait()
}

// weights are those that the data plane has, in the order of addresses.
func (w *slowWorld) weights() string {
	synctest.Wait()
	var all []string
	for _, b := range w.last(w.T).Services[0].Backends {
		all = append(all, fmt.Sprint(b.Weight))
	}
	return strings.Join(all, " ")
}

func (w *slowWorld) want(when, weights string) {
	w.Helper()
	if got := w.weights(); got != weights {
		w.Errorf("%s: the weights are %s, want %s", when, got, weights)
	}
}

// percents are what the views say.
func (w *slowWorld) percents() string {
	synctest.Wait()
	views, _ := w.loop.Views()
	var all []string
	for _, s := range views[0].Servers {
		all = append(all, fmt.Sprint(s.percent()))
	}
	return strings.Join(all, " ")
}

func (w *slowWorld) change(a Action, address string, weight int) {
	w.Helper()
	if _, err := w.loop.Change(Change{a, "web", address, weight}); err != nil {
		w.Fatal(err)
	}
}

func TestSlowStartOfAServerThatComesBack(t *testing.T) {
	runSlow(t, loader.Stats{}, slowService(), func(w *slowWorld) {
		w.start()
		w.want("at the first verdicts", "1 1 2 0")
		w.say("192.0.2.13:80", health.Down)
		w.want("one fails", "1 1 0 0")
		time.Sleep(time.Minute)
		_, before := w.counts()
		w.say("192.0.2.13:80", health.Up)
		w.want("it is back", "20 20 2 0")
		began := time.Now()
		views, _ := w.loop.Views()
		if got, want := views[0].Servers[2].SlowStart, (SlowStart{5, began.Add(19 * time.Second)}); got != want {
			t.Errorf("it has %+v, want %+v", got, want)
		}
		time.Sleep(time.Second)
		w.want("after a second", "10 10 2 0")
		time.Sleep(9 * time.Second)
		w.want("after 10 s", "20 20 22 0")
		time.Sleep(8*time.Second + 500*time.Millisecond)
		w.want("just before the end", "20 20 38 0")
		time.Sleep(time.Second)
		w.want("at the end", "1 1 2 0")
		if got := w.percents(); got != "100 100 100 100" {
			t.Errorf("at the end they have %s", got)
		}
		time.Sleep(time.Hour)
		if _, after := w.counts(); after-before != 1+19 {
			t.Errorf("the data plane was written %d times, want 20", after-before)
		}
	})
}

// Whatever takes a server out of service and lets it come back.
func TestSlowStartBeginsWhen(t *testing.T) {
	for _, tc := range []struct {
		name string
		away func(w *slowWorld)
		back func(w *slowWorld)
		slow bool
	}{
		{"its probe failed", func(w *slowWorld) { w.say("192.0.2.12:80", health.Down) }, func(w *slowWorld) { w.say("192.0.2.12:80", health.Up) }, true},
		{"it was disabled", func(w *slowWorld) { w.change(Disable, "192.0.2.12", 0) }, func(w *slowWorld) { w.change(Enable, "192.0.2.12", 0) }, true},
		{"it was drained", func(w *slowWorld) { w.change(Drain, "192.0.2.12", 0) }, func(w *slowWorld) { w.change(Reset, "192.0.2.12", 0) }, true},
		{"its weight was 0", func(w *slowWorld) { w.change(Weight, "192.0.2.12", 0) }, func(w *slowWorld) { w.change(Weight, "192.0.2.12", 1) }, true},
		{"its weight was another one", func(w *slowWorld) { w.change(Weight, "192.0.2.12", 7) }, func(w *slowWorld) { w.change(Reset, "192.0.2.12", 0) }, false},
		{"it could not be reached", func(w *slowWorld) {
			w.mu.Lock()
			delete(w.hops, netip.MustParseAddr("192.0.2.12"))
			w.mu.Unlock()
			w.loop.Dirty()
		}, func(w *slowWorld) { w.lead("192.0.2.12", 2); w.loop.Dirty() }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			runSlow(t, loader.Stats{}, slowService(), func(w *slowWorld) {
				w.start()
				tc.away(w)
				w.weights()
				time.Sleep(time.Second)
				tc.back(w)
				want := "1 1 2 0"
				if tc.slow {
					want = "20 1 40 0"
				}
				w.want("it is back", want)
			})
		})
	}
}

func TestSlowStartAtStart(t *testing.T) {
	adopted := func(slots ...int) loader.Stats {
		s := loader.ServiceStats{Addresses: slowService().Addresses, Protocol: lb.TCP}
		for i, n := range slots {
			s.Backends = append(s.Backends, loader.BackendStats{
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), 80), Slots: n,
			})
		}
		return loader.Stats{Services: []loader.ServiceStats{s}}
	}
	for _, tc := range []struct {
		name  string
		stats loader.Stats
		want  string
	}{
		{"nothing was there", loader.Stats{}, "1 1 2 0"},
		{"nobody served", adopted(0, 0, 0), "1 1 2 0"},
		{"all served", adopted(1, 1, 2), "1 1 2 0"},
		{"one is new", adopted(1, 1), "20 20 2 0"},
		{"two were away", adopted(0, 1, 0), "1 20 2 0"},
		{"the backup served", adopted(0, 0, 0, 1), "1 1 2 0"}, // all come back together
	} {
		t.Run(tc.name, func(t *testing.T) {
			runSlow(t, tc.stats, slowService(), func(w *slowWorld) {
				w.start()
				w.want("at the first verdicts", tc.want)
			})
		})
	}
}

// A first verdict that comes late is no return, and neither is a neighbour that is
// resolved late. A first verdict that is bad makes the next one a return.
func TestSlowStartNotForWhoIsLateAtStart(t *testing.T) {
	runSlow(t, loader.Stats{}, slowService(), func(w *slowWorld) {
		w.know("192.0.2.12:80", health.Unknown)
		w.mu.Lock()
		delete(w.hops, netip.MustParseAddr("192.0.2.11"))
		w.mu.Unlock()
		w.know("192.0.2.13:80", health.Down)
		w.start()
		time.Sleep(10 * time.Second) // its patience
		w.want("at start", "0 0 0 1")
		w.lead("192.0.2.11", 1)
		w.say("192.0.2.12:80", health.Up)
		w.want("they are there", "1 1 0 0")
		w.say("192.0.2.13:80", health.Up)
		w.want("one is back", "20 20 2 0")
	})
}

func TestSlowStartBeginsAnew(t *testing.T) {
	runSlow(t, loader.Stats{}, slowService(), func(w *slowWorld) {
		w.start()
		w.say("192.0.2.12:80", health.Down)
		w.weights()
		w.say("192.0.2.12:80", health.Up)
		time.Sleep(9 * time.Second)
		w.want("half way", "2 1 4 0")
		w.say("192.0.2.12:80", health.Down)
		w.want("it fails again", "1 0 2 0")
		w.say("192.0.2.12:80", health.Up)
		w.want("it is back again", "20 1 40 0")
		w.change(Weight, "192.0.2.12", 10)
		w.want("an operator wants more of it", "20 10 40 0")
		time.Sleep(20 * time.Second)
		w.want("at the end", "1 10 2 0")
	})
}

// Who is alone gets everything, slow start or not, and a backup serves at once.
func TestSlowStartStarvesNobody(t *testing.T) {
	runSlow(t, loader.Stats{}, slowService(), func(w *slowWorld) {
		w.start()
		for _, a := range []string{"192.0.2.11:80", "192.0.2.12:80", "192.0.2.13:80", "192.0.2.14:80"} {
			w.say(a, health.Down)
		}
		w.want("all fail", "0 0 0 0")
		w.say("192.0.2.14:80", health.Up)
		w.want("the backup is back", "0 0 0 1")
		w.say("192.0.2.13:80", health.Up)
		w.want("a primary is back", "0 0 2 0")
		time.Sleep(3500 * time.Millisecond)
		w.say("192.0.2.11:80", health.Up)
		w.want("another one", "1 0 8 0") // 5 % of 1, 20 % of 2
		w.say("192.0.2.13:80", health.Down)
		w.want("the first one fails", "1 0 0 0")
		if got := w.percents(); got != "5 100 100 100" {
			t.Errorf("they have %s", got)
		}
	})
}

// Servers that come back one after the other make no more steps than one does in
// the same time, and all of them end with all of their weight.
func TestSlowStartsOfManyShareTheirSteps(t *testing.T) {
	s := slowService()
	s.Pool.Servers = nil
	for i := range 10 {
		s.Pool.Servers = append(s.Pool.Servers, lb.Server{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), Weight: 1})
	}
	runSlow(t, loader.Stats{}, s, func(w *slowWorld) {
		w.start()
		for i := range 9 {
			w.say(fmt.Sprintf("192.0.2.%d:80", 12+i), health.Down)
		}
		w.weights()
		for i := range 9 {
			w.say(fmt.Sprintf("192.0.2.%d:80", 12+i), health.Up)
			w.weights()
			time.Sleep(70 * time.Millisecond)
		}
		_, before := w.counts()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, after := w.counts(); after-before > 11 {
			t.Errorf("the data plane was written %d times in 10 s, want once a second", after-before)
		}
		time.Sleep(15 * time.Second)
		w.want("at the end", "1 1 1 1 1 1 1 1 1 1")
	})
}
