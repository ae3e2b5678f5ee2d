// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A queue has the flows whose state is to be told to a peer, the one that has waited
// longest first. A flow that changes again keeps its place.
type queue struct {
	limit     int // flows
	states    map[lb.FlowID]lb.FlowState
	order     []waiting // from head on
	head      int
	coalesced uint64
	came      uint64 // flows that were put behind the others
	went      uint64 // of these, taken or forgotten
}

type waiting struct {
	id    lb.FlowID
	since time.Time
}

// put adds states. With more than limit flows it forgets all of them and returns
// false.
func (q *queue) put(states []lb.FlowState, now time.Time) bool {
	if q.states == nil {
		q.states = map[lb.FlowID]lb.FlowState{}
	}
	for i := range states {
		id := states[i].FlowID
		if before, ok := q.states[id]; ok {
			q.coalesced++
			if endsAnother(&states[i], &before) {
				continue
			}
		} else if len(q.states) >= q.limit {
			q.forget()
			return false
		} else {
			q.order = append(q.order, waiting{id, now})
			q.came++
		}
		q.states[id] = states[i]
	}
	return true
}

// endsAnother tells whether the end of a flow is that of an earlier one of the same
// client and VIP, whose successor waits already: the two are read in no order.
func endsAnother(end, waiting *lb.FlowState) bool {
	return end.Phase == lb.FlowOver && waiting.Phase != lb.FlowOver && end.Source.IsValid() && waiting.Source.IsValid() &&
		end.Source != waiting.Source
}

func (q *queue) forget() {
	q.states, q.order, q.head = map[lb.FlowID]lb.FlowState{}, nil, 0
	q.went = q.came
}

func (q *queue) len() int { return len(q.states) }

// oldest is since when the first one waits.
func (q *queue) oldest() time.Time {
	if q.head == len(q.order) {
		return time.Time{}
	}
	return q.order[q.head].since
}

// take moves up to n states to into.
func (q *queue) take(n int, into []lb.FlowState) []lb.FlowState {
	for ; n > 0 && q.head < len(q.order); n-- {
		id := q.order[q.head].id
		q.head++
		q.went++
		into = append(into, q.states[id])
		delete(q.states, id)
	}
	switch rest := len(q.order) - q.head; {
	case rest == 0:
		q.order, q.head = q.order[:0], 0
	case q.head > rest:
		// What was taken is more than what is left: it costs less than it frees.
		q.order = q.order[:copy(q.order, q.order[q.head:])]
		q.head = 0
	}
	return into
}
