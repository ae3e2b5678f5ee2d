package loader

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// wantPorts checks what both reports say of the use of ports towards each backend of
// the service web.
func wantPorts(t *testing.T, d *Datapath, when string, want ...PortUse) {
	t.Helper()
	usage, err := d.Usage()
	if err != nil {
		t.Fatal(err)
	}
	var asked, reported []PortUse
	for _, p := range usage {
		for _, b := range p.Backends {
			if p.Service == "web" {
				asked = append(asked, b.Source)
			}
		}
	}
	for _, s := range stats(t, d).Services {
		for _, b := range s.Backends {
			if s.Name == "web" {
				reported = append(reported, b.Source)
			}
		}
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("%s: ports (-want +got):\n%s", when, diff)
	}
	if diff := cmp.Diff(want, reported); diff != "" {
		t.Errorf("%s: ports of Stats (-want +got):\n%s", when, diff)
	}
}

func TestPortsInUse(t *testing.T) {
	share := freeShare(t, 40)
	web := service("web", lb.NAT, 80, backends(1, 80))
	d, view := newNAT(t, share)
	wantPorts(t, d, "at first", PortUse{0, 40})
	var conns []*conn
	for i := range 10 {
		conns = append(conns, openConn(t, d, clientAddr(i)))
	}
	wantPorts(t, d, "with 10 connections", PortUse{10, 40})
	conns[0].close(t)
	wantPorts(t, d, "after one has ended", PortUse{9, 40})

	// A service's port stands in the ring, and nobody gets it.
	served := share.First + 1
	for _, c := range conns {
		if served == c.source.Port() {
			served++
		}
	}
	apply(t, d, service("extra", lb.DSR, served, backends(1, served)), web)
	wantPorts(t, d, "with a service in the share", PortUse{9, 39})
	for i := 0; ; i++ {
		if c := newConn(d, clientAddr(100+i)); !c.tryOpen(t) {
			break
		}
	}
	wantPorts(t, d, "with all ports taken", PortUse{39, 39})
	apply(t, d, web)
	wantPorts(t, d, "without the service", PortUse{39, 40})

	// The flows of the old share go on, and need none of the new one.
	reshare(t, d, lb.PortRange{First: share.First, Last: share.First + 19})
	use := PortUse{20, 20}
	if served <= share.First+19 {
		use = PortUse{19, 20}
	}
	wantPorts(t, d, "with half of the share", use)
	reshare(t, d, share)
	wantPorts(t, d, "with all of it", PortUse{39, 40})

	// A port that becomes a service's while a flow has it is nobody's to use.
	openConn(t, d, clientAddr(50000))
	wantPorts(t, d, "with every port taken", PortUse{40, 40})
	used := conns[1].source.Port()
	apply(t, d, service("extra", lb.DSR, used, backends(1, used)), web)
	wantPorts(t, d, "with a service on a port in use", PortUse{39, 39})
	apply(t, d, web)

	view.ageAll(125 * time.Minute)
	wantPorts(t, d, "with all flows idle for too long", PortUse{0, 40})
}

// Ports of all source addresses count, each of them towards each backend.
func TestPortsOfSourceAddresses(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(2, 80))
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, 10)}, natTimeouts, s)
	wantPorts(t, d, "at first", PortUse{0, 20}, PortUse{0, 20})
	used := map[netip.Addr]int{}
	for i := range 12 {
		used[openConn(t, d, clientAddr(i)).backend.Addr()]++
	}
	wantPorts(t, d, "with 12 connections", PortUse{used[backendAddr(1)], 20}, PortUse{used[backendAddr(2)], 20})
}

