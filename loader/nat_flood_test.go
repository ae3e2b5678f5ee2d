package loader

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// flood sends n SYNs, each of another client, and returns how many were forwarded.
func flood(t *testing.T, d *Datapath, first, n int) int {
	t.Helper()
	sent := 0
	frame := newConn(d, clientPort).fromClient(testenv.SYN, "")
	for i := range n {
		frame.Src = clientAddr(first + i)
		if verdict, _ := send(t, d, frame.Bytes()); verdict == xdpTX {
			sent++
		}
	}
	return sent
}

// embryonic returns how many handshakes are open.
func (v pairView) embryonic() int {
	return v.count(lbNatStateNAT_SYN_SENT) + v.count(lbNatStateNAT_SYN_RECEIVED)
}

// A flood of SYNs gives up its own kind: what is established goes on, there are no
// more handshakes than are remembered, and a new connection comes through.
func TestNATFlood(t *testing.T) {
	tests := []struct {
		name       string
		ports      int
		conns      int // established
		floods     int
		handshakes int // the most that may be open
	}{
		{"all ports", 64512, 200, 3 * int(lbLimitsNAT_EMBRYONIC), int(lbLimitsNAT_EMBRYONIC)},
		{"few ports", 1000, 200, 5000, 256},
		{"few ports left", 400, 390, 2000, 10},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			share := allPorts
			if tc.ports < 64512 {
				share = freeShare(t, tc.ports)
			}
			d := newDatapathWith(t, Options{MaxFlows: 100000, Ports: share}, patientTimeouts(), service("web", lb.NAT, 80, backends(1, 80)))
			view := viewPair(t, d, 1)
			var conns []*conn
			for i := range tc.conns {
				c := newConn(d, clientAddr(i))
				if !c.tryOpen(t) {
					t.Fatalf("connection %d was refused", i)
				}
				conns = append(conns, c)
			}
			if got := flood(t, d, 1000, tc.floods); got != tc.floods {
				t.Errorf("%d of %d SYNs were forwarded: %v", got, tc.floods, outcomes(t, d))
			}
			if got := view.embryonic(); got == 0 || got > tc.handshakes {
				t.Errorf("%d handshakes are open, want 1 to %d", got, tc.handshakes)
			}
			if got, want := losses(t, d).Evicted, uint64(tc.floods-tc.handshakes); got < want {
				t.Errorf("%d handshakes were given up, want %d at least", got, want)
			}
			if got, want := names(d), tc.conns+tc.handshakes; got > want {
				t.Errorf("%d names stand in the flow table, want %d at most", got, want)
			}
			for _, c := range conns {
				c.translates(t, testenv.ACK)
			}
			c := openConn(t, d, clientAddr(100000))
			flood(t, d, 200000, tc.handshakes)
			c.translates(t, testenv.ACK)
		})
	}
}

// Handshakes that nobody finishes end by themselves.
func TestNATFloodPasses(t *testing.T) {
	share := freeShare(t, 500)
	d, view := newNAT(t, share)
	flood(t, d, 0, 2000)
	view.ageAll(6 * time.Second)
	before := losses(t, d)
	for i := range 500 {
		if c := newConn(d, clientAddr(10000+i)); !c.tryOpen(t) {
			t.Fatalf("connection %d was refused: %v", i, outcomes(t, d))
		}
	}
	if got := losses(t, d); got.NoPort != before.NoPort {
		t.Errorf("%d connections found no port", got.NoPort-before.NoPort)
	}
	if got := view.count(lbNatStateNAT_ESTABLISHED); got != 500 {
		t.Errorf("%d connections are open, want 500", got)
	}
}

// SYN and RST, or SYN, RST and data, of a flood that never sees an answer open
// nothing that lasts.
func TestNATFloodOfForgeries(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 500))
	kept := openConn(t, d, clientAddr(0))
	for i := range 2000 {
		c := newConn(d, clientAddr(1000+i))
		for _, p := range []testenv.Frame{
			c.fromClient(testenv.SYN, ""), c.fromClient(testenv.RST, ""), c.fromClient(testenv.PSH, "data"),
			c.fromClient(testenv.FIN, ""),
		} {
			send(t, d, p.Bytes())
		}
	}
	if got := view.count(lbNatStateNAT_ESTABLISHED) + view.count(lbNatStateNAT_CLOSING); got != 1 {
		t.Errorf("%d flows are established, want 1", got)
	}
	kept.translates(t, testenv.ACK)
	openConn(t, d, clientAddr(5000)).translates(t, testenv.ACK)
}

