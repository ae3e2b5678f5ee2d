package loader

import (
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// ICMP errors about flows of dsr and tunnel, and what is none.
func icmpCases() []packetCase {
	cases := both(func(family string, base change) []packetCase {
		f := toVIP(base)
		v6, header := family == "ipv6", 20
		kinds, others := []byte{3, 11, 12}, []byte{0, 4, 5, 8, 13}
		if v6 {
			header, kinds, others = 40, []byte{1, 2, 3, 4}, []byte{0, 128, 129, 133, 135, 137}
		}
		about := answerTo(f.Src, f.Dst, testenv.ProtocolTCP)
		typed := func(e testenv.Frame, kind byte) testenv.Frame {
			e.Payload = append([]byte(nil), e.Payload...)
			e.Payload[0] = kind
			checksummed(e.Payload, e.Src.Addr(), e.Dst.Addr())
			return e
		}
		var cases []packetCase
		for _, kind := range kinds {
			e := typed(quote(about, 100), kind)
			cases = append(cases, sent(fmt.Sprintf("%s, an error of type %d", family, kind), e, rerouted(e)))
		}
		for _, kind := range others {
			cases = append(cases, ends(fmt.Sprintf("%s, type %d, which is no error", family, kind), typed(quote(about, 100), kind), "protocol"))
		}
		passes := func(name string, e testenv.Frame, outcome string) {
			cases = append(cases, ends(family+", "+name, e, outcome))
		}
		goes := func(name string, e testenv.Frame) { cases = append(cases, sent(family+", "+name, e, rerouted(e))) }
		short := quote(about, header+8)
		goes("an error that quotes 8 bytes of TCP", short)
		goes("an error that quotes all", quote(about, 5000))
		goes("an error with tags", with(quote(about, 100), vlans(9)))
		passes("an error that quotes 7 bytes of TCP", quote(about, header+7), "protocol")
		passes("an error that quotes half a header", quote(about, 10), "protocol")
		passes("an error that quotes nothing", quote(about, 0), "protocol")
		passes("a quote that lies in padding", with(short, func(e *testenv.Frame) { e.TotalLength = uint16(header + 8) }), "protocol")
		passes("an error about another version", quote(with(about, func(f *testenv.Frame) { f.Version = 5 }), 100), "protocol")
		passes("an error about ICMP", quote(with(about, func(f *testenv.Frame) { f.Protocol = testenv.ProtocolICMP }), 100), "protocol")
		passes("an error to another MAC address", with(short, toMAC("02:00:00:00:00:02")), "other_mac")
		passes("an error in a first fragment", with(quote(about, 100), func(e *testenv.Frame) { e.MoreFragments = true }), "protocol")
		passes("an error in a later fragment", with(quote(about, 100), func(e *testenv.Frame) { e.FragOffset = 1480 }), "protocol")
		passes("an error about no backend", quote(with(about, fromPort(portEmpty)), 100), "no_backend")
		passes("an error about no flow of nat", quote(with(about, fromPort(portNAT)), 100), "no_flow")
		passes("an error about a port that is no service", quote(with(about, fromPort(99)), 100), "no_flow")
		passes("an error on no way to the backend", quote(with(about, fromPort(portLost)), 100), "no_next_hop")
		foreign := quote(with(about, func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(f.Src.Addr().Prev(), 80) }), 100)
		foreign.Dst = netip.AddrPortFrom(f.Dst.Addr(), 0)
		passes("an error about somebody else's packet", typed(foreign, kinds[0]), "protocol")
		tunnel := quote(with(about, fromPort(portTunnel4)), 100)
		outer := testenv.Tunnel{DontFragment: true}
		cases = append(cases, packetCase{
			name: family + ", an error through a tunnel", in: tunnel.Bytes(), outcome: "sent", out: tunnelled(tunnel, backendAddr(1), outer),
		})
		passes("an error that is too long for a tunnel", quote(with(about, fromPort(portNarrow4), func(f *testenv.Frame) { f.Payload = zeros(2000) }), 1460), "too_big")
		return cases
	})
	about := answerTo(clientPort, vipPort, testenv.ProtocolTCP)
	options := quote(with(about, func(f *testenv.Frame) { f.IPOptions = zeros(40) }), 68)
	less := quote(with(about, func(f *testenv.Frame) { f.IPOptions = zeros(40) }), 67)
	outer := with(quote(about, 100), func(f *testenv.Frame) { f.IPOptions = zeros(4) })
	return append(cases,
		sent("ipv4, an error that quotes options", options, rerouted(options)),
		ends("ipv4, an error that quotes options and 7 bytes", less, "protocol"),
		sent("ipv4, an error with options", outer, rerouted(outer)),
		ends("ipv4, an error about a later fragment", quote(with(about, func(f *testenv.Frame) { f.FragOffset = 8 }), 100), "protocol"),
		ends("ipv4, an error that quotes a header of 4 words", quote(with(about, func(f *testenv.Frame) { f.IHL = 4 }), 100), "protocol"),
		ends("ipv6, an error that quotes extension headers", quote(with(answerTo(v6Client, v6VIP, testenv.ProtocolTCP), destinationOptions), 100), "protocol"),
	)
}

func fromPort(p uint16) change {
	return func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(f.Src.Addr(), p) }
}
