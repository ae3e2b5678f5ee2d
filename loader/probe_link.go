package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How the filter of probes is found again among others on an interface.
const (
	probeFilterName     = "sluice_probe"
	probeFilterHandle   = 0x736c75
	probeFilterPriority = 9 // early: a filter that accepts ends the search
)

// A probeLink is an interface that paths go by.
type probeLink struct {
	name       string
	mtu        int
	neighbours map[netip.Addr][6]byte // those of probe addresses
	err        error                  // why it can't be used
}

// link returns an interface, with the filter on it, looked at once in a pass.
func (pass *probePass) link(index int) *probeLink {
	if l := pass.links[index]; l != nil {
		return l
	}
	l := &probeLink{name: fmt.Sprintf("interface %d", index)}
	pass.links[index] = l
	found, err := pass.p.network.LinkByIndex(index)
	if err != nil {
		l.err = fmt.Errorf("look at interface %d: %w", index, err)
		return l
	}
	l.name, l.mtu = found.Attrs().Name, found.Attrs().MTU
	if l.neighbours, l.err = pass.p.probeNeighbours(index); l.err != nil {
		return l
	}
	if err := pass.p.filter(found); err != nil {
		l.err = fmt.Errorf("put the filter of probes on %s: %w", l.name, err)
	}
	return l
}

// filter puts the filter on an interface where it is not yet. What others have
// there stays as it is.
func (p *Probes) filter(l netlink.Link) error {
	if err := p.clsact(l); err != nil {
		return err
	}
	filters, err := p.network.FilterList(l, netlink.HANDLE_MIN_EGRESS)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list its filters: %w", err)
	}
	info, err := p.d.probes.program.Info()
	if err != nil {
		return fmt.Errorf("look at the program: %w", err)
	}
	id, _ := info.ID()
	for _, f := range filters {
		if ours := ourFilter(f); ours != nil && ours.Id == int(id) {
			return nil
		}
	}
	return p.network.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: probeFilterHandle,
			Priority: probeFilterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.d.probes.program.FD(), Name: probeFilterName, DirectAction: true,
	})
}

// ourFilter returns f if it is one of sluice's.
func ourFilter(f netlink.Filter) *netlink.BpfFilter {
	b, ok := f.(*netlink.BpfFilter)
	if !ok || b.Name != probeFilterName || b.Handle != probeFilterHandle || b.Priority != probeFilterPriority {
		return nil
	}
	return b
}

// clsact makes sure that filters can be put on an interface, and records whether
// the qdisc for that is sluice's.
func (p *Probes) clsact(l netlink.Link) error {
	there, err := hasClsact(p.network, l)
	if err != nil {
		return err
	}
	index, ours := uint32(l.Attrs().Index), uint32(0)
	if there {
		if err := p.d.objects.ProbeLinks.Lookup(index, &ours); err == nil {
			return nil
		}
	} else {
		ours = 1
	}
	// Before it is made: what a daemon that is killed here leaves is known.
	if err := p.d.objects.ProbeLinks.Put(index, ours); err != nil {
		return fmt.Errorf("record it: %w", err)
	}
	if there {
		return nil
	}
	return p.network.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
}

var errIngress = errors.New("it has an ingress qdisc, which leaves no place for clsact: " +
	"move its filters to the ingress of clsact")

func hasClsact(network *netlink.Handle, l netlink.Link) (bool, error) {
	qdiscs, err := network.QdiscList(l)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list its qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		switch q.Type() {
		case "clsact":
			return true, nil
		case "ingress":
			return false, errIngress
		}
	}
	return false, nil
}

// leaveLinks takes the filter off interfaces that no path goes by any more, and
// says which can't be used.
func (pass *probePass) leaveLinks() error {
	var errs []error
	var index, ours uint32
	var unused []uint32
	entries := pass.p.d.objects.ProbeLinks.Iterate()
	for entries.Next(&index, &ours) {
		if pass.links[int(index)] == nil && !pass.p.uses(int(index)) {
			unused = append(unused, index)
		}
	}
	errs = append(errs, entries.Err())
	for _, index := range unused {
		errs = append(errs, leaveProbeLink(pass.p.network, pass.p.d.objects.ProbeLinks, int(index)))
	}
	for _, l := range pass.links {
		errs = append(errs, l.err)
	}
	return errors.Join(errs...)
}

// uses tells whether a path goes by an interface, or went there before it lost its
// next hop.
func (p *Probes) uses(link int) bool {
	for _, known := range p.paths {
		if known.set.link == link {
			return true
		}
	}
	return false
}

// leaveProbeLink takes the filter off an interface, and the qdisc where it is
// sluice's and nobody else has filters in it.
func leaveProbeLink(network *netlink.Handle, links *ebpf.Map, index int) error {
	var ours uint32
	if err := links.Lookup(uint32(index), &ours); err != nil {
		return fmt.Errorf("look for interface %d: %w", index, err)
	}
	if err := clearProbeLink(network, index, ours == 1); err != nil {
		return fmt.Errorf("take the filter of probes off interface %d: %w", index, err)
	}
	return forget(links, uint32(index))
}

func clearProbeLink(network *netlink.Handle, index int, ours bool) error {
	l, err := network.LinkByIndex(index)
	if err != nil {
		if isLinkGone(err) {
			return nil
		}
		return err
	}
	there, err := hasClsact(network, l)
	if errors.Is(err, errIngress) || err == nil && !there {
		return nil // somebody has replaced it
	}
	if err != nil {
		return err
	}
	others := 0
	for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		filters, err := network.FilterList(l, parent)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list its filters: %w", err)
		}
		mine := slices.IndexFunc(filters, func(f netlink.Filter) bool { return ourFilter(f) != nil })
		if mine < 0 || parent != netlink.HANDLE_MIN_EGRESS {
			others += len(filters)
			continue
		}
		others += len(filters) - 1
		if err := network.FilterDel(filters[mine]); err != nil && !isGone(err) {
			return err
		}
	}
	if !ours || others > 0 {
		return nil
	}
	err = network.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove the clsact qdisc: %w", err)
	}
	return nil
}

func isLinkGone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || isGone(err)
}
