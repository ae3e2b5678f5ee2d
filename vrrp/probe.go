// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
)

// A Prober asks the segment who else has the VIPs, and hears who says that he has.
type Prober interface {
	// Probe asks for so many VIPs, or for each of them once where there are no more, in a
	// way that changes nobody's cache. The next call goes on with those that follow.
	Probe(most int) error
	// Receive waits for the next claim of another MAC address: an answer, or an
	// announcement.
	Receive() (Claim, error)
	// Close makes Receive return.
	Close() error
}

// A Claim says that a VIP is at another MAC address than this node's.
type Claim struct {
	VIP netip.Addr
	MAC MAC
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	arpLen    = 28
	// typeSolicitation is ICMPv6's (RFC 4861, 4.3).
	typeSolicitation = 135
	solicitationLen  = 24
)

// A frameProber sends frames that are built beforehand. The kernel hands it claims
// of other nodes alone, however busy the segment is.
type frameProber struct {
	conn   *packet.Conn
	frames [][]byte
	to     []*packet.Addr
	next   int // of the frames
	buf    [256]byte
}

// probeVIPs opens a Prober on an Ethernet interface.
func probeVIPs(link Link, vips []netip.Addr) (Prober, error) {
	if link.MAC == (MAC{}) {
		return nil, fmt.Errorf("probe on %s: %w", link.Name, errNoMAC)
	}
	p := &frameProber{}
	for _, vip := range vips {
		frame, err := probeFrame(link.MAC, vip)
		if err != nil {
			return nil, fmt.Errorf("probe on %s for %v: %w", link.Name, vip, err)
		}
		p.frames = append(p.frames, frame)
		p.to = append(p.to, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	}
	protocol, filter := etherARP, claimFilter4
	if link.Source.Is6() {
		protocol, filter = etherIPv6, claimFilter6
	}
	program, err := bpf.Assemble(filter(link.MAC, vips))
	if err != nil {
		return nil, fmt.Errorf("probe on %s: %w", link.Name, err)
	}
	p.conn, err = packet.Listen(&net.Interface{Index: link.Index, Name: link.Name}, packet.Raw, protocol, &packet.Config{Filter: program})
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", link.Name, err)
	}
	return p, nil
}

func (p *frameProber) Probe(most int) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("probe vips: %w", err)
	}
	for range min(most, len(p.frames)) {
		i := p.next
		p.next = (i + 1) % len(p.frames)
		if _, err := p.conn.WriteTo(p.frames[i], p.to[i]); err != nil {
			return fmt.Errorf("probe vips: %w", err)
		}
	}
	return nil
}

func (p *frameProber) Receive() (Claim, error) {
	for {
		n, _, err := p.conn.ReadFrom(p.buf[:])
		if err != nil {
			return Claim{}, fmt.Errorf("hear claims of vips: %w", err)
		}
		if c, ok := parseClaim(p.buf[:n]); ok {
			return c, nil
		}
	}
}

func (p *frameProber) Close() error { return p.conn.Close() }

// probeFrame asks for an address from none: an ARP probe (RFC 5227, 2.1.1), or a
// neighbour solicitation as in duplicate address detection (RFC 4862, 5.4.2).
func probeFrame(mac MAC, vip netip.Addr) ([]byte, error) {
	if vip.Is6() {
		return solicitation(mac, vip), nil
	}
	own := net.HardwareAddr(mac[:])
	p, err := arp.NewPacket(arp.OperationRequest, own, netip.IPv4Unspecified(), make(net.HardwareAddr, len(own)), vip)
	if err != nil {
		return nil, err
	}
	body, err := p.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return (&ethernet.Frame{Destination: ethernet.Broadcast, Source: own, EtherType: ethernet.EtherTypeARP, Payload: body}).MarshalBinary()
}

func solicitation(mac MAC, vip netip.Addr) []byte {
	f := make([]byte, etherLen+ipv6Len+solicitationLen)
	target := vip.As16()
	group := [16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	copy(f, []byte{0x33, 0x33, 0xff, target[13], target[14], target[15]})
	copy(f[6:], mac[:])
	binary.BigEndian.PutUint16(f[12:], etherIPv6)

	ip := f[etherLen:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], solicitationLen)
	ip[6], ip[7] = protocolICMP6, ttl
	copy(ip[24:], group[:])

	icmp := ip[ipv6Len:]
	icmp[0] = typeSolicitation
	copy(icmp[8:], target[:])
	sum := pseudoHeaderOf(protocolICMP6, netip.IPv6Unspecified(), netip.AddrFrom16(group), solicitationLen)
	binary.BigEndian.PutUint16(icmp[2:], checksum(sum, icmp))
	return f
}

// parseClaim reads who has which address of a frame that the filters have passed:
// ARP, or a neighbour advertisement with a target link-layer address (RFC 4861, 4.4).
func parseClaim(b []byte) (Claim, bool) {
	if len(b) < etherLen {
		return Claim{}, false
	}
	body := b[etherLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		if len(body) < arpLen {
			return Claim{}, false
		}
		return Claim{netip.AddrFrom4([4]byte(body[14:18])), MAC(body[8:14])}, true
	case etherIPv6:
		if len(body) < ipv6Len+neighbourLen || body[6] != protocolICMP6 || body[ipv6Len] != typeNeighbour {
			return Claim{}, false
		}
		icmp := body[ipv6Len:]
		if icmp[24] != optionTarget || icmp[25] != 1 {
			return Claim{}, false
		}
		return Claim{netip.AddrFrom16([16]byte(icmp[8:24])), MAC(icmp[26:32])}, true
	}
	return Claim{}, false
}

// Filters pass whole frames, or nothing.
var (
	passFrame = bpf.RetConstant{Val: 256}
	dropFrame = bpf.RetConstant{Val: 0}
)

// notFrom drops what an address at an offset says to be from this node.
func notFrom(mac MAC, at uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: at, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(mac[:]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: at + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipTrue: 1},
		dropFrame,
	}
}

// only drops what has another value at an offset.
func only(at uint32, size int, value uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: at, Size: size},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1},
		dropFrame,
	}
}

// claimFilter4 passes ARP whose sender is a VIP at another MAC address.
func claimFilter4(mac MAC, vips []netip.Addr) []bpf.Instruction {
	f := slices.Concat(
		only(etherLen, 4, 1<<16|0x0800), // Ethernet, IPv4
		only(etherLen+4, 2, 6<<8|4),
		notFrom(mac, etherLen+8),
		[]bpf.Instruction{bpf.LoadAbsolute{Off: etherLen + 14, Size: 4}})
	for _, vip := range vips {
		b := vip.As4()
		f = append(f, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[:]), SkipTrue: 1}, passFrame)
	}
	return append(f, dropFrame)
}

// claimFilter6 passes neighbour advertisements from the segment for a VIP at another
// MAC address.
func claimFilter6(mac MAC, vips []netip.Addr) []bpf.Instruction {
	const icmp = etherLen + ipv6Len
	f := slices.Concat(
		only(etherLen+6, 2, protocolICMP6<<8|ttl),
		only(icmp, 2, typeNeighbour<<8),
		only(icmp+24, 2, optionTarget<<8|1),
		notFrom(mac, icmp+26))
	for _, vip := range vips {
		b := vip.As16()
		for i := range 4 {
			f = append(f, bpf.LoadAbsolute{Off: icmp + 8 + uint32(4*i), Size: 4},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[4*i:]), SkipTrue: uint8(2*(3-i) + 1)})
		}
		f = append(f, passFrame)
	}
	return append(f, dropFrame)
}
