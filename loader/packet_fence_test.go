package loader

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

var (
	otherMAC   = [6]byte{2, 0, 0, 0, 0, 2} // of the node that takes over
	otherNode  = netip.MustParseAddr("192.0.2.2")
	thisNode   = netip.MustParseAddr("192.0.2.1")
	otherNode6 = netip.MustParseAddr("fe80::2")
	thisNode6  = netip.MustParseAddr("fe80::1")
	fencedVIP6 = netip.MustParseAddr("2001:db8::100")
	anyMAC     = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
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
	ether, b := ipPacket(58, hops, from, to, body)
	return ethernet([6]byte{0x33, 0x33, 0, 0, 0, 1}, mac, ether, b, tags...)
}

var (
	asksARP = arpFrame(1, clientMAC, netip.MustParseAddr("192.0.2.50"), vipIP)
	asksND  = neighbourFrame(135, 0, 255, clientMAC, netip.MustParseAddr("fe80::c"), netip.MustParseAddr("ff02::1:ff00:100"), fencedVIP6)
)

// fencePatience is out of the reach of a test machine that is slow.
const fencePatience = time.Hour

// A fenceRig is a data plane with an instance of each family on the test NIC.
type fenceRig struct {
	*Datapath
	fences *Fences
	v4, v6 *Fence
}

func newFenceRig(t *testing.T) *fenceRig {
	t.Helper()
	r := &fenceRig{Datapath: newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))}
	var err error
	if r.fences, err = r.OpenFences(nil); err != nil {
		t.Fatal(err)
	}
	r.v4, r.v6 = r.fences.Fence(51, []netip.Addr{vipIP}), r.fences.Fence(51, []netip.Addr{fencedVIP6})
	r.place(t, r.v4, thisNode)
	r.place(t, r.v6, thisNode6)
	return r
}

func (r *fenceRig) place(t *testing.T, f *Fence, source netip.Addr) {
	t.Helper()
	if err := f.Place(FencePlace{Interface: nicIndex, MAC: nicMAC, Source: source, Patience: fencePatience}); err != nil {
		t.Fatal(err)
	}
}

// dead makes the last beat of a fence one of a while ago.
func dead(f *Fence, since time.Duration) {
	storeWord(&f.at().Beat, uint64(clock(unix.CLOCK_MONOTONIC)-since))
}

