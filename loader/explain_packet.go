package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// ICMP is the protocol of a Packet that is an echo request, of either family.
const ICMP lb.Protocol = 1

// TCPFlags are the flag bits of a TCP header (RFC 9293, section 3.1).
type TCPFlags uint8

// The TCP flags.
const (
	TCPFin TCPFlags = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
)

// A Packet is one to be explained.
type Packet struct {
	Source, Destination netip.AddrPort // of one family; the ports count for TCP and UDP only
	Protocol            lb.Protocol    // lb.TCP, lb.UDP or ICMP
	Flags               TCPFlags
	// Sequence of a TCP segment; nil: the one that a handshake goes on with where
	// one is known, else 1.
	Sequence *uint32
	Length   int      // of the IP packet; 0: as short as can be
	MAC      *[6]byte // the frame's destination; nil: the interface's address
}

// maxPacket is the longest that a Packet may be: a test run takes one page, with
// room for headers and for what the kernel keeps behind it.
const maxPacket = 3400

// packetHops is what a Packet has left to live.
const packetHops = 64

const (
	etherLen = 14
	ip4Len   = 20
	ip6Len   = 40
	tcpLen   = 20
	udpLen   = 8
	echoLen  = 8
)

// lengths returns those of a packet's IP and transport headers.
func (p Packet) lengths() (ip, transport int) {
	ip, transport = ip6Len, tcpLen
	if p.Destination.Addr().Is4() {
		ip = ip4Len
	}
	switch p.Protocol {
	case lb.UDP:
		transport = udpLen
	case ICMP:
		transport = echoLen
	}
	return ip, transport
}

// Check returns what is wrong with a packet.
func (p Packet) Check() error {
	src, dst := p.Source.Addr(), p.Destination.Addr()
	switch {
	case !src.IsValid() || !dst.IsValid():
		return errors.New("it needs a source and a destination")
	case src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6():
		return fmt.Errorf("%v and %v are of two families", src, dst)
	case p.Protocol != lb.TCP && p.Protocol != lb.UDP && p.Protocol != ICMP:
		return fmt.Errorf("%v is neither tcp, udp nor icmp", p.Protocol)
	}
	ip, transport := p.lengths()
	if p.Length != 0 && (p.Length < ip+transport || p.Length > maxPacket) {
		return fmt.Errorf("a length of %d bytes: want %d to %d", p.Length, ip+transport, maxPacket)
	}
	return nil
}

// frame builds the Ethernet frame that the packet comes in.
func (p Packet) frame(to [6]byte, sequence uint32) []byte {
	ip, transport := p.lengths()
	length := max(p.Length, ip+transport)
	b := make([]byte, etherLen+length)
	copy(b, to[:])
	b[6] = 0x02 // a locally administered address, of nobody
	segment := b[etherLen+ip:]
	protocol := uint8(p.Protocol)
	if p.Protocol == ICMP && ip == ip6Len {
		protocol = unix.IPPROTO_ICMPV6
	}
	p.putIP(b[12:], protocol, length)
	sum := p.pseudoHeader(protocol, len(segment))
	switch p.Protocol {
	case lb.TCP:
		p.putPorts(segment)
		binary.BigEndian.PutUint32(segment[4:], sequence)
		if p.Flags&TCPAck != 0 {
			binary.BigEndian.PutUint32(segment[8:], 1)
		}
		segment[12], segment[13] = tcpLen/4<<4, byte(p.Flags)
		binary.BigEndian.PutUint16(segment[14:], 0xffff)
		binary.BigEndian.PutUint16(segment[16:], checksum(sum, segment))
	case lb.UDP:
		p.putPorts(segment)
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
		binary.BigEndian.PutUint16(segment[6:], checksum(sum, segment))
	case ICMP:
		segment[0] = 8 // echo request (RFC 792)
		if ip == ip6Len {
			segment[0] = 128 // echo request (RFC 4443)
		} else {
			sum = 0
		}
		binary.BigEndian.PutUint16(segment[2:], checksum(sum, segment))
	}
	return b
}

