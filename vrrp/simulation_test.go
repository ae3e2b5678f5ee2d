// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("seed", 0, "run the one simulation with this seed, and print what happens")
	seeds = flag.Uint64("seeds", 10000, "how many simulations to run")
)

// A simulation is a few machines on a network that loses, delays, doubles and
// cuts, in virtual time. All that happens follows from its seed.
type simulation struct {
	*rand.Rand
	now     time.Duration
	events  eventQueue
	order   int // of events at one time: as they were made
	nodes   []*simNode
	cfg     MachineConfig
	trouble trouble
	log     *strings.Builder // nil: nothing is noted
}

// Trouble is what the network does to packets.
type trouble struct {
	loss, double float64
	delay        time.Duration // at most; packets overtake each other
}

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
	seen    bool          // another node's advertisement was among it, and the kernel has seen it
	lease   time.Duration // until then heartbeats go on in a pause
	wake    int           // number of the wake-up that counts
	runs    int           // how often it has started
}

type event struct {
	at    time.Duration
	order int
	do    func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	*q = (*q)[:last]
	return e
}

func (s *simulation) after(d time.Duration, do func()) {
	s.order++
	heap.Push(&s.events, event{s.now + d, s.order, do})
}

// run lets the time pass.
func (s *simulation) run(d time.Duration) {
	end := s.now + d
	for len(s.events) > 0 && s.events[0].at <= end {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
	}
	s.now = end
}

func (s *simulation) note(format string, args ...any) {
	if s.log != nil {
		fmt.Fprintf(s.log, "%12v "+format+"\n", append([]any{s.now}, args...)...)
	}
}

// upTo returns a random duration below d.
func (s *simulation) upTo(d time.Duration) time.Duration { return time.Duration(s.Int64N(int64(d))) }

// newSimulation draws the nodes: two to five, of random, perhaps equal priority.
func newSimulation(seed uint64) *simulation {
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 1))}
	s.cfg = MachineConfig{Version: V2, Interval: time.Second, Preempt: s.IntN(4) > 0}
	if s.IntN(2) == 0 {
		s.cfg.Version, s.cfg.Interval = V3, []time.Duration{10, 100, 1000}[s.IntN(3)]*time.Millisecond
	}
	if s.IntN(3) == 0 {
		s.cfg.PreemptDelay = s.upTo(5 * s.cfg.Interval)
	}
	if s.IntN(3) == 0 {
		s.cfg.SyncWait = s.upTo(5 * s.cfg.Interval)
	}
	if s.IntN(4) == 0 { // fast mode
		s.cfg.Heartbeat = s.cfg.Interval / time.Duration(2+s.IntN(5))
	}
	count := 2 + s.IntN(4)
	owner := -1
	if s.IntN(8) == 0 {
		owner = s.IntN(count)
	}
	for i := range count {
		n := &simNode{
			sim: s, index: i, address: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}),
			cfg: s.cfg, rate: 1 + (s.Float64()-0.5)/500, deaf: make([]bool, count), latest: map[NodeID]int{},
		}
		n.cfg.Local, n.cfg.Priority = n.address, uint8(1+s.IntN(254))
		if i > 0 && i != owner && i-1 != owner && s.IntN(4) == 0 {
			n.cfg.Priority = s.nodes[i-1].cfg.Priority
		}
		if i == owner {
			n.cfg.Priority, n.cfg.SyncWait = PriorityOwner, 0
		}
		n.fenced = s.IntN(2) == 0
		s.nodes = append(s.nodes, n)
	}
	return s
}

// clock is what the node's clock shows.
func (n *simNode) clock() time.Time { return epoch.Add(time.Duration(float64(n.sim.now) * n.rate)) }

