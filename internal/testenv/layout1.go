package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// A Layout1 is the data plane of the version of sluice whose maps had layout 1: its
// own program over maps of its own, pinned the way it pinned them. What is in its
// tables is up to the test.
type Layout1 struct {
	Maps    map[string]*ebpf.Map
	Program *ebpf.Program
	// Of the inner maps of a pair.
	Flows, Ring *ebpf.MapSpec

	keys map[uint32]bool // places that are taken
}

// The entries of layout 1, where they are others than now.
type (
	Interface1 struct {
		Index uint32
		MAC   [6]byte
		_     [6]byte
	}
	VIP1 struct {
		Address                     [2]uint64
		Ports, UDP, Source, InState uint32
	}
	Service1 struct{ Slots, Count, Forward, _ uint32 }
	Hop1     struct {
		Destination [6]byte
		SourceLow   [2]byte
		SourceHigh  [4]byte
		Interface   uint32
		VLAN        [2]uint16
		VLANs, _    uint16
	}
	Backend1 struct {
		Address                            [2]uint64
		NextHop                            Hop1
		Port, Service                      uint16
		Generation, Choice, Choices, Alive uint32
		_                                  uint32
	}
	Key1 struct {
		Address        [2]uint64
		VIP            uint32
		Port, Protocol uint16
		Pair, InState  uint32
	}
	Pair1 struct {
		Source, Address              [2]uint64
		VIP                          uint32
		Port, Protocol, First, Last  uint16
		Handshakes                   uint32
		_                            [2]uint64
		Head, Tail, Embryonic, Given uint64
		Hand, ShareHand              uint32
		_                            [6]uint32
	}
)

// Forwarding modes of Service1, and numbers of layout 1.
const (
	NAT1, DSR1  = 1, 2
	first1      = 1024 // ports that a pair hands out: to 65535
	tick1       = 1 << 27
	buckets1    = 1 << 13 // as for 16,384 flows
	golden1     = 0x9e3779b97f4a7c15
	slots1      = 16 * 65537
	portGroups1 = 16384
)

// LoadLayout1 loads its compiled program. Flows live for so long without a packet.
func LoadLayout1(object string, timeout time.Duration) (*Layout1, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	spec.Maps["slots"].MaxEntries = slots1
	spec.Maps["nat_buckets"].MaxEntries = buckets1
	const seed = uint64(0x0123456789abcdef)
	var timeouts [8]uint32
	for state := 1; state <= 5; state++ {
		timeouts[state] = uint32(timeout / tick1)
	}
	for name, value := range map[string]any{"nat_seed": seed, "nat_bucket_mask": uint32(buckets1 - 1), "nat_timeout": timeouts} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s of the program: %w", name, err)
		}
	}
	l := &Layout1{
		Maps: map[string]*ebpf.Map{}, keys: map[uint32]bool{},
		Flows: spec.Maps["nat_flows"].InnerMap.Copy(), Ring: spec.Maps["nat_rings"].InnerMap.Copy(),
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	defer c.Close()
	for name := range c.Maps {
		if !strings.HasPrefix(name, ".") {
			l.Maps[name] = c.DetachMap(name)
		}
	}
	l.Program = c.DetachProgram("sluice")
	return l, l.Put("meta", 0, struct {
		Layout, Mask uint32
		Seed         uint64
	}{1, buckets1 - 1, seed})
}

