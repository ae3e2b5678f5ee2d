package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

const (
	// floodRate is what the flood tries to reach. A full queue loses more than half of it,
	// so that on two processors at rest 500,000 packets a second arrive at least.
	floodRate = 1600000
	// floodSize is how many must arrive while the changes are made, which a slow
	// machine takes its time for.
	floodSize = 10000000
)

// What a crowd survives without a flood it survives with one: half a million
// SYNs and ACKs a second for the same service from spoofed sources, in slots that
// are tracked, during a drain and while the daemon is restarted. No connection that
// is established breaks or moves. How many new ones come through is reported.
func TestPlannedChangesUnderFlood(t *testing.T) {
	for _, m := range forwardModes {
		t.Run(m.name, func(t *testing.T) {
			r := newChangingRig(t, m)
			r.crowd.talk("before the flood")
			flood, err := r.host("lb1").StartFlood(testenv.FloodConfig{
				Target: netip.AddrPortFrom(m.vip, 80), Sources: prefix("203.0.113.0/24"), Rate: floodRate,
			})
			if err != nil {
				t.Fatal(err)
			}
			r.crowd.talk("under flood, before any change")
			tried := 0
			for _, change := range fiveChanges {
				began := time.Now()
				change.do(r)
				r.crowd.talk("under flood, while " + change.name)
				r.waitSlots(change.weights)
				fresh, err := r.crowd.open(r.services, crowdGrowth)
				if err != nil {
					t.Logf("new connections under flood: %v", err)
				}
				tried += crowdGrowth
				r.crowd.talk("under flood, after " + change.name)
				sofar, err := flood.Result()
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s, in %v: %d connections go on, %d of %d new ones opened; %.0f packets of the flood a second",
					change.name, time.Since(began).Round(time.Millisecond), len(r.crowd.members)-len(fresh), len(fresh), crowdGrowth, sofar.Rate())
			}
			var result testenv.FloodResult
			for result.Arrived < floodSize {
				r.crowd.talk("under flood, after all changes")
				if result, err = flood.Result(); err != nil {
					t.Fatal(err)
				}
			}
			if result, err = flood.Stop(); err != nil {
				t.Fatal(err)
			}
			r.crowd.talk("after the flood")
			s := r.mustStatus("lb1")
			for _, v := range s.Services {
				t.Logf("service %s: %+v", v.Name, v.Losses)
			}
			opened := len(r.crowd.members) - crowdSize
			t.Logf("flood: %d packets of %d arrived in %v, %.0f a second, %d were sent on to backends; %d of %d new connections opened (%.2f %%)",
				result.Arrived, result.Sent, result.Length.Round(time.Millisecond), result.Rate(), result.Passed,
				opened, tried, 100*float64(opened)/float64(tried))
			// Without SYNs that go on it would have been no flood of a service.
			if result.Passed < floodSize/4 {
				t.Errorf("%d packets of the flood were sent on to backends, want a quarter of %d or more", result.Passed, floodSize)
			}
			if opened == 0 {
				t.Error("no new connection came through")
			}
			r.stop(r.daemon)
		})
	}
}
