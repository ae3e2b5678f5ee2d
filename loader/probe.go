package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What the addresses are taken from that probes through VIPs dial, where Options
// names nothing: blocks for tests of network devices (RFC 2544, RFC 5180), which
// no network routes.
var (
	DefaultProbeAddresses4 = netip.MustParsePrefix("198.18.0.0/16")
	DefaultProbeAddresses6 = netip.MustParsePrefix("2001:2::/64")
)

// probeFilter is the program that probes through VIPs leave by, and what it takes
// for probe addresses.
type probeFilter struct {
	program          *ebpf.Program
	prefix4, prefix6 netip.Prefix
}

func newProbeFilter(program *ebpf.Program, o Options) probeFilter {
	f := probeFilter{program, o.ProbeAddresses4, o.ProbeAddresses6}
	if !f.prefix4.IsValid() {
		f.prefix4 = DefaultProbeAddresses4
	}
	if !f.prefix6.IsValid() {
		f.prefix6 = DefaultProbeAddresses6
	}
	return f
}

// Probes makes the paths of health probes through VIPs. On the node that holds a
// VIP, what a socket sends to it stays in the host; so each VIP at each server has
// an address that nobody has, which is dialled instead: a probe address. Its route
// and neighbour lead to the server's next hop, a filter there makes the VIP of it,
// and the XDP program makes it of the VIP in the answers.
//
// Find may be called from any goroutine, the other methods from one at a time.
type Probes struct {
	d       *Datapath
	hops    *Resolver
	network *netlink.Handle
	log     *slog.Logger

	mu      sync.Mutex
	vips    map[netip.Addr]bool // which no probe may come from
	paths   map[lb.ProbePath]*probePath
	changed chan struct{} // closed when a path has changed
}

// A probePath is what stands for one VIP at one server.
type probePath struct {
	address netip.Addr // to dial; the zero Addr: none is free
	err     error      // why it can't be dialled; nil: it can
	set     probeRoute // what leads there; zero: nothing
}

var errNoPath = errors.New("no path has been made yet")

// OpenProbes returns a Probes without paths, and removes those that a daemon which
// was killed has left. Vips are addresses that come and go: no probe comes from
// them.
func (d *Datapath) OpenProbes(hops *Resolver, vips []netip.Addr) (*Probes, error) {
	network, err := netlink.NewHandleAt(hops.space, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	p := &Probes{
		d: d, hops: hops, network: network, log: d.log, vips: setOf(vips),
		paths: map[lb.ProbePath]*probePath{}, changed: make(chan struct{}),
	}
	if err := p.sweep(); err != nil {
		p.log.Error("old paths of probes are left", "error", err)
	}
	return p, nil
}

// sweep removes all paths from the kernel.
func (p *Probes) sweep() error {
	store(&p.d.tables.arrays.Probes, 0)
	return sweepProbes(p.network, p.d.objects.ProbeTargets, p.d.objects.ProbeLinks)
}

// Close removes all that was made.
func (p *Probes) Close() error {
	err := p.sweep()
	p.network.Close()
	return err
}

// Set makes these the paths that there are; Refresh makes them passable.
func (p *Probes) Set(paths []lb.ProbePath) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	paths = slices.Clone(paths)
	slices.SortFunc(paths, lb.ProbePath.Compare)
	paths = slices.Compact(paths)
	var errs []error
	used := map[netip.Addr]bool{}
	for path, known := range p.paths {
		if _, ok := slices.BinarySearchFunc(paths, path, lb.ProbePath.Compare); ok {
			used[known.address] = true
			continue
		}
		errs = append(errs, p.remove(known))
		delete(p.paths, path)
	}
	free4, free6 := p.d.probes.prefix4.Addr(), p.d.probes.prefix6.Addr()
	for _, path := range paths {
		if p.paths[path] != nil {
			continue
		}
		next, prefix := &free4, p.d.probes.prefix4
		if path.VIP.Is6() {
			next, prefix = &free6, p.d.probes.prefix6
		}
		// The first address of a prefix is left out: of an IPv6 one it is anycast.
		for *next = next.Next(); used[*next]; *next = next.Next() {
		}
		made := &probePath{address: *next, err: errNoPath}
		if !prefix.Contains(*next) || len(used) >= int(lbLimitsMAX_PROBES) {
			*made = probePath{err: fmt.Errorf("no address is left in %v of datapath.probe_addresses", prefix)}
			*next = next.Prev()
		} else {
			used[made.address] = true
		}
		p.paths[path] = made
	}
	word := uint64(0)
	if len(p.paths) > 0 {
		word = 1
	}
	store(&p.d.tables.arrays.Probes, word)
	return errors.Join(errs...)
}

