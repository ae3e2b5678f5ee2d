package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// tunnelled is a frame of a tunnel: the packet with one hop less, in an outer
// header. The outer source, and what else the program is free to choose, is taken
// from what left; the model has judged it.
func tunnelled(in testenv.Frame, dst netip.Addr, outer testenv.Tunnel, tags ...uint16) func([]byte) []byte {
	return func(got []byte) []byte {
		inner := rerouted(in, vlans(tags...))
		hops := in.TTL
		if hops == 0 {
			hops = 64
		}
		inner.TTL = hops - 1
		outer.Dst, outer.TTL, outer.TOS = dst, inner.TTL, in.TOS
		o, _, err := testenv.Decapsulate(got)
		if err != nil {
			return nil
		}
		outer.Src = o.Src
		at := 14 + 4*len(tags)
		if dst.Is6() {
			outer.FlowLabel = binary.BigEndian.Uint32(got[at:]) & 0xfffff
		} else if !outer.DontFragment {
			outer.ID = binary.BigEndian.Uint16(got[at+4:])
		}
		b, err := outer.Encapsulate(inner.Bytes())
		if err != nil {
			return nil
		}
		return b
	}
}

// Tunnels, in the four mixes of families.
func tunnelCases() []packetCase {
	cases := both(func(family string, base change) []packetCase {
		f := toVIP(base)
		v6 := family == "ipv6"
		var cases []packetCase
		for _, to := range []struct {
			name         string
			port, narrow uint16
			dst          netip.Addr
			tags         []uint16
			fits         int // bytes of payload that fit the narrow way
			mtu          uint16
		}{
			{"ipv4", portTunnel4, portNarrow4, backendAddr(1), nil, 1500 - 20 - 20 - 20, 1480},
			{"ipv6", portTunnel6, portNarrow6, v6Backend.Addr(), []uint16{200, 300}, 1400 - 40 - 20 - 20, 1360},
		} {
			if v6 {
				to.fits -= 20
			}
			name := family + " in " + to.name
			outer := testenv.Tunnel{DontFragment: v6}
			through := func(what string, in testenv.Frame, outer testenv.Tunnel, tags []uint16) packetCase {
				return packetCase{name: name + ", " + what, in: in.Bytes(), outcome: "sent", out: tunnelled(in, to.dst, outer, tags...)}
			}
			g := with(f, port(to.port))
			whole := func(f *testenv.Frame) { f.DontFragment = !v6 }
			long := func(n int) change { return func(f *testenv.Frame) { f.Payload = zeros(n) } }
			narrow := with(f, port(to.narrow), whole)
			big := with(narrow, long(to.fits+1))
			cases = append(cases,
				through("data", g, outer, to.tags),
				through("DSCP and ECN", with(g, func(f *testenv.Frame) { f.TOS = 0xb9 }), outer, to.tags),
				through("two hops left", with(g, ttl(2)), outer, to.tags),
				through("as many hops as can be", with(g, ttl(255)), outer, to.tags),
				through("tags in place of others", with(g, vlans(7)), outer, to.tags),
				through("not to be fragmented", with(g, whole), testenv.Tunnel{DontFragment: true}, to.tags),
				through("it just fits", with(narrow, long(to.fits)), testenv.Tunnel{DontFragment: true}, nil),
				ends(name+", one hop left", with(g, ttl(1)), "ttl"),
				packetCase{name: name + ", a byte too long", in: big.Bytes(), outcome: "answered", out: exactly(tooBig(big, to.mtu).Bytes())},
				packetCase{name: name + ", a byte too long, tagged", in: with(big, vlans(7, 8)).Bytes(), outcome: "answered", out: exactly(with(tooBig(big, to.mtu), vlans(7, 8)).Bytes())},
				packetCase{name: name + ", longer than a page", in: with(big, long(8000)).Bytes(), outcome: "answered", out: exactly(tooBig(with(big, long(8000)), to.mtu).Bytes())},
			)
			if !v6 {
				cases = append(cases, ends(name+", too long, and it may be fragmented", with(big, func(f *testenv.Frame) { f.DontFragment = false }), "too_big"))
			}
		}
		return cases
	})
	return cases
}

// tooBig is the answer to a packet that is too long for a tunnel.
func tooBig(about testenv.Frame, mtu uint16) testenv.Frame {
	v6 := about.Dst.Addr().Is6()
	about.VLANs = nil
	kind := []byte{3, 4}
	f := testenv.Frame{
		DstMAC: about.SrcMAC, SrcMAC: about.DstMAC, Src: netip.AddrPortFrom(about.Dst.Addr(), 0),
		Dst: netip.AddrPortFrom(about.Src.Addr(), 0), Protocol: testenv.ProtocolICMP, TOS: 0xc0, DontFragment: true,
	}
	if v6 {
		kind, f.Protocol, f.TOS, f.DontFragment = []byte{2, 0}, testenv.ProtocolICMPv6, 0, false
	}
	message := append(kind, 0, 0, 0, 0, byte(mtu>>8), byte(mtu))
	f.Payload = checksummed(append(message, about.Bytes()[14:14+512]...), f.Src.Addr(), f.Dst.Addr())
	return f
}
