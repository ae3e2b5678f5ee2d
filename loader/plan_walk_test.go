package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// randomSnapshot makes a world of up to four services out of few addresses, so
// that they get in each other's way.
func randomSnapshot(r *rand.Rand) lb.Snapshot {
	var s lb.Snapshot
	taken := map[netip.AddrPort]bool{}
	for i := range r.IntN(5) {
		service := lb.ServiceState{Service: lb.Service{
			Name: fmt.Sprint("s", i), Protocol: lb.TCP, Forward: lb.DSR, TableSize: []int{7, 13, 31}[r.IntN(3)],
		}}
		for range 1 + r.IntN(3) {
			a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + r.IntN(4))}), uint16(80+r.IntN(4)))
			if !taken[a] {
				taken[a] = true
				service.Addresses = append(service.Addresses, lb.FrontendOf(a))
			}
		}
		if len(service.Addresses) == 0 {
			continue
		}
		port, server := uint16(80), 1
		if r.IntN(3) == 0 {
			// One VIP, and backends that no other service has.
			service.Forward, port, server = lb.DNAT, uint16(90+r.IntN(2)), 11+10*i
			service.Addresses = slices.DeleteFunc(service.Addresses, func(f lb.Frontend) bool { return f.VIP != service.Addresses[0].VIP })
		} else if r.IntN(2) == 0 {
			service.Forward = lb.NAT
			for k := range 1 + r.IntN(2) {
				service.SourceAddresses = append(service.SourceAddresses, netip.AddrFrom4([4]byte{192, 0, 2, byte(102 + k + r.IntN(3))}))
			}
			slices.SortFunc(service.SourceAddresses, netip.Addr.Compare)
			service.SourceAddresses = slices.Compact(service.SourceAddresses)
		}
		for k := range 5 {
			if r.IntN(2) == 0 {
				continue
			}
			b := lb.Backend{
				Address: netip.AddrPortFrom(backendAddr(server+k), port), Weight: r.IntN(3), Failed: r.IntN(5) == 0,
			}
			if r.IntN(3) > 0 {
				b.NextHop = lb.NextHop{Interface: 1 + r.IntN(3), Destination: backendMAC(1 + k), Source: nicMAC, Tags: r.IntN(3)}
				copy(b.NextHop.VLANs[:b.NextHop.Tags], []uint16{100, 200})
			}
			service.Backends = append(service.Backends, b)
		}
		s.Services = append(s.Services, service)
	}
	return s
}

// After every single step of every plan, whatever a packet may come across is
// there: ports lead to services, these to slots, these to backends that are
// alive, these to pairs whose source address takes replies.
func TestPlanOrder(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		have, sim := newState(), newSim()
		for range 100 {
			lim := testLimits
			lim.now += time.Duration(r.IntN(1000)) * time.Second
			if r.IntN(4) == 0 {
				lim.share = lb.PortRange{First: 1024, Last: 40000}
			}
			steps, next, err := plan(have, randomSnapshot(r), lim, testTable)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range steps {
				sim.apply(t, s)
				sim.complete = i == len(steps)-1
				if err := sim.check(); err != nil {
					for _, s := range steps[:i+1] {
						t.Log(s)
					}
					t.Fatalf("seed %d: after the last step: %v", seed, err)
				}
			}
			sim.generation = next.generation // of the highest number ever, cleared ones too
			if diff := diffStates(next, sim.State); diff != "" {
				t.Fatalf("seed %d: what the steps make is not what was planned (-planned +made):\n%s", seed, diff)
			}
			have = next
		}
	}
}

// A sim is what the maps hold while steps are applied.
type sim struct {
	*State
	choices  map[uint32]uint32
	complete bool // a plan is done
}

func newSim() *sim { return &sim{State: newState(), choices: map[uint32]uint32{}} }

