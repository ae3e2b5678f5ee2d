package control

import (
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

const (
	// shakesEvery is how often peers are told of handshakes while VIPs are about to move.
	shakesEvery = 20 * time.Millisecond
	// shakesOn is for how long they are told when a VIP has moved, as to a node of higher
	// priority that has come back: nobody says so before.
	shakesOn = 2 * time.Second
)

// Moves says that for so long VIPs may be on their way to another node. Peers are told
// of handshakes, too, that no change tells of, so that these may end there.
func (s *SharedState) Moves(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until := time.Now().Add(within); until.After(s.moves) {
		s.moves = until
	}
}

// tellHandshakes appends handshakes while VIPs are about to move.
func (s *SharedState) tellHandshakes(into []lb.FlowState, now time.Time) ([]lb.FlowState, error) {
	s.mu.Lock()
	moves := now.Before(s.moves)
	s.mu.Unlock()
	switch {
	case !moves:
		s.handshakes = nil
		return into, nil
	case s.handshakes == nil:
		s.handshakes = s.flows.Handshakes()
	case now.Sub(s.shaken) < shakesEvery:
		return into, nil
	}
	s.shaken = now
	return s.handshakes(into)
}
