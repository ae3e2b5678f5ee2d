package loader

import (
	"fmt"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// killed is what a test ends a daemon with, in the midst of what it does.
type killed struct{ step string }

// killReshare gives the data plane another share and ends the daemon when it comes
// to a step for the nth time, as a kill does: nothing is tidied up. It tells whether
// it came so far.
func killReshare(t *testing.T, d *Datapath, share lb.PortRange, step string, nth int) (reached bool) {
	t.Helper()
	d.tables.reached = func(s string) {
		if s == step {
			if nth--; nth == 0 {
				panic(killed{step})
			}
		}
	}
	defer func() {
		d.tables.reached = nil
		if r := recover(); r != nil {
			if _, reached = r.(killed); !reached {
				panic(r)
			}
		}
	}()
	reshare(t, d, share)
	return false
}

// startAgain reads the state back, as the next daemon does.
func startAgain(t *testing.T, d *Datapath) {
	t.Helper()
	state, err := d.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	d.state = state
	d.show()
}

// A daemon that is killed while it gives a pair another share, wherever, leaves what
// the next one puts right: no port is lost, none is doubled, and none is unreachable
// behind a place of the ring that holds nothing.
func TestNATShareKilled(t *testing.T) {
	all := freeShare(t, 40)
	lower, upper := lb.PortRange{First: all.First, Last: all.First + 19}, lb.PortRange{First: all.First + 20, Last: all.Last}
	d, view := newNAT(t, lower)
	client := 0
	open := func(t *testing.T) *conn {
		t.Helper()
		client++
		c := newConn(d, clientAddr(client))
		if !c.tryOpen(t) {
			return nil
		}
		return c
	}
	for _, tc := range []struct {
		step     string
		nth      int
		to, next lb.PortRange
		idle     bool // nobody comes before the next daemon
	}{
		{"begun", 1, upper, upper, false},
		{"share stored", 1, upper, lower, false},
		{"share stored", 1, upper, upper, false},
		{"marked", 1, upper, upper, false},
		{"marked", 20, upper, all, false},
		{"ticket taken", 1, upper, upper, false},
		{"ticket taken", 1, upper, lower, false},
		{"ticket taken", 7, upper, all, false},
		{"pushed", 7, upper, lower, false},
		{"popped", 1, upper, upper, false},
		{"popped", 5, upper, lower, false},
		{"popped", 3, all, all, false},
		// In the second half ports of the old share are moved behind the new ones.
		{"ticket taken", 25, all, all, false},
		{"ticket taken", 25, all, upper, false},
		{"filled", 1, upper, all, false},
		// What was popped last stands right before the ring's head.
		{"popped", 1, upper, upper, true},
		{"popped", 3, all, all, true},
		{"popped", 3, all, lower, true},
		{"ticket taken", 1, upper, upper, true},
		{"ticket taken", 25, all, all, true},
	} {
		t.Run(fmt.Sprintf("%s %d, %v then %v, idle %v", tc.step, tc.nth, tc.to, tc.next, tc.idle), func(t *testing.T) {
			reshare(t, d, lower)
			var conns []*conn
			for range 10 {
				conns = append(conns, open(t))
			}
			conns[0].close(t)
			if !killReshare(t, d, tc.to, tc.step, tc.nth) {
				t.Fatal("the daemon did not come so far")
			}
			live := conns[1:]
			if !tc.idle {
				// The program goes on with what it finds.
				for range 3 {
					if c := open(t); c != nil {
						conns = append(conns, c)
					}
				}
				conns[1].close(t)
				live = conns[2:]
			}

			startAgain(t, d)
			reshare(t, d, tc.next)
			checkRing(t, view, tc.next)
			free := tc.next.Count()
			for _, c := range live {
				c.translates(t, testenv.ACK)
				if tc.next.Contains(c.source.Port()) {
					free--
				}
			}
			for i := range free {
				c := open(t)
				if c == nil {
					t.Fatalf("connection %d of %d was refused: %v", i, free, outcomes(t, d))
				}
				live = append(live, c)
			}
			if c := open(t); c != nil {
				t.Errorf("one more connection than there are ports comes from %v", c.source)
			}
			if got := int(view.words().Ports); got != tc.next.Count() {
				t.Errorf("%d ports are known, want %d", got, tc.next.Count())
			}
			if got := view.words().Handshakes + 1; got != handshakes(tc.next) {
				t.Errorf("there is room for %d handshakes, want %d", got, handshakes(tc.next))
			}
			startAgain(t, d)
			if d.state.Pairs[1].Filling {
				t.Error("the pair is taken for one that is half done")
			}
			for _, c := range live {
				c.end(t)
			}
		})
	}
}

// Without mending, a place of the ring that a ticket was taken for and that holds
// nothing is the ring's end for ever: what the test above would not notice if the
// daemon were not killed where it says.
func TestNATHoleEndsTheRing(t *testing.T) {
	all := freeShare(t, 8)
	lower, upper := lb.PortRange{First: all.First, Last: all.First + 3}, lb.PortRange{First: all.First + 4, Last: all.Last}
	d, view := newNAT(t, lower)
	for i := range 4 {
		openConn(t, d, clientAddr(i))
	}
	if !killReshare(t, d, upper, "ticket taken", 1) {
		t.Fatal("the daemon did not come so far")
	}
	c := newConn(d, clientAddr(10))
	if c.tryOpen(t) {
		t.Errorf("a connection comes from %v", c.source)
	}
	view.mend()
	c.open(t)
}
