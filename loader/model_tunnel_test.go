package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// How much an answer quotes of a packet that is too long for its way.
const modelQuote = 512

// tunnel puts a packet into another one for its backend.
func (m *model) tunnel(p *modelPacket, number uint32) string {
	b := m.state.Backends[number]
	if p.hops() <= 1 {
		return "ttl"
	}
	header, whole := 40, p.v6 || be16(p.ip(), 6)&0x4000 != 0
	if b.Address.Addr().Is4() {
		header = 20
	}
	if b.NextHop.MTU != 0 && p.length+header > b.NextHop.MTU {
		if !whole || p.length < modelQuote || !p.mayBeAnswered() {
			return "too_big"
		}
		return m.answerTooBig(p, b.NextHop.MTU-header)
	}
	m.reach("a tunnel")
	inner := append([]byte(nil), p.ip()...)
	spendHop(inner)
	packet := append(m.outer(p, b.Address.Addr(), inner, whole, spread(p)), inner...)
	types := [][]uint16{{}, {testenv.EtherTypeVLAN}, {testenv.EtherTypeQinQ, testenv.EtherTypeVLAN}}[b.NextHop.Tags]
	return m.leave(p, packet, b.NextHop, types)
}

// spread is what varies outer headers between flows, and not within one. Of
// fragments, only the first has ports.
func spread(p *modelPacket) uint64 {
	h := p.hash >> 32
	if !p.fragment.is() && (p.protocol == lb.TCP || p.protocol == lb.UDP) {
		h ^= uint64(bigEndian16(p.ports[0]))<<16 | uint64(bigEndian16(p.ports[1]))
	}
	h *= golden
	return h ^ h>>32
}

// outer returns an outer header.
func (m *model) outer(p *modelPacket, to netip.Addr, inner []byte, whole bool, spread uint64) []byte {
	t := testenv.Tunnel{Dst: to, TTL: inner[8], TOS: inner[1], DontFragment: whole, Protocol: testenv.ProtocolIPv4}
	if p.v6 {
		t.TTL, t.TOS, t.Protocol = inner[7], uint8(be16(inner, 0)>>4), testenv.ProtocolIPv6
	}
	host := make([]byte, 16)
	size := 40
	if to.Is4() {
		size = 20
		binary.LittleEndian.PutUint32(host[12:], uint32(spread))
		t.Src = within(DefaultTunnelSource4, host[12:])
		// Where the packet may be fragmented, the identification is any.
		if at := 14 + 4*m.tagsOut(); !whole && len(m.seen) >= at+6 {
			t.ID = be16(m.seen, at+4)
		}
	} else {
		binary.LittleEndian.PutUint64(host, mix(spread))
		binary.LittleEndian.PutUint64(host[8:], spread)
		t.Src, t.FlowLabel = within(DefaultTunnelSource6, host), uint32(spread>>32&0xfffff)
	}
	frame := append(make([]byte, 12), byte(etherTypeOf(inner)>>8), byte(etherTypeOf(inner)))
	b, err := t.Encapsulate(append(frame, inner[:p.length]...))
	if err != nil {
		m.wrong = err.Error()
		return make([]byte, size)
	}
	return b[14 : 14+size]
}

// tagsOut counts the tags of the frame that the program sent.
func (m *model) tagsOut() int {
	n := 0
	for len(m.seen) >= 16+4*n && (be16(m.seen, 12+4*n) == testenv.EtherTypeVLAN || be16(m.seen, 12+4*n) == testenv.EtherTypeQinQ) {
		n++
	}
	return n
}

// within returns the address of a prefix with these bits for its host.
func within(prefix netip.Prefix, host []byte) netip.Addr {
	b := prefix.Addr().AsSlice()
	for i := prefix.Bits(); i < 8*len(b); i++ {
		b[i/8] |= host[i/8] & (0x80 >> (i % 8))
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// mayBeAnswered tells whether an ICMP error about a packet may be sent: not about
// an error, and of IPv4 only about the first fragment (RFC 1122, section 3.2.2; RFC
// 4443, section 2.4).
func (p *modelPacket) mayBeAnswered() bool {
	return (p.protocol == lb.TCP || p.protocol == lb.UDP) && (p.v6 || p.fragment.offset == 0)
}

// answerTooBig answers the client: fragmentation needed (RFC 1191), or packet too
// big (RFC 4443, section 3.2), which never says less than every link carries.
func (m *model) answerTooBig(p *modelPacket, mtu int) string {
	quote := p.ip()[:modelQuote]
	message := []byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
	answer := testenv.Frame{
		Src: netip.AddrPortFrom(p.dst, 0), Dst: netip.AddrPortFrom(p.src, 0), Protocol: testenv.ProtocolICMP,
		TOS: 0xc0, DontFragment: true, EtherType: testenv.EtherTypeIPv4,
	}
	if p.v6 {
		mtu = max(mtu, 1280)
		message = []byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
		answer.Protocol, answer.TOS, answer.EtherType = testenv.ProtocolICMPv6, 0, testenv.EtherTypeIPv6
	}
	answer.Payload = checksummed(append(message, quote...), answer.Src.Addr(), answer.Dst.Addr())
	b := append([]byte(nil), p.frame[:p.l3]...)
	copy(b, p.frame[6:12])
	copy(b[6:], p.frame[:6])
	m.Frame = append(b, answer.Bytes()[14:]...)
	m.Verdict = xdpTX
	return "answered"
}

// checksummed writes the checksum of an ICMP message, or of an ICMPv6 one, which
// covers the addresses, too (RFC 4443, section 2.3).
func checksummed(message []byte, src, dst netip.Addr) []byte {
	message[2], message[3] = 0, 0
	covered := message
	if src.Is6() {
		s, d := src.As16(), dst.As16()
		covered = append(append(s[:], d[:]...), 0, 0, byte(len(message)>>8), byte(len(message)), 0, 0, 0, testenv.ProtocolICMPv6)
		covered = append(covered, message...)
	}
	if len(covered)%2 == 1 {
		covered = append(covered[:len(covered):len(covered)], 0)
	}
	binary.BigEndian.PutUint16(message[2:], amend(0xffff, make([]byte, len(covered)), covered))
	return message
}
