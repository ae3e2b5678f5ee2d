package loader_test

import (
	"context"
	"hash/maphash"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

// syncSoon bounds waits for what takes some seconds on a machine at rest.
const syncSoon = 5 * time.Minute

// The shares of two nodes.
var lowerShare, upperShare = lb.PortRange{First: 1024, Last: 33023}, lb.PortRange{First: 33024, Last: 65535}

// A syncPair is an Active node, a, and its peer, b. Connections are opened through
// a, in the order of their numbers.
type syncPair struct {
	*testing.T
	a, b   *syncNode
	opened int // connections so far
}

// A syncNode is a data plane and what keeps its flows the same as those of its peer, as the
// daemon has it.
type syncNode struct {
	*loader.SyncBench
	feed    *loader.FlowFeed
	stream  *statesync.Node
	source  *watchedSource
	sink    *watchedSink
	started chan time.Time // when the peer was there
	synced  chan time.Time // when all of the peer's state was here
}

// newSyncPair makes one with a million connections, which the peer does not know of.
func newSyncPair(t *testing.T) *syncPair {
	t.Helper()
	p := &syncPair{T: t, opened: loader.SyncFlows}
	p.a = &syncNode{SyncBench: loader.NewSyncBench(t, lowerShare, true)}
	p.b = &syncNode{SyncBench: loader.NewSyncBench(t, upperShare, true)}
	p.a.Establish()
	shared := []key.Key{key.New()}
	a, b := p.listen(), p.listen()
	p.a.prepare(p.T, "a", a, statesync.Peer{Name: "b", Address: addressOf(b)}, shared, true)
	p.b.prepare(p.T, "b", b, statesync.Peer{Name: "a", Address: addressOf(a)}, shared, false)
	for changed := []lb.FlowState{{}}; len(changed) > 0; { // there is nobody to be told
		var err error
		if changed, _, err = p.a.feed.Changes(changed[:0]); err != nil {
			p.Fatal(err)
		}
	}
	return p
}

// run runs both nodes until the test ends.
func (p *syncPair) run() {
	ctx, cancel := context.WithCancel(p.Context())
	var all sync.WaitGroup
	p.Cleanup(func() {
		cancel()
		all.Wait()
	})
	all.Go(func() { p.a.stream.Run(ctx) })
	all.Go(func() { p.b.stream.Run(ctx) })
}

func (p *syncPair) listen() net.Listener {
	p.Helper()
	l, err := (&net.ListenConfig{}).Listen(p.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		p.Fatal(err)
	}
	return l // the node that gets it closes it
}

func addressOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

func (n *syncNode) prepare(t *testing.T, name string, l net.Listener, peer statesync.Peer, keys []key.Key, active bool) {
	t.Helper()
	var err error
	if n.feed, err = n.OpenFlowFeed(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.feed.Close(); err != nil {
			t.Error(err)
		}
	})
	vips := map[netip.Addr]bool{loader.SyncVIP: active}
	// Tables are not what is measured: this loop shares none.
	state := control.NewSharedState(t.Context(), &control.Loop{}, n.feed, func() map[netip.Addr]bool { return vips })
	n.source, n.sink = &watchedSource{Source: state}, &watchedSink{Sink: state}
	n.started, n.synced = make(chan time.Time, 1), make(chan time.Time, 1)
	n.stream, err = statesync.New(statesync.Config{
		Name: name, Peers: []statesync.Peer{peer}, Keys: keys, Log: slog.New(slog.DiscardHandler),
		Open: func(context.Context) (net.Listener, error) { return l, nil },
		Told: statesync.Told{
			Connected: func(_ string, is bool, why error) { first(n.started, is) },
			Synced:    func(_ string, is bool) { first(n.synced, is) },
		},
	}, n.source, n.sink)
	if err != nil {
		t.Fatal(err)
	}
}

// first sends the time, but not if there is an earlier one that nobody has taken.
func first(c chan<- time.Time, is bool) {
	if !is {
		return
	}
	select {
	case c <- time.Now():
	default:
	}
}

