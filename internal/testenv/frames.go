package testenv

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Numbers from the headers that tests and this file use.
const (
	EtherTypeIPv4  = 0x0800
	EtherTypeARP   = 0x0806
	EtherTypeVLAN  = 0x8100 // the tag next to the packet
	EtherTypeQinQ  = 0x88a8 // the outer one of two
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	etherHeaderLen = 14
	vlanTagLen     = 4
	ipHeaderLen    = 20
	tcpHeaderLen   = 20
	udpHeaderLen   = 8
)

// TCPFlags are the flag bits of a TCP header.
type TCPFlags uint8

// The TCP flags.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

func (f TCPFlags) String() string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// A Frame describes an Ethernet frame. What is left zero gets a value that makes
// it valid: IPv4 or IPv6, as the addresses are, TCP, TTL 64, right lengths and
// checksums.
type Frame struct {
	DstMAC, SrcMAC net.HardwareAddr
	VLANs          []uint16 // VLAN ids, the outer one first
	// EtherType other than 0 and those of IP: Payload follows at once.
	EtherType uint16

	Src, Dst      netip.AddrPort
	TOS, TTL      uint8 // of IPv6 the traffic class and the hop limit
	ID            uint16
	DontFragment  bool
	MoreFragments bool
	FragOffset    uint16 // bytes, a multiple of 8; with one, Payload follows the IP header
	IPOptions     []byte // a multiple of 4 bytes

	// Of IPv6. Extensions are as in Tunnel; a fragment header follows them where
	// the packet is a fragment.
	FlowLabel   uint32
	Extensions  [][]byte
	NextHeaders []uint8

	// Protocol other than 0, ProtocolTCP and ProtocolUDP: Payload follows the
	// IP header.
	Protocol uint8

	Flags      TCPFlags
	Seq, Ack   uint32
	Window     uint16
	TCPOptions []byte // a multiple of 4 bytes

	Payload []byte

	// What follows makes a frame wrong on purpose: a value other than 0 is
	// written as it is. The IPv4 header's checksum covers it.
	Version     uint8  // IP version
	IHL         uint8  // IP header length in 4-byte words
	TotalLength uint16 // of the IP packet, in bytes
	DataOffset  uint8  // TCP header length in 4-byte words

	// PadTo appends zeros up to this length, as NICs do up to 60.
	PadTo int
}

// Bytes returns the frame as it is on the wire, without preamble and check
// sequence.
func (f Frame) Bytes() []byte { return f.bytes(f.l4()) }

// bytes is Bytes with something else after the IP headers.
func (f Frame) bytes(l4 []byte) []byte {
	b := make([]byte, 0, 128+len(l4))
	b = append(b, macOrZero(f.DstMAC)...)
	b = append(b, macOrZero(f.SrcMAC)...)
	for i, id := range f.VLANs {
		tag := uint16(EtherTypeVLAN)
		if i < len(f.VLANs)-1 {
			tag = EtherTypeQinQ
		}
		b = binary.BigEndian.AppendUint16(b, tag)
		b = binary.BigEndian.AppendUint16(b, id)
	}
	switch {
	case f.v6() && f.Dst.IsValid():
		b = f.appendIPv6(binary.BigEndian.AppendUint16(b, EtherTypeIPv6), l4)
	case cmp.Or(f.EtherType, EtherTypeIPv4) == EtherTypeIPv4:
		b = f.appendIPv4(binary.BigEndian.AppendUint16(b, EtherTypeIPv4), l4)
	default:
		b = append(binary.BigEndian.AppendUint16(b, f.EtherType), f.Payload...)
	}
	for len(b) < f.PadTo {
		b = append(b, 0)
	}
	return b
}

func (f Frame) appendIPv4(b, l4 []byte) []byte {
	src, dst := addr4(f.Src), addr4(f.Dst)
	headerLen := ipHeaderLen + len(f.IPOptions)
	fragment := f.FragOffset / 8
	if f.DontFragment {
		fragment |= 0x4000
	}
	if f.MoreFragments {
		fragment |= 0x2000
	}
	start := len(b)
	b = append(b, cmp.Or(f.Version, 4)<<4|cmp.Or(f.IHL, uint8(headerLen/4)), f.TOS)
	b = binary.BigEndian.AppendUint16(b, cmp.Or(f.TotalLength, uint16(headerLen+len(l4))))
	b = binary.BigEndian.AppendUint16(b, f.ID)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, cmp.Or(f.TTL, 64), cmp.Or(f.Protocol, ProtocolTCP), 0, 0)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = append(b, f.IPOptions...)
	binary.BigEndian.PutUint16(b[start+10:], foldChecksum(sumBytes(0, b[start:])))
	return append(b, l4...)
}

func (f Frame) tcp() []byte {
	var b []byte
	b = binary.BigEndian.AppendUint16(b, f.Src.Port())
	b = binary.BigEndian.AppendUint16(b, f.Dst.Port())
	b = binary.BigEndian.AppendUint32(b, f.Seq)
	b = binary.BigEndian.AppendUint32(b, f.Ack)
	b = append(b, cmp.Or(f.DataOffset, uint8((tcpHeaderLen+len(f.TCPOptions))/4))<<4, byte(f.Flags))
	b = binary.BigEndian.AppendUint16(b, f.Window)
	b = append(b, 0, 0, 0, 0) // checksum, urgent pointer
	b = append(b, f.TCPOptions...)
	b = append(b, f.Payload...)
	binary.BigEndian.PutUint16(b[16:], foldChecksum(sumBytes(f.pseudoHeader(len(b)), b)))
	return b
}

