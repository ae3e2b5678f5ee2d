// SPDX-License-Identifier: Apache-2.0

package statesync

import "github.com/sluice-lb/sluice/internal/lb"

// maxRefusing bounds the flows that are kept in mind.
const maxRefusing = 1 << 17

// refusing are hashes of the flows of a peer that the Sink has no use for, and that go on:
// a takeover would break them. Nil is none.
type refusing map[uint64]struct{}

// note takes in what the Sink has said to some states.
func (r *refusing) note(states []lb.FlowState, refused []lb.FlowID) {
	if len(*r) == 0 && len(refused) == 0 {
		return
	}
	for i := range states {
		delete(*r, hashID(0, &states[i].FlowID))
	}
	for i := range refused {
		if *r == nil {
			*r = refusing{}
		}
		if len(*r) < maxRefusing {
			(*r)[hashID(0, &refused[i])] = struct{}{}
		}
	}
	for i := range states {
		if states[i].Phase == lb.FlowOver {
			delete(*r, hashID(0, &states[i].FlowID))
		}
	}
}
