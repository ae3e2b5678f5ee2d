package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// words is a map's memory as 64-bit words, each of which is read and written
// whole: the XDP program never sees half of one.
type words struct{ memory []byte }

func mapWords(m *ebpf.Map) (words, error) {
	page := uint64(unix.Getpagesize())
	size := uint64(m.MaxEntries()) * uint64((m.ValueSize()+7)&^7)
	memory, err := unix.Mmap(m.FD(), 0, int((size+page-1)&^(page-1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return words{}, fmt.Errorf("map the memory of %v: %w", m, err)
	}
	return words{memory}, nil
}

func (w words) at(i int) *uint64               { return (*uint64)(unsafe.Pointer(&w.memory[i*8])) }
func (w words) load(i int) uint64              { return atomic.LoadUint64(w.at(i)) }
func (w words) store(i int, v uint64)          { atomic.StoreUint64(w.at(i), v) }
func (w words) swap(i int, old, v uint64) bool { return atomic.CompareAndSwapUint64(w.at(i), old, v) }
func (w words) close() error {
	if w.memory == nil {
		return nil
	}
	return unix.Munmap(w.memory)
}

// tables are the maps of a data plane as steps write them.
type tables struct {
	objects lbMaps
	ports   words
	slots   words
	backs   words
	buckets words
	pairs   words
}

func openTables(m lbMaps) (*tables, error) {
	t := &tables{objects: m}
	for _, w := range []struct {
		into *words
		from *ebpf.Map
	}{{&t.ports, m.Ports}, {&t.slots, m.Slots}, {&t.backs, m.Backends}, {&t.buckets, m.NatBuckets}, {&t.pairs, m.NatPairs}} {
		var err error
		if *w.into, err = mapWords(w.from); err != nil {
			return nil, errors.Join(err, t.close())
		}
	}
	return t, nil
}

func (t *tables) close() error {
	return errors.Join(t.ports.close(), t.slots.close(), t.backs.close(), t.buckets.close(), t.pairs.close())
}

const backendWords = int(unsafe.Sizeof(lbBackend{}) / 8)

func (t *tables) backend(n uint32) lbBackend {
	var raw [backendWords]uint64
	for i := range raw {
		raw[i] = t.backs.load(int(n)*backendWords + i)
	}
	return *(*lbBackend)(unsafe.Pointer(&raw))
}

// storeBackend writes a backend word by word; a new next hop's MAC address is
// one word and so never half old. The last word says whether the backend is
// alive: it comes last for one that is, and first for one that is not.
func (t *tables) storeBackend(n uint32, b lbBackend) {
	raw := *(*[backendWords]uint64)(unsafe.Pointer(&b))
	store := func(i int) {
		if at := int(n)*backendWords + i; t.backs.load(at) != raw[i] {
			t.backs.store(at, raw[i])
		}
	}
	if b.Alive == 0 {
		store(backendWords - 1)
	}
	for i := range raw {
		store(i)
	}
}

// fresh tells, once, whether backend n was not in use before.
func (t *tables) fresh(n uint32) bool {
	return t.backend(n).Address == [2]uint64{}
}

// readState reads back what the maps hold.
func (t *tables) readState() (*State, error) {
	s := newState()
	if err := t.readVIPs(s); err != nil {
		return nil, err
	}
	if err := t.readServices(s); err != nil {
		return nil, err
	}
	if err := t.readPairs(s); err != nil {
		return nil, err
	}
	choices, err := readAll[uint32](t.objects.NatChoices)
	if err != nil {
		return nil, err
	}
	for n := range uint32(lbLimitsMAX_BACKENDS) {
		b := t.backend(n)
		s.generation = max(s.generation, b.Generation)
		if b.Address == [2]uint64{} {
			continue
		}
		if uint64(b.Choice)+uint64(b.Choices) > uint64(len(choices)) {
			return nil, fmt.Errorf("read backend %d: its pairs lie outside of the table", n)
		}
		s.Backends[n] = backendEntry{
			Service:    b.Service,
			Address:    netip.AddrPortFrom(unmapped(b.Address), bigEndian16(b.Port)),
			NextHop:    nextHop(b.NextHop),
			Generation: b.Generation,
			Choice:     b.Choice,
			Pairs:      slices.Clone(choices[b.Choice : b.Choice+b.Choices]),
			Alive:      b.Alive != 0,
		}
	}
	return s, nil
}

// readAll reads a whole array in one call.
func readAll[T any](m *ebpf.Map) ([]T, error) {
	keys, values := make([]uint32, m.MaxEntries()), make([]T, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read %v: %w", m, err)
	}
	if n != len(keys) {
		return nil, fmt.Errorf("read %v: it gave %d of %d entries", m, n, len(keys))
	}
	return values, nil
}

func (t *tables) readVIPs(s *State) error {
	vips, err := readAll[lbVip](t.objects.Vips)
	if err != nil {
		return err
	}
	for n, v := range vips {
		if v.State != uint32(lbEntryENTRY_USED) {
			continue
		}
		s.VIPs[unmapped(v.Address)] = vipEntry{Index: uint32(n), Table: v.TcpPorts, Source: v.Source != 0}
		if v.TcpPorts == 0 {
			continue
		}
		for g := range int(lbLimitsPORT_GROUPS) {
			word := t.ports.load(int(v.TcpPorts)*int(lbLimitsPORT_GROUPS) + g)
			for i := 0; word != 0; i, word = i+1, word>>16 {
				if service := uint16(word); service != 0 {
					s.Ports[portKey{v.TcpPorts, uint16(g<<2 + i)}] = service
				}
			}
		}
	}
	return nil
}

func (t *tables) readServices(s *State) error {
	services, err := readAll[lbService](t.objects.Services)
	if err != nil {
		return err
	}
	for n, service := range services {
		if service.Forward == 0 {
			continue
		}
		e := serviceEntry{service.Slots, service.SlotCount, lb.Forward(service.Forward)}
		if uint64(e.First)+uint64(e.Count) > uint64(t.objects.Slots.MaxEntries()) {
			return fmt.Errorf("read service %d: its slots lie outside of the table", n)
		}
		owners := make([]uint32, e.Count)
		for i := range owners {
			owners[i] = uint32(t.slots.load(int(e.First)+i) & (1<<lbSlotBitsSLOT_OWNER_BITS - 1))
		}
		s.Services[uint16(n)] = e
		s.Slots[uint16(n)] = owners
	}
	return nil
}

func (t *tables) readPairs(s *State) error {
	keys, err := readAll[lbPairKey](t.objects.NatKeys)
	if err != nil {
		return err
	}
	for k, key := range keys {
		if key.State != uint32(lbEntryENTRY_USED) {
			continue
		}
		var pair lbNatPair
		if err := t.objects.NatPairs.Lookup(key.Pair, &pair); err != nil {
			return fmt.Errorf("read pair %d: %w", key.Pair, err)
		}
		s.Pairs[key.Pair] = pairEntry{
			Source:  unmapped(pair.Source),
			Address: netip.AddrPortFrom(unmapped(key.Address), bigEndian16(key.Port)),
			VIP:     key.Vip,
			Key:     uint32(k),
			Share:   lb.PortRange{First: pair.FirstPort, Last: pair.LastPort},
		}
	}
	return nil
}

// byService lists the backends of each service, for reports.
func (s *State) byService() map[uint16][]uint32 {
	by := map[uint16][]uint32{}
	for _, n := range slices.Sorted(maps.Keys(s.Backends)) {
		b := s.Backends[n]
		by[b.Service] = append(by[b.Service], n)
	}
	return by
}
