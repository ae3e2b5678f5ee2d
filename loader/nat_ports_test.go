package loader

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// newNAT makes a data plane with one nat service and one backend. Whoever needs
// an exact share of ports takes it from freeShare.
func newNAT(t *testing.T, share lb.PortRange) (*Datapath, pairView) {
	t.Helper()
	d := newDatapathWith(t, Options{MaxFlows: 100000, Ports: share}, natTimeouts, service("web", lb.NAT, 80, backends(1, 80)))
	return d, viewPair(t, d, 1)
}

// freeShare returns n ports in a row that nobody listens on.
func freeShare(t *testing.T, n int) lb.PortRange {
	t.Helper()
	taken, err := listeners(lb.TCP)
	if err != nil {
		t.Fatal(err)
	}
	for first := 2000; first+n <= 65536; first++ {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(taken)), func(p uint16) bool { return int(p) >= first && int(p) < first+n }) {
			return lb.PortRange{First: uint16(first), Last: uint16(first + n - 1)}
		}
	}
	t.Fatalf("no %d ports in a row are free", n)
	return lb.PortRange{}
}

// clientAddr returns one of many clients.
func clientAddr(i int) netip.AddrPort {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 0xc6120000+uint32(i)) // 198.18.0.0/15, RFC 2544
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1024+i%50000))
}

func TestNATShare(t *testing.T) {
	share := freeShare(t, 300)
	d, view := newNAT(t, share)
	const n = 300
	var conns []*conn
	used := map[uint16]bool{}
	for i := range n {
		c := newConn(d, clientAddr(i))
		if !c.tryOpen(t) {
			t.Fatalf("connection %d was refused: %v", i, outcomes(t, d))
		}
		p := c.source.Port()
		if p < share.First || p > share.Last || used[p] {
			t.Fatalf("connection %d got port %d, which is not free or not of the share", i, p)
		}
		used[p] = true
		conns = append(conns, c)
	}

	// Now every port is taken.
	c := newConn(d, clientAddr(n))
	if got := c.forward(t, testenv.SYN, ""); got.Outcome != "no_port" {
		t.Fatalf("one more connection: %s, want no_port", got.Outcome)
	}
	if got := losses(t, d); got != (Losses{NoPort: 1}) {
		t.Errorf("losses %+v", got)
	}
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}

	// One that ends makes room for one, at once.
	conns[7].close(t)
	c.open(t)
	if got, want := c.source, conns[7].source; got != want {
		t.Errorf("the new connection comes from %v, want %v", got, want)
	}
	if got := losses(t, d); got != (Losses{NoPort: 1, EarlyReuse: 1}) {
		t.Errorf("losses %+v", got)
	}

	// Once they are idle for long, they make room.
	view.ageAll(125 * time.Minute)
	for i := range n {
		if c := newConn(d, clientAddr(1000+i)); !c.tryOpen(t) {
			t.Fatalf("connection %d was refused with all others idle: %v", i, outcomes(t, d))
		}
	}
}

func TestNATPortsOldestFirst(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 10))
	var conns []*conn
	for i := range 10 {
		conns = append(conns, openConn(t, d, clientAddr(i)))
	}
	var want []uint16
	for _, i := range []int{3, 9, 0, 4, 1} {
		conns[i].close(t)
		want = append(want, conns[i].source.Port())
	}
	if diff := cmp.Diff(want, view.queued()); diff != "" {
		t.Errorf("ports in the ring (-want +got):\n%s", diff)
	}
	view.age(want[2], 61*time.Second) // only this one has been closed for a minute
	var got []uint16
	for i := range want {
		got = append(got, openConn(t, d, clientAddr(100+i)).source.Port())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports handed out (-want +got):\n%s", diff)
	}
	if got := losses(t, d).EarlyReuse; got != 4 {
		t.Errorf("%d ports reused early, want 4", got)
	}
}

// The clock is coarse, and a CPU may be a tick behind the one that has seen a
// flow's last packet: a port of that flow is reused early all the same.
func TestNATEarlyReuseAcrossCPUs(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 1))
	c := openConn(t, d, clientAddr(1))
	c.close(t)
	view.age(c.source.Port(), -time.Hour)
	openConn(t, d, clientAddr(2))
	if got := losses(t, d).EarlyReuse; got != 1 {
		t.Errorf("%d ports reused early, want 1", got)
	}
}

// A port is marked as queued while it is in the ring, and only then.
func TestNATMarks(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 4))
	c := openConn(t, d, clientAddr(1))
	marked := func() bool {
		return view.flow(c.source.Port()).Flags&uint32(lbNatFlagsNAT_QUEUED) != 0
	}
	if marked() {
		t.Error("the port of an open connection is marked as queued")
	}
	c.close(t)
	if !marked() || !slices.Contains(view.queued(), c.source.Port()) {
		t.Errorf("the port of a closed connection: marked %v, ring %v", marked(), view.queued())
	}
	if got := len(view.queued()); got != 4 {
		t.Errorf("the ring holds %d ports, want 4", got)
	}
}

