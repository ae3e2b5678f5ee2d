package loader

import (
	"encoding/binary"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// emit sends an IP packet, which may have padding behind it, to a next hop in the
// place of the packet in hand. Priorities travel from tag to tag (IEEE 802.1Q,
// clause 9.6); as many tags as came keep their types.
func (m *model) emit(p *modelPacket, packet []byte, hop lb.NextHop) string {
	types := [][]uint16{{}, {testenv.EtherTypeVLAN}, {testenv.EtherTypeQinQ, testenv.EtherTypeVLAN}}[hop.Tags]
	if len(p.tags) == hop.Tags {
		for i := range types {
			types[i] = be16(p.frame, 12+4*i)
		}
	}
	return m.leave(p, packet, hop, types)
}

// leave is emit with given types of tags.
func (m *model) leave(p *modelPacket, packet []byte, hop lb.NextHop, types []uint16) string {
	if !hop.Known() {
		return "no_next_hop"
	}
	b := append(append([]byte(nil), hop.Destination[:]...), hop.Source[:]...)
	for i, t := range types {
		tag := hop.VLANs[i]
		if i < len(p.tags) {
			tag |= p.tags[i] & 0xf000
		}
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, t), tag)
	}
	b = binary.BigEndian.AppendUint16(b, etherTypeOf(packet))
	m.Frame = append(b, packet...)
	m.Verdict = xdpRedirect
	if hop.Interface == int(p.nic) {
		m.Verdict = xdpTX
	}
	return "sent"
}

func etherTypeOf(packet []byte) uint16 {
	if packet[0]>>4 == 6 {
		return testenv.EtherTypeIPv6
	}
	return testenv.EtherTypeIPv4
}

// amend returns a checksum for a change of words that it covers (RFC 1624,
// equation 3).
func amend(checksum uint16, old, now []byte) uint16 {
	sum := uint64(^checksum)
	for i := 0; i < len(old); i += 2 {
		sum += uint64(^be16(old, i)) + uint64(be16(now, i))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// write puts bytes into a packet and amends the checksums over them, which are
// at these offsets.
func write(packet []byte, at int, b []byte, checksums ...int) {
	for _, c := range checksums {
		binary.BigEndian.PutUint16(packet[c:], amend(be16(packet, c), packet[at:at+len(b)], b))
	}
	copy(packet[at:], b)
}

// spendHop takes a hop from an IP packet.
func spendHop(packet []byte) {
	if packet[0]>>4 == 6 {
		packet[7]--
		return
	}
	write(packet, 8, []byte{packet[8] - 1, packet[9]}, 10)
}
