package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

// A backend that comes back gets its share of the slots little by little, and in
// the end the very slots that it had. At start there is no slow start.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	r := webRig(t, 3)
	slow := strings.Replace(dsr, "{", "{slow_start: 6s, ", 1)
	file := r.file("sluice.yaml", roster, webPool, services(slow, nat), vrrps(pair))
	daemon := r.start("lb1", file)
	r.waitReady("lb1")

	backends := func(service string) []control.BackendStatus {
		t.Helper()
		v, err := serviceOf(r.mustStatus("lb1"), service)
		if err != nil {
			t.Fatal(err)
		}
		return v.Backends
	}
	slots := func(service string) (all []int) {
		t.Helper()
		for _, b := range backends(service) {
			all = append(all, b.Slots)
		}
		return all
	}
	before := slots("dsr")
	for i, want := range []float64{0.25, 0.5, 0.25} { // weights 1, 2 and 1
		if b := backends("dsr")[i]; b.SlowStart != nil || b.Share < want-0.001 || b.Share > want+0.001 {
			t.Errorf("at start backend %d has %+v, and a share of %.3f, want %.2f", i, b.SlowStart, b.Share, want)
		}
	}
	drainAndEnable := func() {
		t.Helper()
		r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.12")
		r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerDrained, control.ServerUp)
		r.wantRun(0, "lb1", "backend", "enable", "web", "192.0.2.12")
		r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerUp, control.ServerUp)
	}
	drainAndEnable()

	// A service without slow_start, of the same pool, has it back at once.
	if got := slots("nat"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("nat has slots %v, want %v", got, before)
	}
	said := r.wantRun(0, "lb1", "status").stdout
	percents, last := map[int]bool{}, 0
	r.eventually(6*time.Second+soon, "the end of the slow start", func() (bool, error) {
		b := backends("dsr")[1]
		if b.Slots < last {
			return false, fmt.Errorf("it has %d slots after %d", b.Slots, last)
		}
		last = b.Slots
		if b.SlowStart == nil {
			return b.Share > 0.49, nil
		}
		// Slots and percents are not read in the same moment.
		p := b.SlowStart.Percent
		if want := 2 * float64(p) / float64(2*p+200); b.Share > want-0.001 && b.Share < want+0.001 {
			percents[p] = true
		}
		return false, nil
	})
	if len(percents) < 2 {
		t.Errorf("on the way it had the share of %v %% of its weight, want more of them", percents)
	}
	t.Logf("on the way it had the share of %v %% of its weight", percents)
	if !strings.Contains(said, "slow start, ") || !strings.Contains(said, "s left") {
		t.Errorf("status says\n%s", said)
	}
	if got := slots("dsr"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("at the end it has slots %v, want %v", got, before)
	}

	// A restart of the daemon is nobody's return.
	r.kill(daemon)
	daemon = r.start("lb1", file)
	r.waitReady("lb1")
	for i, b := range backends("dsr") {
		if b.SlowStart != nil {
			t.Errorf("after a restart backend %d has %+v", i, b.SlowStart)
		}
	}
	r.stop(daemon)
}
