package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// probeProtocol is who has made a route, for `ip route show proto 115`: no number
// of /etc/iproute2/rt_protos.
const probeProtocol = 115

// A probeRoute is what leads to a probe address: a host route by an interface, and
// a neighbour there that has the MAC address of the server's next hop.
type probeRoute struct {
	link   int // index
	mac    [6]byte
	source netip.Addr
	mtu    int // of the packets that go into a tunnel; 0: that of the interface
}

// A probePass is one look at all paths.
type probePass struct {
	p         *Probes
	links     map[int]*probeLink   // that paths go by
	addresses map[int][]netip.Addr // of this node, by family; listed once
}

// lead makes a path passable, or says why that can't be.
func (pass *probePass) lead(path lb.ProbePath, known *probePath) error {
	w, err := pass.p.hops.way(path.Server)
	if err != nil {
		return err
	}
	route := probeRoute{link: w.link, mac: w.next.Destination}
	link := pass.link(w.link)
	if link.err != nil {
		return link.err
	}
	if route.source, err = pass.source(path, w); err != nil {
		return err
	}
	if path.Forward == lb.Tunnel {
		route.mtu = link.mtu - outerHeader(path.Server)
	}
	if err := pass.set(path, known, route); err != nil {
		return fmt.Errorf("lead a probe out of %s: %w", link.name, err)
	}
	return nil
}

// outerHeader is how long the outer header of a tunnel to a server is.
func outerHeader(server netip.Addr) int {
	if server.Is4() {
		return 20
	}
	return 40
}

// set writes what differs: the address has a meaning before a packet can go there.
func (pass *probePass) set(path lb.ProbePath, known *probePath, want probeRoute) error {
	p, old := pass.p, known.set
	if old.link != 0 && old.link != want.link {
		if err := p.remove(known); err != nil {
			return err
		}
		old = probeRoute{}
	}
	if old == (probeRoute{}) {
		target := lbProbeTarget{
			Vip: mapped(path.VIP), Backend: mapped(path.Server),
			Forward: uint32(path.Forward), Interface: uint32(want.link),
		}
		if err := p.d.objects.ProbeTargets.Put(lbProbeAddress{Word: mapped(known.address)}, target); err != nil {
			return fmt.Errorf("write its address: %w", err)
		}
	}
	known.set = want
	if pass.links[want.link].neighbours[known.address] != want.mac {
		err := p.network.NeighSet(&netlink.Neigh{
			LinkIndex: want.link, IP: known.address.AsSlice(), HardwareAddr: want.mac[:], State: netlink.NUD_PERMANENT,
		})
		if err != nil {
			return fmt.Errorf("make a neighbour: %w", err)
		}
	}
	if old == want && p.leads(known.address, want) == nil {
		return nil
	}
	err := p.network.RouteReplace(&netlink.Route{
		Dst: hostNet(known.address), LinkIndex: want.link, Scope: netlink.SCOPE_LINK, Protocol: probeProtocol,
		Src: want.source.AsSlice(), MTU: want.mtu,
	})
	if err != nil {
		return fmt.Errorf("make a route: %w", err)
	}
	return p.leads(known.address, want)
}

// leads looks where the kernel would send a packet to a probe address.
func (p *Probes) leads(address netip.Addr, want probeRoute) error {
	routes, err := p.network.RouteGet(address.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return fmt.Errorf("look up the route: %w", err)
	}
	source, _ := netip.AddrFromSlice(routes[0].Src)
	if routes[0].LinkIndex != want.link || source.Unmap() != want.source {
		return fmt.Errorf("another route to %v comes first: look for it with `ip rule` and `ip route get %v`", address, address)
	}
	return nil
}

// remove removes what leads to a probe address.
func (p *Probes) remove(known *probePath) error {
	if known.set == (probeRoute{}) {
		return nil
	}
	err := errors.Join(
		removeProbeRoute(p.network, known.address, known.set.link),
		forget(p.d.objects.ProbeTargets, lbProbeAddress{Word: mapped(known.address)}))
	known.set = probeRoute{}
	return err
}

// removeProbeRoute removes route and neighbour of a probe address. The link may be
// gone, and has taken them along.
func removeProbeRoute(network *netlink.Handle, address netip.Addr, link int) error {
	var errs []error
	err := network.RouteDel(&netlink.Route{
		Dst: hostNet(address), LinkIndex: link, Scope: netlink.SCOPE_LINK, Protocol: probeProtocol,
	})
	if err != nil && !isGone(err) {
		errs = append(errs, fmt.Errorf("remove the route to %v: %w", address, err))
	}
	err = network.NeighDel(&netlink.Neigh{LinkIndex: link, IP: address.AsSlice()})
	if err != nil && !isGone(err) {
		errs = append(errs, fmt.Errorf("remove the neighbour %v: %w", address, err))
	}
	return errors.Join(errs...)
}

// isGone tells the errors of the kernel for what is not there, or on a link that
// is not there.
func isGone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// source chooses the address of this node that a probe comes from: one that stays
// when a VIP goes, and that the server can answer.
func (pass *probePass) source(path lb.ProbePath, w way) (netip.Addr, error) {
	if w.source.IsValid() && w.source.Is4() == path.VIP.Is4() && !pass.p.vips[w.source] {
		return w.source, nil
	}
	family, name := netlink.FAMILY_V4, "IPv4"
	if path.VIP.Is6() {
		family, name = netlink.FAMILY_V6, "IPv6"
	}
	if pass.addresses == nil {
		pass.addresses = map[int][]netip.Addr{}
	}
	all, ok := pass.addresses[family]
	if !ok {
		var err error
		if all, err = pass.p.own(family, w.link); err != nil {
			return netip.Addr{}, err
		}
		pass.addresses[family] = all
	}
	if len(all) == 0 {
		return netip.Addr{}, fmt.Errorf("this node has no %s address of its own that a probe could come from", name)
	}
	return all[0], nil
}

// own lists the addresses of this node of a family that a probe may come from,
// those of one link first.
func (p *Probes) own(family, link int) ([]netip.Addr, error) {
	list, err := p.network.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list this node's addresses: %w", err)
	}
	const unfit = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
	var first, rest []netip.Addr
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if !ok || p.vips[addr] || !addr.IsGlobalUnicast() || family == netlink.FAMILY_V6 && a.Flags&unfit != 0 {
			continue
		}
		if a.LinkIndex == link {
			first = append(first, addr)
		} else {
			rest = append(rest, addr)
		}
	}
	return slices.Concat(first, rest), nil
}

// probeNeighbours lists the permanent neighbours on a link that have probe
// addresses.
func (p *Probes) probeNeighbours(link int) (map[netip.Addr][6]byte, error) {
	known := map[netip.Addr][6]byte{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := p.network.NeighList(link, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the neighbours: %w", err)
		}
		for _, n := range list {
			a, ok := netip.AddrFromSlice(n.IP)
			if a = a.Unmap(); !ok || n.State&netlink.NUD_PERMANENT == 0 || len(n.HardwareAddr) != 6 {
				continue
			}
			if p.d.probes.prefix4.Contains(a) || p.d.probes.prefix6.Contains(a) {
				known[a] = [6]byte(n.HardwareAddr)
			}
		}
	}
	return known, nil
}
