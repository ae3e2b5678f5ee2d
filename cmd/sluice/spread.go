package main

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
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

// How long a stop waits until other nodes serve what is new: in all, and for what they
// have decided to be in force.
const (
	leaveSpreadWait  = 5 * time.Second
	leaveSpreadGrace = 300 * time.Millisecond
)

// leaveSpread has the other nodes serve what is new of spread services, before this one
// stops, and leave to it what it serves. Only nodes that share their state can be told.
func (n *node) leaveSpread() {
	if n.sharing == nil || len(spreadVIPs(n.config())) == 0 || !(control.Stream{Node: n.sharing.stream}).Connected() {
		return
	}
	within := n.stopWait()
	n.loop.NodeStops(n.config().Node, within)
	n.sharing.state.Stop(within)
	over := time.Now().Add(leaveSpreadWait)
	for !n.hasLeft() {
		if time.Now().After(over) {
			n.log.Warn("other nodes do not serve what is new yet: connections that are opened now may be refused", "waited", leaveSpreadWait)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(leaveSpreadGrace)
}

// hasLeft tells whether nodes agree that no new connection of a spread service comes to
// this node, as far as another one could have it. On a Backup the table in force is that of
// the Active node, which has it in force a moment later.
func (n *node) hasLeft() bool {
	here := map[string]netip.Addr{}
	for _, s := range n.config().Services {
		for _, server := range s.Pool.Servers {
			if server.Here {
				here[s.Name] = server.Address
			}
		}
	}
	return !slices.ContainsFunc(n.tables.TableStates(), func(t lb.TableState) bool {
		own, spread := here[t.Service]
		return spread && (owns(t, own) || !n.loop.Settled(t.Service))
	})
}

// owns tells whether new connections come to the node of an address by a table, though
// another one could have them.
func owns(t lb.TableState, node netip.Addr) bool {
	mine, others := uint16(0), false
	for i, b := range t.Backends {
		if b.Address.Addr() == node {
			mine = uint16(i + 1)
		} else {
			others = others || !b.Failed
		}
	}
	return mine > 0 && others && slices.ContainsFunc(t.Slots, func(s lb.Slot) bool { return s.Owner == mine })
}

// finishSpread lets the proxy end what it serves while packets still come: from the node
// that has the VIP now.
func (n *node) finishSpread() {
	if len(spreadVIPs(n.config())) > 0 {
		n.closeHTTP()
	}
}
