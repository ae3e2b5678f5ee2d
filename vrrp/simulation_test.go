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
	switch s.IntN(18) {
	case 0, 1:
		n.die(s.IntN(2) == 0)
	case 2, 3, 4:
		n.start()
	case 15, 16: // it is killed, and started again at once
		if n.machine != nil {
			n.die(false)
			s.after(s.upTo(3*s.cfg.Interval), n.start)
		}
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
	case 17:
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
