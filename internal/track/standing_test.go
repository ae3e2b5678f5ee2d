package track

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// known are fixed facts.
type known struct{}

func (known) checkStatus(name string) CheckStatus {
	s := CheckStatus{Why: "refused"}
	switch name {
	case "good":
		s = CheckStatus{Verdict: health.Up}
	case "bad":
		s.Verdict = health.Down
	case "hopeless":
		s.Verdict, s.Exhausted = health.Down, true
	}
	return s
}

func (known) link(name string) error {
	if name == "cut" {
		return errors.New("interface cut is down")
	}
	return nil
}

func (known) service(name string) (bool, string) {
	switch name {
	case "weak":
		return true, "below its quorum: 1 healthy, 2 wanted"
	case "strong":
		return true, ""
	}
	return false, ""
}

func (known) upstream(name string) (bool, string) {
	switch name {
	case "empty":
		return true, "down: no server can serve"
	case "full":
		return true, ""
	}
	return false, ""
}

func TestStand(t *testing.T) {
	const check, link, service, upstream = lb.TrackCheck, lb.TrackInterface, lb.TrackService, lb.TrackUpstream
	for _, tt := range []struct {
		name     string
		base     uint8
		track    []lb.Tracked
		priority uint8
		sum      string
		fault    string
		unknown  bool
	}{
		{name: "nothing", priority: 100},
		{name: "all is well", track: []lb.Tracked{tracked(check, "good", -2), tracked(check, "good", 0), tracked(link, "eth1", -5), tracked(service, "strong", -9)}, priority: 100},
		{name: "a failing check", track: []lb.Tracked{tracked(check, "bad", -2)}, priority: 98, sum: "98 = 100 - 2 (bad)"},
		{name: "a positive weight while it passes", track: []lb.Tracked{tracked(check, "good", 20)}, priority: 120, sum: "120 = 100 + 20 (good)"},
		{name: "a positive weight while it fails", track: []lb.Tracked{tracked(check, "bad", 20)}, priority: 100},
		{name: "several", track: []lb.Tracked{tracked(check, "bad", -2), tracked(check, "good", 5), tracked(link, "cut", -10), tracked(service, "weak", -30)},
			priority: 63, sum: "63 = 100 - 2 (bad) + 5 (good) - 10 (cut) - 30 (weak)"},
		{name: "at least 1", track: []lb.Tracked{tracked(service, "weak", -253)}, priority: 1, sum: "1 = 100 - 253 (weak), at least 1"},
		{name: "at most 254", track: []lb.Tracked{tracked(service, "strong", 253)}, priority: 254, sum: "254 = 100 + 253 (strong), at most 254"},
		{name: "limits are for the sum alone", base: 10, track: []lb.Tracked{tracked(check, "bad", -50), tracked(check, "good", 45)}, priority: 5,
			sum: "5 = 10 - 50 (bad) + 45 (good)"},
		{name: "without a weight", track: []lb.Tracked{tracked(check, "bad", 0), tracked(link, "cut", 0)}, priority: 100,
			fault: "check bad fails: refused; interface cut is down"},
		{name: "recovery in vain", track: []lb.Tracked{tracked(check, "hopeless", -2)}, priority: 100,
			fault: "check hopeless fails, and recovery was in vain: refused"},
		{name: "not known yet", track: []lb.Tracked{tracked(check, "new", 0), tracked(check, "new", 10), tracked(check, "new", -10), tracked(check, "bad", -2)},
			priority: 98, sum: "98 = 100 - 2 (bad)", unknown: true},
		{name: "upstreams", track: []lb.Tracked{tracked(upstream, "empty", -20), tracked(upstream, "full", -30)},
			priority: 80, sum: "80 = 100 - 20 (empty)"},
		{name: "an upstream is not known yet", track: []lb.Tracked{tracked(upstream, "new", -10)}, priority: 100, unknown: true},
		{name: "a service is not known yet", track: []lb.Tracked{tracked(service, "new", -10)}, priority: 100, unknown: true},
		{name: "the owner", base: 255, track: []lb.Tracked{tracked(check, "bad", 0)}, priority: 255, fault: "check bad fails: refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.base == 0 {
				tt.base = 100
			}
			s := stand(tt.base, tt.track, known{})
			type result struct {
				Priority   uint8
				Sum, Fault string
				Known      bool
			}
			want := result{tt.priority, tt.sum, tt.fault, !tt.unknown}
			if diff := cmp.Diff(want, result{s.Priority, s.Sum(), s.Fault, s.Known}); diff != "" {
				t.Errorf("standing (-want +got):\n%s", diff)
			}
		})
	}
}
