package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// checkBackends looks at the servers of a service in its light: its ports, its
// forwarding mode, the size of its table.
func (d *decoder) checkBackends(s *serviceDef) {
	d.checkFamilies(s)
	port, one := s.onePort()
	s.KeepsPorts = s.Forward == lb.NAT && len(s.Addresses) > 0 && !one &&
		!slices.ContainsFunc(s.backends.servers, func(server serverDef) bool { return server.Port != 0 })
	weighted := 0
	resolved := map[netip.AddrPort]*node{}
	for _, server := range s.backends.servers {
		if server.Weight > 0 {
			weighted++
		}
		d.checkPort(s, server, one)
		if !one {
			continue
		}
		e := server.endpoint(port)
		if first, dup := resolved[e]; dup {
			d.errorf(server.at, "duplicate server %v for service %q, which has port %d: %s", e, s.Name, port, first.elsewhere(server.at))
		} else {
			resolved[e] = server.at
		}
	}
	d.checkProbe(s)
	at := s.f.own["table_size"]
	if at == nil {
		at = s.f.n
	}
	if weighted > s.TableSize {
		d.errorf(at, "%d backends are more than the %d slots of the table: raise table_size", weighted, s.TableSize)
	}
	if n := len(s.backends.servers); s.backends.whole && s.Quorum > n {
		at := s.f.get("quorum")
		if at == nil {
			at = s.f.n
		}
		d.errorf(at, "quorum %d can never be met: the number of servers of service %q is %d", s.Quorum, s.Name, n)
	}
}

// crossCheck looks for what is wrong between services and VRRP instances. It returns the
// ports that services hold.
func (d *decoder) crossCheck(c *Config, services []*serviceDef, instances []*instanceDef, sync *node) map[listening][]holding {
	vips := map[netip.Addr]string{} // what each VIP is, for a message
	held := d.checkFrontends(services, vips)
	d.checkInstances(instances, vips, sync)
	d.checkRoutes(instances)
	d.checkVirtual(services, instances)
	d.checkSourcePorts(c, services, held)
	d.checkReplies(services)
	d.checkKeptPorts(services)
	for _, s := range services {
		for _, a := range s.SourceAddresses {
			if _, taken := vips[a]; !taken {
				vips[a] = fmt.Sprintf("a source address of service %q", s.Name)
			}
		}
	}
	d.checkLoopback(services)
	d.checkVia(services)
	d.checkProbeAddresses(c, services, instances)
	for _, s := range services {
		if s.backends == nil {
			continue
		}
		for _, server := range s.backends.servers {
			if what, ok := vips[server.Address]; ok {
				d.errorf(server.at, "server %v is %s: its traffic would go round in a circle", server.Address, what)
			}
		}
	}
	return held
}

// A listing is what a VIP must be the only one of.
type listing struct {
	address netip.Addr
	link    string // of a link-local address
}

// checkInstances finds a virtual router id that an interface has twice for one
// family, a VIP that is listed twice, and a peer that is a VIP.
func (d *decoder) checkInstances(instances []*instanceDef, vips map[netip.Addr]string, sync *node) {
	type router struct {
		interfaceName string
		id            uint8
		v6            bool // each family has ids of its own
	}
	routers := map[router]*instanceDef{}
	listed := map[listing]*node{}
	for _, i := range instances {
		if i.VRID != 0 && i.Interface != "" {
			r := router{i.Interface, i.VRID, len(i.Addresses) > 0 && i.Addresses[0].Addr().Is6()}
			if first, dup := routers[r]; dup {
				d.errorf(i.vridAt, "virtual_router_id %d is used twice on %s: instance %q has it already", i.VRID, i.Interface, first.Name)
			} else {
				routers[r] = i
			}
		}
		for k, p := range i.Addresses {
			a, at := p.Addr(), i.addresses[k]
			key := listing{address: a}
			if a.Is6() && a.IsLinkLocalUnicast() {
				key.link = i.Interface // another address on each link
			}
			if first, dup := listed[key]; dup {
				d.errorf(at, "VIP %v is listed twice: %s", a, first.elsewhere(at))
				continue
			}
			listed[key] = at
			if _, ok := vips[a]; !ok {
				vips[a] = fmt.Sprintf("the VIP of instance %q", i.Name)
			}
		}
	}
	for _, i := range instances {
		for k, p := range i.Peers {
			if _, ok := listed[listing{address: p}]; ok {
				d.errorf(i.peers[k], "peer %v is a VIP: it moves, a peer is another node's own address", p)
			}
		}
	}
	d.checkHeartbeats(sync, instances, listed)
}
