// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// later lets virtual time pass.
func later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// settled is long enough for everything that is on its way.
const settled = time.Second

// closed ends members before a bubble does.
func closed(all ...*member) {
	for _, m := range all {
		m.stop()
	}
}

func mustHave(t *testing.T, p *plane, peer string, of *plane) {
	t.Helper()
	if err := p.has(peer, of); err != nil {
		t.Errorf("the state of %s: %v", peer, err)
	}
}

func TestStateIsStreamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(5000)
		a, b := newPlane(flows[:4000]...), newPlane(pinned6)
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		mustHave(t, b, "lb1", a)
		mustHave(t, a, "lb2", b)
		a.set(flows[4000:]...)
		a.set(with(flows[0], func(s *lb.FlowState) { s.Phase, s.ClientFIN = lb.FlowClosing, true }))
		for _, s := range flows[100:200] {
			s.Phase = lb.FlowOver
			a.set(s)
		}
		later(50 * time.Millisecond)
		mustHave(t, b, "lb1", a)
		s := one.peerStatus("lb2")
		if s.Problem != "" || !s.Out.InSync || s.Out.InFlight+s.Out.Waiting != 0 || s.Out.Age != 0 || s.Out.Version != newestVersion ||
			s.Out.Records != 5101 || s.Out.Snapshots != 1 || s.Out.Sent == 0 || !s.In.Synced || s.In.Records != 1 || !one.Synced("lb2") {
			t.Errorf("status of lb1: %+v", s)
		}
		if s := two.peerStatus("lb1"); s.In.Records != 5101 || s.In.Received < 100_000 || s.In.Received > 120_000 {
			t.Errorf("status of lb2: %+v", s)
		}
	})
}

// A peer that takes its time is waited for by nobody, hears of each flow's latest state,
// and, when it was too much, gets everything again.
func TestASlowPeer(t *testing.T) {
	for _, tc := range []struct {
		name      string
		pending   int
		snapshots uint64
	}{{"within bounds", 1 << 16, 1}, {"beyond them", 1000, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, flows := newNetwork(), manyFlows(3000)
				a, b, c := newPlane(flows[:1000]...), newPlane(), newPlane()
				small := func(n *Node) { n.tuning.window, n.tuning.pending = 4<<10, tc.pending }
				one := w.member(t, a, config("lb1", "lb2", "lb3"), small)
				two := w.member(t, b, config("lb2", "lb1", "lb3"))
				three := w.member(t, c, config("lb3", "lb1", "lb2"))
				defer closed(one, two, three)
				later(settled)
				hold := make(chan struct{})
				b.do(func() { b.hold = hold })
				for i := range 20 {
					for _, s := range flows[i%4*500 : i%4*500+500] {
						s.Sequence = uint32(i)
						a.set(s)
					}
					later(20 * time.Millisecond)
				}
				mustHave(t, c, "lb1", a)
				s := one.peerStatus("lb2")
				if s.Out.Stalls == 0 || s.Out.Age < 300*time.Millisecond || s.Out.InFlight == 0 || !s.Out.Connected {
					t.Errorf("while it stands still: %+v", s.Out)
				}
				if s := one.peerStatus("lb3"); !s.Out.InSync || s.Out.Snapshots != 1 || s.Out.Age != 0 {
					t.Errorf("the other peer: %+v", s.Out)
				}
				if tc.snapshots == 1 && (s.Out.Coalesced == 0 || s.Out.Waiting == 0) {
					t.Errorf("nothing coalesces: %+v", s.Out)
				}
				later(10 * time.Second) // much longer than silence may last
				if s := one.peerStatus("lb2"); !s.Out.Connected || !strings.Contains(s.Problem, "has acknowledged nothing for 10s") && tc.snapshots == 1 {
					t.Errorf("after 10 s: %+v", s)
				}
				b.do(func() { b.hold = nil })
				close(hold)
				later(5 * time.Second)
				mustHave(t, b, "lb1", a)
				s = one.peerStatus("lb2")
				if s.Problem != "" || s.Out.Snapshots < tc.snapshots || tc.snapshots == 1 && s.Out.Snapshots > 1 || s.Out.Ended > 0 {
					t.Errorf("afterwards: %+v", s)
				}
			})
		})
	}
}

