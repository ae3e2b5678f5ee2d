package loader

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

type setVIP struct {
	Address netip.Addr
	Entry   vipEntry
}

func (s setVIP) String() string {
	return fmt.Sprintf("set vip %v place %d ports %d source %v", s.Address, s.Entry.Index, s.Entry.Table, s.Entry.Source)
}

func (s setVIP) apply(t *tables) error {
	v := lbVip{
		Address:  mapped(s.Address),
		TcpPorts: s.Entry.Table,
		Source:   boolWord(s.Entry.Source),
		State:    uint32(lbEntryENTRY_USED),
	}
	return put(t.objects.Vips, s.Entry.Index, &v)
}

type clearVIP struct {
	Address netip.Addr
	Index   uint32
}

func (s clearVIP) String() string { return fmt.Sprintf("clear vip %v place %d", s.Address, s.Index) }

func (s clearVIP) apply(t *tables) error {
	return clearEntry(t.objects.Vips, s.Index, func(v *lbVip) *uint32 { return &v.State })
}

type setPort struct {
	Port    portKey
	Service uint16 // 0: none
}

func (s setPort) String() string {
	return fmt.Sprintf("set port %d of table %d to service %d", s.Port.Port, s.Port.Table, s.Service)
}

func (s setPort) apply(t *tables) error {
	i := int(s.Port.Table)*int(lbLimitsPORT_GROUPS) + int(s.Port.Port>>2)
	shift := s.Port.Port & 3 * 16
	t.ports.store(i, t.ports.load(i)&^(0xffff<<shift)|uint64(s.Service)<<shift)
	return nil
}

type setService struct {
	Number uint16
	Entry  serviceEntry // zero: none
}

func (s setService) String() string {
	if s.Entry.Forward == 0 {
		return fmt.Sprintf("clear service %d", s.Number)
	}
	return fmt.Sprintf("set service %d %v slots %d+%d", s.Number, s.Entry.Forward, s.Entry.First, s.Entry.Count)
}

func (s setService) apply(t *tables) error {
	var old lbService
	if err := t.objects.Services.Lookup(uint32(s.Number), &old); err != nil {
		return fmt.Errorf("read service %d: %w", s.Number, err)
	}
	if old.Forward == 0 {
		// The number was another service's once.
		if err := clearCounters[lbServiceLosses](t.objects.Losses, uint32(s.Number)); err != nil {
			return err
		}
	}
	e := lbService{Slots: s.Entry.First, SlotCount: s.Entry.Count, Forward: uint32(s.Entry.Forward)}
	return put(t.objects.Services, uint32(s.Number), &e)
}

type slotChange struct{ Slot, Owner uint32 }

type setSlots struct {
	Service uint16
	First   uint32
	Changes []slotChange
}

func (s setSlots) String() string {
	return fmt.Sprintf("set %d slots of service %d", len(s.Changes), s.Service)
}

func (s setSlots) apply(t *tables) error {
	for _, c := range s.Changes {
		t.slots.store(int(s.First+c.Slot), uint64(c.Owner))
	}
	return nil
}

type setBackend struct {
	Number uint32
	Entry  backendEntry // zero: none
}

func (s setBackend) String() string {
	if !s.Entry.Address.IsValid() {
		return fmt.Sprintf("clear backend %d", s.Number)
	}
	state := "alive"
	if !s.Entry.Alive {
		state = "failed"
	}
	return fmt.Sprintf("set backend %d %v of service %d %s generation %d", s.Number, s.Entry.Address,
		s.Entry.Service, state, s.Entry.Generation)
}

func (s setBackend) apply(t *tables) error {
	var b lbBackend
	if s.Entry.Address.IsValid() {
		e := s.Entry
		b = lbBackend{
			Address: mapped(e.Address.Addr()), Port: bigEndian16(e.Address.Port()), Service: e.Service,
			Generation: e.Generation, Choice: e.Choice, Choices: uint32(len(e.Pairs)), Alive: boolWord(e.Alive),
			NextHop: nextHopEntry(e.NextHop),
		}
		if t.fresh(s.Number) {
			if err := clearCounters[lbCounters](t.objects.Traffic, s.Number); err != nil {
				return err
			}
		}
	} else {
		// The generation stays: it tells a later daemon where to go on counting.
		b.Generation = t.backend(s.Number).Generation
	}
	t.storeBackend(s.Number, b)
	return nil
}

