// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A NodeID names one run of another node's daemon. After a restart it has
// another one.
type NodeID [16]byte

// A Beat is what a heartbeat of another node says of this virtual router.
// Whoever passes it on knows that it is genuine and new.
type Beat struct {
	Node   NodeID
	Source netip.Addr // the path that it came by
	State  State
	// Priority is PriorityRelease where the node is Active and hands over.
	Priority uint8
	// Interval is the sender's. Where it is longer than this node's own it counts.
	Interval time.Duration
	// Gone says, in place of the rest, that this run of the daemon has ended.
	Gone bool
}

// silence is how long there must be no heartbeat, on all paths, before an Active
// node is given up: two and a half intervals. One may be lost and the next one be
// late by half an interval. Three full ones would forgive no other loss, since the
// third heartbeat would come as they end.
func silence(interval time.Duration) time.Duration { return 2*interval + interval/2 }

// maxBeatPeers bounds the nodes that a Machine remembers.
const maxBeatPeers = 32

// A beatPeer is a node as its heartbeats tell.
type beatPeer struct {
	Beat
	last time.Time // when the last one came, or word that the node is gone
}

// beats is what a Machine knows from heartbeats.
type beats struct {
	interval time.Duration // 0: this instance has none
	own      NodeID
	peers    []beatPeer
}

// note remembers what a beat says. It returns what the node said before.
func (b *beats) note(now time.Time, beat Beat) (before Beat, known bool) {
	i := slices.IndexFunc(b.peers, func(p beatPeer) bool { return p.Node == beat.Node })
	switch {
	case i >= 0:
	case beat.Gone:
		return before, false
	case len(b.peers) == maxBeatPeers:
		b.forgetOldest()
		fallthrough
	default:
		b.peers = append(b.peers, beatPeer{})
		i = len(b.peers) - 1
	}
	p := &b.peers[i]
	before, known = p.Beat, p.Node == beat.Node
	if p.last = now; beat.Gone {
		p.Gone = true
	} else {
		p.Beat = beat
	}
	return before, known
}

func (b *beats) forgetOldest() {
	oldest := 0
	for i := range b.peers {
		if b.peers[i].last.Before(b.peers[oldest].last) {
			oldest = i
		}
	}
	b.peers = slices.Delete(b.peers, oldest, oldest+1)
}

// keep forgets the nodes that are silent or gone.
func (b *beats) keep(now time.Time) {
	b.peers = slices.DeleteFunc(b.peers, func(p beatPeer) bool { return p.Gone || now.Sub(p.last) >= b.down(&p) })
}

// down is how long a node may be silent.
func (b *beats) down(p *beatPeer) time.Duration { return silence(max(b.interval, p.Interval)) }

// active reports whether a peer holds the VIPs and means to keep them.
func (p *beatPeer) active() bool { return p.State == Active && p.Priority != PriorityRelease }

// anyActive reports whether heartbeats tell of a node that holds the VIPs now.
func (b *beats) anyActive(now time.Time) bool {
	return slices.ContainsFunc(b.peers, func(p beatPeer) bool { return p.active() && !p.Gone && now.Sub(p.last) < b.down(&p) })
}

// rank is how many Backups come before this node at a moment: each waits for
// those before it, as VRRP's skew makes them wait (RFC 9568, 6.1). Of equal
// priorities the greater id comes first.
func (b *beats) rank(at time.Time, priority uint8) (n int) {
	for i := range b.peers {
		p := &b.peers[i]
		if p.State != Backup || p.Gone || at.Sub(p.last) > 2*b.down(p) {
			continue
		}
		if p.Priority > priority || p.Priority == priority && bytes.Compare(p.Node[:], b.own[:]) > 0 {
			n++
		}
	}
	return n
}

