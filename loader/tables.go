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

// kernelMaps are the maps of a data plane: those that the program looks up, and
// its one variable.
type kernelMaps struct {
	lbMaps
	Tables *ebpf.Map `ebpf:".bss"`
}

func (m *kernelMaps) Close() error { return errors.Join(m.lbMaps.Close(), m.Tables.Close()) }

// store writes v in place of what is at p word by word, the first one first, so
// that the program never sees half of a word. A T is a whole number of words.
func store[T any](p *T, v T) {
	to, from := wordsOf(p), wordsOf(&v)
	for i := range to {
		storeWord(&to[i], from[i])
	}
}

func storeWord(p *uint64, v uint64) {
	if atomic.LoadUint64(p) != v {
		atomic.StoreUint64(p, v)
	}
}

func wordsOf[T any](p *T) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(p)), unsafe.Sizeof(*p)/8)
}

// tables are the maps of a data plane as steps write them.
type tables struct {
	objects kernelMaps
	shared  words     // the memory of arrays
	arrays  *lbArrays // the same
	ports   words     // of port tables
	slots   words
	buckets words
	pairs   words
	beats   words // of fences

	listening map[lb.Protocol]map[uint16]bool // by the node's sockets, as known in one Apply
	reached   func(step string)               // of the ports of a pair: a test's
	ends      func(*portQueue)                // told of a pair that is gone, with its flows; nil: nobody asks
	dropped   func(pair uint32)               // the same, of its number
}

func openTables(m kernelMaps) (*tables, error) {
	t := &tables{objects: m, listening: map[lb.Protocol]map[uint16]bool{}}
	for _, w := range []struct {
		into *words
		from *ebpf.Map
	}{{&t.shared, m.Tables}, {&t.ports, m.Ports}, {&t.slots, m.Slots}, {&t.buckets, m.NatBuckets}, {&t.pairs, m.NatPairs}, {&t.beats, m.Fences}} {
		var err error
		if *w.into, err = mapWords(w.from); err != nil {
			return nil, errors.Join(err, t.close())
		}
	}
	t.arrays = (*lbArrays)(unsafe.Pointer(&t.shared.memory[0]))
	return t, nil
}

func (t *tables) close() error {
	return errors.Join(t.shared.close(), t.ports.close(), t.slots.close(), t.buckets.close(), t.pairs.close(), t.beats.close())
}

// The entries of arrays, by number; of a NIC, by ifindex.
func (t *tables) nic(n int) *lbInterface {
	return (*lbInterface)(unsafe.Pointer(&t.arrays.Interfaces[n%int(lbLimitsMAX_INTERFACES)]))
}
func (t *tables) way(n int) *lbWay {
	return (*lbWay)(unsafe.Pointer(&t.arrays.Ways[n%int(lbLimitsMAX_INTERFACES)]))
}
func (t *tables) fence(n uint32) *lbFence {
	return (*lbFence)(unsafe.Pointer(&t.beats.memory[uintptr(n)*unsafe.Sizeof(lbFence{})]))
}
func (t *tables) vip(n uint32) *lbVip { return (*lbVip)(unsafe.Pointer(&t.arrays.Vips[n])) }
func (t *tables) service(n uint16) *lbService {
	return (*lbService)(unsafe.Pointer(&t.arrays.Services[n]))
}
func (t *tables) backend(n uint32) *lbBackend {
	return (*lbBackend)(unsafe.Pointer(&t.arrays.Backends[n]))
}

// storeBackend writes a backend word by word; a new next hop's MAC address is
// one word and so never half old. The last word says whether the backend is
// alive: it comes last for one that is, and first for one that is not.
func (t *tables) storeBackend(n uint32, b lbBackend) {
	at := t.backend(n)
	if b.Alive == 0 {
		to, from := wordsOf(at), wordsOf(&b)
		storeWord(&to[len(to)-1], from[len(from)-1])
	}
	store(at, b)
}

// fresh tells, once, whether backend n was not in use before.
func (t *tables) fresh(n uint32) bool {
	return t.backend(n).Address == [2]uint64{}
}

// readState reads back what the maps hold.
func (t *tables) readState() (*State, error) {
	s := newState()
	t.readVIPs(s)
	s.Nodes = t.arrays.Nodes
	if err := t.readServices(s); err != nil {
		return nil, err
	}
	if err := t.readRules(s); err != nil {
		return nil, err
	}
	if err := t.readPairs(s); err != nil {
		return nil, err
	}
	if err := t.readReplies(s); err != nil {
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
			Leaving:    b.Leaving,
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

func (t *tables) readVIPs(s *State) {
	for n := range t.arrays.Vips {
		v := t.vip(uint32(n))
		if v.State != uint32(lbEntryENTRY_USED) {
			continue
		}
		s.VIPs[unmapped(v.Address)] = vipEntry{Index: uint32(n), Tables: v.Ports, Source: v.Source != 0}
		for _, table := range v.Ports {
			if runs := t.readPorts(table); len(runs) > 0 {
				s.Ports[table] = runs
			}
		}
	}
}

// readPorts reads a port table; table 0 is none.
func (t *tables) readPorts(table uint32) []portRun {
	var runs []portRun
	if table == 0 {
		return nil
	}
	for port := 0; port < int(lbLimitsPORTS); port++ {
		if port%4 == 0 && t.ports.load(portWord(table, uint16(port))) == 0 {
			port += 3
			continue
		}
		service := t.portService(table, uint16(port))
		if service == 0 {
			continue
		}
		if n := len(runs); n > 0 && int(runs[n-1].Last)+1 == port && runs[n-1].Service == service {
			runs[n-1].Last = uint16(port)
		} else {
			runs = append(runs, portRun{uint16(port), uint16(port), service})
		}
	}
	return runs
}

// portWord is the word of the port tables that holds a port, and three others.
func portWord(table uint32, port uint16) int {
	return int(table)*int(lbLimitsPORTS)/4 + int(port>>2)
}

func (t *tables) portService(table uint32, port uint16) uint16 {
	return uint16(t.ports.load(portWord(table, port)) >> (port & 3 * 16))
}

func (t *tables) readServices(s *State) error {
	for n := range t.arrays.Services {
		service := t.service(uint16(n))
		if service.Forward == 0 {
			continue
		}
		e := serviceEntry{
			First: service.Slots, Count: service.SlotCount, Forward: lb.Forward(service.Forward),
			Flags: lbServiceFlags(service.Flags), Limit: lb.SourceLimit{Rate: int(service.LimitRate), Burst: int(service.LimitBurst)},
		}
		if uint64(e.First)+uint64(e.Count) > uint64(t.objects.Slots.MaxEntries()) {
			return fmt.Errorf("read service %d: its slots lie outside of the table", n)
		}
		words := make([]slot, e.Count)
		for i := range words {
			words[i] = slot(t.slots.load(int(e.First) + i))
		}
		s.Services[uint16(n)] = e
		s.Slots[uint16(n)] = words
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
			Source:   unmapped(pair.Source),
			Address:  netip.AddrPortFrom(unmapped(key.Address), bigEndian16(key.Port)),
			Protocol: lb.Protocol(key.Protocol),
			VIP:      key.Vip,
			Key:      uint32(k),
			Share:    lb.PortRange{First: pair.FirstPort, Last: pair.LastPort},
			Filling:  pair.Filling != 0,
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
