// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"slices"
	"sync"
	"time"
)

// Heartbeats carry to other nodes, faster than advertisements, how one instance
// stands. What they bring comes back through Router.Hear.
type Heartbeats interface {
	// ID is this run of the daemon, as other nodes know it.
	ID() NodeID
	// Tell sets what heartbeats say from now on. It is called at every change, and
	// while Active at least every second or at each advertisement: heartbeats of an
	// instance that tells no more must not go on to call it Active. It waits for
	// nothing.
	Tell(s State, priority uint8)
	// Quiet reports whether all that has arrived has been handed to Hear.
	Quiet() bool
}

// A mailbox keeps heartbeats until the loop has time for them. Of each node the
// latest counts, so whoever brings them never waits.
type mailbox struct {
	mu      sync.Mutex
	waiting []Beat
	spare   []Beat // what take returned before: no garbage
	wake    chan struct{}
}

func (m *mailbox) put(b Beat) {
	m.mu.Lock()
	i := slices.IndexFunc(m.waiting, func(w Beat) bool { return w.Node == b.Node && w.Gone == b.Gone })
	switch {
	case i >= 0:
		m.waiting[i] = b
	case len(m.waiting) < 2*maxBeatPeers:
		m.waiting = append(m.waiting, b)
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default: // the loop has yet to look
	}
}

// take returns what waits, valid until the next call.
func (m *mailbox) take() []Beat {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.waiting
	m.waiting, m.spare = m.spare[:0], all
	return all
}

// Hear takes an authentic heartbeat of another node about this instance. It waits
// for nothing and allocates nothing.
func (r *Router) Hear(b Beat) { r.beats.put(b) }

// hear hands heartbeats to the machine.
func (r *Router) hear(now time.Time) {
	for _, b := range r.beats.take() {
		if r.done {
			return
		}
		r.perform(now, r.machine.Beat(now, b))
	}
}

// tellEvery bounds how long an Active instance says nothing to its heartbeats.
const tellEvery = time.Second

// tell says to the heartbeats how the instance stands, where that has changed or
// was said long ago.
func (r *Router) tell(now time.Time) {
	if r.deps.Heartbeats == nil {
		return
	}
	t := told{r.machine.State(), r.machine.Advertised(), r.toldLast.at}
	if r.machine.Releasing() {
		t.priority = PriorityRelease
	}
	if t == r.toldLast && (t.state != Active || now.Sub(t.at) < min(tellEvery, r.cfg.Interval)) {
		return
	}
	t.at = now
	r.toldLast = t
	r.deps.Heartbeats.Tell(t.state, t.priority)
}

// told is what was said to heartbeats.
type told struct {
	state    State
	priority uint8
	at       time.Time
}

// A quieter is a Transport that knows whether something has arrived that Receive
// has not returned yet.
type quieter interface{ Quiet() bool }

// quiet reports whether everything has been read that has arrived at this node.
func (r *Router) quiet() bool {
	if r.deps.Heartbeats != nil && !r.deps.Heartbeats.Quiet() {
		return false
	}
	if r.transport == nil {
		return true
	}
	q, ok := r.transport.Transport.(quieter)
	return !ok || q.Quiet()
}