// silentAt is when the Active node is to be given up, if nothing more is heard
// until then. Heard is when an advertisement came last: it shows as well as a
// heartbeat that an Active node lives. Zero: no heartbeat tells of one.
func (b *beats) silentAt(heard time.Time, priority uint8) (at time.Time) {
	for i := range b.peers {
		p := &b.peers[i]
		if !p.active() {
			continue
		}
		end := p.last
		if heard.After(end) || !p.Gone {
			if heard.After(end) {
				end = heard
			}
			end = end.Add(b.down(p))
		}
		if end.After(at) {
			at = end
		}
	}
	if at.IsZero() {
		return at
	}
	return at.Add(time.Duration(b.rank(at, priority)) * b.interval)
}

// Beat is an authentic heartbeat of another node of this virtual router. It
// counts beside advertisements: an Active node that is heard by either is alive,
// and one that has had heartbeats and loses them on all paths is given up long
// before Active_Down_Interval ends.
func (m *Machine) Beat(now time.Time, b Beat) []Action {
	m.begin()
	if m.beats.interval == 0 {
		return m.actions
	}
	before, known := m.beats.note(now, b)
	held := known && before.State == Active && !before.Gone
	h := Heard{Source: b.Source, Priority: b.Priority, Interval: m.activeInterval, node: b.Node}
	switch {
	case b.Gone:
		if held && before.Priority == PriorityRelease {
			m.gaveUp(now, Heard{Source: before.Source, node: b.Node})
		}
	case b.State == Active && b.Priority != PriorityRelease:
		m.beatOfActive(now, h)
	case b.State != Backup:
		// It hands over, or has let go; the advertisement that says so may be lost.
		if held && before.Priority != PriorityRelease {
			h.Priority = PriorityRelease
			m.gaveUp(now, h)
		}
	}
	return m.actions
}

// beatOfActive is a heartbeat of a node that holds the VIPs: as good as its
// advertisement, but that of two Active nodes of equal priority the addresses of
// advertisements decide, and that a lower one is answered once for each of these.
func (m *Machine) beatOfActive(now time.Time, h Heard) {
	switch {
	case m.state == Backup:
		m.receiveBackup(now, h)
	case m.state == Active && (m.giving != keeping || h.Priority > m.Advertised()):
		m.receiveActive(now, h)
	case m.state == Fault && m.unfit:
		m.receiveUnfit(now, h)
	}
}

// gaveUp is the news, without an advertisement, that an Active node has let go. Where
// another one is Active already, that is why.
func (m *Machine) gaveUp(now time.Time, h Heard) {
	if m.state != Backup || m.beats.anyActive(now) {
		return
	}
	if at := now.Add(m.releaseSkew(now)); at.Before(m.deadline) {
		m.heard, m.heardAt, m.deadline = h, now, at
		m.yielded, m.respects = false, false
	}
}

// releaseSkew is how long a Backup waits when the Active node has given up: where
// heartbeats tell who else is Backup, for those that are better only.
func (m *Machine) releaseSkew(now time.Time) time.Duration {
	for i := range m.beats.peers {
		if p := &m.beats.peers[i]; now.Sub(p.last) <= m.beats.down(p) {
			return time.Duration(m.beats.rank(now, m.cfg.Priority)) * m.beats.interval
		}
	}
	return m.Skew()
}

// silentAt is when heartbeats say that the Active node is to be given up.
func (m *Machine) silentAt() time.Time {
	if m.state != Backup {
		return time.Time{}
	}
	return m.beats.silentAt(m.heardAt, m.cfg.Priority)
}

// silenceReason says why the Active node was given up at silentAt.
func (m *Machine) silenceReason() string {
	reason := ""
	for i := range m.beats.peers {
		switch p := &m.beats.peers[i]; {
		case !p.active():
		case p.Gone:
			reason = fmt.Sprintf("the daemon of %v has ended", p.Source)
		default:
			return fmt.Sprintf("the heartbeats of %v fell silent for %v", p.Source, m.beats.down(p))
		}
	}
	return reason
}
