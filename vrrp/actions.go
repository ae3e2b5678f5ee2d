// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// perform carries out the machine's actions.
func (r *Router) perform(now time.Time, actions []Action) {
	added, sent := false, false
	for i, a := range actions {
		switch a.Kind {
		case ActionSend:
			r.tell(now) // what an advertisement says heartbeats may say, and not before
			if a.Priority == PriorityRelease {
				// An announcement after the goodbye would fight the next node's.
				r.schedule.stop()
				r.stopRepeating()
				r.watch.stop()
			}
			if a.Timed && r.renewed(a.Priority) {
				r.countSent(nil)
				continue
			}
			r.send(now, a.Priority)
			r.repeat(a.Priority)
			sent = true
		case ActionAdd:
			announce := i+1 < len(actions) && actions[i+1].Kind == ActionAnnounce
			r.takeVIPs(now, announce, sent && r.cfg.Heartbeat > 0)
			added = true
		case ActionRemove:
			r.schedule.stop()
			r.removeVIPs()
			r.removeRoutes()
		case ActionAnnounce:
			r.schedule.begin(now)
			r.announce(now)
		case ActionState:
			if a.To == Active {
				r.watch.begin(now, r.cfg.Interval)
			} else {
				r.schedule.stop()
				r.stopRepeating()
				r.watch.stop()
			}
			r.changed(now, a)
		case ActionReleased:
			r.handover.Peer = a.Peer
			r.done = true
			close(r.released)
			r.endHandover(a.Peer) // that had become a release
		case ActionHandedOver:
			if r.machine.State() == Active { // nobody took over
				r.watch.begin(now, r.cfg.Interval)
			}
			r.endHandover(a.Peer)
		case ActionReason:
			level := slog.LevelInfo
			if r.machine.LastResort() {
				level = slog.LevelWarn
			}
			r.log.Log(context.Background(), level, "virtual router stays as it is", "state", r.machine.State(), "reason", a.Reason)
			r.update(func(s *Status) { s.Reason = a.Reason })
		}
	}
	if added { // after the announcement, which it would delay
		r.noteAddresses()
	}
}

func (r *Router) changed(now time.Time, a Action) {
	r.log.Info("virtual router changed state", "from", a.From, "to", a.To, "reason", a.Reason)
	r.update(func(s *Status) {
		s.State, s.Since, s.Reason = a.To, now, a.Reason
	})
	if a.To == Active {
		r.addRoutes() // last: nobody waits for it
	}
	r.deps.Group.changed(r, a.From, a.To)
	r.changes.put(Change{Instance: r.cfg.Name, From: a.From, To: a.To, Reason: a.Reason, At: now})
}

// send sends one advertisement, to every peer. It does not allocate.
func (r *Router) send(now time.Time, priority uint8) {
	if r.transport == nil {
		return // the interface is down; nobody would hear it
	}
	r.out.Priority = priority
	var err error
	for _, to := range r.transport.Destinations() {
		// For each by itself: the checksum may cover where it goes.
		msg, e := r.out.Append(r.outBuf[:0], r.link.Source, to)
		r.outBuf = msg[:0]
		if e == nil {
			e = r.sendTo(msg, to, priority)
		}
		if e != nil {
			err = e // the others are to hear it all the same
		}
	}
	r.countSent(err)
	if err != nil && now.Sub(r.sendLog) >= logEvery {
		r.sendLog = now
		r.log.Warn("advertisement could not be sent", "error", err)
	}
}

func (r *Router) countSent(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.status.Sent++
	} else {
		r.status.Failed++
	}
}

func (r *Router) announce(now time.Time) {
	if !r.schedule.due(now) || r.announcer == nil {
		return
	}
	if err := r.announcer.Announce(); err != nil {
		r.log.Warn("vips could not be announced", "error", err)
	}
}

// takeVIPs makes the VIPs this node's. Where the data plane answers for them at once,
// and announcing them is next, that does not wait for the kernel to have them; nor, with
// hurry, where it does not: what clients send to services goes by the XDP program, which
// has been ready for it all the time, and to add addresses takes longer than all else of
// a takeover. Who asks for a VIP in that moment hears the announcement that comes next.
func (r *Router) takeVIPs(now time.Time, announce, hurry bool) {
	r.holds = true
	switch answers := r.deps.Fence.Hold(); {
	case answers && announce:
		r.schedule.begin(now)
		r.announce(now)
	case hurry:
		r.foretell()
	}
	err := r.deps.Addresses.Add(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	var conflict *ConflictError
	switch {
	case err == nil:
		r.deps.Fence.Present()
	case errors.As(err, &conflict):
		r.faults[faultConflict] = oneLine(err)
	default:
		r.failAdd(now, err)
	}
}

// foretell announces VIPs that are not here yet.
func (r *Router) foretell() {
	if r.announcer == nil {
		return
	}
	if err := r.announcer.Announce(); err != nil {
		r.log.Warn("vips could not be announced", "error", err)
	}
}

// oneLine is an error's text where several errors are joined.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// failAdd faults the instance for a while: a node that cannot hold the VIPs
// must leave them to another one.
func (r *Router) failAdd(now time.Time, err error) {
	r.faults[faultAdd] = oneLine(err)
	r.addAfter = now.Add(retryAdd)
	r.retryAt(r.addAfter)
}

func (r *Router) removeVIPs() {
	r.holds = false
	if err := r.deps.Addresses.Remove(r.cfg.Interface, r.cfg.Addresses); err != nil {
		r.log.Error("vips could not be removed; trying again", "error", oneLine(err))
		r.retryAt(time.Now().Add(retryAfter))
	} else {
		r.deps.Fence.Drop()
	}
	r.noteAddresses()
}

func (r *Router) retryAt(t time.Time) {
	if r.retry.IsZero() || t.Before(r.retry) {
		r.retry = t
	}
}

func (r *Router) noteAddresses() {
	report, err := r.deps.Addresses.Check(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	if err != nil {
		return // the next look, at most recheckEvery away, says so
	}
	r.update(func(s *Status) { s.Addresses = report.Present })
}

func (r *Router) update(change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// ownAddress reports whether an address may be the source of advertisements.
func (r *Router) ownAddress(a netip.Addr) bool {
	return r.cfg.canSend(a) && !r.cfg.isVIP(a) && !r.deps.Addresses.Added(a)
}
