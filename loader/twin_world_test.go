package loader

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// The ports of the world's services, which say what they are for.
const (
	portDSR      = 80  // one backend, no tags
	portTagged   = 81  // one tag
	portDouble   = 82  // two
	portAway     = 83  // its backend is behind another NIC
	portLost     = 84  // there is no way to its backend
	portEmpty    = 85  // it has no healthy backend
	portRules    = 86  // it has rules
	portAllowed  = 87  // it lets in only some
	portLimited  = 88  // it has a limit
	portTracked  = 89  // three backends, slots that change
	portSticky   = 90  // the same, and the client's address alone chooses
	portTunnel4  = 91  // backend of IPv4
	portTunnel6  = 92  // backend of IPv6, two tags
	portNarrow4  = 93  // the way to its backend of IPv4 has an MTU of 1500
	portNarrow6  = 94  // that to one of IPv6, of 1400
	portMixed    = 95  // tunnels to backends of both families, slots that change
	portNAT      = 96  // one backend
	portSpread   = 97  // three backends, two source addresses
	portDNAT     = 98  // keeps the client's address; three backends, slots that change
	portDNS      = 53  // UDP, three backends
	portFlows    = 54  // UDP, affinity: flow
	portTunnelU  = 55  // UDP, a tunnel with affinity: flow
	portHere     = 101 // spread over nodes; this one alone
	portNode     = 102 // another one alone
	portNodeTag  = 103 // the same, one tag
	portNodes    = 104 // this one and two others, slots that change
	portNoNode   = 105 // none
	portRange    = 8000
	portRangeEnd = 8100
	portKept     = 8200 // keeps address and port
	portKeptEnd  = 8202
	portPorts    = 8300 // nat that keeps the port; one backend
	portPortsEnd = 8302
)

var (
	secondSource  = netip.MustParseAddr("192.0.2.101")
	secondSource6 = netip.MustParseAddr("2001:db8::101")
	// VIPs without nat.
	plainVIP  = netip.MustParseAddr("192.0.2.102")
	plainVIP6 = netip.MustParseAddr("2001:db8::102")
	// What the rules name.
	deniedIP  = netip.MustParseAddr("198.51.100.200")
	deniedIP6 = netip.MustParseAddr("2001:db8:bad::1")

	worldShare    = lb.PortRange{First: 20000, Last: 20511}
	worldTimeouts = map[lbNatState]time.Duration{
		lbNatStateNAT_SYN_SENT: 100 * time.Second, lbNatStateNAT_SYN_RECEIVED: 100 * time.Second,
		lbNatStateNAT_ESTABLISHED: 1000 * time.Second, lbNatStateNAT_CLOSING: 400 * time.Second,
		lbNatStateNAT_CLOSED: 800 * time.Second, lbNatStateNAT_UDP_REPLIED: 300 * time.Second,
	}
)

// Tables are small, so that all slots of a service can be written at once.
const worldTable = 13

