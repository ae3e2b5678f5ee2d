package loader

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A room is how many there may be of something that services need.
type room struct {
	what  string
	limit int
	have  int
	full  int // the service with which there were too many; -1: there are not
}

// Fits tells whether the data plane has room for the services of a configuration,
// all of which it must hold or none. It returns every limit that is exceeded, with
// the service that is the first beyond it.
func Fits(services []lb.Service) []lb.Misfit {
	type pair struct {
		server   netip.AddrPort
		source   netip.Addr
		protocol lb.Protocol
	}
	type tableOf struct {
		vip      netip.Addr
		protocol lb.Protocol
	}
	addresses, listening, pairs := map[netip.Addr]bool{}, map[tableOf]bool{}, map[pair]bool{}
	backends, choices, rules := 0, 0, 0
	// Number 0 of each is none. Open addressing is sure to find places while its
	// table is filled to a quarter.
	rooms := []room{
		{what: "services", limit: int(lbLimitsMAX_SERVICES) - 1},
		{what: "backends of all services together", limit: int(lbLimitsMAX_BACKENDS) - 1},
		{what: "VIPs and source addresses", limit: int(lbLimitsMAX_VIPS) / 4},
		{what: "VIPs with services, by protocol", limit: int(lbLimitsMAX_PORT_TABLES) - 1},
		{what: "pairs of a nat server and a source address", limit: int(lbLimitsMAX_PAIRS) - 1},
		// Old and new ones must fit together while they change.
		{what: "allow and deny prefixes", limit: int(lbLimitsMAX_RULES) / 2},
		{what: "source addresses of all nat backends together", limit: int(lbLimitsMAX_CHOICES)},
	}
	for r := range rooms {
		rooms[r].full = -1
	}
	var misfits []lb.Misfit
	for i, s := range services {
		if s.SourceLimit.Rate > 0 && s.Protocol == lb.UDP {
			misfits = append(misfits, lb.Misfit{Service: i, Message: "source_limit counts new connections, and UDP has none: leave it out"})
		}
		rules += len(s.Rules)
		backends += len(s.Pool.Servers)
		for _, a := range s.Addresses {
			addresses[a.Addr()], listening[tableOf{a.Addr(), s.Protocol}] = true, true
		}
		if s.Forward == lb.NAT {
			choices += len(s.Pool.Servers) * len(s.SourceAddresses)
			for _, source := range s.SourceAddresses {
				addresses[source] = true
				for _, server := range s.Pool.Servers {
					port := cmp.Or(server.Port, s.Addresses[0].Port())
					pairs[pair{netip.AddrPortFrom(server.Address, port), source, s.Protocol}] = true
				}
			}
		}
		for r, have := range []int{i + 1, backends, len(addresses), len(listening), len(pairs), rules, choices} {
			if have > rooms[r].limit && rooms[r].full < 0 {
				rooms[r].full = i
			}
			rooms[r].have = have
		}
	}
	for _, r := range rooms {
		if r.full >= 0 {
			misfits = append(misfits, lb.Misfit{
				Service: r.full, Message: fmt.Sprintf("too much for the data plane: %d %s, there is room for %d", r.have, r.what, r.limit),
			})
		}
	}
	return misfits
}
