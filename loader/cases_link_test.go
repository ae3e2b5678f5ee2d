package loader

import "github.com/sluice-lb/sluice/internal/testenv"

// Ethernet: addresses, tags, padding.
func linkCases() []packetCase {
	return both(func(family string, base change) []packetCase {
		f := toVIP(base)
		tagged, double := port(portTagged), port(portDouble)
		kept := func(b []byte) { b[12], b[13] = 0x88, 0xa8 }
		return []packetCase{
			sent(family+", untagged", f, rerouted(f)),
			sent(family+", a tag is taken off", with(f, vlans(100)), rerouted(f)),
			sent(family+", two tags are taken off", with(f, vlans(100, 200)), rerouted(f)),
			sent(family+", a tag is put on", with(f, tagged), rerouted(f, tagged, vlans(200))),
			sent(family+", a tag in place of another, with its priority", with(f, tagged, vlans(0xe000|7)), rerouted(f, tagged, vlans(0xe000|200))),
			sentRaw(family+", a service tag keeps its type", with(f, tagged, vlans(7)), rerouted(f, tagged, vlans(200)), kept),
			sent(family+", a tag in place of two, with the outer's priority", with(f, tagged, vlans(0xa007, 0x2008)), rerouted(f, tagged, vlans(0xa0c8))),
			sent(family+", two tags are put on", with(f, double), rerouted(f, double, vlans(200, 300))),
			sent(family+", two tags in place of one, with its priority", with(f, double, vlans(0x6001)), rerouted(f, double, vlans(0x6000|200, 300))),
			sent(family+", two tags in place of two, with both priorities", with(f, double, vlans(0x6001, 0x8002)), rerouted(f, double, vlans(0x6000|200, 0x8000|300))),
			sent(family+", padding goes along", with(f, func(f *testenv.Frame) { f.Payload, f.PadTo = nil, 90 }), rerouted(f, func(f *testenv.Frame) { f.Payload, f.PadTo = nil, 90 })),
			sent(family+", longer than a page", with(f, func(f *testenv.Frame) { f.Payload = zeros(8900) }), rerouted(f, func(f *testenv.Frame) { f.Payload = zeros(8900) })),
			sent(family+", longer than a page, tagged", with(f, tagged, func(f *testenv.Frame) { f.Payload = zeros(8900) }), rerouted(f, tagged, vlans(200), func(f *testenv.Frame) { f.Payload = zeros(8900) })),
			endsRaw(family+", three tags", with(f, vlans(1, 2)), "not_ip", func(b []byte) { b[20], b[21] = 0x81, 0 }),
			endsRaw(family+", another type", f, "not_ip", func(b []byte) { b[12], b[13] = 0x88, 0x47 }),
			endsRaw(family+", a length in place of a type", f, "not_ip", func(b []byte) { b[12], b[13] = 0, 40 }),
			ends(family+", another MAC address", with(f, toMAC("02:00:00:00:00:02")), "other_mac"),
			ends(family+", broadcast", with(f, toMAC("ff:ff:ff:ff:ff:ff")), "other_mac"),
			ends(family+", multicast", with(f, toMAC("01:00:5e:00:00:12")), "other_mac"),
			ends(family+", another MAC address, malformed", with(f, toMAC("02:00:00:00:00:02"), func(f *testenv.Frame) { f.Version = 5 }), "other_mac"),
		}
	})
}
