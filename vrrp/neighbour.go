// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"net/netip"
)

// An unsolicited neighbour advertisement, as a frame: Ethernet, IPv6, ICMPv6
// (RFC 4861, 4.4) and the option with the sender's MAC address.
const (
	etherLen      = 14
	ipv6Len       = 40
	neighbourLen  = 24 + 8
	protocolICMP6 = 58
	typeNeighbour = 136
	flagRouter    = 0x80
	flagOverride  = 0x20
	optionTarget  = 2
)

// allNodes is where unsolicited advertisements go, and allNodesMAC its MAC
// address.
var (
	allNodes    = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x01})
	allNodesMAC = MAC{0x33, 0x33, 0, 0, 0, 1}
)

// neighbourFrames builds an unsolicited neighbour advertisement for each VIP
// (RFC 9568, 6.4.1; RFC 4861, 7.2.6): Override makes who hears it forget the
// other node's MAC address. Router has to be what the kernel answers when it is
// asked: hosts take a router that says otherwise for gone.
func neighbourFrames(link Link, vips []netip.Addr) ([][]byte, error) {
	if link.announced() == (MAC{}) {
		return nil, errNoMAC
	}
	frames := make([][]byte, 0, len(vips))
	for _, vip := range vips {
		frames = append(frames, neighbourFrame(link, vip))
	}
	return frames, nil
}

func neighbourFrame(link Link, vip netip.Addr) []byte {
	f, own := make([]byte, etherLen+ipv6Len+neighbourLen), link.announced()
	copy(f, allNodesMAC[:])
	copy(f[6:], own[:])
	binary.BigEndian.PutUint16(f[12:], 0x86dd)

	ip := f[etherLen:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], neighbourLen)
	ip[6], ip[7] = protocolICMP6, ttl
	from, to, target := link.Source.As16(), allNodes.As16(), vip.As16()
	copy(ip[8:], from[:])
	copy(ip[24:], to[:])

	icmp := ip[ipv6Len:]
	icmp[0], icmp[4] = typeNeighbour, flagOverride
	if link.Router {
		icmp[4] |= flagRouter
	}
	copy(icmp[8:], target[:])
	icmp[24], icmp[25] = optionTarget, 1 // in units of 8 bytes
	copy(icmp[26:], own[:])
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudoHeaderOf(protocolICMP6, link.Source, allNodes, neighbourLen), icmp))
	return f
}
