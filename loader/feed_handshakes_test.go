package loader

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// shakes returns what a function of Handshakes tells.
func (n *feedNode) shakes(next func([]lb.FlowState) ([]lb.FlowState, error)) []lb.FlowState {
	n.Helper()
	all, err := next(nil)
	if err != nil {
		n.Fatal(err)
	}
	return all
}

// A handshake ends at the node that it was told to, however far it had come.
func TestTakeoverOfNATHandshakes(t *testing.T) {
	var all []lb.ServiceState
	var cases []natCase
	for _, c := range natCases {
		all = append(all, c.service(8080))
		if c.protocol == lb.TCP {
			cases = append(cases, c)
		}
	}
	for _, answered := range []bool{false, true} {
		a, b := twoNodes(t, all...)
		for _, c := range cases {
			name := c.String() + ", a SYN"
			if answered {
				name += " and its answer"
			}
			t.Run(name, func(t *testing.T) {
				a.changes()
				in := c.fromClient(vlans(100), flags(testenv.SYN))
				out := try(t, a.Datapath, in.Bytes())
				reply := testenv.Frame{
					DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: out.Frame.Dst, Dst: out.Frame.Src, Protocol: uint8(c.protocol),
					Flags: testenv.SYN | testenv.ACK, Seq: backendISN, Ack: in.Seq + 1, TTL: 64,
				}
				if answered {
					try(t, a.Datapath, reply.Bytes())
				}
				if told := a.changes(); len(told) > 0 {
					t.Errorf("changes: %v", told)
				}
				if r := b.take(a.shakes(a.feed.Handshakes())); r.Applied == 0 {
					t.Errorf("got %+v", r)
				}
				if !answered {
					wantTwins(t, a, b, "the answer", reply)
				}
				ack := c.fromClient(vlans(100), flags(testenv.ACK), func(f *testenv.Frame) { f.Seq, f.Ack = in.Seq+1, backendISN+1 })
				wantTwins(t, a, b, "the client's acknowledgement", ack)
				reply.Flags, reply.Payload = testenv.ACK, []byte("answer")
				wantTwins(t, a, b, "data of the backend", reply)
				wantSame(t, a, b) // it is open at both
			})
		}
	}
}

// So does one in a slot that is not clean, at the backend that has the SYN.
func TestTakeoverOfHandshakesInSlots(t *testing.T) {
	service := func(ws ...int) lb.ServiceState { return trackedService(lb.DSR, 80, ws...) }
	a, b := twoNodes(t, service(1, 1))
	for _, n := range []*feedNode{a, b} {
		apply(t, n.Datapath, service(0, 1))
	}
	const clients = 60
	frame := func(i int, flags testenv.TCPFlags, seq uint32) testenv.Frame {
		return toVIP(func(f *testenv.Frame) { f.Src, f.Flags, f.Seq = clientAddr(i), flags, seq })
	}
	for i := range clients {
		sendEarnest(t, a.Datapath, frame(i, testenv.SYN, 999).Bytes())
	}
	next := a.feed.Handshakes()
	told := a.shakes(next)
	if len(told) < clients/5 {
		t.Fatalf("%d handshakes of %d are told", len(told), clients)
	}
	for _, s := range told { // one of a flood must not stay as long as a connection
		if s.Phase != lb.FlowClosing {
			t.Errorf("told as %+v", s)
		}
	}
	b.take(told)
	for i := range clients {
		wantTwins(t, a, b, "the acknowledgement", frame(i, testenv.ACK, 1000))
		wantTwins(t, a, b, "data", frame(i, testenv.ACK, 5000))
	}
	if again := a.shakes(next); len(again) > 0 {
		t.Errorf("told of when they are over: %v", again)
	}
}

