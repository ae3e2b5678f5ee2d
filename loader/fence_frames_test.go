package loader

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// ethernet is a frame around a packet, with tags.
func ethernet(to, from [6]byte, kind uint16, body []byte, tags ...uint16) []byte {
	b := slices.Concat(to[:], from[:])
	for _, tag := range tags {
		b = binary.BigEndian.AppendUint16(b, 0x8100)
		b = binary.BigEndian.AppendUint16(b, tag)
	}
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(b, body...)
}

// arp is an ARP packet of an operation, 1 for a request.
func arp(operation uint16, senderMAC [6]byte, sender, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(b, senderMAC[:]...)
	b = append(b, sender.AsSlice()...)
	b = append(b, make([]byte, 6)...)
	return append(b, target.AsSlice()...)
}

func arpFrame(operation uint16, senderMAC [6]byte, sender, target netip.Addr, tags ...uint16) []byte {
	return ethernet(anyMAC, senderMAC, 0x0806, arp(operation, senderMAC, sender, target), tags...)
}

// ipPacket is a packet of a protocol, without options.
func ipPacket(protocol, hops byte, from, to netip.Addr, body []byte) (kind uint16, b []byte) {
	if from.Is4() {
		b = []byte{0x45, 0xc0, 0, 0, 0, 1, 0, 0, hops, protocol, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
		return 0x0800, slices.Concat(b, from.AsSlice(), to.AsSlice(), body)
	}
	b = []byte{0x60, 0, 0, 0, 0, 0, protocol, hops}
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	return 0x86dd, slices.Concat(b, from.AsSlice(), to.AsSlice(), body)
}

// An advert is an advertisement as another node sends it, with what a case changes.
type advert struct {
	version, vrid, priority, hops byte
	from                          netip.Addr
	vips                          []netip.Addr
	tags                          []uint16
	fragment                      bool
}

func (a advert) frame() []byte {
	body := []byte{a.version<<4 | 1, a.vrid, a.priority, byte(len(a.vips)), 0, 100, 0, 0}
	for _, vip := range a.vips {
		body = append(body, vip.AsSlice()...)
	}
	to := netip.MustParseAddr("224.0.0.18")
	if a.from.Is6() {
		to = netip.MustParseAddr("ff02::12")
	}
	kind, b := ipPacket(112, a.hops, a.from, to, body)
	if a.fragment {
		b[6] = 0x20
	}
	return ethernet([6]byte{1, 0, 0x5e, 0, 0, 0x12}, otherMAC, kind, b, a.tags...)
}

func advertised(change func(*advert)) []byte {
	a := advert{version: 3, vrid: 51, priority: 99, hops: 255, from: otherNode, vips: []netip.Addr{vipIP}}
	if change != nil {
		change(&a)
	}
	return a.frame()
}

func advertised6(change func(*advert)) []byte {
	return advertised(func(a *advert) {
		a.from, a.vips = otherNode6, []netip.Addr{fencedVIP6}
		if change != nil {
			change(a)
		}
	})
}

// neighbourFrame is a solicitation (135) or an advertisement (136) for a target.
func neighbourFrame(kind, flags, hops byte, mac [6]byte, from, to, target netip.Addr, tags ...uint16) []byte {
	body := slices.Concat([]byte{kind, 0, 0, 0, flags, 0, 0, 0}, target.AsSlice(), []byte{kind - 134, 1}, mac[:])
	ether, b := ipPacket(58, hops, from, to, checksummed(body, from, to))
	return ethernet([6]byte{0x33, 0x33, 0, 0, 0, 1}, mac, ether, b, tags...)
}

var (
	asksARP = arpFrame(1, clientMAC, netip.MustParseAddr("192.0.2.50"), vipIP)
	asksND  = neighbourFrame(135, 0, 255, clientMAC, netip.MustParseAddr("fe80::c"), netip.MustParseAddr("ff02::1:ff00:100"), fencedVIP6)
)
