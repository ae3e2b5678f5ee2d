package config

import (
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// checkFamilies demands one family of all addresses of a nat service: it
// rewrites addresses in place, and headers of IPv4 and IPv6 differ in size. The
// other modes leave the client's packet as it is.
func (d *decoder) checkFamilies(s *serviceDef) {
	if !s.Forward.Rewrites() || len(s.Addresses) == 0 {
		return
	}
	vip := s.Addresses[0].VIP
	for i, f := range s.Addresses {
		if f.VIP.Is4() != vip.Is4() {
			d.errorf(s.addresses[i], "service %q has IPv4 and IPv6 addresses, which nat cannot send to the same servers: make two services of it, or use forward: tunnel", s.Name)
			return
		}
	}
	for i, a := range s.SourceAddresses {
		if a.Is4() != vip.Is4() {
			d.errorf(s.sourceAt(i), "source address %v is %s, service %q has the %s address %v: nat cannot go from one to the other", a, familyOf(a), s.Name, familyOf(vip), vip)
		}
	}
	for _, server := range s.backends.servers {
		if server.Address.Is4() != vip.Is4() {
			d.errorf(server.at, "server %v is %s, service %q has the %s address %v: nat cannot go from one to the other, use forward: tunnel, or servers with %s",
				server.Address, familyOf(server.Address), s.Name, familyOf(vip), vip, familyOf(vip))
		}
	}
}

// checkPort looks whether the port of a server goes with those of the service.
func (d *decoder) checkPort(s *serviceDef, server serverDef, one bool) {
	switch {
	case len(s.Addresses) == 0:
	case (s.Forward == lb.DSR || s.Forward == lb.Tunnel) && server.Port != 0:
		for _, f := range s.Addresses {
			if f.Ports != (lb.PortRange{First: server.Port, Last: server.Port}) {
				d.errorf(server.at, "server port %d differs from port %v of service %q: %v cannot rewrite it; leave the port out, or use forward: nat",
					server.Port, f.Ports, s.Name, s.Forward)
				return
			}
		}
	case s.Forward == lb.NAT && server.Port == 0 && !one && !s.KeepsPorts:
		d.errorf(server.at, "server %v has no port, and others of service %q, which has several, have one: write \"%v\" (with the port that is meant), or leave all of them out, so that each is kept",
			server.Address, s.Name, netip.AddrPortFrom(server.Address, 80))
	case s.Forward == lb.DNAT && server.Port != 0 && !one:
		d.errorf(server.at, "server %v has one port, and service %q has several: with source_nat: false a reply would not say which of them it is from; leave the port out, so that each is kept",
			netip.AddrPortFrom(server.Address, server.Port), s.Name)
	}
}

// checkKeptPorts finds nat services that keep the ports of several, and send to a
// server from an address from which another one sends to it, too. Each hands out its
// source ports by itself, and to which port of the server a connection goes tells none
// from the other.
func (d *decoder) checkKeptPorts(services []*serviceDef) {
	for _, s := range services {
		if !s.KeepsPorts {
			continue
		}
		for i, a := range s.SourceAddresses {
			if other, server := s.sendsBeside(a, services); other != nil {
				d.errorf(s.sourceAt(i), "service %q needs its own source_addresses: from %v service %q sends to server %v, too, and this one keeps the ports, so that nothing would tell their connections apart",
					s.Name, a, other.Name, server)
			}
		}
	}
}

// sendsBeside is another nat service that sends to one of this one's servers from the
// address.
func (s *serviceDef) sendsBeside(source netip.Addr, services []*serviceDef) (other *serviceDef, server netip.Addr) {
	for _, other := range services {
		if other == s || other.Forward != lb.NAT || other.Protocol != s.Protocol || other.backends == nil ||
			!slices.Contains(other.SourceAddresses, source) {
			continue
		}
		for _, server := range s.backends.servers {
			if slices.ContainsFunc(other.backends.servers, func(o serverDef) bool { return o.Address == server.Address }) {
				return other, server.Address
			}
		}
	}
	return nil, netip.Addr{}
}

// checkProbe demands a port to probe where the service has many.
func (d *decoder) checkProbe(s *serviceDef) {
	if p := s.backends.Probe; p == nil || p.Port != 0 || p.Type == lb.ProbeCheck {
		return
	}
	many := slices.IndexFunc(s.Addresses, func(f lb.Frontend) bool { return f.Ports.Count() > 1 })
	if many < 0 || !slices.ContainsFunc(s.backends.servers, func(server serverDef) bool { return server.Port == 0 }) {
		return
	}
	d.errorf(s.addresses[many], "address %v has many ports, and health of the servers of service %q does not say which to probe: set \"port\" in health",
		s.Addresses[many], s.Name)
}

// checkReplies finds services with source_nat: false whose replies would not
// say which VIP they are from. All that such a reply shows is the server's
// address and port.
func (d *decoder) checkReplies(services []*serviceDef) {
	type place struct {
		server   netip.Addr
		port     uint16 // 0: whichever the packet came to
		protocol lb.Protocol
	}
	type use struct {
		service *serviceDef
		at      *node
	}
	used := map[place]use{}
	servers := map[place]use{} // with port 0: whatever their ports are
	for _, s := range services {
		if s.Forward != lb.DNAT || s.Protocol == 0 || len(s.Addresses) == 0 {
			continue
		}
		if !d.checkOneVIP(s) || s.backends == nil {
			continue
		}
		reported := false
		port, _ := s.onePort()
		for _, server := range s.backends.servers {
			p := place{server.Address, server.endpoint(port).Port(), s.Protocol}
			every := place{server.Address, 0, s.Protocol}
			first, taken := used[p]
			if !taken {
				first, taken = used[every]
			}
			if !taken && p == every {
				first, taken = servers[every]
			}
			if taken && first.service != s {
				if !reported {
					d.sharedReply(s, first.service, server.at, first.at, p.server)
				}
				reported = true // of a pool that two share, one server is enough
				continue
			}
			u := use{s, server.at}
			used[p] = u
			if _, ok := servers[every]; !ok {
				servers[every] = u
			}
		}
	}
}

func (d *decoder) sharedReply(s, other *serviceDef, at, first *node, server netip.Addr) {
	if at.samePlace(first) { // they share the pool: then the service is the mistake
		at, first = s.at(), other.at()
	}
	d.errorf(at, "server %v is one of service %q already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: %s",
		server, other.Name, first.elsewhere(at))
}

// checkOneVIP demands one VIP of a service with source_nat: false.
func (d *decoder) checkOneVIP(s *serviceDef) bool {
	for i, f := range s.Addresses {
		if f.VIP != s.Addresses[0].VIP {
			d.errorf(s.addresses[i], "service %q has source_nat: false and the VIPs %v and %v: a reply would not say which of them it is from; make two services of it, with servers or ports of their own",
				s.Name, s.Addresses[0].VIP, f.VIP)
			return false
		}
	}
	return true
}

// checkLoopback finds a server that has a VIP on its loopback, for dsr or
// tunnel, or as a node that a service is spread over, and is to answer a nat service that sends from that VIP: it would take
// the packets for its own and never answer.
func (d *decoder) checkLoopback(services []*serviceDef) {
	type place struct{ server, vip netip.Addr }
	loopback := map[place]*serviceDef{}
	for _, s := range services {
		if s.Forward != lb.DSR && s.Forward != lb.Tunnel && s.Forward != lb.Proxy || s.backends == nil {
			continue
		}
		for _, server := range s.backends.servers {
			for _, f := range s.Addresses {
				loopback[place{server.Address, f.VIP}] = s
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
				direct, ok := loopback[place{server.Address, source}]
				if !ok {
					continue
				}
				d.errorf(s.sourceAt(i), "server %v has %v on its loopback for the %v service %q, so it cannot answer what comes from there: set source_addresses to another VIP",
					server.Address, source, direct.Forward, direct.Name)
				continue sources
			}
		}
	}
}
