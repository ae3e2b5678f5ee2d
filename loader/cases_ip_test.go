package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// The IP header: lengths, options, addresses, time to live.
func ipCases() []packetCase {
	total := func(n uint16) change { return func(f *testenv.Frame) { f.TotalLength = n } }
	options := func(n int) change { return func(f *testenv.Frame) { f.IPOptions = zeros(n) } }
	ihl := func(n uint8) change { return func(f *testenv.Frame) { f.IHL = n } }
	f := toVIP() // 20 + 20 + 5 bytes
	cases := both(func(family string, base change) []packetCase {
		f := toVIP(base)
		length := uint16(len(f.Bytes()) - 14)
		return []packetCase{
			sent(family+", one hop left in dsr", with(f, ttl(1)), rerouted(f, ttl(1))),
			sent(family+", type of service", with(f, func(f *testenv.Frame) { f.TOS = 0xb9 }), rerouted(f, func(f *testenv.Frame) { f.TOS = 0xb9 })),
			ends(family+", version 5", with(f, func(f *testenv.Frame) { f.Version = 5 }), "malformed_ip"),
			ends(family+", a byte longer than its frame", with(f, total(length+1)), "malformed_ip"),
			ends(family+", as long as can be", with(f, total(65535)), "malformed_ip"),
			ends(family+", shorter than its TCP header", with(f, total(length-6)), "malformed_tcp"),
			ends(family+", another address", with(f, func(f *testenv.Frame) {
				f.Dst = netip.AddrPortFrom(f.Dst.Addr().Prev(), 80)
			}), "not_vip"),
		}
	})
	return append(cases,
		endsRaw("ipv4, no hop left in dsr goes on", f, "no_service", func(b []byte) { b[22], b[37] = 0, 99 }),
		endsRaw("ipv4, version 6", f, "malformed_ip", setByte(14, 0x65)),
		endsRaw("ipv4, a header of 0 words", f, "malformed_ip", setByte(14, 0x40)),
		ends("ipv4, a header of 4 words", with(f, ihl(4)), "malformed_ip"),
		ends("ipv4, a header that ends past the packet", with(f, ihl(15)), "malformed_ip"),
		ends("ipv4, a header that swallows TCP's", with(f, ihl(10)), "malformed_tcp"),
		ends("ipv4, total length of 19", with(f, total(19)), "malformed_ip"),
		sent("ipv4, one word of options", with(f, options(4)), rerouted(f, options(4))),
		sent("ipv4, ten words of options", with(f, options(40)), rerouted(f, options(40))),
		ends("ipv4, options that end past the packet", with(f, options(40), total(59)), "malformed_ip"),
		sent("ipv4, don't fragment and the reserved bit's neighbour", with(f, func(f *testenv.Frame) { f.DontFragment, f.ID = true, 7 }), rerouted(f, func(f *testenv.Frame) { f.DontFragment, f.ID = true, 7 })),
		sentRaw("ipv4, the reserved bit is nobody's business", f, rerouted(f), func(b []byte) { b[20] |= 0x80 }),
		endsRaw("ipv6, version 4", toVIP(from6), "malformed_ip", setByte(14, 0x40)),
		endsRaw("ipv6, a jumbogram's payload length of 0", toVIP(from6), "malformed_tcp", func(b []byte) { b[18], b[19] = 0, 0 }),
		ends("ipv6, the mapped VIP", with(f, func(f *testenv.Frame) {
			f.EtherType, f.Src, f.Dst = testenv.EtherTypeIPv6, v6Client, netip.AddrPortFrom(netip.AddrFrom16(vipIP.As16()), 80)
		}), "not_vip"),
		sent("ipv6, a flow label", toVIP(from6, func(f *testenv.Frame) { f.FlowLabel = 0xabcde }), rerouted(toVIP(from6), func(f *testenv.Frame) { f.FlowLabel = 0xabcde })),
		ends("ipv4, IGMP", with(f, func(f *testenv.Frame) { f.Protocol = 2 }), "protocol"),
		ends("ipv4, SCTP", with(f, func(f *testenv.Frame) { f.Protocol = 132 }), "protocol"),
		ends("ipv6, no next header", toVIP(from6, func(f *testenv.Frame) { f.Protocol = 59 }), "protocol"),
		ends("ipv6, ESP", toVIP(from6, func(f *testenv.Frame) { f.Protocol = 50 }), "protocol"),
	)
}

