package loader

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// solicit is a neighbour solicitation for the VIP, with what a case changes. Its length
// and checksum are right whatever the options are.
type solicit struct {
	mac, to  [6]byte
	from, at netip.Addr
	target   netip.Addr
	options  []byte
	code     byte
	tags     []uint16
}

func solicited(change func(*solicit)) []byte {
	q := solicit{mac: clientMAC, to: [6]byte{0x33, 0x33, 0xff, 0, 1, 0}, from: otherNode6, at: solicitedGroup(fencedVIP6), target: fencedVIP6,
		options: slices.Concat([]byte{1, 1}, clientMAC[:])}
	if change != nil {
		change(&q)
	}
	body := slices.Concat([]byte{135, q.code, 0, 0, 0, 0, 0, 0}, q.target.AsSlice(), q.options)
	kind, packet := ipPacket(58, 255, q.from, q.at, checksummed(body, q.from, q.at))
	return ethernet(q.to, q.mac, kind, packet, q.tags...)
}

// advertisement is what this node says of the VIP.
func advertisement(to netip.Addr, toMAC [6]byte, flags byte, tags ...uint16) []byte {
	body := slices.Concat([]byte{136, 0, 0, 0, flags, 0, 0, 0}, fencedVIP6.AsSlice(), []byte{2, 1}, nicMAC[:])
	kind, packet := ipPacket(58, 255, fencedVIP6, to, checksummed(body, fencedVIP6, to))
	return ethernet(toMAC, nicMAC, kind, packet, tags...)
}

