package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// How deep the program looks for a transport header, from the frame's start, and
// how many extension headers it skips.
const (
	modelDepth      = 511
	modelExtensions = 8
)

// A modelPacket is a frame, and what is read from it.
type modelPacket struct {
	frame    []byte
	nic      uint32
	l3, l4   int      // where the IP packet and the transport header begin
	tags     []uint16 // as received, outer first
	v6       bool
	src, dst netip.Addr
	length   int // of the IP packet
	protocol lb.Protocol
	fragment modelFragment

	ports   [2]uint16
	flags   testenv.TCPFlags
	seq     uint32
	ack     uint32
	payload int
	hash    uint64 // of the flow
	opens   bool   // it asks for a new flow
}

type modelFragment struct {
	offset int // bytes
	more   bool
	id     uint32
	at     int // of the identification, in the frame
}

// is tells whether the packet is a fragment: that of IPv6 which is the first and
// the last is none (RFC 6946).
func (f modelFragment) is() bool { return f.offset > 0 || f.more }

func be16(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }

// ip is the frame from the IP header on, padding and all.
func (p *modelPacket) ip() []byte { return p.frame[p.l3:] }

func (p *modelPacket) opened() uint64 { return uint64(boolWord(p.opens)) }

func (p *modelPacket) flow() flowName {
	return flowName{netip.AddrPortFrom(p.src, p.ports[0]), netip.AddrPortFrom(p.dst, p.ports[1]), p.protocol}
}

// hops is the time to live, or the hop limit.
func (p *modelPacket) hops() uint8 {
	if p.v6 {
		return p.ip()[7]
	}
	return p.ip()[8]
}

// readLink reads the Ethernet header with up to two tags, and the addresses.
func (p *modelPacket) readLink() string {
	if len(p.frame) < 14 {
		return "not_ip"
	}
	at := 12
	for len(p.tags) < 2 && (be16(p.frame, at) == testenv.EtherTypeVLAN || be16(p.frame, at) == testenv.EtherTypeQinQ) {
		if len(p.frame) < at+6 {
			return "not_ip"
		}
		p.tags = append(p.tags, be16(p.frame, at+2))
		at += 4
	}
	p.l3 = at + 2
	header := map[uint16]int{testenv.EtherTypeIPv4: 20, testenv.EtherTypeIPv6: 40}[be16(p.frame, at)]
	p.v6 = header == 40
	if header == 0 || len(p.ip()) < header {
		return "not_ip"
	}
	p.src, p.dst = endsOf(p.ip(), p.v6)
	return ""
}

// endsOf reads the addresses of an IP header.
func endsOf(ip []byte, v6 bool) (src, dst netip.Addr) {
	if v6 {
		return netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	}
	return netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
}

// readIP reads the IP header and what of it leads to the transport header.
func (p *modelPacket) readIP() string {
	ok := false
	if p.v6 {
		ok = p.readIPv6()
	} else {
		ok = p.readIPv4()
	}
	if !ok || p.l4 > p.l3+p.length || p.length > len(p.ip()) {
		return "malformed_ip"
	}
	return ""
}

func (p *modelPacket) readIPv4() bool {
	ip := p.ip()
	p.l4 = p.l3 + int(ip[0]&15)*4
	p.length = int(be16(ip, 2))
	p.protocol = lb.Protocol(ip[9])
	p.fragment = modelFragment{int(be16(ip, 6)&0x1fff) * 8, be16(ip, 6)&0x2000 != 0, uint32(be16(ip, 4)), p.l3 + 4}
	return ip[0]>>4 == 4 && p.l4 >= p.l3+20
}

// readIPv6 skips extension headers (RFC 8200, section 4).
func (p *modelPacket) readIPv6() bool {
	ip := p.ip()
	p.length = 40 + int(be16(ip, 4))
	next := ip[6]
	p.l4 = p.l3 + 40
	for skipped := 0; isExtension(next); skipped++ {
		if skipped == modelExtensions || p.l4 > modelDepth-8 || len(p.frame) < p.l4+8 {
			return false
		}
		h := p.frame[p.l4:]
		switch next {
		case testenv.ProtocolFragment:
			p.fragment = modelFragment{int(be16(h, 2) &^ 7), h[3]&1 != 0, be32(h, 4), p.l4 + 4}
			p.l4 += 8
		case 51: // AH counts otherwise (RFC 4302, section 2.2)
			p.l4 += (int(h[1]) + 2) * 4
		default:
			p.l4 += (int(h[1]) + 1) * 8
		}
		next = h[0]
		if p.fragment.offset > 0 {
			break
		}
	}
	if p.l4 > modelDepth {
		return false
	}
	p.protocol = lb.Protocol(next)
	return ip[0]>>4 == 6
}

// isExtension tells hop-by-hop options, routing, fragment, AH, destination
// options and mobility headers.
func isExtension(next uint8) bool {
	switch next {
	case 0, 43, testenv.ProtocolFragment, 51, testenv.ProtocolDestination, 135:
		return true
	}
	return false
}

// readTransport reads a TCP or UDP header.
func (p *modelPacket) readTransport() string {
	room := p.l3 + p.length - p.l4
	h := p.frame[p.l4:]
	if p.protocol == lb.UDP {
		if room < 8 {
			return "malformed_udp"
		}
		size := int(be16(h, 4))
		if size < 8 || size > room && !p.fragment.is() {
			return "malformed_udp"
		}
		p.ports = [2]uint16{be16(h, 0), be16(h, 2)}
		return ""
	}
	if room < 20 || h[12]>>4 < 5 || int(h[12]>>4)*4 > room {
		return "malformed_tcp"
	}
	p.ports = [2]uint16{be16(h, 0), be16(h, 2)}
	p.seq, p.ack, p.flags = be32(h, 4), be32(h, 8), testenv.TCPFlags(h[13])
	p.payload = room - int(h[12]>>4)*4
	p.opens = p.flags&(testenv.SYN|testenv.ACK|testenv.RST|testenv.FIN) == testenv.SYN
	return ""
}
