package loader

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	router4 = netip.MustParseAddrPort("203.0.113.1:0")
	router6 = netip.MustParseAddrPort("[2001:db8:f::1]:0")
)

// quote returns an ICMP error of a router about a packet, of which so many bytes
// are quoted; the packet's own ends say to whom it goes.
func quote(about testenv.Frame, size int) testenv.Frame {
	packet := about.Bytes()[14:]
	packet = packet[:min(size, len(packet))]
	message := make([]byte, 8, 8+len(packet))
	message = append(message, packet...)
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(clientMAC), Src: router4,
		Dst: netip.AddrPortFrom(about.Src.Addr(), 0), Protocol: testenv.ProtocolICMP, Payload: message, DontFragment: true,
	}
	message[0], message[1] = 3, 4 // fragmentation needed
	binary.BigEndian.PutUint16(message[6:], 1400)
	sum := uint32(0)
	if about.Src.Addr().Is6() {
		f.Src, f.Protocol = router6, testenv.ProtocolICMPv6
		message[0], message[1] = 2, 0 // packet too big
		s, d := f.Src.Addr().As16(), f.Dst.Addr().As16()
		for i := 0; i < 16; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(s[i:])) + uint32(binary.BigEndian.Uint16(d[i:]))
		}
		sum += uint32(len(message)) + testenv.ProtocolICMPv6
	}
	for i := 0; i < len(message); i += 2 {
		word := uint32(message[i]) << 8
		if i+1 < len(message) {
			word |= uint32(message[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum))
	return f
}

// quoted reads the packet in an ICMP error back, as far as it is there.
func quoted(t *testing.T, f testenv.Frame) (src, dst netip.AddrPort) {
	t.Helper()
	b := f.Payload[8:]
	if b[0]>>4 == 6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), binary.BigEndian.Uint16(b[40:])),
			netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:])), binary.BigEndian.Uint16(b[42:]))
	}
	l4 := b[int(b[0]&15)*4:]
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), binary.BigEndian.Uint16(l4)),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), binary.BigEndian.Uint16(l4[2:]))
}

// answer is a packet of a service to a client.
func answerTo(client, service netip.AddrPort, protocol uint8) testenv.Frame {
	return testenv.Frame{
		DstMAC: hardware(clientMAC), SrcMAC: hardware(nicMAC), Src: service, Dst: client, Protocol: protocol,
		Flags: testenv.ACK, Payload: make([]byte, 1000), DontFragment: true,
	}
}

// In dsr and tunnel an error goes to the backend that the client's packets go to,
// also where the slot has another owner by now; unchanged but for its way.
func TestErrorsFollowTheirFlow(t *testing.T) {
	families := withWindow(weights(1, 1, 1))
	families.Addresses = append(families.Addresses, lb.FrontendOf(v6VIP))
	dns := service("dns", lb.DSR, 53, backends(3, 53))
	dns.Protocol, dns.Affinity = lb.UDP, lb.AffinityFlow
	d := newDatapath(t, families, dns)
	type flow struct {
		client, service netip.AddrPort
		protocol        uint8
	}
	var flows []flow
	for i := range 200 {
		a := v6Client.Addr().As16()
		a[15] = byte(i)
		flows = append(flows,
			flow{clientAddr(i), vipPort, testenv.ProtocolTCP},
			flow{netip.AddrPortFrom(netip.AddrFrom16(a), uint16(1000+i)), v6VIP, testenv.ProtocolTCP},
			flow{clientAddr(i), netip.AddrPortFrom(vipIP, 53), testenv.ProtocolUDP})
	}
	way := func(f flow) byte {
		_, out := send(t, d, toVIP(func(p *testenv.Frame) { p.Src, p.Dst, p.Protocol = f.client, f.service, f.protocol }).Bytes())
		return out[5]
	}
	check := func(when string) {
		for _, f := range flows {
			want := way(f)
			in := quote(answerTo(f.client, f.service, f.protocol), 10000)
			got := try(t, d, in.Bytes())
			if got.Outcome != "sent" || got.Frame.DstMAC[5] != want {
				t.Fatalf("%s: an error about %v goes to %v (%s), its flow to %d", when, f, got.Frame.DstMAC, got.Outcome, want)
			}
			wantFrame := parse(t, in.Bytes())
			wantFrame.DstMAC, wantFrame.SrcMAC = got.Frame.DstMAC, hardware(nicMAC)
			if diff := cmp.Diff(wantFrame, got.Frame, equateAddrs); diff != "" {
				t.Fatalf("%s: frame (-want +got):\n%s", when, diff)
			}
		}
	}
	check("at rest")
	changed := withWindow(weights(1, 0, 1, 2))
	changed.Addresses = append(changed.Addresses, lb.FrontendOf(v6VIP))
	dns.Backends = weights(1, 0, 1, 2)
	apply(t, d, changed, dns)
	before := entries(t, d.objects.Pins) + entries(t, d.objects.Stragglers)
	for _, f := range flows {
		try(t, d, quote(answerTo(netip.AddrPortFrom(f.client.Addr(), 9), f.service, f.protocol), 10000).Bytes())
	}
	if after := entries(t, d.objects.Pins) + entries(t, d.objects.Stragglers); after != before {
		t.Errorf("errors have made %d pins", after-before)
	}
	check("in a window")
}

