// Package control is the daemon's one loop: whatever happens (a health verdict,
// a neighbour that moved) marks the world dirty, and the loop computes a new
// snapshot of it from scratch and has it applied. Nothing else writes the data
// plane's tables.
package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// ServerState is how a server of a service stands.
type ServerState string

// The states of a server.
const (
	ServerUp      ServerState = "up"       // may serve
	ServerDown    ServerState = "down"     // its probe fails: what it served is void
	ServerUnknown ServerState = "unknown"  // its probe has no result yet
	ServerNoRoute ServerState = "no_route" // healthy or not probed, but there is no way to it
	// By an operator's command.
	ServerDrained  ServerState = "drained"  // up, but gets nothing new
	ServerDisabled ServerState = "disabled" // as if its probe failed
)

// A Server is a server of a service, and what has become of it.
type Server struct {
	lb.Server
	Address netip.AddrPort
	State   ServerState
	Why     string // where State is not ServerUp
	// Serving tells whether it gets a share of new connections: it is up, its
	// weight is not 0, and it is not a backup that is not needed.
	Serving bool
	NextHop lb.NextHop
	// Override is what an operator has changed; Weight is as he wants it.
	Override Override
	// Configured is the weight that the configuration gives.
	Configured int
	// SlowStart says how much of Weight it has, if it is not all.
	SlowStart SlowStart
}

// A View is a service as the loop sees it now.
type View struct {
	Service lb.Service
	Servers []Server // in the order of the configuration
}

// Healthy counts the servers that are up, backups included.
func (v View) Healthy() int {
	n := 0
	for _, s := range v.Servers {
		if s.State == ServerUp {
			n++
		}
	}
	return n
}

// belowQuorum says how a service misses its quorum; "": it does not.
func (v View) belowQuorum() string {
	if h := v.Healthy(); h < v.Service.Quorum {
		return fmt.Sprintf("below its quorum: %d healthy, %d wanted", h, v.Service.Quorum)
	}
	return ""
}

// state is how the service stands.
func (v View) state() string {
	switch {
	case v.Serving() == 0:
		return ServiceDown
	case v.Healthy() < v.Service.Quorum:
		return ServiceQuorum
	}
	return ServiceUp
}

// Serving counts the servers that get new connections.
func (v View) Serving() int {
	n := 0
	for _, s := range v.Servers {
		if s.Serving {
			n++
		}
	}
	return n
}

// endpoint is the address and port of a server of a service.
func endpoint(service lb.Service, s lb.Server) netip.AddrPort {
	return netip.AddrPortFrom(s.Address, cmp.Or(s.Port, service.Addresses[0].Port()))
}

// facts are what views are computed from.
type facts interface {
	status(health.Target) (health.Status, bool)
	check(name string) (v health.Verdict, why string)
	nextHop(netip.Addr) (lb.NextHop, error)
	override(lb.Service, lb.Server) Override
	stopping(node string) (stops, gone bool)
}

// view computes what has become of a service's servers.
func view(service lb.Service, f facts) View {
	v := View{Service: service}
	primary := false
	for _, s := range service.Pool.Servers {
		server := Server{
			Server: s, Address: endpoint(service, s), Configured: s.Weight, Override: f.override(service, s),
		}
		if w := server.Override.Weight; w != nil {
			server.Weight = *w
		}
		server.State, server.Why = probed(f, service, s)
		hop, err := wayTo(f, service, s)
		server.NextHop = hop
		if err != nil && server.State == ServerUp {
			server.State, server.Why = ServerNoRoute, err.Error()
		}
		stops, gone := f.stopping(s.Node)
		switch {
		case server.Override.State == Disable:
			server.State, server.Why = ServerDisabled, "by an operator"
		case stops && gone:
			server.State, server.Why = ServerDown, "the node was about to stop, and is not heard any more"
		case stops:
			server.State, server.Why = ServerDrained, "the node is about to stop"
		case server.Override.State == Drain && server.State == ServerUp:
			server.State, server.Why = ServerDrained, "by an operator"
		}
		server.Serving = server.State == ServerUp && server.Weight > 0
		primary = primary || server.Serving && !s.Backup
		v.Servers = append(v.Servers, server)
	}
	for i := range v.Servers {
		if s := &v.Servers[i]; s.Backup && primary {
			s.Serving = false
		}
	}
	return v
}

// wayTo returns the next hop of a server of a service. A node that a service is spread
// over must be on the link itself: a gateway would send the packets back.
func wayTo(f facts, service lb.Service, s lb.Server) (lb.NextHop, error) {
	if s.Here {
		return lb.Here, nil
	}
	hop, err := f.nextHop(s.Address)
	if err == nil && hop.Routed && service.Forward == lb.Proxy {
		return lb.NextHop{}, fmt.Errorf("%v is behind a gateway: nodes that serve together must be on one link", s.Address)
	}
	hop.Routed = false
	return hop, err
}

// snapshot turns views into what the data plane should hold.
func snapshot(views []View) lb.Snapshot {
	var out lb.Snapshot
	for _, v := range views {
		s := lb.ServiceState{Service: v.Service}
		weights := effective(v.Servers)
		for i, server := range v.Servers {
			b := lb.Backend{Address: server.Address, Weight: weights[i], NextHop: server.NextHop, Failed: server.State == ServerDown || server.State == ServerDisabled}
			s.Backends = append(s.Backends, b)
		}
		slices.SortFunc(s.Backends, func(a, b lb.Backend) int { return a.Address.Compare(b.Address) })
		out.Services = append(out.Services, s)
	}
	slices.SortFunc(out.Services, func(a, b lb.ServiceState) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Unserved returns services that nobody serves yet. A data plane that holds them
// drops their packets, which come again; one that holds nothing would leave them to
// the kernel, which refuses connections.
func Unserved(services []lb.Service) lb.Snapshot {
	var views []View
	for _, s := range services {
		views = append(views, View{Service: s})
	}
	return snapshot(views)
}

// sameBackends tells whether two snapshots of one configuration are equal.
func sameBackends(a, b lb.Snapshot) bool {
	return slices.EqualFunc(a.Services, b.Services, func(a, b lb.ServiceState) bool {
		return a.Name == b.Name && slices.Equal(a.Backends, b.Backends) && a.Followed == b.Followed && slices.Equal(a.Leaving, b.Leaving)
	})
}
