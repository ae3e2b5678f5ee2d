package config

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A poolDef is a pool with the places that later checks point at.
type poolDef struct {
	lb.Pool
	nameAt  *node
	viaAt   *node // where its health says via: vip; nil: it does not
	own     bool  // the servers are the node's own business: they may be on its loopback
	servers []serverDef
	whole   bool // false: servers are missing from it because of a mistake
}

type serverDef struct {
	lb.Server
	at *node // its address
}

// endpoint is the address and port of the server in a service with this port.
func (s serverDef) endpoint(port uint16) netip.AddrPort {
	if s.Port != 0 {
		port = s.Port
	}
	return netip.AddrPortFrom(s.Address, port)
}

var poolSchema = schema{
	what: "a pool",
	keys: []string{"name", "health", "servers"},
	hints: map[string]string{
		"backends": "in a pool they are called \"servers\"",
	},
}

var serverSchema = schema{
	what: "a server",
	keys: []string{"address", "weight", "backup"},
	hints: map[string]string{
		"port":        "write it with the address: \"192.0.2.1:80\"",
		"real_server": "write \"address\"",
		"down":        "write weight: 0",
		"max_conns":   ofAllServers, "max_fails": ofAllServers, "fail_timeout": ofAllServers, "slow_start": ofAllServers,
	},
}

// ofAllServers is what nginx says of each server.
const ofAllServers = "it stands beside the servers, and is for all of them"

// maxWeight bounds a server's weight.
const maxWeight = 65535

// pools decodes the section. A pool whose name cannot be read is left out.
func (d *decoder) pools(items []*node, def defaults) []*poolDef {
	var all []*poolDef
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &poolSchema)
		if !ok {
			d.incomplete = true
			continue
		}
		p := &poolDef{}
		p.Probe = d.health(f.own["health"], def.health)
		p.viaAt = viaVIP(f.own["health"], p.Probe)
		if n := f.need("servers"); n != nil {
			d.servers(n, "servers", p)
		}
		n := f.need("name")
		if n == nil {
			d.incomplete = true
			continue
		}
		name, ok := d.name(n, "pool name")
		if !ok {
			d.incomplete = true
			continue
		}
		if first, dup := names[name]; dup {
			d.duplicate(n, item, first, "pool")
			continue
		}
		names[name] = n
		p.Name, p.nameAt = name, n
		all = append(all, p)
	}
	return all
}

// servers decodes the members of a pool into p.
func (d *decoder) servers(n *node, what string, p *poolDef) {
	items, ok := d.mappings(n, what)
	if !ok {
		return
	}
	if len(items) == 0 {
		d.errorf(n, "%s is empty: name at least one", what)
		return
	}
	p.whole = true
	host := hostParser(parseAddr)
	if p.own {
		host = parseOwnAddr
	}
	seen := map[netip.AddrPort]*node{}
	for _, item := range items {
		if _, problem := parseEndpoint(item.text, host); item.kind == scalar && problem == "" {
			d.errorf(item, "a server must be a mapping: write {address: %s}", item.written())
			p.whole = false
			continue
		}
		f, ok := d.fields(item, &serverSchema)
		if !ok {
			p.whole = false
			continue
		}
		s := serverDef{Server: lb.Server{Weight: 1}}
		if w := f.own["weight"]; w != nil {
			if i, ok := d.integer(w, "weight", 0, maxWeight); ok {
				s.Weight = i
			}
		}
		if b := f.own["backup"]; b != nil {
			s.Backup, _ = d.boolean(b, "backup")
		}
		s.at = f.need("address")
		if s.at == nil {
			p.whole = false
			continue
		}
		ap, ok := d.endpoint(s.at, "address", host)
		if !ok {
			p.whole = false
			continue
		}
		if first, dup := seen[ap]; dup {
			d.duplicate(s.at, item, first, "server")
			continue
		}
		seen[ap] = s.at
		s.Address, s.Port = ap.Addr(), ap.Port()
		p.servers = append(p.servers, s)
		p.Servers = append(p.Servers, s.Server)
	}
}
