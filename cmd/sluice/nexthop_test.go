package main

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// setMAC gives an interface another address, as a replaced NIC has.
func (r *rig) setMAC(host, iface string, mac net.HardwareAddr) {
	r.Helper()
	nl := r.host(host).Netlink()
	link, err := nl.LinkByName(iface)
	if err == nil {
		err = nl.LinkSetHardwareAddr(link, mac)
	}
	if err != nil {
		r.Fatalf("change the MAC address of %s on %s: %v", iface, host, err)
	}
}

// waitNextHop waits until a node sends to a server by way of a MAC address, and
// the server is up.
func (r *rig) waitNextHop(on, service string, server netip.Addr, mac net.HardwareAddr, within time.Duration) {
	r.Helper()
	r.waitStatus(on, within, fmt.Sprintf("%v by way of %v", server, mac), func(s control.Status) error {
		v, err := serviceOf(s, service)
		if err != nil {
			return err
		}
		for _, b := range v.Backends {
			if b.Address.Addr() == server && (b.NextHop != mac.String() || b.State != control.ServerUp) {
				return fmt.Errorf("%v is %s by way of %s: %s", server, b.State, b.NextHop, b.Why)
			}
		}
		return nil
	})
}

func TestServerWhoseMACAddressChanges(t *testing.T) {
	for _, tc := range []struct {
		name    string
		tells   string // arp_notify of the server
		within  time.Duration
		settled string // base_reachable_time_ms of the node
	}{
		{"and tells", "1", atOnce, "30000"},
		// Here the node has to find out: after at most one and a half times the
		// reachable time, 5 s of delay and 3 s of probes.
		{"and does not tell", "0", 25 * time.Second, "5000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := webRig(t, 3)
			if err := r.host("b2").Sysctl("net/ipv4/conf/eth0/arp_notify", tc.tells); err != nil {
				t.Fatal(err)
			}
			if err := r.host("lb1").Sysctl("net/ipv4/neigh/eth0/base_reachable_time_ms", tc.settled); err != nil {
				t.Fatal(err)
			}
			r.start("lb1", r.usual())
			r.waitReady("lb1")
			// The client talks to the server directly, too, over dsr: what it
			// knows of it is no matter here.
			before := r.host("b2").MAC("eth0")
			r.waitNextHop("lb1", "dsr", r.host("b2").Address(), before, atOnce)
			after := net.HardwareAddr{0x02, 0x53, 0x4c, 0xff, 0, 2}
			changed := time.Now()
			r.setMAC("b2", "eth0", after)
			if tc.tells == "0" {
				// Until then its probes fail, and the others serve.
				for _, service := range []string{"dsr", "nat"} {
					r.waitServers("lb1", service, atOnce, control.ServerUp, control.ServerDown, control.ServerUp)
				}
				r.wantServing(dsrService, "b1", "b3")
				r.wantServing(natService, "b1", "b3")
			}
			for _, service := range []string{"dsr", "nat"} {
				r.waitNextHop("lb1", service, r.host("b2").Address(), after, tc.within)
			}
			t.Logf("b2 is back after %v", time.Since(changed).Round(time.Millisecond))
			r.wantServing(dsrService, "b1", "b2", "b3")
			r.wantServing(natService, "b1", "b2", "b3")
		})
	}
}

// on is one interface of a host.
func on(segment, address string) testenv.InterfaceSpec {
	return testenv.InterfaceSpec{Name: "eth0", Segment: segment, Addresses: []netip.Prefix{prefix(address)}}
}

// second is a router's other interface.
func second(segment, address string) testenv.InterfaceSpec {
	in := on(segment, address)
	in.Name = "eth1"
	return in
}

func interfaces(in ...testenv.InterfaceSpec) []testenv.InterfaceSpec { return in }

func to(destination, via string) testenv.RouteSpec {
	r := testenv.RouteSpec{Via: netip.MustParseAddr(via)}
	if destination != "" {
		r.To = prefix(destination)
	}
	return r
}

func pool(servers string) string {
	return "pools:\n  - {name: web, " + probes + ", servers: [" + servers + "]}\n"
}

