package control

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// pathOf returns the forwarding mode that probes to a VIP at a server of a service go
// by; 0: they go to the server itself, which does not know the VIP.
func pathOf(service lb.Service) lb.Forward {
	switch service.Forward {
	case lb.DSR, lb.Tunnel:
		return service.Forward
	case lb.Proxy:
		return lb.DSR
	}
	return 0
}

// targetsOf returns what is probed of a server of a service: the server itself or,
// where clients' packets keep the VIP as their destination, each VIP of the service
// at the server. It serves only if it takes the packets to all of them, since they
// share one table. This node does not probe itself.
func targetsOf(service lb.Service, s lb.Server) []health.Target {
	if s.Here {
		return nil
	}
	t := health.Target{Address: endpoint(service, s), Probe: *service.Pool.Probe}
	path := pathOf(service)
	if !t.Probe.ViaVIP || path == 0 {
		return []health.Target{t}
	}
	var all []health.Target
	seen := map[netip.Addr]bool{}
	for _, f := range service.Addresses {
		if seen[f.VIP] {
			continue
		}
		seen[f.VIP] = true
		t.Path = lb.ProbePath{VIP: f.VIP, Server: s.Address, Forward: path}
		all = append(all, t)
	}
	return all
}

// targetsOfAll returns all that is probed of services.
func targetsOfAll(services []lb.Service) []health.Target {
	var ts []health.Target
	for _, s := range services {
		if p := s.Pool.Probe; p == nil || p.Type == lb.ProbeCheck {
			continue
		}
		for _, server := range s.Pool.Servers {
			ts = append(ts, targetsOf(s, server)...)
		}
	}
	return ts
}

// checksOf returns the checks whose verdicts are the health of servers of services.
func checksOf(services []lb.Service) (names []string) {
	for _, s := range services {
		if p := s.Pool.Probe; p != nil && p.Type == lb.ProbeCheck && !slices.Contains(names, p.Check) {
			names = append(names, p.Check)
		}
	}
	return names
}

// decided tells whether there is a verdict on each of these checks.
func (l *Loop) decided(checks []string) bool {
	return !slices.ContainsFunc(checks, func(name string) bool {
		v, _ := l.check(name)
		return v == health.Unknown
	})
}

// spares tells whether services can do without the verdicts that are not there yet, if any:
// all that is missing are those of servers that are silent, but not for long enough, and
// beside these each service has as many as it needs, and no backup in their place. Of those
// that served nothing before, by service, silence is enough.
func (l *Loop) spares(services []lb.Service, idle map[string][]netip.AddrPort) bool {
	for _, s := range services {
		v := view(s, l)
		short := v.Serving() == 0 || v.belowQuorum() != ""
		primary := slices.ContainsFunc(v.Servers, func(s Server) bool { return s.Serving && !s.Backup })
		for _, server := range v.Servers {
			if server.State != ServerUnknown {
				continue
			}
			needed := short || !server.Backup && !primary
			if !l.tried(s, server.Server) || needed && !slices.Contains(idle[s.Name], server.Address) {
				return false
			}
		}
	}
	return true
}

// idle returns the backends that the data plane of an earlier daemon has, and that own
// nothing there, by service.
func (l *Loop) idle() map[string][]netip.AddrPort {
	stats, err := l.tables.Stats()
	if err != nil {
		return nil // adopt says so
	}
	all := map[string][]netip.AddrPort{}
	for _, s := range l.services {
		for _, b := range countsOf(s, stats).Backends {
			if b.Slots == 0 {
				all[s.Name] = append(all[s.Name], b.Address)
			}
		}
	}
	return all
}

// tried tells whether there is a result of all probes of a server.
func (l *Loop) tried(service lb.Service, s lb.Server) bool {
	targets := targetsOf(service, s)
	return len(targets) > 0 && !slices.ContainsFunc(targets, func(t health.Target) bool {
		s, _ := l.checker.Status(t)
		return !s.Tried()
	})
}

// follow has these addresses and targets followed, and no others.
func (l *Loop) follow(addresses []netip.Addr, targets []health.Target) {
	l.addresses = addresses
	l.lead()
	var paths []lb.ProbePath
	for _, t := range targets {
		if t.Path != (lb.ProbePath{}) {
			paths = append(paths, t.Path)
		}
	}
	if err := l.paths.Set(paths); err != nil {
		l.log.Error("old ways of probes are left", "error", err)
	}
	l.leadProbes()
	l.checker.Set(targets)
}

// leadProbes has the ways of probes follow those of packets. What is wrong is known
// until it is right again.
func (l *Loop) leadProbes() {
	before := l.probing
	l.probing = ""
	if err := l.paths.Refresh(); err != nil {
		l.probing = err.Error()
		if l.probing != before {
			l.log.Error("servers cannot be probed through their VIPs", "error", err)
		}
	}
}

// probed tells how a server of a service stands by its health alone.
func probed(f facts, service lb.Service, s lb.Server) (ServerState, string) {
	p := service.Pool.Probe
	switch {
	case p == nil, s.Here:
		return ServerUp, ""
	case p.Type != lb.ProbeCheck:
		return verdict(f, targetsOf(service, s))
	}
	switch v, why := f.check(p.Check); v {
	case health.Up:
		return ServerUp, ""
	case health.Down:
		return ServerDown, fmt.Sprintf("check %s fails: %s", p.Check, why)
	}
	return ServerUnknown, fmt.Sprintf("check %s has no result yet", p.Check)
}

// verdict joins what is known of the targets of a server: it is up if all are.
func verdict(f facts, targets []health.Target) (ServerState, string) {
	state, why := ServerUp, ""
	for _, t := range targets {
		s, ok := f.status(t)
		switch {
		case ok && s.Verdict == health.Down:
			return ServerDown, s.LastError
		case !ok || s.Verdict == health.Unknown:
			state, why = ServerUnknown, s.WhyUnknown(t.Probe)
		}
	}
	return state, why
}
