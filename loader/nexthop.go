package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// refreshEvery bounds how long a missed event goes unnoticed.
const refreshEvery = 15 * time.Second

// neighbourValid are the states in which a neighbour's MAC address may be used.
const neighbourValid = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// A Resolver follows the next hops of a set of addresses: route, gateway where
// there is one, interface and neighbour. It has the kernel keep the neighbours
// resolved (NTF_MANAGED), since XDP sends no ARP requests of its own, and calls
// changed, from its own goroutine, whenever an answer changes.
type Resolver struct {
	log     *slog.Logger
	changed func()

	space   netns.NsHandle
	netlink *netlink.Handle

	kick chan struct{}
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	datapath map[string]bool // interfaces that have the program
	want     []netip.Addr
	hops     map[netip.Addr]hop
	kept     map[neighbourKey]neighbour // those that hops go to
}

type hop struct {
	way
	err error
}

// A way is how a frame leaves for an address: the next hop as the program uses it,
// and the interface and own address that the kernel's stack would use.
type way struct {
	next   lb.NextHop
	link   int // index
	source netip.Addr
}

type neighbourKey struct {
	link int
	addr netip.Addr
}

// A neighbour is what is known of one.
type neighbour struct {
	mac     [6]byte
	valid   bool // mac may be used
	managed bool // the kernel keeps it resolved for us
}

func parseNeighbour(n *netlink.Neigh) neighbour {
	out := neighbour{managed: n.FlagsExt&netlink.NTF_EXT_MANAGED != 0}
	if n.State&neighbourValid != 0 && len(n.HardwareAddr) == 6 {
		out.mac, out.valid = [6]byte(n.HardwareAddr), true
	}
	return out
}

// NewResolver starts a resolver. The interfaces are those that the XDP program
// is on: a VLAN interface on top of one of them is left through it, tagged.
func NewResolver(interfaces []string, log *slog.Logger, changed func()) (*Resolver, error) {
	r := &Resolver{
		log: log, changed: changed,
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
		hops: map[netip.Addr]hop{}, kept: map[neighbourKey]neighbour{},
	}
	r.datapath = setOf(interfaces)
	// Everything goes through sockets of the caller's network namespace, whatever
	// thread a goroutine runs on later.
	var err error
	if r.space, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	if r.netlink, err = netlink.NewHandleAt(r.space, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), r.space.Close())
	}
	if err := r.subscribe(); err != nil {
		r.Close()
		return nil, err
	}
	r.done.Go(r.run)
	return r, nil
}

// subscribe has every change of links, routes and neighbours poke the loop.
func (r *Resolver) subscribe() error {
	lost := func(err error) { r.log.Debug("netlink events were lost", "error", err) }
	return errors.Join(
		follow(r, "neighbours", r.concerns, func(ch chan netlink.NeighUpdate) error {
			return netlink.NeighSubscribeWithOptions(ch, r.stop, netlink.NeighSubscribeOptions{Namespace: &r.space, ErrorCallback: lost})
		}),
		follow(r, "routes", nil, func(ch chan netlink.RouteUpdate) error {
			return netlink.RouteSubscribeWithOptions(ch, r.stop, netlink.RouteSubscribeOptions{Namespace: &r.space, ErrorCallback: lost})
		}),
		follow(r, "links", nil, func(ch chan netlink.LinkUpdate) error {
			return netlink.LinkSubscribeWithOptions(ch, r.stop, netlink.LinkSubscribeOptions{Namespace: &r.space, ErrorCallback: lost})
		}))
}

// follow pokes the loop for every event that matters, until stop. The kernel
// ends a subscription whose reader was too slow; then there is a new one, and
// the loop looks at everything.
func follow[T any](r *Resolver, what string, matters func(T) bool, subscribe func(chan T) error) error {
	events := make(chan T, 64)
	if err := subscribe(events); err != nil {
		return fmt.Errorf("follow %s: %w", what, err)
	}
	r.done.Go(func() {
		for {
			for e := range events {
				if matters == nil || matters(e) {
					r.poke()
				}
			}
			select {
			case <-r.stop:
				return
			default:
			}
			events = make(chan T, 64)
			if err := subscribe(events); err != nil {
				r.log.Error("changes are noticed late from now on", "what", what, "error", err)
				return
			}
			r.poke()
		}
	})
	return nil
}