// A ring word of a port that has been handed out again since gives up nothing.
func TestNATHandshakeOfAnother(t *testing.T) {
	d, view := newNAT(t, freeShare(t, 4)) // two handshakes are remembered
	a := openConn(t, d, clientAddr(1))
	for i := range 3 {
		openConn(t, d, clientAddr(10+i))
	}
	a.mustForward(t, testenv.RST, "")
	view.age(a.source.Port(), 61*time.Second)
	b := newConn(d, clientAddr(2)) // takes the port of a
	b.mustForward(t, testenv.SYN, "")
	if b.source != a.source {
		t.Fatalf("the port of b is %v, want that of a, %v", b.source, a.source)
	}
	if got := losses(t, d).Evicted; got != 0 {
		t.Errorf("%d handshakes were given up, want 0", got)
	}
	b.mustReply(t, testenv.SYN|testenv.ACK, "")
	b.mustForward(t, testenv.ACK, "")
}

func TestHandshakes(t *testing.T) {
	tests := []struct {
		share lb.PortRange
		want  uint32
	}{
		{lb.PortRange{First: 1024, Last: 65535}, 16384},
		{lb.PortRange{First: 1024, Last: 33279}, 8192},
		{lb.PortRange{First: 2000, Last: 2999}, 256},
		{lb.PortRange{First: 2000, Last: 2001}, 1},
		{lb.PortRange{First: 2000, Last: 2000}, 1},
		{lb.PortRange{First: 0, Last: 65535}, 16384},
	}
	for _, tc := range tests {
		if got := handshakes(tc.share); got != tc.want {
			t.Errorf("%v: %d handshakes, want %d", tc.share, got, tc.want)
		}
	}
}

// The source ports of both services' flows come from what they share, and a flood
// of one leaves the other's flows alone.
func TestNATFloodOfOneService(t *testing.T) {
	bs := backends(1, 8080)
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: freeShare(t, 1000)}, natTimeouts,
		service("a", lb.NAT, 80, bs), service("b", lb.NAT, 81, bs))
	c := openConn(t, d, clientPort)
	other := newConn(d, clientPort)
	other.service = vipPort81
	other.open(t)
	flood(t, d, 0, 3000)
	c.translates(t, testenv.ACK)
	other.translates(t, testenv.ACK)
}

// A client that comes back and gets the same port has the same place in the flow
// table too; the word of its first handshake must not give up the second one.
func TestNATHandshakeOfTheSameClient(t *testing.T) {
	d, _ := newNAT(t, freeShare(t, 4)) // two handshakes are remembered
	var others []*conn
	for i := range 3 {
		others = append(others, openConn(t, d, clientAddr(10+i)))
	}
	c := newConn(d, clientAddr(1))
	c.mustForward(t, testenv.SYN, "")
	port := c.source
	c.mustForward(t, testenv.RST, "")
	c.mustForward(t, testenv.SYN, "") // the only port that is free
	if c.source != port {
		t.Fatalf("the port is %v, want %v again", c.source, port)
	}
	others[0].mustForward(t, testenv.RST, "")
	last := newConn(d, clientAddr(2)) // its word takes the place of the first one's
	last.mustForward(t, testenv.SYN, "")
	if got := losses(t, d).Evicted; got != 0 {
		t.Errorf("%d handshakes were given up, want 0", got)
	}
	c.mustReply(t, testenv.SYN|testenv.ACK, "")
	c.mustForward(t, testenv.ACK, "")
}

// Of packets of no connection the kernel gets so many as it may well answer; the rest
// is dropped, and no connection is the worse for it.
func TestStrays(t *testing.T) {
	const limit = 8192 // of one CPU in a tick
	d, _ := newNAT(t, allPorts)
	open := newConn(d, clientAddr(1))
	if !open.tryOpen(t) {
		t.Fatal("no connection opens")
	}
	stray := newConn(d, clientPort).fromClient(testenv.ACK, "").Bytes()
	// left has every CPU allowed n more in this tick, and sends a stray one: its outcome,
	// unless the tick was over meanwhile.
	left := func(n uint32) (outcome string) {
		testenv.Eventually(t, 10*time.Second, "a tick that is long enough", func() (bool, error) {
			cpus := make([]lbAllowance, ebpf.MustPossibleCPU())
			now := ticks()
			for i := range cpus {
				cpus[i] = lbAllowance{Tick: now, Used: limit - n}
			}
			if err := d.objects.StrayAllowance.Put(uint32(0), cpus); err != nil {
				return false, err
			}
			before := outcomes(t, d)
			send(t, d, stray)
			for name, count := range outcomes(t, d) {
				if count != before[name] {
					outcome = name
				}
			}
			return ticks() == now, nil
		})
		return outcome
	}
	for _, tc := range []struct {
		left uint32
		want string
	}{{limit, "no_flow"}, {1, "no_flow"}, {0, "stray"}} {
		if got := left(tc.left); got != tc.want {
			t.Errorf("with %d left in the tick: %s, want %s", tc.left, got, tc.want)
		}
	}
	if !newConn(d, clientAddr(2)).tryOpen(t) {
		t.Error("a new connection was refused")
	}
	if verdict, _ := send(t, d, open.fromClient(testenv.ACK, "more").Bytes()); verdict != xdpTX {
		t.Error("an open connection does not go on")
	}
}
