package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Full NAT of several ports, each of which the backend has as well. All of them share
// the source ports, so a flow is known by the backend's port, too. The source address
// is one that accepts nothing but services.
func natPortsCases() []packetCase {
	return both(func(family string, base change) []packetCase {
		source, backend := secondSource, elsewhereOf(backendAddr(1))
		if family == "ipv6" {
			source, backend = secondSource6, elsewhereOf(v6Backend.Addr())
		}
		const to = portPorts + 1
		outside, inside := netip.AddrPortFrom(source, worldShare.First), netip.AddrPortFrom(backend, to)
		f := toVIP(base, port(to))
		syn := with(f, flags(testenv.SYN), payload(""), func(f *testenv.Frame) { f.Seq = clientISN })
		back := testenv.Frame{
			DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: inside, Dst: outside, Flags: testenv.SYN | testenv.ACK,
			Seq: backendISN, Ack: clientISN + 1,
		}
		open := []testenv.Frame{syn, back, with(f, payload(""))}
		data := with(back, flags(testenv.ACK), payload("answer"), func(f *testenv.Frame) { f.Seq = backendISN + 1 })
		forward := func(in testenv.Frame, from netip.AddrPort) testenv.Frame {
			return rerouted(in, func(out *testenv.Frame) {
				out.Src, out.Dst, out.TTL = from, netip.AddrPortFrom(backend, in.Dst.Port()), less(in.TTL)
			})
		}
		reply := func(in, of testenv.Frame) testenv.Frame {
			return with(in, func(out *testenv.Frame) {
				out.DstMAC, out.SrcMAC, out.Src, out.Dst, out.TTL = hardware(clientMAC), hardware(nicMAC), of.Dst, of.Src, less(in.TTL)
			})
		}
		after := func(name string, before []testenv.Frame, in, out testenv.Frame) packetCase {
			return packetCase{name: family + ", nat of several ports, " + name, before: before, in: in.Bytes(), outcome: "sent", out: exactly(out.Bytes())}
		}
		fails := func(name string, before []testenv.Frame, in testenv.Frame, outcome string) packetCase {
			return packetCase{name: family + ", nat of several ports, " + name, before: before, in: in.Bytes(), outcome: outcome}
		}
		from := func(p uint16) change {
			return func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(backend, p) }
		}
		second := with(syn, port(portPortsEnd))
		next := netip.AddrPortFrom(source, worldShare.First+1)
		ask := with(f, udp)
		answer := with(back, udp, payload("answer"))
		tcp := uint8(lb.TCP)
		cases := []packetCase{
			after("a SYN keeps its port", nil, syn, forward(syn, outside)),
			after("to another port, the next source port", open, second, forward(second, next)),
			after("the backend's answer", []testenv.Frame{syn}, back, reply(back, f)),
			after("data", open, f, forward(f, outside)),
			after("reply with data", open, data, reply(data, f)),
			after("a datagram", nil, ask, forward(ask, outside)),
			after("the answer to a datagram", []testenv.Frame{ask}, answer, reply(answer, f)),
			fails("a reply from another of its ports", open, with(data, from(portPortsEnd)), "not_accepted"),
			fails("a reply from a port that is no service", open, with(data, from(99)), "not_accepted"),
			fails("a reply to a port that nobody has", open, with(data, func(f *testenv.Frame) { f.Dst = next }), "not_accepted"),
			fails("a reply of the other protocol", open, with(data, udp), "not_accepted"),
			fails("a reply before anything", nil, data, "not_accepted"),
			fails("an error to the client about another port", open, quote(answerTo(netip.AddrPortFrom(backend, portPortsEnd), outside, tcp), 100), "no_flow"),
		}
		header := 20
		if family == "ipv6" {
			header = 40
		}
		for _, quoted := range []struct {
			name string
			size int
		}{{"8 bytes", header + 8}, {"all", 2000}} {
			name, size := quoted.name, quoted.size
			toBackend := translatedError(answerTo(outside, inside, tcp), size, outside, inside, hardware(backendMAC(1)))
			toClient := translatedError(answerTo(f.Dst, f.Src, tcp), size, f.Dst, f.Src, hardware(clientMAC))
			cases = append(cases,
				after("an error to the backend that quotes "+name, open, quote(answerTo(f.Src, f.Dst, tcp), size), toBackend),
				after("an error to the client that quotes "+name, open, quote(answerTo(inside, outside, tcp), size), toClient))
		}
		return cases
	})
}

// elsewhereOf is what elsewhere makes of an address.
func elsewhereOf(a netip.Addr) netip.Addr {
	b := lb.Backend{Address: netip.AddrPortFrom(a, 1)}
	elsewhere(0, &b)
	return b.Address.Addr()
}
