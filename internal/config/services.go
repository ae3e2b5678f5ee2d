package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A serviceDef is a service with the places that later checks point at.
type serviceDef struct {
	lb.Service
	nameAt    *node
	addresses []*node // parallel to Addresses
	sources   []*node // parallel to SourceAddresses where the service sets these itself
	backends  *poolDef
	f         fields
}

// vips returns the addresses of the service without their ports, each once.
func (s *serviceDef) vips() []netip.Addr {
	var all []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, f := range s.Addresses {
		if !seen[f.VIP] {
			seen[f.VIP] = true
			all = append(all, f.VIP)
		}
	}
	return all
}

// onePort tells whether the service has one port, on however many VIPs, and
// which.
func (s *serviceDef) onePort() (uint16, bool) {
	if len(s.Addresses) == 0 {
		return 0, false
	}
	port := s.Addresses[0].Port()
	for _, f := range s.Addresses {
		if f.Ports.Count() != 1 || f.Port() != port {
			return 0, false
		}
	}
	return port, true
}

// sourceAt is where source address i stands; for one that is a VIP by default,
// where the service has its name.
func (s *serviceDef) sourceAt(i int) *node {
	if i < len(s.sources) {
		return s.sources[i]
	}
	return s.at()
}

// at is where the service has its name, or where it starts.
func (s *serviceDef) at() *node {
	if s.nameAt != nil {
		return s.nameAt
	}
	return s.f.n
}

var serviceSchema = schema{
	what: "a service",
	keys: []string{
		"name", "address", "protocol", "forward", "source_nat", "source_addresses", "scheduler", "affinity",
		"pool", "backends", "health", "quorum", "table_size", "slow_start", "track_window", "drain_timeout",
		"allow", "deny", "source_limit", "spread",
	},
	hints: map[string]string{
		"servers":     "in a service they are called \"backends\"",
		"addresses":   "write \"address\": it takes one or a list",
		"port":        "write it with the address: \"192.0.2.100:80\"",
		"lb_algo":     "keepalived's lb_algo is \"scheduler\"",
		"lb_kind":     "keepalived's lb_kind is \"forward\"",
		"real_server": "servers are listed under \"backends\" or in a pool",
	},
}

var serviceDefaultsSchema = schema{
	what: "the defaults of services",
	keys: []string{
		"protocol", "forward", "source_nat", "source_addresses", "scheduler", "affinity",
		"pool", "quorum", "table_size", "slow_start", "track_window", "drain_timeout",
		"allow", "deny", "source_limit",
	},
	hints: map[string]string{
		"name":     "each service has its own",
		"address":  "each service has its own",
		"backends": "name a pool",
		"health":   "it stands beside \"service\" in defaults",
	},
}

// services decodes the section and resolves the pools.
// Those of forward: proxy are told apart; one that is spread over nodes is both.
func (d *decoder) services(items []*node, pools []*poolDef, nodes []nodeDef, here self, def defaults) (all []*serviceDef, proxied []*proxiedDef) {
	byName := map[string]*poolDef{}
	for _, p := range pools {
		byName[p.Name] = p
	}
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &serviceSchema)
		if !ok {
			continue
		}
		if item.saysProxy() {
			p := d.proxied(f)
			s := d.spread(f, p, nodes, here, def)
			if n := f.need("name"); n != nil {
				if name, ok := d.name(n, "service name"); ok {
					p.name = name
					if first, dup := names[name]; dup {
						d.duplicate(n, item, first, "service")
					} else {
						names[name] = n
					}
					if s != nil {
						s.Name, s.nameAt = name, n
						s.Pool = s.backends.Pool
						s.Pool.Name = name
					}
				}
			}
			if s != nil {
				all = append(all, s)
			}
			proxied = append(proxied, p)
			continue
		}
		f.defaults = def.service
		s := d.service(f, byName, def)
		if n := f.need("name"); n != nil {
			if name, ok := d.name(n, "service name"); ok {
				s.Name, s.nameAt = name, n
				if first, dup := names[name]; dup {
					d.duplicate(n, item, first, "service")
				} else {
					names[name] = n
				}
				if p := byName[name]; p != nil && f.own["backends"] != nil {
					d.errorf(n, "service %q has backends of its own and the name of a pool: commands could not tell them apart", name)
				}
			}
		}
		if s.backends != nil {
			s.Pool = s.backends.Pool
			if s.backends.nameAt == nil {
				s.Pool.Name = s.Name
			}
			d.checkBackends(s)
		}
		all = append(all, s)
	}
	return all, proxied
}

func (d *decoder) service(f fields, pools map[string]*poolDef, def defaults) *serviceDef {
	s := &serviceDef{f: f}
	if n := f.need("address"); n != nil {
		d.serviceAddresses(n, s)
	}
	s.sources = d.serviceSettings(f, &s.Service)
	if f.own["spread"] != nil {
		d.errorf(f.keys["spread"], "spread is for forward: proxy, whose packets the proxies of all nodes may serve: write that, or leave spread out")
	}
	if s.Forward == lb.NAT && s.SourceAddresses == nil {
		s.SourceAddresses = s.vips()
	}
	backends, pool := f.own["backends"], f.own["pool"]
	switch {
	case backends != nil && pool != nil:
		d.errorf(f.keys["backends"], "pool and backends are both set: a service has one or the other")
		d.servers(backends, "backends", &poolDef{})
	case backends != nil:
		s.backends = &poolDef{}
		s.backends.Probe = d.health(f.own["health"], def.health)
		s.backends.viaAt = viaVIP(f.own["health"], s.backends.Probe)
		d.servers(backends, "backends", s.backends)
		return s
	default:
		if pool == nil {
			pool = f.get("pool")
		}
		s.backends = d.poolOf(f, pool, pools)
	}
	if n := f.own["health"]; n != nil {
		d.errorf(f.keys["health"], "health belongs into the pool: a service has it only with backends of its own")
		d.health(n, def.health)
	}
	return s
}

// poolOf resolves a reference to a pool.
func (d *decoder) poolOf(f fields, n *node, pools map[string]*poolDef) *poolDef {
	if n == nil {
		d.errorf(f.n, "missing key \"pool\": a service needs it, or \"backends\"")
		return nil
	}
	name, ok := d.text(n, "pool")
	if !ok {
		return nil
	}
	if p := pools[name]; p != nil {
		return p
	}
	if d.incomplete {
		return nil
	}
	hint := ""
	if near := nearest(name, slices.Sorted(maps.Keys(pools))); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	d.errorf(n, "there is no pool %q%s", name, hint)
	return nil
}

func (d *decoder) serviceAddresses(n *node, s *serviceDef) {
	items := []*node{n}
	if n.kind == list {
		items = n.items
		if len(items) == 0 {
			d.errorf(n, "address is empty: a service needs one at least")
			return
		}
	}
	for _, item := range items {
		if f, ok := d.frontend(item, "address"); ok {
			s.Addresses = append(s.Addresses, f)
			s.addresses = append(s.addresses, item)
		}
	}
}
