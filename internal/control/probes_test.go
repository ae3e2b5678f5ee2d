package control

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// viaService is webService with one server, probed through its VIPs.
func viaService(forward lb.Forward, frontends ...string) lb.Service {
	s := webService()
	through := *probe
	through.ViaVIP = true
	s.Forward, s.Pool.Probe, s.Pool.Servers, s.Addresses = forward, &through, s.Pool.Servers[:1], nil
	for _, f := range frontends {
		s.Addresses = append(s.Addresses, lb.FrontendOf(netip.MustParseAddrPort(f)))
	}
	return s
}

func TestTargetsOfAServer(t *testing.T) {
	const first, second, six = "192.0.2.100:80", "192.0.2.101:80", "[2001:db8::100]:80"
	direct := viaService(lb.DSR, first)
	direct.Pool.Probe = probe
	path := func(vip string, forward lb.Forward) lb.ProbePath {
		return lb.ProbePath{VIP: netip.MustParseAddr(vip), Server: netip.MustParseAddr("192.0.2.12"), Forward: forward}
	}
	tests := []struct {
		name    string
		service lb.Service
		want    []lb.ProbePath
	}{
		{"dsr", viaService(lb.DSR, first), []lb.ProbePath{path("192.0.2.100", lb.DSR)}},
		{"tunnel", viaService(lb.Tunnel, first), []lb.ProbePath{path("192.0.2.100", lb.Tunnel)}},
		{"every VIP, once", viaService(lb.DSR, first, second, "192.0.2.100:81", six),
			[]lb.ProbePath{path("192.0.2.100", lb.DSR), path("192.0.2.101", lb.DSR), path("2001:db8::100", lb.DSR)}},
		{"nat", viaService(lb.NAT, first), []lb.ProbePath{{}}},
		{"nat without source NAT", viaService(lb.DNAT, first), []lb.ProbePath{{}}},
		{"direct", direct, []lb.ProbePath{{}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []lb.ProbePath
			for _, target := range targetsOf(tt.service, tt.service.Pool.Servers[0]) {
				if want := netip.MustParseAddrPort("192.0.2.12:80"); target.Address != want {
					t.Errorf("address %v, want %v", target.Address, want)
				}
				got = append(got, target.Path)
			}
			if diff := cmp.Diff(tt.want, got, cmpAddresses); diff != "" {
				t.Errorf("paths (-want +got):\n%s", diff)
			}
		})
	}
}

// verdictsOf are facts about targets by their VIP.
type verdictsOf map[string]health.Verdict

// undecided is no verdict, since a target has failed once only.
const undecided = health.Verdict(255)

func (v verdictsOf) status(t health.Target) (health.Status, bool) {
	verdict, ok := v[t.Path.VIP.String()]
	s := health.Status{Target: t, Verdict: verdict, LastError: "silent: " + t.Path.VIP.String()}
	if verdict == undecided {
		s.Verdict, s.Failures = health.Unknown, 1
	}
	return s, ok
}
func (v verdictsOf) check(string) (health.Verdict, string)   { return health.Unknown, "" }
func (v verdictsOf) nextHop(netip.Addr) (lb.NextHop, error)  { return hopTo(1), nil }
func (v verdictsOf) override(lb.Service, lb.Server) Override { return Override{} }
func (v verdictsOf) stopping(string) (stops, gone bool)      { return false, false }

func TestServerOfSeveralVIPs(t *testing.T) {
	const a, b = "192.0.2.100", "192.0.2.101"
	tests := []struct {
		name  string
		known verdictsOf
		state ServerState
		why   string
	}{
		{"all up", verdictsOf{a: health.Up, b: health.Up}, ServerUp, ""},
		{"one down", verdictsOf{a: health.Up, b: health.Down}, ServerDown, "silent: " + b},
		{"one not known", verdictsOf{a: health.Up, b: health.Unknown}, ServerUnknown, "not probed yet"},
		{"one has failed once", verdictsOf{a: health.Up, b: undecided}, ServerUnknown, "1 of 3 probes have failed: silent: " + b},
		{"one missing", verdictsOf{b: health.Up}, ServerUnknown, "not probed yet"},
		{"one down, one not known", verdictsOf{a: health.Unknown, b: health.Down}, ServerDown, "silent: " + b},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			service := viaService(lb.DSR, a+":80", b+":80")
			service.Pool.Probe.Fall = 3
			got := view(service, tt.known).Servers[0]
			if got.State != tt.state || got.Why != tt.why {
				t.Errorf("%s: %q, want %s: %q", got.State, got.Why, tt.state, tt.why)
			}
		})
	}
}

// The ways of probes are made before the first probe, and follow from then on, also
// while the loop still waits for verdicts. What is wrong with them is a problem.
func TestLoopLeadsProbes(t *testing.T) {
	services := []lb.Service{viaService(lb.DSR, "192.0.2.100:80"), viaService(lb.NAT, "192.0.2.101:80")}
	runLoop(t, time.Minute, services, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		want := []lb.ProbePath{{VIP: netip.MustParseAddr("192.0.2.100"), Server: netip.MustParseAddr("192.0.2.12"), Forward: lb.DSR}}
		led := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			if diff := cmp.Diff(want, w.paths, cmpAddresses); diff != "" {
				t.Errorf("paths (-want +got):\n%s", diff)
			}
			return w.led
		}
		before := led()
		if before == 0 {
			t.Error("no way was made before the first probe")
		}
		l.Dirty()
		synctest.Wait()
		if now := led(); now <= before {
			t.Error("the ways do not follow while verdicts are missing")
		}
		w.mu.Lock()
		w.unled = errors.New("no clsact")
		w.mu.Unlock()
		close(w.ready)
		synctest.Wait()
		if _, problem := l.Views(); !strings.Contains(problem, "no clsact") {
			t.Errorf("problem %q", problem)
		}
		w.mu.Lock()
		w.unled = nil
		w.mu.Unlock()
		l.Dirty()
		synctest.Wait()
		if _, problem := l.Views(); problem != "" {
			t.Errorf("problem %q after it is right again", problem)
		}
	})
}
