package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linkVIP6 is a VIP without a service.
var linkVIP6 = netip.MustParseAddr("fe80::100")

// worldFences are the instances of the world.
func worldFences() []*modelFence {
	return []*modelFence{
		{vips: []netip.Addr{linkVIP6}, vrid: 53, mac: nicMAC, source: thisNode6, closed: true, held: lbFenceHeldHELD_PROGRAM},
		{vips: []netip.Addr{vipIP, plainVIP}, vrid: 51, mac: nicMAC, source: thisNode, held: lbFenceHeldHELD_PROGRAM},
		{vips: []netip.Addr{v6VIP.Addr(), plainVIP6}, vrid: 51, mac: nicMAC, source: thisNode6, router: true, virtual: true, held: lbFenceHeldHELD_PROGRAM},
		{vips: []netip.Addr{secondSource}, vlans: [2]uint16{7}, vrid: 52, mac: nicMAC, source: thisNode, virtual: true, closed: true, held: lbFenceHeldHELD_PROGRAM},
		{vips: []netip.Addr{secondSource6}, vlans: [2]uint16{7, 8}, vrid: 52, mac: nicMAC, source: thisNode6, closed: true, held: lbFenceHeldHELD_PROGRAM},
	}
}

// openFences gives the program the instances of the world.
func (w *twin) openFences(t testing.TB) {
	t.Helper()
	all, err := w.d.OpenFences(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.m.fences = worldFences()
	for _, m := range w.m.fences {
		f := all.Fence(m.vrid, m.vips)
		if err := f.Place(FencePlace{Interface: nicIndex, MAC: m.mac, Source: m.source, Router: m.router, Virtual: m.virtual, Closed: m.closed}); err != nil {
			t.Fatal(err)
		}
		// There is no VLAN on the interface that test packets come in by.
		keys := map[lbFenceKey]bool{}
		for _, vip := range m.vips {
			keys[lbFenceKey{Address: mapped(vip), Interface: nicIndex, Vlan: [2]uint16{bigEndian16(m.vlans[0]), bigEndian16(m.vlans[1])}}] = true
		}
		if m.closed {
			for _, vip := range m.vips {
				keys[lbFenceKey{Address: mapped(vip)}] = true
			}
		}
		if m.virtual {
			keys[lbFenceKey{Address: macAddress(m.at()), Interface: nicIndex, Vlan: [2]uint16{bigEndian16(m.vlans[0]), bigEndian16(m.vlans[1])}}] = true
		}
		if err := all.setAddresses(f.number, keys); err != nil {
			t.Fatal(err)
		}
		w.fences = append(w.fences, f)
	}
	w.resetFences()
}

// resetFences makes the instances as they are in the world, with nobody else seen.
func (w *twin) resetFences() {
	for i, base := range worldFences() {
		w.m.fences[i].held, w.m.fences[i].dead = base.held, base.dead
		at := w.fences[i].at()
		at.Heard, at.Claimed = 0, 0
		w.setFence(i)
	}
}

// setFence makes an instance of the program what it is in the model.
func (w *twin) setFence(i int) {
	m, f := w.m.fences[i], w.fences[i]
	f.hold(m.held)
	at := f.at()
	at.Beat, at.Patience = 1, 1 // out of patience, however short the machine is up
	if !m.dead {
		at.Beat, at.Patience = uint64(clock(unix.CLOCK_MONOTONIC)), uint64(24*time.Hour)
	}
}

// changeFence has a daemon die or live, and VIPs come and go.
func (w *twin) changeFence(s *script) {
	i := s.pick(len(w.fences))
	m := w.m.fences[i]
	m.held = oneOf(s, lbFenceHeldHELD_PROGRAM, lbFenceHeldHELD_PROGRAM, lbFenceHeldHELD_KERNEL, lbFenceHeldHELD_NOT)
	m.dead = s.pick(2) == 1
	w.note("instance %d is held %d, its daemon dead: %v", i, m.held, m.dead)
	w.setFence(i)
}

// ask sends some frames that ask for the VIPs of an instance, or say whose they are.
func (w *twin) ask(s *script) error {
	m := oneOf(s, w.m.fences...)
	for range 1 + s.pick(6) {
		if err := w.feed(question(s, m)); err != nil {
			return err
		}
	}
	return nil
}

// question is such a frame, some bytes of which may be changed.
func question(s *script, m *modelFence) []byte {
	vip := oneOf(s, m.vips...)
	var tags []uint16
	for _, tag := range m.vlans {
		if tag != 0 {
			tags = append(tags, tag|uint16(s.pick(8))<<13)
		}
	}
	if s.pick(8) == 7 {
		tags = slices.Concat([]uint16{uint16(s.pick(2)) << 13}, tags)
	}
	mac := oneOf(s, clientMAC, clientMAC, otherMAC, nicMAC, m.at(), anyMAC, [6]byte{})
	var b []byte
	switch {
	case s.pick(8) == 7:
		a := advert{version: 3, vrid: m.vrid, priority: byte(s.pick(3)), hops: 255, from: oneOf(s, otherNode, thisNode), vips: []netip.Addr{vip}, tags: tags}
		if vip.Is6() {
			a.from = oneOf(s, otherNode6, thisNode6)
		}
		b = a.frame()
	case vip.Is4():
		sender := oneOf(s, clientIP, clientIP, netip.IPv4Unspecified(), vip, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.1"))
		b = arpFrame(oneOf(s, uint16(1), 1, 1, 2, 3), mac, sender, vip, tags...)
	default:
		from := oneOf(s, otherNode6, otherNode6, netip.IPv6Unspecified(), vip, netip.IPv6Loopback(), netip.MustParseAddr("ff02::1"))
		b = neighbourFrame(oneOf(s, byte(135), 135, 135, 136), oneOf(s, byte(0), 0x20, 0x40), oneOf(s, byte(255), 255, 64), mac, from,
			oneOf(s, solicitedGroup(vip), solicitedGroup(vip), vip, thisNode6), vip, tags...)
		if s.pick(4) == 3 {
			b = b[:len(b)-8] // without the option: its length and checksum are wrong, or made right
			b[14+4*len(tags)+5] -= 8
			ip := b[14+4*len(tags):]
			checksummed(ip[40:], from, netip.AddrFrom16([16]byte(ip[24:])))
		}
	}
	if s.pick(2) == 1 {
		own := m.at()
		copy(b, oneOf(s, nicMAC[:], own[:], otherMAC[:], anyMAC[:]))
	}
	for range max(s.pick(6)-3, 0) {
		at, v := s.next(), byte(s.next())
		b[at%len(b)] = v
	}
	if s.pick(8) == 7 {
		b = b[:max(14, len(b)-s.next()%len(b))]
	}
	return b
}

// solicitedGroup is the solicited-node multicast address of another one.
func solicitedGroup(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
