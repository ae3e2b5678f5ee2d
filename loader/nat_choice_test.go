package loader

import (
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A connection is refused for lack of a port only once all source addresses that the
// program asks have none, and handshakes give way no sooner.
func TestNATAsksOtherSourceAddresses(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(1, 80))
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101"), netip.MustParseAddr("192.0.2.102")}
	const ports = 10
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, ports)}, natTimeouts, s)
	var conns []*conn
	for i := range len(s.SourceAddresses) * ports {
		c := newConn(d, clientAddr(i))
		if !c.tryOpen(t) {
			t.Fatalf("connection %d was refused: %v", i, outcomes(t, d))
		}
		conns = append(conns, c)
	}
	if got := losses(t, d); got != (Losses{}) {
		t.Errorf("losses %+v with a port for each connection", got)
	}
	if got := newConn(d, clientAddr(1000)).forward(t, testenv.SYN, ""); got.Outcome != "no_port" {
		t.Errorf("one more connection than there are ports: %s, want no_port", got.Outcome)
	}
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}

	// One that ends makes room for whoever comes, wherever its hash points.
	conns[3].close(t)
	c := newConn(d, clientAddr(2000))
	c.open(t)
	if c.source != conns[3].source {
		t.Errorf("the new connection comes from %v, want %v", c.source, conns[3].source)
	}
}

// Where no source address has a port, the oldest handshake of the first one gives way.
func TestNATHandshakesGiveWayLast(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(1, 80))
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	const ports = 8 // four handshakes are remembered
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, ports)}, patience, s)
	for i := range 2*ports - 2 {
		openConn(t, d, clientAddr(i))
	}
	for i := range 2 {
		newConn(d, clientAddr(100+i)).mustForward(t, testenv.SYN, "")
	}
	if got := losses(t, d); got != (Losses{}) {
		t.Errorf("losses %+v with a port for each connection", got)
	}
	// Handshakes that nothing has come of are with one source address, or both.
	for i := range 20 {
		newConn(d, clientAddr(200+i)).forward(t, testenv.SYN, "")
	}
	got := losses(t, d)
	if got.Evicted+got.NoPort != 20 || got.Evicted == 0 {
		t.Errorf("losses %+v, want 20 newer connections to be refused or to take the port of a handshake", got)
	}
}

// More source addresses than are asked: connections that are refused are counted,
// and those there are go on.
func TestNATAsksSomeSourceAddresses(t *testing.T) {
	s := service("web", lb.NAT, 80, backends(1, 80))
	s.SourceAddresses = nil
	for i := range 8 {
		s.SourceAddresses = append(s.SourceAddresses, netip.AddrFrom4([4]byte{192, 0, 2, byte(110 + i)}))
	}
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, 4)}, natTimeouts, s)
	opened := 0
	for i := range 200 {
		if c := newConn(d, clientAddr(i)); c.tryOpen(t) {
			opened++
		}
	}
	if opened != 32 {
		t.Errorf("%d connections were opened, want one for each of 32 ports", opened)
	}
	if got := losses(t, d).NoPort; got != 200-32 {
		t.Errorf("%d connections refused for lack of a port, want %d", got, 200-32)
	}
}
