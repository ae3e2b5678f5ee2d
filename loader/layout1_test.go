package loader

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The entries of layout 1, where they are others than now.
type (
	interface1 struct {
		Index uint32
		MAC   [6]byte
		_     [6]byte
	}
	vip1 struct {
		Address                 [2]uint64
		TCP, UDP, Source, State uint32
	}
	service1 struct{ Slots, Count, Forward, _ uint32 }
	hop1     struct {
		Destination [6]byte
		SourceLow   [2]byte
		SourceHigh  [4]byte
		Interface   uint32
		VLAN        [2]uint16
		VLANs, _    uint16
	}
	backend1 struct {
		Address                            [2]uint64
		NextHop                            hop1
		Port, Service                      uint16
		Generation, Choice, Choices, Alive uint32
		_                                  uint32
	}
	pair1 struct {
		Source, Address              [2]uint64
		VIP                          uint32
		Port, Protocol, First, Last  uint16
		Handshakes                   uint32
		_                            [2]uint64
		Head, Tail, Embryonic, Given uint64
		Hand, ShareHand              uint32
		_                            [6]uint32
	}
	losses1 struct{ NoBackend, NoPort, FlowsFull, EarlyReuse, Evicted uint64 }
)

// A layout1 is the data plane of the version that had layout 1: its own program over
// maps of its own, pinned the way it pinned them.
type layout1 struct {
	*node
	spec  *ebpf.CollectionSpec
	maps  map[string]*ebpf.Map
	old   *ebpf.Program
	run   *Datapath // to send packets through its program
	state *State    // what its tables hold
}

// patience is how long flows live: a slow machine must not end them.
var patience = map[lbNatState]time.Duration{
	lbNatStateNAT_SYN_SENT: time.Hour, lbNatStateNAT_SYN_RECEIVED: time.Hour, lbNatStateNAT_ESTABLISHED: time.Hour,
	lbNatStateNAT_CLOSING: time.Hour, lbNatStateNAT_CLOSED: time.Hour,
}

const seed1 = 0x0123456789abcdef

