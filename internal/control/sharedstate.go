package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/loader"
)

// A FlowFeed is the flows of the data plane, as nodes tell each other of them:
// *loader.FlowFeed.
type FlowFeed interface {
	Changes(into []lb.FlowState) (all []lb.FlowState, lost bool, err error)
	Unread() int
	Handshakes() func(into []lb.FlowState) ([]lb.FlowState, error)
	Snapshot() iter.Seq2[lb.FlowState, error]
	ApplyFlows([]lb.FlowState) (loader.ApplyResult, error)
}

const (
	// tellsOn is for how long a node that has given a VIP away goes on telling of its
	// flows, and lets nobody else end them: it forwards for a part of that, and if the
	// nodes could not see each other, this is how the other one hears of them.
	tellsOn = 30 * time.Second
	// endAtATime is how many flows of a snapshot are ended at once.
	endAtATime = 1024
	// followsIn bounds how long a peer's table waits for the loop.
	followsIn = 15 * time.Second // at its start it waits for first verdicts
)

// A SharedState is what this node has in common with its peers: statesync's Source and
// Sink over the data plane and the loop. A node tells of the flows to the VIPs that it
// is Active for, and takes in those to the others.
type SharedState struct {
	ctx   context.Context
	loop  *Loop
	flows FlowFeed
	vips  func() map[netip.Addr]bool
	seed  maphash.Seed

	// Of Changes, which has one caller.
	active     map[netip.Addr]bool
	handshakes func([]lb.FlowState) ([]lb.FlowState, error) // nil: no VIP is about to move
	shaken     time.Time                                    // when they were told last

	mu    sync.Mutex
	moves time.Time                // until when VIPs may be on their way to another node
	last  map[netip.Addr]bool      // what vips returned last
	until map[netip.Addr]time.Time // VIPs that were given away are told of
	peers map[string]*peerState
	taken loader.ApplyResult
	name  string             // of this node; "": it says nothing of itself
	word  statesync.Override // what it says
}

// A peerState is what a peer has told.
type peerState struct {
	owned     map[netip.Addr]bool
	mentioned *mentions // nil: no snapshot is under way
	begun     time.Time // when that was
}

var (
	_ statesync.Source = (*SharedState)(nil)
	_ statesync.Sink   = (*SharedState)(nil)
)

// NewSharedState returns that of a loop which shares its tables. Vips returns the
// addresses that VRRP moves, and whether this node is Active for them; it is called often.
// With ctx the loop ends, and nothing waits for it any more.
func NewSharedState(ctx context.Context, loop *Loop, flows FlowFeed, vips func() map[netip.Addr]bool) *SharedState {
	return &SharedState{
		ctx: ctx, loop: loop, flows: flows, vips: vips, seed: maphash.MakeSeed(),
		active: map[netip.Addr]bool{}, until: map[netip.Addr]time.Time{}, peers: map[string]*peerState{},
	}
}

// Taken tells what has become of the flows that peers have told of.
func (s *SharedState) Taken() loader.ApplyResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.taken
	all.Refused = maps.Clone(all.Refused)
	return all
}

