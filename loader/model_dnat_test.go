package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// toDNAT sends a packet to a backend with the backend's address, and its port
// unless the service has several.
func (m *model) toDNAT(p *modelPacket, number uint32) string {
	if p.hops() <= 1 {
		return "ttl"
	}
	b := m.state.Backends[number]
	packet := append([]byte(nil), p.ip()...)
	if p.fragment.offset > 0 {
		m.reach("a later fragment to a dnat backend")
		setEnds(packet, p.src, b.Address.Addr())
	} else {
		m.reach("a packet to a dnat backend")
		to := netip.AddrPortFrom(b.Address.Addr(), m.dnatPort(b, p.ports[1]))
		rewrite(packet, p.l4-p.l3, p.protocol, netip.AddrPortFrom(p.src, p.ports[0]), to)
	}
	spendHop(packet)
	return m.emit(p, packet, b.NextHop)
}

// dnatPort is a backend's port for what comes to one of the service's.
func (m *model) dnatPort(b backendEntry, port uint16) uint16 {
	if m.state.Services[b.Service].Flags&lbServiceFlagsSERVICE_KEEPS_PORT != 0 {
		return port
	}
	return b.Address.Port()
}

// A repliedTo is what the first fragment of a backend's packet was translated by.
type repliedTo struct {
	entry replyEntry
	seen  uint32 // tick
}

// fromBackend is a packet to no VIP: a dnat backend's reply, or nobody's.
func (m *model) fromBackend(p *modelPacket) string {
	if !m.toNode(p) {
		return "not_vip"
	}
	malformed := p.readIP()
	if p.isICMP() {
		return m.errorFromBackend(p, malformed)
	}
	e, ok := m.repliedBy(p)
	if !ok {
		return "not_vip"
	}
	if malformed != "" {
		return malformed
	}
	if p.fragment.offset == 0 {
		if out := p.readTransport(); out != "" {
			return out
		}
	}
	if p.fragment.is() && p.fragment.offset == 0 {
		name, first := p.fragmentName(), repliedTo{e, m.now.tick}
		m.later(func() { m.replyFragments[name] = first })
	}
	return m.replyToClient(p, e)
}

// repliedBy finds what a packet is a reply by, malformed as it may be.
func (m *model) repliedBy(p *modelPacket) (replyEntry, bool) {
	switch {
	case !p.mayHavePorts():
	case p.fragment.offset > 0:
		first, ok := m.replyFragments[p.fragmentName()]
		return first.entry, ok && int32(m.now.tick-first.seen) <= modelFragmentTicks
	case len(p.frame) >= p.l4+8:
		return m.replyBy(netip.AddrPortFrom(p.src, be16(p.frame, p.l4)), p.protocol)
	}
	return replyEntry{}, false
}

// replyBy finds whose what comes from an address and port is. From a backend of
// several ports, those of its service alone are replies. An IPv4 address is
// nobody's in an IPv6 header.
func (m *model) replyBy(from netip.AddrPort, protocol lb.Protocol) (replyEntry, bool) {
	if e, ok := m.state.Replies[replyID{from.Addr(), from.Port(), protocol}]; ok {
		return e, true
	}
	e, ok := m.state.Replies[replyID{from.Addr(), 0, protocol}]
	table := m.state.VIPs[m.addressOf(e.VIP)].Tables[portTable(protocol)]
	return e, ok && m.state.service(table, from.Port()) == m.state.Backends[e.Backend].Service
}

// addressOf is the address of a VIP's index.
func (m *model) addressOf(index uint32) netip.Addr {
	for a, v := range m.state.VIPs {
		if v.Index == index {
			return a
		}
	}
	return netip.Addr{}
}

// wayTo is how a packet of this length goes to a client: the clients that the node
// has routes to are all neighbours. 0: any length.
func (m *model) wayTo(client netip.Addr, length int) (lb.NextHop, string) {
	hop, ok := m.clients[client]
	switch {
	case !ok:
		return hop, "not_vip" // the kernel will not forward it either, or it is for the node
	case length > hop.MTU:
		return hop, "too_big"
	}
	return hop, ""
}

// replyToClient sends a backend's packet on as the VIP's.
func (m *model) replyToClient(p *modelPacket, e replyEntry) string {
	hop, out := m.wayTo(p.dst, p.length)
	if out == "too_big" && (p.v6 || be16(p.ip(), 6)&0x4000 != 0) && p.mayBeAnswered() {
		m.reach("an answer to a dnat backend")
		return m.answerTooBig(p, hop.MTU)
	}
	switch {
	case out != "":
		return out
	case p.hops() <= 1:
		return "ttl"
	}
	vip := m.addressOf(e.VIP)
	packet := append([]byte(nil), p.ip()...)
	if p.fragment.offset > 0 {
		m.reach("a later fragment of a dnat reply")
		setEnds(packet, vip, p.dst)
	} else {
		m.reach("a dnat reply")
		rewrite(packet, p.l4-p.l3, p.protocol, netip.AddrPortFrom(vip, e.portOf(p.ports[0])), netip.AddrPortFrom(p.dst, p.ports[1]))
	}
	spendHop(packet)
	if out := m.emit(p, packet, hop); out != "sent" {
		return out
	}
	m.count(e.Backend, lbCounters{ReplyPackets: 1, ReplyBytes: uint64(p.length)})
	return "sent"
}

// portOf is the VIP's port of what comes from one of the backend's.
func (e replyEntry) portOf(port uint16) uint16 {
	if e.Port != 0 {
		return e.Port
	}
	return port
}

// errorToDNAT is an ICMP error about what a backend has sent to a client.
func (m *model) errorToDNAT(p *modelPacket, q modelQuoted, number uint32) string {
	if p.hops() <= 1 {
		return "ttl"
	}
	m.reach("an error to a dnat backend")
	b := m.state.Backends[number]
	from := netip.AddrPortFrom(b.Address.Addr(), m.dnatPort(b, q.src.Port()))
	return m.emit(p, translateError(p, q, p.src, from.Addr(), from, q.dst), b.NextHop)
}

// errorFromBackend is an ICMP packet to no VIP. An error about what this client has
// sent to a backend is the VIP's.
func (m *model) errorFromBackend(p *modelPacket, malformed string) string {
	if malformed != "" {
		return "not_vip"
	}
	q, ok := p.quoted()
	if !ok || q.src.Addr() != p.dst {
		return "not_vip"
	}
	e, ok := m.replyBy(q.dst, q.protocol)
	if !ok {
		return "not_vip"
	}
	hop, out := m.wayTo(p.dst, 0)
	switch {
	case out != "":
		return out
	case p.hops() <= 1:
		return "ttl"
	}
	m.reach("an error to a dnat client")
	vip := netip.AddrPortFrom(m.addressOf(e.VIP), e.portOf(q.dst.Port()))
	return m.emit(p, translateError(p, q, vip.Addr(), p.dst, q.src, vip), hop)
}

func (p *modelPacket) isICMP() bool {
	if p.v6 {
		return p.protocol == testenv.ProtocolICMPv6
	}
	return p.protocol == testenv.ProtocolICMP
}
