// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable6 is cable with 2001:db8::1/64 and 2001:db8::2/64 as well, and a
// link-local address at either end.
func cable6(t *testing.T) (a, b *namespace) {
	t.Helper()
	a, b = cable(t)
	for i, ns := range []*namespace{a, b} {
		ns.addAddress("eth0", []string{"2001:db8::1/64", "2001:db8::2/64"}[i])
	}
	return a, b
}

// ownLinkLocal is the address that a namespace's interface has given itself.
func (ns *namespace) ownLinkLocal(h *Host) netip.Addr {
	ns.t.Helper()
	return ns.linkBy(h, selfMade).Source
}

func isVRRP6(f []byte) bool {
	return len(f) > 54 && f[12] == 0x86 && f[13] == 0xdd && f[20] == Protocol
}

func TestIPv6TransportOnTheWire(t *testing.T) {
	a, b := cable6(t)
	group := []netip.Addr{groupIPv6}
	ta, tb := a.transport(group), b.transport(group)
	wire := b.capture()
	source := a.ownLinkLocal(a.host())
	adv := Advertisement{Version: V3, VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{addr("2001:db8::100")}}
	msg, err := adv.Append(nil, source, groupIPv6)
	if err != nil {
		t.Fatal(err)
	}
	if err := ta.Send(msg, groupIPv6); err != nil {
		t.Fatal(err)
	}
	frame := nextFrame(t, wire, isVRRP6)
	ip := frame[14:]
	if class := ip[0]<<4 | ip[1]>>4; class != dscpCS6 || ip[7] != 255 {
		t.Errorf("got traffic class %#x and hop limit %d, want %#x and 255", class, ip[7], dscpCS6)
	}
	if diff := cmp.Diff([]byte{0x33, 0x33, 0, 0, 0, 0x12}, frame[:6]); diff != "" {
		t.Errorf("destination MAC (-want +got):\n%s", diff)
	}
	buf := make([]byte, maxPacket)
	p, err := tb.Receive(buf)
	if err != nil {
		t.Fatal(err)
	}
	want := Packet{Source: source, Destination: groupIPv6, TTL: 255, Payload: msg}
	if diff := cmp.Diff(want, p, cmpAddr); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}

	// What a hears first is b, not itself.
	if err := tb.Send(msg, groupIPv6); err != nil {
		t.Fatal(err)
	}
	if p, err := ta.Receive(buf); err != nil || p.Source != b.ownLinkLocal(b.host()) {
		t.Errorf("got a packet from %v, error %v", p.Source, err)
	}

	// A packet whose hop limit says that it was routed.
	b.do(func() error {
		fd := must(unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, Protocol))
		defer unix.Close(fd)
		if err := unix.BindToDevice(fd, "eth0"); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 254); err != nil {
			return err
		}
		return unix.Sendto(fd, msg, 0, &unix.SockaddrInet6{Addr: groupIPv6.As16()})
	})
	if p, err = ta.Receive(buf); err != nil || p.TTL != 254 {
		t.Fatalf("got hop limit %d, error %v", p.TTL, err)
	}
	if n := testing.AllocsPerRun(50, func() {
		if err := ta.Send(msg, groupIPv6); err != nil {
			t.Error(err)
		}
		if _, err := tb.Receive(buf); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
	if err := ta.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ta.Receive(buf); err == nil {
		t.Error("receiving on a closed transport: got no error")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Each peer gets a message, from the address that it knows this node by, and
// what was sent to the group is not heard.
func TestUnicastTransports(t *testing.T) {
	for _, tt := range []struct {
		name          string
		local, remote string
		group         netip.Addr
		frame         func([]byte) bool
		ttl           int // where it stands in a frame
	}{
		{"ipv4", "192.0.2.1", "192.0.2.2", groupIPv4, isVRRP, 22},
		{"ipv6", "2001:db8::1", "2001:db8::2", groupIPv6, isVRRP6, 21},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := cable6(t)
			ta, tb := a.transport([]netip.Addr{addr(tt.remote)}), b.transport([]netip.Addr{addr(tt.local)})
			multicast := a.transport([]netip.Addr{tt.group})
			if tt.group.Is4() {
				multicast = a.transport(nil)
			}
			wire := b.capture()
			if err := multicast.Send(goldenV3, tt.group); err != nil {
				t.Fatal(err)
			}
			nextFrame(t, wire, tt.frame)
			msg := slices.Concat(goldenV3, goldenV3)
			for _, to := range ta.Destinations() {
				if err := ta.Send(msg, to); err != nil {
					t.Fatal(err)
				}
			}
			if f := nextFrame(t, wire, tt.frame); f[tt.ttl] != 255 {
				t.Errorf("sent with ttl %d, want 255", f[tt.ttl])
			}
			buf := make([]byte, maxPacket)
			p, err := tb.Receive(buf)
			if err != nil {
				t.Fatal(err)
			}
			want := Packet{Source: addr(tt.local), Destination: addr(tt.remote), TTL: 255, Payload: msg}
			if diff := cmp.Diff(want, p, cmpAddr); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			if n := testing.AllocsPerRun(20, func() {
				if err := ta.Send(msg, addr(tt.remote)); err != nil {
					t.Error(err)
				}
				if _, err := tb.Receive(buf); err != nil {
					t.Error(err)
				}
			}); n != 0 {
				t.Errorf("got %v allocations, want none", n)
			}
		})
	}
}

func TestReadControlRefuses(t *testing.T) {
	good := make([]byte, unix.CmsgSpace(4))
	var m socketMessage
	n := m.putSource(Link{Index: 3, Source: addr("fe80::1")})
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"no hop limit":        m.control[:n],
		"an empty header":     good,
		"a message cut short": m.control[:n-8],
		"half a header":       m.control[:8],
	} {
		if err := new(Packet).readControl(b); err != ReasonHeader {
			t.Errorf("%s: got error %v, want %v", name, err, ReasonHeader)
		}
	}
}

