package loader

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	xdplink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Where no reply can go, it does not go from the backend's own address.
func TestDNATWithoutAWay(t *testing.T) {
	for _, c := range natCases[:3] { // one of IPv6 will do
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				forwarded := try(t, r.Datapath, c.fromClient().Bytes()).Frame
				far := netip.MustParseAddr("203.0.113.7")
				bits := 32
				if c.v6 {
					far, bits = netip.MustParseAddr("2001:db8:f::7"), 128
				}
				to := func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(far, 4000) }
				step := func(name, want string, changes ...change) {
					t.Helper()
					if got := try(t, r.Datapath, reply(forwarded, changes...).Bytes()); got.Outcome != want {
						t.Errorf("%s: %s, want %s", name, got.Outcome, want)
					}
				}
				step("a client that no route leads to", "not_vip", to)
				for _, kind := range []int{unix.RTN_PROHIBIT, unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE} {
					route := netlink.Route{Dst: ipNet(netip.PrefixFrom(far, bits)), Type: kind}
					r.route(route)
					step("a route that rejects", "no_route", to)
					if err := r.host.Netlink().RouteDel(&route); err != nil {
						t.Fatal(err)
					}
				}
				store(r.tables.way(r.eth0), lbWay{})
				step("a way where sluice is not", "no_next_hop")
				setting := "net/ipv4/ip_forward"
				if c.v6 {
					setting = "net/ipv6/conf/all/forwarding"
				}
				if err := r.host.Sysctl(setting, "0"); err != nil {
					t.Fatal(err)
				}
				step("a node that does not forward", "not_forwarding")
			}, c.dnat(8080))
		})
	}
}

// A client that the kernel knows no neighbour for gets its replies by the one
// that its packets come from: at once where its SYN has been seen, else after
// the first reply.
func TestDNATLearnsLastHops(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				client := c.fromClient().Src.Addr().Next()
				from := func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(client, 4000) }
				data := func(f *testenv.Frame) { f.Flags = testenv.ACK }
				forwarded := func(changes ...change) testenv.Frame {
					t.Helper()
					return try(t, r.Datapath, c.fromClient(append([]change{from}, changes...)...).Bytes()).Frame
				}
				try4 := func(name, want string, f testenv.Frame, mac [6]byte, tags ...uint16) {
					t.Helper()
					got := try(t, r.Datapath, reply(f).Bytes())
					if got.Outcome != want {
						t.Fatalf("%s: %s, want %s", name, got.Outcome, want)
					}
					if want != "sent" {
						return
					}
					if diff := cmp.Diff([]any{hardware(mac).String(), tags}, []any{got.Frame.DstMAC.String(), got.Frame.VLANs}); diff != "" {
						t.Errorf("%s: MAC address and tags (-want +got):\n%s", name, diff)
					}
				}
				if err := put(r.objects.WayMissed, 0, ticks()-1000); err != nil { // not since the test began
					t.Fatal(err)
				}
				f := forwarded(data)
				try4("before anything was learnt", "no_next_hop", f, [6]byte{})
				f = forwarded(data)
				try4("after the next packet", "sent", f, clientMAC)
				moved := [6]byte{2, 0, 0, 0, 0, 0xc2}
				f = forwarded(data, vlans(5), func(f *testenv.Frame) { f.SrcMAC = hardware(moved) })
				try4("after it came another way", "sent", f, moved, 5)

				if c.protocol == lb.UDP {
					return
				}
				client = client.Next()
				if err := put(r.objects.WayMissed, 0, ticks()-1000); err != nil {
					t.Fatal(err)
				}
				f = forwarded()
				try4("after a SYN", "sent", f, clientMAC)
				// What is old is used, and learnt anew.
				key := lbAddress{Word: mapped(client)}
				var last lbLastHop
				if err := r.objects.LastHops.Lookup(&key, &last); err != nil {
					t.Fatal(err)
				}
				last.Seen -= uint32(time.Minute / tick)
				if err := r.objects.LastHops.Put(&key, &last); err != nil {
					t.Fatal(err)
				}
				f = forwarded(data, func(f *testenv.Frame) { f.SrcMAC = hardware(moved) })
				try4("by an old entry", "sent", f, clientMAC)
				f = forwarded(data, func(f *testenv.Frame) { f.SrcMAC = hardware(moved) })
				try4("learnt anew", "sent", f, moved)
				// A neighbour that the kernel knows is preferred.
				r.neighbour("eth0", client, clientMAC)
				try4("by a neighbour", "sent", f, clientMAC)
				if n := rest[lbReply](t, r.objects.Replies); n != 1 {
					t.Errorf("%d entries for replies", n)
				}
			}, c.dnat(8080))
		})
	}
}

