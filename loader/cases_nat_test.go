package loader

import (
	"net"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Full NAT, both ways. The first flow of a world has the share's first port.
func natCasesOf() []packetCase {
	return both(func(family string, base change) []packetCase {
		vip, backend := vipIP, backendAddr(1)
		if family == "ipv6" {
			vip, backend = v6VIP.Addr(), v6Backend.Addr()
		}
		source, inside := netip.AddrPortFrom(vip, worldShare.First), netip.AddrPortFrom(backend, portNAT+8000)
		f := toVIP(base, port(portNAT))
		syn := with(f, flags(testenv.SYN), payload(""), func(f *testenv.Frame) { f.Seq = clientISN })
		back := testenv.Frame{
			DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: inside, Dst: source, Flags: testenv.SYN | testenv.ACK,
			Seq: backendISN, Ack: clientISN + 1,
		}
		open := []testenv.Frame{syn, back, with(f, payload(""))}
		forward := func(f testenv.Frame) testenv.Frame {
			return rerouted(f, func(f *testenv.Frame) { f.Src, f.Dst, f.TTL = source, inside, less(f.TTL) })
		}
		reply := func(in testenv.Frame, tags ...uint16) testenv.Frame {
			return with(in, vlans(tags...), func(out *testenv.Frame) {
				out.DstMAC, out.SrcMAC, out.Src, out.Dst, out.TTL = hardware(clientMAC), hardware(nicMAC), f.Dst, f.Src, less(in.TTL)
			})
		}
		after := func(name string, before []testenv.Frame, in, out testenv.Frame) packetCase {
			return packetCase{name: family + ", nat, " + name, before: before, in: in.Bytes(), outcome: "sent", out: exactly(out.Bytes())}
		}
		fails := func(name string, before []testenv.Frame, in testenv.Frame, outcome string) packetCase {
			return packetCase{name: family + ", nat, " + name, before: before, in: in.Bytes(), outcome: outcome}
		}
		data := with(back, flags(testenv.ACK), payload("answer"), func(f *testenv.Frame) { f.Seq = backendISN + 1 })
		ask := with(f, udp)
		answer := with(back, udp, payload("answer"))
		options := func(f *testenv.Frame) { f.IPOptions = zeros(8) }
		tagged := []testenv.Frame{with(syn, vlans(0x2007, 8))}
		other := netip.AddrPortFrom(f.Src.Addr().Next(), f.Src.Port())
		cases := []packetCase{
			after("a SYN", nil, syn, forward(syn)),
			after("a SYN sent again", []testenv.Frame{syn}, syn, forward(syn)),
			after("the backend's answer", []testenv.Frame{syn}, back, reply(back)),
			after("data", open, f, forward(f)),
			after("data with options of TCP", open, with(f, func(f *testenv.Frame) { f.TCPOptions = zeros(12) }), forward(with(f, func(f *testenv.Frame) { f.TCPOptions = zeros(12) }))),
			after("an odd byte", open, with(f, payload("x")), forward(with(f, payload("x")))),
			after("two hops left", open, with(f, ttl(2)), forward(with(f, ttl(2)))),
			after("padding", open, with(f, payload(""), func(f *testenv.Frame) { f.PadTo = 90 }), forward(with(f, payload(""), func(f *testenv.Frame) { f.PadTo = 90 }))),
			after("longer than a page", open, with(f, func(f *testenv.Frame) { f.Payload = zeros(8001) }), forward(with(f, func(f *testenv.Frame) { f.Payload = zeros(8001) }))),
			after("a tag is taken off", open, with(f, vlans(7)), forward(f)),
			after("reply with data", open, data, reply(data)),
			after("reply through the client's tags, with the priority of its own", tagged, with(back, vlans(0xe001)), reply(back, 0xe007, 8)),
			after("a datagram", nil, ask, forward(ask)),
			after("the answer to a datagram", []testenv.Frame{ask}, answer, reply(answer)),
			after("FIN on an open flow", open, with(f, flags(testenv.FIN|testenv.ACK)), forward(with(f, flags(testenv.FIN|testenv.ACK)))),
			after("RST on an open flow", open, with(f, flags(testenv.RST)), forward(with(f, flags(testenv.RST)))),
			after("a SYN on an open flow", open, syn, forward(syn)),
			fails("data without a flow", nil, f, "no_flow"),
			fails("SYN and ACK without a flow", nil, with(f, flags(testenv.SYN|testenv.ACK)), "no_flow"),
			fails("SYN and FIN without a flow", nil, with(f, flags(testenv.SYN|testenv.FIN)), "no_flow"),
			fails("SYN and RST without a flow", nil, with(f, flags(testenv.SYN|testenv.RST)), "no_flow"),
			fails("another client's data", open, with(f, func(f *testenv.Frame) { f.Src = other }), "no_flow"),
			fails("a SYN without a hop left", nil, with(syn, ttl(1)), "ttl"),
			fails("a reply without a hop left", open, with(data, ttl(1)), "ttl"),
			fails("a reply from another port", open, with(data, func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(backend, 9) }), "no_service"),
			fails("a reply from another address", open, with(data, func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(backend.Next(), portNAT+8000) }), "no_service"),
			fails("a reply to another port", open, with(data, func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(vip, worldShare.First+1) }), "no_service"),
			fails("a reply of the other protocol", open, with(data, udp), "no_service"),
			fails("a reply before anything", nil, data, "no_service"),
		}
		cases = append(cases, errorsThroughNAT(family, open, f, source, inside)...)
		cases = append(cases, natFragmentCases(family, natSides{
			open: open, f: f, syn: syn, back: back, data: data, ask: ask, answer: answer, forward: forward,
			reply: func(f testenv.Frame) testenv.Frame { return reply(f) },
		})...)
		// It has no checksum, and gets none.
		at := 40
		if family == "ipv6" {
			at = 60
		}
		cases = append(cases, sentRaw(family+", nat, a datagram without a checksum", ask, forward(ask), func(b []byte) { b[at], b[at+1] = 0, 0 }))
		if family == "ipv4" {
			cases = append(cases,
				after("options of IP", open, with(f, options), forward(with(f, options))),
				after("options of IP on a reply", open, with(data, options), reply(with(data, options))),
			)
		} else {
			atomic := func(f *testenv.Frame) {
				f.Extensions, f.NextHeaders = [][]byte{zeros(8)}, []uint8{testenv.ProtocolFragment}
			}
			cases = append(cases,
				after("an atomic fragment", open, with(f, atomic), forward(with(f, atomic))),
				after("destination options", open, with(f, destinationOptions), forward(with(f, destinationOptions))),
			)
		}
		return cases
	})
}

