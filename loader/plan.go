package loader

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A step is one ordered write to the maps.
type step interface {
	apply(*tables) error
	String() string
}

// limits are what the maps were made for.
type limits struct {
	slots uint32       // of all services together
	share lb.PortRange // of nat's source ports
}

// tableFunc returns the owner of each slot as an index into backends, or -1.
type tableFunc func(size int, backends []lb.Backend) ([]int32, error)

// plan computes the writes that turn have into want, and the state after them.
// It touches nothing. What is added comes before what refers to it, and what is
// removed goes after: at no moment does a packet find half a service.
func plan(have *State, want lb.Snapshot, lim limits, table tableFunc) ([]step, *State, error) {
	p := &planner{
		have: have, next: have.clone(), lim: lim, table: table,
		known: map[pairID]uint32{}, keys: map[uint32]bool{},
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
		p.known[pairID{pair.Address, pair.Source}] = n
		p.keys[pair.Key] = true
	}
	if err := p.services(want); err != nil {
		return nil, nil, err
	}
	return slices.Concat(p.add, p.slots, p.open, p.close, p.remove), p.next, nil
}

type planner struct {
	have, next *State
	lim        limits
	table      tableFunc
	known      map[pairID]uint32 // pairs, by what they are
	keys       map[uint32]bool   // places taken in nat_keys

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
	if err := p.vips(want, numbers); err != nil {
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
			p.remove = append(p.remove, setBackend{Number: n})
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.have.Pairs)) {
		if !keepPairs[n] {
			delete(p.next.Pairs, n)
			p.remove = append(p.remove, removePair{n, p.have.Pairs[n]})
		}
	}
	return nil
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
			n := p.have.Ports[portKey{v.Table, a.Port()}]
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
		p.open = append(p.open, setService{n, p.next.Services[n]})
	}
	return numbers, nil
}

// vips plans addresses and their ports.
func (p *planner) vips(want lb.Snapshot, numbers []uint16) error {
	wantSource := map[netip.Addr]bool{}
	wantPort := map[netip.AddrPort]uint16{}
	addresses := map[netip.Addr]bool{}
	for i, s := range want.Services {
		for _, a := range s.Addresses {
			for port := int(a.Ports.First); port <= int(a.Ports.Last); port++ {
				wantPort[netip.AddrPortFrom(a.VIP, uint16(port))] = numbers[i]
			}
			addresses[a.Addr()] = true
		}
		if s.Forward == lb.NAT {
			for _, a := range s.SourceAddresses {
				wantSource[a] = true
				addresses[a] = true
			}
		}
	}

	places := map[uint32]bool{}
	tables := map[uint32]bool{}
	free := numbering{limit: uint32(lbLimitsMAX_PORT_TABLES)}
	for _, v := range p.have.VIPs {
		places[v.Index] = true
		tables[v.Table] = true
	}
	serving := map[netip.Addr]bool{}
	for a := range wantPort {
		serving[a.Addr()] = true
	}
	var setVIPs, setPorts, clearPorts, narrowVIPs, clearVIPs []step
	for _, a := range slices.SortedFunc(maps.Keys(addresses), netip.Addr.Compare) {
		old, ok := p.have.VIPs[a]
		v := old
		if !ok {
			index, err := place("address "+a.String(), vipHash(a), uint32(lbLimitsMAX_VIPS),
				func(i uint32) bool { return places[i] })
			if err != nil {
				return err
			}
			v.Index = index
			places[index] = true
		}
		v.Source = wantSource[a]
		if serving[a] && v.Table == 0 {
			t, err := freeNumber("address with services", &free, tables)
			if err != nil {
				return err
			}
			tables[t] = true
			v.Table = t
		}
		p.next.VIPs[a] = v
		// Replies come to a source address as long as its services are there.
		wide := v
		wide.Source = v.Source || old.Source
		if !ok || wide != old {
			setVIPs = append(setVIPs, setVIP{a, wide})
		}
		if wide != v {
			narrowVIPs = append(narrowVIPs, setVIP{a, v})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(wantPort), netip.AddrPort.Compare) {
		k := portKey{p.next.VIPs[a.Addr()].Table, a.Port()}
		if p.have.Ports[k] != wantPort[a] {
			p.next.Ports[k] = wantPort[a]
			setPorts = append(setPorts, setPort{k, wantPort[a]})
		}
	}
	wanted := map[portKey]bool{}
	for a := range wantPort {
		wanted[portKey{p.next.VIPs[a.Addr()].Table, a.Port()}] = true
	}
	for _, k := range slices.SortedFunc(maps.Keys(p.have.Ports), comparePortKeys) {
		if !wanted[k] {
			delete(p.next.Ports, k)
			clearPorts = append(clearPorts, setPort{k, 0})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(p.have.VIPs), netip.Addr.Compare) {
		if v := p.have.VIPs[a]; !addresses[a] {
			delete(p.next.VIPs, a)
			clearVIPs = append(clearVIPs, clearVIP{a, v.Index})
		}
	}
	p.add = append(p.add, setVIPs...)
	p.open = append(p.open, setPorts...)
	p.close = slices.Concat(p.close, clearPorts, narrowVIPs, clearVIPs)
	return nil
}

func comparePortKeys(a, b portKey) int {
	return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Port, b.Port))
}

