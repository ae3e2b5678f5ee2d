package testenv

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The next header of IPv6 that Frame writes itself.
const fragmentHeaderLen = 8

// ProtocolICMPv6 is the next header of ICMPv6 (RFC 4443).
const ProtocolICMPv6 = 58

// v6 tells whether the frame's packet is IPv6: its addresses say so, or an
// EtherType that a parsed frame has.
func (f Frame) v6() bool {
	return f.EtherType == EtherTypeIPv6 || f.EtherType == 0 && f.Dst.Addr().Is6() && !f.Dst.Addr().Is4In6()
}

// l4 returns what follows the IP headers.
func (f Frame) l4() []byte {
	switch protocol := cmp.Or(f.Protocol, ProtocolTCP); {
	case f.FragOffset > 0:
		return f.Payload
	case protocol == ProtocolTCP:
		return f.tcp()
	case protocol == ProtocolUDP:
		return f.udp()
	}
	return f.Payload
}

func (f Frame) appendIPv6(b, l4 []byte) []byte {
	headers := Tunnel{
		Src: f.Src.Addr(), Dst: f.Dst.Addr(), TOS: f.TOS, TTL: f.TTL, FlowLabel: f.FlowLabel,
		Extensions: f.Extensions, NextHeaders: f.NextHeaders, Version: f.Version,
	}
	if f.FragOffset > 0 || f.MoreFragments {
		header := make([]byte, fragmentHeaderLen)
		offset := f.FragOffset
		if f.MoreFragments {
			offset |= 1
		}
		binary.BigEndian.PutUint16(header[2:], offset)
		binary.BigEndian.PutUint32(header[4:], uint32(f.ID))
		headers.Extensions = append(headers.Extensions[:len(headers.Extensions):len(headers.Extensions)], header)
		headers.NextHeaders = append(headers.NextHeaders[:len(headers.NextHeaders):len(headers.NextHeaders)], ProtocolFragment)
	}
	// TotalLength is that of the packet, whatever its family.
	if f.TotalLength != 0 {
		headers.Length = f.TotalLength - ipv6HeaderLen
	}
	return append(headers.appendIPv6(b, cmp.Or(f.Protocol, ProtocolTCP), len(l4)), l4...)
}

func (f *Frame) parseIPv6(b []byte) error {
	if len(b) < ipv6HeaderLen {
		return fmt.Errorf("%d bytes are no IPv6 header", len(b))
	}
	first := binary.BigEndian.Uint32(b)
	f.Version, f.TOS, f.FlowLabel = uint8(first>>28), uint8(first>>20), first&0xfffff
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if f.Version != 6 || total > len(b) {
		return fmt.Errorf("IPv6 header of version %d, length %d in %d bytes", f.Version, total, len(b))
	}
	f.TotalLength = uint16(total)
	if len(b) > total {
		f.PadTo = etherHeaderLen + len(f.VLANs)*vlanTagLen + len(b)
	}
	f.Protocol, f.TTL = b[6], b[7]
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	rest := b[ipv6HeaderLen:total]
	for f.Protocol == ProtocolFragment || f.Protocol == ProtocolDestination || f.Protocol == 0 || f.Protocol == 43 {
		size := fragmentHeaderLen
		if len(rest) >= 2 && f.Protocol != ProtocolFragment {
			size = 8 * (1 + int(rest[1]))
		}
		if len(rest) < size {
			return fmt.Errorf("extension header %d is cut off", f.Protocol)
		}
		if f.Protocol == ProtocolFragment {
			offset := binary.BigEndian.Uint16(rest[2:])
			f.FragOffset, f.MoreFragments = offset&^7, offset&1 != 0
			f.ID = uint16(binary.BigEndian.Uint32(rest[4:]))
		} else {
			f.NextHeaders = append(f.NextHeaders, f.Protocol)
			f.Extensions = append(f.Extensions, append([]byte{0}, rest[1:size]...))
		}
		f.Protocol, rest = rest[0], rest[size:]
		if f.FragOffset > 0 {
			break
		}
	}
	return f.parseL4(rest, src, dst)
}
