package testenv

import (
	"encoding/binary"
	"fmt"
)

// VerifyChecksums checks the IPv4 header checksum of a frame, and that of TCP
// or UDP, which it adds up anew over the whole segment (RFC 1071). A frame that
// has none, as ARP, is right. So is UDP with checksum 0 and any fragment's
// payload, whose checksum covers the other fragments.
func VerifyChecksums(b []byte) error {
	f, err := ParseFrame(b)
	if err != nil {
		return err
	}
	ip := b[etherHeaderLen+len(f.VLANs)*vlanTagLen:]
	var l4 []byte
	var pseudo uint32
	switch f.EtherType {
	default:
		return nil
	case EtherTypeIPv4:
		header := ip[:int(f.IHL)*4]
		if err := verify("IPv4 header", header, 10, sumBytes(0, header)); err != nil {
			return err
		}
		l4 = ip[len(header):f.TotalLength]
		pseudo = pseudoHeaderSum([4]byte(ip[12:]), [4]byte(ip[16:]), f.Protocol, len(l4))
	case EtherTypeIPv6:
		headers := ipv6HeaderLen
		for _, e := range f.Extensions {
			headers += len(e)
		}
		l4 = ip[headers:f.TotalLength]
		pseudo = pseudoHeaderSum6([16]byte(ip[8:]), [16]byte(ip[24:]), f.Protocol, len(l4))
	}
	if f.FragOffset > 0 || f.MoreFragments {
		return nil
	}
	switch f.Protocol {
	case ProtocolICMP:
		return verify("ICMP", l4, 2, sumBytes(0, l4))
	case ProtocolICMPv6:
		return verify("ICMPv6", l4, 2, sumBytes(pseudo, l4))
	case ProtocolTCP:
		return verify("TCP", l4, 16, sumBytes(pseudo, l4))
	case ProtocolUDP:
		if binary.BigEndian.Uint16(l4[6:]) == 0 {
			return nil
		}
		return verify("UDP", l4, 6, sumBytes(pseudo, l4))
	}
	return nil
}

// verify judges the sum over data with its checksum, which lies at the offset.
func verify(what string, data []byte, offset int, sum uint32) error {
	if foldChecksum(sum) == 0 {
		return nil
	}
	got := binary.BigEndian.Uint16(data[offset:])
	want := foldChecksum(sum + uint32(^got))
	return fmt.Errorf("%s checksum is %#04x, want %#04x", what, got, want)
}

// pseudoHeaderSum sums up the pseudo header of TCP and UDP over IPv4.
func pseudoHeaderSum(src, dst [4]byte, protocol uint8, l4Len int) uint32 {
	return sumBytes(sumBytes(uint32(protocol)+uint32(l4Len), src[:]), dst[:])
}

// pseudoHeaderSum6 does so over IPv6 (RFC 8200, section 8.1).
func pseudoHeaderSum6(src, dst [16]byte, protocol uint8, l4Len int) uint32 {
	return sumBytes(sumBytes(uint32(protocol)+uint32(l4Len), src[:]), dst[:])
}

// sumBytes adds data to a one's complement sum that foldChecksum finishes. An
// odd last byte counts as if a zero followed. It holds 64 KiB without overflow.
func sumBytes(sum uint32, data []byte) uint32 {
	for len(data) >= 2 {
		sum += uint32(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	return sum
}

func foldChecksum(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