func TestServerBehindAGateway(t *testing.T) {
	r := newRig(t, testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: interfaces(on("lan", "192.0.2.200/24"))},
		{Name: "lb1", Interfaces: interfaces(on("lan", "192.0.2.1/24")), Node: true,
			Routes: []testenv.RouteSpec{to("198.51.100.0/24", "192.0.2.254")}},
		{Name: "gw", Interfaces: interfaces(on("lan", "192.0.2.254/24"), second("far", "198.51.100.1/24")), Forward: true},
		{Name: "b1", Interfaces: interfaces(on("lan", "192.0.2.11/24"))},
		{Name: "b2", Interfaces: interfaces(on("far", "198.51.100.11/24")), Routes: []testenv.RouteSpec{to("", "198.51.100.1")}},
	}})
	for _, name := range []string{"b1", "b2"} {
		r.serve(name, r.host(name).NameHandler())
	}
	r.start("lb1", r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 198.51.100.11}"), services(nat), vrrps(pair)))
	r.waitReady("lb1")
	r.waitNextHop("lb1", "nat", r.host("b2").Address(), r.host("gw").MAC("eth0"), atOnce)
	r.wantServing(natService, "b1", "b2")

	// Another router takes the gateway's address over.
	if err := r.host("gw").Sysctl("net/ipv4/conf/eth0/arp_notify", "1"); err != nil {
		t.Fatal(err)
	}
	after := net.HardwareAddr{0x02, 0x53, 0x4c, 0xff, 0, 3}
	r.setMAC("gw", "eth0", after)
	r.waitNextHop("lb1", "nat", r.host("b2").Address(), after, atOnce)
	r.wantServing(natService, "b1", "b2")

	// The route goes, and comes back another way.
	old := &netlink.Route{Dst: ipNet("198.51.100.0/24")}
	if err := r.host("lb1").Netlink().RouteDel(old); err != nil {
		t.Fatal(err)
	}
	r.waitStatus("lb1", soon, "b2 out of the table", func(s control.Status) error {
		v, err := serviceOf(s, "nat")
		if err != nil {
			return err
		}
		if b := v.Backends[1]; b.Serving || b.Slots > 0 {
			return fmt.Errorf("b2 is %s with %d slots", b.State, b.Slots)
		}
		return nil
	})
	r.wantServing(natService, "b1")
	if err := r.host("lb1").AddRoute(to("198.51.100.0/25", "192.0.2.254")); err != nil {
		t.Fatal(err)
	}
	r.waitServers("lb1", "nat", soon, control.ServerUp, control.ServerUp)
	r.wantServing(natService, "b1", "b2")
}

func ipNet(s string) *net.IPNet {
	p := prefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Each client gets its answers by the gateway that its packets came through. The
// routes of the node name one gateway for all, which knows one of the clients.
func TestNATClientsBehindTwoGateways(t *testing.T) {
	r := newRig(t, testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "c1", Interfaces: interfaces(on("a", "198.51.100.11/25")), Routes: []testenv.RouteSpec{to("", "198.51.100.1")}},
		{Name: "gwa", Interfaces: interfaces(on("lan", "192.0.2.253/24"), second("a", "198.51.100.1/25")), Forward: true},
		{Name: "c2", Interfaces: interfaces(on("b", "198.51.100.211/25")), Routes: []testenv.RouteSpec{to("", "198.51.100.129")}},
		{Name: "gwb", Interfaces: interfaces(on("lan", "192.0.2.254/24"), second("b", "198.51.100.129/25")), Forward: true},
		{Name: "lb1", Interfaces: interfaces(on("lan", "192.0.2.1/24")), Node: true, Routes: []testenv.RouteSpec{to("", "192.0.2.253")}},
		{Name: "b1", Interfaces: interfaces(on("lan", "192.0.2.11/24"))},
		{Name: "b2", Interfaces: interfaces(on("lan", "192.0.2.12/24"))},
	}})
	for _, name := range []string{"b1", "b2"} {
		r.serve(name, r.host(name).NameHandler())
	}
	r.start("lb1", r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(nat), vrrps(pair)))
	r.waitReady("lb1")
	for _, client := range []string{"c1", "c2"} {
		if got := names(r.answers(client, natService, burst)); len(got) != 2 {
			t.Errorf("%s is served by %v, want b1 and b2", client, got)
		}
	}
	// Without the balancer the second client gets no answer: the test is a test.
	if _, err := r.host("lb1").StartHTTP(netip.AddrPortFrom(natVIP, 8080), r.host("lb1").NameHandler()); err != nil {
		t.Fatal(err)
	}
	p, err := r.host("c2").StartProber(testenv.ProbeConfig{Target: netip.AddrPortFrom(natVIP, 8080), Count: 1, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Wait(); err != nil || got.Failed != 1 {
		t.Errorf("the kernel's own answer reaches c2 (%v): the routes of this test are wrong", err)
	}
}