func TestFence(t *testing.T) {
	claim := arpFrame(1, otherMAC, vipIP, vipIP)
	claim6 := neighbourFrame(136, 0x20, 255, otherMAC, otherNode6, netip.MustParseAddr("ff02::1"), fencedVIP6)
	const long, short = 2 * fencePatience, fencePatience / 2
	cases := []struct {
		name    string
		silence time.Duration // since the last beat
		unheld  bool
		before  [][]byte
		ask     []byte
		want    string
	}{
		{"nobody else, the daemon is dead", long, false, nil, asksARP, "not_ip"},
		{"another node's advertisement, the daemon is at work", short, false, [][]byte{advertised(nil)}, asksARP, "not_ip"},
		{"another node's advertisement, the daemon is dead", long, false, [][]byte{advertised(nil)}, asksARP, "fenced"},
		{"gratuitous request", long, false, [][]byte{claim}, asksARP, "fenced"},
		{"gratuitous reply", long, false, [][]byte{arpFrame(2, otherMAC, vipIP, vipIP)}, asksARP, "fenced"},
		{"the gratuitous request itself is not answered", long, false, nil, claim, "fenced"},
		{"the gratuitous reply itself passes", long, false, nil, arpFrame(2, otherMAC, vipIP, vipIP), "not_ip"},
		{"version 2", long, false, [][]byte{advertised(func(a *advert) { a.version = 2 })}, asksARP, "fenced"},
		{"an ARP probe", long, false, [][]byte{claim}, arpFrame(1, otherMAC, netip.IPv4Unspecified(), vipIP), "fenced"},
		{"a reply for the VIP passes", long, false, [][]byte{claim}, arpFrame(2, otherMAC, vipIP, thisNode), "not_ip"},
		{"the VIPs are not on this node", long, true, [][]byte{claim}, asksARP, "not_ip"},
		{"for another address", long, false, [][]byte{claim}, arpFrame(1, clientMAC, clientIP, thisNode), "not_ip"},
		{"a goodbye", long, false, [][]byte{advertised(func(a *advert) { a.priority = 0 })}, asksARP, "not_ip"},
		{"this node's own advertisement", long, false, [][]byte{advertised(func(a *advert) { a.from = thisNode })}, asksARP, "not_ip"},
		{"a routed advertisement", long, false, [][]byte{advertised(func(a *advert) { a.hops = 254 })}, asksARP, "not_ip"},
		{"another virtual router", long, false, [][]byte{advertised(func(a *advert) { a.vrid = 52 })}, asksARP, "not_ip"},
		{"the same number for other addresses", long, false, [][]byte{advertised(func(a *advert) { a.vips = []netip.Addr{clientIP} })}, asksARP, "not_ip"},
		{"no addresses", long, false, [][]byte{advertised(func(a *advert) { a.vips = nil })}, asksARP, "not_ip"},
		{"another version", long, false, [][]byte{advertised(func(a *advert) { a.version = 4 })}, asksARP, "not_ip"},
		{"a fragment", long, false, [][]byte{advertised(func(a *advert) { a.fragment = true })}, asksARP, "not_ip"},
		{"this node's own gratuitous ARP", long, false, [][]byte{arpFrame(1, nicMAC, vipIP, vipIP)}, asksARP, "not_ip"},
		{"a backend that asks from the VIP", long, false, [][]byte{arpFrame(1, otherMAC, vipIP, clientIP)}, asksARP, "not_ip"},
		{"an advertisement on a VLAN", long, false, [][]byte{advertised(func(a *advert) { a.tags = []uint16{7} })}, asksARP, "not_ip"},
		{"asked on a VLAN", long, false, [][]byte{claim}, arpFrame(1, clientMAC, clientIP, vipIP, 7), "not_ip"},
		{"a priority tag is none", long, false, [][]byte{claim}, arpFrame(1, clientMAC, clientIP, vipIP, 0xe000), "fenced"},

		{"IPv6, nobody else", long, false, nil, asksND, "not_vip"},
		{"IPv6, another node's advertisement, the daemon is at work", short, false, [][]byte{advertised6(nil)}, asksND, "not_vip"},
		{"IPv6, another node's advertisement", long, false, [][]byte{advertised6(nil)}, asksND, "fenced"},
		{"IPv6, unsolicited advertisement", long, false, [][]byte{claim6}, asksND, "fenced"},
		{"IPv6, a solicited advertisement says nothing", long, false, [][]byte{neighbourFrame(136, 0x60, 255, otherMAC, otherNode6, thisNode6, fencedVIP6)}, asksND, "not_vip"},
		{"IPv6, a routed one says nothing", long, false, [][]byte{neighbourFrame(136, 0x20, 254, otherMAC, otherNode6, thisNode6, fencedVIP6)}, asksND, "not_vip"},
		{"IPv6, this node's own", long, false, [][]byte{neighbourFrame(136, 0x20, 255, nicMAC, thisNode6, thisNode6, fencedVIP6)}, asksND, "not_vip"},
		{"IPv6, version 2 does not exist", long, false, [][]byte{advertised6(func(a *advert) { a.version = 2 })}, asksND, "not_vip"},
		{"IPv6, a goodbye", long, false, [][]byte{advertised6(func(a *advert) { a.priority = 0 })}, asksND, "not_vip"},
		{"IPv6, asked for another address", long, false, [][]byte{claim6}, neighbourFrame(135, 0, 255, clientMAC, otherNode6, thisNode6, thisNode6), "not_vip"},
		{"IPv6, asked from afar", long, false, [][]byte{claim6}, neighbourFrame(135, 0, 64, clientMAC, otherNode6, thisNode6, fencedVIP6), "not_vip"},
		{"IPv6, duplicate address detection", long, false, [][]byte{claim6}, neighbourFrame(135, 0, 255, clientMAC, netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1:ff00:100"), fencedVIP6), "fenced"},
		{"IPv4's owner is not IPv6's", long, false, [][]byte{claim}, asksND, "not_vip"},
	}
	r := newFenceRig(t)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			for _, f := range []*Fence{r.v4, r.v6} {
				f.Drop()
				store(&f.at().Heard, 0)
				store(&f.at().Claimed, 0)
				f.Hold()
				if tc.unheld {
					f.Drop()
				}
				dead(f, tc.silence)
			}
			for _, frame := range tc.before {
				sendEarnest(t, r.Datapath, frame)
			}
			if got := try(t, r.Datapath, tc.ask); got.Outcome != tc.want {
				t.Errorf("outcome %s, want %s", got.Outcome, tc.want)
			}
			// Whatever was asked, a daemon that is at work again answers.
			r.v4.Beat()
			r.v6.Beat()
			if verdict, _ := sendEarnest(t, r.Datapath, tc.ask); verdict != xdpPass {
				t.Errorf("verdict %d after a beat", verdict)
			}
		})
	}
}

