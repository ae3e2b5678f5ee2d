package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// TableStates returns the tables of all services, in the order of their names, as
// another node may adopt them. Epochs are for the caller to fill in.
func (d *Datapath) TableStates() []lb.TableState {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []lb.TableState
	for _, s := range d.want.Services {
		if n := d.state.numberOf(s.Service); n != 0 {
			all = append(all, d.tableState(d.state, n, s))
		}
	}
	return all
}

// Preview returns the tables that Apply would change, as they would be then: without
// those that are followed. It writes nothing.
func (d *Datapath) Preview(want lb.Snapshot) ([]lb.TableState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.upgrade != nil {
		return nil, errUpgrading
	}
	_, next, err := plan(d.state, want, d.limits(limits{}), d.cache.table)
	if err != nil {
		return nil, err
	}
	before, after := d.state.byService(), next.byService()
	var changed []lb.TableState
	for _, s := range want.Services {
		n := next.numberOf(s.Service)
		if n == 0 || s.Followed {
			continue
		}
		same := sameSlots(d.state.Slots[n], next.Slots[n]) && slices.EqualFunc(before[n], after[n], func(a, b uint32) bool {
			was, is := d.state.Backends[a], next.Backends[b]
			return was.Address == is.Address && was.Alive == is.Alive && (was.Leaving == 0) == (is.Leaving == 0)
		})
		if !same {
			changed = append(changed, d.tableState(next, n, s))
		}
	}
	return changed, nil
}

// sameSlots tells whether two tables are one: they are replaced, never written to.
func sameSlots(a, b []slot) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (d *Datapath) tableState(state *State, number uint16, s lb.ServiceState) lb.TableState {
	now := sinceBoot()
	return state.table(number, s.Name, now, d.pressure.left(now, s.TrackWindow))
}

// table describes the table of a service at a time since boot. Held is for how long no
// window closes.
func (s *State) table(number uint16, name string, now, held time.Duration) lb.TableState {
	t := lb.TableState{Service: name}
	var numbers []uint32
	for n, b := range s.Backends {
		if b.Service == number {
			numbers = append(numbers, n)
		}
	}
	slices.SortFunc(numbers, func(a, b uint32) int { return s.Backends[a].Address.Compare(s.Backends[b].Address) })
	index := map[uint32]uint16{} // 0: none
	for i, n := range numbers {
		b := s.Backends[n]
		t.Backends = append(t.Backends, lb.TableBackend{Address: b.Address, Failed: !b.Alive, Leaving: b.Leaving != 0})
		index[n] = uint16(i + 1)
	}
	t.Slots = make([]lb.Slot, len(s.Slots[number]))
	for i, w := range s.Slots[number] {
		t.Slots[i] = lb.Slot{Owner: index[w.owner()], Previous: index[w.previous()], Phase: lb.SlotPhase(w.state())}
		if w.state() == lbSlotStateSLOT_TRACKED {
			left := max(w.left(now), held)
			t.Slots[i].Left = (left + time.Second - 1).Truncate(time.Second)
		}
	}
	return t
}

// A RefusedTable is one that was not adopted.
type RefusedTable struct {
	Service string
	Why     string
}

// AdoptTables makes this node's slots those of another node: owners are found by
// address and port, windows close after what is left of them. A backend that only the
// other node has is added as one that leaves. From then on the services are followed,
// until Apply says otherwise. A table that does not fit is refused; others are not
// concerned. After an error nothing is planned.
func (d *Datapath) AdoptTables(states []lb.TableState) ([]RefusedTable, error) {
	d.mu.Lock()
	defer d.unlock()
	if d.upgrade != nil {
		return nil, errUpgrading
	}
	var refused []RefusedTable
	want := lb.Snapshot{Services: slices.Clone(d.want.Services)}
	adopted := map[string]lb.TableState{}
	for _, t := range states {
		i := slices.IndexFunc(want.Services, func(s lb.ServiceState) bool { return s.Name == t.Service })
		why := "there is no such service here: give both nodes the same configuration"
		if i >= 0 {
			why = d.state.misfit(d.want, want.Services[i], t)
		}
		if why != "" {
			refused = append(refused, RefusedTable{t.Service, why})
			continue
		}
		want.Services[i].Followed = true
		adopted[t.Service] = t
	}
	if len(adopted) == 0 {
		return refused, nil
	}
	return refused, d.apply(want, limits{adopted: adopted})
}

// misfit says why a table cannot be that of a service of the last snapshot; "": it can.
func (s *State) misfit(want lb.Snapshot, of lb.ServiceState, t lb.TableState) string {
	e, ok := s.Services[s.numberOf(of.Service)]
	if !ok {
		return "its service is not in force here yet"
	}
	if len(t.Slots) != int(e.Count) {
		return fmt.Sprintf("its table has %d slots, and %d here: give both nodes the same configuration", len(t.Slots), e.Count)
	}
	if why := s.misfitBackends(want, of, t); why != "" {
		return why
	}
	alive := func(i uint16) bool { return i == 0 || int(i) <= len(t.Backends) && !t.Backends[i-1].Failed }
	for i, w := range t.Slots {
		switch {
		case !alive(w.Owner) || !alive(w.Previous):
			return fmt.Sprintf("slot %d is of a backend that the table does not have, or that has failed", i)
		case w.Phase > lb.SlotSettling || w.Left < 0 || w.Phase != lb.SlotTracked && w.Previous != 0:
			return fmt.Sprintf("slot %d makes no sense: the other node may run a later version", i)
		case w.Phase != lb.SlotClean && !tracks(of.Service):
			return fmt.Sprintf("slot %d has a window, and the service has none here: give both nodes the same configuration", i)
		}
	}
	return ""
}

func (s *State) misfitBackends(want lb.Snapshot, of lb.ServiceState, t lb.TableState) string {
	p := planner{want: want}
	for _, other := range want.Services {
		p.numbers = append(p.numbers, s.numberOf(other.Service))
	}
	known := map[netip.AddrPort]bool{}
	for _, b := range t.Backends {
		switch a := b.Address.Addr(); {
		case !a.IsValid() || a.Is4In6() || b.Address.Port() == 0:
			return fmt.Sprintf("its backend %v has no address that makes sense", b.Address)
		case known[b.Address]:
			return fmt.Sprintf("it has the backend %v twice", b.Address)
		case of.Forward.Rewrites() && a.Is4() != of.Addresses[0].VIP.Is4():
			return fmt.Sprintf("its backend %v is of another address family than the service", b.Address)
		case !b.Failed && p.claimed(s.numberOf(of.Service), of.Service, b.Address) != "":
			return fmt.Sprintf("its backend %v is another service's here: give both nodes the same configuration", b.Address)
		}
		known[b.Address] = true
	}
	return ""
}

var errUpgrading = errors.New("an upgrade is under way: Attach ends it")