func (r *Resolver) poke() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// concerns tells whether a neighbour event has news about one of our next hops: an
// on-link network may have thousands of others, and a managed neighbour is
// confirmed every few seconds.
func (r *Resolver) concerns(u netlink.NeighUpdate) bool {
	addr, ok := netip.AddrFromSlice(u.IP)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.kept[neighbourKey{u.LinkIndex, addr.Unmap()}]
	now := parseNeighbour(&u.Neigh)
	return ok && (u.Type == unix.RTM_DELNEIGH || now.valid != known.valid || now.mac != known.mac)
}

// Set replaces the set of addresses that are followed, and resolves the new
// ones as far as can be done without waiting.
func (r *Resolver) Set(addresses []netip.Addr) {
	r.mu.Lock()
	r.want = slices.Clone(addresses)
	r.mu.Unlock()
	r.resolveAll()
}

// SetInterfaces tells which interfaces the XDP program is on from now on.
func (r *Resolver) SetInterfaces(names []string) {
	r.mu.Lock()
	r.datapath = setOf(names)
	r.mu.Unlock()
	r.poke()
}

func setOf[T comparable](all []T) map[T]bool {
	set := make(map[T]bool, len(all))
	for _, e := range all {
		set[e] = true
	}
	return set
}

// Lookup returns the next hop of an address, or why there is none.
func (r *Resolver) Lookup(a netip.Addr) (lb.NextHop, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, err := r.lookup(a)
	return w.next, err
}

func (r *Resolver) way(a netip.Addr) (way, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookup(a)
}

// lookup is for who holds r.mu.
func (r *Resolver) lookup(a netip.Addr) (way, error) {
	h, ok := r.hops[a]
	if !ok {
		return way{}, errors.New("not looked up yet")
	}
	return h.way, h.err
}

// Close ends the resolver. The kernel goes on keeping the neighbours, since the
// data plane goes on using them.
func (r *Resolver) Close() {
	close(r.stop)
	r.done.Wait()
	r.netlink.Close()
	// Only this process's file descriptor closes.
	_ = r.space.Close()
}

func (r *Resolver) run() {
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-r.kick:
		case <-ticker.C:
		}
		if r.resolveAll() {
			r.changed()
		}
	}
}

// resolveAll looks every address up anew and tells whether an answer changed.
func (r *Resolver) resolveAll() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	pass := &resolution{
		r: r, links: map[int]netlink.Link{}, neighbours: map[listKey]map[netip.Addr]netlink.Neigh{},
		keep: map[neighbourKey]neighbour{},
	}
	hops := make(map[netip.Addr]hop, len(r.want))
	changed := false
	for _, a := range r.want {
		w, err := pass.resolve(a)
		hops[a] = hop{w, err}
		old, ok := r.hops[a]
		if ok && old.way == w && (old.err == nil) == (err == nil) {
			continue
		}
		changed = true
		h := w.next
		switch {
		case err != nil && !ok:
			// A neighbour that was not needed until now is not resolved yet.
			r.log.Info("no next hop so far", "backend", a, "why", err)
		case err != nil:
			r.log.Warn("no next hop", "backend", a, "why", err)
		case ok && old.err == nil && old.next == h:
		default:
			r.log.Info("next hop", "backend", a, "mac", net.HardwareAddr(h.Destination[:]).String(), "interface", h.Interface, "mtu", h.MTU)
		}
	}
	for k, n := range r.kept {
		if _, ok := pass.keep[k]; !ok && n.managed {
			r.release(k)
		}
	}
	r.hops, r.kept = hops, pass.keep
	return changed
}

// manage has the kernel resolve a neighbour and keep it resolved.
func (r *Resolver) manage(link int, via netip.Addr) error {
	return r.netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link, IP: via.AsSlice(), State: netlink.NUD_NONE,
		Flags: netlink.NTF_USE, FlagsExt: netlink.NTF_EXT_MANAGED,
	})
}

// release lets a neighbour age again that nobody needs kept.
func (r *Resolver) release(k neighbourKey) {
	// The entry comes anew when somebody asks for it. It is gone already, or the link is: either is as good.
	_ = r.netlink.NeighDel(&netlink.Neigh{LinkIndex: k.link, IP: k.addr.AsSlice()})
}
