package loader

import (
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// TCP and UDP headers.
func transportCases() []packetCase {
	return both(func(family string, base change) []packetCase {
		f := toVIP(base)
		l4 := 34
		if family == "ipv6" {
			l4 = 54
		}
		offset := func(n uint8) change { return func(f *testenv.Frame) { f.DataOffset = n } }
		options := func(n int) change { return func(f *testenv.Frame) { f.TCPOptions = zeros(n) } }
		dns := with(f, udp, port(portDNS))
		size := func(n byte) func([]byte) { return func(b []byte) { b[l4+4], b[l4+5] = 0, n } }
		cases := []packetCase{
			ends(family+", data offset 4", with(f, offset(4)), "malformed_tcp"),
			ends(family+", data offset past the packet", with(f, offset(15)), "malformed_tcp"),
			endsRaw(family+", data offset 0", f, "malformed_tcp", setByte(l4+12, 0)),
			sent(family+", data offset to the packet's end", with(f, options(40), payload("")), rerouted(f, options(40), payload(""))),
			ends(family+", malformed TCP to no service", with(f, port(99), offset(4)), "malformed_tcp"),
			ends(family+", port 0", with(f, port(0)), "no_service"),
			ends(family+", port 65535", with(f, port(65535)), "no_service"),
			sent(family+", from port 0", with(f, fromPort(0)), rerouted(f, fromPort(0))),
			{name: family + ", the range's first port", in: with(f, port(portRange)).Bytes(), outcome: "sent", out: anyBackend(with(f, port(portRange)))},
			ends(family+", the port before a range", with(f, port(portRange-1)), "no_service"),
			ends(family+", the port behind a range", with(f, port(portRangeEnd+1)), "no_service"),
			ends(family+", UDP to a TCP service", with(f, udp), "no_service"),
			ends(family+", TCP to a UDP service", with(f, port(portDNS)), "no_service"),
			endsRaw(family+", UDP length 7", dns, "malformed_udp", size(7)),
			endsRaw(family+", UDP length 0", dns, "malformed_udp", size(0)),
			endsRaw(family+", UDP longer than its packet", dns, "malformed_udp", size(14)),
			{name: family + ", UDP", in: dns.Bytes(), outcome: "sent", out: anyBackend(dns)},
			{name: family + ", UDP without payload", in: with(dns, payload("")).Bytes(), outcome: "sent", out: anyBackend(with(dns, payload("")))},
		}
		short := dns.Bytes()
		size(9)(short)
		cases = append(cases, packetCase{name: family + ", UDP shorter than its packet", in: short, outcome: "sent", out: func(got []byte) []byte {
			b := anyBackend(dns)(got)
			size(9)(b)
			return b
		}})
		for _, flag := range []testenv.TCPFlags{
			testenv.SYN, testenv.SYN | testenv.ACK, testenv.SYN | testenv.FIN, testenv.SYN | testenv.RST, testenv.RST,
			testenv.FIN | testenv.ACK, 0, 0x3f,
		} {
			cases = append(cases, sent(fmt.Sprintf("%s, flags %q", family, flag), with(f, flags(flag)), rerouted(f, flags(flag))))
		}
		return cases
	})
}

func client(a string) change {
	return func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(netip.MustParseAddr(a), f.Src.Port()) }
}

// What a service refuses, and ways out.
func serviceCases() []packetCase {
	cases := both(func(family string, base change) []packetCase {
		f := toVIP(base)
		denied, let, plain := deniedIP.String(), "198.51.100.1", plainVIP
		if family == "ipv6" {
			denied, let, plain = deniedIP6.String(), "2001:db8:1::99", plainVIP6
		}
		syn := flags(testenv.SYN)
		elsewhere := func(p uint16) change {
			return func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(plain, p) }
		}
		limited := with(f, syn, port(portLimited))
		return []packetCase{
			sent(family+", by another NIC", with(f, port(portAway)), rerouted(f, port(portAway))),
			ends(family+", no way to the backend", with(f, port(portLost)), "no_next_hop"),
			ends(family+", no backend", with(f, port(portEmpty)), "no_backend"),
			sent(family+", no rule for the client", with(f, port(portRules)), rerouted(f, port(portRules))),
			sent(family+", a client that is allowed", with(f, port(portAllowed), client(let)), rerouted(f, port(portAllowed), client(let))),
			ends(family+", a client that is not allowed", with(f, port(portAllowed), client(denied)), "denied"),
			sent(family+", a VIP without nat", with(f, elsewhere(portDSR)), rerouted(f, elsewhere(portDSR))),
			ends(family+", a VIP without nat, no service", with(f, elsewhere(99)), "no_service"),
			sent(family+", the first connection within a limit", limited, rerouted(limited)),
			{name: family + ", more connections than the limit", before: []testenv.Frame{limited, with(limited, fromPort(2)), with(limited, fromPort(3))},
				in: with(limited, fromPort(4)).Bytes(), outcome: "source_limit"},
			{name: family + ", data beyond the limit", before: []testenv.Frame{limited, with(limited, fromPort(2)), with(limited, fromPort(3))},
				in: with(limited, flags(testenv.ACK)).Bytes(), outcome: "sent", out: exactly(rerouted(limited, flags(testenv.ACK)).Bytes())},
		}
	})
	rules := toVIP(port(portRules))
	return append(cases,
		ends("ipv4, a denied prefix", with(rules, client("198.51.100.129")), "denied"),
		sent("ipv4, a longer prefix that allows", with(rules, client("198.51.100.193")), rerouted(rules, client("198.51.100.193"))),
		ends("ipv4, behind the longer prefix", with(rules, client("198.51.100.200")), "denied"),
		ends("ipv4, one denied among the allowed", with(rules, port(portAllowed), client("198.51.100.9")), "denied"),
		ends("ipv6, a denied prefix", toVIP(from6, port(portRules), client(deniedIP6.String())), "denied"),
		sent("ipv6, beside a denied prefix", toVIP(from6, port(portRules), client("2001:db8:bae::1")), rerouted(toVIP(from6, port(portRules), client("2001:db8:bae::1")))),
	)
}