func (f Frame) udp() []byte {
	var b []byte
	b = binary.BigEndian.AppendUint16(b, f.Src.Port())
	b = binary.BigEndian.AppendUint16(b, f.Dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeaderLen+len(f.Payload)))
	b = append(b, 0, 0)
	b = append(b, f.Payload...)
	// 0 would say that there is no checksum (RFC 768).
	binary.BigEndian.PutUint16(b[6:], cmp.Or(foldChecksum(sumBytes(f.pseudoHeader(len(b)), b)), 0xffff))
	return b
}

func (f Frame) pseudoHeader(l4Len int) uint32 {
	if f.v6() {
		return pseudoHeaderSum6(f.Src.Addr().As16(), f.Dst.Addr().As16(), cmp.Or(f.Protocol, ProtocolTCP), l4Len)
	}
	src, dst := addr4(f.Src), addr4(f.Dst)
	return pseudoHeaderSum(src, dst, cmp.Or(f.Protocol, ProtocolTCP), l4Len)
}

// ParseFrame reads a frame back into its description, every field that the
// frame has set to what it says. Two frames are best compared by the cmp.Diff of
// both parsed. It does not judge checksums: VerifyChecksums does.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < etherHeaderLen {
		return Frame{}, fmt.Errorf("parse frame: %d bytes are no Ethernet header", len(b))
	}
	f := Frame{DstMAC: net.HardwareAddr(b[0:6]), SrcMAC: net.HardwareAddr(b[6:12])}
	etherType, rest := binary.BigEndian.Uint16(b[12:]), b[etherHeaderLen:]
	for etherType == EtherTypeVLAN || etherType == EtherTypeQinQ {
		if len(rest) < vlanTagLen {
			return Frame{}, errors.New("parse frame: VLAN tag is cut off")
		}
		f.VLANs = append(f.VLANs, binary.BigEndian.Uint16(rest)&0xfff)
		etherType, rest = binary.BigEndian.Uint16(rest[2:]), rest[vlanTagLen:]
	}
	f.EtherType = etherType
	var err error
	switch etherType {
	case EtherTypeIPv4:
		err = f.parseIPv4(rest)
	case EtherTypeIPv6:
		err = f.parseIPv6(rest)
	default:
		f.Payload = rest
	}
	if err != nil {
		return Frame{}, fmt.Errorf("parse frame: %w", err)
	}
	return f, nil
}

func (f *Frame) parseIPv4(b []byte) error {
	if len(b) < ipHeaderLen {
		return fmt.Errorf("%d bytes are no IPv4 header", len(b))
	}
	f.Version, f.IHL = b[0]>>4, b[0]&0xf
	f.TotalLength = binary.BigEndian.Uint16(b[2:])
	headerLen, total := int(f.IHL)*4, int(f.TotalLength)
	if f.Version != 4 || headerLen < ipHeaderLen || headerLen > total || total > len(b) {
		return fmt.Errorf("IPv4 header of version %d, %d bytes, total length %d in %d bytes", f.Version, headerLen, total, len(b))
	}
	f.TOS, f.TTL, f.Protocol = b[1], b[8], b[9]
	f.ID = binary.BigEndian.Uint16(b[4:])
	fragment := binary.BigEndian.Uint16(b[6:])
	f.DontFragment, f.MoreFragments = fragment&0x4000 != 0, fragment&0x2000 != 0
	f.FragOffset = fragment & 0x1fff * 8
	f.IPOptions = nilIfEmpty(b[ipHeaderLen:headerLen])
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	if len(b) > total {
		f.PadTo = etherHeaderLen + len(f.VLANs)*vlanTagLen + len(b)
	}

	return f.parseL4(b[headerLen:total], src, dst)
}

func (f *Frame) parseL4(l4 []byte, src, dst netip.Addr) error {
	var sport, dport uint16
	switch {
	case f.FragOffset > 0:
		f.Payload = nilIfEmpty(l4)
	case f.Protocol == ProtocolTCP:
		if len(l4) < tcpHeaderLen || int(l4[12]>>4)*4 < tcpHeaderLen || int(l4[12]>>4)*4 > len(l4) {
			return fmt.Errorf("TCP header is cut off or wrong in %d bytes", len(l4))
		}
		sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		f.Seq, f.Ack = binary.BigEndian.Uint32(l4[4:]), binary.BigEndian.Uint32(l4[8:])
		f.DataOffset, f.Flags = l4[12]>>4, TCPFlags(l4[13])
		f.Window = binary.BigEndian.Uint16(l4[14:])
		end := int(f.DataOffset) * 4
		f.TCPOptions, f.Payload = nilIfEmpty(l4[tcpHeaderLen:end]), nilIfEmpty(l4[end:])
	case f.Protocol == ProtocolUDP:
		if len(l4) < udpHeaderLen {
			return fmt.Errorf("UDP header is cut off in %d bytes", len(l4))
		}
		sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		f.Payload = nilIfEmpty(l4[udpHeaderLen:])
	default:
		f.Payload = nilIfEmpty(l4)
	}
	f.Src, f.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return nil
}

func macOrZero(mac net.HardwareAddr) net.HardwareAddr {
	if len(mac) == 6 {
		return mac
	}
	return make(net.HardwareAddr, 6)
}

// addr4 returns the address, 0.0.0.0 for one that is not IPv4.
func addr4(a netip.AddrPort) [4]byte {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return ip.As4()
	}
	return [4]byte{}
}

func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}
