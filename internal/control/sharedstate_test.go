package control

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/loader"
)

var (
	vipA = netip.MustParseAddr("192.0.2.100")
	vipB = netip.MustParseAddr("192.0.2.200")
)

// flowTo is a flow of client number n to a VIP.
func flowTo(vip netip.Addr, n int) lb.FlowState {
	return lb.FlowState{
		FlowID: lb.FlowID{
			Kind: lb.FlowTranslated, Protocol: lb.TCP,
			Client: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), uint16(1000+n)), VIP: netip.AddrPortFrom(vip, 80),
		},
		Phase: lb.FlowOpen, Backend: netip.MustParseAddrPort("192.0.2.11:80"), Source: netip.AddrPortFrom(vip, uint16(2000+n)),
	}
}

// A fakeFeed is the flows of a data plane.
type fakeFeed struct {
	changes []lb.FlowState
	shakes  []lb.FlowState
	lost    bool
	flows   map[lb.FlowID]lb.FlowState
	broken  error
}

func (f *fakeFeed) Changes(into []lb.FlowState) ([]lb.FlowState, bool, error) {
	into = append(into, f.changes...)
	lost := f.lost
	f.changes, f.lost = nil, false
	return into, lost, f.broken
}

func (f *fakeFeed) Unread() int { return len(f.changes) }

// Handshakes tells of each one once.
func (f *fakeFeed) Handshakes() func([]lb.FlowState) ([]lb.FlowState, error) {
	told := 0
	return func(into []lb.FlowState) ([]lb.FlowState, error) {
		into = append(into, f.shakes[told:]...)
		told = len(f.shakes)
		return into, f.broken
	}
}

func (f *fakeFeed) Snapshot() iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		for _, s := range slices.Collect(maps.Values(f.flows)) {
			if !yield(s, nil) {
				return
			}
		}
		if f.broken != nil {
			yield(lb.FlowState{}, f.broken)
		}
	}
}

func (f *fakeFeed) ApplyFlows(states []lb.FlowState) (loader.ApplyResult, error) {
	var r loader.ApplyResult
	for _, s := range states {
		switch {
		case s.Source.Port() == 0 && s.Phase != lb.FlowOver:
			r.Without = append(r.Without, s.FlowID)
			r.Refused = map[loader.Refusal]loader.Refused{loader.RefusedMalformed: {Flows: r.Refused[loader.RefusedMalformed].Flows + 1, Example: "it"}}
		case s.Phase == lb.FlowOver:
			delete(f.flows, s.FlowID)
			r.Ended++
		default:
			f.flows[s.FlowID] = s
			r.Applied++
		}
	}
	return r, f.broken
}

// A sharedRig is a SharedState over fakes.
type sharedRig struct {
	*testing.T
	*SharedState
	feed   *fakeFeed
	active map[netip.Addr]bool
}

func newSharedRig(t *testing.T, flows ...lb.FlowState) *sharedRig {
	r := &sharedRig{T: t, feed: &fakeFeed{flows: map[lb.FlowID]lb.FlowState{}}, active: map[netip.Addr]bool{vipA: false, vipB: false}}
	for _, f := range flows {
		r.feed.flows[f.FlowID] = f
	}
	r.SharedState = NewSharedState(t.Context(), nil, r.feed, func() map[netip.Addr]bool { return maps.Clone(r.active) })
	return r
}

// wantChanges has the feed tell of flows, and compares what peers are told.
func (r *sharedRig) wantChanges(when string, told, want []lb.FlowState, wantLost bool) {
	r.Helper()
	r.feed.changes = told
	before := []lb.FlowState{flowTo(vipB, 99)} // what the caller has already
	got, lost, err := r.Changes(slices.Clone(before))
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(append(before, want...), got, cmpAddresses); diff != "" || lost != wantLost {
		r.Errorf("%s: lost is %v, want %v; changes (-want +got):\n%s", when, lost, wantLost, diff)
	}
}

// flowsOf are the clients' ports of flows, in order.
func flowsOf(flows iter.Seq2[lb.FlowState, error]) (ports []int, err error) {
	for f, e := range flows {
		if e != nil {
			return ports, e
		}
		ports = append(ports, int(f.Client.Port())-1000)
	}
	slices.Sort(ports)
	return ports, nil
}

func (r *sharedRig) wantFlows(what string, flows iter.Seq2[lb.FlowState, error], want ...int) {
	r.Helper()
	got, err := flowsOf(flows)
	if err != nil {
		r.Fatal(err)
	}
	if !slices.Equal(got, want) {
		r.Errorf("%s are %v, want %v", what, got, want)
	}
}

