package main

import (
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/vrrp"
)

// extra is what comes and goes with the VIPs of an instance.
func extra(i config.Instance) (s vrrp.RouteSet) {
	for _, r := range i.Routes {
		s.Routes = append(s.Routes, vrrp.Route{
			To: r.To, Via: r.Via, Interface: r.Interface, Source: r.Source, Table: r.Table, Metric: r.Metric,
		})
	}
	for _, r := range i.Rules {
		s.Rules = append(s.Rules, vrrp.Rule{
			V6: r.V6, From: r.From, To: r.To, Interface: r.Interface, Table: r.Table, Priority: r.Priority,
		})
	}
	return s
}

// routesOf are those that a configuration may bring along.
func routesOf(cfg *config.Config) (all vrrp.RouteSet) {
	for _, i := range cfg.VRRP {
		s := extra(i)
		all.Routes, all.Rules = append(all.Routes, s.Routes...), append(all.Rules, s.Rules...)
	}
	all.Routes = append(all.Routes, spreadRoutes(cfg).Routes...)
	return all
}

// openRoutes opens the routes that come and go with VIPs, and clears away what
// earlier configurations have left.
func (n *node) openRoutes() (err error) {
	if n.routes, err = vrrp.OpenRoutes(n.host, n.runDir, n.log); err != nil {
		return err
	}
	return n.routes.Forget(routesOf(n.cfg))
}