// The kernel is asked to look for a neighbour that a reply has missed: a client, or
// the router before it.
func TestDNATFindsNeighbours(t *testing.T) {
	for _, c := range natCases[:3] {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				near := c.fromClient().Src.Addr().Next()
				router, far, bits := near.Next(), netip.MustParseAddr("203.0.113.7"), 32
				if c.v6 {
					far, bits = netip.MustParseAddr("2001:db8:f::7"), 128
				}
				r.route(netlink.Route{Dst: ipNet(netip.PrefixFrom(far, bits)), Gw: router.AsSlice()})
				there := try(t, r.Datapath, c.fromClient().Bytes()).Frame
				for _, client := range []netip.Addr{near, far} {
					to := func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(client, 4000) }
					if got := try(t, r.Datapath, reply(there, to).Bytes()); got.Outcome != "no_next_hop" {
						t.Errorf("a reply to %v: %s", client, got.Outcome)
					}
				}
				if err := r.Maintain(); err != nil {
					t.Fatal(err)
				}
				known, err := r.host.Netlink().NeighList(r.eth0, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, want := range []netip.Addr{near, router} {
					if !slices.ContainsFunc(known, func(n netlink.Neigh) bool { a, _ := netip.AddrFromSlice(n.IP); return a.Unmap() == want }) {
						t.Errorf("the kernel does not look for %v", want)
					}
				}
				var k lbMissedNeighbour
				var since uint32
				if r.objects.MissedNeighbours.Iterate().Next(&k, &since) {
					t.Errorf("%v is asked for still", unmapped(k.Address))
				}
			}, c.dnat(8080))
		})
	}
}

// A route by a VLAN interface leads out of the NIC below, with the tag.
func TestDNATByVLAN(t *testing.T) {
	c := natCases[0]
	onDNATNode(t, func(r *dnatRig) {
		// For the kernel a VLAN interface is one more; here it is one without tags.
		vlan := r.link("eth1").Attrs().Index
		if err := r.host.AddAddress("eth1", netip.MustParsePrefix("203.0.113.1/24")); err != nil {
			t.Fatal(err)
		}
		client := netip.MustParseAddrPort("203.0.113.7:4000")
		r.neighbour("eth1", client.Addr(), clientMAC)
		store(r.tables.way(vlan), lbWay{Index: uint32(vlan), Nic: uint32(r.eth0), Vlan: [2]uint16{bigEndian16(300)}, Vlans: 1})
		f := try(t, r.Datapath, c.fromClient(func(f *testenv.Frame) { f.Src = client }).Bytes()).Frame
		got := try(t, r.Datapath, reply(f).Bytes())
		if got.Outcome != "sent" || got.Verdict != xdpRedirect {
			t.Fatalf("%s, verdict %d", got.Outcome, got.Verdict)
		}
		if diff := cmp.Diff([]uint16{300}, got.Frame.VLANs); diff != "" || got.Frame.DstMAC.String() != hardware(clientMAC).String() {
			t.Errorf("to %v, tags (-want +got):\n%s", got.Frame.DstMAC, diff)
		}
	}, c.dnat(8080))
}

