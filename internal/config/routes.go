package config

import (
	"math"
	"net/netip"
)

// A Route comes and goes with the VIPs of an instance, as `ip route` would add and
// delete it.
type Route struct {
	To        netip.Prefix
	Via       netip.Addr // invalid: To is on the link of Interface
	Interface string     // "": the one that leads to Via
	Source    netip.Addr // which address the node's own packets get; invalid: the kernel chooses
	Table     uint32
	Metric    uint32 // 0: the kernel's default
}

// A Rule says which table the routes of certain packets are in, as `ip rule` would.
// It comes and goes with the VIPs of an instance.
type Rule struct {
	V6        bool
	From, To  netip.Prefix // invalid: any
	Interface string       // where packets come in; "": anywhere
	Table     uint32
	Priority  uint32
}

var routeSchema = schema{
	what: "a route",
	keys: []string{"to", "via", "interface", "source", "table", "metric"},
	hints: map[string]string{
		"dev": "write interface: NAME", "src": "write source: ADDRESS", "gateway": "write via: ADDRESS", "gw": "write via: ADDRESS",
		"dst": "write to: PREFIX", "priority": "a route has a metric",
	},
}

var ruleSchema = schema{
	what: "a rule",
	keys: []string{"from", "to", "interface", "table", "priority"},
	hints: map[string]string{
		"iif": "write interface: NAME", "dev": "write interface: NAME", "pref": "write priority: NUMBER", "lookup": "write table: NUMBER",
	},
}

const (
	mainTable = 254
	// rulePriority is that of a rule which has none: before the kernel's own for
	// the main table. It is a fixed one, since the kernel tells two rules that are
	// otherwise equal by it.
	rulePriority = 32000
)

// routes decodes what comes and goes with the VIPs beside them.
func (d *decoder) routes(f fields, i *instanceDef) {
	if n := f.own["routes"]; n != nil {
		items, _ := d.mappings(n, "routes")
		for _, item := range items {
			if r, ok := d.route(item, i); ok {
				i.Routes, i.routesAt = append(i.Routes, r), append(i.routesAt, item)
			}
		}
	}
	if n := f.own["rules"]; n != nil {
		items, _ := d.mappings(n, "rules")
		for _, item := range items {
			if r, ok := d.routeRule(item, i); ok {
				i.Rules, i.rulesAt = append(i.Rules, r), append(i.rulesAt, item)
			}
		}
	}
}

// v6 is the family of the instance.
func (i *instanceDef) v6() bool { return len(i.Addresses) > 0 && i.Addresses[0].Addr().Is6() }

func (d *decoder) route(item *node, i *instanceDef) (r Route, ok bool) {
	f, ok := d.fields(item, &routeSchema)
	if !ok {
		return r, false
	}
	before := len(d.errs)
	if n := f.need("to"); n != nil {
		r.To, _ = d.destination(n, "to", i)
	}
	if n := f.own["via"]; n != nil {
		r.Via, _ = d.gateway(n)
		d.sameFamily(n, "via", r.Via, i)
	}
	if n := f.own["source"]; n != nil {
		r.Source, _ = d.address(n, "source")
		d.sameFamily(n, "source", r.Source, i)
	}
	if n := f.own["interface"]; n != nil {
		r.Interface, _ = d.interfaceName(n, "interface")
	} else if f.own["via"] == nil || r.Via.IsLinkLocalUnicast() {
		r.Interface = i.Interface
	}
	r.Table = mainTable
	if n := f.own["table"]; n != nil {
		r.Table = d.number32(n, "table", 1)
	}
	if n := f.own["metric"]; n != nil {
		r.Metric = d.number32(n, "metric", 0)
	}
	return r, len(d.errs) == before
}

func (d *decoder) routeRule(item *node, i *instanceDef) (r Rule, ok bool) {
	f, ok := d.fields(item, &ruleSchema)
	if !ok {
		return r, false
	}
	before := len(d.errs)
	r.V6, r.Priority = i.v6(), rulePriority
	if n := f.own["from"]; n != nil {
		r.From, _ = d.destination(n, "from", i)
	}
	if n := f.own["to"]; n != nil {
		r.To, _ = d.destination(n, "to", i)
	}
	if n := f.own["interface"]; n != nil {
		r.Interface, _ = d.interfaceName(n, "interface")
	}
	if f.own["from"] == nil && f.own["to"] == nil && f.own["interface"] == nil {
		d.errorf(item, "a rule is for certain packets: say which, by from, to or interface")
	}
	if n := f.need("table"); n != nil {
		r.Table = d.number32(n, "table", 1)
	}
	if n := f.own["priority"]; n != nil {
		r.Priority = d.number32(n, "priority", 1)
	}
	return r, len(d.errs) == before
}

// gateway decodes the address of a router; it may be a link-local one.
func (d *decoder) gateway(n *node) (netip.Addr, bool) {
	s, ok := d.addressText(n, "via", "192.0.2.254")
	if !ok {
		return netip.Addr{}, false
	}
	a, problem := parseVIP(s)
	if problem != "" {
		d.errorf(n, "%s", problem)
	}
	return a, problem == ""
}

// destination decodes a prefix of the instance's family, or "default".
func (d *decoder) destination(n *node, what string, i *instanceDef) (netip.Prefix, bool) {
	if n.kind == scalar && n.text == "default" {
		if i.v6() {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	p, ok := d.sources(n, what)
	return p, ok && d.sameFamily(n, what, p.Addr(), i)
}

// sameFamily demands an address of the instance's family. An invalid one is
// reported already.
func (d *decoder) sameFamily(n *node, what string, a netip.Addr, i *instanceDef) bool {
	if !a.IsValid() || len(i.Addresses) == 0 || a.Is6() == i.v6() {
		return true
	}
	d.errorf(n, "%s is %s, and the addresses of the instance are %s", what, familyOf(a), familyOf(i.Addresses[0].Addr()))
	return false
}

func (d *decoder) number32(n *node, what string, least int) uint32 {
	v, _ := d.integer(n, what, least, math.MaxUint32)
	return uint32(v)
}

// checkRoutes finds routes and rules that are listed twice: one instance would
// take the other one's away.
func (d *decoder) checkRoutes(instances []*instanceDef) {
	routes, rules := map[Route]*node{}, map[Rule]*node{}
	for _, i := range instances {
		for k, r := range i.Routes {
			r.Via, r.Interface, r.Source = netip.Addr{}, "", netip.Addr{} // the kernel has one of the others
			if first := routes[r]; first != nil {
				d.errorf(i.routesAt[k], "duplicate route to %v in table %d: %s", r.To, r.Table, first.elsewhere(i.routesAt[k]))
				continue
			}
			routes[r] = i.routesAt[k]
		}
		for k, r := range i.Rules {
			if first := rules[r]; first != nil {
				d.errorf(i.rulesAt[k], "duplicate rule: %s", first.elsewhere(i.rulesAt[k]))
				continue
			}
			rules[r] = i.rulesAt[k]
		}
	}
}
