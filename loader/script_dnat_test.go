package loader

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// dnat sends what passes between a client and a backend that keeps its address:
// packets, fragments of either side, errors.
func (w *twin) dnat(s *script) error {
	switch n := s.pick(8); {
	case n < 2:
		f := w.toService(s)
		f.Dst = netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portDNAT), portDNAT, portKept, portKeptEnd))
		return w.feed(spoil(s, f))
	case n < 4:
		return w.feed(spoil(s, w.dnatReply(s)))
	case n == 4:
		f := w.dnatReply(s)
		f.Payload = zeros(oneOf(s, 1420, 1440, 1460, 1472, 2000, 8000) + s.pick(32))
		f.DontFragment = s.pick(4) != 3
		return w.feed(spoil(s, f))
	case n == 5:
		return w.feed(spoil(s, w.dnatError(s)))
	case n == 6:
		f := w.toService(s)
		f.Dst = netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portDNAT), portKept))
		return w.pieces(s, f)
	}
	return w.pieces(s, w.dnatReply(s))
}

// dnatReply is a packet of such a backend, to a client or somebody else.
func (w *twin) dnatReply(s *script) testenv.Frame {
	ids := slices.SortedFunc(maps.Keys(w.m.state.Replies), compareReplies)
	id := oneOf(s, ids...)
	f := toVIP()
	f.SrcMAC = hardware(backendMAC(1))
	f.Protocol = uint8(id.Protocol)
	port := id.Port
	if port == 0 || s.pick(8) == 7 {
		port = oneOf(s, uint16(portKept), portKept+1, portKeptEnd, portKeptEnd+1, portDNAT+8000)
	}
	clients := append([]netip.Addr{netip.MustParseAddr("198.51.100.1")}, scriptClients...)
	if id.Address.Is6() {
		clients = append([]netip.Addr{netip.MustParseAddr("2001:db8:1::1")}, scriptClients6...)
	}
	f.Src = netip.AddrPortFrom(id.Address, port)
	f.Dst = netip.AddrPortFrom(clients[s.pick(len(clients))], uint16(40000+s.pick(3)))
	if f.Src.Addr().Is4() && s.pick(16) == 15 { // which is nobody's
		f.Src, f.Dst = netip.AddrPortFrom(netip.AddrFrom16(id.Address.As16()), port), v6Client
		f.EtherType = testenv.EtherTypeIPv6
	}
	f.Flags, f.ID = oneOf(s, scriptFlags...), uint16(s.pick(3))
	f.Payload = zeros(oneOf(s, 5, 0, 1, 100))
	return f
}

// dnatError is an error from the backend's side, about what a client has sent.
func (w *twin) dnatError(s *script) testenv.Frame {
	reply := w.dnatReply(s)
	f := quote(answerTo(reply.Src, reply.Dst, reply.Protocol), 28+s.pick(64))
	f.SrcMAC = hardware(backendMAC(1))
	f.Dst = netip.AddrPortFrom(reply.Dst.Addr(), 0)
	if s.pick(8) == 7 {
		f.Dst = netip.AddrPortFrom(w.dnatReply(s).Dst.Addr(), 0)
	}
	f.Payload[0] = oneOf(s, f.Payload[0], f.Payload[0], 1, 3, 8, 11, 128)
	if f.Src.Addr().Is6() == f.Dst.Addr().Is6() {
		checksummed(f.Payload, f.Src.Addr(), f.Dst.Addr())
	}
	return f
}

// pieces sends fragments of a packet, in any order, with time between them.
func (w *twin) pieces(s *script, f testenv.Frame) error {
	f.ID = uint16(s.pick(3))
	f.Payload = zeros(40 + s.pick(200))
	all := f.Fragments(24 + 8*s.pick(8))
	next := 0
	for range 1 + s.pick(5) {
		var err error
		switch n := s.pick(8); {
		case n < 5:
			err = w.feed(all[next%len(all)])
			next++
		case n == 5:
			err = w.feed(all[s.pick(len(all))])
		case n == 6:
			f.FragOffset, f.MoreFragments = uint16(8*s.pick(16)), s.pick(2) == 1
			err = w.feed(spoil(s, f))
		case n == 7:
			err = w.age(oneOf(s, time.Second, 40*time.Second))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
