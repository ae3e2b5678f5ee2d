package config

import (
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What the addresses are taken from that probes through VIPs dial: blocks for
// tests of network devices (RFC 2544, RFC 5180), which no network routes.
var (
	defaultProbeAddresses4 = netip.MustParsePrefix("198.18.0.0/16")
	defaultProbeAddresses6 = netip.MustParsePrefix("2001:2::/64")
)

// Bounds of these prefixes' lengths: a whole block, and room for one address at
// least beside the first, which stays unused.
const (
	minProbeBits4 = 8
	maxProbeBits4 = 31
	minProbeBits6 = 32
	maxProbeBits6 = 127
)

// probeAddresses decodes what the addresses of probes are taken from: one prefix
// of each family at most.
func (d *decoder) probeAddresses(n *node, dp *Datapath) {
	items, ok := d.list(n, "probe_addresses")
	if !ok {
		return
	}
	seen := map[bool]bool{}
	for _, item := range items {
		p, ok := d.sources(item, "probe_addresses")
		if !ok {
			continue
		}
		into, least, most := &dp.ProbeAddresses4, minProbeBits4, maxProbeBits4
		if p.Addr().Is6() {
			into, least, most = &dp.ProbeAddresses6, minProbeBits6, maxProbeBits6
		}
		problem := hostProblem(p.Addr())
		switch {
		case seen[p.Addr().Is4()]:
			d.errorf(item, "probe_addresses has two %s prefixes: one is enough", familyOf(p.Addr()))
		case p.Bits() < least || p.Bits() > most:
			d.errorf(item, "the %s prefix of probe_addresses must have a length from %d to %d, not %v", familyOf(p.Addr()), least, most, p)
		case problem != "":
			d.errorf(item, "probe_addresses %v cannot be dialled: %s", p, problem)
		default:
			*into = p
		}
		seen[p.Addr().Is4()] = true
	}
}

// viaVIP returns where a health section itself says that probes go through the
// VIP, and they can; nil: it does not.
func viaVIP(health *node, p *lb.Probe) *node {
	if health == nil || health.kind != mapping || p == nil || !p.ViaVIP {
		return nil
	}
	for _, e := range health.entries {
		if e.key.text == "via" && e.value.kind == scalar && e.value.text == "vip" {
			return e.value
		}
	}
	return nil
}

// throughVIP tells whether the servers of a service are probed through its VIPs.
func (s *serviceDef) throughVIP() bool {
	return s.backends != nil && s.backends.Probe != nil && s.backends.Probe.ViaVIP && (s.Forward == lb.DSR || s.Forward == lb.Tunnel || s.Forward == lb.Proxy)
}

// checkVia demands of a pool whose probes are to go through the VIP that there is
// a service where they can.
func (d *decoder) checkVia(services []*serviceDef) {
	first := map[*poolDef]*serviceDef{}
	through := map[*poolDef]bool{}
	for _, s := range services {
		if s.backends == nil || s.backends.viaAt == nil || s.Forward == 0 {
			continue
		}
		if first[s.backends] == nil {
			first[s.backends] = s
		}
		through[s.backends] = through[s.backends] || s.throughVIP()
	}
	for _, s := range services {
		if first[s.backends] == s && !through[s.backends] {
			d.errorf(s.backends.viaAt, "via: vip is for services with forward: dsr or tunnel; in service %q a server does not know the VIP", s.Name)
		}
	}
}

// checkProbeAddresses looks whether the addresses that probes dial are somebody's,
// and enough.
func (d *decoder) checkProbeAddresses(c *Config, services []*serviceDef, instances []*instanceDef) {
	at := slices.IndexFunc(services, (*serviceDef).throughVIP)
	if at < 0 {
		return
	}
	prefixes := []netip.Prefix{c.Datapath.ProbeAddresses4, c.Datapath.ProbeAddresses6}
	check := func(a netip.Addr, what string, at *node) {
		for _, p := range prefixes {
			if p.Contains(a) {
				d.errorf(at, "%s %v is in %v, which the addresses are taken from that probes dial: set probe_addresses in datapath to a prefix that nobody uses", what, a, p)
			}
		}
	}
	paths := map[lb.ProbePath]bool{}
	for _, s := range services {
		for i, f := range s.Addresses {
			check(f.VIP, "VIP", s.addresses[i])
		}
		for i, a := range s.SourceAddresses {
			if i < len(s.sources) {
				check(a, "source address", s.sourceAt(i))
			}
		}
		if s.backends == nil {
			continue
		}
		for _, server := range s.backends.servers {
			check(server.Address, "server", server.at)
			for _, vip := range s.vips() {
				if s.throughVIP() {
					paths[lb.ProbePath{VIP: vip, Server: server.Address, Forward: s.Forward}] = true
				}
			}
		}
	}
	for _, i := range instances {
		for k, p := range i.Addresses {
			check(p.Addr(), "VIP", i.addresses[k])
		}
	}
	for _, n := range c.Nodes {
		check(n.Address, "node", services[at].at())
	}
	for _, p := range prefixes {
		count := 0
		for path := range paths {
			if path.VIP.Is4() == p.Addr().Is4() {
				count++
			}
		}
		if host := p.Addr().BitLen() - p.Bits(); host < 31 && count > 1<<host-1 {
			d.errorf(services[at].at(), "%v of probe_addresses in datapath has room for %d addresses, and %d are needed: one for each VIP at each server", p, 1<<host-1, count)
		}
	}
}