// A neighbour solicitation to a VIP that has a service comes as a packet to it does.
func TestFenceOfUnicastSolicitation(t *testing.T) {
	r := newFenceRig(t)
	apply(t, r.Datapath, lb.ServiceState{Service: lb.Service{
		Name: "web6", Addresses: []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(fencedVIP6, 80))}, Protocol: lb.TCP, Forward: lb.DSR, TableSize: lb.DefaultTableSize,
	}})
	ask := neighbourFrame(135, 0, 255, clientMAC, otherNode6, fencedVIP6, fencedVIP6)
	copy(ask, nicMAC[:])
	r.v6.Hold()
	dead(r.v6, 2*fencePatience)
	if got := try(t, r.Datapath, ask); got.Outcome != "protocol" {
		t.Errorf("outcome %s, want protocol: nobody else has the VIP", got.Outcome)
	}
	try(t, r.Datapath, advertised6(nil))
	if got := try(t, r.Datapath, ask); got.Outcome != "fenced" {
		t.Errorf("outcome %s, want fenced", got.Outcome)
	}
	// What is balanced goes on.
	if got := try(t, r.Datapath, asksARP); got.Outcome != "not_ip" {
		t.Errorf("outcome %s of IPv4, want not_ip", got.Outcome)
	}
}

// Cut anywhere, a frame neither fences nor is more than passed on.
func TestFenceCutFrames(t *testing.T) {
	r := newFenceRig(t)
	for _, whole := range [][]byte{
		advertised(nil), advertised6(nil), arpFrame(1, otherMAC, vipIP, vipIP),
		neighbourFrame(136, 0x20, 255, otherMAC, otherNode6, thisNode6, fencedVIP6),
	} {
		// The last option of a neighbour advertisement may be left out.
		need := len(whole)
		if whole[12] == 0x86 && whole[20] == 58 {
			need -= 8
		}
		for n := 14; n < need; n++ {
			r.v4.Hold()
			r.v6.Hold()
			dead(r.v4, 2*fencePatience)
			dead(r.v6, 2*fencePatience)
			sendEarnest(t, r.Datapath, bytes.Clone(whole[:n]))
			for _, ask := range [][]byte{asksARP, asksND} {
				if verdict, _ := sendEarnest(t, r.Datapath, ask); verdict != xdpPass {
					t.Fatalf("%d of %d bytes fence: %x", n, len(whole), whole)
				}
			}
		}
	}
}

