// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

// manyFlows makes flows, each one of its own.
func manyFlows(n int) []lb.FlowState {
	all := make([]lb.FlowState, n)
	for i := range all {
		s := natFlow
		s.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff))
		s.Backend = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i%8)}), 80)
		s.Source = netip.AddrPortFrom(s.Source.Addr(), uint16(1024+i/8%60000))
		s.Sequence, s.Idle = uint32(i)*2654435761, 0
		all[i] = s
	}
	return all
}

type flowSet map[lb.FlowID]lb.FlowState

// A plane is a data plane of a test: Source and Sink.
type plane struct {
	mu        sync.Mutex
	flows     flowSet
	changed   map[lb.FlowID]bool
	lost      bool
	sick      error // of Changes and Snapshot
	tables    map[string]lb.TableState
	held      map[string]flowSet
	mentioned map[string]map[lb.FlowID]bool // nil: no snapshot is under way
	theirs    map[string]lb.TableState
	overrides map[string]Override
	applied   int // states
	most      int // that Changes returns at a time; 0: all

	refuse func(*lb.FlowState) bool // nil: nothing
	broken error                    // of ApplyFlows
	noSink error                    // of ApplyTables
	hold   chan struct{}            // not nil: ApplyFlows waits until it is closed
	stall  chan struct{}            // likewise Snapshot, behind its first states
}

func newPlane(flows ...lb.FlowState) *plane {
	p := &plane{
		flows: flowSet{}, changed: map[lb.FlowID]bool{}, tables: map[string]lb.TableState{}, held: map[string]flowSet{},
		mentioned: map[string]map[lb.FlowID]bool{}, theirs: map[string]lb.TableState{}, overrides: map[string]Override{},
	}
	for _, s := range flows {
		p.flows[s.FlowID] = s
	}
	return p
}

// set changes flows.
func (p *plane) set(states ...lb.FlowState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range states {
		if s.Phase == lb.FlowOver {
			delete(p.flows, s.FlowID)
		} else {
			p.flows[s.FlowID] = s
		}
		p.changed[s.FlowID] = true
	}
}

// Snapshot reads ahead, as one does that asks a kernel.
func (p *plane) Snapshot() iter.Seq2[lb.FlowState, error] {
	const ahead = 4096
	return func(yield func(lb.FlowState, error) bool) {
		p.mu.Lock()
		all := slices.Collect(maps.Keys(p.flows))
		p.mu.Unlock()
		var states []lb.FlowState
		for ids := range slices.Chunk(all, ahead) {
			p.mu.Lock()
			states = states[:0]
			for _, id := range ids {
				if s, ok := p.flows[id]; ok {
					states = append(states, s)
				}
			}
			sick, stall := p.sick, p.stall
			p.mu.Unlock()
			if stall != nil {
				<-stall
			}
			if sick != nil {
				yield(lb.FlowState{}, sick)
				return
			}
			for _, s := range states {
				if !yield(s, nil) {
					return
				}
			}
		}
	}
}

func (p *plane) Changes(into []lb.FlowState) ([]lb.FlowState, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for id := range p.changed {
		if n++; p.most > 0 && n > p.most {
			break
		}
		delete(p.changed, id)
		s, ok := p.flows[id]
		if !ok {
			s = lb.FlowState{FlowID: id, Phase: lb.FlowOver}
		}
		into = append(into, s)
	}
	lost := p.lost
	p.lost = false
	return into, lost, p.sick
}

func (p *plane) Unread() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.changed)
}

func (p *plane) Owned() []netip.Addr { return []netip.Addr{natFlow.VIP.Addr()} }

func (p *plane) Tables() []lb.TableState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.tables))
}

