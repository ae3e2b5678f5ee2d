// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"time"
)

// giving is what an Active node gives the VIPs away for.
type giving uint8

const (
	keeping  giving = iota // it does not
	toStop                 // a release: it stops, whoever takes over
	toBackup               // a handover: it is Backup afterwards, if somebody takes over
	toFault                // it is unfit: Fault afterwards, if somebody takes over, else the last resort
	toFollow               // its group has lost its VIPs: the same, but it does not stand back
)

// minReleaseWait bounds the wait of a release from below: with short intervals
// and many instances a peer that is busy needs longer than the protocol says, and
// waiting costs nothing, since traffic goes on.
const minReleaseWait = time.Second

// ReleaseWait is how long a release or a handover waits for who takes over:
// Active_Down_Interval and one interval (the advertisement of priority 0 may be
// lost), and at least a second.
func (m *Machine) ReleaseWait() time.Duration {
	return max(m.ActiveDown()+m.cfg.Interval, minReleaseWait)
}

// Release is a planned stop. An Active node sends priority 0 and no more, but
// keeps the VIPs until it hears who took over, at most ReleaseWait. If nobody
// did, the VIPs stay where they are. Any other state just stops. The end is
// ActionReleased. A handover that is under way becomes a release.
func (m *Machine) Release(now time.Time) []Action {
	m.begin()
	switch {
	case m.giving != keeping:
		m.giving = toStop
	case m.state == Active:
		m.give(now, toStop)
	default:
		m.enter(Initialize, "released")
		m.do(Action{Kind: ActionReleased})
	}
	return m.actions
}

// HandOver gives the VIPs of an Active node to another one, as Release does. Who
// has taken over keeps them for as long as it advertises, whatever its priority;
// when it gives up or falls silent, this node takes part in the election as
// ever. If nobody takes over, this node goes on as Active. The end is
// ActionHandedOver. In any other state nothing happens.
func (m *Machine) HandOver(now time.Time) []Action {
	m.begin()
	if m.state == Active && m.giving == keeping {
		what := toBackup
		if m.lastResort {
			what = toFault
		}
		m.give(now, what)
	}
	return m.actions
}

// SetHold keeps this node from becoming Active, even where no Active node is
// heard, or ends that. The end of it also ends what a handover has left: by its
// priority this node may take the VIPs back. One that is Active stays so.
func (m *Machine) SetHold(now time.Time, on bool) []Action {
	m.begin()
	m.hold = on
	if on {
		return m.actions
	}
	m.yielded = false
	if m.silent {
		m.silent = false
		m.deadline = now.Add(m.Skew())
	}
	return m.actions
}

// StandsBack tells why a Backup leaves the VIPs to others: yielded since it has
// handed them over, hold by an operator's wish; and whether it does so though it
// hears no Active node.
func (m *Machine) StandsBack() (yielded, hold, silent bool) { return m.yielded, m.hold, m.silent }

func (m *Machine) standsBack() bool { return m.yielded || m.hold }

// hearAsBackup notes who is Active.
func (m *Machine) hearAsBackup(now time.Time, h Heard) {
	// Another one, after a silence: who had taken over is dead. Without the
	// silence it was preempted, which is nothing to this node.
	if m.heard.Source.IsValid() && h.ofAnother(m.heard) && now.Sub(m.heardAt) > 3*m.activeInterval {
		m.yielded = false
	}
	m.heard, m.heardAt = h, now
	m.silent, m.respects = false, false
}

func (m *Machine) give(now time.Time, what giving) {
	m.giving = what
	m.do(Action{Kind: ActionSend, Priority: PriorityRelease})
	m.deadline = now.Add(m.ReleaseWait())
}

// endGiving ends a release or a handover: by is the advertisement of who took
// over, zero if nobody did.
func (m *Machine) endGiving(now time.Time, by Heard) {
	what, taken := m.giving, by.Source.IsValid()
	m.giving = keeping
	switch {
	case what == toStop:
		reason := "released: no peer took over, the addresses stay"
		if taken {
			m.do(Action{Kind: ActionRemove})
			reason = fmt.Sprintf("released: %v took over", by.Source)
		}
		m.enter(Initialize, reason)
		m.do(Action{Kind: ActionReleased, Peer: by.Source})
	case taken && what == toFault:
		m.giveWayUnfit(now, by)
		m.do(Action{Kind: ActionHandedOver, Peer: by.Source})
	case taken:
		reason := fmt.Sprintf("handed over to %v", by.Source)
		if what == toFollow {
			reason = fmt.Sprintf("%v took over, as of the group", by.Source)
		}
		m.yielded = what == toBackup
		m.giveWay(now, by, reason)
		m.do(Action{Kind: ActionHandedOver, Peer: by.Source})
	default:
		if what == toFault {
			m.lastResort = true
			m.do(Action{Kind: ActionReason, Reason: m.lastResortReason()})
		}
		// The VIPs have never left; who believed the goodbye hears otherwise.
		m.send(now)
		m.do(Action{Kind: ActionAnnounce})
		m.do(Action{Kind: ActionHandedOver})
	}
}

// giveWay becomes Backup of an Active node that is heard.
func (m *Machine) giveWay(now time.Time, h Heard, reason string) {
	if m.cfg.Version == V3 {
		m.activeInterval = h.Interval
	}
	m.do(Action{Kind: ActionRemove})
	m.heard, m.heardAt = h, now
	m.watch(now, reason)
	m.respects = true
}

// Fault says that the instance cannot run. An Active node tells the others. It
// lasts until Startup. During a release it changes nothing: that ends soon, in
// Initialize. A handover it cuts short.
func (m *Machine) Fault(reason string) []Action {
	m.begin()
	switch {
	case m.giving == toStop:
		return m.actions
	case m.state == Fault && !m.unfit:
		return m.actions
	case m.state == Fault:
		m.unfit, m.deadline = false, time.Time{}
		if m.held {
			m.held = false
			m.do(Action{Kind: ActionRemove})
		}
		m.do(Action{Kind: ActionReason, Reason: reason})
		return m.actions
	}
	m.cutShort()
	m.leave()
	m.enter(Fault, reason)
	return m.actions
}

// Shutdown stops at once: an Active node tells the others and removes the VIPs.
// During a release it ends the wait; the VIPs stay.
func (m *Machine) Shutdown() []Action {
	m.begin()
	switch {
	case m.giving == toStop:
		m.endGiving(time.Time{}, Heard{})
	case m.state != Initialize:
		m.cutShort()
		m.leave()
		m.enter(Initialize, "stopped")
	}
	return m.actions
}

// cutShort ends a handover that nobody has answered yet.
func (m *Machine) cutShort() {
	if m.giving != keeping {
		m.giving = keeping
		m.do(Action{Kind: ActionHandedOver})
	}
}
