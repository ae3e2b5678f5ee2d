// SPDX-License-Identifier: Apache-2.0

package vrrp

import "time"

// Overtaken says that this node, as the Active one, stood still for so long that
// another one has taken over. It lets go of the VIPs and begins anew: whether it takes
// them back is for the priorities to say, and for preemption. While it gives the VIPs
// away it changes nothing: whoever has them now is heard, and ends that.
//
// Spoken says that something else has gone on calling this node Active meanwhile: a
// pacemaker. Who has taken over may have made way for that, and then nobody is Active.
// A goodbye has it back at once; if it has made way for nothing it goes on.
func (m *Machine) Overtaken(now time.Time, spoken bool) []Action {
	m.begin()
	if m.state != Active || m.giving != keeping || m.cfg.Priority == PriorityOwner {
		return m.actions
	}
	m.do(Action{Kind: ActionRemove})
	if spoken {
		m.do(Action{Kind: ActionSend, Priority: PriorityRelease})
	}
	m.heard = Heard{}
	if m.lastResort {
		m.standAside(now, m.unfitReason)
	} else {
		m.watch(now, "this node stood still, and another one has taken over")
	}
	return m.actions
}
