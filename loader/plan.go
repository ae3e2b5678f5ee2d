package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A step is one ordered write to the maps.
type step interface {
	apply(*tables) error
	String() string
}

// limits are what the maps were made for.
type limits struct {
	slots   uint32                   // of all services together
	share   lb.PortRange             // of nat's source ports
	now     time.Duration            // since boot
	drained map[uint32]bool          // backends that have left and that nothing needs any more
	adopted map[string]lb.TableState // another node's tables that take the place of what is there, by service
}

// tableFunc returns the owner of each slot as an index into backends, or -1.
type tableFunc func(size int, backends []lb.Backend) ([]int32, error)

// plan computes the writes that turn have into want, and the state after them.
// It touches nothing. What is added comes before what refers to it, and what is
// removed goes after: at no moment does a packet find half a service.
func plan(have *State, want lb.Snapshot, lim limits, table tableFunc) ([]step, *State, error) {
	p := &planner{
		have: have, next: have.clone(), want: want, lim: lim, table: table,
		known: map[pairID]uint32{}, keys: map[uint32]bool{}, breaks: map[uint32]string{}, standing: make(standing, lbLimitsMAX_BACKENDS),
		serviceNumbers: numbering{limit: uint32(lbLimitsMAX_SERVICES)},
		backendNumbers: numbering{limit: uint32(lbLimitsMAX_BACKENDS)},
		pairNumbers:    numbering{limit: uint32(lbLimitsMAX_PAIRS)},
	}
	var slots, choices []run
	for _, e := range have.Services {
		slots = append(slots, run{e.First, e.Count})
	}
	for _, b := range have.Backends {
		choices = append(choices, run{b.Choice, uint32(len(b.Pairs))})
	}
	p.slotRuns, p.choiceRuns = newRuns(slots), newRuns(choices)
	for n, pair := range have.Pairs {
		p.known[pairID{pair.Address, pair.Source, pair.Protocol}] = n
		p.keys[pair.Key] = true
	}
	if err := p.services(want); err != nil {
		return nil, nil, err
	}
	return slices.Concat(p.add, p.slots, p.open, p.close, p.remove), p.next, nil
}

type planner struct {
	have, next *State
	want       lb.Snapshot
	numbers    []uint16 // of its services
	lim        limits
	table      tableFunc
	known      map[pairID]uint32 // pairs, by what they are
	keys       map[uint32]bool   // places taken in nat_keys
	breaks     map[uint32]string // backends that lose their connections, and why
	standing   standing

	serviceNumbers, backendNumbers, pairNumbers numbering
	slotRuns, choiceRuns                        runs

	add    []step // VIPs without ports, pairs, backends: nobody refers to them yet
	slots  []step // owners change
	open   []step // services and ports: packets come
	close  []step // ports, VIPs and services: packets stop
	remove []step // backends, pairs: nobody refers to them any more
}

func (p *planner) services(want lb.Snapshot) error {
	numbers, err := p.match(want)
	if err != nil {
		return err
	}
	p.numbers = numbers
	if err := p.vips(want, numbers); err != nil {
		return err
	}
	if err := p.rules(want, numbers); err != nil {
		return err
	}
	keepBackends := map[uint32]bool{}
	keepPairs := map[uint32]bool{}
	for i, s := range want.Services {
		if err := p.service(numbers[i], s, keepBackends, keepPairs); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.have.Services)) {
		if !slices.Contains(numbers, n) {
			delete(p.next.Services, n)
			delete(p.next.Slots, n)
			p.close = append(p.close, setService{Number: n})
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.have.Backends)) {
		if !keepBackends[n] {
			delete(p.next.Backends, n)
			p.remove = append(p.remove, setBackend{Number: n, Breaks: p.breaks[n]})
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.have.Pairs)) {
		if !keepPairs[n] {
			delete(p.next.Pairs, n)
			p.remove = append(p.remove, removePair{n, p.have.Pairs[n]})
		}
	}
	if err := p.nodes(); err != nil {
		return err
	}
	return p.replies()
}