func TestNeighbourAnnouncerOnTheWire(t *testing.T) {
	a, b := cable6(t)
	host := a.host()
	link := a.linkBy(host, netip.Addr.IsLinkLocalUnicast)
	if link.Router {
		t.Error("an interface that does not forward is a router's")
	}
	a.do(func() (err error) {
		if err := writeSysctl("net/ipv6/conf/eth0/forwarding", "1"); err != nil {
			return err
		}
		link, err = host.Link("eth0", netip.Addr.IsLinkLocalUnicast)
		return err
	})
	wire := b.capture()
	vips := []netip.Addr{addr("2001:db8::100"), addr("2001:db8::101")}
	var announcer Announcer
	a.do(func() (err error) {
		announcer, err = host.Announcer(link, vips)
		return err
	})
	defer announcer.Close()
	if err := announcer.Announce(); err != nil {
		t.Fatal(err)
	}
	want, err := neighbourFrames(link, vips)
	if err != nil || want[0][58]&flagRouter == 0 {
		t.Fatalf("frames %x, error %v: want some of a router", want, err)
	}
	for i, frame := range want {
		got := nextFrame(t, wire, func(f []byte) bool {
			return len(f) == len(frame) && f[12] == 0x86 && f[20] == protocolICMP6 && f[54] == typeNeighbour && f[62] == 0x20
		})
		if diff := cmp.Diff(frame, got); diff != "" {
			t.Errorf("frame %d (-want +got):\n%s", i, diff)
		}
	}
}

// flags6 are the flags and the preferred lifetime of an IPv6 address.
func (ns *namespace) flags6(a netip.Addr) (flags, preferred int) {
	ns.t.Helper()
	flags = -1
	ns.do(func() error {
		all, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		for _, other := range all {
			if p, ok := toPrefix(other.IPNet); ok && p.Addr() == a {
				flags, preferred = other.Flags, other.PreferedLft
			}
		}
		return err
	})
	return flags, preferred
}

