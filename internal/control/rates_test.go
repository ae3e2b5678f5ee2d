package control

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

func TestRates(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	server := netip.MustParseAddrPort("192.0.2.11:80")
	// Each sample is of so many seconds after the beginning, with so many packets; -1: the
	// backend was not there. Everything else is a multiple of them.
	type sample struct{ at, packets int }
	traffic := func(packets int) loader.Traffic {
		p := uint64(packets)
		return loader.Traffic{Packets: p, Bytes: 100 * p, Flows: p / 10, ReplyPackets: 2 * p, ReplyBytes: 1000 * p}
	}
	for _, tc := range []struct {
		name    string
		samples []sample
		now     sample
		over    time.Duration
		packets float64 // a second
	}{
		{"nothing was read yet", nil, sample{1, 500}, 0, 0},
		{"just now", []sample{{10, 500}}, sample{10, 500}, 0, 0},
		{"shortly after the start", []sample{{0, 500}}, sample{2, 600}, 2 * time.Second, 50},
		{"over ten seconds, and what is nearest to it", []sample{{0, 0}, {2, 100}, {4, 200}, {6, 400}, {8, 600}, {10, 800}, {12, 1000}}, sample{13, 1210}, 11 * time.Second, 1110. / 11},
		{"nothing comes", []sample{{0, 500}, {2, 500}}, sample{4, 500}, 4 * time.Second, 0},
		{"the backend has come since", []sample{{0, -1}, {2, -1}, {4, 100}}, sample{6, 300}, 2 * time.Second, 100},
		{"it has come this moment", []sample{{0, -1}, {2, -1}}, sample{4, 300}, 0, 0},
		{"it has come once more", []sample{{0, 5000}, {2, 100}}, sample{4, 300}, 2 * time.Second, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r rates
			for _, s := range tc.samples {
				counted := map[loader.ServiceBackend]loader.Traffic{{Service: "other", Address: server}: traffic(9999)}
				if s.packets >= 0 {
					counted[loader.ServiceBackend{Service: "web", Address: server}] = traffic(s.packets)
				}
				r.note(rateSample{begin.Add(time.Duration(s.at) * time.Second), counted})
			}
			now := traffic(tc.now.packets)
			services := []ServiceStatus{{Name: "web", Backends: []BackendStatus{{
				Address: server, Packets: now.Packets, Bytes: now.Bytes, Flows: now.Flows, ReplyPackets: now.ReplyPackets, ReplyBytes: now.ReplyBytes,
			}}}}
			r.add(services, begin.Add(time.Duration(tc.now.at)*time.Second))
			want := Rate{
				Over: tc.over, Packets: tc.packets, Bytes: 100 * tc.packets, Connections: tc.packets / 10,
				ReplyPackets: 2 * tc.packets, ReplyBytes: 1000 * tc.packets,
			}
			near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 })
			for what, got := range map[string]*Rate{"the backend": services[0].Backends[0].Rate, "the service": services[0].Rate} {
				if diff := cmp.Diff(&want, got, near); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func TestRatesForPeople(t *testing.T) {
	for _, tc := range []struct {
		rate Rate
		want string
	}{
		{Rate{}, "not known yet"},
		{Rate{Over: time.Second}, "0 connections/s, 0 packets/s, 0 bit/s"},
		{Rate{Over: time.Second, Connections: 0.25, Packets: 12.34, Bytes: 125}, "0.2 connections/s, 12.3 packets/s, 1.0 kbit/s"},
		{Rate{Over: time.Second, Connections: 1234, Packets: 99.96, Bytes: 1.25e8, ReplyPackets: 5, ReplyBytes: 1.5e9}, "1234 connections/s, 100 packets/s, 1.0 Gbit/s; replies: 5.0 packets/s, 12.0 Gbit/s"},
	} {
		if got := tc.rate.String(); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.rate, got, tc.want)
		}
	}
}

// The loop reads the counters all the time, so that whoever asks for the first time is
// told what comes now.
func TestLoopKnowsRates(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		counted := func(packets uint64) loader.Stats {
			return loader.Stats{Services: []loader.ServiceStats{{
				Name: "web", Protocol: lb.TCP, Addresses: webService().Addresses,
				Backends: []loader.BackendStats{{Address: netip.MustParseAddrPort("192.0.2.11:80"), Packets: packets}},
			}}}
		}
		healthy(w)
		count := func(packets uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.stats = counted(packets)
		}
		count(1000)
		close(w.ready)
		wantCounts(t, w, "at the start", 1, 1)
		time.Sleep(2500 * time.Millisecond)
		count(2500) // the loop has looked after one second
		services, _, _, _ := l.Services()
		if got := services[0].Rate; got == nil || got.Over != 1500*time.Millisecond || got.Packets != 1000 {
			t.Errorf("got %+v, want 1000 packets a second over 1.5 s", got)
		}
		time.Sleep(time.Hour)
		services, _, _, _ = l.Services()
		if got := services[0].Rate; got == nil || got.Over < rateOver || got.Over > rateOver+2*rateEvery {
			t.Errorf("an hour later it is over %v, want %v or a little more", got.Over, rateOver)
		}
		if n := len(l.rates.samples); n > 1+int(rateOver/rateEvery)+1 {
			t.Errorf("%d samples are kept", n)
		}
	})
}
