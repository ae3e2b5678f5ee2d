package loader

import (
	"net"

	"github.com/sluice-lb/sluice/internal/testenv"
)

func fromMAC(mac net.HardwareAddr) change { return func(f *testenv.Frame) { f.SrcMAC = mac } }

// nodeCases are packets to services that are spread over nodes.
func nodeCases() []packetCase {
	return both(func(family string, base change) []packetCase {
		f := toVIP(base)
		// toNode is a frame as it goes on to another node.
		toNode := func(f testenv.Frame, changes ...change) testenv.Frame {
			hops := f.TTL
			if hops == 0 {
				hops = 64
			}
			f.DstMAC, f.SrcMAC, f.VLANs, f.TTL = hardware(nodeMAC(1)), hardware(nicMAC), nil, hops-1
			return with(f, changes...)
		}
		var cases []packetCase
		passes := func(name string, in testenv.Frame, outcome string) {
			cases = append(cases, ends(family+", nodes: "+name, in, outcome))
		}
		goes := func(name string, in testenv.Frame, changes ...change) {
			cases = append(cases, sent(family+", nodes: "+name, in, toNode(in, changes...)))
		}
		peer := fromMAC(hardware(nodeMAC(1)))
		here, node := with(f, port(portHere)), with(f, port(portNode))

		passes("served here", here, "here")
		passes("served here, SYN", with(here, flags(testenv.SYN)), "here")
		passes("served here, tags", with(here, vlans(7, 8)), "here")
		passes("served here, one hop left", with(here, ttl(1)), "here")
		passes("no node at all", with(f, port(portNoNode)), "here")
		passes("UDP", with(here, udp), "no_service")
		passes("to another MAC address", with(node, toMAC("02:00:00:00:00:02")), "other_mac")
		goes("to another one", node)
		goes("to another one, SYN", with(node, flags(testenv.SYN)))
		goes("to another one, in a tag", with(node, vlans(7)))
		goes("to another one, by a tag", with(f, port(portNodeTag)), vlans(200))
		goes("to another one, two hops left", with(node, ttl(2)))
		goes("to another one, as many hops as can be", with(node, ttl(255)))
		passes("to another one, one hop left", with(node, ttl(1)), "ttl")
		passes("from another one", with(node, peer), "from_node")
		passes("from another one, what is served here", with(here, peer), "from_node")
		passes("from another one, in tags", with(node, peer, vlans(7, 8)), "from_node")
		passes("from another one, one hop left", with(node, peer, ttl(1)), "from_node")
		passes("from another one, SYN", with(node, peer, flags(testenv.SYN)), "from_node")
		passes("from another one, to no service", with(f, peer, port(99)), "no_service")
		passes("from another one, malformed", with(node, peer, func(f *testenv.Frame) { f.DataOffset = 4 }), "malformed_tcp")
		goes("from a MAC address that is nearly another one's", with(node, fromMAC(net.HardwareAddr{2, 0, 0, 0, 2, 0x81})))
		goes("from no MAC address", with(node, fromMAC(net.HardwareAddr{0, 0, 0, 0, 0, 0})))

		about := answerTo(f.Src, f.Dst, testenv.ProtocolTCP)
		passes("an error, served here", quote(with(about, fromPort(portHere)), 100), "here")
		goes("an error, to another one", quote(with(about, fromPort(portNode)), 100))
		passes("an error, from another one", with(quote(with(about, fromPort(portNode)), 100), peer), "from_node")
		passes("an error, one hop left", with(quote(with(about, fromPort(portNode)), 100), ttl(1)), "ttl")
		passes("an error about no node", quote(with(about, fromPort(portNoNode)), 100), "here")

		first := func(f *testenv.Frame) { f.ID, f.MoreFragments, f.Payload = 9, true, zeros(100) }
		later := func(f *testenv.Frame) { f.ID, f.FragOffset, f.Payload = 9, 120, zeros(50) }
		after := func(name string, first, in testenv.Frame, outcome string) {
			cases = append(cases, packetCase{name: family + ", nodes: " + name, before: []testenv.Frame{first}, in: in.Bytes(), outcome: outcome})
		}
		passes("a first fragment, served here", with(here, first), "here")
		goes("a first fragment, to another one", with(node, first))
		after("a later fragment, served here", with(here, first), with(here, later), "here")
		after("a later fragment, from another one", with(node, first, peer), with(node, later, peer), "later_fragment")
		after("a later fragment, one hop left", with(node, first), with(node, later, ttl(1)), "ttl")
		cases = append(cases, packetCase{
			name: family + ", nodes: a later fragment, to another one", before: []testenv.Frame{with(node, first)},
			in: with(node, later).Bytes(), outcome: "sent", out: exactly(toNode(with(node, later)).Bytes()),
		})
		return cases
	})
}
