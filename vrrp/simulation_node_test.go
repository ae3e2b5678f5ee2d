// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"time"
)

// A simNode is a node with a clock of its own.
type simNode struct {
	sim     *simulation
	index   int
	address netip.Addr
	cfg     MachineConfig
	machine *Machine       // nil: it is dead, or was stopped
	rate    float64        // of its clock
	holds   bool           // the VIPs, also while it is dead
	unfit   bool           // what it depends on fails
	fenced  bool           // its kernel knows when it was overtaken
	deaf    []bool         // whom it does not hear
	latest  map[NodeID]int // of each run, the last heartbeat that was taken
	paused  bool
	waiting []func()      // what came meanwhile
	seen    bool          // the kernel has seen another node's advertisement since beatAt
	beatAt  time.Time     // when the daemon was at work last, as the Active node; zero: never
	lease   time.Duration // until then heartbeats go on in a pause
	wake    int           // number of the wake-up that counts
	runs    int           // how often it has started
}

// clock is what the node's clock shows.
func (n *simNode) clock() time.Time { return epoch.Add(time.Duration(float64(n.sim.now) * n.rate)) }

// start starts the daemon.
func (n *simNode) start() {
	if n.machine != nil {
		return
	}
	n.sim.note("node %d starts, priority %d, holds %v", n.index, n.cfg.Priority, n.holds)
	n.paused, n.waiting = false, nil
	n.runs++
	n.cfg.ID = NodeID{byte(n.index), byte(n.runs >> 8), byte(n.runs)}
	n.machine = NewMachine(n.cfg)
	if n.cfg.Heartbeat > 0 {
		n.sim.after(n.sim.upTo(n.cfg.Heartbeat), n.beater(n.machine))
	}
	n.takePart()
}

// takePart has the daemon take part in the election as well as it can.
func (n *simNode) takePart() {
	switch {
	case n.unfit:
		n.perform(n.machine.Unfit(n.clock(), "unfit", n.holds))
	case n.holds && n.fenced && !n.seen && !n.beatAt.IsZero() && n.clock().Sub(n.beatAt) < n.machine.Resumable():
		n.perform(n.machine.Resume(n.clock()))
	default:
		n.perform(n.machine.Startup(n.clock(), n.holds))
	}
}

// priority is what it has in the election.
func (n *simNode) priority() uint8 {
	if n.unfit {
		return PriorityLastResort
	}
	return n.cfg.Priority
}

// die ends the daemon. What it has put on the interface stays, but not if the
// machine dies with it.
func (n *simNode) die(machine bool) {
	n.sim.note("node %d dies, machine %v", n.index, machine)
	n.atWork()
	n.machine = nil
	n.wake++
	if !machine {
		n.close()
	}
	if machine {
		n.holds = false
	}
}

// atWork notes that an Active node is, as its fence does all the time.
func (n *simNode) atWork() {
	if n.running() && n.machine.State() == Active {
		n.beatAt, n.seen = n.clock(), false
	}
}

func (n *simNode) running() bool { return n.machine != nil && !n.paused }

func (n *simNode) perform(actions []Action) {
	n.atWork()
	for _, a := range actions {
		switch a.Kind {
		case ActionSend:
			n.send(a.Priority)
		case ActionAdd:
			n.holds = true
		case ActionRemove:
			n.holds = false
		case ActionState:
			n.sim.note("node %d: %v to %v: %s", n.index, a.From, a.To, a.Reason)
		case ActionReleased:
			n.machine = nil
		}
	}
	n.setTimer()
}

func (n *simNode) setTimer() {
	n.wake++
	if n.machine == nil {
		return
	}
	deadline, ok := n.machine.Deadline()
	if !ok {
		return
	}
	s, number := n.sim, n.wake
	wait := time.Duration(float64(deadline.Sub(n.clock()))/n.rate) + 1
	s.after(max(0, wait)+s.upTo(s.cfg.Interval/100), func() {
		if n.wake == number && n.running() {
			n.perform(n.machine.Expire(n.clock()))
		}
	})
}