// start starts the daemon.
func (n *simNode) start() {
	if n.machine != nil {
		return
	}
	n.sim.note("node %d starts, priority %d, holds %v", n.index, n.cfg.Priority, n.holds)
	n.paused, n.waiting, n.seen = false, nil, false
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
	if n.unfit {
		n.perform(n.machine.Unfit(n.clock(), "unfit", n.holds))
	} else {
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
	n.machine = nil
	n.wake++
	if !machine {
		n.close()
	}
	if machine {
		n.holds = false
	}
}

func (n *simNode) running() bool { return n.machine != nil && !n.paused }

func (n *simNode) perform(actions []Action) {
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
		to.seen = to.seen || to.paused && priority != PriorityRelease
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
	n.paused, n.seen, n.lease = true, false, n.sim.now+n.sim.upTo(d)
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

// part splits the nodes into parts that do not hear each other, and returns which
// part each is in.
func (s *simulation) part(parts int) []int {
	of := make([]int, len(s.nodes))
	for i := range of {
		of[i] = s.IntN(parts)
	}
	for i, n := range s.nodes {
		for j := range s.nodes {
			n.deaf[j] = of[i] != of[j]
		}
	}
	s.note("parts %v", of)
	return of
}

// mischief does one thing that may happen in a data centre.
func (s *simulation) mischief() {
	n := s.nodes[s.IntN(len(s.nodes))]
	switch s.IntN(16) {
	case 0, 1:
		n.die(s.IntN(2) == 0)
	case 2, 3, 4:
		n.start()
	case 5, 6:
		n.pause(s.upTo(8 * s.cfg.Interval))
	case 7:
		s.part(1 + s.IntN(3))
	case 8:
		other := s.IntN(len(s.nodes))
		n.deaf[other] = !n.deaf[other] && other != n.index
		s.note("node %d hears %d: %v", n.index, other, !n.deaf[other])
	case 9:
		if n.running() {
			s.note("node %d is released", n.index)
			n.perform(n.machine.Release(n.clock()))
		}
	case 10:
		if n.running() && n.cfg.Priority != PriorityOwner {
			n.cfg.Priority = uint8(1 + s.IntN(254))
			s.note("node %d has priority %d", n.index, n.cfg.Priority)
			n.perform(n.machine.SetPriority(n.cfg.Priority))
		}
	case 15:
		if n.running() {
			synced := s.IntN(2) == 0
			s.note("node %d is in sync: %v", n.index, synced)
			n.machine.SetSynced(synced)
		}
	case 13, 14:
		if n.machine != nil && n.paused {
			break
		}
		n.unfit = s.IntN(3) > 0
		s.note("node %d is unfit: %v", n.index, n.unfit)
		if n.running() {
			n.takePart()
		}
	case 12:
		if n.running() {
			s.note("node %d hands over", n.index)
			n.perform(n.machine.HandOver(n.clock()))
		}
	case 11:
		if n.running() {
			n.perform(n.machine.Fault("link"))
			machine := n.machine
			s.after(s.upTo(4*s.cfg.Interval), func() {
				if n.machine == machine && n.machine != nil {
					n.takePart()
				}
			})
		}
	}
}

// bound is how long an election may take once nothing disturbs it: every Backup
// has waited for Active_Down_Interval at its longest, after it has seen, with the
// interval it has learnt, the delay of preemption and the wait for a state, that it must; then whoever
// lost is told at the next advertisement.
func (s *simulation) bound() time.Duration {
	skew := s.cfg.Interval
	if s.cfg.Version == V2 {
		skew = time.Second
	}
	wait := 3*s.cfg.Interval + skew
	return max(wait+s.cfg.Interval, minReleaseWait) + max(s.cfg.PreemptDelay, s.cfg.SyncWait) + 2*wait + 4*s.cfg.Interval
}

// check demands that every part with a daemon in it has one Active node, where all
// preempt the best of those that have not handed over, that nobody else holds the VIPs, and that all of this stays.
func (s *simulation) check(part []int) error {
	var before string
	for range 12 {
		var states []string
		for p := range len(s.nodes) {
			var active, best *simNode
			lives := false
			for i, n := range s.nodes {
				if part[i] != p || n.machine == nil {
					continue
				}
				lives = true
				states = append(states, fmt.Sprint(n.index, n.machine.State()))
				// Who has handed over leaves the VIPs to whoever is Active.
				if yielded, _, _ := n.machine.StandsBack(); !yielded && (best == nil || n.better(best)) {
					best = n
				}
				if isActive := n.machine.State() == Active; isActive != n.holds {
					return fmt.Errorf("node %d: state %v, holds the VIPs: %v", n.index, n.machine.State(), n.holds)
				} else if isActive && active != nil {
					return fmt.Errorf("nodes %d and %d are both Active in part %d", active.index, n.index, p)
				} else if isActive {
					active = n
				}
			}
			switch {
			case !lives:
			case active == nil:
				return fmt.Errorf("part %d has no Active node", p)
			case active != best && active.unfit && !best.unfit && best.cfg.Priority > PriorityLastResort:
				return fmt.Errorf("node %d is Active in part %d as the last resort, and node %d is fit", active.index, p, best.index)
			case active != best && s.cfg.Preempt:
				return fmt.Errorf("node %d is Active in part %d, and node %d is better", active.index, p, best.index)
			}
		}
		now := strings.Join(states, ", ")
		if before != "" && now != before {
			return fmt.Errorf("states changed in peace: %s, then %s", before, now)
		}
		before = now
		s.run(s.cfg.Interval)
	}
	return nil
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

// simulate runs one simulation: disorder, then peace in parts, then peace in one.
func simulate(s *simulation) error {
	interval := s.cfg.Interval
	s.trouble = trouble{loss: s.Float64() / 2, double: s.Float64() / 4, delay: 1 + s.upTo(interval)}
	for _, n := range s.nodes {
		s.after(s.upTo(5*interval), n.start)
	}
	for range 5 + s.IntN(20) {
		s.run(s.upTo(4 * interval))
		s.mischief()
	}
	s.note("peace")
	s.trouble = trouble{delay: 1 + interval/20}
	part := s.part(1 + s.IntN(3))
	// What is under way still: pauses, faults, packets of the disorder.
	s.run(10*interval + s.bound())
	if err := s.check(part); err != nil {
		return fmt.Errorf("in parts %v: %w", part, err)
	}
	part = s.part(1)
	s.run(s.bound())
	if err := s.check(part); err != nil {
		return fmt.Errorf("in one part: %w", err)
	}
	return nil
}

// Whatever happens to nodes and network, once it is over every part that can talk
// has one Active node, and when the parts meet again there is one in all.
func TestSimulation(t *testing.T) {
	if *seed != 0 {
		s := newSimulation(*seed)
		s.log = &strings.Builder{}
		err := simulate(s)
		t.Logf("%+v\n%s", s.cfg, s.log)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	const workers = 2
	for w := range uint64(workers) {
		t.Run(fmt.Sprint(w), func(t *testing.T) {
			t.Parallel()
			for n := 1 + w; n <= *seeds; n += workers {
				if err := simulate(newSimulation(n)); err != nil {
					t.Fatalf("%v: go test ./vrrp -run TestSimulation -v -seed %d shows it", err, n)
				}
			}
		})
	}
}