// A node tells of the flows to VIPs that it is Active for, and for a while of those to
// VIPs that it has given away; a VIP that comes or goes has peers get everything again.
func TestChangesAreThoseOfOwnVIPs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSharedRig(t)
		a, b := flowTo(vipA, 1), flowTo(vipB, 2)
		both := []lb.FlowState{a, b}
		r.wantChanges("as backup", both, nil, false)
		r.active[vipA] = true
		r.wantChanges("active for one", both, []lb.FlowState{a}, true)
		r.wantChanges("later", both, []lb.FlowState{a}, false)
		r.active[vipB] = true
		r.wantChanges("active for both", both, both, true)
		r.active[vipA] = false
		r.wantChanges("one is given away", both, both, true)
		time.Sleep(tellsOn - time.Second)
		r.wantChanges("it is forwarded still", both, both, false)
		time.Sleep(2 * time.Second)
		r.wantChanges("it is not any more", both, []lb.FlowState{b}, false)
		r.feed.lost = true
		r.wantChanges("the feed has lost track", nil, nil, true)
	})
}

// While VIPs are about to move peers are told of handshakes, too: those to VIPs that are
// this node's.
func TestHandshakesOfVIPsThatMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSharedRig(t)
		r.active[vipA] = true
		r.wantChanges("active", nil, nil, true)
		shake := func(n int) lb.FlowState {
			s := flowTo(vipA, n)
			s.Phase = lb.FlowOpening
			return s
		}
		a, b, c, d := shake(1), shake(2), shake(3), flowTo(vipB, 4)
		r.feed.shakes = []lb.FlowState{a, d}
		time.Sleep(time.Second)
		r.wantChanges("nothing moves", nil, nil, false)
		r.Moves(time.Second)
		r.Moves(time.Millisecond)
		open := flowTo(vipA, 5)
		r.wantChanges("it is to move", []lb.FlowState{open}, []lb.FlowState{open, a}, false)
		r.feed.shakes = append(r.feed.shakes, b)
		r.wantChanges("a moment later", nil, nil, false)
		time.Sleep(shakesEvery)
		r.wantChanges("another one", nil, []lb.FlowState{b}, false)
		r.active[vipA] = false
		r.wantChanges("it has moved", nil, nil, true)
		r.feed.shakes = append(r.feed.shakes, c)
		time.Sleep(shakesEvery)
		r.wantChanges("one that came here all the same", nil, []lb.FlowState{c}, false)
		time.Sleep(shakesOn)
		r.wantChanges("it is over", nil, nil, false)
		r.active[vipA] = true
		r.wantChanges("it is back", nil, nil, true)
		r.active[vipA] = false
		r.wantChanges("another node has just taken it", nil, []lb.FlowState{a, b, c}, true)
		r.feed.broken = errors.New("broken")
		time.Sleep(shakesEvery)
		if _, _, err := r.Changes(nil); !errors.Is(err, r.feed.broken) {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestSnapshotIsOfOwnVIPs(t *testing.T) {
	r := newSharedRig(t, flowTo(vipA, 1), flowTo(vipB, 2))
	r.wantFlows("a Backup's flows", r.Snapshot())
	r.active[vipA] = true
	r.wantFlows("flows", r.Snapshot(), 1)
	if diff := cmp.Diff([]netip.Addr{vipA}, r.Owned(), cmpAddresses); diff != "" {
		t.Errorf("owned (-want +got):\n%s", diff)
	}
	r.feed.broken = errors.New("broken")
	if _, err := flowsOf(r.Snapshot()); !errors.Is(err, r.feed.broken) {
		t.Errorf("the error is %v, want %v", err, r.feed.broken)
	}
}

// What a peer's snapshot does not mention is over, if the peer answers for it and this
// node does not.
func TestEndOfASnapshot(t *testing.T) {
	for _, tc := range []struct {
		name   string
		owned  []netip.Addr
		active []netip.Addr
		tells  []lb.FlowState
		want   []int
	}{
		{"all are mentioned", []netip.Addr{vipA, vipB}, nil, []lb.FlowState{flowTo(vipA, 1), flowTo(vipA, 2), flowTo(vipB, 3)}, []int{1, 2, 3}},
		{"one is not", []netip.Addr{vipA, vipB}, nil, []lb.FlowState{flowTo(vipA, 1), flowTo(vipB, 3)}, []int{1, 3}},
		{"one is new", []netip.Addr{vipA}, nil, []lb.FlowState{flowTo(vipA, 1), flowTo(vipA, 4)}, []int{1, 3, 4}},
		{"a Backup tells of none", nil, nil, nil, []int{1, 2, 3}},
		{"a VIP that is this node's, too", []netip.Addr{vipA, vipB}, []netip.Addr{vipA}, nil, []int{1, 2}},
		{"one that has ended is not mentioned", []netip.Addr{vipB}, nil, []lb.FlowState{{FlowID: flowTo(vipB, 3).FlowID}}, []int{1, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newSharedRig(t, flowTo(vipA, 1), flowTo(vipA, 2), flowTo(vipB, 3))
			for _, a := range tc.active {
				r.active[a] = true
			}
			if err := r.BeginSnapshot("lb2", tc.owned); err != nil {
				t.Fatal(err)
			}
			if refused, err := r.ApplyFlows("lb2", tc.tells); err != nil || len(refused) != 0 {
				t.Fatalf("%v refused: %v", refused, err)
			}
			if err := r.EndSnapshot("lb2"); err != nil {
				t.Fatal(err)
			}
			r.wantFlows("flows", r.feed.Snapshot(), tc.want...)
		})
	}
}

// A snapshot that is given up, and begun anew, does not count.
func TestSnapshotThatBeginsAnew(t *testing.T) {
	r := newSharedRig(t, flowTo(vipA, 1), flowTo(vipA, 2))
	if err := r.EndSnapshot("lb2"); err == nil {
		t.Error("a snapshot has ended that has not begun")
	}
	for _, tells := range [][]lb.FlowState{{flowTo(vipA, 1)}, {flowTo(vipA, 2)}} {
		if err := r.BeginSnapshot("lb2", []netip.Addr{vipA}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ApplyFlows("lb2", tells); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.EndSnapshot("lb2"); err != nil {
		t.Fatal(err)
	}
	r.wantFlows("flows", r.feed.Snapshot(), 2)
}

// What this node was Active for until a moment ago nobody else ends, and it is told to
// who connects: perhaps the nodes have not seen each other.
func TestVIPThatWasGivenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSharedRig(t, flowTo(vipA, 1), flowTo(vipB, 2))
		r.active[vipA] = true
		r.wantChanges("active", nil, nil, true)
		r.active[vipA] = false
		r.wantChanges("given away", nil, nil, true)
		snapshotOfNothing := func() {
			t.Helper()
			if err := r.BeginSnapshot("lb2", []netip.Addr{vipA, vipB}); err != nil {
				t.Fatal(err)
			}
			r.wantFlows("flows that are told", r.Snapshot(), 1)
			if err := r.EndSnapshot("lb2"); err != nil {
				t.Fatal(err)
			}
		}
		snapshotOfNothing()
		r.wantFlows("flows", r.feed.Snapshot(), 1)
		if got := r.Owned(); len(got) > 0 {
			t.Errorf("it answers for %v still", got)
		}
		time.Sleep(tellsOn)
		r.wantFlows("flows that are told later", r.Snapshot())
		if err := errors.Join(r.BeginSnapshot("lb2", []netip.Addr{vipA}), r.EndSnapshot("lb2")); err != nil {
			t.Fatal(err)
		}
		r.wantFlows("flows later", r.feed.Snapshot())
	})
}