// A port whose flow goes on after its close is not handed out, and joins the ring
// again at its next close.
func TestNATRestoredFlowKeepsItsPort(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 2))
	a, b := openConn(t, d, clientAddr(1)), openConn(t, d, clientAddr(2))
	a.mustForward(t, testenv.RST, "")
	a.mustReply(t, testenv.ACK, "data")
	b.close(t)
	c := openConn(t, d, clientAddr(3))
	if c.source != b.source {
		t.Errorf("the new connection comes from %v, want %v", c.source, b.source)
	}
	a.translates(t, testenv.ACK)
	if got := view.queued(); len(got) != 0 {
		t.Errorf("ports %v are in the ring, want none", got)
	}
	a.close(t)
	if diff := cmp.Diff([]uint16{a.source.Port()}, view.queued()); diff != "" {
		t.Errorf("ports in the ring (-want +got):\n%s", diff)
	}
}

// A port of a service is not handed out as long as the service is there, nor is
// one that the node listens on.
func TestNATPortsOfOthers(t *testing.T) {
	var l net.Listener
	var share lb.PortRange
	for { // a listener in the middle of ten ports that this test may use
		var err error
		if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if p := l.Addr().(*net.TCPAddr).Port; p > 1034 && p < 65525 {
			share = lb.PortRange{First: uint16(p - 4), Last: uint16(p + 5)}
			break
		}
		l.Close()
	}
	defer l.Close()
	listening := uint16(l.Addr().(*net.TCPAddr).Port)
	served := share.First + 1

	d, view := newNAT(t, share)
	if slices.Contains(view.queued(), listening) {
		t.Errorf("port %d, which somebody listens on, is in the ring", listening)
	}
	web, extra := service("web", lb.NAT, 80, backends(1, 80)), service("extra", lb.DSR, served, backends(1, served))
	apply(t, d, extra, web)
	free := len(view.queued()) - 1
	handOut := func(first, n int) map[uint16]bool {
		got := map[uint16]bool{}
		for i := range n {
			c := newConn(d, clientAddr(first+i))
			if !c.tryOpen(t) {
				t.Fatalf("connection %d was refused: %v", i, outcomes(t, d))
			}
			got[c.source.Port()] = true
		}
		return got
	}
	if got := handOut(0, free); got[served] || got[listening] || len(got) != free {
		t.Errorf("ports %v were handed out, among them that of a service or a listener", got)
	}
	if c := newConn(d, clientAddr(50)); c.tryOpen(t) {
		t.Errorf("a connection came from %v with all other ports taken", c.source)
	}
	apply(t, d, web)
	if got := handOut(60, 1); !got[served] {
		t.Errorf("port %v was handed out, want %d, whose service is gone", got, served)
	}
}

// Flows of two services on the same backend share its ports and are told apart.
func TestNATServicesShareABackend(t *testing.T) {
	bs := backends(1, 8080)
	d := newDatapath(t, service("a", lb.NAT, 80, bs), service("b", lb.NAT, 81, bs))
	if got := len(d.state.Pairs); got != 1 {
		t.Fatalf("%d pairs, want 1", got)
	}
	first := openConn(t, d, clientPort)
	second := newConn(d, clientPort)
	second.service = netip.AddrPortFrom(vipIP, 81)
	second.open(t)
	if first.source == second.source {
		t.Errorf("both come from %v", first.source)
	}
	first.translates(t, testenv.ACK)
	second.translates(t, testenv.ACK)
	apply(t, d, service("b", lb.NAT, 81, bs))
	second.translates(t, testenv.ACK)
	if got := first.reply(t, testenv.ACK, "data"); got.Outcome != "no_service" {
		t.Errorf("a reply for the service that is gone: %s", got.Outcome)
	}
}

// Several source addresses multiply the ports, and each has its own.
func TestNATSourceAddresses(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(2, 80))
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101"), netip.MustParseAddr("192.0.2.102")}
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: lb.PortRange{First: 2000, Last: 2999}}, natTimeouts, s)
	used := map[[2]netip.AddrPort]bool{}
	bySource := map[netip.Addr]int{}
	var conns []*conn
	for i := range 600 {
		c := newConn(d, clientAddr(i))
		if !c.tryOpen(t) {
			t.Fatalf("connection %d was refused: %v", i, outcomes(t, d))
		}
		key := [2]netip.AddrPort{c.source, c.backend}
		if used[key] {
			t.Fatalf("two connections go from %v to %v", c.source, c.backend)
		}
		used[key] = true
		bySource[c.source.Addr()]++
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}
	for _, a := range s.SourceAddresses {
		// 200 expected, the standard deviation is 11.5.
		if n := bySource[a]; n < 154 || n > 246 {
			t.Errorf("%d of 600 connections come from %v", n, a)
		}
	}
}

// The last words of a connection to a VIP that is gone go nowhere strange.
func TestNATWithoutItsVIP(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(1, 80))
	other := netip.MustParseAddr("192.0.2.101")
	s.Addresses = append(s.Addresses, lb.FrontendOf(netip.AddrPortFrom(other, 80)))
	d := newDatapath(t, s)
	c := newConn(d, clientPort)
	c.service = netip.AddrPortFrom(other, 80)
	c.open(t)
	stays := openConn(t, d, clientPort)
	apply(t, d, service("web", lb.NAT, 80, backends(1, 80)))
	if got := c.reply(t, testenv.ACK, "data"); got.Outcome != "no_service" {
		t.Errorf("a reply: %s", got.Outcome)
	}
	if got := c.forward(t, testenv.ACK, "data"); got.Outcome != "not_vip" {
		t.Errorf("a packet of the client: %s", got.Outcome)
	}
	stays.translates(t, testenv.ACK)
}