func destinationOptions(f *testenv.Frame) {
	f.Extensions, f.NextHeaders = [][]byte{{0, 0, 1, 4, 0, 0, 0, 0}}, []uint8{testenv.ProtocolDestination}
}

// less is a time to live after a hop; 0 stands for 64.
func less(hops uint8) uint8 {
	if hops == 0 {
		return 63
	}
	return hops - 1
}

// errorsThroughNAT are ICMP errors about an open flow, from either side.
func errorsThroughNAT(family string, open []testenv.Frame, f testenv.Frame, source, inside netip.AddrPort) []packetCase {
	header := 20
	if family == "ipv6" {
		header = 40
	}
	sizes := []struct {
		name string
		size int
	}{
		{"8 bytes", header + 8}, {"all but the checksum", header + 16}, {"the checksum", header + 18}, {"a header", header + 20}, {"all", 2000},
	}
	tcp := uint8(lb.TCP)
	var cases []packetCase
	for _, s := range sizes {
		toBackend := translatedError(answerTo(source, inside, tcp), s.size, source, inside, hardware(backendMAC(1)))
		toClient := translatedError(answerTo(f.Dst, f.Src, tcp), s.size, f.Dst, f.Src, hardware(clientMAC))
		cases = append(cases, packetCase{
			name: family + ", nat, an error to the backend that quotes " + s.name, before: open, outcome: "sent",
			in: quote(answerTo(f.Src, f.Dst, tcp), s.size).Bytes(), out: exactly(toBackend.Bytes()),
		}, packetCase{
			name: family + ", nat, an error to the client that quotes " + s.name, before: open, outcome: "sent",
			in: quote(answerTo(inside, source, tcp), s.size).Bytes(), out: exactly(toClient.Bytes()),
		})
	}
	late := with(quote(answerTo(f.Src, f.Dst, tcp), 2000), ttl(1))
	unknown := quote(answerTo(netip.AddrPortFrom(f.Src.Addr(), 9), f.Dst, tcp), 2000)
	short := quote(answerTo(f.Src, f.Dst, tcp), header+7)
	return append(cases,
		packetCase{name: family + ", nat, an error without a hop left", before: open, in: late.Bytes(), outcome: "ttl"},
		packetCase{name: family + ", nat, an error about no flow", before: open, in: unknown.Bytes(), outcome: "no_flow"},
		packetCase{name: family + ", nat, an error that quotes too little", before: open, in: short.Bytes(), outcome: "protocol"},
	)
}

// translatedError is an error as it leaves, about a packet as who gets it knows it.
func translatedError(about testenv.Frame, size int, src, dst netip.AddrPort, to net.HardwareAddr) testenv.Frame {
	f := quote(about, size)
	f.Src, f.Dst = netip.AddrPortFrom(src.Addr(), 0), netip.AddrPortFrom(dst.Addr(), 0)
	f.DstMAC, f.SrcMAC, f.TTL = to, hardware(nicMAC), 63
	checksummed(f.Payload, src.Addr(), dst.Addr())
	return f
}