// SetVIPs changes which addresses no probe comes from. Refresh heeds it.
func (p *Probes) SetVIPs(vips []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vips = setOf(vips)
}

// Refresh makes the paths follow the next hops of their servers. Of one that
// can't be made Find says why; the error is of what concerns whole interfaces.
func (p *Probes) Refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pass := &probePass{p: p, links: map[int]*probeLink{}}
	changed := false
	for _, path := range p.sorted() {
		known := p.paths[path]
		if !known.address.IsValid() {
			continue
		}
		before := known.err
		known.err = pass.lead(path, known)
		if text(before) == text(known.err) {
			continue
		}
		changed = true
		if known.err != nil {
			p.log.Debug("no path for probes", "path", path, "why", known.err)
		} else {
			p.log.Debug("a path for probes", "path", path, "address", known.address, "source", known.set.source)
		}
	}
	if changed {
		close(p.changed)
		p.changed = make(chan struct{})
	}
	return pass.leaveLinks()
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (p *Probes) sorted() []lb.ProbePath {
	all := make([]lb.ProbePath, 0, len(p.paths))
	for path := range p.paths {
		all = append(all, path)
	}
	slices.SortFunc(all, lb.ProbePath.Compare)
	return all
}

// Find returns the address to dial for a path. While there is no way it waits,
// until ctx ends: a neighbour that was not asked yet answers soon.
func (p *Probes) Find(ctx context.Context, path lb.ProbePath) (netip.Addr, error) {
	for {
		p.mu.Lock()
		known, changed := p.paths[path], p.changed
		var address netip.Addr
		err := errNoPath
		if known != nil {
			address, err = known.address, known.err
		}
		p.mu.Unlock()
		if err == nil {
			return address, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return netip.Addr{}, err
		}
	}
}

// sweepProbes removes the paths that are recorded in two maps of a data plane, and
// empties these.
func sweepProbes(network *netlink.Handle, targets, links *ebpf.Map) error {
	var errs []error
	var address lbProbeAddress
	var target lbProbeTarget
	var found []netip.Addr
	var on []uint32
	entries := targets.Iterate()
	for entries.Next(&address, &target) {
		found, on = append(found, unmapped(address.Word)), append(on, target.Interface)
	}
	errs = append(errs, entries.Err())
	for i, a := range found {
		errs = append(errs, removeProbeRoute(network, a, int(on[i])), forget(targets, lbProbeAddress{Word: mapped(a)}))
	}
	var index, ours uint32
	var indices []uint32
	entries = links.Iterate()
	for entries.Next(&index, &ours) {
		indices = append(indices, index)
	}
	errs = append(errs, entries.Err())
	for _, index := range indices {
		errs = append(errs, leaveProbeLink(network, links, int(index)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the paths of probes: %w", err)
	}
	return nil
}

// forget removes an entry that may be gone already.
func forget[K any](m *ebpf.Map, key K) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write %s: %w", strings.TrimSpace(m.String()), err)
	}
	return nil
}

// sweepPinned removes the paths that a daemon which is gone has left, and pinned
// the record of in dir. Maps of another layout are none of such a daemon.
func sweepPinned(dir string) error {
	spec, err := loadLb()
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	var maps [2]*ebpf.Map
	for i, name := range []string{lbMapProbeTargets, lbMapProbeLinks} {
		m, err := ebpf.LoadPinnedMap(pinPath(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		defer m.Close()
		if spec.Maps[name].Compatible(m) != nil {
			return nil
		}
		maps[i] = m
	}
	network, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer network.Close()
	return sweepProbes(network, maps[0], maps[1])
}
