package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A natCase is a nat service of one family and protocol.
type natCase struct {
	v6       bool
	protocol lb.Protocol
}

func (c natCase) String() string {
	if c.v6 {
		return c.protocol.String() + " over ipv6"
	}
	return c.protocol.String() + " over ipv4"
}

func (c natCase) service(port uint16) lb.ServiceState {
	bs := backends(1, port)
	s := service(c.String(), lb.NAT, 80, bs)
	s.Protocol = c.protocol
	if c.v6 {
		bs[0].Address = netip.AddrPortFrom(v6Backend.Addr(), port)
		s.Addresses = []lb.Frontend{lb.FrontendOf(v6VIP)}
		s.SourceAddresses = []netip.Addr{v6VIP.Addr()}
	}
	return s
}

// fromClient is a packet of a client to the service.
func (c natCase) fromClient(changes ...change) testenv.Frame {
	f := toVIP()
	if c.v6 {
		from6(&f)
	}
	f.Protocol, f.Flags = uint8(c.protocol), testenv.SYN
	for _, change := range changes {
		change(&f)
	}
	return f
}

var natCases = []natCase{{false, lb.TCP}, {false, lb.UDP}, {true, lb.TCP}, {true, lb.UDP}}

func TestNATFamilies(t *testing.T) {
	// All on one data plane: they share ports and addresses, and nothing else.
	var all []lb.ServiceState
	for _, c := range natCases {
		all = append(all, c.service(8080))
	}
	d := newDatapath(t, all...)
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			in := c.fromClient(func(f *testenv.Frame) { f.TOS, f.TTL = 0x20, 17 })
			out := try(t, d, in.Bytes())
			if out.Outcome != "sent" {
				t.Fatalf("the client's packet: %s", out.Outcome)
			}
			s := c.service(8080)
			want := parse(t, in.Bytes())
			want.DstMAC, want.SrcMAC, want.TTL = hardware(backendMAC(1)), hardware(nicMAC), 16
			want.Src, want.Dst = netip.AddrPortFrom(s.SourceAddresses[0], out.Frame.Src.Port()), s.Backends[0].Address
			if diff := cmp.Diff(want, out.Frame, equateAddrs); diff != "" {
				t.Errorf("to the backend (-want +got):\n%s", diff)
			}
			reply := testenv.Frame{
				DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: out.Frame.Dst, Dst: out.Frame.Src,
				Protocol: uint8(c.protocol), Flags: testenv.SYN | testenv.ACK, TTL: 64, Payload: []byte("answer"),
			}
			back := try(t, d, reply.Bytes())
			if back.Outcome != "sent" {
				t.Fatalf("the reply: %s", back.Outcome)
			}
			want = parse(t, reply.Bytes())
			want.DstMAC, want.SrcMAC, want.TTL = hardware(clientMAC), hardware(nicMAC), 63
			want.Src, want.Dst = in.Dst, in.Src
			if diff := cmp.Diff(want, back.Frame, equateAddrs); diff != "" {
				t.Errorf("to the client (-want +got):\n%s", diff)
			}
			// It goes on as it began.
			again := try(t, d, c.fromClient(flags(testenv.ACK)).Bytes())
			if again.Outcome != "sent" || again.Frame.Src != out.Frame.Src || again.Frame.Dst != out.Frame.Dst {
				t.Errorf("the next packet: %s, from %v to %v", again.Outcome, again.Frame.Src, again.Frame.Dst)
			}
			if got := try(t, d, c.fromClient(ttl(1)).Bytes()); got.Outcome != "ttl" {
				t.Errorf("without a hop left: %s", got.Outcome)
			}
			// A reply of the other protocol is nobody's.
			stray := reply
			stray.Protocol = uint8(lb.TCP + lb.UDP - c.protocol)
			stray.Src = netip.AddrPortFrom(reply.Src.Addr(), 9)
			if got := try(t, d, stray.Bytes()); got.Outcome != "no_service" {
				t.Errorf("a stray packet of the backend: %s", got.Outcome)
			}
		})
	}
}

// A datagram without a checksum stays without one, and one whose checksum comes
// out as 0 says so (RFC 768).
func TestNATChecksumOfUDP(t *testing.T) {
	c := natCase{false, lb.UDP}
	d := newDatapath(t, c.service(53))
	frame := c.fromClient().Bytes()
	const at = 14 + 20 + 6
	frame[at], frame[at+1] = 0, 0
	verdict, out := send(t, d, frame)
	if verdict != xdpTX || out[at] != 0 || out[at+1] != 0 {
		t.Errorf("verdict %d, checksum % x of a datagram without one", verdict, out[at:at+2])
	}
	zero := 0
	for i := range 1 << 16 {
		b := c.fromClient(func(f *testenv.Frame) { f.Payload = binary.BigEndian.AppendUint16(nil, uint16(i)) }).Bytes()
		verdict, out := send(t, d, b)
		if verdict != xdpTX {
			t.Fatalf("verdict %d", verdict)
		}
		if err := testenv.VerifyChecksums(out); err != nil {
			t.Fatal(err)
		}
		if out[at] == 0 && out[at+1] == 0 {
			t.Fatalf("payload %d: the checksum says that there is none", i)
		}
		if out[at] == 0xff && out[at+1] == 0xff {
			zero++
		}
	}
	if zero == 0 {
		t.Error("no checksum came out as 0")
	}
}