// Full NAT: an error from either side reaches the other, with what it quotes as
// that side knows it.
func TestErrorsThroughNAT(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			d := newDatapath(t, c.service(8080))
			in := c.fromClient()
			there := try(t, d, in.Bytes())
			if there.Outcome != "sent" {
				t.Fatal(there.Outcome)
			}
			source, backend := there.Frame.Src, there.Frame.Dst
			back := testenv.Frame{DstMAC: hardware(nicMAC), Src: backend, Dst: source, Protocol: uint8(c.protocol), Flags: testenv.SYN | testenv.ACK}
			if got := try(t, d, back.Bytes()); got.Outcome != "sent" {
				t.Fatal(got.Outcome)
			}
			header := 20
			if c.v6 {
				header = 40
			}
			for _, size := range []int{header + 8, header + 12, header + 17, header + 18, header + 20, 10000} {
				// From the client's side, about what the backend sent to the client.
				e := quote(answerTo(in.Src, in.Dst, uint8(c.protocol)), size)
				got := try(t, d, e.Bytes())
				if got.Outcome != "sent" {
					t.Fatalf("%d bytes quoted, to the backend: %s", size, got.Outcome)
				}
				src, dst := quoted(t, got.Frame)
				ends := []any{got.Frame.Src.Addr(), got.Frame.Dst.Addr(), src, dst, got.Frame.TTL, got.Frame.DstMAC.String()}
				want := []any{source.Addr(), backend.Addr(), backend, source, uint8(63), hardware(backendMAC(1)).String()}
				if diff := cmp.Diff(want, ends, equateAddrs); diff != "" {
					t.Errorf("%d bytes quoted, to the backend: source, destination, quoted source and destination, hops, MAC (-want +got):\n%s", size, diff)
				}
				// From the backend's side, about what the client sent.
				e = quote(answerTo(backend, source, uint8(c.protocol)), size)
				e.SrcMAC = hardware(backendMAC(1))
				got = try(t, d, e.Bytes())
				if got.Outcome != "sent" {
					t.Fatalf("%d bytes quoted, to the client: %s", size, got.Outcome)
				}
				src, dst = quoted(t, got.Frame)
				ends = []any{got.Frame.Src.Addr(), got.Frame.Dst.Addr(), src, dst, got.Frame.DstMAC.String()}
				want = []any{in.Dst.Addr(), in.Src.Addr(), in.Src, in.Dst, hardware(clientMAC).String()}
				if diff := cmp.Diff(want, ends, equateAddrs); diff != "" {
					t.Errorf("%d bytes quoted, to the client: source, destination, quoted source and destination, MAC (-want +got):\n%s", size, diff)
				}
			}
			// Padding is no part of what is quoted, and no checksum covers it.
			padded := quote(answerTo(in.Src, in.Dst, uint8(c.protocol)), header+8)
			padded.PadTo = len(padded.Bytes()) + 30
			frame := padded.Bytes()
			for i := len(frame) - 30; i < len(frame); i++ {
				frame[i] = 0x5a
			}
			if got := try(t, d, frame); got.Outcome != "sent" {
				t.Errorf("with padding: %s", got.Outcome)
			}
			// What is quoted whole has right checksums afterwards, too.
			e := quote(answerTo(in.Src, in.Dst, uint8(c.protocol)), 10000)
			got := try(t, d, e.Bytes())
			inner := append(append([]byte(nil), got.Frame.DstMAC...), got.Frame.SrcMAC...)
			inner = binary.BigEndian.AppendUint16(inner, got.Frame.EtherType)
			if err := testenv.VerifyChecksums(append(inner, got.Frame.Payload[8:]...)); err != nil {
				t.Errorf("the quoted packet: %v", err)
			}
		})
	}
}