// Handshakes are told once for each step, a flood of them is bounded, and none takes back
// what the next node knows better, or stays there for long.
func TestHandshakesAreToldOnce(t *testing.T) {
	lower, upper := lb.PortRange{First: 1024, Last: 33023}, lb.PortRange{First: 33024, Last: 65535}
	patient := patientTimeouts()
	a, b := newFeedNodeWith(t, lower, patient, web()), newFeedNodeWith(t, upper, patient, web())
	next := a.feed.Handshakes()
	want := func(what string, want ...string) []lb.FlowState {
		t.Helper()
		got := a.shakes(next)
		if !slices.Equal(told(got), want) {
			t.Errorf("%s: told %v, want %v", what, told(got), want)
		}
		return got
	}
	c := newConn(a.Datapath, clientAddr(1))
	c.mustForward(t, testenv.SYN, "")
	first := want("a SYN", tells(c, "opening"))
	want("nothing new")
	c.mustReply(t, testenv.SYN|testenv.ACK, "")
	second := want("its answer", tells(c, "opening"))
	b.take(first)
	b.take(second)
	if state := b.flowAt(c).State; state != uint32(lbNatStateNAT_SYN_RECEIVED) {
		t.Errorf("state %d at the other node", state)
	}
	if r := b.take(first); r.Kept != 1 {
		t.Errorf("a step back: %+v", r)
	}
	there := onNode(b, []*conn{c})[0]
	there.mustForward(t, testenv.ACK, "")
	if r := b.take(second); r.Kept != 1 || b.flowAt(c).State != uint32(lbNatStateNAT_ESTABLISHED) {
		t.Errorf("a handshake that is told late: %+v, state %d", r, b.flowAt(c).State)
	}
	c.mustForward(t, testenv.ACK, "")
	want("it is open")
	if got := told(a.changes()); !slices.Equal(got, []string{tells(c, "open")}) {
		t.Errorf("changes %v", got)
	}

	// A handshake that comes to nothing has no end that anybody tells of.
	lost := newConn(a.Datapath, clientAddr(2))
	lost.mustForward(t, testenv.SYN, "")
	b.take(want("another one", tells(lost, "opening")))
	e := b.flowAt(lost)
	e.LastSeen -= uint32(2 * patient[lbNatStateNAT_SYN_SENT] / tick)
	if !b.feed.void(e, ticks()) {
		t.Error("it lasts for ever")
	}
	for _, s := range b.held() {
		if s.Client == lost.client {
			t.Errorf("it is told of as a flow: %+v", s)
		}
	}

	frame := c.fromClient(testenv.SYN, "")
	for i := range shakesOfOnePair + 1000 {
		frame.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 7777)
		sendEarnest(t, a.Datapath, frame.Bytes())
	}
	if got := len(a.shakes(next)); got == 0 || got > shakesOfOnePair {
		t.Errorf("%d of a flood are told", got)
	}
}

// Of a node that died nobody knows its handshakes. A SYN that is sent again opens the
// connection by another port; the client's acknowledgement alone does not, and is the
// kernel's, which answers with RST. In a clean slot of dsr nothing is missing.
func TestHandshakesOfADeadNode(t *testing.T) {
	a, b := twoNodes(t, web(), trackedService(lb.DSR, 443, 1, 1))
	c := newConn(a.Datapath, clientAddr(1))
	c.mustForward(t, testenv.SYN, "")
	there := onNode(b, []*conn{c})[0]
	if r := there.reply(t, testenv.SYN|testenv.ACK, ""); r.Outcome != "no_service" {
		t.Errorf("the backend's answer: %s, want that the kernel gets it", r.Outcome)
	}
	if r := there.forward(t, testenv.ACK, ""); r.Outcome != "no_flow" {
		t.Errorf("the client's acknowledgement: %s, want that the kernel gets it", r.Outcome)
	}
	there.open(t)
	if p := there.source.Port(); p < b.share.First || p > b.share.Last {
		t.Errorf("port %d is none of the node's share %v", p, b.share)
	}
	there.mustForward(t, testenv.ACK, "data")
	there.mustReply(t, testenv.ACK, "data")

	for i := range 20 {
		frame := func(flags testenv.TCPFlags) testenv.Frame {
			return toVIP(func(f *testenv.Frame) { f.Src, f.Dst, f.Flags = clientAddr(i), netip.AddrPortFrom(vipIP, 443), flags })
		}
		_, first := sendEarnest(t, a.Datapath, frame(testenv.SYN).Bytes())
		if _, next := sendEarnest(t, b.Datapath, frame(testenv.ACK).Bytes()); string(first[:6]) != string(next[:6]) {
			t.Errorf("the SYN of %v goes to %x, what follows to %x", clientAddr(i), first[:6], next[:6])
		}
	}
}
