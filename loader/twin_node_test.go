package loader

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// neighbourMAC is a client's MAC address.
func neighbourMAC(client netip.Addr) net.HardwareAddr {
	mac, b := clientMAC, client.AsSlice()
	mac[5] = b[len(b)-1]
	return hardware(mac)
}

// twinNode makes the node of a twin, which routes: what bpf_fib_lookup says of it
// is all that a model must know. It has a route to each client that it knows, all
// of them neighbours, and to nobody else; one is in a VLAN. How replies leave where
// a neighbour is missing, or a route rejects, is for dnat_routes_test.go.
func twinNode(t testing.TB) (*testenv.Host, map[netip.Addr]lb.NextHop, map[int]lbWay) {
	t.Helper()
	testenv.RequireRoot(t)
	host := testenv.New(t, testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "lb1", Node: true, Forward: true, Interfaces: []testenv.InterfaceSpec{{Name: "eth0"}, {Name: "eth1", Segment: "other"}}},
	}}).Host("lb1")
	clients, ways := map[netip.Addr]lb.NextHop{}, map[int]lbWay{}
	for i, name := range []string{"eth0", "eth1"} {
		link, err := host.Netlink().LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a := link.Attrs()
		ways[a.Index] = lbWay{Index: uint32(a.Index), Nic: uint32(a.Index), Vlans: uint16(i), Vlan: [2]uint16{bigEndian16(uint16(300 * i))}}
		for _, client := range [][]netip.Addr{
			{clientIP, scriptClients[2], scriptClients[3], v6Client.Addr(), scriptClients6[2]}, {deniedIP, deniedIP6},
		}[i] {
			clients[client] = lb.NextHop{
				Interface: a.Index, Destination: [6]byte(neighbourMAC(client)), Source: [6]byte(a.HardwareAddr),
				Tags: i, VLANs: [2]uint16{uint16(300 * i)}, MTU: a.MTU,
			}
			to := netip.PrefixFrom(client, client.BitLen())
			if err := host.Netlink().RouteAdd(&netlink.Route{LinkIndex: a.Index, Dst: ipNet(to), Scope: unix.RT_SCOPE_LINK}); err != nil {
				t.Fatalf("route to %v: %v", client, err)
			}
			err := host.Netlink().NeighSet(&netlink.Neigh{
				LinkIndex: a.Index, IP: client.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: neighbourMAC(client),
			})
			if err != nil {
				t.Fatalf("neighbour %v: %v", client, err)
			}
		}
	}
	return host, clients, ways
}
