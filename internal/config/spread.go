package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// maxSpread is how many nodes a service may be spread over: this one, and as many as
// the data plane knows (MAX_NODES in bpf/types.h).
const maxSpread = 17

// spreadKeys are what a service of forward: proxy may have beside, where it is spread.
var spreadKeys = []string{"health", "scheduler", "slow_start", "track_window", "drain_timeout"}

// spreadProbe tells whether the proxy of another node takes connections, where the
// service does not say how: a node that is gone shall cost few.
var spreadProbe = lb.Probe{
	Type: lb.ProbeTCP, Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 2, ViaVIP: true,
}

// saysSpread tells whether a service is one of forward: proxy that the data plane has.
func (n *node) saysSpread() bool {
	return n.saysProxy() && slices.ContainsFunc(n.entries, func(e entry) bool {
		return e.key.text == "spread" && e.value.kind == scalar && e.value.text == "true"
	})
}

// spread makes a service of one that is spread over the proxies of nodes: those are
// its backends. Nil: it is not.
func (d *decoder) spread(f fields, p *proxiedDef, nodes []nodeDef, here self, def defaults) *serviceDef {
	if p.spread == nil {
		return nil
	}
	f.defaults = def.service
	s := &serviceDef{f: f, addresses: p.at, backends: &poolDef{whole: true}}
	s.Service = lb.Service{
		Addresses: p.addresses, Protocol: lb.TCP, Forward: lb.Proxy, Quorum: 1, TableSize: lb.DefaultTableSize,
		Scheduler: d.scheduler(f),
	}
	d.times(f, &s.Service)
	s.backends.Probe = d.spreadHealth(f, def)
	switch n := len(nodes); {
	case d.incomplete:
	case n < 2:
		d.errorf(p.spread, "spread: true needs other nodes, and nodes lists none: list this node and the others there, or leave spread out")
	case n > maxSpread:
		d.errorf(p.spread, "spread: true is for %d nodes at most, and nodes lists %d: leave spread out", maxSpread, n)
	}
	for i := range nodes {
		n := &nodes[i]
		server := lb.Server{Address: n.Address, Weight: 1, Node: n.Name, Here: n.Name == here.name}
		s.backends.Servers = append(s.backends.Servers, server)
		s.backends.servers = append(s.backends.servers, serverDef{server, n.at})
	}
	return s
}

// spreadHealth decodes how the proxies of other nodes are probed: at the VIP, as
// clients reach them.
func (d *decoder) spreadHealth(f fields, def defaults) *lb.Probe {
	n := f.own["health"]
	if n == nil {
		p := spreadProbe
		return &p
	}
	p := d.health(n, def.health)
	if p != nil && p.Type != "" && !p.ViaVIP {
		d.errorf(n, "health of a service with spread: true is that of the proxies of other nodes, which are probed through the VIP: it is of type tcp, http or https, without via: direct")
	}
	return p
}

// moves tells whether some instance has a VIP.
func moves(vip netip.Addr, instances []*instanceDef) bool {
	return slices.ContainsFunc(instances, func(i *instanceDef) bool {
		return slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Addr() == vip })
	})
}
