package loader

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	virtualMAC4 = [6]byte{0, 0, 0x5e, 0, 1, 51}
	virtualMAC6 = [6]byte{0, 0, 0x5e, 0, 2, 51}
)

// newVirtualRig is a fenceRig whose VIPs are at virtual MAC addresses.
func newVirtualRig(t *testing.T) *fenceRig {
	t.Helper()
	r := newFenceRig(t)
	for f, source := range map[*Fence]netip.Addr{r.v4: thisNode, r.v6: thisNode6} {
		if err := f.Place(FencePlace{Interface: nicIndex, MAC: nicMAC, Source: source, Patience: time.Hour, Virtual: true}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// What becomes of frames to a virtual MAC address, on the node that has it and on
// others.
func TestVirtualMAC(t *testing.T) {
	r := newVirtualRig(t)
	to := func(mac [6]byte, b []byte) []byte { return slices.Concat(mac[:], b[6:]) }
	web := toVIP().Bytes()
	ping := toVIP(func(f *testenv.Frame) {
		f.Protocol, f.Payload = testenv.ProtocolICMP, checksummed([]byte{8, 0, 0, 0, 0, 1, 0, 1}, clientIP, vipIP)
	}).Bytes()
	ssh := toVIP(func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(vipIP, 22) }).Bytes()
	routed := toVIP(func(f *testenv.Frame) { f.Dst = netip.MustParseAddrPort("203.0.113.9:80") }).Bytes()
	routed6 := toVIP(func(f *testenv.Frame) { f.Src, f.Dst = v6Client, netip.MustParseAddrPort("[2001:db8:9::9]:80") }).Bytes()
	for _, tc := range []struct {
		name    string
		frame   []byte
		held    string // what the node that has it makes of it
		unheld  string // and another
		changed bool   // the first one's kernel gets it at the NIC's address
	}{
		{"to a service", to(virtualMAC4, web), "sent", "other_mac", false},
		{"to the NIC's own address", web, "sent", "sent", false},
		{"to another virtual router's", to([6]byte{0, 0, 0x5e, 0, 1, 52}, web), "other_mac", "other_mac", false},
		{"to the IPv6 router's of that number", to(virtualMAC6, web), "sent", "other_mac", false},
		{"in a VLAN", to(virtualMAC4, toVIP(vlans(7)).Bytes()), "other_mac", "other_mac", false},
		{"with a priority", to(virtualMAC4, toVIP(vlans(0xe000)).Bytes()), "sent", "other_mac", false},
		{"a ping", to(virtualMAC4, ping), "protocol", "other_mac", true},
		{"ssh", to(virtualMAC4, ssh), "no_service", "other_mac", true},
		{"to be routed", to(virtualMAC4, routed), "not_vip", "not_vip", true},
		{"IPv6, to be routed", to(virtualMAC6, routed6), "not_vip", "not_vip", true},
		{"ARP, a reply", to(virtualMAC4, arpFrame(2, clientMAC, clientIP, vipIP)), "not_ip", "not_ip", true},
		{"ARP, a request to it alone", to(virtualMAC4, asksARP), "who_has", "not_ip", false},
		{"ARP, a request", asksARP, "who_has", "not_ip", false},
		{"IPv6, a solicitation to it alone", to(virtualMAC6, solicited(func(q *solicit) { q.at = fencedVIP6 })), "who_has", "not_vip", false},
		{"IPv6, a solicitation", solicited(nil), "who_has", "not_vip", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			both := func(do func(*Fence)) { do(r.v4); do(r.v6) }
			sees := func(what, outcome string, changed bool) {
				t.Helper()
				before := outcomes(t, r.Datapath)
				verdict, out := send(t, r.Datapath, tc.frame)
				got := "sent"
				for name, n := range outcomes(t, r.Datapath) {
					if n > before[name] {
						got = name
					}
				}
				want := tc.frame
				if changed {
					want = to(nicMAC, tc.frame)
				}
				if got != outcome || verdict == xdpPass && !bytes.Equal(out, want) {
					t.Errorf("%s: outcome %s, want %s; changed (-want +got):\n%s", what, got, outcome, cmp.Diff(want, out))
				}
			}
			both((*Fence).Drop)
			sees("not held", tc.unheld, false)
			both(func(f *Fence) { f.Hold() })
			sees("held", tc.held, tc.changed)
			both((*Fence).Present)
			sees("on the interface", tc.held, tc.changed)
			both((*Fence).Drop)
			both((*Fence).Adopt)
			sees("adopted", tc.held, tc.changed)
			// Another node has taken it from a daemon that is gone.
			both(func(f *Fence) { dead(f, true); f.at().Claimed = 2 })
			unheld := tc.unheld
			if tc.held == "who_has" {
				unheld = "fenced"
			}
			sees("fenced", unheld, false)
			both(func(f *Fence) { dead(f, false); f.at().Claimed = 0 })
		})
	}
}

// Answers and announcements name the virtual MAC address, and what another node says
// from there is another node's.
func TestVirtualMACIsNamed(t *testing.T) {
	r := newVirtualRig(t)
	r.v4.Hold()
	r.v6.Hold()
	own := arp(2, virtualMAC4, vipIP, netip.MustParseAddr("192.0.2.50"))
	copy(own[18:], clientMAC[:])
	_, out := send(t, r.Datapath, asksARP)
	if diff := cmp.Diff(ethernet(clientMAC, virtualMAC4, 0x0806, own), out); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	body := slices.Concat([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, fencedVIP6.AsSlice(), []byte{2, 1}, virtualMAC6[:])
	kind, packet := ipPacket(58, 255, fencedVIP6, otherNode6, checksummed(body, fencedVIP6, otherNode6))
	_, out = send(t, r.Datapath, solicited(nil))
	if diff := cmp.Diff(ethernet(clientMAC, virtualMAC6, kind, packet), out); diff != "" {
		t.Errorf("answer of IPv6 (-want +got):\n%s", diff)
	}

	sendEarnest(t, r.Datapath, arpFrame(1, virtualMAC4, vipIP, vipIP))
	sendEarnest(t, r.Datapath, neighbourFrame(136, 0x20, 255, virtualMAC6, otherNode6, netip.MustParseAddr("ff02::1"), fencedVIP6))
	for _, f := range []*Fence{r.v4, r.v6} {
		if f.at().Claimed == 0 {
			t.Errorf("an announcement from the virtual MAC address is taken for this node's own")
		}
	}
	// The next daemon lists no MAC address among the VIPs, and one without it leaves none.
	_, states, err := readFences(r.tables)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if len(s.Addresses) != 1 {
			t.Errorf("VIPs %v", s.Addresses)
		}
	}
	r.place(t, r.v4, thisNode)
	r.place(t, r.v6, thisNode6)
	if r.tables.arrays.VirtualMacs != 0 || r.tables.arrays.Fences == 0 {
		t.Error("virtual MAC addresses are looked for still, or VIPs no more")
	}
	r.v4.Adopt()
	if got := try(t, r.Datapath, asksARP).Outcome; got != "not_ip" {
		t.Errorf("outcome %s without a virtual MAC address, want that the kernel answers", got)
	}
}