func (m *sim) apply(t *testing.T, s step) {
	switch s := s.(type) {
	case setVIP:
		m.VIPs[s.Address] = s.Entry
	case clearVIP:
		delete(m.VIPs, s.Address)
	case setPorts:
		var runs []portRun
		for _, r := range m.Ports[s.Table] {
			runs = append(runs, subtractRuns(r, []portRun{s.Run})...)
		}
		if s.Run.Service != 0 {
			runs = append(runs, s.Run)
		}
		if m.Ports[s.Table] = mergeRuns(runs); len(runs) == 0 {
			delete(m.Ports, s.Table)
		}
	case setService:
		m.Services[s.Number] = s.Entry
		if s.Entry.Forward == 0 {
			delete(m.Services, s.Number)
			delete(m.Slots, s.Number)
		}
	case setSlots:
		slots := slices.Clone(m.Slots[s.Service])
		for _, c := range s.Changes {
			slots = append(slots, make([]slot, max(0, int(c.Slot)+1-len(slots)))...)
			slots[c.Slot] = c.Word
		}
		m.Slots[s.Service] = slots
	case setBackend:
		m.Backends[s.Number] = s.Entry
		if !s.Entry.Address.IsValid() {
			delete(m.Backends, s.Number)
		}
	case setChoices:
		for i, pair := range s.Pairs {
			m.choices[s.First+uint32(i)] = pair
		}
	case addPair:
		m.Pairs[s.Number] = s.Pair
	case setRule:
		m.Rules[s.Rule] = s.Allow
	case clearRule:
		delete(m.Rules, s.Rule)
	case sharePair:
		m.Pairs[s.Number] = s.Pair
	case removePair:
		delete(m.Pairs, s.Number)
	case setReply:
		m.Replies[s.ID] = s.Entry
	case clearReply:
		if got := m.Replies[s.ID].Place; got != s.Place {
			t.Fatalf("%v clears place %d, it is in %d", s, s.Place, got)
		}
		delete(m.Replies, s.ID)
	case expectReplies:
		m.ExpectsReplies = s.On
	default:
		t.Fatalf("a step of type %T", s)
	}
}

func (m *sim) check() error {
	tables := map[uint32]netip.Addr{}
	places := map[uint32]netip.Addr{}
	for a, v := range m.VIPs {
		for _, table := range v.Tables {
			if other, ok := tables[table]; ok && table != 0 {
				return fmt.Errorf("%v and %v have one port table", a, other)
			}
			tables[table] = a
		}
		if other, ok := places[v.Index]; ok {
			return fmt.Errorf("%v and %v have one place", a, other)
		}
		places[v.Index] = a
	}
	var open []portRun
	for table, runs := range m.Ports {
		if _, ok := tables[table]; ok { // else its VIP is gone: no packet comes
			open = append(open, runs...)
		}
	}
	for _, r := range open {
		n := r.Service
		e, ok := m.Services[n]
		if !ok {
			return fmt.Errorf("port %d leads to service %d, which is not there", r.First, n)
		}
		if got := len(m.Slots[n]); got != int(e.Count) {
			return fmt.Errorf("service %d has %d slots, want %d", n, got, e.Count)
		}
		for i, s := range m.Slots[n] {
			for _, owner := range []uint32{s.owner(), s.previous()} {
				if owner == 0 {
					continue
				}
				b, ok := m.Backends[owner]
				if !ok || !b.Alive || b.Service != n {
					return fmt.Errorf("slot %d of service %d is of backend %d: %+v", i, n, owner, b)
				}
				if e.Forward == lb.NAT && len(b.Pairs) == 0 {
					return fmt.Errorf("backend %d of nat service %d has no pair", owner, n)
				}
				if e.Forward == lb.DNAT {
					if err := m.checkReply(tables, n, owner, b); err != nil {
						return err
					}
				}
			}
		}
	}
	for n, b := range m.Backends {
		for i, number := range b.Pairs {
			pair, ok := m.Pairs[number]
			if !ok || pair.Address != b.Address {
				return fmt.Errorf("backend %d has pair %d: %+v", n, number, pair)
			}
			if m.choices[b.Choice+uint32(i)] != number {
				return fmt.Errorf("choice %d of backend %d is pair %d, want %d", i, n, m.choices[b.Choice+uint32(i)], number)
			}
			if len(m.open(b.Service)) == 0 || !slices.ContainsFunc(m.Slots[b.Service], func(s slot) bool { return s.owner() == n }) {
				continue // no new flow comes; those that were end with the backend
			}
			if v, ok := m.VIPs[pair.Source]; !ok || !v.Source || v.Index != pair.VIP {
				return fmt.Errorf("replies to pair %d come to %v, which takes none: %+v", number, pair.Source, v)
			}
		}
	}
	return nil
}