// So is what it gave away while nobody reads what changes, as with a peer that does not
// keep up.
func TestVIPThatWasGivenAwayUnread(t *testing.T) {
	r := newSharedRig(t, flowTo(vipA, 1))
	r.active[vipA] = true
	r.wantChanges("active", nil, nil, true)
	r.active[vipA] = false
	if err := errors.Join(r.BeginSnapshot("lb2", []netip.Addr{vipA}), r.EndSnapshot("lb2")); err != nil {
		t.Fatal(err)
	}
	r.wantFlows("flows", r.feed.Snapshot(), 1)
	r.wantFlows("flows that are told", r.Snapshot(), 1)
	r.wantChanges("read at last", nil, nil, true)
}

// A VIP moves from one peer to another while the first one's snapshot is under way.
func TestVIPThatMovesBetweenPeers(t *testing.T) {
	r := newSharedRig(t, flowTo(vipA, 1))
	steps := []error{
		r.BeginSnapshot("lb2", []netip.Addr{vipA}),
		r.BeginSnapshot("lb3", []netip.Addr{vipA}),
	}
	_, err := r.ApplyFlows("lb3", []lb.FlowState{flowTo(vipA, 1), flowTo(vipA, 2)})
	if err := errors.Join(append(steps, err, r.EndSnapshot("lb2"))...); err != nil {
		t.Fatal(err)
	}
	r.wantFlows("flows", r.feed.Snapshot(), 1, 2)
}

// A peer that mentions more than can be kept in mind ends nothing.
func TestTooManyMentions(t *testing.T) {
	m := newMentions(maphash.MakeSeed())
	for i := range maxPortBlocks + 2 {
		f := flowTo(vipA, 1)
		f.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 2000)
		m.add(&f)
	}
	if other := flowTo(vipB, 9); !m.full || !m.has(&other) {
		t.Error("a flow that was not noted counts as over")
	}
}

