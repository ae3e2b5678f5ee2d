package config

import (
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// checkBackends looks at the servers of a service in its light: its ports, its
// forwarding mode, the size of its table.
func (d *decoder) checkBackends(s *serviceDef) {
	ports := map[uint16]bool{}
	for _, ap := range s.Addresses {
		ports[ap.Port()] = true
	}
	weighted := 0
	resolved := map[netip.AddrPort]*node{}
	for _, server := range s.backends.servers {
		if server.Weight > 0 {
			weighted++
		}
		d.checkPort(s, server, ports)
		if len(ports) != 1 {
			continue
		}
		for port := range ports {
			e := server.endpoint(port)
			if first, dup := resolved[e]; dup {
				d.errorf(server.at, "duplicate server %v for service %q, which has port %d: %s", e, s.Name, port, first.elsewhere(server.at))
			} else {
				resolved[e] = server.at
			}
		}
	}
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

func (d *decoder) checkPort(s *serviceDef, server serverDef, ports map[uint16]bool) {
	switch {
	case s.Forward == lb.DSR && server.Port != 0:
		for _, ap := range s.Addresses {
			if ap.Port() != server.Port {
				d.errorf(server.at, "server port %d differs from port %d of service %q: dsr cannot rewrite it; leave the port out, or use forward: nat",
					server.Port, ap.Port(), s.Name)
				return
			}
		}
	case s.Forward == lb.NAT && server.Port == 0 && len(ports) > 1:
		d.errorf(server.at, "server %v has no port, and service %q has several: write \"%v:80\" (with the port that is meant)",
			server.Address, s.Name, server.Address)
	}
}

// crossCheck looks for what is wrong between services and VRRP instances.
func (d *decoder) crossCheck(services []*serviceDef, instances []*instanceDef) {
	vips := map[netip.Addr]string{} // what each VIP is, for a message
	d.checkEndpoints(services, vips)
	d.checkInstances(instances, vips)
	for _, s := range services {
		for i, a := range s.SourceAddresses {
			if _, taken := vips[a]; !taken && i < len(s.sources) {
				vips[a] = fmt.Sprintf("a source address of service %q", s.Name)
			}
		}
	}
	d.checkLoopback(services)
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
}

// checkLoopback finds a server that has a VIP on its loopback, for dsr, and is
// to answer a nat service that sends from that VIP: it would take the packets
// for its own and never answer.
func (d *decoder) checkLoopback(services []*serviceDef) {
	type place struct{ server, vip netip.Addr }
	loopback := map[place]string{} // the dsr service
	for _, s := range services {
		if s.Forward != lb.DSR || s.backends == nil {
			continue
		}
		for _, server := range s.backends.servers {
			for _, a := range s.Addresses {
				loopback[place{server.Address, a.Addr()}] = s.Name
			}
		}
	}
	for _, s := range services {
		if s.Forward != lb.NAT || s.backends == nil {
			continue
		}
	sources:
		for i, source := range s.SourceAddresses {
			for _, server := range s.backends.servers {
				dsr, ok := loopback[place{server.Address, source}]
				if !ok {
					continue
				}
				at := s.nameAt
				if i < len(s.sources) {
					at = s.sources[i]
				}
				d.errorf(at, "server %v has %v on its loopback for the dsr service %q, so it cannot answer what comes from there: set source_addresses to another VIP",
					server.Address, source, dsr)
				continue sources
			}
		}
	}
}

// checkEndpoints finds an address and port that two services, or one twice,
// have.
func (d *decoder) checkEndpoints(services []*serviceDef, vips map[netip.Addr]string) {
	type use struct {
		service *serviceDef
		at      *node
	}
	used := map[lb.Frontend]use{}
	for _, s := range services {
		for i, ap := range s.Addresses {
			at := s.addresses[i]
			if _, ok := vips[ap.Addr()]; !ok {
				vips[ap.Addr()] = fmt.Sprintf("the VIP of service %q", s.Name)
			}
			first, dup := used[ap]
			switch {
			case !dup:
				used[ap] = use{s, at}
			case first.service == s:
				d.errorf(at, "address %v is listed twice in service %q", ap, s.Name)
			default:
				d.errorf(at, "address %v belongs to service %q already: %s", ap, first.service.Name, first.at.elsewhere(at))
			}
		}
	}
}

// checkInstances finds a virtual router id that an interface has twice and a
// VIP that is listed twice.
func (d *decoder) checkInstances(instances []*instanceDef, vips map[netip.Addr]string) {
	type router struct {
		interfaceName string
		id            uint8
	}
	routers := map[router]*instanceDef{}
	listed := map[netip.Addr]*node{}
	for _, i := range instances {
		if i.VRID != 0 && i.Interface != "" {
			r := router{i.Interface, i.VRID}
			if first, dup := routers[r]; dup {
				d.errorf(i.vridAt, "virtual_router_id %d is used twice on %s: instance %q has it already", i.VRID, i.Interface, first.Name)
			} else {
				routers[r] = i
			}
		}
		for k, p := range i.Addresses {
			a, at := p.Addr(), i.addresses[k]
			if first, dup := listed[a]; dup {
				d.errorf(at, "VIP %v is listed twice: %s", a, first.elsewhere(at))
				continue
			}
			listed[a] = at
			if _, ok := vips[a]; !ok {
				vips[a] = fmt.Sprintf("the VIP of instance %q", i.Name)
			}
		}
	}
}
