package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// dnatBackend is the i-th backend of the service of one port, or of the one that
// keeps ports, as a client's packet to this port reaches it.
func dnatBackend(v6 bool, to uint16, i int) netip.AddrPort {
	a := backendAddr(i)
	if v6 {
		b := v6Backend.Addr().As16()
		b[15] += byte(i - 1)
		a = netip.AddrFrom16(b)
	}
	if to == portDNAT {
		return netip.AddrPortFrom(a, portDNAT+8000)
	}
	b := a.AsSlice()
	b[len(b)-1] += 100
	a, _ = netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, to)
}

// toDNATBackend is a client's packet as it reaches whichever backend it went to.
func toDNATBackend(f testenv.Frame) func([]byte) []byte {
	return func(got []byte) []byte {
		i := 1
		if len(got) > 5 && got[5] >= 1 && got[5] <= 3 {
			i = int(got[5])
		}
		out := rerouted(f, func(out *testenv.Frame) {
			out.DstMAC, out.TTL, out.Dst = hardware(backendMAC(i)), less(f.TTL), dnatBackend(f.Dst.Addr().Is6(), f.Dst.Port(), i)
		})
		return out.Bytes()
	}
}

// dnatCases are nat that keeps the client's address. Replies leave by the node's
// routes: eth0 leads to the client.
func dnatCases() []packetCase {
	return both(func(family string, base change) []packetCase {
		v6 := family == "ipv6"
		var cases []packetCase
		add := func(name string, before []testenv.Frame, in testenv.Frame, outcome string, out func([]byte) []byte) {
			cases = append(cases, packetCase{name: family + ", dnat, " + name, before: before, in: in.Bytes(), outcome: outcome, out: out})
		}
		goes := func(name string, in testenv.Frame, before ...testenv.Frame) {
			add(name, before, in, "sent", toDNATBackend(in))
		}
		fails := func(name string, in testenv.Frame, outcome string, before ...testenv.Frame) {
			add(name, before, in, outcome, nil)
		}
		first := func(f *testenv.Frame) { f.ID, f.MoreFragments, f.Payload = 9, true, zeros(100) }
		later := func(f *testenv.Frame) { f.ID, f.FragOffset, f.Payload = 9, 120, zeros(51) }
		f := toVIP(base, port(portDNAT))

		goes("a SYN", with(f, flags(testenv.SYN), payload("")))
		goes("data of no flow that is known", f)
		goes("an odd byte", with(f, payload("x")))
		goes("a datagram", with(f, udp))
		goes("two hops left", with(f, ttl(2)))
		goes("tags are taken off", with(f, vlans(7, 8)))
		goes("padding", with(f, payload(""), func(f *testenv.Frame) { f.PadTo = 90 }))
		goes("longer than a page", with(f, func(f *testenv.Frame) { f.Payload = zeros(8001) }))
		for _, to := range []uint16{portKept, portKept + 1, portKeptEnd} {
			goes("a kept port: "+netip.AddrPortFrom(vipIP, to).String(), with(f, port(to)))
			goes("a kept port of UDP: "+netip.AddrPortFrom(vipIP, to).String(), with(f, udp, port(to)))
		}
		fails("behind the last kept port", with(f, port(portKeptEnd+1)), "no_service")
		fails("no hop left", with(f, ttl(1)), "ttl")
		fails("another MAC address", with(f, toMAC("02:00:00:00:00:02")), "other_mac")
		one, two := with(f, first), with(f, later)
		goes("a first fragment", one)
		goes("a later fragment", two, one)
		goes("a later fragment of a datagram", with(two, udp), with(one, udp))
		fails("a later fragment before the first", two, "early_fragment")
		fails("a later fragment without a hop left", with(two, ttl(1)), "ttl", one)
		fails("one that overwrites TCP flags", with(two, func(f *testenv.Frame) { f.FragOffset = 8 }), "fragment", one)

		if v6 {
			goes("a later fragment with options inside", with(f, fragmentHeader(9, 120, false), func(f *testenv.Frame) {
				f.Protocol, f.Payload = testenv.ProtocolDestination, zeros(51)
			}), with(f, headersInside(9)))
		}

		// What comes back.
		for _, to := range []uint16{portDNAT, portKept + 1} {
			name := map[bool]string{true: "a reply", false: "a reply of a kept port"}[to == portDNAT]
			backend := dnatBackend(v6, to, 1)
			vip := netip.AddrPortFrom(f.Dst.Addr(), to)
			back := reply(testenv.Frame{Src: f.Src, Dst: backend, Protocol: testenv.ProtocolTCP})
			leaves := func(in testenv.Frame) func([]byte) []byte {
				out := with(in, func(out *testenv.Frame) {
					out.Src, out.TTL, out.VLANs = vip, less(in.TTL), nil
					out.DstMAC, out.SrcMAC = neighbourMAC(f.Src.Addr()), wayMAC
				})
				return exactly(out.Bytes())
			}
			returns := func(name string, in testenv.Frame, before ...testenv.Frame) {
				add(name, before, in, "sent", leaves(in))
			}
			returns(name, back)
			returns(name+" over UDP", with(back, udp))
			returns(name+" with tags", with(back, vlans(5)))
			returns(name+" with SYN and ACK", with(back, flags(testenv.SYN|testenv.ACK), payload("")))
			returns(name+" with two hops left", with(back, ttl(2)))
			returns(name+" as long as the way takes", with(back, func(f *testenv.Frame) { f.Payload = zeros(1500 - 20 - headers(back) + 14) }))
			returns(name+", a first fragment", with(back, first))
			returns(name+", a later fragment", with(back, later), with(back, first))
			fails(name+", a later fragment before the first", with(back, later), "not_vip")
			fails(name+" without a hop left", with(back, ttl(1)), "ttl")
			fails(name+" to another MAC address", with(back, toMAC("02:00:00:00:00:02")), "not_vip")
			fails(name+" to a client that no route leads to", with(back, func(f *testenv.Frame) {
				f.Dst = netip.AddrPortFrom(f.Dst.Addr().Next().Next().Next(), 1)
			}), "not_vip")
			fails(name+" of another port", with(back, func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(backend.Addr(), portKeptEnd+1) }), "not_vip")
			fails(name+" of no backend", with(back, func(f *testenv.Frame) {
				f.Src = netip.AddrPortFrom(backend.Addr().Next().Next().Next(), backend.Port())
			}), "not_vip")
			fails(name+" of another protocol", with(back, func(f *testenv.Frame) { f.Protocol = 132 }), "not_vip")
			fails(name+" that is cut short", with(back, func(f *testenv.Frame) { f.TotalLength = 1000 }), "malformed_ip")
			fails(name+" with a data offset of 4", with(back, func(f *testenv.Frame) { f.DataOffset = 4 }), "malformed_tcp")
			if v6 {
				returns(name+", a later fragment with options inside", with(back, fragmentHeader(9, 120, false), func(f *testenv.Frame) {
					f.Protocol, f.Payload = testenv.ProtocolDestination, zeros(51)
				}), with(back, headersInside(9)))
			} else {
				fails(name+" that is too long and may be fragmented", with(back, func(f *testenv.Frame) { f.Payload = zeros(1461) }), "too_big")
				fails(name+" from its backend's address in an IPv6 header", with(back, func(f *testenv.Frame) {
					f.EtherType, f.Src, f.Dst = testenv.EtherTypeIPv6, netip.AddrPortFrom(netip.AddrFrom16(backend.Addr().As16()), backend.Port()), v6Client
				}), "not_vip")
			}
			cases = append(cases, dnatErrors(family+", dnat, "+name, f, backend, vip)...)
		}
		return cases
	})
}

