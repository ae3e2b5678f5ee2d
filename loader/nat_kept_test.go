package loader

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// keptService is full nat of several ports, each of which the backends have as well.
func keptService(n int) lb.ServiceState {
	s := service("kept", lb.NAT, 21, backends(n, 21))
	s.Addresses = []lb.Frontend{
		{VIP: vipIP, Ports: lb.PortRange{First: 21, Last: 21}}, {VIP: vipIP, Ports: lb.PortRange{First: 50000, Last: 50100}},
	}
	s.SourceAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.107")}
	s.Scheduler, s.KeepsPorts = lb.SourceHash, true
	return s
}

// All that a client does goes to one backend, each time to the port that it meant:
// passive FTP. Two of its connections never have one source port.
func TestNATKeepsPorts(t *testing.T) {
	d := newDatapath(t, keptService(3))
	used := map[netip.Addr]bool{}
	var conns []*conn
	for i := range 60 {
		var at netip.Addr
		for n, p := range []uint16{21, 50000, 50077, 50100} {
			c := newConn(d, netip.AddrPortFrom(clientAddr(i).Addr(), uint16(40000+n)))
			c.service = netip.AddrPortFrom(vipIP, p)
			c.open(t)
			c.translates(t, testenv.ACK)
			if c.backend.Port() != p || at.IsValid() && at != c.backend.Addr() {
				t.Fatalf("client %d: port %d is %v, its other connections are with %v", i, p, c.backend, at)
			}
			if c.source.Addr() != keptService(1).SourceAddresses[0] || sameSide(conns, c) {
				t.Fatalf("%v comes from %v, which is another's towards %v", c.client, c.source, c.backend.Addr())
			}
			at, conns = c.backend.Addr(), append(conns, c)
		}
		used[at] = true
	}
	if len(used) != 3 {
		t.Errorf("%d of 3 backends are used", len(used))
	}
	// What a daemon that starts anew reads back is what was planned.
	got, err := d.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffStates(d.state, got); diff != "" {
		t.Errorf("state (-planned +read):\n%s", diff)
	}
	// Reports name the port.
	flows := map[netip.AddrPort]netip.AddrPort{}
	p := &Pinned{maps: *d.objects, tables: d.tables, state: d.state}
	if err := p.Flows(func(f Flow) error { flows[f.Client] = f.Backend; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		if flows[c.client] != c.backend {
			t.Fatalf("%v is listed with %v, and is with %v", c.client, flows[c.client], c.backend)
		}
	}
	fresh := netip.AddrPortFrom(clientAddr(0).Addr(), 9)
	x, err := explainerOf(t, d).Explain(Packet{Source: fresh, Destination: netip.AddrPortFrom(vipIP, 50001), Protocol: lb.TCP, Flags: TCPSyn})
	if err != nil {
		t.Fatal(err)
	}
	want := netip.AddrPortFrom(conns[0].backend.Addr(), 50001)
	if x.NewFlow == nil || x.NewFlow.Towards != want || x.Sent == nil || x.Sent.Destination != want.String() {
		t.Errorf("explained as %+v, sent as %+v, want it towards %v", x.NewFlow, x.Sent, want)
	}
}

// sameSide tells whether an earlier connection has a source port towards a backend.
func sameSide(conns []*conn, c *conn) bool {
	return slices.ContainsFunc(conns, func(o *conn) bool { return o.source == c.source && o.backend.Addr() == c.backend.Addr() })
}

// A server that leaves a service, and that another one sends to from the same address, one
// of the two to all ports: nothing would tell their connections apart. Those of the one it
// leaves end, which is said beforehand, and those of the other one have their answers.
func TestKeptPortsOfAServerOfAnotherService(t *testing.T) {
	single := service("single", lb.NAT, 80, backends(1, 21))
	single.SourceAddresses = keptService(1).SourceAddresses
	empty := func(s lb.ServiceState) lb.ServiceState {
		s.Backends = nil
		return s
	}
	kept := keptService(1)
	kept.Addresses = kept.Addresses[1:] // single has a port of the VIP as well
	for _, tc := range []struct {
		name            string
		leaves, joins   lb.ServiceState
		before, service uint16 // ports
	}{
		{"all ports now", single, keptService(1), 80, 21},
		{"all ports before", kept, single, 50021, 80},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDatapath(t, tc.leaves)
			old := newConn(d, clientPort)
			old.service = netip.AddrPortFrom(vipIP, tc.before)
			old.open(t)
			next := []lb.ServiceState{tc.joins, empty(tc.leaves)}
			breaks, err := d.Check(lb.Snapshot{Services: next})
			if err != nil || len(breaks) != 1 || !strings.Contains(breaks[0], "connections of service "+tc.leaves.Name+" with 192.0.2.11:") ||
				!strings.Contains(breaks[0], "service "+tc.joins.Name+" sends to that server from 192.0.2.107, too") {
				t.Errorf("said beforehand: %q, %v", breaks, err)
			}
			apply(t, d, next...)
			for i := range 50 {
				c := newConn(d, clientAddr(i))
				c.service = netip.AddrPortFrom(vipIP, tc.service)
				c.open(t)
				c.translates(t, testenv.ACK)
			}
			if got := try(t, d, old.fromClient(testenv.ACK, "").Bytes()); got.Outcome != "no_flow" {
				t.Errorf("the connection of before: %s", got.Outcome)
			}
		})
	}
}

// Another node goes on with such connections, whatever port they are to; the log
// names it as well.
func TestTakeoverOfKeptPorts(t *testing.T) {
	for _, way := range waysToTell {
		t.Run(way.name, func(t *testing.T) {
			a, b := twoNodes(t, keptService(2))
			for i, p := range []uint16{21, 50000, 50100} {
				c := newConn(a.Datapath, clientAddr(i))
				c.service = netip.AddrPortFrom(vipIP, p)
				c.open(t)
				way.tell(a, b)
				wantSame(t, a, b)
				c.d = b.Datapath
				c.translates(t, testenv.ACK)
				for _, s := range b.held() {
					if s.Client == c.client && s.Backend.Addr() != c.backend.Addr() {
						t.Errorf("it is held as %+v, and is with %v", s, c.backend)
					}
				}
			}
		})
	}
	r := newLogRig(t, allPorts, keptService(1))
	c := newConn(r.d, clientPort)
	c.service = netip.AddrPortFrom(vipIP, 50007)
	c.open(t)
	r.want(tell(TranslationBegin, c))
}

// A flow is told with its own backend, where another one, which leaves, has the same address
// and so the same pair.
func TestKeptPortsOfABackendThatLeaves(t *testing.T) {
	before, after := keptService(1), keptService(1)
	after.Backends[0].Address = netip.AddrPortFrom(after.Backends[0].Address.Addr(), 22)
	after.Addresses[0].Ports = lb.PortRange{First: 22, Last: 22}
	a, _ := twoNodes(t, before)
	var conns []*conn
	for i, s := range []lb.ServiceState{before, after} {
		apply(t, a.Datapath, s)
		c := newConn(a.Datapath, clientAddr(i))
		c.service = netip.AddrPortFrom(vipIP, 50000)
		c.open(t)
		conns = append(conns, c)
	}
	want := map[netip.AddrPort]netip.AddrPort{conns[0].client: before.Backends[0].Address, conns[1].client: after.Backends[0].Address}
	got := map[netip.AddrPort]netip.AddrPort{}
	for _, s := range a.changes() {
		got[s.Client] = s.Backend
	}
	if !maps.Equal(got, want) {
		t.Errorf("told with %v, want %v", got, want)
	}
}