// Replies are the VIP's to the rules of policy routing, too.
func TestDNATFollowsRules(t *testing.T) {
	c := natCases[0]
	onDNATNode(t, func(r *dnatRig) {
		const table = 100
		far := netip.MustParseAddrPort("203.0.113.7:4000")
		r.route(netlink.Route{Dst: ipNet(netip.PrefixFrom(far.Addr(), 32)), Gw: clientIP.AsSlice(), Table: table})
		there := try(t, r.Datapath, c.fromClient(func(f *testenv.Frame) { f.Src = far }).Bytes()).Frame
		if got := try(t, r.Datapath, reply(there).Bytes()); got.Outcome != "not_vip" {
			t.Errorf("before there is a rule: %s", got.Outcome)
		}
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Src = netlink.FAMILY_V4, table, ipNet(netip.PrefixFrom(vipIP, 32))
		if err := r.host.Netlink().RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
		got := try(t, r.Datapath, reply(there).Bytes())
		if got.Outcome != "sent" || got.Frame.DstMAC.String() != hardware(clientMAC).String() {
			t.Errorf("by a rule for the VIP: %s to %v", got.Outcome, got.Frame.DstMAC)
		}
	}, c.dnat(8080))
}

// A reply that is too long for the way to its client is answered as a router does.
func TestDNATTooBig(t *testing.T) {
	for _, c := range natCases[:3] {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				if err := r.host.Netlink().LinkSetMTU(r.link("eth0"), 1300); err != nil {
					t.Fatal(err)
				}
				f := try(t, r.Datapath, c.fromClient().Bytes()).Frame
				long := func(f *testenv.Frame) { f.Payload, f.DontFragment = zeros(1300), true }
				in := reply(f, long)
				verdict, out := send(t, r.Datapath, in.Bytes())
				if verdict != xdpTX {
					t.Fatalf("verdict %d", verdict)
				}
				if err := testenv.VerifyChecksums(out); err != nil {
					t.Error(err)
				}
				got := parse(t, out)
				kind, mtu := byte(3), binary.BigEndian.Uint16(got.Payload[6:])
				if c.v6 {
					kind = 2
				}
				src, dst := quoted(t, got)
				if got.Dst.Addr() != in.Src.Addr() || got.Payload[0] != kind || mtu != 1300 || src != in.Src || dst != in.Dst {
					t.Errorf("type %d, MTU %d to %v about a packet from %v to %v", got.Payload[0], mtu, got.Dst, src, dst)
				}
				if l := losses(t, r.Datapath).TooBig; l != 1 {
					t.Errorf("too_big is %d, want 1", l)
				}
				if !c.v6 {
					got := try(t, r.Datapath, reply(f, long, func(f *testenv.Frame) { f.DontFragment = false }).Bytes())
					if got.Outcome != "too_big" {
						t.Errorf("one that may be fragmented: %s", got.Outcome)
					}
				}
				if got := try(t, r.Datapath, reply(f).Bytes()); got.Outcome != "sent" {
					t.Errorf("a short one: %s", got.Outcome)
				}
			}, c.dnat(8080))
		})
	}
}

// A frame leaves by a NIC that the program is on, or tagged by the one below a VLAN
// interface.
func TestWays(t *testing.T) {
	link := func(name string, index, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, Index: index, ParentIndex: parent}
	}
	vlan := func(name string, index, parent, id int) netlink.Link {
		return &netlink.Vlan{LinkAttrs: link(name, index, parent), VlanId: id}
	}
	all := map[int]netlink.Link{}
	for _, l := range []netlink.Link{
		&netlink.Device{LinkAttrs: link("eth0", 2, 0)}, &netlink.Device{LinkAttrs: link("eth1", 3, 0)},
		vlan("eth0.7", 4, 2, 7), vlan("eth0.7.8", 5, 4, 8), vlan("eth0.7.8.9", 6, 5, 9), vlan("eth1.7", 7, 3, 7),
		vlan("lost", 8, 99, 1), &netlink.Dummy{LinkAttrs: link("dummy0", 9, 0)},
	} {
		all[l.Attrs().Index] = l
	}
	d := &Datapath{links: map[string]xdplink.Link{"eth0": &xdplink.RawLink{}}}
	want := map[int]lbWay{
		2: {Index: 2, Nic: 2},
		4: {Index: 4, Nic: 2, Vlans: 1, Vlan: [2]uint16{bigEndian16(7)}},
		5: {Index: 5, Nic: 2, Vlans: 2, Vlan: [2]uint16{bigEndian16(7), bigEndian16(8)}},
	}
	got := map[int]lbWay{}
	for i, l := range all {
		if w, ok := d.wayBy(l, all); ok {
			got[i] = w
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ways (-want +got):\n%s", diff)
	}
}