// service plans the backends and slots of one service.
func (p *planner) service(number uint16, s lb.ServiceState, keepBackends, keepPairs map[uint32]bool) error {
	known := map[netip.AddrPort]uint32{}
	for n, b := range p.have.Backends {
		if b.Service == number {
			known[b.Address] = n
		}
	}
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
		e.Service, e.Address, e.Alive = number, b.Address, !b.Failed
		if b.NextHop.Known() {
			e.NextHop = b.NextHop
		}
		if old.Alive && b.Failed {
			p.next.generation++
			e.Generation = p.next.generation
		}
		if s.Forward == lb.NAT {
			if err := p.pairs(&e, s.SourceAddresses, keepPairs); err != nil {
				return err
			}
		}
		if !ok || !e.equal(old) {
			p.next.Backends[n] = e
			st := setBackend{Number: n, Entry: e}
			if ok && old.Alive && b.Failed {
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
	index, err := p.table(s.TableSize, owners)
	if err != nil {
		return err
	}
	slots := make([]uint32, len(index))
	for i, o := range index {
		if o >= 0 {
			slots[i] = ownerNumbers[o]
		}
	}
	var changes []slotChange
	before := p.have.Slots[number]
	for i, o := range slots {
		// A new service's slots hold whatever a removed one left there.
		if before == nil || before[i] != o {
			changes = append(changes, slotChange{uint32(i), o})
		}
	}
	if len(changes) > 0 {
		p.next.Slots[number] = slots
		p.slots = append(p.slots, setSlots{number, p.next.Services[number].First, changes})
	}
	return nil
}

// pairs gives a nat backend its pairs, one for each source address.
func (p *planner) pairs(e *backendEntry, sources []netip.Addr, keep map[uint32]bool) error {
	if len(sources) == 0 {
		return errors.New("nat needs a source address")
	}
	var pairs []uint32
	for _, source := range sources {
		n, err := p.pair(e.Address, source)
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

func (p *planner) pair(address netip.AddrPort, source netip.Addr) (uint32, error) {
	id := pairID{address, source}
	if n, ok := p.known[id]; ok {
		if e := p.next.Pairs[n]; e.Share != p.lim.share {
			e.Share = p.lim.share
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
	key, err := place("backend "+address.String(), pairHash(address, vip), uint32(lbLimitsMAX_PAIR_KEYS),
		func(i uint32) bool { return p.keys[i] })
	if err != nil {
		return 0, err
	}
	pair := pairEntry{Source: source, Address: address, VIP: vip, Key: key, Share: p.lim.share}
	p.next.Pairs[n] = pair
	p.known[id] = n
	p.keys[key] = true
	p.add = append(p.add, addPair{n, pair})
	return n, nil
}

type pairID struct {
	address netip.AddrPort
	source  netip.Addr
}