// Owned implements statesync.Source.
func (s *SharedState) Owned() []netip.Addr {
	var all []netip.Addr
	for a, active := range s.vips() {
		if active {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// Changes implements statesync.Source. A VIP that is this node's as of now has flows
// that no change tells of: those that the node before has told this one.
func (s *SharedState) Changes(into []lb.FlowState) (all []lb.FlowState, lost bool, err error) {
	before, now := s.active, s.vips()
	s.active = now
	given := false
	for a, active := range now {
		lost = lost || active && !before[a]
	}
	for a, active := range before {
		given = given || active && !now[a]
	}
	if given {
		lost = true // it is not owned any more
		s.Moves(shakesOn)
	}
	told := s.own()
	all, missed, err := s.flows.Changes(into)
	if err == nil {
		all, err = s.tellHandshakes(all, time.Now())
	}
	kept := all[:len(into)]
	for _, f := range all[len(into):] {
		if told[f.VIP.Addr()] {
			kept = append(kept, f)
		}
	}
	return kept, lost || missed, err
}

// Unread implements statesync.Source.
func (s *SharedState) Unread() int { return s.flows.Unread() }

// own are the VIPs that this node is Active for, or was until a moment ago. It notes by
// itself which were given away: Changes may not be called for a while.
func (s *SharedState) own() map[netip.Addr]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, active, now := map[netip.Addr]bool{}, s.vips(), time.Now()
	for a, was := range s.last {
		if was && !active[a] {
			s.until[a] = now.Add(tellsOn)
		}
	}
	s.last = active
	for a, until := range s.until {
		own[a] = now.Before(until)
	}
	for a, is := range active {
		own[a] = own[a] || is
	}
	return own
}

// Snapshot implements statesync.Source. Flows to VIPs that were given away a moment ago
// are among them, though this node does not answer for them any more: nothing ends at a
// peer that is not mentioned of these.
func (s *SharedState) Snapshot() iter.Seq2[lb.FlowState, error] {
	return s.to(s.own())
}

// to goes through the flows to some VIPs.
func (s *SharedState) to(vips map[netip.Addr]bool) iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		if !slices.Contains(slices.Collect(maps.Values(vips)), true) {
			return
		}
		for f, err := range s.flows.Snapshot() {
			if (err != nil || vips[f.VIP.Addr()]) && !yield(f, err) {
				return
			}
		}
	}
}

// Tables implements statesync.Source.
func (s *SharedState) Tables() []lb.TableState { return s.loop.Published() }

// ApplyFlows implements statesync.Sink. A flow to a VIP that both nodes are Active for
// is taken where it contradicts none that is here: that is how they heal who have been
// Active at the same time.
func (s *SharedState) ApplyFlows(peer string, states []lb.FlowState) (refused []lb.FlowID, err error) {
	result, err := s.flows.ApplyFlows(states)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken.Add(result)
	for _, p := range s.peers { // a VIP may move while a snapshot is under way
		for i := range states {
			if p.mentioned != nil && states[i].Phase != lb.FlowOver {
				p.mentioned.add(&states[i])
			}
		}
	}
	return result.Without, err
}

