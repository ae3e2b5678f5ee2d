package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// resolution is one pass over all addresses.
type resolution struct {
	r          *Resolver
	links      map[int]netlink.Link                     // by index, looked up once
	neighbours map[listKey]map[netip.Addr]netlink.Neigh // listed once
	keep       map[neighbourKey]neighbour
}

// listKey is what a list of neighbours is asked for by.
type listKey struct{ link, family int }

func (p *resolution) link(index int) (netlink.Link, error) {
	if l := p.links[index]; l != nil {
		return l, nil
	}
	l, err := p.r.netlink.LinkByIndex(index)
	if err == nil {
		p.links[index] = l
	}
	return l, err
}

func (p *resolution) resolve(a netip.Addr) (way, error) {
	routes, err := p.r.netlink.RouteGet(a.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return way{}, fmt.Errorf("no route to %v: %w", a, err)
	}
	route := routes[0]
	if route.Type == unix.RTN_LOCAL {
		return way{}, fmt.Errorf("%v is this node's own address: a backend must be another machine", a)
	}
	if route.Type != unix.RTN_UNICAST {
		return way{}, fmt.Errorf("no route to %v: the routing table rejects it", a)
	}
	via := a
	if gw, ok := netip.AddrFromSlice(route.Gw); ok {
		via = gw.Unmap()
	}
	if gw, ok := route.Via.(*netlink.Via); ok { // of the other family
		if addr, ok := netip.AddrFromSlice(gw.Addr); ok {
			via = addr.Unmap()
		}
	}
	out, err := p.link(route.LinkIndex)
	if err != nil {
		return way{}, fmt.Errorf("look at the interface towards %v: %w", a, err)
	}
	h, err := p.out(out)
	if err != nil {
		return way{}, err
	}
	mac, err := p.neighbour(out, via)
	if err != nil {
		return way{}, err
	}
	h.Destination, h.Routed, h.MTU = mac, via != a, out.Attrs().MTU
	if route.MTU != 0 { // of the route, or learnt of the path
		h.MTU = min(h.MTU, route.MTU)
	}
	w := way{next: h, link: route.LinkIndex}
	if source, ok := netip.AddrFromSlice(route.Src); ok {
		w.source = source.Unmap()
	}
	return w, nil
}

// out says how a frame leaves by a link: through it, or tagged through the
// interface below it where that has the program.
func (p *resolution) out(l netlink.Link) (lb.NextHop, error) {
	var h lb.NextHop
	name := l.Attrs().Name
	if len(l.Attrs().HardwareAddr) != 6 {
		return h, fmt.Errorf("interface %s has no Ethernet address", name)
	}
	h.Source = [6]byte(l.Attrs().HardwareAddr)
	if l.Attrs().Flags&net.FlagUp == 0 {
		return h, fmt.Errorf("interface %s is down", name)
	}
	var tags []uint16
	for !p.r.datapath[l.Attrs().Name] {
		v, ok := l.(*netlink.Vlan)
		if !ok {
			return h, fmt.Errorf("the way leads through %s, where sluice is not: add it to datapath.interfaces", name)
		}
		tags = append([]uint16{uint16(v.VlanId)}, tags...)
		below, err := p.link(v.ParentIndex)
		if err != nil {
			return h, fmt.Errorf("look at the interface below %s: %w", v.Name, err)
		}
		l = below
	}
	if len(tags) > len(h.VLANs) {
		return h, fmt.Errorf("interface %s has more than %d VLAN tags", name, len(h.VLANs))
	}
	h.Tags = copy(h.VLANs[:], tags)
	h.Interface = l.Attrs().Index
	return h, nil
}

// neighbour returns the MAC address of a neighbour, and has the kernel keep it.
func (p *resolution) neighbour(l netlink.Link, via netip.Addr) ([6]byte, error) {
	index, name := l.Attrs().Index, l.Attrs().Name
	list, err := p.list(l, via)
	if err != nil {
		return [6]byte{}, err
	}
	entry, ok := list[via]
	n := parseNeighbour(&entry)
	key := neighbourKey{index, via}
	if _, seen := p.keep[key]; !seen {
		// An entry that an operator has made is no business of ours.
		if !n.managed && entry.State&netlink.NUD_PERMANENT == 0 {
			if err := p.r.manage(index, via); err != nil {
				return [6]byte{}, fmt.Errorf("resolve %v on %s: %w", via, name, err)
			}
			n.managed = true
		}
		p.keep[key] = n
	}
	switch {
	case n.valid:
		return n.mac, nil
	case !ok || entry.State&netlink.NUD_FAILED == 0:
		return [6]byte{}, fmt.Errorf("%v has not answered ARP on %s yet", via, name)
	}
	return [6]byte{}, fmt.Errorf("%v does not answer ARP on %s", via, name)
}

// list returns the neighbours on a link, of one address family.
func (p *resolution) list(l netlink.Link, via netip.Addr) (map[netip.Addr]netlink.Neigh, error) {
	key := listKey{l.Attrs().Index, netlink.FAMILY_V4}
	if via.Is6() {
		key.family = netlink.FAMILY_V6
	}
	if known, ok := p.neighbours[key]; ok {
		return known, nil
	}
	list, err := p.r.netlink.NeighList(key.link, key.family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the neighbours on %s: %w", l.Attrs().Name, err)
	}
	known := make(map[netip.Addr]netlink.Neigh, len(list))
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			known[a.Unmap()] = n
		}
	}
	p.neighbours[key] = known
	return known, nil
}