// Close lets go of it. What is pinned goes on.
func (l *Layout1) Close() error {
	errs := []error{l.Program.Close()}
	for _, m := range l.Maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Put writes an entry of a map.
func (l *Layout1) Put(name string, index uint32, value any) error {
	if err := l.Maps[name].Put(index, value); err != nil {
		return fmt.Errorf("write entry %d of %s: %w", index, name, err)
	}
	return nil
}

// Pin pins everything.
func (l *Layout1) Pin(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the pin directory: %w", err)
	}
	for name, m := range l.Maps {
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	return l.Program.Pin(filepath.Join(dir, "program"))
}

// Attach puts the program on an interface of this namespace and pins the link.
func (l *Layout1) Attach(dir, name string) error {
	nic, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	x, err := link.AttachXDP(link.XDPOptions{Program: l.Program, Interface: nic.Index, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	if err := x.Pin(filepath.Join(dir, "link-"+name)); err != nil {
		return errors.Join(err, x.Close())
	}
	return errors.Join(l.Put("interfaces", uint32(nic.Index), Interface1{Index: uint32(nic.Index), MAC: [6]byte(nic.HardwareAddr)}), x.Close())
}

// Mapped is how addresses are held.
func Mapped(a netip.Addr) [2]uint64 {
	b := a.As16()
	return [2]uint64{binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])}
}

// Port1 is how ports are held.
func Port1(port uint16) uint16 { return port<<8 | port>>8 }

// VIPPlace is where the program begins to look for an address.
func VIPPlace(a netip.Addr) uint32 { return uint32(Mapped(a)[1] * golden1 >> (64 - 12)) }

// AddPort makes a port of a port table a service's.
func (l *Layout1) AddPort(table uint32, port, service uint16) error {
	index := table*portGroups1 + uint32(port)/4
	var word uint64
	if err := l.Maps["ports"].Lookup(index, &word); err != nil {
		return fmt.Errorf("read a port table: %w", err)
	}
	return l.Put("ports", index, word|uint64(service)<<(port&3*16))
}

// AddPair makes a pair of a source address and a backend, with all its ports to be
// had in random order.
func (l *Layout1) AddPair(number uint32, source netip.Addr, vip uint32, backend netip.AddrPort) error {
	address, port := Mapped(backend.Addr()), Port1(backend.Port())
	place := uint32((address[1] + uint64(port) + uint64(vip)<<16) * golden1 >> (64 - 15))
	for l.keys[place] {
		place++
	}
	l.keys[place] = true
	if err := l.Put("nat_keys", place, Key1{Address: address, VIP: vip, Port: port, Protocol: ProtocolTCP, Pair: number, InState: 1}); err != nil {
		return err
	}
	flows, err := ebpf.NewMap(l.Flows)
	if err != nil {
		return fmt.Errorf("make the flow table: %w", err)
	}
	defer flows.Close()
	ring, err := ebpf.NewMap(l.Ring)
	if err != nil {
		return fmt.Errorf("make the port table: %w", err)
	}
	defer ring.Close()
	ports := rand.Perm(65536 - first1)
	const queued = 4
	entry := make([]byte, 64)
	binary.NativeEndian.PutUint32(entry[28:], queued) // flags
	for i, offset := range ports {
		p := uint32(first1 + offset)
		if err := errors.Join(ring.Put(uint32(i), uint64(i+1)<<16|uint64(p)), flows.Put(p, entry)); err != nil {
			return fmt.Errorf("hand out port %d: %w", p, err)
		}
	}
	return errors.Join(
		l.Put("nat_flows", number, uint32(flows.FD())), l.Put("nat_rings", number, uint32(ring.FD())),
		l.Put("nat_pairs", number, Pair1{
			Source: Mapped(source), Address: address, VIP: vip, Port: port, Protocol: ProtocolTCP,
			First: first1, Last: 65535, Handshakes: 1<<14 - 1, Tail: uint64(len(ports)),
		}))
}

// SetPinnedLayout makes the maps that are pinned in a directory say that they are of
// another layout.
func SetPinnedLayout(dir string, layout uint32) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "meta"), nil)
	if err != nil {
		return fmt.Errorf("open the pinned map: %w", err)
	}
	defer m.Close()
	entry, err := m.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("read the layout: %w", err)
	}
	binary.NativeEndian.PutUint32(entry, layout)
	return m.Put(uint32(0), entry)
}