// dnatErrors are ICMP errors about what a client and a backend have sent each other.
func dnatErrors(name string, f testenv.Frame, backend, vip netip.AddrPort) []packetCase {
	tcp := uint8(lb.TCP)
	header := 20
	if f.Src.Addr().Is6() {
		header = 40
	}
	var cases []packetCase
	for _, size := range []struct {
		name string
		n    int
	}{{"8 bytes", header + 8}, {"the checksum", header + 18}, {"all", 2000}} {
		// About the client's packet, as the backend knows it, and as the client does.
		about := func(to netip.AddrPort) testenv.Frame {
			e := quote(answerTo(to, f.Src, tcp), size.n)
			e.Src, e.Dst, e.SrcMAC = netip.AddrPortFrom(backend.Addr(), 0), netip.AddrPortFrom(f.Src.Addr(), 0), hardware(backendMAC(1))
			return with(e, func(e *testenv.Frame) { checksummed(e.Payload, e.Src.Addr(), e.Dst.Addr()) })
		}
		in := about(backend)
		out := with(about(vip), func(e *testenv.Frame) {
			e.Src, e.TTL = netip.AddrPortFrom(vip.Addr(), 0), 63
			e.DstMAC, e.SrcMAC = neighbourMAC(f.Src.Addr()), wayMAC
			checksummed(e.Payload, e.Src.Addr(), e.Dst.Addr())
		})
		cases = append(cases, packetCase{name: name + ", an error to the client that quotes " + size.name, in: in.Bytes(), outcome: "sent", out: exactly(out.Bytes())})
		// About the backend's.
		in = quote(answerTo(f.Src, vip, tcp), size.n)
		cases = append(cases, packetCase{
			name: name + ", an error to the backend that quotes " + size.name, in: in.Bytes(), outcome: "sent",
			out: func(got []byte) []byte {
				i := 1
				if len(got) > 5 && got[5] >= 1 && got[5] <= 3 {
					i = int(got[5])
				}
				to := dnatBackend(f.Src.Addr().Is6(), vip.Port(), i)
				e := quote(answerTo(f.Src, to, tcp), size.n)
				e.Src, e.Dst = in.Src, netip.AddrPortFrom(to.Addr(), 0)
				e.DstMAC, e.SrcMAC, e.TTL = hardware(backendMAC(i)), hardware(nicMAC), 63
				checksummed(e.Payload, e.Src.Addr(), e.Dst.Addr())
				return e.Bytes()
			},
		})
	}
	other := quote(answerTo(backend, f.Src, tcp), 100)
	other.Src, other.Dst = netip.AddrPortFrom(backend.Addr(), 0), netip.AddrPortFrom(f.Src.Addr().Next(), 0)
	checksummed(other.Payload, other.Src.Addr(), other.Dst.Addr())
	late := with(quote(answerTo(f.Src, vip, tcp), 100), ttl(1))
	return append(cases,
		packetCase{name: name + ", an error to another client than it is about", in: other.Bytes(), outcome: "not_vip"},
		packetCase{name: name + ", an error to the backend without a hop left", in: late.Bytes(), outcome: "ttl"},
	)
}
