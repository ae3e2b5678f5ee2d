// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"time"
)

// PriorityLastResort is what an unfit node advertises that is Active all the same,
// since no fit one is. Any other node takes over from it at once, also one that
// does not preempt.
const PriorityLastResort = 1

// Unfit says that the node should not hold the VIPs, though it could: something
// that it depends on fails. An Active node gives them away as in a handover, and
// is in Fault when somebody has taken over. If nobody does, or if the node hears
// no Active node later on, it is Active as the last resort: what fails may fail on
// all nodes. Held is as for Startup. It lasts until Startup or Fault; calling it
// again changes the reason.
func (m *Machine) Unfit(now time.Time, reason string, held bool) []Action {
	m.begin()
	m.unfitReason = reason
	switch {
	case m.giving == toStop:
	case m.giving != keeping:
		m.giving = toFault
	case m.lastResort:
		m.do(Action{Kind: ActionReason, Reason: m.lastResortReason()})
	case m.state == Active:
		m.give(now, toFault)
	case m.state != Fault:
		m.held = m.held || held
		m.standAside(now, reason)
	case !m.unfit: // a fault that is over has hidden this one
		m.held = held
		m.unfit = true
		m.deadline = now.Add(m.lastResortWait())
		m.do(Action{Kind: ActionReason, Reason: reason})
	}
	return m.actions
}

// Impaired reports whether an Active node would not be if it were not for want of
// a better one, or is about to be in Fault.
func (m *Machine) Impaired() bool { return m.lastResort || m.giving == toFault }

// LastResort reports whether this node is Active though it is unfit.
func (m *Machine) LastResort() bool { return m.lastResort }

// IsUnfit reports whether Fault is one of Unfit.
func (m *Machine) IsUnfit() bool { return m.unfit }

// lastResortWait is how long an unfit node hears no Active one before it is the
// last resort: longer than any fit node waits, and than one that gives the VIPs
// away takes to see that nobody wants them.
func (m *Machine) lastResortWait() time.Duration {
	skew := m.skewOf(PriorityLastResort)
	return max(4*m.activeInterval+skew, minReleaseWait) + skew
}

func (m *Machine) lastResortReason() string {
	return "last resort, no fit node is active: " + m.unfitReason
}

// standAside becomes Fault of a node that is the last resort.
func (m *Machine) standAside(now time.Time, reason string) {
	m.enter(Fault, reason)
	m.unfit = true
	m.deadline = now.Add(m.lastResortWait())
}

// recover ends what Unfit has begun on an Active node.
func (m *Machine) recover(now time.Time) {
	m.lastResort = false
	gave := m.giving == toFault
	if gave {
		m.giving = keeping
		m.do(Action{Kind: ActionHandedOver})
	}
	m.send(now)
	if gave { // announcements have ended with the goodbye
		m.do(Action{Kind: ActionAnnounce})
	}
	m.do(Action{Kind: ActionReason, Reason: "fault is over"})
}

// receiveUnfit is an advertisement that an unfit node hears.
func (m *Machine) receiveUnfit(now time.Time, h Heard) {
	m.hearAsBackup(now, h)
	if h.Priority != PriorityRelease {
		if m.held {
			m.held = false
			m.do(Action{Kind: ActionRemove})
		}
		if m.cfg.Version == V3 {
			m.activeInterval = h.Interval
		}
	}
	m.deadline = now.Add(m.lastResortWait())
}

// giveWayUnfit is in Fault again, since somebody else is Active.
func (m *Machine) giveWayUnfit(now time.Time, h Heard) {
	if m.cfg.Version == V3 {
		m.activeInterval = h.Interval
	}
	m.do(Action{Kind: ActionRemove})
	m.heard, m.heardAt = h, now
	m.standAside(now, m.unfitReason)
}