func TestIPv6AddressesOnTheHost(t *testing.T) {
	a, _ := cable6(t)
	host, dir := a.host(), t.TempDir()
	s, err := OpenAddresses(host, dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	vips := prefixes("fe80::100/64", "2001:db8::100/64", "2001:db8:1::1/128")
	if err := s.Add("eth0", vips, false); err != nil {
		t.Fatal(err)
	}
	for _, vip := range vips {
		flags, preferred := a.flags6(vip.Addr())
		if flags < 0 || flags&unix.IFA_F_TENTATIVE != 0 || flags&unix.IFA_F_NODAD == 0 || preferred != 0 {
			t.Errorf("%v has flags %#x and is preferred for %d s: want nodad, and 0 s", vip, flags, preferred)
		}
	}
	// A connection of the node's own does not come from a VIP.
	a.do(func() error {
		routes, err := netlink.RouteGet(addr("2001:db8::2").AsSlice())
		if err == nil && (len(routes) == 0 || !routes[0].Src.Equal(addr("2001:db8::1").AsSlice())) {
			t.Errorf("routes %v, want the node's own address as source", routes)
		}
		return err
	})
	if s, err = OpenAddresses(host, dir, discard); err != nil {
		t.Fatal(err)
	}
	report, err := s.Check("eth0", append(vips, prefixes("2001:db8::1/64")...), false)
	if err != nil {
		t.Fatal(err)
	}
	want := AddressReport{Present: vips, Conflicts: []*ConflictError{{addr("2001:db8::1"), "eth0"}}}
	if diff := cmp.Diff(want, report, cmpAddr); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if err := s.Remove("eth0", vips); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(prefixes("192.0.2.1/24", "2001:db8::1/64"), sorted(a.addresses("eth0")), cmpAddr); diff != "" {
		t.Errorf("addresses left (-want +got):\n%s", diff)
	}
}

// One link-local VIP may be on several interfaces, each another one.
func TestLinkLocalVIPOnTwoInterfaces(t *testing.T) {
	table := &fakeTable{addrs: []hostAddress{{owned: owned{"eth1", prefixes("fe80::1/64")[0]}}}}
	s, err := openAddresses(table, t.TempDir(), "boot", discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add("eth0", prefixes("fe80::1/64"), false); err != nil {
		t.Error(err)
	}
	report, err := s.Check("eth1", prefixes("fe80::1/64"), false)
	if err != nil || len(report.Conflicts) != 1 {
		t.Errorf("got %+v, error %v; want a conflict on eth1", report, err)
	}
}

// fast6 is fast for IPv6.
func fast6(p uint8) Config {
	c := fast(p)
	c.Addresses = prefixes("fe80::100/64", "2001:db8::100/64")
	return c
}

func TestIPv6RoutersOnTheHost(t *testing.T) {
	const vip = "2001:db8::100/64"
	a, b := cable6(t)
	ra, stopA := a.start(fast6(100), t.TempDir())
	b.start(fast6(99), t.TempDir())
	onA := func() bool { return a.has(vip) && a.has("fe80::100/64") && !b.has(vip) }
	onB := func() bool { return b.has(vip) && !a.has(vip) }
	eventually(t, "the vip is on a", onA)
	always(t, "the vip is on a", 300*time.Millisecond, onA)
	if source := ra.Status().Source; !selfMade(source) {
		t.Errorf("got source %v, want the interface's own link-local address", source)
	}
	a.deleteAddress("eth0", vip)
	eventually(t, "the vip is put back", onA)
	stopA()
	eventually(t, "the vip is on b", onB)
}

func TestIPv6RouterWithoutALinkLocalAddress(t *testing.T) {
	a, _ := cable6(t)
	a.do(func() error { return writeSysctl("net/ipv6/conf/eth0/addr_gen_mode", "1") })
	host := a.host()
	own := a.ownLinkLocal(host)
	a.deleteAddress("eth0", own.String()+"/64")
	r, _ := a.start(fast6(100), t.TempDir())
	eventually(t, "the instance is in fault", func() bool {
		s := r.Status()
		return s.State == Fault && strings.Contains(s.Reason, "interface eth0 has no link-local address that is not a VIP")
	})
	a.addAddress("eth0", own.String()+"/64")
	eventually(t, "the instance runs", func() bool { return r.Status().State == Active && r.Status().Source == own })
}

func TestUnicastRoutersOnTheHost(t *testing.T) {
	const vip = "192.0.2.100/24"
	a, b := cable(t)
	a.addAddress("eth0", "192.0.2.7/24")
	unicast := func(p uint8, source, peer string) Config {
		c := fast(p)
		// The kernel refuses to send to the first, which keeps nothing from the second.
		c.Source, c.Peers = addr(source), []netip.Addr{addr("192.0.2.255"), addr(peer)}
		return c
	}
	ra, stopA := a.start(unicast(100, "192.0.2.7", "192.0.2.2"), t.TempDir())
	rb, stopB := b.start(unicast(99, "192.0.2.2", "192.0.2.7"), t.TempDir())
	onA := func() bool { return a.has(vip) && !b.has(vip) }
	eventually(t, "the vip is on a", func() bool { return onA() && rb.Status().Peer.Address == addr("192.0.2.7") })
	always(t, "the vip is on a", 300*time.Millisecond, onA)
	if s := ra.Status(); s.Source != addr("192.0.2.7") || s.Failed == 0 {
		t.Errorf("got source %v, %d failures; want the configured address, and some", s.Source, s.Failed)
	}
	stopA()
	eventually(t, "the vip is on b", func() bool { return b.has(vip) && !a.has(vip) })
	stopB()

	// Who sends from another address than its peer expects is not heard.
	rb, _ = b.start(unicast(99, "192.0.2.2", "192.0.2.1"), t.TempDir())
	a.start(unicast(100, "192.0.2.7", "192.0.2.2"), t.TempDir())
	eventually(t, "b drops what a sends", func() bool {
		s := rb.Status()
		return s.Dropped[ReasonPeer] > 0 && s.Received == 0
	})
}
