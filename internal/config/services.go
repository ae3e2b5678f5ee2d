package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A serviceDef is a service with the places that later checks point at.
type serviceDef struct {
	lb.Service
	nameAt    *node
	addresses []*node // parallel to Addresses
	sources   []*node // parallel to SourceAddresses where these are set
	backends  *poolDef
	f         fields
}

var servicesLater = []string{"affinity", "slow_start", "track_window", "drain_timeout", "allow", "deny"}

var serviceSchema = schema{
	what: "a service",
	keys: []string{
		"name", "address", "protocol", "forward", "source_nat", "source_addresses", "scheduler",
		"pool", "backends", "health", "quorum", "table_size",
	},
	later: servicesLater,
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
		"protocol", "forward", "source_nat", "source_addresses", "scheduler", "pool", "quorum", "table_size",
	},
	later: servicesLater,
	hints: map[string]string{
		"name":     "each service has its own",
		"address":  "each service has its own",
		"backends": "name a pool",
		"health":   "it stands beside \"service\" in defaults",
	},
}

// Bounds of a table.
const (
	minTableSize = 2
	maxTableSize = 1 << 20
)

// services decodes the section and resolves the pools.
func (d *decoder) services(items []*node, pools []*poolDef, def defaults) []*serviceDef {
	byName := map[string]*poolDef{}
	for _, p := range pools {
		byName[p.Name] = p
	}
	var all []*serviceDef
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &serviceSchema)
		if !ok {
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
	return all
}

func (d *decoder) service(f fields, pools map[string]*poolDef, def defaults) *serviceDef {
	s := &serviceDef{f: f}
	if n := f.need("address"); n != nil {
		d.serviceAddresses(n, s)
	}
	s.sources = d.serviceSettings(f, &s.Service)
	if s.Forward == lb.NAT && s.SourceAddresses == nil {
		for _, ap := range s.Addresses {
			if !slices.Contains(s.SourceAddresses, ap.Addr()) {
				s.SourceAddresses = append(s.SourceAddresses, ap.Addr())
			}
		}
	}
	backends, pool := f.own["backends"], f.own["pool"]
	switch {
	case backends != nil && pool != nil:
		d.errorf(f.keys["backends"], "pool and backends are both set: a service has one or the other")
		d.servers(backends, "backends", &poolDef{})
	case backends != nil:
		s.backends = &poolDef{}
		s.backends.Probe = d.health(f.own["health"], def.health)
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
		if ap, ok := d.endpoint(item, "address", true); ok {
			s.Addresses = append(s.Addresses, lb.FrontendOf(ap))
			s.addresses = append(s.addresses, item)
		}
	}
}

// serviceSettings decodes the keys that may have defaults. It returns the
// places of the source addresses.
func (d *decoder) serviceSettings(f fields, s *lb.Service) (sources []*node) {
	s.Protocol, s.Forward, s.Quorum, s.TableSize = lb.TCP, lb.NAT, 1, lb.DefaultTableSize
	if n := f.get("protocol"); n != nil {
		d.oneOf(n, "protocol", []string{"tcp"}, []string{"udp"})
	}
	if n := f.get("forward"); n != nil {
		switch w, _ := d.oneOf(n, "forward", []string{"nat", "dsr"}, []string{"tunnel", "proxy"}); w {
		case "dsr":
			s.Forward = lb.DSR
		case "":
			s.Forward = 0 // not known: nothing that depends on it is checked
		}
	}
	if n := f.get("scheduler"); n != nil {
		d.oneOf(n, "scheduler", []string{"maglev"}, []string{"source_hash"})
	}
	if n := f.get("source_nat"); n != nil {
		on, ok := d.boolean(n, "source_nat")
		switch {
		case !ok:
		case !on:
			d.errorf(n, "source_nat: false is not supported yet")
		case s.Forward == lb.DSR && f.own["source_nat"] != nil:
			d.errorf(n, "source_nat is for forward: nat; with dsr the backend sees the client's address")
		}
	}
	if n := f.get("source_addresses"); n != nil {
		sources = d.sourceAddresses(n, s, f.own["source_addresses"] != nil)
	}
	if n := f.get("quorum"); n != nil {
		if i, ok := d.integer(n, "quorum", 0, maxWeight); ok {
			s.Quorum = i
		}
	}
	if n := f.get("table_size"); n != nil {
		if i, ok := d.integer(n, "table_size", minTableSize, maxTableSize); ok {
			if !isPrime(i) {
				d.errorf(n, "table_size must be a prime, not %d: take %d", i, nextPrime(i))
			} else {
				s.TableSize = i
			}
		}
	}
	return sources
}

func (d *decoder) sourceAddresses(n *node, s *lb.Service, own bool) (places []*node) {
	items, ok := d.list(n, "source_addresses")
	if !ok {
		return nil
	}
	if s.Forward == lb.DSR {
		if own && len(items) > 0 {
			d.errorf(n, "source_addresses is for forward: nat; with dsr the backend sees the client's address")
		}
		return nil
	}
	for _, item := range items {
		a, ok := d.address(item, "source address")
		if !ok {
			continue
		}
		if slices.Contains(s.SourceAddresses, a) {
			d.errorf(item, "duplicate source address %v", a)
			continue
		}
		s.SourceAddresses = append(s.SourceAddresses, a)
		places = append(places, item)
	}
	return places
}

func isPrime(n int) bool {
	for i := 2; i*i <= n; i++ {
		if n%i == 0 {
			return false
		}
	}
	return n >= 2
}

// nextPrime returns the least prime above n, or the greatest one that a table
// may have.
func nextPrime(n int) int {
	for p := n + 1; p <= maxTableSize; p++ {
		if isPrime(p) {
			return p
		}
	}
	for p := n - 1; ; p-- {
		if isPrime(p) {
			return p
		}
	}
}
