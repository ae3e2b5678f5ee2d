package loader

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	onLink  = netip.MustParseAddr("192.0.2.11")
	farAway = netip.MustParseAddr("198.51.100.11")
)

// resolverLab has a node, a backend on its segment, and one behind two gateways.
func resolverLab() testenv.Spec {
	on := func(segment, name, prefix string) testenv.InterfaceSpec {
		return testenv.InterfaceSpec{Name: name, Segment: segment, Addresses: []netip.Prefix{netip.MustParsePrefix(prefix)}}
	}
	far := netip.MustParsePrefix("198.51.100.0/24")
	return testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "lb1", Interfaces: []testenv.InterfaceSpec{on("lan", "eth0", "192.0.2.1/24"), on("other", "eth1", "203.0.113.1/24")},
			Routes: []testenv.RouteSpec{{To: far, Via: netip.MustParseAddr("192.0.2.253")}}, Node: true},
		{Name: "b1", Interfaces: []testenv.InterfaceSpec{on("lan", "eth0", "192.0.2.11/24")}},
		{Name: "gw1", Interfaces: []testenv.InterfaceSpec{on("lan", "eth0", "192.0.2.253/24"), on("far", "eth1", "198.51.100.1/24")}, Forward: true},
		{Name: "gw2", Interfaces: []testenv.InterfaceSpec{on("lan", "eth0", "192.0.2.254/24"), on("far", "eth1", "198.51.100.2/24")}, Forward: true},
		{Name: "b3", Interfaces: []testenv.InterfaceSpec{on("other", "eth0", "203.0.113.11/24")}},
	}}
}

// A follower is a resolver on lb1, and what it says.
type follower struct {
	*node
	r       *Resolver
	stop    func() // ends it
	changed chan struct{}
}

func newFollower(t *testing.T, addresses ...netip.Addr) *follower {
	t.Helper()
	lab := testenv.New(t, resolverLab())
	f := &follower{node: &node{T: t, lab: lab, host: lab.Host("lb1"), logs: &recorder{}}, changed: make(chan struct{}, 1)}
	// Quick to notice that somebody is gone.
	for setting, value := range map[string]string{
		"base_reachable_time_ms": "300", "delay_first_probe_time": "1", "retrans_time_ms": "100", "interval_probe_time_ms": "300",
	} {
		if err := f.host.Sysctl("net/ipv4/neigh/eth0/"+setting, value); err != nil {
			t.Fatal(err)
		}
	}
	f.start()
	f.r.Set(addresses)
	return f
}

