package loader

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var vipPort81 = netip.AddrPortFrom(vipIP, 81)

func from(mac [6]byte, tags ...uint16) []change {
	return []change{func(f *testenv.Frame) { f.SrcMAC, f.VLANs = hardware(mac), tags }}
}

// Replies leave by where the client's last packet came from.
func TestNATLastHop(t *testing.T) {
	gateway1, gateway2 := [6]byte{2, 0, 0, 0, 2, 1}, [6]byte{2, 0, 0, 0, 2, 2}
	type way struct {
		mac  [6]byte
		tags []uint16
	}
	tests := []struct {
		name string
		ways []way // of the client's packets, one after another
	}{
		{"a gateway", []way{{gateway1, nil}}},
		{"its address changes", []way{{gateway1, nil}, {gateway2, nil}}},
		{"and back", []way{{gateway1, nil}, {gateway2, nil}, {gateway1, nil}}},
		{"another vlan", []way{{gateway1, []uint16{100}}}},
		{"vlan changes", []way{{gateway1, []uint16{100}}, {gateway1, []uint16{200}}}},
		{"vlan goes", []way{{gateway1, []uint16{100, 200}}, {gateway1, []uint16{100}}, {gateway1, nil}}},
		{"vlan comes", []way{{gateway1, nil}, {gateway1, []uint16{100, 200}}}},
		{"a tag without a vlan goes", []way{{gateway1, []uint16{0}}, {gateway1, nil}}},
		{"priority is not the vlan", []way{{gateway1, []uint16{0xe000 | 100}}}},
	}
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := newConn(d, clientAddr(i))
			for n, w := range tc.ways {
				c.changes = from(w.mac, w.tags...)
				if n == 0 {
					c.open(t)
				}
				c.mustForward(t, testenv.ACK, "data")
				r := c.reply(t, testenv.ACK, "data")
				var tags []uint16
				for _, tag := range w.tags {
					tags = append(tags, tag&0xfff)
				}
				got := []any{r.Outcome, r.Frame.DstMAC, r.Frame.SrcMAC, r.Frame.VLANs}
				want := []any{"sent", hardware(w.mac), hardware(nicMAC), tags}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("reply after packet %d (-want +got):\n%s", n, diff)
				}
			}
		})
	}
}

// Two clients behind two gateways have a way back each.
func TestNATTwoGateways(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	var conns []*conn
	for i := range 2 {
		c := newConn(d, clientAddr(i))
		c.changes = from([6]byte{2, 0, 0, 0, 2, byte(i)})
		c.open(t)
		conns = append(conns, c)
	}
	for i, c := range conns {
		r := c.reply(t, testenv.ACK, "data")
		if want := hardware([6]byte{2, 0, 0, 0, 2, byte(i)}); r.Frame.DstMAC.String() != want.String() {
			t.Errorf("client %d: the reply goes to %v, want %v", i, r.Frame.DstMAC, want)
		}
	}
}

// A flow whose client came by an interface that sluice is not on any more loses
// replies, counted, until the client's next packet.
func TestNATLostInterface(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	c := openConn(t, d, clientPort)
	view := viewPair(t, d, 1)
	view.flow(c.source.Port()).Interface = 5
	if got := c.reply(t, testenv.ACK, "data"); got.Outcome != "no_next_hop" {
		t.Errorf("a reply: %s, want no_next_hop", got.Outcome)
	}
	if got := traffic(t, d).ReplyPackets; got != 1 {
		t.Errorf("%d replies are counted, want 1, the one that left", got)
	}
	c.mustForward(t, testenv.ACK, "")
	if got := c.reply(t, testenv.ACK, "data"); got.Outcome != "sent" {
		t.Errorf("a reply after the client's packet: %s", got.Outcome)
	}
}

// A new next hop of a backend holds for flows that are open already.
func TestNATBackendMoves(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	c := openConn(t, d, clientPort)
	bs := backends(1, 80)
	bs[0].NextHop.Destination = [6]byte{2, 0, 0, 0, 9, 9}
	bs[0].NextHop.Interface = 7
	apply(t, d, service("web", lb.NAT, 80, bs))
	r := c.forward(t, testenv.ACK, "data")
	if r.Verdict != xdpRedirect || r.Frame.DstMAC.String() != "02:00:00:00:09:09" {
		t.Errorf("verdict %d to %v", r.Verdict, r.Frame.DstMAC)
	}
	// An unknown one keeps what was known.
	bs[0].NextHop = lb.NextHop{}
	apply(t, d, service("web", lb.NAT, 80, bs))
	if r := c.forward(t, testenv.ACK, "data"); r.Verdict != xdpRedirect {
		t.Errorf("verdict %d with an unknown next hop, want the one before", r.Verdict)
	}
}

// Open connections stay where they are when others join and when their backend
// leaves, and end when it is let go.
func TestNATBackendsChange(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	var conns []*conn
	for i := range 50 {
		conns = append(conns, openConn(t, d, clientAddr(i)))
	}
	apply(t, d, service("web", lb.NAT, 80, backends(4, 80)))
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}
	drained := backends(4, 80)
	drained[0].Weight = 0
	apply(t, d, service("web", lb.NAT, 80, drained))
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}
	for i := range 50 {
		if c := openConn(t, d, clientAddr(100+i)); c.backend == drained[0].Address {
			t.Errorf("a new connection goes to %v, which has no weight", c.backend)
		}
	}
	apply(t, d, service("web", lb.NAT, 80, drained[1:]))
	for _, c := range conns {
		c.translates(t, testenv.ACK) // its backend has left, with its connections
	}
	letGo(t, d)
	for _, c := range conns {
		if got := c.forward(t, testenv.ACK, "data"); got.Outcome != "no_flow" {
			t.Fatalf("a packet to a removed backend: %s, want no_flow", got.Outcome)
		}
	}
	if got := len(d.state.Pairs); got != 3 {
		t.Errorf("%d pairs, want 3", got)
	}
}