// What is no error about a flow passes untouched, whatever it looks like.
func TestOtherICMPPasses(t *testing.T) {
	web := service("web", lb.DSR, 80, backends(1, 80))
	web.Addresses = append(web.Addresses, lb.FrontendOf(v6VIP))
	d := newDatapath(t, web, service("mail", lb.NAT, 25, backends(1, 25)))
	about := answerTo(clientPort, vipPort, testenv.ProtocolTCP)
	about6 := answerTo(v6Client, v6VIP, testenv.ProtocolTCP)
	typed := func(f testenv.Frame, kind byte) testenv.Frame {
		f.Payload = append([]byte(nil), f.Payload...)
		f.Payload[0] = kind
		return f
	}
	tests := []struct {
		name    string
		in      testenv.Frame
		outcome string
	}{
		{"echo request", typed(quote(about, 100), 8), "protocol"},
		{"echo request, IPv6", typed(quote(about6, 100), 128), "protocol"},
		{"neighbour solicitation", typed(quote(about6, 100), 135), "protocol"},
		{"redirect", typed(quote(about, 100), 5), "protocol"},
		{"source quench", typed(quote(about, 100), 4), "protocol"},
		{"time exceeded", typed(quote(about, 100), 11), "sent"},
		{"parameter problem", typed(quote(about, 100), 12), "sent"},
		{"unreachable, IPv6", typed(quote(about6, 100), 1), "sent"},
		{"time exceeded, IPv6", typed(quote(about6, 100), 3), "sent"},
		{"parameter problem, IPv6", typed(quote(about6, 100), 4), "sent"},
		{"about another port", quote(answerTo(clientPort, netip.AddrPortFrom(vipIP, 81), testenv.ProtocolTCP), 100), "no_flow"},
		{"about an unknown flow of nat", quote(answerTo(clientPort, netip.AddrPortFrom(vipIP, 25), testenv.ProtocolTCP), 100), "no_flow"},
		{"about ICMP", quote(answerTo(clientPort, vipPort, testenv.ProtocolICMP), 100), "protocol"},
		{"about a packet of another version", quote(func() testenv.Frame { f := about; f.Version = 6; return f }(), 100), "protocol"},
		{"about a packet of another version, IPv6", quote(func() testenv.Frame { f := about6; f.Version = 4; return f }(), 100), "protocol"},
		{"with padding in place of a quote", func() testenv.Frame { f := quote(about, 100); f.TotalLength = 28; return f }(), "protocol"},
		{"with padding in place of the quoted ports, IPv6", func() testenv.Frame {
			f := quote(about6, 100)
			f.TotalLength = 40 + 8 + 40
			return f
		}(), "protocol"},
		{"to another NIC", func() testenv.Frame { f := quote(about, 100); toMAC("02:00:00:00:00:02")(&f); return f }(), "other_mac"},
		{"about somebody else's packet", func() testenv.Frame {
			f := quote(answerTo(clientPort, netip.MustParseAddrPort("192.0.2.77:80"), testenv.ProtocolTCP), 100)
			f.Dst = netip.AddrPortFrom(vipIP, 0)
			return f
		}(), "protocol"},
		{"a fragment of an echo", func() testenv.Frame { f := typed(quote(about, 100), 8); f.MoreFragments = true; return f }(), "protocol"},
		{"a later fragment of an echo", func() testenv.Frame { f := typed(quote(about, 100), 8); f.FragOffset = 1480; return f }(), "protocol"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			frame := tc.in.Bytes()
			if tc.outcome == "sent" { // its checksum is wrong
				if verdict, _ := send(t, d, frame); verdict != xdpTX {
					t.Errorf("verdict %d", verdict)
				}
				return
			}
			if got := try(t, d, frame); got.Outcome != tc.outcome {
				t.Errorf("outcome %s, want %s", got.Outcome, tc.outcome)
			}
		})
	}
	for _, about := range []testenv.Frame{about, about6} {
		header := 20
		if about.Src.Addr().Is6() {
			header = 40
		}
		for size := range header + 8 {
			if got := try(t, d, quote(about, size).Bytes()); got.Outcome != "protocol" && got.Outcome != "malformed_ip" {
				t.Errorf("%d bytes quoted: %s", size, got.Outcome)
			}
		}
		if got := try(t, d, quote(about, header+8).Bytes()); got.Outcome != "sent" {
			t.Errorf("%d bytes quoted: %s", header+8, got.Outcome)
		}
	}
}
