package control

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// press sets what the data plane says of the service web.
func (w *fakeWorld) press(losses loader.Losses, used ...int) {
	p := loader.Usage{Service: "web", Losses: losses}
	for i, n := range used {
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), 80)
		p.Backends = append(p.Backends, loader.BackendPorts{Address: address, Source: loader.PortUse{Used: n, Ports: 1000}})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.usage = []loader.Usage{p}
}

// startWatched lets a loop begin to look once a second, and be half a second off.
func startWatched(w *fakeWorld) {
	healthy(w)
	w.press(loader.Losses{NoPort: 5})
	close(w.ready)
	time.Sleep(maintainEvery + maintainEvery/2)
}

func wantAlarms(t *testing.T, l *Loop, when string, want ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for _, a := range l.Alarms() {
		got = append(got, a.Text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: alarms (-want +got):\n%s", when, diff)
	}
}

func TestAlarmOfPorts(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		startWatched(w)
		const first = "service web: 800 of 1000 source ports towards 192.0.2.11:80 are in use (80 %): give it more source_addresses"
		for _, tc := range []struct {
			name string
			used []int
			want []string
		}{
			{"below the mark", []int{799, 700}, nil},
			{"one reaches it", []int{800, 799}, []string{first}},
			{"it falls a little", []int{700, 799}, []string{strings.NewReplacer("800 of", "700 of", "80 %", "70 %").Replace(first)}},
			{"it falls below", []int{699, 799}, nil},
			{"it rises a little", []int{799, 799}, nil},
			{"both reach it", []int{800, 1000}, []string{
				first, "service web: 1000 of 1000 source ports towards 192.0.2.12:80 are in use (100 %): give it more source_addresses",
			}},
			{"one is gone", []int{800}, []string{first}},
			{"all are gone", nil, nil},
			{"one is back", []int{750}, nil},
		} {
			w.press(loader.Losses{}, tc.used...)
			time.Sleep(maintainEvery)
			wantAlarms(t, l, tc.name, tc.want...)
		}
	})
}

func TestAlarmOfLosses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		count func(n uint64) loader.Losses
		want  string // with the number and the time to be filled in
	}{
		{"no port", func(n uint64) loader.Losses { return loader.Losses{NoPort: n} },
			"service web: N connections refused: no source port is free, since T: give it more source_addresses"},
		{"flow table", func(n uint64) loader.Losses { return loader.Losses{FlowsFull: n} },
			"service web: N connections refused: the flow table is full, since T: raise datapath.max_flows, which counts after `sluice detach`"},
		{"pins", func(n uint64) loader.Losses { return loader.Losses{PinsFull: n} },
			"service web: N connections not pinned, which the next change of backends may move: no room, since T: raise datapath.max_flows, which counts after `sluice detach`"},
		{"handshakes", func(n uint64) loader.Losses { return loader.Losses{HandshakesFull: n} },
			"service web: N handshakes not remembered: more than fit come in 5 s, since T: source_limit and deny keep a flood out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
				text := func(n string, at time.Time) string {
					return strings.NewReplacer("N ", n+" ", "since T", "since "+at.Format(time.RFC3339)).Replace(tc.want)
				}
				healthy(w)
				w.press(tc.count(5))
				close(w.ready)
				time.Sleep(maintainEvery + maintainEvery/2)
				wantAlarms(t, l, "with what was lost before")

				w.press(tc.count(8))
				time.Sleep(maintainEvery)
				began := time.Now()
				wantAlarms(t, l, "when it grows", text("3", began))
				time.Sleep(quiet - 2*maintainEvery)
				w.press(tc.count(15))
				time.Sleep(maintainEvery)
				wantAlarms(t, l, "when it grows again", text("10", began))
				time.Sleep(quiet - maintainEvery)
				wantAlarms(t, l, "before a minute is over", text("10", began))
				time.Sleep(maintainEvery)
				wantAlarms(t, l, "after a quiet minute")

				// The next time it counts from there on, also if it was cleared.
				w.press(tc.count(16))
				time.Sleep(maintainEvery)
				wantAlarms(t, l, "the next time", text("1", time.Now()))
				time.Sleep(quiet)
				wantAlarms(t, l, "after another minute")
				w.press(tc.count(2))
				time.Sleep(maintainEvery)
				wantAlarms(t, l, "when it was cleared and grows", text("2", time.Now()))
			})
		})
	}
}

// An alarm is logged when it begins and when it ends, and not in between.
func TestAlarmsAreLoggedOnce(t *testing.T) {
	var b bytes.Buffer
	s := newShortages(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	w := newFakeWorld()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	see := func(n uint64, used int) {
		w.press(loader.Losses{NoPort: n}, used)
		s.observe(w.usage, now)
		now = now.Add(maintainEvery)
	}
	see(0, 0)
	for i := range 30 {
		see(uint64(i), 900)
	}
	for range 70 {
		see(29, 100)
	}
	want := []string{
		`level=WARN msg="the source ports towards a backend run short: the service needs more source_addresses" service=web backend=192.0.2.11:80 "in use"=900 ports=1000`,
		`level=WARN msg="connections refused: no source port is free" service=web count=1 advice="give it more source_addresses"`,
		`level=INFO msg="there are source ports towards a backend again" service=web backend=192.0.2.11:80 "in use"=100 ports=1000`,
		`level=INFO msg="no more connections refused: no source port is free" service=web count=29`,
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(b.String()), "\n")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}
