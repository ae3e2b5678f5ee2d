package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/vrrp"
)

// configured tells whether some instance has the address.
func configured(cfg *config.Config) func(iface string, vip netip.Prefix) bool {
	return func(iface string, vip netip.Prefix) bool {
		return slices.ContainsFunc(cfg.VRRP, func(i config.Instance) bool {
			return i.Interface == iface && slices.Contains(i.Addresses, vip)
		})
	}
}

// makeRouters makes the VRRP instances and what drives them, and clears away what
// earlier configurations have left of VIPs.
func (n *node) makeRouters(ctx context.Context, goroutines *sync.WaitGroup) error {
	host, err := vrrp.OpenHost(n.log)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, host.Close)
	n.host = host
	if n.addresses, err = vrrp.OpenAddresses(host, n.runDir, n.log); err != nil {
		return err
	}
	if _, err := n.addresses.Forget(configured(n.cfg)); err != nil {
		return err
	}
	if err := n.settleARP(); err != nil {
		return err
	}
	if err := n.openRoutes(); err != nil {
		return err
	}
	n.openSpread()
	if err := n.openMACs(); err != nil {
		return err
	}
	if n.fences, err = n.openFences(); err != nil {
		return err
	}
	n.fenced = map[*vrrp.Router]fence{}
	if n.fences != nil {
		goroutines.Go(func() { beAlive(ctx, n.fences) })
	}
	groups := map[string]*vrrp.Group{}
	n.makeFast()
	for _, i := range n.cfg.VRRP {
		r, err := n.newRouter(i, groups)
		if err != nil {
			return err
		}
		n.routers = append(n.routers, r)
	}
	if n.fast.beats != nil {
		goroutines.Go(func() { n.fast.beats.Run(ctx) })
	}
	if err := n.openHolds(); err != nil {
		return err
	}
	n.moves = n.handovers(n.cfg, n.routers)
	n.makeTracker()
	changed, unwatch := host.Watch()
	goroutines.Go(func() {
		defer unwatch()
		for {
			select {
			case <-changed: // an interface may have another MAC address, or be another one
				n.applyARP()
				n.applySpread()
				if n.loop != nil {
					n.loop.Dirty()
				}
				n.tracker.Dirty()
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

// checksumForms are those that the configuration names.
var checksumForms = map[string]vrrp.ChecksumForm{
	"auto": vrrp.ChecksumAuto, "plain": vrrp.ChecksumPlain, "pseudo_header": vrrp.ChecksumPseudo,
}

// routerConfig is an instance as package vrrp knows it.
func (n *node) routerConfig(i config.Instance) vrrp.Config {
	return vrrp.Config{
		Name: i.Name, Interface: i.Interface, VRID: i.VRID, Version: vrrp.Version(i.Version),
		Priority: i.Priority, Interval: i.Interval, Password: i.Password, Addresses: i.Addresses,
		Preempt: i.Preempt, PreemptDelay: i.PreemptDelay, SyncWait: n.syncWait(i), Peers: i.Peers, Source: i.Source, Extra: extra(i),
		Heartbeat: i.Heartbeat.Interval, VirtualMAC: i.VirtualMAC, Checksum: checksumForms[i.Checksum],
	}
}

// newRouter makes an instance. It opens nothing yet. Groups are those that were made
// with it, by name.
func (n *node) newRouter(i config.Instance, groups map[string]*vrrp.Group) (*vrrp.Router, error) {
	if i.Group != "" && groups[i.Group] == nil {
		groups[i.Group] = vrrp.NewGroup(i.Group)
	}
	deps := vrrp.Deps{
		Network: n.host, Addresses: n.addresses, Routes: n.routes, Fence: fenceOf(n.fences, i), MACs: n.macs, Log: n.log,
		OnChange: n.changes(n.hooks(i)), Group: groups[i.Group],
	}
	n.fast.join(i, &deps)
	r, err := vrrp.New(n.routerConfig(i), deps)
	if err != nil {
		if a, ok := deps.Pacer.(advertisements); ok {
			a.Close()
		}
		return nil, fmt.Errorf("vrrp instance %s: %w", i.Name, err)
	}
	if f, ok := deps.Fence.(fence); ok {
		n.fenced[r] = f
	}
	n.fast.note(r, &deps)
	return r, nil
}

// startRouter has an instance run, as soon as it may.
func (n *node) startRouter(i int) {
	r, ready := n.routers[i], append(n.readiness(i), n.ready)
	n.fast.deliver(n.cfg.VRRP[i], r)
	n.goroutines.Go(func() { n.runRouter(n.until, n.inside, r, ready...) })
}

// readiness are the channels that are closed when an instance, and all of its
// group, know what they track.
func (n *node) readiness(i int) (all []<-chan struct{}) {
	group := n.cfg.VRRP[i].Group
	for k, other := range n.cfg.VRRP {
		if k == i || group != "" && other.Group == group {
			all = append(all, n.tracker.Ready(k))
		}
	}
	return all
}

// runRouter runs an instance once the data plane holds the services: a node
// whose tables cannot be written must not take a VIP from one that serves it; and
// once what it tracks is known. How long verdicts may keep that waiting is the
// loop's patience and the tracker's.
func (n *node) runRouter(ctx, inside context.Context, r *vrrp.Router, ready ...<-chan struct{}) {
	for _, c := range ready {
		select {
		case <-c:
		case <-ctx.Done():
			return
		}
	}
	if err := r.Run(inside); err != nil && !errors.Is(err, vrrp.ErrNotRunning) {
		n.log.Error("vrrp instance has ended", "instance", r.Status().Name, "error", err)
	}
}

// release hands all VIPs over, together.
func (n *node) release(ctx context.Context) {
	// A second signal ends the wait.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	n.tellAll(ctx)
	var all sync.WaitGroup
	for _, r := range n.routers {
		all.Go(func() {
			if n.giveUp(ctx, r) {
				n.log.Warn("no peer took over: the VIPs stay, and forwarding goes on, until `sluice detach`", "instance", r.Status().Name)
			}
		})
	}
	all.Wait()
}
