// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"fmt"
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
	faultVirtual                    // nobody would answer for the virtual MAC address
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

	holds    bool      // the VIPs are this node's, as the Active one
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
	wakers := r.openWakers()
	defer wakers.close()

	r.obey(time.Now())
	r.refresh(time.Now(), received)
	recheck := time.Now().Add(recheckEvery)
	for !r.done {
		wakers.set(r.next(recheck))
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
		case <-wakers.timer.C:
			recheck = r.due(recheck, received)
		case <-wakers.sharp:
			recheck = r.due(recheck, received)
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

// due does what the time has come for. It returns when to look at the host again.
func (r *Router) due(recheck time.Time, received chan *received) time.Time {
	r.yield(time.Now())
	// What has been heard already comes before what is due: a Backup
	// that was late itself must not take that for silence.
	select {
	case p := <-received:
		r.take(time.Now(), p)
		return recheck
	default:
	}
	now := time.Now()
	// Last, when all that had arrived has been handed on.
	expires := !r.tooLate(now)
	if expires {
		r.hear(now)
	}
	if expires && !r.putOff(now) {
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
	return recheck
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
		r.grace = now.Add(r.graceTime())
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

// graceTime is how long a Backup that was late itself listens on. Where the whole machine
// stood still, the Active node did so too, perhaps, and speaks when its turn has come.
func (r *Router) graceTime() time.Duration {
	every := r.machine.activeInterval
	if r.cfg.Heartbeat > 0 {
		every = min(every, r.cfg.Heartbeat)
	}
	if every += time.Millisecond; every > mostGrace {
		return leastGrace
	}
	return max(every, leastGrace)
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
			resumes := held && r.resumes()
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
			switch {
			case reason != "":
				r.perform(now, r.machine.Unfit(now, reason, held))
			case resumes:
				r.perform(now, r.machine.Resume(now))
			default:
				r.perform(now, r.machine.Startup(now, held))
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

// resumes reports whether this run goes on with what an earlier one has left.
func (r *Router) resumes() bool {
	age, ok := r.deps.Fence.Left()
	return ok && r.unfenced == "" && age < r.machine.Resumable()
}

// held reports whether an earlier run left VIPs on the interface.
func (r *Router) held() (bool, error) {
	report, err := r.deps.Addresses.Check(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	return len(report.Present) > 0, err
}