// checkReply looks whether the replies of a backend find their way back.
func (m *sim) checkReply(tables map[uint32]netip.Addr, service uint16, number uint32, b backendEntry) error {
	id := replyID{b.Address.Addr(), b.Address.Port(), lb.TCP}
	keeps := m.Services[service].Flags&lbServiceFlagsSERVICE_KEEPS_PORT != 0
	anyPort := replyID{id.Address, 0, id.Protocol}
	r, ok := m.Replies[id]
	// While a service gets its second port, or loses it, either will do.
	if other, there := m.Replies[anyPort]; there && (keeps || !ok) {
		id, r, ok = anyPort, other, true
	}
	other := m.Backends[r.Backend]
	if ok && other.Address.Addr() == b.Address.Addr() && other.Service != service && !m.complete {
		return nil // it moves to another service, whose it is before this one has gone
	}
	if id.Port == 0 && other.Address.Addr() == b.Address.Addr() && other.Service == service {
		r.Backend = number // the same server, whatever the port that it had
	}
	if !ok || !m.ExpectsReplies || r.Backend != number {
		return fmt.Errorf("replies of backend %d of service %d are taken for: %+v, %v, expected %v", number, service, r, ok, m.ExpectsReplies)
	}
	for table, runs := range m.Ports {
		for _, run := range runs {
			if run.Service == service && tables[table].IsValid() && m.VIPs[tables[table]].Index != r.VIP {
				return fmt.Errorf("replies of backend %d come from %+v, it serves %v", number, r, tables[table])
			}
		}
	}
	return nil
}

// open returns the VIPs that packets to a service may come to.
func (m *sim) open(service uint16) []netip.Addr {
	var out []netip.Addr
	for a, v := range m.VIPs {
		for _, table := range v.Tables {
			if slices.ContainsFunc(m.Ports[table], func(r portRun) bool { return r.Service == service }) {
				out = append(out, a)
			}
		}
	}
	return out
}

// The maps hold what was planned, after every Apply, and nothing when all is gone.
func TestApplyWalk(t *testing.T) {
	d := newDatapath(t)
	r := rand.New(rand.NewPCG(11, 12))
	check := func() {
		t.Helper()
		got, err := d.tables.readState()
		if err != nil {
			t.Fatal(err)
		}
		if diff := diffStates(d.state, got); diff != "" {
			t.Fatalf("tables (-planned +read):\n%s", diff)
		}
	}
	for i := range 60 {
		if i%7 == 6 {
			d.share = lb.PortRange{First: 1024, Last: uint16(2000 + r.IntN(5000))}
		}
		if err := d.Apply(randomSnapshot(r)); err != nil {
			t.Fatal(err)
		}
		check()
	}
	apply(t, d)
	check()

	for name, rest := range map[string]int{
		"vips": used(d.tables.arrays.Vips[:]), "services": used(d.tables.arrays.Services[:]),
		"pairs": rest[lbNatPair](t, d.objects.NatPairs), "pair keys": rest[lbPairKey](t, d.objects.NatKeys),
		"replies": rest[lbReply](t, d.objects.Replies),
		"backends": func() int {
			n := 0
			for i := range uint32(lbLimitsMAX_BACKENDS) {
				b := *d.tables.backend(i)
				b.Generation = 0 // it stays
				if b != (lbBackend{}) {
					n++
				}
			}
			return n
		}(),
		"ports": func() int {
			n := 0
			for i := range len(d.tables.ports.memory) / 8 {
				if d.tables.ports.load(i) != 0 {
					n++
				}
			}
			return n
		}(),
		"names": names(d),
	} {
		if rest != 0 {
			t.Errorf("%d entries are left in %s", rest, name)
		}
	}
	for n := range uint32(lbLimitsMAX_PAIRS) {
		var id uint32
		if d.objects.NatFlows.Lookup(n, &id) == nil || d.objects.NatRings.Lookup(n, &id) == nil {
			t.Errorf("the maps of pair %d are left", n)
		}
	}
}