// Ports of UDP are no services' of TCP.
func TestPortsOfUDP(t *testing.T) {
	share := freeShare(t, 40)
	web := service("web", lb.NAT, 80, backends(1, 80))
	web.Protocol = lb.UDP
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: share}, natTimeouts, web)
	ports := stats(t, d).Services[0].Backends[0].Source.Ports
	if ports == 0 {
		t.Fatal("there are no ports")
	}
	extra := service("extra", lb.DSR, share.First, backends(1, share.First))
	apply(t, d, extra, web)
	wantPorts(t, d, "with a service of TCP in the share", PortUse{0, ports})
	extra.Protocol = lb.UDP
	apply(t, d, extra, web)
	wantPorts(t, d, "with one of UDP", PortUse{0, ports - 1})
}

// Backends without source NAT have no ports.
func TestPortsOfDSR(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	usage, err := d.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Usage{{Service: "web"}}, usage); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

// More pairs that are short of ports than one call counts are all counted in turn.
func TestIdlePortsOfManyPairs(t *testing.T) {
	const n = pairsCounted + 3
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, 2)}, natTimeouts, service("web", lb.NAT, 80, backends(n, 80)))
	opened := 0
	for i := 0; opened < 2*n; i++ {
		if c := newConn(d, clientAddr(i)); c.tryOpen(t) {
			opened++
		}
		if i == 10000 {
			t.Fatalf("%d connections of %d are open", opened, 2*n)
		}
	}
	for pair := range d.state.Pairs {
		viewPair(t, d, pair).ageAll(125 * time.Minute)
	}
	var idle, full []PortUse
	for range n {
		full, idle = append(full, PortUse{2, 2}), append(idle, PortUse{0, 2})
	}
	if _, err := d.Usage(); err != nil {
		t.Fatal(err)
	}
	wantPorts(t, d, "after two calls", idle...)
	d.idle = idlePorts{}
	d.show()
	for i, b := range stats(t, d).Services[0].Backends {
		if b.Source != full[i] {
			t.Errorf("%v: ports %+v before they are counted, want %+v", b.Address, b.Source, full[i])
		}
	}
}

// The pairs of an earlier version, which did not count their ports, have as many.
func TestUpgradeCountsPorts(t *testing.T) {
	n := newNode(t)
	services := upgradeServices()[:1]
	l := newLayout1(n, services, "eth0")
	conns := l.beginAll(0, 1)
	taken, err := listeners(lb.TCP)
	if err != nil {
		t.Fatal(err)
	}
	d := l.upgrade(nil, "eth0")
	want := len(services[0].SourceAddresses) * allPorts.Count()
	for _, b := range stats(t, d).Services[0].Backends {
		if b.Source.Ports > want || b.Source.Ports < want-10-2*len(taken) {
			t.Errorf("%v: %d ports, want %d but for those that somebody listens on", b.Address, b.Source.Ports, want)
		}
	}
	used := 0
	for state, cs := range conns {
		if state != lbNatStateNAT_CLOSED {
			used += len(cs)
		}
	}
	got := 0
	for _, b := range stats(t, d).Services[0].Backends {
		got += b.Source.Used
	}
	if got != used {
		t.Errorf("%d ports are in use, want %d", got, used)
	}
}

func TestPortUse(t *testing.T) {
	for _, tc := range []struct {
		use     PortUse
		percent int
		at70    bool
	}{
		{PortUse{0, 0}, 0, false}, {PortUse{0, 10}, 0, false}, {PortUse{6, 10}, 60, false}, {PortUse{699, 1000}, 69, false},
		{PortUse{7, 10}, 70, true}, {PortUse{10, 10}, 100, true},
	} {
		if got := tc.use.Percent(); got != tc.percent {
			t.Errorf("%+v: %d percent, want %d", tc.use, got, tc.percent)
		}
		if got := tc.use.AtLeast(70); got != tc.at70 {
			t.Errorf("%+v: at least 70 percent: %v, want %v", tc.use, got, tc.at70)
		}
	}
	if (PortUse{}).AtLeast(0) {
		t.Error("no ports are in use at all, and enough of them are")
	}
}