// putIP writes the Ethernet type and the IP header; TCP's own flag says that the
// packet must not be fragmented.
func (p Packet) putIP(b []byte, protocol uint8, length int) {
	src, dst := p.Source.Addr().AsSlice(), p.Destination.Addr().AsSlice()
	ip := b[2:]
	if p.Destination.Addr().Is4() {
		binary.BigEndian.PutUint16(b, unix.ETH_P_IP)
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[6:], 0x4000)
		ip[8], ip[9] = packetHops, protocol
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:ip4Len]))
		return
	}
	binary.BigEndian.PutUint16(b, unix.ETH_P_IPV6)
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], uint16(length-ip6Len))
	ip[6], ip[7] = protocol, packetHops
	copy(ip[8:], src)
	copy(ip[24:], dst)
}

func (p Packet) putPorts(b []byte) {
	binary.BigEndian.PutUint16(b, p.Source.Port())
	binary.BigEndian.PutUint16(b[2:], p.Destination.Port())
}

// pseudoHeader is the sum of what a transport checksum covers beside its segment
// (RFC 9293, section 3.1; RFC 8200, section 8.1).
func (p Packet) pseudoHeader(protocol uint8, length int) uint32 {
	return addWords(uint32(protocol)+uint32(length), append(p.Source.Addr().AsSlice(), p.Destination.Addr().AsSlice()...))
}

func addWords(sum uint32, b []byte) uint32 {
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the internet checksum (RFC 1071) over b and what sum covers.
func checksum(sum uint32, b []byte) uint16 {
	sum = addWords(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Headers are what can be told from the headers of a packet. Ends are ADDRESS:PORT
// where the protocol has ports, else addresses.
type Headers struct {
	Protocol    string `json:"protocol"`
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Length      int    `json:"length"` // of the IP packet
	// Of a packet in a packet, the inner one.
	Inner *Headers `json:"inner,omitempty"`
}

// A MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes what String does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// A Link is the link-layer header that a frame leaves with, and the interface.
type Link struct {
	Interface   string   `json:"interface"`
	Source      MAC      `json:"source"`
	Destination MAC      `json:"destination"`
	VLANs       []uint16 `json:"vlans,omitempty"`
}

// readFrame reads the headers of a frame that has left.
func readFrame(b []byte) (Link, Headers, error) {
	var l Link
	if len(b) < etherLen {
		return l, Headers{}, errors.New("the frame is cut off")
	}
	l.Destination, l.Source = MAC(b[:6]), MAC(b[6:12])
	b = b[12:]
	for len(b) >= 4 && (binary.BigEndian.Uint16(b) == unix.ETH_P_8021Q || binary.BigEndian.Uint16(b) == unix.ETH_P_8021AD) {
		l.VLANs = append(l.VLANs, binary.BigEndian.Uint16(b[2:])&0xfff)
		b = b[4:]
	}
	if len(b) < 2 {
		return l, Headers{}, errors.New("the frame is cut off")
	}
	h, err := readHeaders(b[2:])
	return l, h, err
}

func readHeaders(b []byte) (Headers, error) {
	var h Headers
	var src, dst netip.Addr
	var protocol lb.Protocol
	switch {
	case len(b) >= ip4Len && b[0] == 0x45:
		protocol, h.Length = lb.Protocol(b[9]), int(binary.BigEndian.Uint16(b[2:]))
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[ip4Len:]
	case len(b) >= ip6Len && b[0]>>4 == 6:
		protocol, h.Length = lb.Protocol(b[6]), int(binary.BigEndian.Uint16(b[4:]))+ip6Len
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[ip6Len:]
	default:
		return h, errors.New("it is no IP packet")
	}
	h.Protocol, h.Source, h.Destination = protocolName(protocol), src.String(), dst.String()
	switch protocol {
	case lb.TCP, lb.UDP:
		if len(b) < 4 {
			return h, errors.New("the packet is cut off")
		}
		h.Source = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)).String()
		h.Destination = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])).String()
	case unix.IPPROTO_IPIP, unix.IPPROTO_IPV6:
		inner, err := readHeaders(b)
		if err != nil {
			return h, fmt.Errorf("read the inner packet: %w", err)
		}
		h.Inner = &inner
	}
	return h, nil
}

func protocolName(p lb.Protocol) string {
	switch p {
	case ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_IPIP:
		return "ipip"
	case unix.IPPROTO_IPV6:
		return "ipv6"
	}
	return p.String()
}