// IPv6 extension headers.
func extensionCases() []packetCase {
	f := toVIP(from6)
	header := func(kind uint8, words int) change {
		return func(f *testenv.Frame) {
			h := zeros(8 + 8*words)
			h[1] = byte(words)
			f.Extensions, f.NextHeaders = append(f.Extensions[:len(f.Extensions):len(f.Extensions)], h), append(f.NextHeaders[:len(f.NextHeaders):len(f.NextHeaders)], kind)
		}
	}
	ah := func(f *testenv.Frame) { // 24 bytes: four words behind the first two
		h := zeros(24)
		h[1] = 4
		f.Extensions, f.NextHeaders = append(f.Extensions, h), append(f.NextHeaders, 51)
	}
	chain := func(n int) change {
		return func(f *testenv.Frame) {
			for range n {
				header(60, 0)(f)
			}
		}
	}
	same := func(name string, changes ...change) packetCase {
		return sent("ipv6, "+name, with(f, changes...), rerouted(with(f, changes...)))
	}
	toDNS := func(f *testenv.Frame) { udp(f); port(portFlows)(f) }
	return []packetCase{
		same("hop-by-hop options", header(0, 0)),
		same("destination options", header(60, 2)),
		same("a routing header", header(43, 2)),
		same("a mobility header", header(135, 1)),
		same("an atomic fragment", header(testenv.ProtocolFragment, 0)),
		same("AH", ah),
		same("hop-by-hop, destination, routing, atomic fragment, AH", header(0, 1), header(60, 0), header(43, 0), header(testenv.ProtocolFragment, 0), ah),
		same("eight headers", chain(8)),
		ends("ipv6, nine headers", with(f, chain(9)), "malformed_ip"),
		same("a transport header as deep as is looked", header(60, 55)), // 54 + 448 = 502
		ends("ipv6, a transport header too deep", with(f, header(60, 57)), "malformed_ip"),
		ends("ipv6, a header that ends past the packet", with(f, header(60, 0), func(f *testenv.Frame) { f.Extensions[0][1] = 20 }), "malformed_ip"),
		ends("ipv6, a header that ends in padding", with(f, header(60, 0), func(f *testenv.Frame) { f.Extensions[0][1], f.PadTo = 9, 400 }), "malformed_ip"),
		ends("ipv6, a header that the packet's end cuts", with(f, header(60, 1), func(f *testenv.Frame) { f.TotalLength = 48 }), "malformed_ip"),
		ends("ipv6, an unknown header", with(f, header(140, 0)), "protocol"),
		ends("ipv6, options before ICMPv6", with(f, header(0, 0), func(f *testenv.Frame) {
			f.Protocol, f.Payload = testenv.ProtocolICMPv6, zeros(8)
		}), "protocol"),
		ends("ipv6, options and no next header", with(f, header(0, 0), func(f *testenv.Frame) { f.Protocol = 59 }), "protocol"),
		ends("ipv6, options before UDP to no service", with(f, header(0, 0), udp, port(99)), "no_service"),
		{name: "ipv6, options before UDP", in: with(f, header(60, 0), toDNS).Bytes(), outcome: "sent", out: anyBackend(with(f, header(60, 0), toDNS))},
	}
}

// anyBackend is a frame of dsr that may go to any of three backends.
func anyBackend(f testenv.Frame) func([]byte) []byte {
	return func(got []byte) []byte {
		out := rerouted(f).Bytes()
		if len(got) > 5 && got[5] >= 1 && got[5] <= 3 {
			out[5] = got[5]
		}
		return out
	}
}

