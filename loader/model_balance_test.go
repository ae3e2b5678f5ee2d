package loader

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// hashOf is what chooses the slot of a flow.
func hashOf(f flowName, s serviceEntry) uint64 {
	if s.Flags&lbServiceFlagsSERVICE_SOURCE_HASH != 0 {
		return SourceHash(f.client.Addr())
	}
	return FlowHash(f.client, f.vip, f.protocol)
}

// slotOf returns the slot that a flow falls into.
func (m *model) slotOf(f flowName, number uint16, s serviceEntry) slot {
	return m.state.Slots[number][Slot(hashOf(f, s), s.Count)]
}

// ownerOf returns the number of the backend for a packet in a stateless mode, or 0.
func (m *model) ownerOf(p *modelPacket, number uint16, s serviceEntry) uint32 {
	word := m.slotOf(p.flow(), number, s)
	switch {
	case p.protocol == lb.UDP && s.Flags&lbServiceFlagsSERVICE_UDP_FLOWS != 0:
		return m.ownerOfDatagram(p, word.owner())
	case p.protocol == lb.UDP, word.state() == lbSlotStateSLOT_CLEAN:
		return word.owner()
	}
	return m.ownerOfSegment(p, word)
}

// A visitorName is who a limit counts: an IPv4 address, or a /64.
type visitorName struct {
	prefix  netip.Prefix
	service uint16
}

// A due is the time at which what a client owes is paid off: between these two.
type due struct{ earliest, latest time.Duration }

// guard applies the service's rules and limits.
func (m *model) guard(p *modelPacket, number uint16, s serviceEntry) string {
	const ruled = lbServiceFlagsSERVICE_RULES | lbServiceFlagsSERVICE_ALLOW_ONLY
	if s.Flags&ruled != 0 && !m.lets(p.src, number, s) {
		return "denied"
	}
	if s.Flags&lbServiceFlagsSERVICE_SOURCE_LIMIT != 0 && p.opens && !m.withinLimit(p.src, number, s) {
		return "source_limit"
	}
	return ""
}

// lets tells whether the longest prefix that holds the client lets it in.
func (m *model) lets(client netip.Addr, number uint16, s serviceEntry) bool {
	in, longest := s.Flags&lbServiceFlagsSERVICE_ALLOW_ONLY == 0, -1
	for id, allow := range m.state.Rules {
		if id.Service == number && id.Prefix.Bits() > longest && holds(id.Prefix, client) {
			in, longest = allow, id.Prefix.Bits()
		}
	}
	return in
}

// holds is netip.Prefix.Contains, which keeps IPv4-mapped addresses out.
func holds(prefix netip.Prefix, a netip.Addr) bool {
	if prefix.Addr().Is4() != a.Is4() {
		return false
	}
	p, b := prefix.Addr().AsSlice(), a.AsSlice()
	for i := range prefix.Bits() {
		if (p[i/8]^b[i/8])<<(i%8)&0x80 != 0 {
			return false
		}
	}
	return true
}

// withinLimit tells whether the client may open another connection: so many at
// once, and then one an interval. Where the time of the packet is not known well
// enough, what the program did is right.
func (m *model) withinLimit(client netip.Addr, number uint16, s serviceEntry) bool {
	bits := 64
	if client.Is4() {
		bits = 32
	}
	name := visitorName{netip.PrefixFrom(client, bits).Masked(), number}
	interval := time.Second / time.Duration(s.Limit.Rate)
	slack := interval * time.Duration(s.Limit.Burst-1)
	old, known := m.dues[name]
	next := due{max(old.earliest, m.now.before) + interval, max(old.latest, m.now.after) + interval}
	least, most := old.earliest-m.now.after, old.latest-m.now.before
	if known && least > slack || known && most > slack && m.seen == nil {
		return false
	}
	m.later(func() { m.dues[name] = next })
	return true
}