// With the only peer behind, what changes is not read: it waits where it costs nothing, and
// nothing is sent again. What has been read is never too much.
func TestTheOnlyPeerIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(6000)
		a, b := newPlane(flows[:1000]...), newPlane()
		a.most = 200
		one := w.member(t, a, config("lb1", "lb2"), func(n *Node) { n.tuning.window, n.tuning.pending = 4<<10, 1000 })
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		hold := make(chan struct{})
		b.do(func() { b.hold = hold })
		a.set(flows[1000:]...)
		later(10 * time.Second)
		s := one.Status()
		if out := s.Peers[0].Out; out.Waiting < 500 || out.Waiting > 700 || !out.InSync || s.Unread < 4000 {
			t.Errorf("while it stands still: %+v", s)
		}
		for _, f := range flows[1000:1100] { // what changes there again
			f.Phase = lb.FlowClosing
			a.set(f)
		}
		b.do(func() { b.hold = nil })
		close(hold)
		later(5 * time.Second)
		mustHave(t, b, "lb1", a)
		if s := one.Status(); s.Unread != 0 || s.Peers[0].Out.Snapshots != 1 || !s.Peers[0].Out.InSync {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

// A Source that has lost track has all peers get everything again, and one that fails
// is a problem for as long as it does.
func TestASourceLosesTrack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(1000)
		a, b := newPlane(flows...), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		a.do(func() { // changes that Changes does not tell
			for _, s := range flows[:10] {
				delete(a.flows, s.FlowID)
			}
			a.lost = true
		})
		later(3 * time.Second)
		mustHave(t, b, "lb1", a)
		if s := one.Status(); s.Lost != 1 || s.Peers[0].Out.Snapshots != 2 || !s.Peers[0].Out.InSync {
			t.Errorf("got %+v", s)
		}
		a.do(func() { a.sick, a.lost = errors.New("the map is gone"), true })
		later(3 * time.Second)
		if s := one.Status(); len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "the map is gone") || two.Synced("lb1") {
			t.Errorf("while the source fails: %+v", s)
		}
		a.do(func() { a.sick = nil; delete(a.flows, flows[20].FlowID) })
		later(5 * time.Second)
		mustHave(t, b, "lb1", a)
		if s := one.Status(); len(s.Problems) != 0 || !two.Synced("lb1") {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

// A Sink that cannot apply what comes ends the connection, says why, and gets
// everything when it can again.
func TestASinkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(100)
		a, b := newPlane(flows...), newPlane()
		b.broken = errors.New("no space left")
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		if s := one.peerStatus("lb2"); s.Out.LastReason != ReasonSink || !strings.Contains(s.Out.LastError, "cannot apply what comes: no space left") {
			t.Errorf("lb1 says %+v", s)
		}
		if s := two.peerStatus("lb1"); s.In.LastReason != ReasonSink || two.Synced("lb1") {
			t.Errorf("lb2 says %+v", s)
		}
		b.do(func() { b.broken = nil })
		later(3 * time.Second)
		mustHave(t, b, "lb1", a)
	})
}

// What a node has no use for is counted on both nodes.
func TestRefusedFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		a, b := newPlane(manyFlows(800)...), newPlane()
		b.refuse = func(s *lb.FlowState) bool { return s.Backend.Addr() == netip.MustParseAddr("192.0.2.12") }
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		wantRefused := func(when string, times uint64, flows int) {
			t.Helper()
			there, here := two.peerStatus("lb1").In.Refused, one.peerStatus("lb2").Out
			if there != times || here.Refused != times || here.Refusing != flows {
				t.Errorf("%s: lb2 counts %d, lb1 %d, and %d flows, want %d and %d", when, there, here.Refused, here.Refusing, times, flows)
			}
		}
		wantRefused("at first", 100, 100)
		var useless []lb.FlowState
		for _, s := range a.flows {
			if b.refuse(&s) {
				useless = append(useless, s)
			}
		}
		a.set(useless[:10]...) // told again
		later(settled)
		wantRefused("told again", 110, 100)
		for _, s := range useless[:30] {
			s.Phase = lb.FlowOver
			a.set(s)
		}
		later(settled)
		wantRefused("over", 110, 70)
		b.do(func() { b.refuse = nil })
		a.set(useless[30:50]...)
		later(settled)
		wantRefused("taken", 110, 50)
		a.do(func() { a.lost = true })
		later(3 * time.Second)
		wantRefused("told anew", 110, 0)
	})
}