// match gives every wanted service its number: that of the service which holds
// one of its ports already and forwards in the same way, or a new one.
func (p *planner) match(want lb.Snapshot) ([]uint16, error) {
	numbers := make([]uint16, len(want.Services))
	taken := map[uint16]bool{}
	for i, s := range want.Services {
		for _, a := range s.Addresses {
			v, ok := p.have.VIPs[a.Addr()]
			if !ok {
				continue
			}
			n := p.have.service(v.Tables[portTable(s.Protocol)], a.Port())
			e, ok := p.have.Services[n]
			if ok && !taken[n] && e.Forward == s.Forward && e.Count == uint32(s.TableSize) {
				numbers[i] = n
				taken[n] = true
				break
			}
		}
	}
	for i, s := range want.Services {
		if numbers[i] != 0 {
			continue
		}
		n, err := freeNumber("service", &p.serviceNumbers, p.next.Services)
		if err != nil {
			return nil, err
		}
		first, err := p.slotRuns.take("the slots of service "+s.Name, uint32(s.TableSize), p.lim.slots)
		if err != nil {
			return nil, fmt.Errorf("%w: restart the daemon, which makes the table larger", err)
		}
		numbers[i] = n
		p.next.Services[n] = serviceEntry{First: first, Count: uint32(s.TableSize), Forward: s.Forward}
	}
	for i, s := range want.Services {
		n := numbers[i]
		e := p.next.Services[n]
		e.Flags, e.Limit = flagsOf(s.Service), s.SourceLimit
		if e != p.have.Services[n] {
			p.next.Services[n] = e
			p.open = append(p.open, setService{n, e})
		}
	}
	return numbers, nil
}

// service plans the backends and slots of one service.
func (p *planner) service(number uint16, s lb.ServiceState, keepBackends, keepPairs map[uint32]bool) error {
	known := map[netip.AddrPort]uint32{}
	for n, b := range p.have.Backends {
		if b.Service == number {
			known[b.Address] = n
		}
	}
	before := p.have.Slots[number]
	f := p.follow(s, before)
	var owners []lb.Backend
	var ownerNumbers []uint32
	for _, b := range s.Backends {
		n, ok := known[b.Address]
		old := p.have.Backends[n]
		if !ok {
			var err error
			n, err = freeNumber("backend", &p.backendNumbers, p.next.Backends)
			if err != nil {
				return err
			}
			// A flow that still names this number has another generation.
			p.next.generation++
			old.Generation = p.next.generation
		}
		keepBackends[n] = true
		e := old
		e.Service, e.Address, e.Alive, e.Leaving = number, b.Address, f.alive(b, old, ok), 0
		if b.NextHop.Known() {
			e.NextHop = b.NextHop
		}
		if old.Alive && !e.Alive {
			p.next.generation++
			e.Generation = p.next.generation
		}
		if s.Forward == lb.NAT {
			if err := p.pairs(&e, s.Service, keepPairs); err != nil {
				return err
			}
		}
		if !ok || !e.equal(old) {
			p.next.Backends[n] = e
			st := setBackend{Number: n, Entry: e}
			if ok && old.Alive && !e.Alive {
				p.remove = append(p.remove, st) // its slots move first
			} else {
				p.add = append(p.add, st)
			}
		}
		if b.Weight > 0 && !b.Failed {
			owners = append(owners, b)
			ownerNumbers = append(ownerNumbers, n)
		}
	}
	if err := p.leave(number, s, known, f, keepBackends, keepPairs); err != nil {
		return err
	}
	if err := p.join(number, s, f, keepBackends, keepPairs); err != nil {
		return err
	}
	index, err := p.table(s.TableSize, owners)
	if err != nil {
		return err
	}
	slots := make([]slot, len(index))
	tracked := tracks(s.Service)
	alive := func(n uint32) bool { return p.standing.alive(n, keepBackends, p.next.Backends) }
	closes := noWindow
	if s.TrackWindow > 0 {
		closes = p.lim.now + min(s.TrackWindow, maxWindow)
	}
	foreign := f.slots(p.lim.now)
	var changes []slotChange
	for i, o := range index {
		var owner uint32
		if o >= 0 && (f == nil || alive(ownerNumbers[o])) {
			owner = ownerNumbers[o]
		}
		switch {
		case foreign != nil && foreign[i].serves(alive):
			slots[i] = foreign[i]
		case before != nil && tracked:
			slots[i] = before[i].change(owner, alive, closes)
		default:
			slots[i] = makeSlot(owner, 0, lbSlotStateSLOT_CLEAN)
		}
		// A new service's slots hold whatever a removed one left there.
		if before == nil || before[i] != slots[i] {
			changes = append(changes, slotChange{uint32(i), slots[i]})
		}
	}
	if len(changes) > 0 {
		p.next.Slots[number] = slots
		p.slots = append(p.slots, setSlots{number, p.next.Services[number].First, changes})
	}
	return nil
}

// standing is what is known of backends, by number, once the plan has come to their
// service: every slot asks for its own, and maps would take too long.
type standing []struct{ known, alive bool }

func (s standing) alive(n uint32, keep map[uint32]bool, next map[uint32]backendEntry) bool {
	if int(n) >= len(s) {
		return false
	}
	if at := &s[n]; !at.known {
		at.known, at.alive = true, keep[n] && next[n].Alive
	}
	return s[n].alive
}

