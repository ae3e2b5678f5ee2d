package config

import (
	"github.com/sluice-lb/sluice/internal/lb"
)

// decode turns the document into a Config and reports every mistake to d. The
// result is of use only if there is none.
func (doc *document) decode(d *decoder, files fileSystem, opts Options) *Config {
	c := &Config{}
	d.files = files
	def := d.defaults(doc.set["defaults"])

	nodes := d.nodes(doc.items["nodes"])
	self := d.self(doc, nodes, opts)
	c.Node, c.Nodes = self.name, make([]Node, 0, len(nodes))
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, n.Node)
	}
	c.Datapath = d.datapath(doc, nodes, self)
	d.share(c, doc, self)

	pools := d.pools(doc.items["pools"], def)
	for _, p := range pools {
		c.Pools = append(c.Pools, p.Pool)
	}
	services, proxied := d.services(doc.items["services"], pools, nodes, self, def)
	for _, s := range services {
		c.Services = append(c.Services, s.Service)
	}
	c.Checks = d.checks(doc.items["checks"])
	d.resolveHealth(c.Checks)
	instances := d.instances(doc.items["vrrp"], files, nodes, self)
	d.syncWaits(doc.set["sync"], instances)
	for _, i := range instances {
		c.VRRP = append(c.VRRP, i.Instance)
	}
	c.Sync = d.sync(doc.set["sync"], files)
	h := d.http(doc.set["http"], files, pools, def)
	d.resolveTracked(instances, c.Checks, services, wholeServices(doc.items["services"], services, proxied), proxied, h)
	h.shareKeys(c.Sync)
	c.HTTP = h.HTTP
	names := d.dns(doc.set["dns"], pools, usersOf(services, h))
	c.DNS = names.DNS
	held := d.crossCheck(c, services, instances, doc.set["sync"])
	d.checkProxied(h, proxied, instances, held)
	d.checkDNSListens(names, h, instances, held)

	c.Admin = d.admin(doc.set["admin"])
	d.checkDaemonsOwn(c, h, names, doc.set["sync"] != nil)
	if opts.Fits != nil && len(d.errs) == 0 {
		for _, m := range opts.Fits(c.Services) {
			d.errorf(services[m.Service].at(), "%s", m.Message)
		}
	}
	return c
}

// defaults is the section of that name: what fills in for keys that are not
// set.
type defaults struct {
	service map[string]*node
	health  map[string]*node
}

var defaultsSchema = schema{what: "defaults", keys: []string{"service", "health"}}

// defaults decodes the section. What it holds is checked even if nothing uses
// it.
func (d *decoder) defaults(n *node) defaults {
	var def defaults
	if n == nil {
		return def
	}
	f, ok := d.fields(n, &defaultsSchema)
	if !ok {
		return def
	}
	if s := f.own["service"]; s != nil {
		if sf, ok := d.fields(s, &serviceDefaultsSchema); ok {
			sf.partial, def.service = true, sf.own
			d.serviceSettings(sf, &lb.Service{})
			if p := sf.own["pool"]; p != nil {
				d.name(p, "pool")
			}
		}
	}
	if h := f.own["health"]; h != nil {
		if hf, ok := d.fields(h, &healthSchema); ok {
			if at := hf.keys["check"]; at != nil {
				d.errorf(at, "check is no default: write health: {check: NAME} in each pool that it is for")
				delete(hf.own, "check")
			}
			hf.partial, def.health = true, hf.own
			d.probeSettings(hf)
		}
	}
	return def
}