// world returns services of every kind, of both families.
func world() []lb.ServiceState {
	both := func(s lb.ServiceState, port uint16) lb.ServiceState {
		s.TableSize, s.TrackWindow, s.DrainTimeout = worldTable, time.Hour, time.Hour
		s.Addresses = []lb.Frontend{
			lb.FrontendOf(netip.AddrPortFrom(vipIP, port)), lb.FrontendOf(netip.AddrPortFrom(v6VIP.Addr(), port)),
		}
		return s
	}
	make := func(name string, forward lb.Forward, port uint16, n int, changes ...func(i int, b *lb.Backend)) lb.ServiceState {
		bs := backends(n, port)
		for i := range bs {
			for _, change := range changes {
				change(i, &bs[i])
			}
		}
		return both(service(name, forward, port, bs), port)
	}
	tags := func(ids ...uint16) func(int, *lb.Backend) {
		return func(_ int, b *lb.Backend) { b.NextHop.Tags = copy(b.NextHop.VLANs[:], ids) }
	}
	in6 := func(i int, b *lb.Backend) {
		a := v6Backend.Addr().As16()
		a[15] += byte(i)
		b.Address = netip.AddrPortFrom(netip.AddrFrom16(a), b.Address.Port())
	}
	mtu := func(n int) func(int, *lb.Backend) { return func(_ int, b *lb.Backend) { b.NextHop.MTU = n } }
	mixed := func(i int, b *lb.Backend) {
		if i == 1 {
			in6(i, b)
			tags(77)(i, b)
		}
	}
	var all []lb.ServiceState
	add := func(s lb.ServiceState, changes ...func(*lb.ServiceState)) {
		for _, change := range changes {
			change(&s)
		}
		all = append(all, s)
	}
	overUDP := func(s *lb.ServiceState) { s.Protocol = lb.UDP }
	flows := func(s *lb.ServiceState) { s.Protocol, s.Affinity = lb.UDP, lb.AffinityFlow }

	add(make("dsr", lb.DSR, portDSR, 1), func(s *lb.ServiceState) {
		s.Addresses = append(s.Addresses, lb.FrontendOf(netip.AddrPortFrom(plainVIP, portDSR)), lb.FrontendOf(netip.AddrPortFrom(plainVIP6, portDSR)))
	})
	add(make("tagged", lb.DSR, portTagged, 1, tags(200)))
	add(make("double", lb.DSR, portDouble, 1, tags(200, 300)))
	add(make("away", lb.DSR, portAway, 1, func(_ int, b *lb.Backend) { b.NextHop.Interface = 7 }))
	add(make("lost", lb.DSR, portLost, 1, func(_ int, b *lb.Backend) { b.NextHop = lb.NextHop{} }))
	add(make("empty", lb.DSR, portEmpty, 1, func(_ int, b *lb.Backend) { b.Weight = 0 }))
	add(make("rules", lb.DSR, portRules, 1), func(s *lb.ServiceState) {
		s.Rules = []lb.Rule{deny("198.51.100.128/25"), allow("198.51.100.192/29"), deny("2001:db8:bad::/48")}
	})
	add(make("allowed", lb.DSR, portAllowed, 1), func(s *lb.ServiceState) {
		s.Rules, s.AllowOnly = []lb.Rule{allow("198.51.100.0/28"), allow("2001:db8:1::/48"), deny("198.51.100.9/32")}, true
	})
	add(make("limited", lb.DSR, portLimited, 1), func(s *lb.ServiceState) { s.SourceLimit = lb.SourceLimit{Rate: 1, Burst: 3} })
	add(make("tracked", lb.DSR, portTracked, 3))
	add(make("sticky", lb.DSR, portSticky, 3), func(s *lb.ServiceState) { s.Scheduler = lb.SourceHash })
	add(make("tunnel4", lb.Tunnel, portTunnel4, 1))
	add(make("tunnel6", lb.Tunnel, portTunnel6, 1, in6, tags(200, 300)))
	add(make("narrow4", lb.Tunnel, portNarrow4, 1, mtu(1500)))
	add(make("narrow6", lb.Tunnel, portNarrow6, 1, in6, mtu(1400)))
	add(make("mixed", lb.Tunnel, portMixed, 3, mixed))
	add(make("range", lb.DSR, portRange, 2), func(s *lb.ServiceState) {
		for i := range s.Addresses {
			s.Addresses[i].Ports.Last = portRangeEnd
		}
	})
	add(make("dns", lb.DSR, portDNS, 3), overUDP)
	add(make("flows", lb.DSR, portFlows, 3), flows)
	add(make("tunnelu", lb.Tunnel, portTunnelU, 3, mixed), flows)
	for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
		for i, sources := range [][]netip.Addr{{vipIP}, {vipIP, secondSource}} {
			s := make("nat"+protocol.String(), lb.NAT, portNAT+uint16(i), 1+2*i)
			s.Protocol, s.SourceAddresses = protocol, sources
			s.Addresses = s.Addresses[:1]
			translates(&s)
			all = append(all, s)
		}
		for i, sources := range [][]netip.Addr{{v6VIP.Addr()}, {v6VIP.Addr(), secondSource6}} {
			s := make("nat6"+protocol.String(), lb.NAT, portNAT+uint16(i), 1+2*i, in6)
			s.Protocol, s.SourceAddresses = protocol, sources
			s.Addresses = s.Addresses[1:]
			translates(&s)
			all = append(all, s)
		}
		all = append(all, portsWorld(make, in6, protocol)...)
	}
	here := func(i int, b *lb.Backend) {
		if i == 0 {
			b.NextHop = lb.Here
		}
	}
	add(make("here", lb.Proxy, portHere, 1, here))
	add(make("node", lb.Proxy, portNode, 1, anotherNode))
	add(make("node, tagged", lb.Proxy, portNodeTag, 1, anotherNode, tags(200)))
	add(make("nodes", lb.Proxy, portNodes, 3, anotherNode, here))
	add(make("no node", lb.Proxy, portNoNode, 1, anotherNode, func(_ int, b *lb.Backend) { b.Weight = 0 }))
	return append(all, dnatWorld(make, in6)...)
}

