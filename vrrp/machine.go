// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"time"
)

// State is the state of a virtual router on this node.
type State uint8

// The states of RFC 9568, 6.4, and Fault.
const (
	Initialize State = iota // not taking part
	Backup                  // watching the Active node
	Active                  // holding the VIPs
	Fault                   // unable to run, for a reason; takes part again by itself
)

func (s State) String() string {
	switch s {
	case Initialize:
		return "initialize"
	case Backup:
		return "backup"
	case Active:
		return "active"
	case Fault:
		return "fault"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// An ActionKind is something that a Machine wants done.
type ActionKind uint8

// The actions.
const (
	ActionSend       ActionKind = iota // send one advertisement with Priority
	ActionAdd                          // put the VIPs on the interface, where they are not there already
	ActionRemove                       // take the VIPs that were added off the interface
	ActionAnnounce                     // tell the segment where the VIPs are, now and a few times more
	ActionState                        // the state went from From to To because of Reason
	ActionReleased                     // a release is over; Peer is who took over, or invalid
	ActionHandedOver                   // a handover is over; Peer is who took over, or invalid
	ActionReason                       // the state stays, because of Reason now
)

// An Action is to be carried out, in the order given.
type Action struct {
	Kind     ActionKind
	Priority uint8
	Timed    bool // of ActionSend: it is sent because its time has come, and answers nothing
	From, To State
	Reason   string
	Peer     netip.Addr
}

// Heard is what a Machine needs to know of an accepted advertisement.
type Heard struct {
	Source   netip.Addr
	Priority uint8
	Interval time.Duration
	node     NodeID // of a heartbeat, which may come by another address; zero: an advertisement
}

// ofAnother reports whether this is from another node than before, for certain.
func (h Heard) ofAnother(before Heard) bool {
	none := NodeID{}
	if h.node == none && before.node == none {
		return h.Source != before.Source
	}
	return h.node != none && before.node != none && h.node != before.node
}

// MachineConfig is the configuration of a Machine.
type MachineConfig struct {
	Version      Version
	Priority     uint8
	Interval     time.Duration
	Preempt      bool
	PreemptDelay time.Duration
	SyncWait     time.Duration // 0: preemption does not depend on SetSynced
	Local        netip.Addr    // this node's source address; breaks ties
	// Heartbeat is the interval of heartbeats between the nodes, 0 where there are
	// none, and ID this node's own.
	Heartbeat time.Duration
	ID        NodeID
}

// A Machine is the state machine of one virtual router (RFC 3768, 6.4 and RFC
// 9568, 6.4). It is pure: it has no clock and does no I/O. Each method is an
// event; the actions that it returns are valid until the next one. When
// Deadline has come, call Expire. A Machine is not safe for concurrent use.
type Machine struct {
	cfg   MachineConfig
	state State
	// deadline is that of the one timer that runs: Active_Down_Timer in Backup,
	// Adver_Timer in Active, the end of the wait while releasing, or in Fault that
	// of an unfit node for a fit one.
	deadline time.Time
	// activeInterval is Active_Adver_Interval: how often the Active node sends.
	activeInterval time.Duration
	// preemptAt is when PreemptDelay ends. Zero while no Active node of lower
	// priority is heard.
	preemptAt time.Time
	// synced is as SetSynced has told; stateBy is when SyncWait ends, set with
	// preemptAt; awaits is AwaitsState.
	synced          bool
	stateBy, awaits time.Time
	// held says that VIPs of an earlier run are still on the interface.
	held bool
	// giving says that priority 0 was sent and the VIPs are kept until another
	// Active node is heard, and what for.
	giving giving
	// yielded says that a handover has ended, and that this node leaves the VIPs
	// to who took over. hold says that an operator wants it to be Backup. silent
	// says that it is, though it hears no Active node.
	yielded, hold, silent bool
	// respects says that the last advertisement has put the takeover off.
	respects bool
	// unfit says that Fault is one of Unfit, lastResort that the node is Active
	// all the same. unfitReason is why.
	unfit, lastResort bool
	unfitReason       string
	// heard is the last advertisement since Backup began, and heardAt its time:
	// for the reason of a takeover.
	heard   Heard
	heardAt time.Time
	beats   beats
	actions []Action
}

// NewMachine returns a Machine in state Initialize.
func NewMachine(cfg MachineConfig) *Machine {
	return &Machine{
		cfg: cfg, activeInterval: cfg.Interval, actions: make([]Action, 0, 8),
		beats: beats{interval: cfg.Heartbeat, own: cfg.ID},
	}
}

// State is the present state.
func (m *Machine) State() State { return m.state }

// Priority is the priority that this node has in the election, as set.
func (m *Machine) Priority() uint8 { return m.cfg.Priority }

// Advertised is the priority that this node advertises while it is Active.
func (m *Machine) Advertised() uint8 {
	if m.lastResort {
		return PriorityLastResort
	}
	return m.cfg.Priority
}

// Held reports whether VIPs of an earlier run are left on the interface.
func (m *Machine) Held() bool { return m.held }

// Releasing reports whether a release or a handover is under way.
func (m *Machine) Releasing() bool { return m.giving != keeping }

// Stopping reports whether a release is under way.
func (m *Machine) Stopping() bool { return m.giving == toStop }

// Deadline is when Expire is due. False: no timer runs.
func (m *Machine) Deadline() (time.Time, bool) {
	if at := m.silentAt(); !at.IsZero() && at.Before(m.deadline) {
		return at, true
	}
	return m.deadline, !m.deadline.IsZero()
}

// Skew is Skew_Time: lower priorities wait longer (RFC 3768, 6.1; RFC 9568,
// 6.1). It is exact to the nanosecond, also where the wire has centiseconds.
func (m *Machine) Skew() time.Duration { return m.skewOf(m.cfg.Priority) }

func (m *Machine) skewOf(priority uint8) time.Duration {
	unit := time.Second
	if m.cfg.Version == V3 {
		unit = m.activeInterval
	}
	return time.Duration(256-int(priority)) * unit / 256
}

// ActiveDown is Active_Down_Interval: how long the Active node may be silent.
func (m *Machine) ActiveDown() time.Duration { return 3*m.activeInterval + m.Skew() }

// SetLocal changes this node's source address.
func (m *Machine) SetLocal(a netip.Addr) { m.cfg.Local = a }

// Startup begins to take part, from Initialize or Fault, or ends what Unfit has
// begun on an Active node. Held says that an
// earlier run left VIPs on the interface: a Backup keeps them until it hears an
// Active node, so that a restart interrupts nobody.
func (m *Machine) Startup(now time.Time, held bool) []Action {
	m.begin()
	if m.Impaired() {
		m.recover(now)
		return m.actions
	}
	if m.state != Initialize && m.state != Fault {
		return m.actions
	}
	m.activeInterval = m.cfg.Interval
	m.heard, m.unfit = Heard{}, false
	if m.cfg.Priority == PriorityOwner && !m.standsBack() {
		m.activate(now, "this node owns the addresses", true)
		return m.actions
	}
	m.held = held
	reason := "started"
	if m.state == Fault {
		reason = "fault is over"
	}
	m.watch(now, reason)
	return m.actions
}

// Resume is Startup of a run that follows an earlier one, which was Active and has left
// the VIPs on the interface, so closely that no other node can have taken over for its
// silence: it goes on as Active. What the protocol asks for, to begin as Backup, would
// have the VIPs move away and back. Where another node is Active all the same, both hear
// each other, and the priorities decide as ever.
func (m *Machine) Resume(now time.Time) []Action {
	if m.state != Initialize || m.standsBack() {
		return m.Startup(now, true)
	}
	m.begin()
	m.activate(now, "an earlier run was active until a moment ago", false)
	return m.actions
}

// Resumable is how long ago the earlier run may have been at work: its last advertisement
// is one interval older at most, and nobody gives it up before three.
func (m *Machine) Resumable() time.Duration { return 2 * m.cfg.Interval }

// Expire is the timer event. Before the deadline it does nothing.
func (m *Machine) Expire(now time.Time) []Action {
	m.begin()
	if deadline, ok := m.Deadline(); !ok || now.Before(deadline) {
		return m.actions
	}
	switch {
	case m.giving != keeping:
		m.endGiving(now, Heard{})
	case m.state != Active && m.hold && now.Before(m.deadline):
		m.beats.keep(now) // as who takes over does: advertisements alone count now
	case m.state != Active && m.hold:
		m.silent, m.deadline = true, time.Time{}
	case m.state == Backup && now.Before(m.deadline):
		m.activate(now, m.silenceReason(), false)
	case m.state == Backup:
		m.activate(now, m.takeoverReason(now), m.invited() || m.preempting(now))
	case m.state == Fault:
		m.activate(now, m.lastResortReason(), false)
	case m.state == Active:
		m.do(Action{Kind: ActionSend, Priority: m.Advertised(), Timed: true})
		// From the deadline, not from now: lateness does not add up. After a
		// long pause there is nothing to catch up with.
		m.deadline = m.deadline.Add(m.cfg.Interval)
		if !m.deadline.After(now) {
			m.deadline = now.Add(m.cfg.Interval)
		}
	}
	return m.actions
}

// Receive is an accepted advertisement of this virtual router.
func (m *Machine) Receive(now time.Time, h Heard) []Action {
	m.begin()
	switch m.state {
	case Backup:
		m.receiveBackup(now, h)
	case Active:
		m.receiveActive(now, h)
	case Fault:
		if m.unfit {
			m.receiveUnfit(now, h)
		}
	}
	return m.actions
}

func (m *Machine) receiveBackup(now time.Time, h Heard) {
	m.hearAsBackup(now, h)
	if h.Priority == PriorityRelease {
		m.yielded = false
		// Not at once: of several Backups the best should come first.
		m.deadline = now.Add(m.releaseSkew(now))
		return
	}
	if m.held {
		m.held = false
		m.do(Action{Kind: ActionRemove})
	}
	if h.Priority == PriorityLastResort && m.cfg.Priority > h.Priority && !m.hold {
		// As if it had said goodbye: it only waits for somebody.
		m.yielded = false
		if soon := now.Add(m.Skew()); soon.Before(m.deadline) {
			m.deadline = soon
		}
		return
	}
	if h.Priority >= m.cfg.Priority {
		m.preemptAt, m.awaits = time.Time{}, time.Time{}
	} else if m.preempts(now) {
		return // the timer runs on, and this node takes over
	}
	if m.cfg.Version == V3 {
		m.activeInterval = h.Interval
	}
	m.respects = true
	m.deadline = now.Add(m.ActiveDown())
}

// preempts reports whether an advertisement of lower priority is ignored.
func (m *Machine) preempts(now time.Time) bool {
	if m.standsBack() {
		return false
	}
	if m.cfg.Priority == PriorityOwner {
		return true // an owner always does (RFC 9568, 6.1)
	}
	if !m.cfg.Preempt {
		return false
	}
	return m.mayPreempt(now)
}

func (m *Machine) receiveActive(now time.Time, h Heard) {
	switch {
	case m.giving != keeping:
		// Whoever is Active now, of any priority, has taken over.
		if h.Priority != PriorityRelease {
			m.endGiving(now, h)
		}
	case h.Priority == PriorityRelease:
		m.send(now)
	case h.Priority < m.Advertised() || h.Priority == m.Advertised() && h.Source.Compare(m.cfg.Local) <= 0:
		// A split brain: this answer ends it, and the segment has to learn
		// again where the VIPs are (RFC 9568, 6.4.3).
		m.send(now)
		m.do(Action{Kind: ActionAnnounce})
	case m.lastResort:
		m.giveWayUnfit(now, h)
	default:
		m.giveWay(now, h, fmt.Sprintf("%v is active with priority %d", h.Source, h.Priority))
	}
}

// SetPriority changes the priority, 1 to 254, while running. Other nodes learn
// of it with the next advertisement.
func (m *Machine) SetPriority(p uint8) []Action {
	m.begin()
	before := m.Skew()
	m.cfg.Priority = p
	if m.state == Backup && !m.deadline.IsZero() {
		// Only the skew depends on it: the silence so far counts.
		m.deadline = m.deadline.Add(m.Skew() - before)
	}
	return m.actions
}

// activate becomes Active. The order is the point: the advertisement silences
// other candidates, then the VIPs, and only what answers is announced. Where
// another node has the VIPs until it hears the advertisement, that comes second, so
// that somebody answers at any moment.
func (m *Machine) activate(now time.Time, reason string, planned bool) {
	m.activeInterval = m.cfg.Interval
	m.held, m.yielded = false, false
	m.lastResort = m.unfit
	m.beats.peers = m.beats.peers[:0] // who is Active no more is heard anew
	if planned {
		m.do(Action{Kind: ActionAdd})
		m.send(now)
	} else {
		m.send(now)
		m.do(Action{Kind: ActionAdd})
	}
	m.do(Action{Kind: ActionAnnounce})
	deadline := m.deadline
	m.enter(Active, reason)
	m.deadline = deadline
}

// watch becomes Backup.
func (m *Machine) watch(now time.Time, reason string) {
	m.beats.keep(now) // silence from before is no news
	m.enter(Backup, reason)
	m.deadline = now.Add(m.ActiveDown())
}

// leave does what becoming unable to run asks for in any state.
func (m *Machine) leave() {
	if m.state == Active {
		m.do(Action{Kind: ActionSend, Priority: PriorityRelease})
	}
	m.held = false
	m.do(Action{Kind: ActionRemove})
}

func (m *Machine) enter(s State, reason string) {
	m.do(Action{Kind: ActionState, From: m.state, To: s, Reason: reason})
	m.state = s
	m.deadline = time.Time{}
	m.preemptAt, m.awaits = time.Time{}, time.Time{}
	m.silent, m.respects, m.unfit = false, false, false
	if s != Active {
		m.lastResort = false
	}
}

func (m *Machine) send(now time.Time) {
	m.do(Action{Kind: ActionSend, Priority: m.Advertised()})
	m.deadline = now.Add(m.cfg.Interval)
}

func (m *Machine) takeoverReason(now time.Time) string {
	h := m.heard
	switch {
	case !h.Source.IsValid():
		return fmt.Sprintf("no active node heard for %v", m.ActiveDown())
	case m.invited():
		return fmt.Sprintf("%v gave up", h.Source)
	case m.preempting(now):
		return fmt.Sprintf("preempting %v with priority %d", h.Source, h.Priority) + m.unsynced()
	}
	return fmt.Sprintf("%v fell silent for %v", h.Source, m.ActiveDown())
}

// invited reports whether a takeover is one that the Active node has asked for.
func (m *Machine) invited() bool {
	return m.heard.Source.IsValid() && m.heard.Priority == PriorityRelease
}

// preempting reports whether a takeover is one from a worse node that lives.
func (m *Machine) preempting(now time.Time) bool {
	return m.heard.Source.IsValid() && m.heard.Priority < m.cfg.Priority && now.Sub(m.heardAt) < 2*m.activeInterval
}

func (m *Machine) begin() { m.actions = m.actions[:0] }

func (m *Machine) do(a Action) { m.actions = append(m.actions, a) }
