package main

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/vrrp"
)

// loopback is where this node has the VIPs that it serves for others.
const loopback = "lo"

// spreadMetric lets these routes stand beside those of the addresses, which have none,
// and which count.
const spreadMetric = 116

// spreadVIPs are the VIPs of services that all nodes serve.
func spreadVIPs(cfg *config.Config) (all []netip.Addr) {
	for _, s := range cfg.Services {
		if s.Forward != lb.Proxy {
			continue
		}
		for _, f := range s.Addresses {
			if !slices.Contains(all, f.VIP) {
				all = append(all, f.VIP)
			}
		}
	}
	return all
}

// spreadRoutes have this node take packets to these VIPs that another node sends here. An
// address on lo would do the same, and show the VIP in `ip addr` of a node that has it not.
func spreadRoutes(cfg *config.Config) (s vrrp.RouteSet) {
	for _, a := range spreadVIPs(cfg) {
		s.Routes = append(s.Routes, vrrp.Route{
			To: netip.PrefixFrom(a, a.BitLen()), Interface: loopback, Table: unix.RT_TABLE_LOCAL, Metric: spreadMetric, Local: true,
		})
	}
	return s
}

// applySpread makes the routes of spread VIPs, or puts them back. The settings of ARP
// come before.
func (n *node) applySpread() {
	if err := n.routes.Add(spreadRoutes(n.config())); err != nil {
		n.log.Error("other nodes' clients are not served here", "error", err)
	}
}

// openSpread does so at the start, and takes them away at the end: then nobody serves.
func (n *node) openSpread() {
	n.closers = append(n.closers, func() error { return n.routes.Remove(spreadRoutes(n.config())) })
	n.applySpread()
}
