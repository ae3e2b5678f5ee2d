// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Protocol is the IP protocol number of VRRP (RFC 9568, 5.1.1.4).
const Protocol = 112

// Version is a version of the protocol.
type Version uint8

// The versions that are spoken.
const (
	V2 Version = 2 // RFC 3768, IPv4 only
	V3 Version = 3 // RFC 9568
)

// Limits of the advertisement interval. On the wire v2 has a byte of seconds,
// v3 has 12 bits of centiseconds.
const (
	minIntervalV2 = time.Second
	maxIntervalV2 = 255 * time.Second
	centisecond   = 10 * time.Millisecond
	minIntervalV3 = centisecond
	maxIntervalV3 = 4095 * centisecond
)

// PriorityOwner is the priority of the node whose own address the VIP is.
// PriorityRelease in an advertisement says that its sender stops being Active.
const (
	PriorityOwner   = 255
	PriorityRelease = 0
)

// The authentication types of VRRPv2 (RFC 2338, 5.3.6).
const (
	authNone     = 0
	authPassword = 1
	authLen      = 8
)

const (
	headerLen     = 8
	advertisement = 1 // the only message type (RFC 9568, 5.2.2)
	maxAddresses  = 255
)

// An Advertisement is one VRRP message.
type Advertisement struct {
	Version  Version
	VRID     uint8
	Priority uint8
	// Interval is the sender's advertisement interval: whole seconds up to 255
	// in v2, centiseconds up to 40.95 s in v3 (there the field is called
	// Maximum Advertise Interval).
	Interval time.Duration
	// Addresses are the VIPs, all of one family. The first one of an IPv6
	// router is link-local.
	Addresses []netip.Addr

	// AuthType and Auth are v2's authentication type and data, as on the wire.
	AuthType uint8
	Auth     [authLen]byte

	// PseudoHeader says that the checksum of a v3 IPv4 message covers a
	// pseudo-header too. RFC 9568 (5.2.8) has none for IPv4; implementations
	// that read RFC 5798 otherwise have one. Always true for IPv6.
	PseudoHeader bool
	// Reserved is v3's 4 reserved bits: sent as zero, ignored when received,
	// kept so that a decoded message encodes to the same bytes.
	Reserved uint8
}

// Append encodes a at the end of b. Source and destination are those of the IP
// packet; they count only where the checksum covers a pseudo-header. It does
// not allocate where b has room.
func (a *Advertisement) Append(b []byte, source, destination netip.Addr) ([]byte, error) {
	if n := len(a.Addresses); n == 0 || n > maxAddresses {
		return b, fmt.Errorf("encode advertisement: %d addresses, want 1 to %d", n, maxAddresses)
	}
	v6 := a.Addresses[0].Is6()
	start := len(b)
	b = append(b, byte(a.Version)<<4|advertisement, a.VRID, a.Priority, byte(len(a.Addresses)))
	if err := checkInterval(a.Version, a.Interval); err != nil && a.Interval != 0 {
		return b[:start], fmt.Errorf("encode advertisement: %w", err)
	}
	switch {
	case a.Version == V2 && !v6:
		b = append(b, a.AuthType, byte(a.Interval/time.Second))
	case a.Version == V3:
		b = binary.BigEndian.AppendUint16(b, uint16(a.Reserved&0xf)<<12|uint16(a.Interval/centisecond))
	default:
		return b[:start], fmt.Errorf("encode advertisement: version %d does not exist for this address family", a.Version)
	}
	b = append(b, 0, 0) // the checksum, below
	for _, addr := range a.Addresses {
		if addr.Is6() != v6 || !addr.IsValid() || addr.Is4In6() {
			return b[:start], fmt.Errorf("encode advertisement: address %v is not of the family of %v", addr, a.Addresses[0])
		}
		if v6 {
			a16 := addr.As16()
			b = append(b, a16[:]...)
		} else {
			a4 := addr.As4()
			b = append(b, a4[:]...)
		}
	}
	if a.Version == V2 {
		b = append(b, a.Auth[:]...)
	}
	msg := b[start:]
	var sum uint32
	if a.Version == V3 && (v6 || a.PseudoHeader) {
		sum = pseudoHeaderSum(source, destination, len(msg))
	}
	binary.BigEndian.PutUint16(msg[6:8], checksum(sum, msg))
	return b, nil
}

