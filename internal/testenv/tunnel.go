package testenv

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Numbers of tunnels.
const (
	EtherTypeIPv6       = 0x86dd
	ProtocolIPv4        = 4  // an IPv4 packet inside (RFC 2003, RFC 2473)
	ProtocolIPv6        = 41 // an IPv6 packet inside (RFC 4213, RFC 2473)
	ProtocolFragment    = 44
	ProtocolDestination = 60 // destination options
	ipv6HeaderLen       = 40
)

// A Tunnel describes the outer header of a packet in a packet. What is left zero
// gets a value that makes it valid: TTL 64, right lengths and checksum. Src and
// Dst are of one family, which is that of the outer header.
type Tunnel struct {
	Src, Dst netip.Addr
	// TOS is the type of service, or the traffic class; the two lowest bits are
	// the congestion mark (RFC 3168).
	TOS uint8
	TTL uint8 // or hop limit

	// Of IPv4.
	ID             uint16
	DontFragment   bool
	MoreFragments  bool
	FragmentOffset uint16 // bytes, a multiple of 8
	IPOptions      []byte // a multiple of 4 bytes

	// Of IPv6.
	FlowLabel uint32
	// Extensions are whole extension headers between the two headers. The first
	// byte of each, which names the next header, is filled in; NextHeaders are
	// their own numbers, as many.
	Extensions  [][]byte
	NextHeaders []uint8

	// What follows makes a packet wrong on purpose: a value other than 0 is
	// written as it is. The IPv4 header's checksum covers it.
	Protocol uint8  // of what is inside
	Version  uint8  // IP version
	IHL      uint8  // IPv4 header length in 4-byte words
	Length   uint16 // total length of IPv4, payload length of IPv6
}

// Encapsulate puts the IP packet of a frame into another. Ethernet addresses and
// VLAN tags are the frame's.
func (t Tunnel) Encapsulate(frame []byte) ([]byte, error) {
	link, etherType, inner, err := splitLink(frame)
	if err != nil {
		return nil, fmt.Errorf("encapsulate: %w", err)
	}
	protocol := t.Protocol
	switch {
	case protocol != 0:
	case etherType == EtherTypeIPv4:
		protocol = ProtocolIPv4
	case etherType == EtherTypeIPv6:
		protocol = ProtocolIPv6
	default:
		return nil, fmt.Errorf("encapsulate: EtherType %#04x is not IP", etherType)
	}
	b := append([]byte(nil), link...)
	if t.Dst.Unmap().Is4() {
		b = binary.BigEndian.AppendUint16(b, EtherTypeIPv4)
		b = t.appendIPv4(b, protocol, len(inner))
	} else {
		b = binary.BigEndian.AppendUint16(b, EtherTypeIPv6)
		b = t.appendIPv6(b, protocol, len(inner))
	}
	return append(b, inner...), nil
}

func (t Tunnel) appendIPv4(b []byte, protocol uint8, payload int) []byte {
	headerLen := ipHeaderLen + len(t.IPOptions)
	fragment := t.FragmentOffset / 8
	if t.DontFragment {
		fragment |= 0x4000
	}
	if t.MoreFragments {
		fragment |= 0x2000
	}
	start := len(b)
	b = append(b, cmp.Or(t.Version, 4)<<4|cmp.Or(t.IHL, uint8(headerLen/4)), t.TOS)
	b = binary.BigEndian.AppendUint16(b, cmp.Or(t.Length, uint16(headerLen+payload)))
	b = binary.BigEndian.AppendUint16(b, t.ID)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, cmp.Or(t.TTL, 64), protocol, 0, 0)
	src, dst := addr4(netip.AddrPortFrom(t.Src, 0)), addr4(netip.AddrPortFrom(t.Dst, 0))
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = append(b, t.IPOptions...)
	binary.BigEndian.PutUint16(b[start+10:], foldChecksum(sumBytes(0, b[start:])))
	return b
}

func (t Tunnel) appendIPv6(b []byte, protocol uint8, payload int) []byte {
	for _, e := range t.Extensions {
		payload += len(e)
	}
	next := append(append([]uint8(nil), t.NextHeaders...), protocol)
	b = binary.BigEndian.AppendUint32(b, uint32(cmp.Or(t.Version, 6))<<28|uint32(t.TOS)<<20|t.FlowLabel)
	b = binary.BigEndian.AppendUint16(b, cmp.Or(t.Length, uint16(payload)))
	b = append(b, next[0], cmp.Or(t.TTL, 64))
	src, dst := t.Src.As16(), t.Dst.As16()
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	for i, e := range t.Extensions {
		b = append(append(b, next[i+1]), e[1:]...)
	}
	return b
}

