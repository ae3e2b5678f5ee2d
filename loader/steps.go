package loader

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

type setVIP struct {
	Address netip.Addr
	Entry   vipEntry
}

func (s setVIP) String() string {
	udp := ""
	if t := s.Entry.Tables[udpTable]; t != 0 {
		udp = fmt.Sprintf(" udp %d", t)
	}
	return fmt.Sprintf("set vip %v place %d ports %d%s source %v", s.Address, s.Entry.Index,
		s.Entry.Tables[tcpTable], udp, s.Entry.Source)
}

func (s setVIP) apply(t *tables) error {
	// Whether it is in use comes last.
	store(t.vip(s.Entry.Index), lbVip{
		Address: mapped(s.Address), Ports: s.Entry.Tables, Source: boolWord(s.Entry.Source),
		State: uint32(lbEntryENTRY_USED),
	})
	return nil
}

type clearVIP struct {
	Address netip.Addr
	Index   uint32
}

func (s clearVIP) String() string { return fmt.Sprintf("clear vip %v place %d", s.Address, s.Index) }

func (s clearVIP) apply(t *tables) error {
	return clearEntry(uint32(lbLimitsMAX_VIPS), s.Index,
		func(i uint32) (uint32, error) { return t.vip(i).State, nil },
		func(i, state uint32) error { store(t.vip(i), lbVip{State: state}); return nil })
}

type setPorts struct {
	Table uint32
	Run   portRun // service 0: none
}

func (s setPorts) String() string {
	if s.Run.First == s.Run.Last {
		return fmt.Sprintf("set port %d of table %d to service %d", s.Run.First, s.Table, s.Run.Service)
	}
	return fmt.Sprintf("set ports %d-%d of table %d to service %d", s.Run.First, s.Run.Last, s.Table, s.Run.Service)
}

func (s setPorts) apply(t *tables) error {
	for port := int(s.Run.First); port <= int(s.Run.Last); port++ {
		i, shift := portWord(s.Table, uint16(port)), port&3*16
		t.ports.store(i, t.ports.load(i)&^(0xffff<<shift)|uint64(s.Run.Service)<<shift)
	}
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
	at := t.service(s.Number)
	if at.Forward == 0 {
		// The number was another service's once.
		if err := clearCounters[lbServiceLosses](t.objects.Losses, uint32(s.Number)); err != nil {
			return err
		}
	}
	e := s.Entry
	store(at, lbService{
		Slots: e.First, SlotCount: e.Count, Forward: uint32(e.Forward), Flags: uint32(e.Flags),
		LimitRate: uint32(e.Limit.Rate), LimitBurst: uint32(e.Limit.Burst),
	})
	return nil
}

type slotChange struct {
	Slot uint32
	Word slot
}

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
		t.slots.store(int(s.First+c.Slot), uint64(c.Word))
	}
	return nil
}

type setBackend struct {
	Number uint32
	Entry  backendEntry // zero: none
	Breaks string       // where it still had connections, perhaps: why they break
}

func (s setBackend) String() string {
	switch {
	case s.Breaks != "":
		return fmt.Sprintf("clear backend %d: %s", s.Number, s.Breaks)
	case !s.Entry.Address.IsValid():
		return fmt.Sprintf("clear backend %d", s.Number)
	}
	state := "alive"
	if !s.Entry.Alive {
		state = "failed"
	}
	if s.Entry.Leaving != 0 {
		state += " leaving"
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
			NextHop: nextHopEntry(e.NextHop), Leaving: e.Leaving,
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
		Mtu:         uint16(min(h.MTU, math.MaxUint16)),
	}
	for i, v := range h.VLANs {
		e.Vlan[i] = bigEndian16(v)
	}
	return e
}

func nextHop(e lbNextHop) lb.NextHop {
	h := lb.NextHop{Interface: int(e.Interface), Destination: e.Destination, Tags: int(e.Vlans), MTU: int(e.Mtu)}
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

// apply makes a pair known that is prepared.
func (s addPair) apply(t *tables) error {
	return put(t.objects.NatKeys, s.Pair.Key, &lbPairKey{
		Address: mapped(s.Pair.Address.Addr()), Vip: s.Pair.VIP, Port: bigEndian16(s.Pair.Address.Port()),
		Protocol: uint16(s.Pair.Protocol), Pair: s.Number, State: uint32(lbEntryENTRY_USED),
	})
}

type sharePair struct {
	Number uint32
	Pair   pairEntry
}

func (s sharePair) String() string {
	return fmt.Sprintf("give pair %d ports %v", s.Number, s.Pair.Share)
}

func (s sharePair) apply(t *tables) error { return t.setShare(s.Number, s.Pair.Share, s.Pair.Protocol) }

type removePair struct {
	Number uint32
	Pair   pairEntry
}

func (s removePair) String() string {
	return fmt.Sprintf("remove pair %d from %v to %v", s.Number, s.Pair.Source, s.Pair.Address)
}

func (s removePair) apply(t *tables) error {
	keys := t.objects.NatKeys
	err := clearEntry(keys.MaxEntries(), s.Pair.Key,
		func(i uint32) (uint32, error) {
			var k lbPairKey
			if err := keys.Lookup(i, &k); err != nil {
				return 0, fmt.Errorf("read entry %d of %v: %w", i, keys, err)
			}
			return k.State, nil
		},
		func(i, state uint32) error { return put(keys, i, &lbPairKey{State: state}) })
	if err != nil {
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
func clearEntry(size, index uint32, read func(uint32) (uint32, error), write func(index, state uint32) error) error {
	after, err := read((index + 1) % size)
	if err != nil {
		return err
	}
	if after != uint32(lbEntryENTRY_EMPTY) {
		return write(index, uint32(lbEntryENTRY_GONE))
	}
	for {
		if err := write(index, uint32(lbEntryENTRY_EMPTY)); err != nil {
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