func (n *simNode) send(priority uint8) {
	h := Heard{Source: n.address, Priority: priority, Interval: n.cfg.Interval}
	n.spread(func(to *simNode) {
		beats := to.running() && to.machine.State() == Active
		to.seen = to.seen || priority != PriorityRelease && !beats
		to.hear(func(to *simNode) { to.perform(to.machine.Receive(to.clock(), h)) })
	})
}

// spread brings something to every other node that hears this one, as far as the
// network does.
func (n *simNode) spread(arrives func(to *simNode)) {
	s := n.sim
	for _, to := range s.nodes {
		copies := 1
		if s.Float64() < s.trouble.double {
			copies = 2
		}
		if to == n || to.deaf[n.index] || s.Float64() < s.trouble.loss {
			continue
		}
		for range copies {
			s.after(s.upTo(s.trouble.delay)+1, func() { arrives(to) })
		}
	}
}

func (n *simNode) hear(do func(*simNode)) {
	switch {
	case n.machine == nil:
	case n.paused:
		n.waiting = append(n.waiting, func() { do(n) })
	default:
		do(n)
	}
}

// beater sends a run's heartbeats: what the machine is at that moment. In a pause a
// pacemaker goes on for a while.
func (n *simNode) beater(of *Machine) func() {
	return func() {
		if n.machine != of {
			return
		}
		if !n.paused || n.sim.now < n.lease {
			n.beat()
		}
		n.sim.after(time.Duration(float64(n.cfg.Heartbeat)/n.rate), n.beater(of))
	}
}

func (n *simNode) beat() {
	b := Beat{Node: n.cfg.ID, Source: n.address, State: n.machine.State(), Priority: n.machine.Advertised()}
	if n.machine.Releasing() {
		b.Priority = PriorityRelease
	}
	s := n.sim
	for _, to := range s.nodes {
		// Of heartbeats none overtakes another: the older one is not taken.
		if to == n || to.deaf[n.index] || s.Float64() < s.trouble.loss {
			continue
		}
		at := s.now + s.upTo(s.trouble.delay) + 1
		s.order++
		order := s.order
		s.after(at-s.now, func() {
			to.hear(func(to *simNode) {
				if order > to.latest[b.Node] {
					to.latest[b.Node] = order
					to.perform(to.machine.Beat(to.clock(), b))
				}
			})
		})
	}
}

// close is what the kernel does when a daemon has ended: its connections tell the
// others, as far as they hear it.
func (n *simNode) close() {
	s, b := n.sim, Beat{Node: n.cfg.ID, Gone: true}
	if n.cfg.Heartbeat == 0 || n.runs == 0 {
		return
	}
	n.spread(func(to *simNode) {
		to.hear(func(to *simNode) {
			s.order++
			to.latest[b.Node] = s.order
			to.perform(to.machine.Beat(to.clock(), b))
		})
	})
}

// pause is SIGSTOP, and SIGCONT after d: what has come meanwhile is read first, as
// a Router does. Where the kernel has seen that another node has taken over, that comes
// before, but not before what the pacemaker had to send.
func (n *simNode) pause(d time.Duration) {
	if !n.running() {
		return
	}
	machine := n.machine
	n.sim.note("node %d pauses for %v", n.index, d)
	n.atWork()
	n.paused, n.lease = true, n.sim.now+n.sim.upTo(d)
	n.sim.after(d, func() {
		if n.machine != machine {
			return
		}
		n.paused = false
		if n.seen && n.fenced {
			spoken := n.cfg.Heartbeat > 0
			if spoken && n.sim.IntN(2) == 0 {
				n.beat()
			}
			n.perform(n.machine.Overtaken(n.clock(), spoken))
		}
		waiting := n.waiting
		n.waiting = nil
		for _, do := range waiting {
			if n.machine != nil {
				do()
			}
		}
		if n.machine != nil {
			n.setTimer()
		}
	})
}

// better tells whether n wins against o: by priority, then by address.
func (n *simNode) better(o *simNode) bool {
	if n.priority() != o.priority() {
		return n.priority() > o.priority()
	}
	// A Backup of equal priority does not preempt: whoever is Active stays.
	if n.machine.State() != o.machine.State() {
		return n.machine.State() == Active
	}
	return n.address.Compare(o.address) > 0
}