// A watchedSource counts calls of Changes.
type watchedSource struct {
	statesync.Source
	empty atomic.Int64 // that had nothing to tell
}

func (s *watchedSource) Changes(into []lb.FlowState) (all []lb.FlowState, lost bool, err error) {
	before := len(into)
	all, lost, err = s.Source.Changes(into)
	if len(all) == before && !lost && err == nil {
		s.empty.Add(1)
	}
	return all, lost, err
}

// A watchedSink counts the records that come, and notes which one each connection was
// from a number on.
type watchedSink struct {
	statesync.Sink
	records atomic.Int64
	notes   atomic.Pointer[notes]
}

type notes struct {
	first  int
	record []atomic.Int64 // by connection; 0: none yet
}

func (s *watchedSink) ApplyFlows(peer string, states []lb.FlowState) ([]lb.FlowID, error) {
	refused, err := s.Sink.ApplyFlows(peer, states)
	before := s.records.Add(int64(len(states))) - int64(len(states))
	if n := s.notes.Load(); n != nil {
		for i := range states {
			if at := loader.SyncNumber(states[i].Client) - n.first; at >= 0 && at < len(n.record) {
				n.record[at].CompareAndSwap(0, before+int64(i)+1)
			}
		}
	}
	return refused, err
}

// out is how a's state gets to b.
func (p *syncPair) out() statesync.OutStatus { return p.a.stream.Status().Peers[0].Out }

// await waits for a moment that a node tells of.
func (p *syncPair) await(what string, c <-chan time.Time) time.Time {
	p.Helper()
	select {
	case at := <-c:
		return at
	case <-time.After(syncSoon):
		p.Fatalf("waited %v for %s: %+v", syncSoon, what, p.a.stream.Status())
		return time.Time{}
	}
}

// settle waits until all that there is has been acknowledged.
func (p *syncPair) settle() statesync.OutStatus {
	p.Helper()
	// The second call from now on has begun after now.
	empty := p.a.source.empty.Load() + 2
	var out statesync.OutStatus
	testenv.Eventually(p.T, syncSoon, "everything to be acknowledged", func() (bool, error) {
		told := p.a.source.empty.Load() >= empty
		out = p.out()
		return told && out.InSync && out.Waiting+out.InFlight == 0, nil
	})
	return out
}

// wantSame fails unless both nodes have the same flows, a million and those that were
// opened since among them.
func (p *syncPair) wantSame() {
	p.Helper()
	p.settle()
	seed := maphash.MakeSeed()
	sum := func(s lb.FlowState) uint64 {
		s.Idle = 0
		return maphash.Comparable(seed, s)
	}
	of := map[lb.FlowID]uint64{}
	for s := range p.all(p.a) {
		of[s.FlowID] = sum(s)
	}
	if len(of) != p.opened {
		p.Errorf("the Active node has %d flows, want %d", len(of), p.opened)
	}
	other, more := map[lb.FlowID]bool{}, 0
	for s := range p.all(p.b) {
		is, ok := of[s.FlowID]
		switch {
		case !ok:
			if more++; more <= 3 {
				p.Errorf("the peer alone has %+v", s)
			}
		case is != sum(s):
			other[s.FlowID] = true
			if len(other) <= 3 {
				p.Errorf("the peer has %+v", s)
			}
		}
		delete(of, s.FlowID)
	}
	if len(of)+len(other)+more == 0 {
		return
	}
	p.Errorf("%d flows are not at the peer, %d are otherwise there, and %d there alone", len(of), len(other), more)
	shown := 0
	for s := range p.all(p.a) {
		if _, missing := of[s.FlowID]; (missing || other[s.FlowID]) && shown < 3 {
			shown++
			p.Errorf("the Active node has %+v", s)
		}
	}
	p.Fatalf("%+v; taken %+v", p.a.stream.Status(), p.b.stream.Status())
}

func (p *syncPair) all(n *syncNode) iter.Seq[lb.FlowState] {
	return func(yield func(lb.FlowState) bool) {
		for s, err := range n.feed.Snapshot() {
			if err != nil {
				p.Fatal(err)
			}
			if !yield(s) {
				return
			}
		}
	}
}
