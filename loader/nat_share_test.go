package loader

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// reshare gives the data plane another share of ports, as a daemon does that
// starts with another configuration.
func reshare(t *testing.T, d *Datapath, share lb.PortRange) {
	t.Helper()
	d.share = share
	apply(t, d, service("web", lb.NAT, 80, backends(1, 80)))
}

// checkRing checks what must always hold of a pair: a port stands in the ring
// once, exactly if it is marked so, and every port of the share that has no flow
// is there to be had.
func checkRing(t *testing.T, view pairView, share lb.PortRange) {
	t.Helper()
	queued := view.queued()
	seen := map[uint16]bool{}
	for _, p := range queued {
		if seen[p] {
			t.Fatalf("port %d stands in the ring twice", p)
		}
		seen[p] = true
	}
	for p := 1; p < int(lbLimitsNAT_PORTS); p++ {
		f := view.flow(uint16(p))
		if marked := f.Flags&uint32(lbNatFlagsNAT_QUEUED) != 0; marked != seen[uint16(p)] {
			t.Fatalf("port %d: marked as queued %v, in the ring %v, state %d", p, marked, seen[uint16(p)], f.State)
		}
		inShare := p >= int(share.First) && p <= int(share.Last)
		over := f.State == uint32(lbNatStateNAT_FREE) || f.State == uint32(lbNatStateNAT_CLOSED)
		if inShare && over && !seen[uint16(p)] {
			t.Fatalf("port %d is lost: state %d, flags %#x", p, f.State, f.Flags)
		}
		if !inShare && seen[uint16(p)] {
			t.Fatalf("port %d of another node is in the ring", p)
		}
	}
}

func TestNATShareChanges(t *testing.T) {
	all := freeShare(t, 40)
	lower, upper := lb.PortRange{First: all.First, Last: all.First + 19}, lb.PortRange{First: all.First + 20, Last: all.Last}
	d, view := newNAT(t, lower)
	var conns []*conn
	for i := range 10 {
		conns = append(conns, openConn(t, d, clientAddr(i)))
	}
	conns[0].close(t)

	reshare(t, d, upper)
	checkRing(t, view, upper)
	if diff := cmp.Diff(lb.PortRange{First: view.words().FirstPort, Last: view.words().LastPort}, upper); diff != "" {
		t.Errorf("share (-got +want):\n%s", diff)
	}
	if got := len(view.queued()); got != 20 {
		t.Errorf("%d ports are in the ring, want 20", got)
	}
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}
	conns[1].close(t)
	for i := range 20 {
		c := openConn(t, d, clientAddr(100+i))
		if p := c.source.Port(); p < upper.First || p > upper.Last {
			t.Fatalf("port %d was handed out, which is not of %v", p, upper)
		}
	}
	if c := newConn(d, clientAddr(200)); c.tryOpen(t) {
		t.Errorf("one more connection than there are ports comes from %v", c.source)
	}
	checkRing(t, view, upper)

	// Back: the flows that live keep their ports, all others are free.
	reshare(t, d, lower)
	checkRing(t, view, lower)
	if got := len(view.queued()); got != 12 {
		t.Errorf("%d ports are in the ring, want the 20 but for 8 live flows", got)
	}
	conns[2].close(t)
	if got := view.queued(); !slices.Contains(got, conns[2].source.Port()) {
		t.Errorf("port %d of a closed flow is not in the ring", conns[2].source.Port())
	}
	for share, want := range map[lb.PortRange]uint32{lower: 8, all: 16} {
		reshare(t, d, share)
		// The power of two up to half of its ports.
		if got := view.words().Handshakes + 1; got != want {
			t.Errorf("there is room for %d handshakes of %v, want %d", got, share, want)
		}
	}
	reshare(t, d, all)
	checkRing(t, view, all)
	for _, c := range conns[3:] {
		c.translates(t, testenv.ACK)
	}
}

// Shares that come and go at random, with connections that open and end, lose no
// port and double none.
func TestNATShareWalk(t *testing.T) {
	all := freeShare(t, 60)
	d, view := newNAT(t, all)
	r := rand.New(rand.NewPCG(7, 7))
	var live []*conn
	for i := range 1500 {
		switch n := r.IntN(100); {
		case n < 50:
			c := newConn(d, clientAddr(i))
			if c.tryOpen(t) {
				live = append(live, c)
			}
		case n < 90 && len(live) > 0:
			k := r.IntN(len(live))
			c := live[k]
			live = slices.Delete(live, k, k+1)
			c.end(t)
		case n >= 90:
			a, b := all.First+uint16(r.IntN(60)), all.First+uint16(r.IntN(60))
			reshare(t, d, lb.PortRange{First: min(a, b), Last: max(a, b)})
			checkRing(t, view, d.share)
		}
	}
	for _, c := range live {
		c.translates(t, testenv.ACK)
	}
	checkRing(t, view, d.share)
}

// A port that somebody on the node listens on is given to no pair, and one that a pair
// has already is known still.
func TestShareKnowsPortsThatSomebodyListensOn(t *testing.T) {
	all := freeShare(t, 20)
	first := lb.PortRange{First: all.First, Last: all.First + 9}
	d, view := newNAT(t, first)
	used := openConn(t, d, clientAddr(0)).source.Port()
	queued := view.queued()[0]
	for _, tc := range []struct {
		name      string
		listening []uint16
		want      int
	}{
		{"nobody", nil, 20}, {"on a port in use", []uint16{used}, 20}, {"on one in the ring", []uint16{queued}, 20}, {"on a new one", []uint16{all.Last}, 19},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d.tables.listening = map[lb.Protocol]map[uint16]bool{lb.TCP: {}}
			for _, port := range tc.listening {
				d.tables.listening[lb.TCP][port] = true
			}
			for _, share := range []lb.PortRange{first, all} {
				if err := d.tables.setShare(1, share, lb.TCP); err != nil {
					t.Fatal(err)
				}
			}
			if got := int(view.words().Ports); got != tc.want {
				t.Errorf("%d ports are known, want %d", got, tc.want)
			}
			for _, port := range tc.listening {
				if port == all.Last && slices.Contains(view.queued(), port) {
					t.Errorf("port %d is to be had", port)
				}
			}
		})
	}
}