// The way of a VIP on a VLAN, and what the next daemon finds.
func TestFencePlaces(t *testing.T) {
	r := newFenceRig(t)
	r.v4.Hold()
	dead(r.v4, 2*fencePatience)
	tagged := lbFenceKey{Address: mapped(vipIP), Interface: nicIndex, Vlan: [2]uint16{bigEndian16(7)}}
	if err := r.fences.setAddresses(r.v4.number, map[lbFenceKey]bool{tagged: true}); err != nil {
		t.Fatal(err)
	}
	try(t, r.Datapath, advertised(func(a *advert) { a.tags = []uint16{0xe000 | 7} }))
	for _, tc := range []struct {
		name string
		ask  []byte
		want string
	}{
		{"on its VLAN", arpFrame(1, clientMAC, clientIP, vipIP, 7), "fenced"},
		{"with a priority", arpFrame(1, clientMAC, clientIP, vipIP, 0x6007), "fenced"},
		{"untagged", asksARP, "not_ip"},
		{"on another VLAN", arpFrame(1, clientMAC, clientIP, vipIP, 8), "not_ip"},
		{"on a VLAN in it", arpFrame(1, clientMAC, clientIP, vipIP, 7, 8), "not_ip"},
	} {
		if got := try(t, r.Datapath, tc.ask); got.Outcome != tc.want {
			t.Errorf("%s: outcome %s, want %s", tc.name, got.Outcome, tc.want)
		}
	}

	// The next daemon finds what was seen, and adopts it.
	fences, err := r.OpenFences([]FenceName{{"lo", 51, false}})
	if err != nil {
		t.Fatal(err)
	}
	next := fences.Fence(51, []netip.Addr{vipIP})
	r.place(t, next, thisNode)
	next.Adopt()
	if next.number != r.v4.number || !next.Overtaken() {
		t.Errorf("the next daemon has entry %d of %d, overtaken %v", next.number, r.v4.number, next.Overtaken())
	}
	if got := try(t, r.Datapath, asksARP); got.Outcome != "fenced" {
		t.Errorf("outcome %s after another daemon has begun, want fenced", got.Outcome)
	}
	next.Beat()
	if next.Overtaken() {
		t.Error("overtaken after a beat")
	}
	// The instance of IPv6 is not configured any more.
	have, err := fences.addresses()
	if err != nil {
		t.Fatal(err)
	}
	want := map[lbFenceKey]uint32{{Address: mapped(vipIP), Interface: nicIndex}: next.number}
	if diff := cmp.Diff(want, have, cmp.AllowUnexported(lbFenceKey{})); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	// Nothing is looked for where the VIPs are on an interface without the program.
	err = next.Place(FencePlace{Interface: 1 << 20, Source: thisNode})
	if err == nil || r.tables.arrays.Fences != 0 {
		t.Errorf("a place without the program: %v, the program looks: %v", err, r.tables.arrays.Fences != 0)
	}
}

// By which NIC, and with which tags, frames of an interface come in.
func TestFenceWay(t *testing.T) {
	r := newFenceRig(t)
	vlan := func(name string, parent, id int) netlink.Link {
		return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: parent}, VlanId: id}
	}
	links := map[int]netlink.Link{
		2: &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}},
		3: vlan("lo.7", nicIndex, 7), 4: vlan("lo.7.8", 3, 8), 5: vlan("lo.7.8.9", 4, 9), 6: vlan("eth1.7", 2, 7),
	}
	key := func(tags ...uint16) lbFenceKey {
		k := lbFenceKey{Interface: nicIndex}
		for i, tag := range tags {
			k.Vlan[i] = bigEndian16(tag)
		}
		return k
	}
	for _, tc := range []struct {
		name  string
		index int
		want  lbFenceKey
		err   string
	}{
		{"the NIC itself", nicIndex, key(), ""},
		{"a VLAN", 3, key(7), ""},
		{"a VLAN in a VLAN", 4, key(7, 8), ""},
		{"three tags", 5, key(), "the XDP program is not on lo.7: name it in datapath.interfaces"},
		{"another NIC", 2, key(), "the XDP program is not on eth1: name it in datapath.interfaces"},
		{"a VLAN of it", 6, key(), "the XDP program is not on eth1: name it in datapath.interfaces"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := r.fences.way(tc.index, func(i int) (netlink.Link, error) { return links[i], nil })
			if err != nil || tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
