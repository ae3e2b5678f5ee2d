package loader

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// mark marks a port as queued, as the program does before it takes a ticket.
func (v pairView) mark(port uint16) {
	atomic.OrUint32(&v.flow(port).Flags, uint32(lbNatFlagsNAT_QUEUED))
}

// ticket takes a place in the ring and puts nothing there yet.
func (v pairView) ticket() uint64 { return atomic.AddUint64(v.tail(), 1) - 1 }

func (v pairView) place(ticket uint64) int { return int(ticket % uint64(lbLimitsNAT_PORTS)) }

// What runs of the program are in the midst of while a daemon mends is theirs to end:
// it is neither mended nor taken for lost.
func TestMendLeavesToTheProgramWhatItDoes(t *testing.T) {
	all := freeShare(t, 12)
	share := lb.PortRange{First: all.First, Last: all.First + 7}
	_, view := newNAT(t, share)
	// What a killed daemon has left: a port that is marked, and a place that it was for.
	lost := view.queued()[0]
	if port, ok := view.pop(); !ok || port != lost {
		t.Fatalf("popped %d, want %d", port, lost)
	}
	hole := view.ticket()

	// Ports that runs of the program have in hand.
	pushed, begun, taken := all.First+8, all.First+9, view.queued()[0]
	before := view.queued()[1:7]
	if port, ok := view.pop(); !ok || port != taken {
		t.Fatalf("popped %d, want %d", port, taken)
	}
	view.mark(pushed)
	onItsWay := view.ticket()
	var later uint64
	view.reached = func(step string) {
		if step != "suspected" {
			return
		}
		view.reached = nil
		view.ring.store(view.place(onItsWay), ringWord(onItsWay, pushed)) // that run ends
		view.unqueue(taken)                                               // so does the one that has popped
		view.mark(begun)                                                  // and another one begins
		later = view.ticket()
	}
	word := view.ring.load(view.place(*view.tail()))
	view.mend()

	if now := view.ring.load(view.place(later)); now != word {
		t.Errorf("a place that a run has taken meanwhile holds %#x, held %#x", now, word)
	}
	view.ring.store(view.place(later), ringWord(later, begun)) // that one ends, too
	if diff := cmp.Diff(slices.Concat(before, []uint16{lost, pushed, begun}), view.queued()); diff != "" {
		t.Errorf("ports in the ring (-want +got):\n%s", diff)
	}
	if w := view.ring.load(view.place(hole)); w != ringWord(hole, lost) {
		t.Errorf("the place that held nothing holds %#x", w)
	}
}

// After the ring has come round, what stands in it from the round before counts for
// nothing.
func TestMendAfterTheRingHasComeRound(t *testing.T) {
	share := freeShare(t, 8)
	_, view := newNAT(t, share)
	for range int(lbLimitsNAT_PORTS) + 3 {
		port, ok := view.pop()
		if !ok {
			t.Fatal("the ring is empty")
		}
		view.push(port)
	}
	ports := view.queued()
	if port, ok := view.pop(); !ok || port != ports[0] {
		t.Fatalf("popped %d, want %d", port, ports[0])
	}
	view.ticket() // for that port, and nothing is there
	view.mend()
	if diff := cmp.Diff(append(ports[1:], ports[0]), view.queued()); diff != "" {
		t.Errorf("ports in the ring (-want +got):\n%s", diff)
	}
	if port, ok := view.pop(); !ok || port != ports[1] {
		t.Errorf("popped %d, want %d", port, ports[1])
	}
	if w := *view.head(); w <= uint64(lbLimitsNAT_PORTS) {
		t.Errorf("the head is at %d, the ring has not come round", w)
	}
}