func nextHopEntry(h lb.NextHop) lbNextHop {
	e := lbNextHop{
		Destination: h.Destination,
		SourceLow:   [2]uint8(h.Source[:2]),
		SourceHigh:  [4]uint8(h.Source[2:]),
		Interface:   uint32(h.Interface),
		Vlans:       uint16(h.Tags),
	}
	for i, v := range h.VLANs {
		e.Vlan[i] = bigEndian16(v)
	}
	return e
}

func nextHop(e lbNextHop) lb.NextHop {
	h := lb.NextHop{Interface: int(e.Interface), Destination: e.Destination, Tags: int(e.Vlans)}
	copy(h.Source[:2], e.SourceLow[:])
	copy(h.Source[2:], e.SourceHigh[:])
	for i, v := range e.Vlan {
		h.VLANs[i] = bigEndian16(v)
	}
	return h
}

type setChoices struct {
	First uint32
	Pairs []uint32
}

func (s setChoices) String() string {
	return fmt.Sprintf("set choices %d to pairs %v", s.First, s.Pairs)
}

func (s setChoices) apply(t *tables) error {
	for i, pair := range s.Pairs {
		if err := put(t.objects.NatChoices, s.First+uint32(i), pair); err != nil {
			return err
		}
	}
	return nil
}

type addPair struct {
	Number uint32
	Pair   pairEntry
}

func (s addPair) String() string {
	return fmt.Sprintf("add pair %d from %v to %v ports %v", s.Number, s.Pair.Source, s.Pair.Address, s.Pair.Share)
}

func (s addPair) apply(t *tables) error {
	if err := t.makePair(s.Number, s.Pair); err != nil {
		return err
	}
	return put(t.objects.NatKeys, s.Pair.Key, &lbPairKey{
		Address: mapped(s.Pair.Address.Addr()), Vip: s.Pair.VIP, Port: bigEndian16(s.Pair.Address.Port()),
		Protocol: uint16(lb.TCP), Pair: s.Number, State: uint32(lbEntryENTRY_USED),
	})
}

type sharePair struct {
	Number uint32
	Pair   pairEntry
}

func (s sharePair) String() string {
	return fmt.Sprintf("give pair %d ports %v", s.Number, s.Pair.Share)
}

func (s sharePair) apply(t *tables) error { return t.setShare(s.Number, s.Pair.Share) }

type removePair struct {
	Number uint32
	Pair   pairEntry
}

func (s removePair) String() string {
	return fmt.Sprintf("remove pair %d from %v to %v", s.Number, s.Pair.Source, s.Pair.Address)
}

func (s removePair) apply(t *tables) error {
	if err := clearEntry(t.objects.NatKeys, s.Pair.Key, func(k *lbPairKey) *uint32 { return &k.State }); err != nil {
		return err
	}
	return t.dropPair(s.Number)
}

func boolWord(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// clearEntry takes an entry out of a table with open addressing. It leaves ENTRY_GONE
// behind only where a later entry may have been placed past it: what is past the
// last entry of a run is empty, so that a search ends there.
func clearEntry[T any](m *ebpf.Map, index uint32, state func(*T) *uint32) error {
	size := m.MaxEntries()
	read := func(i uint32) (uint32, error) {
		var e T
		if err := m.Lookup(i, &e); err != nil {
			return 0, fmt.Errorf("read entry %d of %v: %w", i, m, err)
		}
		return *state(&e), nil
	}
	after, err := read((index + 1) % size)
	if err != nil {
		return err
	}
	var e T
	*state(&e) = uint32(lbEntryENTRY_GONE)
	if after != uint32(lbEntryENTRY_EMPTY) {
		return put(m, index, &e)
	}
	*state(&e) = uint32(lbEntryENTRY_EMPTY)
	for {
		if err := put(m, index, &e); err != nil {
			return err
		}
		index = (index + size - 1) % size
		if before, err := read(index); err != nil || before != uint32(lbEntryENTRY_GONE) {
			return err
		}
	}
}

// clearCounters sets an entry of a per-CPU map to zero.
func clearCounters[T any](m *ebpf.Map, index uint32) error {
	if err := m.Put(index, make([]T, ebpf.MustPossibleCPU())); err != nil {
		return fmt.Errorf("clear the counters of entry %d of %v: %w", index, m, err)
	}
	return nil
}

func put(m *ebpf.Map, index uint32, value any) error {
	if err := m.Put(index, value); err != nil {
		return fmt.Errorf("write entry %d of %v: %w", index, m, err)
	}
	return nil
}