func (p *plane) ApplyFlows(peer string, states []lb.FlowState) (refused []lb.FlowID, err error) {
	p.mu.Lock()
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return nil, p.broken
	}
	if p.held[peer] == nil {
		p.held[peer] = flowSet{}
	}
	for _, s := range states {
		p.applied++
		if m := p.mentioned[peer]; m != nil {
			m[s.FlowID] = true
		}
		switch {
		case p.refuse != nil && p.refuse(&s):
			refused = append(refused, s.FlowID)
		case s.Phase == lb.FlowOver:
			delete(p.held[peer], s.FlowID)
		default:
			p.held[peer][s.FlowID] = s
		}
	}
	return refused, nil
}

func (p *plane) BeginSnapshot(peer string, owned []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mentioned[peer] = map[lb.FlowID]bool{}
	return nil
}

func (p *plane) EndSnapshot(peer string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.mentioned[peer]
	if m == nil {
		return errors.New("a snapshot ends that has not begun")
	}
	maps.DeleteFunc(p.held[peer], func(id lb.FlowID, _ lb.FlowState) bool { return !m[id] })
	p.mentioned[peer] = nil
	return nil
}

func (p *plane) ApplyTables(peer string, tables []lb.TableState) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.noSink != nil {
		return p.noSink
	}
	for _, t := range tables {
		p.theirs[peer+" "+t.Service] = t
	}
	return nil
}

func (p *plane) ApplyOverrides(_ string, changes []Override) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range changes {
		p.overrides[o.Key] = o
	}
	return nil
}

func (p *plane) Held(peer string) iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		p.mu.Lock()
		all := slices.Collect(maps.Values(p.held[peer]))
		p.mu.Unlock()
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// has says what p has from a peer otherwise than that has it itself.
func (p *plane) has(peer string, of *plane) error {
	of.mu.Lock()
	want := maps.Clone(of.flows)
	of.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.held[peer]
	missing, wrong := 0, 0
	for id, s := range want {
		k, ok := got[id]
		if !ok {
			missing++
		} else if hashState(0, &k) != hashState(0, &s) {
			wrong++
		}
	}
	if missing+wrong > 0 || len(got) != len(want) {
		return fmt.Errorf("%d flows of %d, %d missing, %d wrong", len(got), len(want), missing, wrong)
	}
	return nil
}

func (p *plane) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// lines is a log that a test looks at.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// A member is a Node that runs.
type member struct {
	*Node
	plane *plane
	log   *lines
	stop  func()
}

var twoServices = []ServiceDigest{{"web", 1}, {"dns", 2}}

// start runs a Node whose network and tuning prepare has changed.
func start(t testing.TB, cfg Config, p *plane, prepare func(*Node)) *member {
	t.Helper()
	m := startOn(t, cfg, p, p, prepare)
	m.plane = p
	return m
}

// startOn is start on any data plane.
func startOn(t testing.TB, cfg Config, source Source, sink Sink, prepare func(*Node)) *member {
	t.Helper()
	m := &member{log: &lines{}}
	cfg.Log = slog.New(slog.NewTextHandler(m.log, nil))
	if cfg.Services == nil {
		cfg.Services = twoServices
	}
	n, err := New(cfg, source, sink)
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(n)
	}
	m.Node = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	m.stop = func() { cancel(); <-done }
	t.Cleanup(m.stop)
	return m
}

var (
	atOne   = netip.MustParseAddrPort("192.0.2.1:3780")
	atTwo   = netip.MustParseAddrPort("192.0.2.2:3780")
	atThree = netip.MustParseAddrPort("192.0.2.3:3780")
	aKey    = key.Key{1, 2, 3}
	places3 = map[string]netip.AddrPort{"lb1": atOne, "lb2": atTwo, "lb3": atThree}
)

// peerStatus is what a member says of a peer.
func (m *member) peerStatus(name string) PeerStatus {
	for _, p := range m.Status().Peers {
		if p.Name == name {
			return p
		}
	}
	return PeerStatus{}
}

// is is what a condition returns: whether it is met, and what is the case if not.
func is(met bool, format string, args ...any) (bool, error) {
	if met {
		return true, nil
	}
	return false, fmt.Errorf(format, args...)
}

// soon is long even on a machine that has much else to do.
const soon = time.Minute