// Fragments.
func fragmentCases() []packetCase {
	cases := both(func(family string, base change) []packetCase {
		first := func(f *testenv.Frame) { f.ID, f.MoreFragments, f.Payload = 9, true, zeros(100) }
		later := func(f *testenv.Frame) { f.ID, f.FragOffset, f.Payload = 9, 120, zeros(50) }
		one, two := toVIP(base, first), toVIP(base, later)
		middle := with(two, func(f *testenv.Frame) { f.MoreFragments = true })
		after := func(name string, first, in testenv.Frame, outcome string) packetCase {
			return packetCase{name: family + ", " + name, before: []testenv.Frame{first}, in: in.Bytes(), outcome: outcome}
		}
		follows := func(name string, first, in testenv.Frame, out testenv.Frame) packetCase {
			c := after(name, first, in, "sent")
			c.out = exactly(out.Bytes())
			return c
		}
		return []packetCase{
			sent(family+", a first fragment", one, rerouted(one)),
			follows("the last fragment follows", one, two, rerouted(two)),
			follows("a middle one follows", one, middle, rerouted(middle)),
			follows("tags do not matter", with(one, vlans(7)), two, rerouted(two)),
			ends(family+", a later fragment before the first", two, "early_fragment"),
			after("a later fragment of another packet", one, with(two, func(f *testenv.Frame) { f.ID++ }), "early_fragment"),
			after("a later fragment of another client", one, with(two, func(f *testenv.Frame) {
				f.Src = netip.AddrPortFrom(f.Src.Addr().Next(), 1)
			}), "early_fragment"),
			after("a later fragment follows to the kernel", with(one, port(99)), two, "later_fragment"),
			ends(family+", a first fragment to no service", with(one, port(99)), "no_service"),
			ends(family+", one that overwrites TCP flags", with(two, func(f *testenv.Frame) { f.FragOffset = 8 }), "fragment"),
			after("one that overwrites TCP flags, after the first", one, with(two, func(f *testenv.Frame) { f.FragOffset = 8 }), "fragment"),
			follows("one that overwrites TCP options", one, with(two, func(f *testenv.Frame) { f.FragOffset = 16 }), rerouted(with(two, func(f *testenv.Frame) { f.FragOffset = 16 }))),
			ends(family+", a first fragment to nat, of no flow", with(one, port(portNAT)), "no_flow"),
			after("a later fragment to nat follows it to the kernel", with(one, port(portNAT)), two, "later_fragment"),
			ends(family+", a first fragment to no backend", with(one, port(portEmpty)), "no_backend"),
		}
	})
	cut := func(n uint16) change {
		return func(f *testenv.Frame) { f.MoreFragments, f.TotalLength = true, n }
	}
	cases = append(cases, headerCases()...)
	return append(cases,
		ends("ipv4, a first fragment without a whole TCP header", toVIP(cut(36)), "malformed_tcp"),
		ends("ipv4, a first fragment without a whole UDP header", toVIP(udp, cut(26)), "malformed_udp"),
		ends("ipv4, a first fragment of ICMP", toVIP(func(f *testenv.Frame) { f.Protocol, f.MoreFragments, f.Payload = testenv.ProtocolICMP, true, zeros(16) }), "protocol"),
		ends("ipv4, a later fragment of ICMP", toVIP(func(f *testenv.Frame) { f.Protocol, f.FragOffset, f.Payload = testenv.ProtocolICMP, 16, zeros(16) }), "protocol"),
	)
}

// Later fragments of IPv6 whose header names something else than the first one's.
// Of another protocol in IPv4 they are another packet's.
func headerCases() []packetCase {
	f := toVIP(func(f *testenv.Frame) { f.Payload = zeros(100) })
	f6 := with(f, from6)
	whole := func(f *testenv.Frame) { f.ID, f.MoreFragments = 9, true }
	later := func(protocol uint8) change {
		return func(f *testenv.Frame) {
			f.Protocol, f.Payload = protocol, zeros(50)
			fragmentHeader(9, 120, false)(f)
		}
	}
	follows := func(name string, first, in, out testenv.Frame) packetCase {
		return packetCase{name: "ipv6, " + name, before: []testenv.Frame{first}, in: in.Bytes(), outcome: "sent", out: exactly(out.Bytes())}
	}
	inside := with(f6, headersInside(9))
	options, routing, asUDP := with(f6, later(testenv.ProtocolDestination)), with(f6, later(43)), with(f6, later(testenv.ProtocolUDP))
	return []packetCase{
		{name: "ipv4, a later fragment of another protocol", before: []testenv.Frame{with(f, whole)}, in: with(f, udp, func(f *testenv.Frame) { f.ID, f.FragOffset = 9, 120 }).Bytes(), outcome: "early_fragment"},
		sent("ipv6, a first fragment with options inside", inside, rerouted(inside)),
		follows("a later fragment with options inside follows", inside, options, rerouted(options)),
		follows("a later fragment whose header names a routing header follows", inside, routing, rerouted(routing)),
		follows("a later fragment whose header names UDP follows one of TCP", inside, asUDP, rerouted(asUDP)),
		follows("a later fragment whose header names options follows one of TCP", with(f6, whole), options, rerouted(options)),
		ends("ipv6, a later fragment of anything, perhaps", options, "protocol"),
		{name: "ipv6, a later fragment whose header names ICMPv6", before: []testenv.Frame{inside}, in: with(f6, later(testenv.ProtocolICMPv6)).Bytes(), outcome: "protocol"},
		{name: "ipv6, a later fragment with options inside follows to the kernel", before: []testenv.Frame{with(inside, port(99))}, in: options.Bytes(), outcome: "later_fragment"},
	}
}