// The same holds for a datagram that an ICMP error quotes.
func TestQuotedChecksumOfUDP(t *testing.T) {
	c := natCase{false, lb.UDP}
	d := newDatapathWith(t, Options{MaxFlows: 100000, Ports: allPorts}, patientTimeouts(), c.service(53))
	in := c.fromClient()
	if r := try(t, d, in.Bytes()); r.Outcome != "sent" {
		t.Fatal(r.Outcome)
	}
	about := answerTo(in.Src, in.Dst, testenv.ProtocolUDP)
	about.Payload = []byte{0, 0}
	const at = 14 + 20 + 8 + 20 + 6
	zero := 0
	for i := range 1 << 16 {
		binary.BigEndian.PutUint16(about.Payload, uint16(i))
		verdict, out := send(t, d, quote(about, 1000).Bytes())
		if verdict != xdpTX {
			t.Fatalf("verdict %d", verdict)
		}
		if err := testenv.VerifyChecksums(out); err != nil {
			t.Fatal(err)
		}
		switch binary.BigEndian.Uint16(out[at:]) {
		case 0:
			t.Fatalf("payload %d: the quoted checksum says that there is none", i)
		case 0xffff:
			zero++
		}
	}
	if zero == 0 {
		t.Error("no checksum came out as 0")
	}
}

// A UDP flow that nobody answers ends soon, one with replies when it is idle.
func TestNATLifeOfUDP(t *testing.T) {
	c := natCase{false, lb.UDP}
	d := newDatapath(t, c.service(53))
	view := viewPair(t, d, 1)
	ask := func() testenv.Frame {
		t.Helper()
		r := try(t, d, c.fromClient().Bytes())
		if r.Outcome != "sent" {
			t.Fatal(r.Outcome)
		}
		return r.Frame
	}
	first := ask()
	view.age(first.Src.Port(), 6*time.Second)
	second := ask()
	if second.Src == first.Src {
		t.Error("a flow without a reply was there after 6 s")
	}
	reply := testenv.Frame{DstMAC: hardware(nicMAC), Src: second.Dst, Dst: second.Src, Protocol: testenv.ProtocolUDP}
	if got := try(t, d, reply.Bytes()); got.Outcome != "sent" {
		t.Fatal(got.Outcome)
	}
	view.age(second.Src.Port(), 4*time.Minute)
	if third := ask(); third.Src != second.Src {
		t.Error("a flow with replies has ended after 4 minutes")
	}
	view.age(second.Src.Port(), 6*time.Minute)
	if fourth := ask(); fourth.Src == second.Src {
		t.Error("a flow with replies was there after 6 minutes")
	}
	if got := traffic(t, d).Flows; got != 3 {
		t.Errorf("%d flows are counted, want 3", got)
	}
}

// A flood of datagrams takes no port from a flow with replies.
func TestNATFloodOfUDP(t *testing.T) {
	c := natCase{false, lb.UDP}
	share := lb.PortRange{First: 2000, Last: 2999}
	d := newDatapathWith(t, Options{MaxFlows: 10000, Ports: share}, natTimeouts, c.service(53))
	answered := map[netip.AddrPort]netip.AddrPort{}
	for i := range 100 {
		from := func(f *testenv.Frame) { f.Src = clientAddr(i) }
		r := try(t, d, c.fromClient(from).Bytes())
		reply := testenv.Frame{DstMAC: hardware(nicMAC), Src: r.Frame.Dst, Dst: r.Frame.Src, Protocol: testenv.ProtocolUDP}
		if got := try(t, d, reply.Bytes()); got.Outcome != "sent" {
			t.Fatal(got.Outcome)
		}
		answered[clientAddr(i)] = r.Frame.Src
	}
	for i := range 20000 {
		send(t, d, c.fromClient(func(f *testenv.Frame) { f.Src = clientAddr(1000 + i) }).Bytes())
	}
	for client, source := range answered {
		r := try(t, d, c.fromClient(func(f *testenv.Frame) { f.Src = client }).Bytes())
		if r.Frame.Src != source {
			t.Fatalf("%v had %v, and has %v after a flood: %s", client, source, r.Frame.Src, r.Outcome)
		}
	}
	if fmt.Sprint(losses(t, d).Evicted) == "0" {
		t.Error("the flood gave way to nothing")
	}
}
