package loader

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

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
	if err := f.Place(FencePlace{Interface: nicIndex, MAC: nicMAC, Source: source, Patience: time.Hour}); err != nil {
		t.Fatal(err)
	}
}

// dead makes a fence one whose daemon has beaten at boot, and is out of patience or not.
func dead(f *Fence, out bool) {
	f.at().Beat, f.at().Patience = 1, 1
	if !out {
		f.at().Patience = math.MaxInt64
	}
}

var (
	claims  = arpFrame(1, otherMAC, vipIP, vipIP)
	claims6 = neighbourFrame(136, 0x20, 255, otherMAC, otherNode6, netip.MustParseAddr("ff02::1"), fencedVIP6)
)

// What a frame tells of other owners.
func TestFenceHears(t *testing.T) {
	r := newFenceRig(t)
	for _, tc := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"an advertisement", advertised(nil), "heard"},
		{"version 2", advertised(func(a *advert) { a.version = 2 }), "heard"},
		{"of several VIPs", advertised(func(a *advert) { a.vips = []netip.Addr{vipIP, clientIP} }), "heard"},
		{"a goodbye", advertised(func(a *advert) { a.priority = 0 }), ""},
		{"this node's own advertisement", advertised(func(a *advert) { a.from = thisNode }), ""},
		{"a routed advertisement", advertised(func(a *advert) { a.hops = 254 }), ""},
		{"another virtual router", advertised(func(a *advert) { a.vrid = 52 }), ""},
		{"the same number for other addresses", advertised(func(a *advert) { a.vips = []netip.Addr{clientIP} }), ""},
		{"no addresses", advertised(func(a *advert) { a.vips = nil }), ""},
		{"another version", advertised(func(a *advert) { a.version = 4 }), ""},
		{"a fragment", advertised(func(a *advert) { a.fragment = true }), ""},
		{"an advertisement on a VLAN", advertised(func(a *advert) { a.tags = []uint16{7} }), ""},
		{"gratuitous request", claims, "claimed"},
		{"gratuitous reply", arpFrame(2, otherMAC, vipIP, vipIP), "claimed"},
		{"gratuitous, with a priority", arpFrame(1, otherMAC, vipIP, vipIP, 0xe000), "claimed"},
		{"this node's own gratuitous ARP", arpFrame(1, nicMAC, vipIP, vipIP), ""},
		{"a backend that asks from the VIP", arpFrame(1, otherMAC, vipIP, clientIP), ""},
		{"an ARP probe", arpFrame(1, otherMAC, netip.IPv4Unspecified(), vipIP), ""},

		{"IPv6, an advertisement", advertised6(nil), "heard"},
		{"IPv6, version 2 does not exist", advertised6(func(a *advert) { a.version = 2 }), ""},
		{"IPv6, a goodbye", advertised6(func(a *advert) { a.priority = 0 }), ""},
		{"IPv6, this node's own advertisement", advertised6(func(a *advert) { a.from = thisNode6 }), ""},
		{"IPv6, unsolicited", claims6, "claimed"},
		{"IPv6, solicited", neighbourFrame(136, 0x60, 255, otherMAC, otherNode6, thisNode6, fencedVIP6), ""},
		{"IPv6, routed", neighbourFrame(136, 0x20, 254, otherMAC, otherNode6, thisNode6, fencedVIP6), ""},
		{"IPv6, this node's own", neighbourFrame(136, 0x20, 255, nicMAC, thisNode6, thisNode6, fencedVIP6), ""},
		{"IPv6, for another address", neighbourFrame(136, 0x20, 255, otherMAC, otherNode6, thisNode6, thisNode6), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, other := r.v4, r.v6
			if strings.HasPrefix(tc.name, "IPv6") {
				f, other = other, f
			}
			for _, f := range []*Fence{f, other} {
				f.at().Heard, f.at().Claimed, f.at().Other = 0, 0, [6]byte{}
			}
			if verdict, _ := sendEarnest(t, r.Datapath, tc.frame); verdict != xdpPass {
				t.Errorf("verdict %d", verdict)
			}
			got, who := "", [6]byte{}
			if f.at().Heard != 0 {
				got += "heard"
			}
			if f.at().Claimed != 0 {
				got += "claimed"
			}
			if tc.want != "" {
				who = otherMAC
			}
			if got != tc.want || f.at().Other != who {
				t.Errorf("%q, from %x; want %q, from %x", got, f.at().Other, tc.want, who)
			}
			if o := other.at(); o.Heard != 0 || o.Claimed != 0 {
				t.Errorf("of the other family: %+v", *o)
			}
		})
	}
}