// Who asks for a VIP, and gets which answer from the program.
func TestWhoHas(t *testing.T) {
	r := newFenceRig(t)
	apply(t, r.Datapath, service("web", lb.DSR, 80, backends(1, 80)), lb.ServiceState{Service: lb.Service{
		Name: "web6", Addresses: []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(fencedVIP6, 80))}, Protocol: lb.TCP, Forward: lb.DSR, TableSize: lb.DefaultTableSize,
	}})
	r.v4.Hold()
	r.v6.Hold()
	to := func(mac [6]byte, frame []byte) []byte { return slices.Concat(mac[:], frame[6:]) }
	reply := func(sender netip.Addr, tags ...uint16) []byte {
		b := arp(2, nicMAC, vipIP, sender)
		copy(b[18:], clientMAC[:])
		return ethernet(clientMAC, nicMAC, 0x0806, b, tags...)
	}
	asks := func(mac [6]byte, sender netip.Addr, tags ...uint16) []byte {
		return arpFrame(1, mac, sender, vipIP, tags...)
	}
	padded := slices.Concat(asksARP, bytes.Repeat([]byte{7}, 18))
	allNodes, allNodesMAC := netip.MustParseAddr("ff02::1"), [6]byte{0x33, 0x33, 0, 0, 0, 1}
	const answer, probed = 0x60, 0x20
	for _, tc := range []struct {
		name string
		in   []byte
		want []byte // the answer; nil: the kernel has the frame
	}{
		{"a request", asks(clientMAC, clientIP), reply(clientIP)},
		{"padded to 60 bytes", padded, slices.Concat(reply(netip.MustParseAddr("192.0.2.50")), padded[42:])},
		{"a probe", asks(clientMAC, netip.IPv4Unspecified()), reply(netip.IPv4Unspecified())},
		{"to this node alone", to(nicMAC, asks(clientMAC, clientIP)), reply(clientIP)},
		{"with a priority", asks(clientMAC, clientIP, 0xe000), reply(clientIP, 0xe000)},
		{"a frame that another host sends for the asker", func() []byte {
			b := asks(clientMAC, clientIP)
			copy(b[6:], otherMAC[:])
			return b
		}(), reply(clientIP)},
		{"to another node alone", to(otherMAC, asks(clientMAC, clientIP)), nil},
		{"gratuitous", asks(otherMAC, vipIP), nil},
		{"gratuitous, of this node", asks(nicMAC, vipIP), nil},
		{"a reply", arpFrame(2, clientMAC, clientIP, vipIP), nil},
		{"another operation", arpFrame(8, clientMAC, clientIP, vipIP), nil},
		{"another target", arpFrame(1, clientMAC, clientIP, thisNode), nil},
		{"on a VLAN", asks(clientMAC, clientIP, 7), nil},
		{"from a group", asks(anyMAC, clientIP), nil},
		{"from no MAC address", asks([6]byte{}, clientIP), nil},
		{"from a loopback address", asks(clientMAC, netip.MustParseAddr("127.0.0.1")), nil},
		{"from a multicast address", asks(clientMAC, netip.MustParseAddr("224.0.0.1")), nil},
		{"from the broadcast address", asks(clientMAC, netip.MustParseAddr("255.255.255.255")), nil},
		{"from an address that begins with 0", asks(clientMAC, netip.MustParseAddr("0.0.0.1")), nil},

		{"IPv6, a solicitation", solicited(nil), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, with a priority", solicited(func(q *solicit) { q.tags = []uint16{0x2000} }), advertisement(otherNode6, clientMAC, answer, 0x2000)},
		{"IPv6, to the VIP", solicited(func(q *solicit) { q.at, q.to = fencedVIP6, nicMAC }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, to the VIP, which does not say who asks", solicited(func(q *solicit) { q.at, q.to, q.options = fencedVIP6, nicMAC, nil }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, with a nonce before", solicited(func(q *solicit) { q.options = slices.Concat([]byte{14, 1, 1, 2, 3, 4, 5, 6}, q.options) }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, with 15 options", solicited(func(q *solicit) { q.options = bytes.Repeat(q.options, 15) }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, with a long option", solicited(func(q *solicit) { q.options = slices.Concat([]byte{200, 3}, make([]byte, 22), q.options) }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, from another host's frame", solicited(func(q *solicit) { q.mac = otherMAC }), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, padded", append(solicited(nil), 1, 2, 3), advertisement(otherNode6, clientMAC, answer)},
		{"IPv6, duplicate address detection", solicited(func(q *solicit) { q.from, q.options = netip.IPv6Unspecified(), nil }), advertisement(allNodes, allNodesMAC, probed)},
		{"IPv6, the same with a nonce", solicited(func(q *solicit) { q.from, q.options = netip.IPv6Unspecified(), []byte{14, 1, 1, 2, 3, 4, 5, 6} }), advertisement(allNodes, allNodesMAC, probed)},
		{"IPv6, the same that says who asks", solicited(func(q *solicit) { q.from = netip.IPv6Unspecified() }), nil},
		{"IPv6, the same to the VIP", solicited(func(q *solicit) { q.from, q.options, q.at, q.to = netip.IPv6Unspecified(), nil, fencedVIP6, nicMAC }), nil},
		{"IPv6, to another node alone", solicited(func(q *solicit) { q.to = otherMAC }), nil},
		{"IPv6, to another group", solicited(func(q *solicit) { q.at = solicitedGroup(thisNode6) }), nil},
		{"IPv6, to all nodes", solicited(func(q *solicit) { q.at = allNodes }), nil},
		{"IPv6, for another address", solicited(func(q *solicit) { q.target, q.at = thisNode6, solicitedGroup(thisNode6) }), nil},
		{"IPv6, for the VIP of IPv4", solicited(func(q *solicit) {
			q.target = netip.AddrFrom16(vipIP.As16())
			q.at = solicitedGroup(q.target)
		}), nil},
		{"IPv6, from a group", solicited(func(q *solicit) { q.from = allNodes }), nil},
		{"IPv6, from ::1", solicited(func(q *solicit) { q.from = netip.IPv6Loopback() }), nil},
		{"IPv6, from the VIP", solicited(func(q *solicit) { q.from = fencedVIP6 }), nil},
		{"IPv6, from a group's MAC address", solicited(func(q *solicit) { q.options = slices.Concat([]byte{1, 1}, anyMAC[:]) }), nil},
		{"IPv6, an option of no length", solicited(func(q *solicit) { q.options = slices.Concat([]byte{14, 0}, make([]byte, 6), q.options) }), nil},
		{"IPv6, an option that is longer than the packet", solicited(func(q *solicit) { q.options[1] = 2 }), nil},
		{"IPv6, half an option", solicited(func(q *solicit) { q.options = q.options[:4] }), nil},
		{"IPv6, with 17 options", solicited(func(q *solicit) { q.options = bytes.Repeat(q.options, 17) }), nil},
		{"IPv6, a code", solicited(func(q *solicit) { q.code = 1 }), nil},
		{"IPv6, a wrong checksum", func() []byte { b := solicited(nil); b[56] ^= 1; return b }(), nil},
		{"IPv6, a hop too far", func() []byte { b := solicited(nil); b[21] = 254; return b }(), nil},
		{"IPv6, another version", func() []byte { b := solicited(nil); b[14] = 0x50; return b }(), nil},
		{"IPv6, a frame that is far longer", append(solicited(nil), make([]byte, 512)...), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := try(t, r.Datapath, tc.in)
			verdict, out := send(t, r.Datapath, tc.in)
			switch {
			case tc.want == nil && (verdict != xdpPass || got.Outcome == "who_has"):
				t.Errorf("verdict %d, outcome %s; want that it passes", verdict, got.Outcome)
			case tc.want == nil:
			case verdict != xdpTX || got.Outcome != "who_has":
				t.Errorf("verdict %d, outcome %s; want an answer", verdict, got.Outcome)
			default:
				if diff := cmp.Diff(hex.Dump(tc.want), hex.Dump(out)); diff != "" {
					t.Errorf("answer (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// When the program answers: from Hold to Present, and never for what is fenced.
func TestWhoHasWhen(t *testing.T) {
	r := newFenceRig(t)
	ask6 := solicited(nil)
	want := func(what, outcome, outcome6 string) {
		t.Helper()
		if got := try(t, r.Datapath, asksARP).Outcome; got != outcome {
			t.Errorf("%s: outcome %s, want %s", what, got, outcome)
		}
		if got := try(t, r.Datapath, ask6).Outcome; got != outcome6 {
			t.Errorf("%s: outcome %s of IPv6, want %s", what, got, outcome6)
		}
	}
	both := func(do func(*Fence)) { do(r.v4); do(r.v6) }
	want("before", "not_ip", "not_vip")
	both(func(f *Fence) {
		if !f.Hold() {
			t.Error("nobody answers after Hold")
		}
	})
	want("held", "who_has", "who_has")
	both((*Fence).Present)
	want("on the interface", "not_ip", "not_vip")
	both(func(f *Fence) { f.Hold() })
	want("taken away from it", "who_has", "who_has")
	both(func(f *Fence) { dead(f, true) })
	want("dead before they came to the interface", "who_has", "who_has")
	try(t, r.Datapath, claims)
	try(t, r.Datapath, claims6)
	want("dead, and another node has them", "fenced", "fenced")
	both((*Fence).Adopt)
	want("adopted by the next daemon", "fenced", "fenced")
	both((*Fence).Drop)
	want("dropped", "not_ip", "not_vip")
	both((*Fence).Present) // of what is not held
	want("present, and not held", "not_ip", "not_vip")
	if nowhere := r.fences.Fence(53, []netip.Addr{vipIP}); nowhere.Hold() {
		t.Error("an instance that has no place is answered for")
	}
	// A router says so.
	r.v6.Hold()
	if err := r.v6.Place(FencePlace{Interface: nicIndex, MAC: nicMAC, Source: thisNode6, Router: true}); err != nil {
		t.Fatal(err)
	}
	_, out := send(t, r.Datapath, ask6)
	if diff := cmp.Diff(advertisement(otherNode6, clientMAC, 0xe0), out); diff != "" {
		t.Errorf("answer of a router (-want +got):\n%s", diff)
	}
}

// A frame that is cut anywhere, or has another byte anywhere, is answered as the model
// says, or not at all.
func TestWhoHasSpoilt(t *testing.T) {
	w := newTwin(t)
	tagged := func(frame []byte, tags ...uint16) []byte {
		return ethernet([6]byte(frame), [6]byte(frame[6:]), be16(frame, 12), frame[14:], tags...)
	}
	to := func(vip netip.Addr, tags ...uint16) []byte {
		return solicited(func(q *solicit) { q.target, q.at, q.tags = vip, solicitedGroup(vip), tags })
	}
	for _, whole := range [][]byte{
		asksARP, arpFrame(1, clientMAC, clientIP, secondSource, 7), tagged(arpFrame(1, clientMAC, clientIP, vipIP), 0xe000),
		to(v6VIP.Addr()), to(secondSource6, 7, 8),
		solicited(func(q *solicit) { q.from, q.options = netip.IPv6Unspecified(), nil }),
	} {
		if err := w.reset(); err != nil {
			t.Fatal(err)
		}
		if got, err := w.step(whole); err != nil || got.Outcome != "who_has" {
			t.Fatalf("%x: outcome %s, %v", whole, got.Outcome, err)
		}
		answered := 0
		frame := func(b []byte) error {
			got, err := w.step(b)
			if got.Outcome == "who_has" {
				answered++
			}
			if err != nil {
				err = fmt.Errorf("%w\n%x of\n%x", err, b, whole)
			}
			return err
		}
		for n := 14; n < len(whole); n++ {
			if err := frame(whole[:n:n]); err != nil {
				t.Fatal(err)
			}
		}
		if answered > 0 {
			t.Errorf("%d cut frames of %x are answered", answered, whole)
		}
		for i := range whole {
			for _, flip := range []byte{1, 0x80, 0xff} {
				b := bytes.Clone(whole)
				b[i] ^= flip
				if err := frame(b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if answered == 0 {
			t.Errorf("no change to %x leaves it a question", whole)
		}
	}
}
