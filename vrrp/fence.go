// SPDX-License-Identifier: Apache-2.0

package vrrp

import "time"

// A Fence keeps the kernel from answering for an instance's VIPs where this process
// is not at work and another node has them. The kernel goes on answering for an
// address that a process has added, also when that is dead or stands still, and then
// two nodes answer. Its methods are called from one goroutine, and do not block.
type Fence interface {
	// Place says where the VIPs are, and for how long there may be no Beat before
	// this process counts as gone. The error says why nothing can be fenced there.
	Place(link Link, patience time.Duration) error
	// Hold says that this process holds the VIPs from now on, and is at work. It
	// reports whether the data plane answers who asks for them, until Present, also
	// where they are not on the interface yet.
	Hold() bool
	// Present says that the VIPs that are held are on the interface now.
	Present()
	// Left tells how long ago an earlier run was at work, as the Active node, that has
	// left the VIPs. False: there was none, or another node has shown since that it has
	// them. It is asked before Adopt.
	Left() (age time.Duration, ok bool)
	// Adopt says that an earlier run has left the VIPs on the interface. Where they
	// are fenced already, they stay so.
	Adopt()
	// Drop says that the VIPs are not on the interface any more.
	Drop()
	// Beat says that this process is at work, as the Active node: what was fenced is
	// so no more. It does not allocate.
	Beat()
	// Overtaken reports whether there was no Beat for so long that the VIPs are
	// fenced, because another node has advertised them.
	Overtaken() bool
}

// noFence is the Fence of a Router that has none.
type noFence struct{}

func (noFence) Place(Link, time.Duration) error { return nil }
func (noFence) Hold() bool                      { return false }
func (noFence) Present()                        {}
func (noFence) Left() (time.Duration, bool)     { return 0, false }
func (noFence) Adopt()                          {}
func (noFence) Drop()                           {}
func (noFence) Beat()                           {}
func (noFence) Overtaken() bool                 { return false }

// beatEvery is how often an Active node beats: some four times an advertisement
// interval, often enough for long ones, and not too often for short ones. Where
// heartbeats tell of its end, as often as they do.
func (c *Config) beatEvery() time.Duration {
	every := c.Interval / 4
	if c.Heartbeat > 0 {
		every = min(every, c.Heartbeat)
	}
	return min(max(every, 5*time.Millisecond), 100*time.Millisecond)
}

// fencePatience is how long a beat may be late. It must be over before a Backup can have
// taken over, after three intervals of silence: from then on two nodes would answer. After
// a takeover by heartbeats they do for this long.
func (c *Config) fencePatience() time.Duration { return 4 * c.beatEvery() }

// placeFence tells the fence where the VIPs are.
func (r *Router) placeFence() {
	unfenced := ""
	if err := r.deps.Fence.Place(r.link, r.cfg.fencePatience()); err != nil {
		unfenced = oneLine(err)
	}
	r.faults[faultVirtual] = ""
	if unfenced != "" && r.cfg.VirtualMAC {
		r.faults[faultVirtual] = "nobody answers for the virtual MAC address: " + unfenced
	}
	if unfenced == r.unfenced {
		return
	}
	r.unfenced = unfenced
	r.update(func(s *Status) { s.Unfenced = unfenced })
	if unfenced != "" {
		r.log.Warn("if this daemon dies while its interface is up, the kernel goes on answering for the vips beside the node that takes over",
			"interface", r.link.Name, "reason", unfenced)
	}
}

// beat tells the fence that an Active node is at work, where there is one. It comes last
// in each turn of the loop: whoever is stuck before does not beat.
func (r *Router) beat(now time.Time) {
	r.yield(now)
	if r.machine.State() != Active || r.unfenced != "" || r.deps.Fence == (noFence{}) {
		r.beatAt = time.Time{}
		return
	}
	if now.Before(r.beatAt) {
		return
	}
	// In a release, who took over is heard in a moment, and ends it.
	if !r.machine.Releasing() || !r.deps.Fence.Overtaken() {
		r.deps.Fence.Beat()
	}
	r.beatAt = now.Add(r.cfg.beatEvery())
}

// yield makes an Active node that stood still a Backup, before it does anything
// else, if another one has taken over meanwhile.
func (r *Router) yield(now time.Time) {
	if r.beatAt.IsZero() || !r.deps.Fence.Overtaken() {
		return
	}
	r.perform(now, r.machine.Overtaken(now, r.paced.on || r.deps.Heartbeats != nil))
}
