package loader

import (
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Without a window a change moves the slots at once: everything goes to the owner, and
// nothing is remembered of anybody.
func TestNoWindow(t *testing.T) {
	for _, forward := range []lb.Forward{lb.DSR, lb.DNAT, lb.Tunnel} {
		t.Run(forward.String(), func(t *testing.T) {
			s := service("web", forward, 80, backends(3, 80))
			s.TrackWindow, s.DrainTimeout = 0, time.Hour
			d := newDatapath(t, s)
			for _, change := range []struct {
				name    string
				weights []lb.Backend
			}{
				{"another weight", weights(1, 3, 1)}, {"a drain", weights(1, 3, 0)}, {"a removal", weights(1, 3)}, {"back", weights(1, 1, 1)},
			} {
				s.Backends = change.weights
				apply(t, d, s)
				for i, w := range d.state.Slots[1] {
					if w.state() != clean || w.previous() != 0 {
						t.Fatalf("%s: slot %d is of %v", change.name, i, w)
					}
				}
			}
		})
	}

	t.Run("packets", func(t *testing.T) {
		s := withWindow(weights(1, 1))
		s.TrackWindow = 0
		d := newDatapath(t, s)
		all := clients(d, 0, 500)
		for _, c := range all {
			c.open(t)
		}
		before := where(t, all)
		s.Backends = weights(1, 3)
		apply(t, d, s)
		after := where(t, all)
		if movedBetween(before, after) == 0 {
			t.Error("no connection has moved")
		}
		for i, c := range all {
			if c.syn(t) != c.owner() || after[i] != c.owner() {
				t.Fatalf("%v goes to %d, its slot is of %d", c.addr, after[i], c.owner())
			}
		}
		for name, m := range map[string]int{
			"handshakes": entries(t, d.objects.Handshakes), "pins": entries(t, d.objects.Pins), "stragglers": entries(t, d.objects.Stragglers),
		} {
			if m != 0 {
				t.Errorf("%d %s are remembered, want none", m, name)
			}
		}
	})

	// Connections that were pinned while there were windows stay.
	t.Run("after a window", func(t *testing.T) {
		d := newDatapath(t, withWindow(weights(1, 1)))
		all := clients(d, 0, 500)
		before := where(t, all)
		apply(t, d, withWindow(weights(1, 3)))
		if n := movedBetween(before, where(t, all)); n != 0 {
			t.Fatalf("%d connections have moved in a window", n)
		}
		s := withWindow(weights(3, 1))
		s.TrackWindow = 0
		apply(t, d, s)
		changed := 0
		for i, c := range all {
			number := c.d.state.service(c.d.state.VIPs[vipIP].Tables[tcpTable], 80)
			w := c.d.state.Slots[number][Slot(FlowHash(c.addr, vipPort, lb.TCP), lb.DefaultTableSize)]
			if w.state() == clean {
				continue
			}
			changed++
			if got := c.data(t); got != before[i] {
				t.Errorf("%v goes to %d, was at %d", c.addr, got, before[i])
			}
		}
		if changed == 0 {
			t.Error("no window is open")
		}
	})
}
