package loader

import "time"

// A slot is one word of a Maglev table, as bpf/types.h lays it out: who owns it,
// who owned it before the window that is open, and its state.
type slot uint64

const ownerMask = 1<<lbSlotBitsSLOT_OWNER_BITS - 1

// closesUnit is the unit of the time at which a slot's window closes; closesMask
// its field. It is compared modulo its range, so a window is shorter than half
// of that.
const (
	closesUnit = 8 * time.Second
	closesMask = 1<<(64-lbSlotBitsSLOT_CLOSES_SHIFT) - 1
	maxWindow  = closesMask / 2 * closesUnit
)

// noWindow is when a window closes that is not to be opened.
const noWindow time.Duration = -1

func makeSlot(owner, previous uint32, state lbSlotState) slot {
	return slot(owner&ownerMask) | slot(previous&ownerMask)<<lbSlotBitsSLOT_PREVIOUS_SHIFT |
		slot(state)<<lbSlotBitsSLOT_STATE_SHIFT
}

func (s slot) owner() uint32    { return uint32(s) & ownerMask }
func (s slot) previous() uint32 { return uint32(s>>lbSlotBitsSLOT_PREVIOUS_SHIFT) & ownerMask }
func (s slot) state() lbSlotState {
	return lbSlotState(s >> lbSlotBitsSLOT_STATE_SHIFT & slot(lbSlotBitsSLOT_STATE_MASK))
}

// closing returns s with a window that closes at the given time since boot, or up
// to closesUnit later.
func (s slot) closing(at time.Duration) slot {
	units := slot((at+closesUnit-1)/closesUnit) & closesMask
	return s&(1<<lbSlotBitsSLOT_CLOSES_SHIFT-1) | units<<lbSlotBitsSLOT_CLOSES_SHIFT
}

// left returns how long the window of a tracked slot stays open.
func (s slot) left(now time.Duration) time.Duration {
	units := uint64(s>>lbSlotBitsSLOT_CLOSES_SHIFT) - uint64(now/closesUnit)
	d := time.Duration(units&closesMask) * closesUnit
	if d > maxWindow+closesUnit {
		return 0 // it has closed
	}
	return max(0, d-now%closesUnit)
}

// change gives the slot another owner. Alive tells which backends go on serving
// what they have.
//
// A planned change keeps the one who owned the slot when the window opened: the
// flows that came later were pinned at their SYN. A failed owner is nobody's
// previous owner, so its slot moves at once.
//
// A slot that is not tracked yet gets a window that closes at the given time
// since boot, or with noWindow moves at once; a window that is open stays as it is.
func (s slot) change(owner uint32, alive func(uint32) bool, closes time.Duration) slot {
	previous := s.previous()
	if s.state() != lbSlotStateSLOT_TRACKED || !alive(previous) {
		previous = 0
	}
	outgoing := s.owner()
	if owner == outgoing || !alive(outgoing) || closes == noWindow && s.state() != lbSlotStateSLOT_TRACKED {
		outgoing = 0
	}
	switch {
	case previous != 0:
		return s.with(owner, previous)
	case outgoing != 0 && s.state() == lbSlotStateSLOT_TRACKED:
		return s.with(owner, outgoing)
	case outgoing != 0:
		return makeSlot(owner, outgoing, lbSlotStateSLOT_TRACKED).closing(closes)
	}
	// Pins of earlier changes may live on.
	return s.with(owner, 0)
}

// with returns s with other owners.
func (s slot) with(owner, previous uint32) slot {
	const owners = 1<<lbSlotBitsSLOT_STATE_SHIFT - 1
	return s&^owners | makeSlot(owner, previous, 0)
}

// settle closes the slot's window: pins are still looked up, nothing is pinned
// any more.
func (s slot) settle() slot {
	if s.state() != lbSlotStateSLOT_TRACKED {
		return s
	}
	return makeSlot(s.owner(), 0, lbSlotStateSLOT_SETTLING)
}

// clean ends the tracking of a slot that has settled and that no pin is left in.
func (s slot) clean() slot {
	if s.state() != lbSlotStateSLOT_SETTLING {
		return s
	}
	return makeSlot(s.owner(), 0, lbSlotStateSLOT_CLEAN)
}

// serves tells whether who is named by the slot goes on serving.
func (s slot) serves(alive func(uint32) bool) bool {
	owner, previous := s.owner(), s.previous()
	return (owner == 0 || alive(owner)) && (previous == 0 || alive(previous))
}