// newLayout1 makes one with the services and attaches it.
func newLayout1(n *node, services []lb.ServiceState, interfaces ...string) *layout1 {
	n.Helper()
	l := &layout1{node: n, maps: map[string]*ebpf.Map{}}
	spec, err := ebpf.LoadCollectionSpec("testdata/lb_layout1.o")
	if err != nil {
		n.Fatal(err)
	}
	const buckets = 1 << 13
	spec.Maps["slots"].MaxEntries = 16 * lb.DefaultTableSize
	spec.Maps["nat_buckets"].MaxEntries = buckets
	var timeouts [8]uint32
	for state, d := range patience {
		timeouts[state] = uint32(d / tick)
	}
	for name, value := range map[string]any{
		"nat_seed": uint64(seed1), "nat_bucket_mask": uint32(buckets - 1), "nat_timeout": timeouts,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			n.Fatal(err)
		}
	}
	l.spec = spec.Copy()
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(c.Close)
	for name, m := range c.Maps {
		if pinnable(name) {
			l.maps[name] = m
		}
	}
	l.old = c.Programs["sluice"]
	l.run = &Datapath{program: l.old}
	l.put("meta", 0, struct {
		Layout, Mask uint32
		Seed         uint64
	}{1, buckets - 1, seed1})
	l.put("interfaces", nicIndex, interface1{Index: nicIndex, MAC: nicMAC})
	l.fill(services)
	l.pin()
	err = n.host.Do(func() error {
		for _, name := range interfaces {
			nic, err := netInterface(name)
			if err != nil {
				return err
			}
			x, err := link.AttachXDP(link.XDPOptions{Program: l.old, Interface: nic.Index, Flags: link.XDPDriverMode})
			if err != nil {
				return err
			}
			if err := x.Pin(linkPath(n.host.PinDir, name)); err != nil {
				return err
			}
			l.put("interfaces", uint32(nic.Index), interface1{Index: uint32(nic.Index), MAC: [6]byte(nic.HardwareAddr)})
			if err := x.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
	return l
}

func (l *layout1) put(name string, index uint32, value any) {
	l.Helper()
	if err := l.maps[name].Put(index, value); err != nil {
		l.Fatalf("write entry %d of %s: %v", index, name, err)
	}
}

// pin pins everything.
func (l *layout1) pin() {
	l.Helper()
	if err := os.MkdirAll(l.host.PinDir, 0o700); err != nil {
		l.Fatal(err)
	}
	for name, m := range l.maps {
		if err := m.Pin(filepath.Join(l.host.PinDir, name)); err != nil {
			l.Fatal(err)
		}
	}
	if err := l.old.Pin(filepath.Join(l.host.PinDir, programPin)); err != nil {
		l.Fatal(err)
	}
}

// fill writes the tables, the numbers and places being those that a plan gives.
func (l *layout1) fill(services []lb.ServiceState) {
	l.Helper()
	lim := limits{slots: l.maps["slots"].MaxEntries(), share: allPorts}
	_, s, err := plan(newState(), lb.Snapshot{Services: services}, lim, (&tableCache{}).table)
	if err != nil {
		l.Fatal(err)
	}
	l.state = s
	for a, v := range s.VIPs {
		l.put("vips", v.Index, vip1{Address: mapped(a), TCP: v.Tables[0], UDP: v.Tables[1], Source: boolWord(v.Source), State: 1})
		for _, r := range s.Ports[v.Tables[0]] {
			for port := int(r.First); port <= int(r.Last); port++ {
				index := v.Tables[0]*uint32(lbLimitsPORTS)/4 + uint32(port)/4
				var word uint64
				if err := l.maps["ports"].Lookup(index, &word); err != nil {
					l.Fatal(err)
				}
				l.put("ports", index, word|uint64(r.Service)<<(port&3*16))
			}
		}
	}
	slots, err := mapWords(l.maps["slots"])
	if err != nil {
		l.Fatal(err)
	}
	defer slots.close()
	for n, e := range s.Services {
		l.put("services", uint32(n), service1{Slots: e.First, Count: e.Count, Forward: uint32(e.Forward)})
		for i, w := range s.Slots[n] {
			slots.store(int(e.First)+i, uint64(w.owner()))
		}
	}
	for n, b := range s.Backends {
		// Generations as they are after a few failures.
		b.Generation += 40
		s.Backends[n] = b
		s.generation = max(s.generation, b.Generation)
		hop := nextHopEntry(b.NextHop)
		l.put("backends", n, backend1{
			Address: mapped(b.Address.Addr()), Port: bigEndian16(b.Address.Port()), Service: b.Service,
			NextHop: hop1{
				Destination: hop.Destination, SourceLow: hop.SourceLow, SourceHigh: hop.SourceHigh,
				Interface: hop.Interface, VLAN: hop.Vlan, VLANs: hop.Vlans,
			},
			Generation: b.Generation, Choice: b.Choice, Choices: uint32(len(b.Pairs)), Alive: boolWord(b.Alive),
		})
		for i, pair := range b.Pairs {
			l.put("nat_choices", b.Choice+uint32(i), pair)
		}
	}
	taken := map[uint32]bool{}
	for n, p := range s.Pairs {
		l.fillPair(n, p, taken)
	}
}

// fillPair makes a pair with all its ports. The place of its key did not depend on
// the protocol.
func (l *layout1) fillPair(n uint32, p pairEntry, taken map[uint32]bool) {
	l.Helper()
	at, err := place("pair", pairHash(p.Address, p.VIP, 0), uint32(lbLimitsMAX_PAIR_KEYS), func(i uint32) bool { return taken[i] })
	if err != nil {
		l.Fatal(err)
	}
	taken[at] = true
	l.put("nat_keys", at, struct {
		Address        [2]uint64
		VIP            uint32
		Port, Protocol uint16
		Pair, State    uint32
	}{mapped(p.Address.Addr()), p.VIP, bigEndian16(p.Address.Port()), 6, n, 1})
	inner := map[string]*ebpf.Map{}
	for _, name := range []string{"nat_flows", "nat_rings"} {
		m, err := ebpf.NewMap(l.spec.Maps[name].InnerMap)
		if err != nil {
			l.Fatal(err)
		}
		l.put(name, n, uint32(m.FD()))
		inner[name] = m
		defer m.Close()
	}
	ring, err := mapWords(inner["nat_rings"])
	if err != nil {
		l.Fatal(err)
	}
	defer ring.close()
	flows, err := mapWords(inner["nat_flows"])
	if err != nil {
		l.Fatal(err)
	}
	defer flows.close()
	ports := rand.Perm(int(allPorts.Last-allPorts.First) + 1)
	for i, offset := range ports {
		port := int(allPorts.First) + offset
		ring.store(i, uint64(i+1)<<16|uint64(port))
		flows.store(port*8+3, 4<<32) // flags: it stands in the ring
	}
	l.put("nat_pairs", n, pair1{
		Source: mapped(p.Source), Address: mapped(p.Address.Addr()), VIP: p.VIP, Port: bigEndian16(p.Address.Port()), Protocol: 6,
		First: allPorts.First, Last: allPorts.Last, Handshakes: 1<<14 - 1, Tail: uint64(len(ports)),
	})
}

// queued returns the ports that a pair's ring holds, the next one first.
func (l *layout1) queued(pair uint32) []uint16 {
	l.Helper()
	var p pair1
	if err := l.maps["nat_pairs"].Lookup(pair, &p); err != nil {
		l.Fatal(err)
	}
	var inner *ebpf.Map
	if err := l.maps["nat_rings"].Lookup(pair, &inner); err != nil {
		l.Fatal(err)
	}
	defer inner.Close()
	var ports []uint16
	for i := p.Head; i < p.Tail; i++ {
		var word uint64
		if err := inner.Lookup(uint32(i%uint64(lbLimitsNAT_PORTS)), &word); err != nil {
			l.Fatal(err)
		}
		ports = append(ports, uint16(word))
	}
	return ports
}

// count1 sets an entry of a map of counters, on every CPU.
func count1[T any](l *layout1, name string, index uint32, value T) {
	l.Helper()
	l.put(name, index, slices.Repeat([]T{value}, ebpf.MustPossibleCPU()))
}

// The first and last outcome that layout 1 counted.
const (
	notIP1    = 2
	internal1 = 18
)

// upgradeServices are what layout 1 knew: nat and dsr.
func upgradeServices() []lb.ServiceState {
	nat := service("nat", lb.NAT, 80, backends(3, 80))
	nat.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	dsr := service("dsr", lb.DSR, 443, backends(3, 443))
	other := service("other", lb.NAT, 8080, backends(2, 8080))
	return []lb.ServiceState{nat, dsr, other}
}

// toBackend runs a frame through a program and returns how it left; the zero Frame if
// it did not.
func toBackend(t testing.TB, d *Datapath, f testenv.Frame) testenv.Frame {
	t.Helper()
	verdict, out := send(t, d, f.Bytes())
	if verdict != xdpTX {
		return testenv.Frame{}
	}
	return parse(t, out)
}