// BeginSnapshot implements statesync.Sink.
func (s *SharedState) BeginSnapshot(peer string, owned []netip.Addr) error {
	p := &peerState{owned: map[netip.Addr]bool{}, mentioned: newMentions(s.seed), begun: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range owned {
		p.owned[a] = true
		for _, other := range s.peers {
			delete(other.owned, a) // it was that one's
		}
	}
	s.peers[peer] = p
	return nil
}

// EndSnapshot implements statesync.Sink.
func (s *SharedState) EndSnapshot(peer string) error {
	s.mu.Lock()
	p := s.peers[peer]
	var mentioned *mentions
	var begun time.Time
	if p != nil {
		mentioned, p.mentioned, begun = p.mentioned, nil, p.begun
	}
	s.mu.Unlock()
	if mentioned == nil {
		return errors.New("a snapshot ends that has not begun")
	}
	var over []lb.FlowState
	for f, err := range s.Held(peer) {
		if err != nil {
			return err
		}
		if mentioned.has(&f) {
			continue
		}
		// A packet that has come here since then is more than the peer knew.
		over = append(over, lb.FlowState{FlowID: f.FlowID, Phase: lb.FlowOver, Idle: time.Since(begun)})
		if len(over) == endAtATime {
			if _, err := s.ApplyFlows(peer, over); err != nil {
				return err
			}
			over = over[:0]
		}
	}
	_, err := s.ApplyFlows(peer, over)
	return err
}

// Held implements statesync.Sink. What this node is Active for, too, is its own, and so
// is what it was Active for until a moment ago.
func (s *SharedState) Held(peer string) iter.Seq2[lb.FlowState, error] {
	s.mu.Lock()
	vips := map[netip.Addr]bool{}
	if p := s.peers[peer]; p != nil {
		maps.Copy(vips, p.owned)
	}
	s.mu.Unlock()
	for a, own := range s.own() {
		if own {
			delete(vips, a)
		}
	}
	return s.to(vips)
}

// ApplyTables implements statesync.Sink.
func (s *SharedState) ApplyTables(peer string, tables []lb.TableState) error {
	ctx, cancel := context.WithTimeout(s.ctx, followsIn)
	defer cancel()
	refused, err := s.loop.Follow(ctx, peer, tables)
	if err != nil {
		return &statesync.TableError{Service: services(tables), Why: err.Error(), Later: true}
	}
	for _, r := range refused {
		return &statesync.TableError{Service: r.Service, Why: r.Why, Held: r.Held, Later: r.Later}
	}
	return nil
}

func services(tables []lb.TableState) string {
	var all []string
	for _, t := range tables {
		all = append(all, t.Service)
	}
	return strings.Join(all, ", ")
}

// ApplyOverrides implements statesync.Sink.
func (s *SharedState) ApplyOverrides(peer string, changes []statesync.Override) error {
	var all []lb.OperatorChange
	var errs []error
	for _, o := range changes {
		if s.hearWord(o) {
			continue
		}
		c, err := changeOf(o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, c)
	}
	return errors.Join(append(errs, s.loop.TakeInChanges(peer, all))...)
}

// Overrides are the operators' changes that this node knows, as peers are told of them,
// and what it says of itself.
func (s *SharedState) Overrides() []statesync.Override {
	all := s.words()
	for _, c := range s.loop.Changes() {
		all = append(all, overrideOf(c))
	}
	return all
}

// A toldChange is what an operator has made of a server, on the wire. Fields of later
// versions are skipped.
type toldChange struct {
	State  string `json:"state,omitempty"`
	Weight *int   `json:"weight,omitempty"`
}

// targetEnd is between the scope and the address of a change, in its key.
const targetEnd = "\x00"

func overrideOf(c lb.OperatorChange) statesync.Override {
	o := statesync.Override{
		Key: c.Scope + targetEnd + c.Address, Stamp: statesync.Stamp{Time: max(c.Time.UnixNano(), 0), Node: cmp.Or(c.Node, "-")},
	}
	if c.None() {
		return o
	}
	told := toldChange{State: c.State}
	if c.Weight >= 0 {
		told.Weight = &c.Weight
	}
	o.Value, _ = json.Marshal(told) // of a string and a number
	return o
}

func changeOf(o statesync.Override) (lb.OperatorChange, error) {
	scope, address, ok := strings.Cut(o.Key, targetEnd)
	if !ok {
		return lb.OperatorChange{}, fmt.Errorf("an operator's change of %q, which is no server", o.Key)
	}
	c := lb.OperatorChange{Scope: scope, Address: address, Weight: -1, Time: time.Unix(0, o.Stamp.Time).UTC(), Node: o.Stamp.Node}
	if len(o.Value) == 0 {
		return c, nil
	}
	var told toldChange
	if err := json.Unmarshal(o.Value, &told); err != nil {
		return lb.OperatorChange{}, fmt.Errorf("an operator's change of %s of %s: %w", address, scope, err)
	}
	c.State = told.State
	if told.Weight != nil {
		c.Weight = *told.Weight
	}
	return c, nil
}

// A Stream brings this node's state to its peers: a Publisher over *statesync.Node.
type Stream struct{ *statesync.Node }

// Connected implements Publisher.
func (s Stream) Connected() bool {
	return slices.ContainsFunc(s.Status().Peers, func(p statesync.PeerStatus) bool { return p.Out.Connected })
}

// Publish implements Publisher.
func (s Stream) Publish(ctx context.Context, tables []lb.TableState) error {
	err := s.PublishTables(ctx, tables)
	return refusals(err)
}

// refusals returns an error as a *RefusedError where it tells of refusals alone.
func refusals(err error) error {
	if err == nil {
		return nil
	}
	all := []error{err}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		all = several.Unwrap()
	}
	var refused RefusedError
	for _, e := range all {
		var t *statesync.TableError
		if !errors.As(e, &t) {
			return err
		}
		refused.Peer = t.Peer
		refused.Tables = append(refused.Tables, RefusedTable{Service: t.Service, Why: t.Why, Held: t.Held, Later: t.Later})
	}
	return &refused
}
