package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A modelQuoted is the packet that an ICMP error is about. Offsets are those in
// the IP packet that quotes it.
type modelQuoted struct {
	l3, l4   int
	src, dst netip.AddrPort
	protocol lb.Protocol
}

// icmp is a packet to a VIP that is neither TCP nor UDP. An error about a flow
// (RFC 792, RFC 4443) goes the flow's way.
func (m *model) icmp(p *modelPacket, vip vipEntry) string {
	q, ok := p.quoted()
	if !ok || q.src.Addr() != p.dst {
		return "protocol"
	}
	number := m.state.service(vip.Tables[portTable(q.protocol)], q.src.Port())
	s := m.state.Services[number]
	switch {
	case number == 0 && !vip.Source:
		return "protocol"
	case number == 0:
		return m.errorToClient(p, q)
	case s.Forward == lb.NAT:
		return m.errorToBackend(p, q)
	}
	f := flowName{q.dst, q.src, q.protocol}
	if s.Forward == lb.Proxy {
		return m.errorOverNodes(p, f, number, s)
	}
	owner := m.ownerOfQuoted(f, number, s)
	if owner == 0 {
		return "no_backend"
	}
	if s.Forward == lb.DNAT {
		return m.errorToDNAT(p, q, owner)
	}
	p.hash = hashOf(f, s)
	return m.emitTo(p, owner, s.Forward)
}

// quoted reads what an error is about: the header of TCP or UDP, and as much of
// it as has the ports and 8 bytes in all (RFC 792).
func (p *modelPacket) quoted() (modelQuoted, bool) {
	packet := p.ip()[:p.length]
	at := p.l4 - p.l3
	if p.fragment.is() || !p.isError() || len(packet) < at+8 {
		return modelQuoted{}, false
	}
	q := modelQuoted{l3: at + 8}
	inner := packet[q.l3:]
	header, version := 20, byte(4)
	if p.v6 {
		header, version = 40, 6
	}
	if len(inner) < header || inner[0]>>4 != version {
		return q, false
	}
	if p.v6 {
		q.protocol = lb.Protocol(inner[6])
	} else {
		header = int(inner[0]&15) * 4
		q.protocol = lb.Protocol(inner[9])
		if header < 20 || be16(inner, 6)&0x1fff != 0 {
			return q, false
		}
	}
	if len(inner) < header+8 || q.protocol != lb.TCP && q.protocol != lb.UDP {
		return q, false
	}
	q.l4 = q.l3 + header
	src, dst := endsOf(inner, p.v6)
	q.src, q.dst = netip.AddrPortFrom(src, be16(packet, q.l4)), netip.AddrPortFrom(dst, be16(packet, q.l4+2))
	return q, true
}

// isError tells the types of errors.
func (p *modelPacket) isError() bool {
	if len(p.frame) < p.l4+8 {
		return false
	}
	switch kind := p.frame[p.l4]; {
	case p.v6:
		return p.protocol == testenv.ProtocolICMPv6 && kind >= 1 && kind <= 4
	default:
		return p.protocol == testenv.ProtocolICMP && (kind == 3 || kind == 11 || kind == 12)
	}
}

// errorToBackend is an error about what a nat backend has sent.
func (m *model) errorToBackend(p *modelPacket, q modelQuoted) string {
	f := m.flows[flowName{q.dst, q.src, q.protocol}]
	if f == nil || !m.lives(f) {
		return "no_flow"
	}
	if p.hops() <= 1 {
		return "ttl"
	}
	m.reach("an error to a nat backend")
	packet := translateError(p, q, f.source.Addr(), f.backend.Addr(), f.backend, f.source)
	return m.emit(p, packet, m.state.Backends[f.number].NextHop)
}

// errorToClient is an error about what a client has sent to a nat backend.
func (m *model) errorToClient(p *modelPacket, q modelQuoted) string {
	f := m.places[natSpot{q.src, q.dst, q.protocol}]
	if f == nil || !m.lives(f) {
		return "no_flow"
	}
	if _, ok := m.vip(f.name.vip.Addr()); !ok {
		return "no_flow"
	}
	if p.hops() <= 1 {
		return "ttl"
	}
	m.reach("an error to a nat client")
	packet := translateError(p, q, f.name.vip.Addr(), f.name.client.Addr(), f.name.client, f.name.vip)
	return m.emit(p, packet, f.lastHop)
}

// translateError writes other ends into an error and into what it quotes, with the
// checksums of the quoted packet as far as they are there. The error's own covers
// every change of the quote.
func translateError(p *modelPacket, q modelQuoted, src, dst netip.Addr, quotedSrc, quotedDst netip.AddrPort) []byte {
	packet := append([]byte(nil), p.ip()...)
	whole := append([]byte(nil), packet[:p.length]...)
	inner := packet[q.l3:p.length]
	l4 := q.l4 - q.l3
	at := l4 + 16
	if q.protocol == lb.UDP {
		at = l4 + 6
	}
	var checksum []int
	if len(inner) >= at+2 && (q.protocol == lb.TCP || be16(inner, at) != 0) {
		checksum = []int{at}
	}
	setEnds(inner, quotedSrc.Addr(), quotedDst.Addr(), checksum...)
	write(inner, l4, binary.BigEndian.AppendUint16(nil, quotedSrc.Port()), checksum...)
	write(inner, l4+2, binary.BigEndian.AppendUint16(nil, quotedDst.Port()), checksum...)
	if len(checksum) > 0 && q.protocol == lb.UDP && be16(inner, at) == 0 {
		binary.BigEndian.PutUint16(inner[at:], 0xffff) // RFC 768
	}

	icmp := p.l4 - p.l3
	var covered []int
	if p.v6 {
		covered = []int{icmp + 2}
	}
	setEnds(packet, src, dst, covered...)
	spendHop(packet)
	old, now := whole[q.l3:], packet[q.l3:p.length]
	if len(old)%2 == 1 { // its last byte does not change
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	binary.BigEndian.PutUint16(packet[icmp+2:], amend(be16(packet, icmp+2), old, now))
	return packet
}