// tracks tells whether the slots of a service have windows. Only TCP tells a new flow
// from an old one, and full nat has an entry for each.
func tracks(s lb.Service) bool { return s.Protocol == lb.TCP && s.Forward.Stateless() }

// leave plans backends that the configuration has lost: they keep what they
// serve until nothing of it is left. Known are the service's backends so far.
func (p *planner) leave(number uint16, s lb.ServiceState, known map[netip.AddrPort]uint32, f *following, keepBackends, keepPairs map[uint32]bool) error {
	for _, n := range slices.Sorted(maps.Values(known)) {
		old := p.have.Backends[n]
		over := p.lim.drained[n] ||
			old.Leaving != 0 && p.lim.now-time.Duration(old.Leaving)*time.Second > s.DrainTimeout
		if keepBackends[n] || !f.keeps(n, old, over) {
			continue
		}
		if why := p.claimed(number, s.Service, old.Address); why != "" {
			p.breaks[n] = why
			continue
		}
		e := old
		if e.Leaving == 0 {
			e.Leaving = p.leavingSince()
		}
		if h := leavingHop(s, e.Address); h.Known() {
			e.NextHop = h
		}
		if s.Forward == lb.NAT {
			if err := p.pairs(&e, s.Service, keepPairs); err != nil {
				return err
			}
		}
		keepBackends[n] = true
		if !e.equal(old) {
			p.next.Backends[n] = e
			p.add = append(p.add, setBackend{Number: n, Entry: e})
		}
	}
	return nil
}

// flagsOf returns what the program knows a service by.
func flagsOf(s lb.Service) lbServiceFlags {
	var flags lbServiceFlags
	for _, f := range []struct {
		on   bool
		flag lbServiceFlags
	}{
		{s.Protocol == lb.UDP, lbServiceFlagsSERVICE_UDP},
		{s.Scheduler == lb.SourceHash, lbServiceFlagsSERVICE_SOURCE_HASH},
		{s.Protocol == lb.UDP && s.Affinity == lb.AffinityFlow, lbServiceFlagsSERVICE_UDP_FLOWS},
		{len(s.Rules) > 0, lbServiceFlagsSERVICE_RULES},
		{s.AllowOnly, lbServiceFlagsSERVICE_ALLOW_ONLY},
		{s.SourceLimit.Rate > 0, lbServiceFlagsSERVICE_SOURCE_LIMIT},
		{keepsPort(s), lbServiceFlagsSERVICE_KEEPS_PORT},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}

// pairs gives a nat backend its pairs, one for each source address.
func (p *planner) pairs(e *backendEntry, s lb.Service, keep map[uint32]bool) error {
	sources := s.SourceAddresses
	if len(sources) == 0 {
		return errors.New("nat needs a source address")
	}
	address := e.Address
	if keepsPort(s) {
		address = netip.AddrPortFrom(address.Addr(), 0) // any
	}
	var pairs []uint32
	for _, source := range sources {
		n, err := p.pair(pairID{address, source, s.Protocol})
		if err != nil {
			return err
		}
		keep[n] = true
		pairs = append(pairs, n)
	}
	if slices.Equal(pairs, e.Pairs) {
		return nil
	}
	first, err := p.choiceRuns.take("the source addresses of "+e.Address.String(), uint32(len(pairs)), uint32(lbLimitsMAX_CHOICES))
	if err != nil {
		return err
	}
	e.Choice, e.Pairs = first, pairs
	p.add = append(p.add, setChoices{first, pairs})
	return nil
}

func (p *planner) pair(id pairID) (uint32, error) {
	address, source := id.address, id.source
	if n, ok := p.known[id]; ok {
		if e := p.next.Pairs[n]; e.Share != p.lim.share || e.Filling {
			e.Share, e.Filling = p.lim.share, false
			p.next.Pairs[n] = e
			p.add = append(p.add, sharePair{n, e})
		}
		return n, nil
	}
	n, err := freeNumber("pair of backend and source address", &p.pairNumbers, p.next.Pairs)
	if err != nil {
		return 0, err
	}
	vip := p.next.VIPs[source].Index
	key, err := place("backend "+address.String(), pairHash(address, vip, id.protocol), uint32(lbLimitsMAX_PAIR_KEYS),
		func(i uint32) bool { return p.keys[i] })
	if err != nil {
		return 0, err
	}
	pair := pairEntry{Source: source, Address: address, Protocol: id.protocol, VIP: vip, Key: key, Share: p.lim.share}
	p.next.Pairs[n] = pair
	p.known[id] = n
	p.keys[key] = true
	p.add = append(p.add, addPair{n, pair})
	return n, nil
}

type pairID struct {
	address  netip.AddrPort
	source   netip.Addr
	protocol lb.Protocol
}