// A flow that no message can hold is counted, and holds nothing up.
func TestAFlowThatCannotBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, bad := newNetwork(), with(natFlow, func(s *lb.FlowState) { s.Phase = 9 })
		a, b := newPlane(bad, pinned6), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		if s := one.Status(); s.Unsaid != 1 || len(b.held["lb1"]) != 1 {
			t.Errorf("got %+v, and %d flows", s, len(b.held["lb1"]))
		}
	})
}

// What a Source has read ahead is older than what was sent since, for as long as it may
// have read ahead.
func TestRecent(t *testing.T) {
	var r recent
	r.sent(&natFlow.FlowID) // no snapshot goes on
	r.begin()
	if r.overtaken(&natFlow.FlowID) {
		t.Error("what was sent before the snapshot counts")
	}
	for range 1000 {
		r.step()
	}
	r.sent(&natFlow.FlowID)
	for i := range 2*readAhead - 1000 {
		if got, want := r.overtaken(&natFlow.FlowID), true; got != want {
			t.Fatalf("%d states later: overtaken %v, want %v", i, got, want)
		}
		r.step()
	}
	if r.overtaken(&natFlow.FlowID) || r.overtaken(&pinned6.FlowID) {
		t.Error("it forgets nothing")
	}
}

func TestQueue(t *testing.T) {
	flows := manyFlows(2000)
	q := queue{limit: 1000}
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	if !q.put(flows[:600], at(1)) || !q.put(flows[500:900], at(2)) || q.len() != 900 || q.coalesced != 100 || q.oldest() != at(1) {
		t.Fatalf("%d flows, %d coalesced, since %v", q.len(), q.coalesced, q.oldest())
	}
	changed := with(flows[0], func(s *lb.FlowState) { s.Phase = lb.FlowOver })
	q.put([]lb.FlowState{changed}, at(3))
	got := q.take(600, nil)
	if len(got) != 600 || got[0] != changed || got[599] != flows[599] || q.oldest() != at(2) || q.len() != 300 {
		t.Errorf("took %d, %d are left, since %v", len(got), q.len(), q.oldest())
	}
	// It keeps no more than what waits.
	for i := range 10_000 {
		q.put(flows[i%2000:i%2000+1], at(4))
		q.take(1, nil)
	}
	if len(q.order) > 2*q.len()+2 {
		t.Errorf("%d places for %d flows", len(q.order), q.len())
	}
	if q.put(flows, at(5)) || q.len() != 0 || !q.oldest().IsZero() || q.went != q.came {
		t.Errorf("past its bound: %d flows, %d came, %d went", q.len(), q.came, q.went)
	}
	if !q.put(flows[:10], at(6)) || q.len() != 10 {
		t.Error("it takes nothing any more")
	}
}

// A Source that takes long to name a flow is no dead node.
func TestASourceThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStalledPair(t)
		defer closed(p.one, p.two)
		later(time.Minute)
		if s := p.one.peerStatus("lb2"); !s.Out.Connected || s.Out.InSync || s.Out.Ended != 0 || p.two.Synced("lb1") {
			t.Errorf("while it stalls: %+v", s)
		}
		p.goOn()
		later(settled)
		mustHave(t, p.b, "lb1", p.a)
	})
}

// The end of a client's earlier flow does not take the place of its next one, whichever
// of them is read first.
func TestQueueKeepsTheNextFlow(t *testing.T) {
	first, next := natFlow, natFlow
	next.Source = netip.AddrPortFrom(natFlow.Source.Addr(), natFlow.Source.Port()+1)
	over := lb.FlowState{FlowID: first.FlowID, Phase: lb.FlowOver, Source: first.Source}
	for _, tc := range []struct {
		name   string
		states []lb.FlowState
		want   lb.FlowState
	}{
		{"the end first", []lb.FlowState{over, next}, next},
		{"the next one first", []lb.FlowState{next, over}, next},
		{"its own end", []lb.FlowState{first, over}, over},
		{"an end without a source", []lb.FlowState{next, {FlowID: first.FlowID}}, lb.FlowState{FlowID: first.FlowID}},
	} {
		q := queue{limit: 10}
		q.put(tc.states, time.Now())
		if got := q.take(10, nil); len(got) != 1 || got[0] != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
