package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// natSides are packets of both sides of a flow of nat, and how they leave.
type natSides struct {
	open           []testenv.Frame // make a connection
	f, syn         testenv.Frame   // of the client
	back, data     testenv.Frame   // of the backend: its SYN, and data
	ask, answer    testenv.Frame   // datagrams
	forward, reply func(testenv.Frame) testenv.Frame
}

// Fragments through nat, both ways. Which identification they get is the program's
// choice; the model sees to it that it is a packet's own.
func natFragmentCases(family string, s natSides) []packetCase {
	first := func(f *testenv.Frame) { f.ID, f.MoreFragments, f.Payload = 9, true, zeros(100) }
	later := func(f *testenv.Frame) { f.ID, f.FragOffset, f.Payload = 9, 120, zeros(51) }
	middle := func(f *testenv.Frame) { f.MoreFragments = true; f.Payload = zeros(48) }
	var cases []packetCase
	fails := func(name string, before []testenv.Frame, in testenv.Frame, outcome string) {
		cases = append(cases, packetCase{name: family + ", nat, " + name, before: before, in: in.Bytes(), outcome: outcome})
	}
	after := func(name string, before []testenv.Frame, in, out testenv.Frame) {
		cases = append(cases, packetCase{name: family + ", nat, " + name, before: before, in: in.Bytes(), outcome: "sent", out: identified(out)})
	}
	and := func(before []testenv.Frame, more ...testenv.Frame) []testenv.Frame {
		return append(before[:len(before):len(before)], more...)
	}
	for _, side := range []struct {
		name   string
		before []testenv.Frame
		packet testenv.Frame
		leaves func(testenv.Frame) testenv.Frame
	}{
		{"of an open flow", s.open, s.f, s.forward},
		{"of a reply", s.open, s.data, s.reply},
		{"of a datagram that opens a flow", nil, s.ask, s.forward},
		{"of the answer to a datagram", []testenv.Frame{s.ask}, s.answer, s.reply},
	} {
		one, two := with(side.packet, first), with(side.packet, later)
		started := and(side.before, one)
		after("a first fragment "+side.name, side.before, one, side.leaves(one))
		after("a first fragment "+side.name+", again", started, one, side.leaves(one))
		after("a first fragment "+side.name+", with tags", side.before, with(one, vlans(7)), side.leaves(one))
		after("the last fragment "+side.name, started, two, side.leaves(two))
		after("a middle fragment "+side.name, started, with(two, middle), side.leaves(with(two, middle)))
		after("a later fragment "+side.name+" with two hops left", started, with(two, ttl(2)), side.leaves(with(two, ttl(2))))
		fails("a later fragment "+side.name+" without a hop left", started, with(two, ttl(1)), "ttl")
		fails("a later fragment "+side.name+" before the first", side.before, two, "early_fragment")
		fails("a later fragment "+side.name+" with another identification", started, with(two, func(f *testenv.Frame) { f.ID = 10 }), "early_fragment")
		fails("a later fragment "+side.name+" from another address", started, with(two, func(f *testenv.Frame) {
			f.Src = netip.AddrPortFrom(f.Src.Addr().Next(), 1)
		}), "early_fragment")
		if side.before != nil {
			fails("a first fragment "+side.name+" without a hop left", side.before, with(one, ttl(1)), "ttl")
		}
	}
	if family == "ipv6" {
		inside := with(s.f, headersInside(9), func(f *testenv.Frame) { f.Payload = zeros(96) })
		two := with(s.f, fragmentHeader(9, 120, false), func(f *testenv.Frame) { f.Protocol, f.Payload = testenv.ProtocolDestination, zeros(51) })
		after("a first fragment with options inside", s.open, inside, s.forward(inside))
		after("a later fragment with options inside", and(s.open, inside), two, s.forward(two))
	}
	fails("a SYN in a fragment", nil, with(s.syn, first), "fragment")
	fails("a SYN in a fragment, of an open flow", s.open, with(s.syn, first), "fragment")
	fails("a later fragment after a SYN in one", and(s.open, with(s.syn, first)), with(s.f, later), "early_fragment")
	fails("a backend's SYN in a fragment", []testenv.Frame{s.syn}, with(s.back, first), "fragment")
	fails("a first fragment of no flow", nil, with(s.f, first), "no_flow")
	fails("a later fragment of no flow", []testenv.Frame{with(s.f, first)}, with(s.f, later), "later_fragment")
	fails("a first fragment to a source address, of no flow", nil, with(s.data, first), "no_service")
	fails("a later fragment to a source address, of no flow", []testenv.Frame{with(s.data, first)}, with(s.data, later), "later_fragment")
	// Both sides have sent FIN, and the client has used its port again.
	fin := flags(testenv.FIN | testenv.ACK)
	over := and(s.open, with(s.f, fin), with(s.data, fin), with(s.data, first), s.syn)
	fails("a later fragment of a reply, of a flow that is over", over, with(s.data, later), "early_fragment")
	return cases
}

// identified is a fragment with the identification of the one that has left.
func identified(f testenv.Frame) func([]byte) []byte {
	return func(got []byte) []byte {
		at := 14 + 4*len(f.VLANs)
		if f.Dst.Addr().Is4() {
			if len(got) > at+6 {
				f.ID = be16(got, at+4)
			}
			return f.Bytes()
		}
		out := f.Bytes()
		if id := at + 40 + 4; len(got) > id+4 {
			copy(out[id:id+4], got[id:])
		}
		return out
	}
}