// A table that comes while the daemon stops does not hold it up.
func TestTableOfALoopThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		loop := NewLoop(nil, nil, nil, nil, nil, nil, slog.New(slog.DiscardHandler))
		loop.Share(Exchange{})
		s := NewSharedState(ctx, loop, &fakeFeed{}, func() map[netip.Addr]bool { return nil })
		began, answer := time.Now(), make(chan error, 1)
		go func() { answer <- s.ApplyTables("lb2", []lb.TableState{{Service: "web"}}) }()
		synctest.Wait()
		cancel()
		if err := <-answer; err == nil || time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// Thousands end, and what is held of a peer is what it answers for.
func TestManyFlowsEnd(t *testing.T) {
	var flows []lb.FlowState
	for i := range 3*endAtATime + 1 {
		flows = append(flows, flowTo(vipA, i))
	}
	r := newSharedRig(t, append(flows, flowTo(vipB, -1))...)
	if err := r.BeginSnapshot("lb2", []netip.Addr{vipA}); err != nil {
		t.Fatal(err)
	}
	if got, err := flowsOf(r.Held("lb2")); err != nil || len(got) != len(flows) {
		t.Errorf("%d flows are held of lb2 (%v), want %d", len(got), err, len(flows))
	}
	r.wantFlows("flows of another peer", r.Held("lb3"))
	if err := r.EndSnapshot("lb2"); err != nil {
		t.Fatal(err)
	}
	r.wantFlows("flows", r.feed.Snapshot(), -1)
	if got := r.Taken(); got.Ended != len(flows) {
		t.Errorf("%d flows have ended, want %d", got.Ended, len(flows))
	}
}

func TestRefusedFlowsAreCounted(t *testing.T) {
	r := newSharedRig(t)
	bad := flowTo(vipA, 1)
	bad.Source = netip.AddrPort{}
	refused, err := r.ApplyFlows("lb2", []lb.FlowState{flowTo(vipA, 2), bad})
	if diff := cmp.Diff([]lb.FlowID{bad.FlowID}, refused, cmpAddresses); diff != "" || err != nil {
		t.Errorf("error %v, refused (-want +got):\n%s", err, diff)
	}
	want := loader.ApplyResult{Applied: 1, Refused: map[loader.Refusal]loader.Refused{loader.RefusedMalformed: {Flows: 1, Example: "it"}}}
	if diff := cmp.Diff(want, r.Taken()); diff != "" {
		t.Errorf("taken (-want +got):\n%s", diff)
	}
}

// What peers refuse of tables the loop hears as such; that one does not answer it hears
// as it is.
func TestRefusalsOfTables(t *testing.T) {
	older := &statesync.TableError{Peer: "lb2", Service: "web", Why: "it is older", Held: lb.Epoch{Term: 7, Number: 3}, Later: true}
	late := errors.New("lb3 has not acknowledged the table of web")
	for _, tc := range []struct {
		name string
		err  error
		want error
	}{
		{"none", nil, nil},
		{"one", older, &RefusedError{Peer: "lb2", Tables: []RefusedTable{{Service: "web", Why: "it is older", Held: lb.Epoch{Term: 7, Number: 3}, Later: true}}}},
		{"joined", errors.Join(older), &RefusedError{Peer: "lb2", Tables: []RefusedTable{{Service: "web", Why: "it is older", Held: lb.Epoch{Term: 7, Number: 3}, Later: true}}}},
		{"and another error", errors.Join(older, late), errors.Join(older, late)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := refusals(tc.err)
			if fmt.Sprintf("%T %v", got, got) != fmt.Sprintf("%T %v", tc.want, tc.want) {
				t.Errorf("got %T %v, want %T %v", got, got, tc.want, tc.want)
			}
		})
	}
}

// An operator's change comes out of the wire as it went in.
func TestOverridesOnTheWire(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, c := range []lb.OperatorChange{
		{Scope: "web", Address: "192.0.2.11", State: string(Drain), Weight: -1, Time: at, Node: "lb1"},
		{Scope: "web", Address: "[2001:db8::11]:80", State: string(Disable), Weight: 7, Time: at, Node: "lb2"},
		{Scope: "web", Address: "192.0.2.11", Weight: 0, Time: at, Node: "lb1"},
		{Scope: "web", Address: "192.0.2.11", Weight: -1, Time: at, Node: "lb1"}, // it was taken back
	} {
		o := overrideOf(c)
		if c.None() != (len(o.Value) == 0) {
			t.Errorf("%+v has the value %q", c, o.Value)
		}
		got, err := changeOf(o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Errorf("change (-want +got):\n%s", diff)
		}
	}
	for _, o := range []statesync.Override{{Key: "web"}, {Key: "web\x00192.0.2.11", Value: []byte("{")}} {
		if got, err := changeOf(o); err == nil {
			t.Errorf("%+v is the change %+v", o, got)
		}
	}
}
