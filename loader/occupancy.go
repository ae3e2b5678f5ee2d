package loader

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A PortUse is how many of the source ports towards a backend are in use, and how many
// this node may use: those of its share, over all source addresses of the service,
// without ports that are a service of the source address or that somebody on the node
// listened on when they were handed out. Services that have a backend and a source
// address in common share the ports. Both are 0 without source NAT.
type PortUse struct{ Used, Ports int }

// HighPorts is the part of its ports in percent from which on a backend's use of them
// is counted without those whose flow has been idle too long.
const HighPorts = 70

// AtLeast tells whether so many percent of the ports are in use.
func (u PortUse) AtLeast(percent int) bool { return u.Ports > 0 && u.Used*100 >= percent*u.Ports }

// Percent is the part of the ports that is in use.
func (u PortUse) Percent() int {
	if u.Ports == 0 {
		return 0
	}
	return u.Used * 100 / u.Ports
}

// A Usage tells how much a service uses of what is bounded, and what it has lost.
type Usage struct {
	Service  string
	Losses   Losses
	Backends []BackendPorts // those of full nat
}

// BackendPorts is the use of the source ports towards a backend.
type BackendPorts struct {
	Address netip.AddrPort
	Source  PortUse
}

// idlePorts is how many ports of a pair are in use by name only: their flows have been
// idle too long, and end when the program comes by. Pairs that have plenty of ports
// are not counted.
type idlePorts struct {
	ports   map[uint32]int    // by pair
	counted map[uint32]uint64 // when each was counted: which call of Usage it was
	calls   uint64
}

// pairsCounted is how many pairs a call of Usage counts, some 2 ms each.
const pairsCounted = 8

// Usage tells about each service that has a name. It may be asked every second.
func (d *Datapath) Usage() ([]Usage, error) {
	d.mu.Lock()
	defer d.unlock()
	if err := d.countIdle(ticks()); err != nil {
		return nil, err
	}
	by := d.state.byService()
	var all []Usage
	for _, number := range slices.Sorted(maps.Keys(d.state.Services)) {
		p := Usage{Service: d.names[number]}
		if p.Service == "" {
			continue
		}
		var err error
		if p.Losses, err = readLosses(d.objects, number); err != nil {
			return nil, err
		}
		for _, n := range by[number] {
			b := d.state.Backends[n]
			if use := d.tables.sourcePorts(d.state, b, d.idle.ports); use.Ports > 0 {
				p.Backends = append(p.Backends, BackendPorts{b.Address, use})
			}
		}
		slices.SortFunc(p.Backends, func(a, b BackendPorts) int { return a.Address.Compare(b.Address) })
		all = append(all, p)
	}
	return all, nil
}

// countIdle looks for idle flows in the pairs that are short of ports; in a few at a
// time, those that were counted longest ago.
func (d *Datapath) countIdle(now uint32) error {
	c := &d.idle
	c.calls++
	ports, counted := map[uint32]int{}, map[uint32]uint64{}
	var high []uint32
	for n, e := range d.state.Pairs {
		if d.tables.portUse(d.state, n, e).AtLeast(HighPorts) {
			high = append(high, n)
			ports[n], counted[n] = c.ports[n], c.counted[n]
		}
	}
	slices.SortFunc(high, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(counted[a], counted[b]), cmp.Compare(a, b))
	})
	var mu sync.Mutex
	err := forAll(high[:min(len(high), pairsCounted)], func(n uint32) error {
		idle, err := d.tables.countIdle(n, d.state.Pairs[n].Share, now)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			ports[n], counted[n] = idle, c.calls
		}
		return err
	})
	if err != nil {
		return err
	}
	c.ports, c.counted = ports, counted
	return nil
}

// countIdle counts the ports of a share whose flow has been idle too long.
func (t *tables) countIdle(n uint32, share lb.PortRange, now uint32) (int, error) {
	q, err := t.openQueue(n)
	if err != nil {
		return 0, err
	}
	defer q.close()
	var timeouts [lbNatStateNAT_STATES]int32
	for state, t := range natTimeouts {
		timeouts[state] = int32(t / tick)
	}
	idle := 0
	for port := int(share.First); port <= int(share.Last); port++ {
		f := q.flow(uint16(port))
		state := atomic.LoadUint32(&f.State) % uint32(lbNatStateNAT_STATES)
		if !over(f) && int32(now-atomic.LoadUint32(&f.LastSeen)) > timeouts[state] {
			idle++
		}
	}
	return idle, nil
}

// sourcePorts sums up the pairs of a backend.
func (t *tables) sourcePorts(s *State, b backendEntry, idle map[uint32]int) PortUse {
	var sum PortUse
	for _, n := range b.Pairs {
		e, ok := s.Pairs[n]
		if !ok {
			continue
		}
		use := t.portUse(s, n, e)
		sum.Used += max(0, use.Used-idle[n])
		sum.Ports += use.Ports
	}
	return sum
}

// portUse tells how many ports of a pair are in use: those that the ring lacks. It
// reads three words. Ports that are a service's stand in the ring for good.
func (t *tables) portUse(s *State, n uint32, e pairEntry) PortUse {
	pair := t.pair(n)
	// In this order what the program does meanwhile makes more of them free, not fewer.
	head := atomic.LoadUint64(pairWord(pair, unsafe.Offsetof(lbNatPair{}.Head)))
	tail := atomic.LoadUint64(pairWord(pair, unsafe.Offsetof(lbNatPair{}.Tail)))
	all := int(uint32(atomic.LoadUint64(pairWord(pair, unsafe.Offsetof(lbNatPair{}.Ports)))))
	ports := max(0, all-s.servicePorts(e))
	return PortUse{Used: min(max(0, all-int(tail-head)), ports), Ports: ports}
}

// servicePorts counts the ports of a pair's share that are a service of its source
// address.
func (s *State) servicePorts(e pairEntry) int {
	n := 0
	for _, r := range s.Ports[s.VIPs[e.Source].Tables[portTable(e.Protocol)]] {
		n += max(0, int(min(r.Last, e.Share.Last))-int(max(r.First, e.Share.First))+1)
	}
	return n
}

// countPorts counts the ports of pairs that an earlier version has made.
func (t *tables) countPorts(s *State) error {
	return forAll(slices.Collect(maps.Keys(s.Pairs)), func(n uint32) error {
		q, err := t.openQueue(n)
		if err != nil {
			return err
		}
		defer q.close()
		atomic.StoreUint64(q.ports(), q.count(s.Pairs[n].Share, nil))
		return nil
	})
}
