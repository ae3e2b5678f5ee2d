package loader

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A dnatRig is a data plane on a node that routes: frames come in by lo, which
// BPF_PROG_TEST_RUN uses, and clients are on the node's eth0.
type dnatRig struct {
	*testing.T
	*Datapath
	host *testenv.Host
	eth0 int // its number
}

// The interfaces of the node.
var (
	clientNet4 = netip.MustParsePrefix("198.51.100.1/24")
	clientNet6 = netip.MustParsePrefix("2001:db8:1::1/64")
	wayMAC     = net.HardwareAddr{0x02, 0x53, 0x4c, 0, 0, 1} // of eth0: the first interface of a lab's first host
)

// onDNATNode runs a test with a data plane on a node that knows the clients.
func onDNATNode(t *testing.T, f func(r *dnatRig), services ...lb.ServiceState) {
	t.Helper()
	lab := testenv.New(t, testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "lb1", Node: true, Forward: true, Interfaces: []testenv.InterfaceSpec{{
			Name: "eth0", Addresses: []netip.Prefix{clientNet4, clientNet6},
		}, {
			Name: "eth1", Segment: "other",
		}}},
	}})
	r := &dnatRig{T: t, host: lab.Host("lb1")}
	err := r.host.Do(func() error {
		r.eth0 = r.link("eth0").Attrs().Index
		r.Datapath = newDatapath(t, services...)
		store(r.tables.way(r.eth0), lbWay{Index: uint32(r.eth0), Nic: uint32(r.eth0)})
		r.neighbour("eth0", clientIP, clientMAC)
		r.neighbour("eth0", v6Client.Addr(), clientMAC)
		f(r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *dnatRig) link(name string) netlink.Link {
	r.Helper()
	l, err := r.host.Netlink().LinkByName(name)
	if err != nil {
		r.Fatal(err)
	}
	return l
}

// neighbour has the node know a neighbour for good.
func (r *dnatRig) neighbour(on string, a netip.Addr, mac [6]byte) {
	r.Helper()
	err := r.host.Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: r.link(on).Attrs().Index, IP: a.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: hardware(mac),
	})
	if err != nil {
		r.Fatal(err)
	}
}

func (r *dnatRig) route(route netlink.Route) {
	r.Helper()
	if err := r.host.Netlink().RouteAdd(&route); err != nil {
		r.Fatal(err)
	}
}

// dnat makes a service keep the client's address.
func (c natCase) dnat(port uint16) lb.ServiceState {
	s := c.service(port)
	s.Forward, s.SourceAddresses = lb.DNAT, nil
	return s
}

// reply is what the backend answers to a packet that was forwarded to it.
func reply(forwarded testenv.Frame, changes ...change) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: forwarded.Dst, Dst: forwarded.Src,
		Protocol: forwarded.Protocol, Flags: testenv.ACK, Seq: 5001, Ack: 1002, Window: 512, Payload: []byte("answer"),
	}
	for _, change := range changes {
		change(&f)
	}
	return f
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