// Who gets no answer, and when.
func TestFence(t *testing.T) {
	r := newFenceRig(t)
	for _, tc := range []struct {
		name   string
		dead   bool   // no beat for too long
		other  string // what was heard since the last one
		unheld bool
		ask    []byte
		fenced bool
	}{
		{"nobody else, the daemon is dead", true, "", false, asksARP, false},
		{"another node, the daemon is at work", false, "heard claimed", false, asksARP, false},
		{"another node advertises, the daemon is dead", true, "heard", false, asksARP, true},
		{"another node announces, the daemon is dead", true, "claimed", false, asksARP, true},
		{"the first announcement is answered by nobody", true, "", false, claims, true},
		{"a gratuitous reply is no question", true, "", false, arpFrame(2, otherMAC, vipIP, vipIP), false},
		{"an ARP probe", true, "claimed", false, arpFrame(1, otherMAC, netip.IPv4Unspecified(), vipIP), true},
		{"a reply passes", true, "claimed", false, arpFrame(2, otherMAC, vipIP, thisNode), false},
		{"the VIPs are not on this node", true, "claimed", true, asksARP, false},
		{"another address", true, "claimed", false, arpFrame(1, clientMAC, clientIP, thisNode), false},
		{"asked on a VLAN", true, "claimed", false, arpFrame(1, clientMAC, clientIP, vipIP, 7), false},
		{"a priority tag is none", true, "claimed", false, arpFrame(1, clientMAC, clientIP, vipIP, 0xe000), true},

		{"IPv6, nobody else", true, "", false, asksND, false},
		{"IPv6, the daemon is at work", false, "heard", false, asksND, false},
		{"IPv6, another node advertises", true, "heard", false, asksND, true},
		{"IPv6, another node announces", true, "claimed", false, asksND, true},
		{"IPv6, another address", true, "claimed", false, neighbourFrame(135, 0, 255, clientMAC, otherNode6, thisNode6, thisNode6), false},
		{"IPv6, asked from afar", true, "claimed", false, neighbourFrame(135, 0, 64, clientMAC, otherNode6, thisNode6, fencedVIP6), false},
		{"IPv6, duplicate address detection", true, "claimed", false, neighbourFrame(135, 0, 255, clientMAC, netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1:ff00:100"), fencedVIP6), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, f := range []*Fence{r.v4, r.v6} {
				f.Hold()
				f.Present()
				if tc.unheld {
					f.Drop()
				}
				dead(f, tc.dead)
				f.at().Heard, f.at().Claimed = 0, 0
				if strings.Contains(tc.other, "heard") {
					f.at().Heard = f.at().Beat + 1
				}
				if strings.Contains(tc.other, "claimed") {
					f.at().Claimed = f.at().Beat + 1
				}
			}
			want := uint32(xdpPass)
			if tc.fenced {
				want = xdpDrop
			}
			if verdict, _ := sendEarnest(t, r.Datapath, tc.ask); verdict != want {
				t.Errorf("verdict %d, want %d", verdict, want)
			}
		})
	}
	// Outcomes are counted, and a dry run foresees them.
	dead(r.v4, true)
	dead(r.v6, true)
	r.v4.at().Claimed, r.v6.at().Claimed = 0, 2
	for _, ask := range [][]byte{claims, asksND} {
		if got := try(t, r.Datapath, ask); got.Outcome != "fenced" {
			t.Errorf("outcome %s, want fenced", got.Outcome)
		}
	}
	// A daemon that is at work again is answered for.
	r.place(t, r.v4, thisNode)
	r.v4.Beat()
	if got := try(t, r.Datapath, asksARP); got.Outcome != "not_ip" {
		t.Errorf("outcome %s after a beat", got.Outcome)
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
	r.v6.Present()
	dead(r.v6, true)
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

// A frame that is cut anywhere tells nothing.
func TestFenceCutFrames(t *testing.T) {
	r := newFenceRig(t)
	for _, whole := range [][]byte{advertised(nil), advertised6(nil), claims, claims6} {
		// The last option of a neighbour advertisement may be left out.
		need := len(whole)
		if whole[12] == 0x86 && whole[20] == 58 {
			need -= 8
		}
		for n := need - 1; n >= 14; n -= 3 {
			sendEarnest(t, r.Datapath, whole[:n:n])
			for _, f := range []*Fence{r.v4, r.v6} {
				if f.at().Heard != 0 || f.at().Claimed != 0 {
					t.Fatalf("%d of %d bytes are taken for more: %x", n, len(whole), whole)
				}
			}
		}
	}
}

// The way of a VIP on a VLAN, and what the next daemon finds.
func TestFencePlaces(t *testing.T) {
	r := newFenceRig(t)
	r.v4.Hold()
	dead(r.v4, true)
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
	next.at().Patience = 1 // out of it, however short the machine is up
	if next.number != r.v4.number || !next.Overtaken() {
		t.Errorf("the next daemon has entry %d of %d, overtaken %v", next.number, r.v4.number, next.Overtaken())
	}
	if got := try(t, r.Datapath, asksARP); got.Outcome != "fenced" {
		t.Errorf("outcome %s after another daemon has begun, want fenced", got.Outcome)
	}
	r.place(t, next, thisNode)
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
	// VIPs that were held before their interface had the program are held with it.
	late := fences.Fence(52, []netip.Addr{clientIP})
	late.Hold()
	r.place(t, late, thisNode)
	if at := late.at(); at.Held == 0 || at.Beat == 0 {
		t.Errorf("an entry that came late is %+v", *at)
	}
	late.Drop()
	if err := late.Place(FencePlace{Interface: 1 << 20, Source: thisNode}); err == nil {
		t.Error("a place without the program is taken")
	}
	// Nothing is looked for where the VIPs are on an interface without the program.
	err = next.Place(FencePlace{Interface: 1 << 20, Source: thisNode})
	if err == nil || r.tables.arrays.Fences != 0 {
		t.Errorf("a place without the program: %v, the program looks: %v", err, r.tables.arrays.Fences != 0)
	}
}

// The next daemon knows for how long nobody was at work, unless somebody else has been
// seen meanwhile.
func TestFenceTellsWhatAnEarlierRunHasLeft(t *testing.T) {
	next := func(t *testing.T, r *fenceRig) *Fence {
		fences, err := r.OpenFences([]FenceName{{"lo", 51, false}})
		if err != nil {
			t.Fatal(err)
		}
		f := fences.Fence(51, []netip.Addr{vipIP})
		if _, ok := f.Left(); ok {
			t.Error("it knows before it has a place")
		}
		r.place(t, f, thisNode)
		return f
	}
	for _, tc := range []struct {
		name string
		do   func(r *fenceRig)
		want bool
	}{
		{"it was at work", func(r *fenceRig) { r.v4.Hold() }, true},
		{"it has let go of the VIPs", func(r *fenceRig) { r.v4.Hold(); r.v4.Drop() }, false},
		{"it never had them", func(*fenceRig) {}, false},
		{"another node has advertised them since", func(r *fenceRig) {
			r.v4.Hold()
			try(t, r.Datapath, advertised(func(*advert) {}))
		}, false},
		{"another node has announced them since", func(r *fenceRig) {
			r.v4.Hold()
			try(t, r.Datapath, arpFrame(1, clientMAC, vipIP, vipIP))
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newFenceRig(t)
			began := time.Now()
			tc.do(r)
			age, ok := next(t, r).Left()
			if ok != tc.want || ok && (age < 0 || age > time.Since(began)) {
				t.Errorf("it was at work %v ago, known %v, want %v; the test began %v ago", age, ok, tc.want, time.Since(began))
			}
		})
	}
}

// An instance that is configured no more leaves nothing: neither an entry that counts
// as a dead daemon's, nor VIPs that are looked for.
func TestFenceIsFreed(t *testing.T) {
	r := newFenceRig(t)
	r.v4.Hold()
	r.v6.Hold()
	old, other := r.v4.number, r.v6.number
	for range 2 { // again changes nothing
		if err := r.v4.Free(); err != nil {
			t.Fatal(err)
		}
	}
	if at := *r.tables.fence(old); at != (lbFence{}) {
		t.Errorf("the entry is %+v", at)
	}
	if r.v6.number != other || r.v6.at().Held == 0 || r.tables.arrays.Fences == 0 {
		t.Errorf("the other instance has entry %d: %+v", r.v6.number, *r.v6.at())
	}
	for _, f := range []func(){func() { r.v4.Hold() }, r.v4.Present, r.v4.Adopt, r.v4.Beat, r.v4.Drop} { // and so does what comes late
		f()
	}
	if r.v4.Overtaken() || r.tables.fence(old).Used != 0 {
		t.Error("it goes on")
	}
	// The VIP is another instance's now, before the old one is freed.
	next, after := r.fences.Fence(52, r.v6.vips), r.fences.Fence(53, []netip.Addr{vipIP})
	r.place(t, next, thisNode6)
	r.place(t, after, thisNode)
	if next.number != old {
		t.Errorf("entry %d is not used again, but %d", old, next.number)
	}
	if err := r.v6.Free(); err != nil {
		t.Fatal(err)
	}
	have, err := r.fences.addresses()
	if err != nil {
		t.Fatal(err)
	}
	want := map[lbFenceKey]uint32{
		{Address: mapped(vipIP), Interface: nicIndex}: after.number, {Address: mapped(fencedVIP6), Interface: nicIndex}: next.number,
	}
	if diff := cmp.Diff(want, have, cmp.AllowUnexported(lbFenceKey{})); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if err := errors.Join(next.Free(), after.Free()); err != nil || r.tables.arrays.Fences != 0 {
		t.Errorf("when all are freed: %v, the program looks: %v", err, r.tables.arrays.Fences != 0)
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
