// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A faultKind is a cause of Fault that comes and goes by itself.
type faultKind int

const (
	faultLink      faultKind = iota // the interface
	faultConflict                   // a VIP is the node's own address
	faultAdd                        // a VIP could not be added
	faultTransport                  // a socket could not be opened, or failed
	faultOutside                    // Router.Fault
	faultGroup                      // another instance of the group cannot run
	numFaults
)

// loop is the part of a Router that only Run's goroutine touches.
type loop struct {
	machine  *Machine
	filter   Filter
	schedule schedule
	watch    watch // for strangers that answer for the VIPs

	link      Link
	transport *receiver // nil while the link cannot be used
	announcer Announcer // nil with transport
	prober    *listener // nil with transport, or where it could not be opened
	claims    chan claim

	out    Advertisement // what is sent, but for the priority
	outBuf []byte
	in     Advertisement // what was received

	faults   [numFaults]string // "": none
	reason   string            // of Fault, as status has it
	retry    time.Time         // when to try again what failed; zero: nothing did
	addAfter time.Time         // when faultAdd is over
	grace    time.Time         // a late takeover waits until then; zero: none is due
	unread   time.Time         // since when a takeover waits for what has arrived to be read

	beatAt   time.Time // when the fence is to be told that this node is at work; zero: it is not Active
	unfenced string    // as in Status

	alarms   alarms
	lastLog  [numReasons]time.Time // of a dropped packet
	sendLog  time.Time             // of a failed advertisement
	probeLog time.Time             // of failed probes

	request  *handoverRequest // who waits for the end of a handover; nil: nobody
	standing standing
	// routeProblem is Status.RouteProblem.
	routeProblem string
	waits        string // Status.Waits

	toldLast told  // to heartbeats
	paced    paced // by the Pacer

	changes changeQueue
	done    bool
}

func (l *loop) prepare(cfg *Config, h Heartbeats) {
	var id NodeID
	if h != nil {
		id = h.ID()
	}
	l.machine = NewMachine(MachineConfig{
		Version: cfg.Version, Priority: cfg.Priority, Interval: cfg.Interval,
		Preempt: cfg.Preempt, PreemptDelay: cfg.PreemptDelay, SyncWait: cfg.SyncWait, Heartbeat: cfg.Heartbeat, ID: id,
	})
	vips := cfg.vips()
	l.filter = Filter{
		Version: cfg.Version, VRID: cfg.VRID, Interval: cfg.Interval, Password: cfg.Password, VIPs: vips, Peers: cfg.Peers,
	}
	l.schedule.refresh = cfg.AnnounceRefresh
	l.out = Advertisement{
		Version: cfg.Version, VRID: cfg.VRID, Interval: cfg.Interval, Addresses: vips,
		PseudoHeader: cfg.Version == V3 && cfg.Checksum != ChecksumPlain,
	}
	if cfg.Version == V2 {
		l.out.AuthType, l.out.Auth = authData(cfg.Password)
	}
}

// Run takes part until Release is over or ctx ends, and can be called once.
// When ctx ends without Release the instance stops at once, as RFC 9568 says:
// it tells its peers and removes the VIPs.
func (r *Router) Run(ctx context.Context) error {
	r.mu.Lock()
	again := r.started
	r.started = true
	r.mu.Unlock()
	if again {
		return fmt.Errorf("run virtual router %s: it has run or was released already: %w", r.cfg.Name, ErrNotRunning)
	}
	defer close(r.ended)
	r.changes.start(r.deps.OnChange)
	defer r.changes.stop()
	changed, unwatch := r.deps.Network.Watch()
	defer unwatch()
	defer r.closeLink()

	received := make(chan *received)
	r.claims = make(chan claim)
	timer := time.NewTimer(0)
	defer timer.Stop()

	r.obey(time.Now())
	r.refresh(time.Now(), received)
	recheck := time.Now().Add(recheckEvery)
	for !r.done {
		timer.Reset(time.Until(r.next(recheck)))
		select {
		case <-ctx.Done():
			r.perform(time.Now(), r.machine.Shutdown())
			r.noteStanding()
			return nil
		case <-changed:
			r.refresh(time.Now(), received)
		case <-r.wake:
			r.obey(time.Now())
		case <-r.beats.wake:
			r.hear(time.Now())
		case p := <-received:
			r.yield(time.Now())
			r.take(time.Now(), p)
		case c := <-r.claims:
			r.yield(time.Now())
			r.claimed(time.Now(), c)
		case <-timer.C:
			r.yield(time.Now())
			// What has been heard already comes before what is due: a Backup
			// that was late itself must not take that for silence.
			select {
			case p := <-received:
				r.take(time.Now(), p)
			default:
				now := time.Now()
				// Last, when all that had arrived has been handed on.
				due := !r.tooLate(now)
				if due {
					r.hear(now)
				}
				if due && !r.putOff(now) {
					r.perform(now, r.machine.Expire(now))
				}
				r.announce(now)
				r.probe(now)
				r.expireAlarms(now)
				retry := !r.retry.IsZero() && !now.Before(r.retry)
				if retry {
					r.retry = time.Time{}
				}
				if retry || !now.Before(recheck) {
					recheck = now.Add(recheckEvery)
					r.refresh(now, received)
				}
			}
		}
		now := time.Now()
		r.settle(now)
		r.noteGroup()
		r.noteStanding()
		r.tell(now)
		r.beat(time.Now())
	}
	return nil
}

