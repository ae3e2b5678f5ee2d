// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// A Handover is how a planned stop or a handover ended.
type Handover struct {
	// WasActive is false where there was nothing to hand over.
	WasActive bool
	// Peer is the node that took over. Invalid: none was heard, and the VIPs
	// are still on the interface.
	Peer netip.Addr
}

// TookOver reports whether a peer is Active now.
func (h Handover) TookOver() bool { return h.Peer.IsValid() }

// Release stops the instance as planned, without a gap: an Active one sends
// priority 0, keeps the VIPs until it hears who took over, and then removes
// them. If nobody does within Active_Down_Interval and one interval, the VIPs
// stay. Afterwards Run returns. When ctx ends first, so does only the waiting.
// Before Run it keeps Run from ever beginning.
func (r *Router) Release(ctx context.Context) (Handover, error) {
	r.mu.Lock()
	started := r.started
	// A Run that comes late must not take part after all: it would be stopped
	// without a release, and take away VIPs that were to stay.
	r.started = true
	r.mu.Unlock()
	if !started {
		close(r.ended)
		return Handover{}, fmt.Errorf("release %s: %w", r.cfg.Name, ErrNotRunning)
	}
	r.ask(func(w *wanted) { w.release = true })
	select {
	case <-r.released:
		return r.handover, nil
	case <-ctx.Done():
		return Handover{}, fmt.Errorf("release %s: %w", r.cfg.Name, ctx.Err())
	case <-r.ended:
	}
	select {
	case <-r.released: // both at once: the release came first
		return r.handover, nil
	default:
		return Handover{}, fmt.Errorf("release %s: %w", r.cfg.Name, ErrNotRunning)
	}
}

// Ended is closed when Run has returned or, after a Release, will never begin.
func (r *Router) Ended() <-chan struct{} { return r.ended }

// ErrBusy is returned by HandOver where another one is under way.
var ErrBusy = errors.New("a handover is under way already")

// A handoverRequest is a caller of HandOver.
type handoverRequest struct {
	handover Handover
	err      error
	done     chan struct{} // closed when the others are valid
}

// HandOver gives the VIPs to a peer, without a gap, and goes on running as Backup.
// Who has taken over keeps the VIPs for as long as it lives, also with a lower
// priority. If nobody does within the time that Release would wait, this node
// goes on as Active. When ctx ends first, so does only the waiting.
func (r *Router) HandOver(ctx context.Context) (Handover, error) {
	q := &handoverRequest{done: make(chan struct{})}
	r.mu.Lock()
	started, busy := r.started, r.wanted.handover != nil
	if started && !busy {
		r.wanted.handover = q
	}
	r.mu.Unlock()
	switch {
	case !started:
		return Handover{}, fmt.Errorf("hand over %s: %w", r.cfg.Name, ErrNotRunning)
	case busy:
		return Handover{}, fmt.Errorf("hand over %s: %w", r.cfg.Name, ErrBusy)
	}
	r.ask(func(*wanted) {})
	select {
	case <-q.done:
	case <-ctx.Done():
		return Handover{}, fmt.Errorf("hand over %s: %w", r.cfg.Name, ctx.Err())
	case <-r.ended:
		select {
		case <-q.done: // both at once: the handover came first
		default:
			return Handover{}, fmt.Errorf("hand over %s: %w", r.cfg.Name, ErrNotRunning)
		}
	}
	if q.err != nil {
		return Handover{}, fmt.Errorf("hand over %s: %w", r.cfg.Name, q.err)
	}
	return q.handover, nil
}

// Hold keeps the instance from becoming Active, whatever it hears or does not
// hear, until it is called with false. That also ends what HandOver has left: the
// instance takes the VIPs back if its priority says so. One that is Active stays
// Active.
func (r *Router) Hold(on bool) { r.ask(func(w *wanted) { w.hold = on; w.unyield = w.unyield || !on }) }

// ReleaseWait is how long Release and HandOver wait for a peer, at most.
func (r *Router) ReleaseWait() time.Duration {
	// The lowest priority waits longest: tracking may lower it to that.
	m := NewMachine(MachineConfig{Version: r.cfg.Version, Priority: 1, Interval: r.cfg.Interval})
	return m.ReleaseWait()
}

// beginHandover answers a caller of HandOver, or begins what it asks for.
func (r *Router) beginHandover(now time.Time, q *handoverRequest) {
	switch {
	case r.request != nil || r.machine.Releasing():
		q.err = ErrBusy
	case r.machine.State() == Active:
		r.request = q
		r.log.Info("handing over", "wait", r.machine.ReleaseWait())
		r.perform(now, r.machine.HandOver(now))
		return
	}
	close(q.done)
}

// endHandover answers the caller of HandOver, if there is one.
func (r *Router) endHandover(peer netip.Addr) {
	if q := r.request; q != nil {
		q.handover = Handover{WasActive: true, Peer: peer}
		r.request = nil
		close(q.done)
	}
}

// noteStanding keeps the status in line with how the machine stands in the election.
func (r *Router) noteStanding() {
	var s standing
	s.yielded, _, s.silent = r.machine.StandsBack()
	s.releasing, s.waits = r.machine.Releasing(), r.waits
	s.priority, s.lastResort = r.machine.Advertised(), r.machine.LastResort()
	s.awaits = r.machine.AwaitsState()
	if s == r.standing {
		return
	}
	if s.silent && !r.standing.silent {
		r.log.Warn("no active node is heard, and an operator holds this one back: the vips are nowhere")
	}
	switch was := r.standing.awaits; {
	case was.IsZero() && !s.awaits.IsZero():
		r.log.Info("leaves the vips to a node of lower priority until its state has come", "until", s.awaits)
	case !was.IsZero() && s.awaits.IsZero():
		r.log.Info("waits no more for the state of a node of lower priority")
	}
	r.standing = s
	r.update(func(t *Status) {
		t.Yielded, t.Silent, t.Releasing, t.Waits = s.yielded, s.silent, s.releasing, s.waits
		t.Priority, t.LastResort, t.AwaitsState = s.priority, s.lastResort, s.awaits
	})
}

// A standing is what noteStanding has noted.
type standing struct {
	yielded, silent, releasing bool
	waits                      string
	priority                   uint8
	lastResort                 bool
	awaits                     time.Time
}