// Decapsulate reads the outer header of a packet in a packet and returns the
// frame without it: what Encapsulate made it from, but that padding of the link
// is gone. Every field that the packet has is set to what it says. An IPv4 header
// with a wrong checksum is an error.
func Decapsulate(frame []byte) (Tunnel, []byte, error) {
	link, etherType, outer, err := splitLink(frame)
	if err != nil {
		return Tunnel{}, nil, fmt.Errorf("decapsulate: %w", err)
	}
	var t Tunnel
	var inner []byte
	switch etherType {
	case EtherTypeIPv4:
		inner, err = t.parseIPv4(outer)
	case EtherTypeIPv6:
		inner, err = t.parseIPv6(outer)
	default:
		err = fmt.Errorf("EtherType %#04x is not IP", etherType)
	}
	if err != nil {
		return Tunnel{}, nil, fmt.Errorf("decapsulate: %w", err)
	}
	b := append([]byte(nil), link...)
	switch t.Protocol {
	case ProtocolIPv4:
		b = binary.BigEndian.AppendUint16(b, EtherTypeIPv4)
	case ProtocolIPv6:
		b = binary.BigEndian.AppendUint16(b, EtherTypeIPv6)
	default:
		return Tunnel{}, nil, fmt.Errorf("decapsulate: protocol %d is no tunnel", t.Protocol)
	}
	return t, append(b, inner...), nil
}

func (t *Tunnel) parseIPv4(b []byte) ([]byte, error) {
	if len(b) < ipHeaderLen {
		return nil, fmt.Errorf("%d bytes are no IPv4 header", len(b))
	}
	t.Version, t.IHL = b[0]>>4, b[0]&0xf
	t.Length = binary.BigEndian.Uint16(b[2:])
	headerLen, total := int(t.IHL)*4, int(t.Length)
	if t.Version != 4 || headerLen < ipHeaderLen || headerLen > total || total > len(b) {
		return nil, fmt.Errorf("IPv4 header of version %d, %d bytes, total length %d in %d bytes", t.Version, headerLen, total, len(b))
	}
	if err := verify("outer IPv4 header", b[:headerLen], 10, sumBytes(0, b[:headerLen])); err != nil {
		return nil, err
	}
	t.TOS, t.TTL, t.Protocol = b[1], b[8], b[9]
	t.ID = binary.BigEndian.Uint16(b[4:])
	fragment := binary.BigEndian.Uint16(b[6:])
	t.DontFragment, t.MoreFragments = fragment&0x4000 != 0, fragment&0x2000 != 0
	t.FragmentOffset = fragment & 0x1fff * 8
	t.Src, t.Dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	t.IPOptions = nilIfEmpty(b[ipHeaderLen:headerLen])
	return b[headerLen:total], nil
}

func (t *Tunnel) parseIPv6(b []byte) ([]byte, error) {
	if len(b) < ipv6HeaderLen {
		return nil, fmt.Errorf("%d bytes are no IPv6 header", len(b))
	}
	first := binary.BigEndian.Uint32(b)
	t.Version, t.TOS, t.FlowLabel = uint8(first>>28), uint8(first>>20), first&0xfffff
	t.Length = binary.BigEndian.Uint16(b[4:])
	if t.Version != 6 || ipv6HeaderLen+int(t.Length) > len(b) {
		return nil, fmt.Errorf("IPv6 header of version %d, payload length %d in %d bytes", t.Version, t.Length, len(b))
	}
	t.Protocol, t.TTL = b[6], b[7]
	t.Src, t.Dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	rest := b[ipv6HeaderLen : ipv6HeaderLen+int(t.Length)]
	for t.Protocol == ProtocolDestination || t.Protocol == ProtocolFragment {
		if len(rest) < 8 {
			return nil, errors.New("extension header is cut off")
		}
		size := 8
		if t.Protocol == ProtocolDestination {
			size = 8 * (1 + int(rest[1]))
		}
		if size > len(rest) {
			return nil, errors.New("extension header is cut off")
		}
		t.NextHeaders, t.Extensions = append(t.NextHeaders, t.Protocol), append(t.Extensions, rest[:size])
		t.Protocol, rest = rest[0], rest[size:]
	}
	return rest, nil
}

// splitLink returns Ethernet addresses and VLAN tags of a frame, the EtherType of
// its packet, and the rest.
func splitLink(b []byte) (link []byte, etherType uint16, packet []byte, err error) {
	if len(b) < etherHeaderLen {
		return nil, 0, nil, fmt.Errorf("%d bytes are no Ethernet header", len(b))
	}
	at := etherHeaderLen - 2
	for etherType = binary.BigEndian.Uint16(b[at:]); etherType == EtherTypeVLAN || etherType == EtherTypeQinQ; {
		at += vlanTagLen
		if len(b) < at+2 {
			return nil, 0, nil, errors.New("VLAN tag is cut off")
		}
		etherType = binary.BigEndian.Uint16(b[at:])
	}
	return b[:at], etherType, b[at+2:], nil
}
