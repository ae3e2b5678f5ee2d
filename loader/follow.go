package loader

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A following is what becomes of the slots of a service that follows another node's
// table. Nil: the service has a table of its own.
type following struct {
	before []slot         // what is there
	named  []bool         // backends that before names, by number; nil with table
	table  *lb.TableState // what takes its place; nil: nothing does
	// What table says of its backends, and their numbers once they have joined.
	failed  map[netip.AddrPort]bool
	numbers map[netip.AddrPort]uint32
}

// follow tells how a service follows another node's table. One that has no slots yet
// begins with its own.
func (p *planner) follow(s lb.ServiceState, before []slot) *following {
	if !s.Followed || before == nil {
		return nil
	}
	f := &following{before: before}
	if t, ok := p.lim.adopted[s.Name]; ok {
		f.table, f.failed = &t, map[netip.AddrPort]bool{}
		for _, b := range t.Backends {
			f.failed[b.Address] = b.Failed
		}
		return f
	}
	f.named = make([]bool, lbLimitsMAX_BACKENDS)
	for _, w := range before {
		f.named[w.owner()%uint32(len(f.named))], f.named[w.previous()%uint32(len(f.named))] = true, true
	}
	return f
}

// alive tells whether a configured backend is to be alive. That of a table that is
// followed the other node decides; verdicts from here count when it is followed no more.
func (f *following) alive(b lb.Backend, old backendEntry, known bool) bool {
	if f == nil {
		return !b.Failed
	}
	if failed, ok := f.failed[b.Address]; ok {
		return !failed
	}
	if known {
		return old.Alive
	}
	return !b.Failed
}

// keeps tells whether a backend stays that is not in the configuration. Over: its time
// is, or nothing of it is left. What a followed table names is for the other node to
// let go.
func (f *following) keeps(n uint32, old backendEntry, over bool) bool {
	if f == nil {
		return old.Alive && !over
	}
	if failed, there := f.failed[old.Address]; there {
		return old.Alive && !failed
	}
	return old.Alive && (f.named != nil && f.named[n] || !over)
}

// join adds the backends that only an adopted table has: they keep what they serve, as
// those that leave.
func (p *planner) join(number uint16, s lb.ServiceState, f *following, keepBackends, keepPairs map[uint32]bool) error {
	if f == nil || f.table == nil {
		return nil
	}
	f.numbers = map[netip.AddrPort]uint32{}
	for n := range keepBackends {
		if e := p.next.Backends[n]; e.Service == number {
			f.numbers[e.Address] = n
		}
	}
	for _, b := range f.table.Backends {
		if _, here := f.numbers[b.Address]; here || b.Failed {
			continue
		}
		n, err := freeNumber("backend", &p.backendNumbers, p.next.Backends)
		if err != nil {
			return err
		}
		p.next.generation++
		e := backendEntry{
			Service: number, Address: b.Address, Generation: p.next.generation, Alive: true,
			Leaving: p.leavingSince(), NextHop: leavingHop(s, b.Address),
		}
		if s.Forward == lb.NAT {
			if err := p.pairs(&e, s.Service, keepPairs); err != nil {
				return err
			}
		}
		keepBackends[n], f.numbers[b.Address] = true, n
		p.next.Backends[n] = e
		p.add = append(p.add, setBackend{Number: n, Entry: e})
	}
	return nil
}

// leavingSince is now, as a backend's entry has it.
func (p *planner) leavingSince() uint32 { return max(1, uint32(p.lim.now/time.Second)) }

// leavingHop is the next hop of a backend that leaves a service, where it is known.
func leavingHop(s lb.ServiceState, a netip.AddrPort) lb.NextHop {
	for _, b := range s.Leaving {
		if b.Address == a {
			return b.NextHop
		}
	}
	return lb.NextHop{}
}

// slots returns the words that the other node's table makes here, or those that stay.
func (f *following) slots(now time.Duration) []slot {
	switch {
	case f == nil:
		return nil
	case f.table == nil:
		return f.before
	}
	by := make([]uint32, len(f.table.Backends)+1) // 0: none
	for i, b := range f.table.Backends {
		by[i+1] = f.numbers[b.Address]
	}
	words := make([]slot, len(f.table.Slots))
	for i, s := range f.table.Slots {
		words[i] = makeSlot(by[s.Owner], by[s.Previous], lbSlotState(s.Phase))
		if s.Phase == lb.SlotTracked {
			words[i] = words[i].closing(now+min(s.Left, maxWindow)).near(f.before[i], now)
		}
	}
	return words
}

// near returns old where s differs from it by the rounding of its window's end alone: a
// table that goes to and fro must not keep its windows open.
func (s slot) near(old slot, now time.Duration) slot {
	const closes = slot(1)<<lbSlotBitsSLOT_CLOSES_SHIFT - 1
	if s&closes == old&closes && (s.left(now)-old.left(now)).Abs() <= closesUnit {
		return old
	}
	return s
}
