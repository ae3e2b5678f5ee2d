package loader

import (
	"strings"
	"testing"
	"time"

	"log/slog"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// floodACKs sends segments of connections that nobody has, all to tracked slots,
// until one is refused its place among the stragglers.
func floodACKs(t *testing.T, d *Datapath) {
	t.Helper()
	refused := func() bool {
		var cpus []lbAllowance
		if err := d.objects.StragglerAllowance.Lookup(uint32(0), &cpus); err != nil {
			t.Fatal(err)
		}
		for _, c := range cpus {
			if c.Refused != 0 {
				return true
			}
		}
		return false
	}
	frame := toVIP(flags(testenv.ACK)).Bytes()
	// On a slow machine a tick may be over before its allowance is.
	for i := 0; i < 1_000_000 && !refused(); i++ {
		frame[28], frame[29] = byte(i>>8), byte(i) // the client's address, but for the checksum
		frame[34], frame[35] = byte(i>>16), byte(i)
		if verdict, _ := sendEarnest(t, d, frame); verdict != xdpTX {
			t.Fatalf("verdict %d", verdict)
		}
	}
	if !refused() {
		t.Fatal("none was refused")
	}
}

// A window stays open while a flood of ACKs keeps connections from being
// remembered, and for a window's time after it. A connection that has sent nothing
// but during the flood is where it was all the time.
func TestWindowsOutlastFloods(t *testing.T) {
	log := &recorder{}
	o := Options{MaxFlows: 100000, Ports: allPorts, Log: slog.New(slog.NewTextHandler(log, nil))}
	d := newDatapathWith(t, o, natTimeouts, withWindow(weights(1, 0)))
	all := clients(d, 0, 50)
	for _, c := range all {
		c.open(t)
	}
	apply(t, d, withWindow(weights(0, 1)))
	floodACKs(t, d)
	tracked := func() bool {
		for _, slots := range d.state.Slots {
			return slots[0].state() == lbSlotStateSLOT_TRACKED
		}
		return false
	}
	for _, step := range []struct {
		after time.Duration
		open  bool
	}{
		{testWindow - time.Minute, true},
		{testWindow + time.Minute, false},
	} {
		later(t, d, step.after)
		if tracked() != step.open {
			t.Errorf("%v after the flood slots are tracked: %v, want %v", step.after, tracked(), step.open)
		}
		if !step.open {
			continue
		}
		for _, c := range all {
			if got := c.send(t, testenv.ACK, c.isn+100, ""); got != 1 {
				t.Fatalf("%v after the flood %v goes to backend %d", step.after, c.addr, got)
			}
		}
	}

	// A window that is over is held, and said so once, if the flood came late.
	apply(t, d, withWindow(weights(1, 0)))
	later(t, d, testWindow-time.Minute)
	refuseNow(t, d, testWindow-time.Minute)
	later(t, d, testWindow+time.Minute)
	later(t, d, testWindow+2*time.Minute)
	if !tracked() {
		t.Error("slots are not tracked while the window is held")
	}
	if n := strings.Count(log.String(), "windows stay open"); n != 1 {
		t.Errorf("the log says so %d times, want once:\n%s", n, log)
	}
	later(t, d, 2*testWindow)
	if tracked() {
		t.Error("slots are still tracked a window after the flood")
	}
}

// refuseNow makes a refusal as if it came so much later than now.
func refuseNow(t *testing.T, d *Datapath, in time.Duration) {
	t.Helper()
	var cpus []lbAllowance
	if err := d.objects.StragglerAllowance.Lookup(uint32(0), &cpus); err != nil {
		t.Fatal(err)
	}
	cpus[0].Refused = ticks() + uint32(in/tick)
	if err := d.objects.StragglerAllowance.Put(uint32(0), cpus); err != nil {
		t.Fatal(err)
	}
}

func TestPressure(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	half := d.objects.Stragglers.MaxEntries() / 2
	grant := func(n uint32) {
		var cpus []lbAllowance
		if err := d.objects.StragglerAllowance.Lookup(uint32(0), &cpus); err != nil {
			t.Fatal(err)
		}
		cpus[len(cpus)-1].Granted += n
		if err := d.objects.StragglerAllowance.Put(uint32(0), cpus); err != nil {
			t.Fatal(err)
		}
	}
	const window = 5 * time.Minute
	now := time.Hour
	var p pressure
	grant(2 * half) // an earlier daemon's
	for _, step := range []struct {
		name    string
		after   time.Duration
		granted uint32
		over    bool
	}{
		{"nothing yet", 0, 0, true},
		{"a few", time.Minute, 100, true},
		{"many, within a window", time.Minute, half, false},
		{"quiet", time.Minute, 0, false},
		{"quiet for long", 4 * time.Minute, 0, true},
		{"almost as many", 4 * time.Minute, half - 100, true},
		{"a window is over", time.Minute, 0, true},
		{"almost as many in the next one", time.Minute, half - 100, true},
		{"and a few more", time.Minute, 101, false},
	} {
		now += step.after
		grant(step.granted)
		if err := p.measure(d.tables, now, ticks(), window); err != nil {
			t.Fatal(err)
		}
		if got := p.over(now, window); got != step.over {
			t.Errorf("%s: a window may close: %v, want %v", step.name, got, step.over)
		}
	}
}
