// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What a peer has lost, has otherwise, or has too many of is found and mended.
func TestDifferencesAreMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(20_000)
		a, b := newPlane(flows...), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		mustHave(t, b, "lb1", a)
		b.do(func() {
			delete(b.held["lb1"], flows[7].FlowID)
			b.held["lb1"][flows[8].FlowID] = with(flows[8], func(s *lb.FlowState) { s.Phase = lb.FlowClosing })
			extra := with(flows[9], func(s *lb.FlowState) { s.VIP = endpointOf("192.0.2.100:81") })
			b.held["lb1"][extra.FlowID] = extra
			b.applied = 0
		})
		later(10 * time.Second)
		if b.has("lb1", a) == nil {
			t.Fatal("there is no difference to begin with")
		}
		// Twice it must differ; then the mend comes within moments.
		later(41 * time.Second)
		mustHave(t, b, "lb1", a)
		in, out := two.peerStatus("lb1").In, one.peerStatus("lb2").Out
		if in.Mends != 1 || out.Mends != 1 || out.Snapshots != 1 || b.applied == 0 || b.applied > 1000 {
			t.Errorf("%d flows were sent; lb1: %+v, lb2: %+v", b.applied, out, in)
		}
		later(2 * time.Minute)
		if in := two.peerStatus("lb1").In; in.Mends != 1 || in.Differ != 0 {
			t.Errorf("afterwards: %+v", in)
		}
	})
}

// settledPair starts two nodes, and returns when each has all of the other's.
func settledPair(t *testing.T, a, b *plane) (one, two *member) {
	w := newNetwork()
	one, two = w.member(t, a, config("lb1", "lb2")), w.member(t, b, config("lb2", "lb1"))
	later(settled)
	return one, two
}

// A stalledPair is two nodes, of which the first has flows that it does not come to name.
type stalledPair struct {
	*network
	a, b     *plane
	one, two *member
	stall    chan struct{}
}

func newStalledPair(t *testing.T) *stalledPair {
	p := &stalledPair{network: newNetwork(), a: newPlane(manyFlows(5000)...), b: newPlane(), stall: make(chan struct{})}
	p.a.stall = p.stall
	p.one = p.member(t, p.a, config("lb1", "lb2"))
	p.two = p.member(t, p.b, config("lb2", "lb1"))
	return p
}

// goOn has it name them.
func (p *stalledPair) goOn() {
	p.a.do(func() { p.a.stall = nil })
	close(p.stall)
}

// Flows that come, change and go all the time are no difference.
func TestWhatIsOnItsWayIsNotMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flows := manyFlows(8000)
		a, b := newPlane(flows[:4000]...), newPlane()
		one, two := settledPair(t, a, b)
		defer closed(one, two)
		for i := range 10_000 { // 3 minutes and more, 50 changes a second
			s := flows[i*7919%len(flows)]
			if i%3 == 0 {
				s.Phase = lb.FlowOver
			}
			s.Sequence = uint32(i)
			a.set(s)
			time.Sleep(20 * time.Millisecond)
		}
		later(100 * time.Millisecond)
		mustHave(t, b, "lb1", a)
		if in := two.peerStatus("lb1").In; in.Mends != 0 || in.Snapshots != 1 {
			t.Errorf("got %+v", in)
		}
	})
}

// A difference is mended while the flows around it change.
func TestMendsWhileFlowsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flows := manyFlows(8000)
		a, b := newPlane(flows[:4000]...), newPlane()
		one, two := settledPair(t, a, b)
		defer closed(one, two)
		b.do(func() {
			for _, s := range flows[3900:4000] {
				delete(b.held["lb1"], s.FlowID)
			}
		})
		for i := range 15_000 {
			s := flows[i*7919%3900]
			if i%3 == 0 {
				s = flows[4000+i%4000]
				if i%6 == 0 {
					s.Phase = lb.FlowOver
				}
			}
			s.Sequence = uint32(i)
			a.set(s)
			time.Sleep(20 * time.Millisecond)
		}
		later(100 * time.Millisecond)
		mustHave(t, b, "lb1", a)
		if in := two.peerStatus("lb1").In; in.Mends == 0 || in.Mends > 14 {
			t.Errorf("got %+v", in)
		}
	})
}

