package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// losses1 are the entries of layout 1 for what was lost.
type losses1 struct{ NoBackend, NoPort, FlowsFull, EarlyReuse, Evicted uint64 }

// A layout1 is the data plane of the version that had layout 1, on a node.
type layout1 struct {
	*node
	plane *testenv.Layout1
	maps  map[string]*ebpf.Map
	run   *Datapath // to send packets through its program
	state *State    // what its tables hold
}

// patience is how long flows live: a slow machine must not end them.
var patience = map[lbNatState]time.Duration{
	lbNatStateNAT_SYN_SENT: time.Hour, lbNatStateNAT_SYN_RECEIVED: time.Hour, lbNatStateNAT_ESTABLISHED: time.Hour,
	lbNatStateNAT_CLOSING: time.Hour, lbNatStateNAT_CLOSED: time.Hour,
}

// newLayout1 makes one with the services and attaches it.
func newLayout1(n *node, services []lb.ServiceState, interfaces ...string) *layout1 {
	n.Helper()
	plane, err := testenv.LoadLayout1("testdata/lb_layout1.o", time.Hour)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := plane.Close(); err != nil {
			n.Error(err)
		}
	})
	l := &layout1{node: n, plane: plane, maps: plane.Maps, run: &Datapath{program: plane.Program}}
	l.put("interfaces", nicIndex, testenv.Interface1{Index: nicIndex, MAC: nicMAC})
	l.fill(services)
	l.must(plane.Pin(n.host.PinDir))
	for _, name := range interfaces {
		l.must(n.host.Do(func() error { return plane.Attach(n.host.PinDir, name) }))
	}
	return l
}

func (l *layout1) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *layout1) put(name string, index uint32, value any) {
	l.Helper()
	l.must(l.plane.Put(name, index, value))
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
		if v.Index != testenv.VIPPlace(a) {
			l.Fatalf("%v has place %d, and had %d", a, v.Index, testenv.VIPPlace(a))
		}
		l.put("vips", v.Index, testenv.VIP1{
			Address: mapped(a), Ports: v.Tables[0], UDP: v.Tables[1], Source: boolWord(v.Source), InState: 1,
		})
		for _, r := range s.Ports[v.Tables[0]] {
			for port := int(r.First); port <= int(r.Last); port++ {
				l.must(l.plane.AddPort(v.Tables[0], uint16(port), r.Service))
			}
		}
	}
	slots, err := mapWords(l.maps["slots"])
	if err != nil {
		l.Fatal(err)
	}
	defer slots.close()
	for n, e := range s.Services {
		l.put("services", uint32(n), testenv.Service1{Slots: e.First, Count: e.Count, Forward: uint32(e.Forward)})
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
		l.put("backends", n, testenv.Backend1{
			Address: mapped(b.Address.Addr()), Port: bigEndian16(b.Address.Port()), Service: b.Service,
			NextHop: testenv.Hop1{
				Destination: hop.Destination, SourceLow: hop.SourceLow, SourceHigh: hop.SourceHigh,
				Interface: hop.Interface, VLAN: hop.Vlan, VLANs: hop.Vlans,
			},
			Generation: b.Generation, Choice: b.Choice, Choices: uint32(len(b.Pairs)), Alive: boolWord(b.Alive),
		})
		for i, pair := range b.Pairs {
			l.put("nat_choices", b.Choice+uint32(i), pair)
		}
	}
	for n, p := range s.Pairs {
		l.must(l.plane.AddPair(n, p.Source, p.VIP, p.Address))
	}
}

// queued returns the ports that a pair's ring holds, the next one first.
func (l *layout1) queued(pair uint32) []uint16 {
	l.Helper()
	var p testenv.Pair1
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
