// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Flush waits until every peer has acknowledged everything that has changed until now:
// before a planned stop or a handover. It waits for those that are connected, by either
// direction, since one of them may be the next to answer, and not for one that is gone
// meanwhile, whatever it has acknowledged; where none is, only as long as one may take to
// connect anew. What it returns then, or when ctx ends, names the peers
// that have not, and why.
func (n *Node) Flush(ctx context.Context) error {
	if len(n.peers) == 0 {
		return nil
	}
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
	f := flushing{node: n, marks: map[*peer]*mark{}}
	tick := time.NewTicker(n.tuning.poll)
	defer tick.Stop()
	for met := time.Now(); ; {
		behind, connected := f.look()
		if connected {
			met = time.Now()
		}
		if len(behind) == 0 || time.Since(met) > n.tuning.lastRetry+n.tuning.dial {
			return errors.Join(behind...)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for i := range behind {
				behind[i] = fmt.Errorf("%w: %w", behind[i], context.Cause(ctx))
			}
			return errors.Join(behind...)
		}
	}
}

// flushing is a call of Flush.
type flushing struct {
	node  *Node
	marks map[*peer]*mark
}

// look returns what the peers lack that are connected; where none is, all others, too.
func (f *flushing) look() (behind []error, connected bool) {
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	var gone []error
	now := time.Now()
	for _, p := range f.node.peers {
		m := f.marks[p]
		if p.sending != nil && (m == nil || m.of != p.sending) {
			m = p.sending.mark()
			f.marks[p] = m
		}
		// What one has acknowledged that is gone helps nobody.
		if p.sending != nil && m.pass() {
			connected = true
			continue
		}
		s := p.status(now)
		why := lacks(&s, now)
		if why == "" {
			why = fmt.Sprintf("%s (%v) has not acknowledged everything", p.Name, p.Address)
		}
		if p.sending == nil && p.receiving == nil {
			gone = append(gone, errors.New(why))
			continue
		}
		connected = true
		behind = append(behind, errors.New(why))
	}
	if !connected {
		behind = gone
	}
	return behind, connected
}

// A mark is a place in what goes to a peer.
type mark struct {
	of     *outgoing
	came   uint64 // in the queue
	sent   bool   // everything up to there is, with
	said   uint64 // this last sequence
	passed bool   // and acknowledged
}

func (o *outgoing) mark() *mark {
	o.mu.Lock()
	defer o.mu.Unlock()
	return &mark{of: o, came: o.queue.came}
}

// pass reports whether everything up to the mark is acknowledged, or once was.
func (m *mark) pass() bool {
	if m.passed {
		return true
	}
	o := m.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if !m.sent && o.queue.went >= m.came && !o.taking {
		m.sent, m.said = true, o.said
	}
	landed := len(o.flight.all) == 0 || o.flight.all[0].sequence > m.said
	m.passed = !o.gone && m.sent && landed && o.synced
	return m.passed
}