// Flows that a node has no use for differ for ever; they are asked for less and less
// often.
func TestRefusedFlowsAreNotMendedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(500)
		a, b := newPlane(flows...), newPlane()
		b.refuse = func(s *lb.FlowState) bool { return s.FlowID == flows[3].FlowID }
		seldom := func(n *Node) { n.tuning.poll = time.Second }
		one := w.member(t, a, config("lb1", "lb2"), seldom)
		two := w.member(t, b, config("lb2", "lb1"), seldom)
		defer closed(one, two)
		later(time.Hour)
		if in := two.peerStatus("lb1").In; in.Mends < 3 || in.Mends > 9 || in.Differ != 1 {
			t.Errorf("in an hour: %+v", in)
		}
	})
}

// A source that fails in the middle sends neither digests nor a mend that would end flows.
func TestASourceFailsInAMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(2000)
		a, b := newPlane(flows...), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		a.do(func() { a.sick = fmt.Errorf("busy") })
		one.mu.Lock()
		o := one.peers[0].sending
		one.mu.Unlock()
		o.mu.Lock()
		all := newBitset(o.buckets.count())
		for i := range o.buckets.count() {
			all.set(i)
		}
		o.mend = &selection{bucketing: o.buckets, chosen: all}
		o.mu.Unlock()
		later(3 * time.Minute)
		a.do(func() { a.sick = nil })
		later(settled)
		mustHave(t, b, "lb1", a)
		if s := two.peerStatus("lb1"); s.In.Snapshots != 1 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestJudge(t *testing.T) {
	k := bucketing{seed: 1, bits: minBucketBits}
	n := k.count()
	theirs := make([]uint64, n)
	compare := func(s *suspects, busy bool, wrong ...int) []int {
		sums := make([]uint64, n)
		marks := newBitset(n)
		for _, i := range wrong {
			sums[i] = 1
			if busy {
				marks.set(i)
			}
		}
		chosen := s.judge(&comparison{digests{bucketing: k, busy: marks, sums: theirs}}, sums)
		var all []int
		for i := range n {
			if chosen != nil && chosen.has(i) {
				all = append(all, i)
			}
		}
		return all
	}
	t.Run("equal", func(t *testing.T) {
		var s suspects
		for range 10 {
			if got := compare(&s, false); got != nil {
				t.Errorf("got %v", got)
			}
		}
	})
	t.Run("twice", func(t *testing.T) {
		var s suspects
		got := [][]int{compare(&s, false, 5), compare(&s, false, 5, 6), compare(&s, false, 6), compare(&s, false)}
		if diff := cmp.Diff([][]int{nil, {5}, {6}, nil}, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
	t.Run("equal in between", func(t *testing.T) {
		var s suspects
		got := [][]int{compare(&s, false, 5), compare(&s, false), compare(&s, false, 5), compare(&s, false, 5)}
		if diff := cmp.Diff([][]int{nil, nil, nil, {5}}, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
	t.Run("busy takes longer", func(t *testing.T) {
		var s suspects
		for i, want := range [][]int{nil, nil, nil, {5}} {
			if diff := cmp.Diff(want, compare(&s, true, 5)); diff != "" {
				t.Errorf("comparison %d, -want +got:\n%s", i, diff)
			}
		}
	})
	t.Run("what mends do not help", func(t *testing.T) {
		var s suspects
		mends := 0
		for range 1000 {
			mends += len(compare(&s, false, 5))
		}
		if mends < 10 || mends > 25 {
			t.Errorf("%d mends in 1000 comparisons", mends)
		}
	})
	t.Run("all at once", func(t *testing.T) {
		var s suspects
		every := make([]int, n)
		for i := range every {
			every[i] = i
		}
		compare(&s, false, every...)
		if got := compare(&s, false, every...); len(got) != mendLeast {
			t.Errorf("%d buckets are mended at a time, want %d", len(got), mendLeast)
		}
	})
	t.Run("other buckets", func(t *testing.T) {
		var s suspects
		compare(&s, false, 5)
		k.seed++
		if got := compare(&s, false, 5); got != nil {
			t.Errorf("got %v", got)
		}
	})
}