// portsWorld returns nat services that keep the ports of several, one of each family.
// Nobody else sends to their servers from the second source addresses.
func portsWorld(make func(string, lb.Forward, uint16, int, ...func(int, *lb.Backend)) lb.ServiceState, in6 func(int, *lb.Backend), protocol lb.Protocol) []lb.ServiceState {
	var all []lb.ServiceState
	for family, changes := range [][]func(int, *lb.Backend){{}, {in6}} {
		s := make(fmt.Sprint("ports", family, protocol), lb.NAT, portPorts, 1, append(changes, elsewhere)...)
		s.Protocol, s.KeepsPorts, s.Addresses = protocol, true, s.Addresses[family:family+1]
		s.SourceAddresses = []netip.Addr{[]netip.Addr{secondSource, secondSource6}[family]}
		s.Addresses[0].Ports.Last = portPortsEnd
		all = append(all, s)
	}
	return all
}

// elsewhere gives a backend an address that no other service's has.
func elsewhere(_ int, b *lb.Backend) {
	a := b.Address.Addr().AsSlice()
	a[len(a)-1] += 100
	other, _ := netip.AddrFromSlice(a)
	b.Address = netip.AddrPortFrom(other, b.Address.Port())
}

// nodeMAC is that of another node.
func nodeMAC(i int) [6]byte { return [6]byte{2, 0, 0, 0, 2, byte(i)} }

// anotherNode makes a backend another node.
func anotherNode(i int, b *lb.Backend) { b.NextHop.Destination = nodeMAC(i + 1) }

// dnatWorld returns services that keep the client's address: of one port, and of
// several.
func dnatWorld(make func(string, lb.Forward, uint16, int, ...func(int, *lb.Backend)) lb.ServiceState, in6 func(int, *lb.Backend)) []lb.ServiceState {
	var all []lb.ServiceState
	for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
		for family, changes := range [][]func(int, *lb.Backend){{}, {in6}} {
			// The packets of the others' are no replies.
			one := make(fmt.Sprint("dnat", family, protocol), lb.DNAT, portDNAT, 3, changes...)
			several := make(fmt.Sprint("kept", family, protocol), lb.DNAT, portKept, 2, append(changes, elsewhere)...)
			for _, s := range []*lb.ServiceState{&one, &several} {
				s.Protocol, s.SourceAddresses, s.Addresses = protocol, nil, s.Addresses[family:family+1]
			}
			several.Addresses[0].Ports.Last = portKeptEnd
			translates(&one)
			all = append(all, one, several)
		}
	}
	return all
}

// translates gives the backends of a nat service ports of their own.
func translates(s *lb.ServiceState) {
	for i := range s.Backends {
		b := &s.Backends[i]
		b.Address = netip.AddrPortFrom(b.Address.Addr(), s.Addresses[0].Ports.First+8000)
	}
}
