package loader

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A modelFence is an instance of VRRP.
type modelFence struct {
	vips   []netip.Addr
	vlans  [2]uint16 // that its interface is in, outer first; 0: none
	vrid   byte
	mac    [6]byte
	source netip.Addr // of its advertisements
	router bool
	// virtual says that the VIPs are at the virtual router's MAC address.
	virtual bool
	// closed says that the node takes for the VIPs what services do, and nothing else.
	closed bool
	held   lbFenceHeld
	dead   bool // its daemon has not been at work for too long
}

// at is the MAC address that the VIPs are at.
func (f *modelFence) at() [6]byte {
	family := byte(1)
	if f.vips[0].Is6() {
		family = 2
	}
	if f.virtual {
		return [6]byte{0, 0, 0x5e, 0, family, f.vrid}
	}
	return f.mac
}

// fenceOf is the instance that has a VIP where a frame came in.
func (m *model) fenceOf(p *modelPacket, vip netip.Addr) *modelFence {
	for _, f := range m.fences {
		if f.vlans == p.vlans() && slices.Contains(f.vips, vip) {
			return f
		}
	}
	return nil
}

// toVirtualMAC tells whether a frame is to a virtual MAC address, and this node the one
// that has it.
func (m *model) toVirtualMAC(p *modelPacket) bool {
	has := slices.ContainsFunc(m.fences, func(f *modelFence) bool {
		return f.virtual && f.vlans == p.vlans() && f.at() == [6]byte(p.frame) && f.held != lbFenceHeldHELD_NOT && !m.fenced(f, m.claims == f)
	})
	if has {
		m.reach("a frame to a virtual MAC address")
	}
	return has
}

// toNode tells whether a frame is to this node's NIC.
func (m *model) toNode(p *modelPacket) bool {
	mac, ok := m.nics[p.nic]
	return ok && (mac == [6]byte(p.frame) || m.toVirtualMAC(p))
}

// toKernel is how a frame that passes comes to the kernel.
func (m *model) toKernel(p *modelPacket) []byte {
	mac, ok := m.nics[p.nic]
	if !ok || !m.toVirtualMAC(p) {
		return p.frame
	}
	return slices.Concat(mac[:], p.frame[6:])
}

// keepOut is a packet that no service took, and would else end with out.
func (m *model) keepOut(p *modelPacket, out string) string {
	f := m.fenceOf(p, p.dst)
	if !p.dst.IsLinkLocalUnicast() {
		f = nil
		for _, any := range m.fences {
			if slices.Contains(any.vips, p.dst) {
				f = any
			}
		}
	}
	neighbours := p.v6 && p.ip()[6] == 58 && len(p.ip()) >= 64 && (p.ip()[40] == 135 || p.ip()[40] == 136)
	if f == nil || !f.closed || f.held == lbFenceHeldHELD_NOT || !m.toNode(p) || neighbours {
		return out
	}
	return "not_accepted"
}

// vlans are those that a frame is in. A tag in front that names none does not count.
func (p *modelPacket) vlans() [2]uint16 {
	var vlans [2]uint16
	ids := make([]uint16, 0, 2)
	for _, tag := range p.tags {
		ids = append(ids, tag&0xfff)
	}
	if len(ids) > 0 && ids[0] == 0 {
		ids = ids[1:]
	}
	copy(vlans[:], ids)
	return vlans
}

// notes remembers that another node has the VIPs of an instance.
func (m *model) notes(f *modelFence) {
	m.claims = f
	m.later(func() { m.others[f] = true })
}

func (m *model) fenced(f *modelFence, claims bool) bool {
	return f.held != lbFenceHeldHELD_NOT && f.dead && (claims || m.others[f])
}

// owner is a frame that says whose a VIP is, or asks, and would else end with out.
func (m *model) owner(p *modelPacket, out string) string {
	switch {
	case p.l3 == 0:
		return out
	case be16(p.frame, p.l3-2) == testenv.EtherTypeARP:
		return m.arp(p)
	case out == "not_ip":
		return out
	}
	ip := p.ip()
	switch {
	case p.v6 && ip[6] == 58:
		return m.neighbour(p, out)
	case p.v6 && ip[6] == 112:
		m.advertisement(p, ip[40:], ip[7])
	case !p.v6 && ip[9] == 112 && ip[0]&15 >= 5 && be16(ip, 6)&0x3fff == 0:
		m.advertisement(p, ip[min(len(ip), int(ip[0]&15)*4):], ip[8])
	}
	return out
}

func (m *model) advertisement(p *modelPacket, b []byte, hops byte) {
	size := 4
	if p.v6 {
		size = 16
	}
	if len(b) < 8+size || hops != 255 || b[2] == 0 || b[3] == 0 || b[0] != 0x31 && (b[0] != 0x21 || p.v6) {
		return
	}
	vip, _ := netip.AddrFromSlice(b[8 : 8+size])
	if f := m.fenceOf(p, vip); f != nil && f.vrid == b[1] && f.source != p.src {
		m.notes(f)
	}
}

