// SPDX-License-Identifier: Apache-2.0

package vrrp

import "time"

// SetSynced tells whether this node can go on with the Active one's connections.
// Where SyncWait is set, a Backup without that does not preempt: connections would
// break. Nothing else waits for it, neither a takeover from a node that has given up or
// fallen silent nor the end of this one's own time as Active.
func (m *Machine) SetSynced(on bool) { m.synced = on }

// AwaitsState is until when, at the longest, a Backup that would preempt by its
// priority does not, since it does not hold the Active node's state yet. Zero: it does
// not wait for that.
func (m *Machine) AwaitsState() time.Time {
	if m.state != Backup || m.synced {
		return time.Time{}
	}
	return m.awaits
}

// mayPreempt tells whether a Backup that hears an Active node of lower priority has
// waited for as long as it must.
func (m *Machine) mayPreempt(now time.Time) bool {
	if m.preemptAt.IsZero() {
		m.preemptAt, m.stateBy = now.Add(m.cfg.PreemptDelay), now.Add(m.cfg.SyncWait)
	}
	m.awaits = time.Time{}
	if !m.synced && now.Before(m.stateBy) {
		m.awaits = m.stateBy
		if m.preemptAt.After(m.stateBy) {
			m.awaits = m.preemptAt
		}
	}
	return !now.Before(m.preemptAt) && m.awaits.IsZero()
}

// unsynced says so where a node preempts without the Active one's state, which it has
// waited for in vain.
func (m *Machine) unsynced() string {
	if m.cfg.SyncWait > 0 && !m.synced {
		return ", without its state or the servers that it reaches: they have not come within " + m.cfg.SyncWait.String()
	}
	return ""
}
