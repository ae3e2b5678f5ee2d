package loader

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What a round of handshakes looks at and keeps in mind, so that a flood of SYNs costs no
// more than this: it may hide some of those that are meant.
const (
	maxHandshakes   = 1 << 13 // that are told in a round
	maxShaken       = 1 << 15 // that are kept in mind
	shakesOfOnePair = 1 << 12 // that are looked at, the newest
	shakesOfPairs   = 1 << 16 // of all pairs
)

// Handshakes returns a function that appends the connections that are about to open, which
// Changes does not tell of: a client that has sent its SYN here may send what follows to the
// node that has the VIP by then. It is for a planned move of VIPs, and called again and
// again until that is over: each call tells what has begun, or got further, since the
// last one. In the tables of single flows a handshake is told as the flow that becomes
// of it.
func (f *FlowFeed) Handshakes() func(into []lb.FlowState) ([]lb.FlowState, error) {
	s := shaking{FlowFeed: f, told: map[lb.FlowState]bool{}}
	return func(into []lb.FlowState) ([]lb.FlowState, error) {
		f.lock()
		defer f.unlock()
		if err := f.refresh(); err != nil {
			return into, err
		}
		s.now, s.most, s.left = ticks(), len(into)+maxHandshakes, shakesOfPairs
		for range f.order { // from where the last round has ended
			s.turn = (s.turn + 1) % len(f.order)
			if into = s.ofPair(into, f.pairs[f.order[s.turn]]); s.left == 0 || s.full(into) {
				break
			}
		}
		return s.ofSlots(into)
	}
}

// A shaking is what has been told of handshakes.
type shaking struct {
	*FlowFeed
	told map[lb.FlowState]bool // without the time since their last packet
	now  uint32
	most int
	left uint64 // entries that this round may look at still
	turn int    // the pair that was looked at last
}

// full tells whether nothing more is told in this round.
func (s *shaking) full(into []lb.FlowState) bool {
	return len(s.told) >= maxShaken || len(into) >= s.most
}

// tell appends a handshake, but only once.
func (s *shaking) tell(into []lb.FlowState, state lb.FlowState) []lb.FlowState {
	key := state
	key.Idle = 0
	if s.full(into) || s.told[key] {
		return into
	}
	s.told[key] = true
	return append(into, state)
}

// ofPair goes through the ring of a pair's handshakes.
func (s *shaking) ofPair(into []lb.FlowState, p *toldPair) []lb.FlowState {
	passed := atomic.LoadUint64(p.word(unsafe.Offsetof(lbNatPair{}.GivenUp)))
	begun := atomic.LoadUint64(p.word(unsafe.Offsetof(lbNatPair{}.Embryonic)))
	size := atomic.LoadUint64(p.word(unsafe.Offsetof(lbNatPair{}.FirstPort)))>>32 + 1
	look := min(begun-passed, size, shakesOfOnePair, s.left)
	s.left -= look
	for back := range look {
		if s.full(into) {
			break
		}
		turn := begun - 1 - back
		word := p.ring.load(int(lbLimitsNAT_PORTS) + int(turn&(size-1)))
		port := uint16(word)
		e, ok := p.read(port)
		if word == 0 || !ok || e.Bucket != uint32(word>>16) || e.Turn != uint8(word>>48) || s.void(&e, s.now) {
			continue
		}
		switch lbNatState(e.State) {
		case lbNatStateNAT_SYN_SENT, lbNatStateNAT_SYN_RECEIVED:
			if state, ok := s.index.translated(p, port, &e, s.now); ok {
				into = s.tell(into, state)
			}
		}
	}
	return into
}

// ofSlots goes through the handshakes of slots that are not clean.
func (s *shaking) ofSlots(into []lb.FlowState) ([]lb.FlowState, error) {
	keys, pins := make([]lbFlowKey, pinBatch), make([]lbPin, pinBatch)
	var cursor ebpf.MapBatchCursor
	for range maxShaken / pinBatch {
		if s.full(into) {
			break
		}
		n, err := s.d.objects.Handshakes.BatchLookup(&cursor, keys, pins, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return into, fmt.Errorf("read the handshakes: %w", err)
		}
		for i := range n {
			if idleFor(s.now, pins[i].Seen) > handshakeIdle {
				continue
			}
			if state, ok := s.index.pinned(lb.FlowPinned, &keys[i], &pins[i], s.now); ok {
				state.Phase = lb.FlowClosing // it lives on if the client goes on, and not for long otherwise
				into = s.tell(into, state)
			}
		}
		if last {
			break
		}
	}
	return into, nil
}