// mayAnswer tells whether the program answers for the VIPs, and the frame is to this
// node, or to many.
func mayAnswer(p *modelPacket, f *modelFence) bool {
	return f.held == lbFenceHeldHELD_PROGRAM && (p.frame[0]&1 != 0 || [6]byte(p.frame) == f.mac || [6]byte(p.frame) == f.at())
}

func isHost(mac [6]byte) bool { return mac != [6]byte{} && mac[0]&1 == 0 }

func (m *model) arp(p *modelPacket) string {
	b := p.frame[p.l3:]
	if len(b) < 28 || !bytes.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) {
		return "not_ip"
	}
	asker, sender, target := [6]byte(b[8:]), netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
	f := m.fenceOf(p, target)
	if f == nil {
		return "not_ip"
	}
	claims := sender == target && asker != f.mac
	if claims {
		m.notes(f)
	}
	forged := sender.IsLoopback() || b[14] >= 224 || b[14] == 0 && !sender.IsUnspecified()
	switch {
	case be16(b, 6) != 1:
		return "not_ip"
	case m.fenced(f, claims):
		return "fenced"
	case !mayAnswer(p, f) || sender == target || !isHost(asker) || forged:
		return "not_ip"
	}
	out, own := bytes.Clone(p.frame), f.at()
	copy(out, asker[:])
	copy(out[6:], own[:])
	copy(out[p.l3:], arp(2, own, target, sender))
	copy(out[p.l3+18:], asker[:])
	m.Verdict, m.Frame = xdpTX, out
	return "who_has"
}

// neighbour is a message of ICMPv6.
func (m *model) neighbour(p *modelPacket, out string) string {
	ip := p.ip()
	b := ip[40:]
	if len(b) < 24 || ip[7] != 255 || b[1] != 0 || b[0] != 135 && b[0] != 136 {
		return out
	}
	target := netip.AddrFrom16([16]byte(b[8:]))
	f := m.fenceOf(p, target)
	if f == nil {
		return out
	}
	if b[0] == 136 {
		mac := [6]byte(p.frame[6:])
		if len(b) >= 32 && b[24] == 2 && b[25] == 1 {
			mac = [6]byte(b[26:])
		}
		if b[4]&0x40 == 0 && mac != f.mac {
			m.notes(f)
		}
		return out
	}
	if m.fenced(f, false) {
		return "fenced"
	}
	asker, ok := asksFor(p, target)
	if !ok || !mayAnswer(p, f) {
		return out
	}
	m.Verdict, m.Frame = xdpTX, advertisementTo(p, f, target, asker)
	return "who_has"
}

// asksFor says who sends a neighbour solicitation, if it is one by RFC 4861, section 7.1.1.
func asksFor(p *modelPacket, target netip.Addr) (asker [6]byte, ok bool) {
	ip := p.ip()
	length := int(be16(ip, 4))
	if ip[0]>>4 != 6 || len(p.frame) > 512 || length < 24 || length%8 != 0 || length > 152 || len(ip) < 40+length {
		return asker, false
	}
	probes := p.src.IsUnspecified()
	if p.dst != solicitedGroup(target) && (probes || p.dst != target) || p.src.IsMulticast() || p.src.IsLoopback() || p.src == target {
		return asker, false
	}
	asker = [6]byte(p.frame[6:])
	for options := ip[64 : 40+length]; len(options) > 0; {
		size := 8 * int(options[1])
		if size == 0 || size > len(options) || options[0] == 1 && probes {
			return asker, false
		}
		if options[0] == 1 && size == 8 {
			asker = [6]byte(options[2:])
		}
		options = options[size:]
	}
	covered := slices.Concat(ip[8:40], []byte{0, 0, ip[4], ip[5], 0, 0, 0, 58}, ip[40:40+length])
	return asker, isHost(asker) && amend(0xffff, make([]byte, len(covered)), covered) == 0
}

// advertisementTo is the answer to a solicitation (RFC 4861, sections 4.4 and 7.2.4).
func advertisementTo(p *modelPacket, f *modelFence, target netip.Addr, asker [6]byte) []byte {
	to, flags := p.src, byte(0x60)
	if to.IsUnspecified() {
		to, flags, asker = netip.MustParseAddr("ff02::1"), 0x20, [6]byte{0x33, 0x33, 0, 0, 0, 1}
	}
	if f.router {
		flags |= 0x80
	}
	own := f.at()
	body := slices.Concat([]byte{136, 0, 0, 0, flags, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, own[:])
	_, packet := ipPacket(58, 255, target, to, checksummed(body, target, to))
	return slices.Concat(asker[:], own[:], p.frame[12:p.l3], packet)
}
