// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Flush waits until each connected peer has acknowledged everything that has changed
// until now: before a planned stop or a handover. What it returns when ctx ends names
// the peers that have not.
func (n *Node) Flush(ctx context.Context) error {
	for range 2 { // a call of Changes that is under way may have missed the last changes
		n.mu.Lock()
		next := n.polled
		n.mu.Unlock()
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("read what has changed: %w", context.Cause(ctx))
		}
	}
	n.mu.Lock()
	var marks []*mark
	for _, p := range n.peers {
		if p.sending != nil {
			marks = append(marks, p.sending.mark())
		}
	}
	n.mu.Unlock()
	tick := time.NewTicker(n.tuning.poll)
	defer tick.Stop()
	for {
		if marks = slices.DeleteFunc(marks, (*mark).passed); len(marks) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			var behind []error
			for _, m := range marks {
				behind = append(behind, fmt.Errorf("%s has not acknowledged everything: %w", m.of.peer.Name, context.Cause(ctx)))
			}
			return errors.Join(behind...)
		}
	}
}

// A mark is a place in what goes to a peer.
type mark struct {
	of   *outgoing
	came uint64 // in the queue
	sent bool   // everything up to there is, with
	said uint64 // this last sequence
}

func (o *outgoing) mark() *mark {
	o.mu.Lock()
	defer o.mu.Unlock()
	return &mark{of: o, came: o.queue.came}
}

// passed reports whether everything up to the mark is acknowledged, or the connection
// has ended.
func (m *mark) passed() bool {
	o := m.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if !m.sent && o.queue.went >= m.came && !o.taking {
		m.sent, m.said = true, o.said
	}
	landed := len(o.flight.all) == 0 || o.flight.all[0].sequence > m.said
	return o.gone || m.sent && landed && o.synced
}
