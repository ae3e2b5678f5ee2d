// SPDX-License-Identifier: Apache-2.0

package vrrp

import "time"

// What follows is for a Machine that is one of a group: see Group.

// Follow makes a Backup Active because its group is. Any other state it leaves
// alone, and a Backup that an operator holds.
func (m *Machine) Follow(now time.Time, reason string) []Action {
	m.begin()
	if m.state == Backup && !m.hold {
		m.activate(now, reason, true)
	}
	return m.actions
}

// StepDown gives the VIPs of an Active node away because its group has lost its
// own: as HandOver does, but this node goes on taking part in the election.
func (m *Machine) StepDown(now time.Time) []Action {
	m.begin()
	if m.state == Active && m.giving == keeping && !m.lastResort {
		m.give(now, toFollow)
	}
	return m.actions
}

// Respects is until when a Backup leaves the VIPs to an Active node that it hears;
// zero where it hears none, or preempts it.
func (m *Machine) Respects() time.Time {
	if m.state == Backup && m.respects {
		until, _ := m.Deadline()
		return until
	}
	return time.Time{}
}

// Unyield ends what a handover has left.
func (m *Machine) Unyield() { m.yielded = false }

// PutOff puts a takeover that is due off for one interval, of heartbeats where
// these have told that the Active node is silent.
func (m *Machine) PutOff(now time.Time) {
	if m.state == Backup {
		m.respects = false
		wait := m.activeInterval
		if at := m.silentAt(); !at.IsZero() && !now.Before(at) {
			wait = min(wait, m.beats.interval)
			m.beats.keep(now) // what they told is in the deadline now
		}
		m.deadline = now.Add(wait)
	}
}
