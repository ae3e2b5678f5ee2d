package config

import (
	"fmt"
	"net/netip"
)

// checkDaemonsOwn finds addresses of http and dns where the daemon itself listens for others:
// for monitoring, and for the other nodes. All of it is TCP.
func (d *decoder) checkDaemonsOwn(c *Config, h *httpDef, s *dnsDef, synced bool) {
	type own struct {
		at   netip.AddrPort
		what string
	}
	var all []own
	if c.Admin.Listen.IsValid() {
		all = append(all, own{c.Admin.Listen, fmt.Sprintf("where admin listens (%v): take another port, or write admin: {listen: ...}", c.Admin.Listen)})
	}
	for _, n := range c.Nodes {
		if synced && n.Name == c.Node {
			at := netip.AddrPortFrom(n.Address, c.Sync.Port)
			all = append(all, own{at, fmt.Sprintf("where sync listens (%v): take another port, or write sync: {port: ...}", at)})
		}
	}
	said := map[*node]bool{} // ":80" is two listens
	check := func(a netip.AddrPort, at *node) {
		for _, o := range all {
			if inTheWay(a, o.at) && !said[at] {
				said[at] = true
				d.errorf(at, "listen %v is %s", a, o.what)
			}
		}
	}
	for _, l := range h.listens {
		check(l.Address, l.at)
	}
	for i, a := range s.Listen {
		check(a, s.listens[i])
	}
}

// inTheWay tells whether two sockets of TCP cannot both listen: one address, or one of them all
// addresses. All of one family is all of both for own, as Go listens.
func inTheWay(a, own netip.AddrPort) bool {
	switch {
	case a.Port() != own.Port():
		return false
	case own.Addr().IsUnspecified():
		return true
	}
	return a.Addr() == own.Addr() || a.Addr().Is4() == own.Addr().Is4() && a.Addr().IsUnspecified()
}