// Decode reads one message from the start of b into a and returns its length.
// Bytes behind it are ignored: they are the padding of a short Ethernet frame.
// Source and destination are those of the IP packet; their family is that of
// the addresses in the message.
//
// An error is a Reason. Fields that were read before it was found are set. The
// memory of a.Addresses is reused.
func (a *Advertisement) Decode(b []byte, source, destination netip.Addr) (int, error) {
	*a = Advertisement{Addresses: a.Addresses[:0]}
	if len(b) < headerLen {
		return 0, ReasonLength
	}
	a.Version, a.VRID, a.Priority = Version(b[0]>>4), b[1], b[2]
	v6 := source.Is6()
	if a.Version != V3 && (a.Version != V2 || v6) {
		return 0, ReasonVersion
	}
	if b[0]&0xf != advertisement {
		return 0, ReasonType
	}
	count, size := int(b[3]), 4
	if v6 {
		size = 16
	}
	n := headerLen + count*size
	if a.Version == V2 {
		n += authLen
	}
	if len(b) < n {
		return 0, ReasonLength
	}
	if count == 0 {
		return 0, ReasonAddresses
	}
	msg := b[:n]
	if a.Version == V2 {
		a.AuthType, a.Interval = msg[4], time.Duration(msg[5])*time.Second
		copy(a.Auth[:], msg[n-authLen:])
	} else {
		field := binary.BigEndian.Uint16(msg[4:6])
		a.Reserved, a.Interval = uint8(field>>12), time.Duration(field&0xfff)*centisecond
	}
	for i := range count {
		raw := msg[headerLen+i*size:]
		if v6 {
			a.Addresses = append(a.Addresses, netip.AddrFrom16([16]byte(raw)))
		} else {
			a.Addresses = append(a.Addresses, netip.AddrFrom4([4]byte(raw)))
		}
	}
	return n, a.verify(msg, source, destination, v6)
}

// verify checks the checksum of msg and notes which form it has. The field is
// compared with the value that this package would send, so that a message has
// one encoding only.
func (a *Advertisement) verify(msg []byte, source, destination netip.Addr, v6 bool) error {
	got := binary.BigEndian.Uint16(msg[6:8])
	if !v6 && got == checksumWithout(0, msg) {
		return nil
	}
	if a.Version == V3 && got == checksumWithout(pseudoHeaderSum(source, destination, len(msg)), msg) {
		a.PseudoHeader = true
		return nil
	}
	return ReasonChecksum
}

// SameAddresses reports whether a names exactly these VIPs, in any order.
// VIPs must hold no duplicates.
func (a *Advertisement) SameAddresses(vips []netip.Addr) bool {
	if slices.Equal(a.Addresses, vips) {
		return true
	}
	if len(a.Addresses) != len(vips) {
		return false
	}
	for _, vip := range vips {
		if !slices.Contains(a.Addresses, vip) {
			return false
		}
	}
	return true
}

// checkInterval reports whether an interval can be sent in a version.
func checkInterval(v Version, d time.Duration) error {
	switch v {
	case V2:
		if d < minIntervalV2 || d > maxIntervalV2 || d%time.Second != 0 {
			return fmt.Errorf("advertisement interval %v: version 2 has whole seconds from %v to %v", d, minIntervalV2, maxIntervalV2)
		}
	case V3:
		if d < minIntervalV3 || d > maxIntervalV3 || d%centisecond != 0 {
			return fmt.Errorf("advertisement interval %v: version 3 has multiples of %v from %v to %v", d, centisecond, minIntervalV3, maxIntervalV3)
		}
	default:
		return fmt.Errorf("version %d: want 2 or 3", v)
	}
	return nil
}

// checksum is the Internet checksum (RFC 1071) of b, started with sum.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// checksumWithout is the checksum of msg as if its checksum field were zero.
func checksumWithout(sum uint32, msg []byte) uint16 {
	field := binary.BigEndian.Uint16(msg[6:8])
	// In one's complement, subtracting is adding the complement.
	return checksum(sum+uint32(^field), msg)
}

// pseudoHeaderSum is the sum of the pseudo-header for a VRRP message of n bytes.
func pseudoHeaderSum(source, destination netip.Addr, n int) uint32 {
	return pseudoHeaderOf(Protocol, source, destination, n)
}

// pseudoHeaderOf is the sum of the pseudo-header of RFC 8200 (IPv6) or of its
// counterpart for IPv4, for n bytes of a protocol.
func pseudoHeaderOf(protocol uint8, source, destination netip.Addr, n int) uint32 {
	sum := uint32(protocol) + uint32(n)
	for _, addr := range [2]netip.Addr{source, destination} {
		if addr.Is4() {
			b := addr.As4()
			sum += uint32(b[0])<<8 + uint32(b[1]) + uint32(b[2])<<8 + uint32(b[3])
			continue
		}
		b := addr.As16()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 + uint32(b[i+1])
		}
	}
	return sum
}