// next is when the loop has something to do by itself.
func (r *Router) next(recheck time.Time) time.Time {
	next := recheck
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if t, ok := r.machine.Deadline(); ok {
		if t.Before(r.grace) {
			t = r.grace
		}
		earlier(t)
	}
	earlier(r.schedule.next)
	earlier(r.beatAt)
	earlier(r.watch.next)
	earlier(r.alarms.next)
	earlier(r.retry)
	return next
}

// tooLate reports whether a Backup has to listen a moment longer before it
// takes over. Where the whole process or machine stood still, its timer and what
// it did not read meanwhile are there at once, and the timer may win.
func (r *Router) tooLate(now time.Time) bool {
	deadline, ok := r.machine.Deadline()
	if !ok || r.machine.State() == Active || now.Before(deadline) {
		r.grace = time.Time{}
		return false
	}
	if now.Sub(deadline) >= late && r.grace.Before(deadline) {
		r.grace = now.Add(graceTime)
	}
	if now.Before(r.grace) {
		return true
	}
	if r.quiet() {
		return false
	}
	if r.unread.Before(deadline) {
		r.unread = now // not the deadline: this loop may be late, too
	}
	if now.Sub(r.unread) >= unreadTime {
		return false
	}
	r.grace = now.Add(lookAgain)
	return true
}

// obey carries out what callers asked for.
func (r *Router) obey(now time.Time) {
	r.mu.Lock()
	w := r.wanted
	r.wanted.handover, r.wanted.unyield, r.wanted.group = nil, false, wishNothing
	r.mu.Unlock()
	if w.priority != r.machine.Priority() {
		r.perform(now, r.machine.SetPriority(w.priority))
	}
	r.machine.SetSynced(w.synced)
	r.faults[faultOutside] = w.fault
	r.faults[faultGroup] = r.deps.Group.fault(r)
	r.follow(now, w.group, w.groupBy)
	if _, hold, _ := r.machine.StandsBack(); w.hold != hold || w.unyield {
		r.perform(now, r.machine.SetHold(now, w.hold))
	}
	if w.handover != nil {
		r.beginHandover(now, w.handover)
	}
	if w.release {
		r.handover.WasActive = r.machine.State() == Active
		r.perform(now, r.machine.Release(now))
	}
}

// settle brings the machine in line with the faults that there are.
func (r *Router) settle(now time.Time) {
	if r.done || r.machine.Stopping() {
		return
	}
	// Performing actions can find a new fault, at most one of each kind.
	for range numFaults {
		reason, hard := r.faultReason(), r.hardFault()
		state, unfit := r.machine.State(), r.machine.IsUnfit() || r.machine.Impaired()
		switch {
		case hard != "" && (state != Fault || unfit):
			r.perform(now, r.machine.Fault(reason))
		case hard == "" && ((reason != "") != unfit || reason == "" && (state == Initialize || state == Fault)):
			held, err := r.held()
			switch {
			case err != nil:
				r.failAdd(now, err)
				continue
			case state == Active: // what it holds the fence knows
			case held:
				r.deps.Fence.Adopt()
			default:
				r.deps.Fence.Drop() // somebody has taken away what an earlier run had left
			}
			if reason == "" {
				r.perform(now, r.machine.Startup(now, held))
			} else {
				r.perform(now, r.machine.Unfit(now, reason, held))
			}
		case reason == r.reason:
			return
		case reason != "" && state == Active: // it is impaired
			r.perform(now, r.machine.Unfit(now, reason, false))
		case reason != "":
			r.log.Info("virtual router has another fault", "reason", reason)
			r.update(func(s *Status) { s.Reason = reason })
		}
		r.reason = reason
	}
}

// faultReason says why the instance cannot run, but for some causes.
func (r *Router) faultReason(but ...faultKind) string {
	var all []string
	for k, f := range r.faults {
		if f != "" && !slices.Contains(but, faultKind(k)) {
			all = append(all, f)
		}
	}
	return strings.Join(all, "; ")
}

// hardFault says why the instance cannot be Active at all; other faults say that
// it should not be.
func (r *Router) hardFault() string { return r.faultReason(faultOutside, faultGroup) }

// held reports whether an earlier run left VIPs on the interface.
func (r *Router) held() (bool, error) {
	report, err := r.deps.Addresses.Check(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	return len(report.Present) > 0, err
}

// perform carries out the machine's actions.
func (r *Router) perform(now time.Time, actions []Action) {
	added := false
	for _, a := range actions {
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
		case ActionAdd:
			r.addVIPs(now)
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
			e = r.transport.Send(msg, to)
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

func (r *Router) addVIPs(now time.Time) {
	r.deps.Fence.Hold()
	err := r.deps.Addresses.Add(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	var conflict *ConflictError
	switch {
	case errors.As(err, &conflict):
		r.faults[faultConflict] = oneLine(err)
	case err != nil:
		r.failAdd(now, err)
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
