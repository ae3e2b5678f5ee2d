package loader

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// refreshWays tells the program how frames leave by the interfaces that routes
// may name: those that it is on, and VLANs on top of them. Only replies in nat
// without source NAT follow routes.
func (d *Datapath) refreshWays() error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	ways := map[int]lbWay{} // by place
	// The interfaces themselves come first: what has no place of its own is left by
	// the last hop of the client.
	for _, vlans := range []bool{false, true} {
		for _, l := range links {
			w, ok := d.wayBy(l, byIndex)
			if !ok || (w.Vlans > 0) != vlans {
				continue
			}
			place := int(w.Index) % int(lbLimitsMAX_INTERFACES)
			if other, taken := ways[place]; taken {
				d.log.Debug("two interfaces have one place in the table: routes by one of them are not found",
					"interface", l.Attrs().Name, "number", w.Index, "other number", other.Index)
				continue
			}
			ways[place] = w
		}
	}
	for place := range int(lbLimitsMAX_INTERFACES) {
		store(d.tables.way(place), ways[place])
	}
	return nil
}

// wayBy says how a frame leaves by a link: through it, or tagged through the
// interface below it where that has the program.
func (d *Datapath) wayBy(l netlink.Link, byIndex map[int]netlink.Link) (lbWay, bool) {
	w := lbWay{Index: uint32(l.Attrs().Index)}
	for d.links[l.Attrs().Name] == nil {
		v, ok := l.(*netlink.Vlan)
		if !ok || int(w.Vlans) == len(w.Vlan) {
			return w, false
		}
		w.Vlan[1] = w.Vlan[0]
		w.Vlan[0] = bigEndian16(uint16(v.VlanId))
		w.Vlans++
		if l = byIndex[v.ParentIndex]; l == nil {
			return w, false
		}
	}
	w.Nic = uint32(l.Attrs().Index)
	return w, true
}

// findAtOnce bounds the neighbours that are looked for at a time. Addresses that
// nobody has, in a flood, must not fill the kernel's table (gc_thresh3).
const findAtOnce = 64

// findNeighbours has the kernel resolve the neighbours that replies have missed:
// XDP sends no ARP requests of its own, and a client that only listens would
// never show where it is.
func (d *Datapath) findNeighbours() error {
	var key lbMissedNeighbour
	var since uint32
	var missed []lbMissedNeighbour
	all := d.objects.MissedNeighbours.Iterate()
	for all.Next(&key, &since) {
		missed = append(missed, key)
	}
	// One that the program adds meanwhile may end the search; it comes again.
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read %v: %w", d.objects.MissedNeighbours, err)
	}
	for i, key := range missed {
		// Whoever is left out, or does not answer, is missed again.
		if err := d.objects.MissedNeighbours.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("drop an entry of %v: %w", d.objects.MissedNeighbours, err)
		}
		if i >= findAtOnce {
			continue
		}
		address := unmapped(key.Address)
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: int(key.Interface), IP: address.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
		})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			d.log.Debug("a neighbour cannot be looked for", "address", address, "interface", key.Interface, "error", err)
		}
	}
	return nil
}

// CheckForwarding tells of the interfaces by which replies in nat without source
// NAT come in, and from which the kernel forwards nothing: their replies reach
// nobody.
func (d *Datapath) CheckForwarding() error {
	type source struct {
		nic    int
		family string
	}
	sources := map[source]bool{}
	for _, r := range d.state.Replies {
		b := d.state.Backends[r.Backend]
		family := "ipv4"
		if b.Address.Addr().Is6() {
			family = "ipv6"
		}
		if b.NextHop.Known() {
			sources[source{b.NextHop.Interface, family}] = true
		}
	}
	var errs []error
	for s := range sources {
		nic, err := net.InterfaceByIndex(s.nic)
		if err != nil {
			continue // it is gone, and its backends have no way
		}
		setting := fmt.Sprintf("net/%s/conf/%s/forwarding", s.family, nic.Name)
		text, err := os.ReadFile("/proc/sys/" + setting)
		if err == nil && strings.TrimSpace(string(text)) == "0" {
			errs = append(errs, fmt.Errorf("answers of backends with source_nat: false do not reach their clients: %s is 0: set net.ipv4.ip_forward=1, for IPv6 net.ipv6.conf.all.forwarding=1", setting))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