func (f *follower) start() {
	f.Helper()
	err := f.host.Do(func() error {
		var err error
		f.r, err = NewResolver([]string{"eth0"}, slog.New(slog.NewTextHandler(f.logs, nil)), func() {
			select {
			case f.changed <- struct{}{}:
			default:
			}
		})
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	f.stop = sync.OnceFunc(f.r.Close)
	f.Cleanup(f.stop)
}

// wait waits, from one call of changed to the next, until what is known of an
// address is as it should be.
func (f *follower) wait(a netip.Addr, what string, ok func(lb.NextHop, error) bool) {
	f.Helper()
	deadline := time.After(20 * time.Second)
	for {
		h, err := f.r.Lookup(a)
		if ok(h, err) {
			return
		}
		select {
		case <-f.changed:
		case <-deadline:
			f.Fatalf("%v: want %s, got %+v, %v", a, what, h, err)
		}
	}
}

// waitMAC waits until an address is reached by way of a MAC address.
func (f *follower) waitMAC(a netip.Addr, mac net.HardwareAddr) {
	f.Helper()
	want := lb.NextHop{
		Interface: f.link("eth0").Attrs().Index, Destination: [6]byte(mac), Source: [6]byte(f.link("eth0").Attrs().HardwareAddr),
		MTU: f.link("eth0").Attrs().MTU, Routed: a == farAway, // by way of a gateway
	}
	f.wait(a, fmt.Sprintf("%+v", want), func(h lb.NextHop, err error) bool { return err == nil && h == want })
}

func (f *follower) waitError(a netip.Addr, text string) {
	f.Helper()
	f.wait(a, "an error with "+text, func(_ lb.NextHop, err error) bool { return err != nil && strings.Contains(err.Error(), text) })
}

func (f *follower) mac(host string) net.HardwareAddr { return f.lab.Host(host).MAC("eth0") }

// neighbour returns the kernel's entry.
func (f *follower) neighbour(a netip.Addr) (netlink.Neigh, bool) {
	f.Helper()
	list, err := f.host.Netlink().NeighList(f.link("eth0").Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range list {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.Unmap() == a {
			return n, true
		}
	}
	return netlink.Neigh{}, false
}

func (f *follower) waitManaged(a netip.Addr, want bool) {
	f.Helper()
	testenv.Eventually(f, 10*time.Second, fmt.Sprintf("%v to be kept: %v", a, want), func() (bool, error) {
		n, ok := f.neighbour(a)
		return ok && n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 == want || !ok && !want, nil
	})
}

func TestResolverFinds(t *testing.T) {
	own, unknown, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("203.0.113.11")
	silent, rejected := netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("10.8.8.8")
	f := newFollower(t)
	reject := &netlink.Route{Dst: &net.IPNet{IP: rejected.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_BLACKHOLE}
	if err := f.host.Netlink().RouteAdd(reject); err != nil {
		t.Fatal(err)
	}
	f.r.Set([]netip.Addr{onLink, farAway, own, unknown, elsewhere, silent, rejected})
	f.waitMAC(onLink, f.mac("b1"))
	f.waitMAC(farAway, f.mac("gw1"))
	f.waitError(own, "this node's own address")
	f.waitError(unknown, "no route to 10.9.9.9")
	f.waitError(elsewhere, "eth1, where sluice is not: add it to datapath.interfaces")
	f.waitError(silent, "192.0.2.99")
	f.waitError(rejected, "no route to 10.8.8.8")
	if _, err := f.r.Lookup(netip.MustParseAddr("192.0.2.55")); err == nil {
		t.Error("an address that is not followed was found")
	}
	f.waitManaged(onLink, true)
	f.waitManaged(netip.MustParseAddr("192.0.2.253"), true)

	// What is not followed any more is let go.
	f.r.Set([]netip.Addr{onLink})
	f.waitManaged(netip.MustParseAddr("192.0.2.253"), false)
	f.waitManaged(onLink, true)
	if _, err := f.r.Lookup(farAway); err == nil {
		t.Error("an address that is not followed any more is found")
	}
}

func TestResolverFollowsMAC(t *testing.T) {
	after := net.HardwareAddr{2, 0, 0, 0, 8, 8}
	tests := []struct {
		name   string
		change func(t *testing.T, f *follower)
	}{
		{"a gateway that tells", func(t *testing.T, f *follower) {
			gw := f.lab.Host("gw1")
			if err := gw.Sysctl("net/ipv4/conf/eth0/arp_notify", "1"); err != nil {
				t.Fatal(err)
			}
			setHardwareAddr(t, gw, after)
		}},
		{"a gateway that does not tell", func(t *testing.T, f *follower) { setHardwareAddr(t, f.lab.Host("gw1"), after) }},
		{"an operator's entry", func(t *testing.T, f *follower) {
			err := f.host.Netlink().NeighSet(&netlink.Neigh{
				LinkIndex: f.link("eth0").Attrs().Index, IP: net.IPv4(192, 0, 2, 253), HardwareAddr: after, State: netlink.NUD_PERMANENT,
			})
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := newFollower(t, farAway, onLink)
			f.waitMAC(farAway, f.mac("gw1"))
			f.waitMAC(onLink, f.mac("b1"))
			tc.change(t, f)
			f.waitMAC(farAway, after)
			f.waitMAC(onLink, f.mac("b1"))
		})
	}
}

func setHardwareAddr(t *testing.T, h *testenv.Host, mac net.HardwareAddr) {
	t.Helper()
	l, err := h.Netlink().LinkByName("eth0")
	if err == nil {
		err = h.Netlink().LinkSetHardwareAddr(l, mac)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A neighbour that is silent is reported, and found again when it is back.
func TestResolverFollowsReachability(t *testing.T) {
	f := newFollower(t, onLink, farAway)
	f.waitMAC(onLink, f.mac("b1"))
	if err := f.lab.Host("b1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	f.waitError(onLink, "192.0.2.11 does not answer ARP on eth0")
	f.waitMAC(farAway, f.mac("gw1"))
	if err := f.lab.Host("b1").LinkUp(); err != nil {
		t.Fatal(err)
	}
	f.waitMAC(onLink, f.mac("b1"))
}

func TestResolverFollowsRoutes(t *testing.T) {
	f := newFollower(t, farAway)
	f.waitMAC(farAway, f.mac("gw1"))
	nl := f.host.Netlink()
	_, far, _ := net.ParseCIDR("198.51.100.0/24")
	if err := nl.RouteReplace(&netlink.Route{Dst: far, Gw: net.IPv4(192, 0, 2, 254)}); err != nil {
		t.Fatal(err)
	}
	f.waitMAC(farAway, f.mac("gw2"))
	if err := nl.RouteDel(&netlink.Route{Dst: far}); err != nil {
		t.Fatal(err)
	}
	// Deleted, a route notifies; resolved as well, it is gone.
	f.waitError(farAway, "no route")
	if err := nl.RouteAdd(&netlink.Route{Dst: far, Gw: net.IPv4(192, 0, 2, 253)}); err != nil {
		t.Fatal(err)
	}
	f.waitMAC(farAway, f.mac("gw1"))
}

func TestResolverFollowsLinks(t *testing.T) {
	f := newFollower(t, onLink)
	f.waitMAC(onLink, f.mac("b1"))
	nl := f.host.Netlink()
	if err := nl.LinkSetDown(f.link("eth0")); err != nil {
		t.Fatal(err)
	}
	f.wait(onLink, "an error", func(_ lb.NextHop, err error) bool { return err != nil })
	if err := nl.LinkSetUp(f.link("eth0")); err != nil {
		t.Fatal(err)
	}
	f.waitMAC(onLink, f.mac("b1"))

	// The node's own MAC address is part of the answer.
	if err := nl.LinkSetHardwareAddr(f.link("eth0"), net.HardwareAddr{2, 0, 0, 0, 7, 7}); err != nil {
		t.Fatal(err)
	}
	f.waitMAC(onLink, f.mac("b1"))
}

// How long a packet may be on the way is part of the answer: that of the interface, or
// of the route where it allows less.
func TestResolverFollowsMTU(t *testing.T) {
	f := newFollower(t, onLink)
	f.waitMAC(onLink, f.mac("b1"))
	nl := f.host.Netlink()
	wait := func(want int) {
		t.Helper()
		f.wait(onLink, fmt.Sprint("an MTU of ", want), func(h lb.NextHop, err error) bool { return err == nil && h.MTU == want })
	}
	wait(1500)
	if err := nl.LinkSetMTU(f.link("eth0"), 1400); err != nil {
		t.Fatal(err)
	}
	wait(1400)
	for _, mtu := range []int{1350, 9000} {
		if err := nl.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: onLink.AsSlice(), Mask: net.CIDRMask(32, 32)}, LinkIndex: f.link("eth0").Attrs().Index,
			Scope: netlink.SCOPE_LINK, MTU: mtu,
		}); err != nil {
			t.Fatal(err)
		}
		wait(min(mtu, 1400))
	}
}

// A neighbour that somebody flushes is resolved and kept again.
func TestResolverAfterAFlush(t *testing.T) {
	f := newFollower(t, onLink)
	f.waitMAC(onLink, f.mac("b1"))
	err := f.host.Netlink().NeighDel(&netlink.Neigh{LinkIndex: f.link("eth0").Attrs().Index, IP: onLink.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	f.waitManaged(onLink, true)
	f.waitMAC(onLink, f.mac("b1"))
}

// The kernel goes on keeping neighbours when the resolver ends, as the data plane
// goes on using them; the next one takes them over and lets go of them.
func TestResolverEnds(t *testing.T) {
	f := newFollower(t, onLink)
	f.waitMAC(onLink, f.mac("b1"))
	f.stop() // it would keep again what the second one lets go
	f.waitManaged(onLink, true)
	second := *f
	second.start()
	second.r.Set([]netip.Addr{onLink})
	second.waitMAC(onLink, f.mac("b1"))
	f.waitManaged(onLink, true)
	second.r.Set(nil)
	f.waitManaged(onLink, false)
}

// An entry that an operator has made is used, and left alone.
func TestResolverAndPermanentNeighbours(t *testing.T) {
	f := newFollower(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 9, 9}
	entry := &netlink.Neigh{
		LinkIndex: f.link("eth0").Attrs().Index, IP: net.IPv4(192, 0, 2, 77), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	}
	if err := f.host.Netlink().NeighSet(entry); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("192.0.2.77")
	f.r.Set([]netip.Addr{a})
	f.waitMAC(a, mac)
	f.r.Set(nil)
	if n, ok := f.neighbour(a); !ok || n.State != netlink.NUD_PERMANENT || n.FlagsExt != 0 {
		t.Errorf("the entry is %+v, %v", n, ok)
	}
}

// The way to a server leads through an interface that the program is on, or it is
// none; which ones those are may change.
func TestResolverFollowsTheInterfaces(t *testing.T) {
	f := newFollower(t, onLink)
	f.waitMAC(onLink, f.mac("b1"))
	f.r.SetInterfaces([]string{"other"})
	testenv.Eventually(t, 10*time.Second, "no way without the program", func() (bool, error) {
		_, err := f.r.Lookup(onLink)
		return err != nil && strings.Contains(err.Error(), "eth0, where sluice is not"), nil
	})
	f.r.SetInterfaces([]string{"other", "eth0"})
	f.waitMAC(onLink, f.mac("b1"))
}
