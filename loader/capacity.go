package loader

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Fits tells whether the data plane has room for the services of a
// configuration, all of which it must hold or none. The error names every limit
// that is exceeded.
func Fits(services []lb.Service) error {
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
	var errs []error
	for _, s := range services {
		if s.SourceLimit.Rate > 0 && s.Protocol == lb.UDP {
			errs = append(errs, fmt.Errorf("service %s: source_limit counts new connections, and UDP has none: leave it out", s.Name))
		}
		rules += len(s.Rules)
		backends += len(s.Pool.Servers)
		for _, a := range s.Addresses {
			addresses[a.Addr()], listening[tableOf{a.Addr(), s.Protocol}] = true, true
		}
		if s.Forward != lb.NAT {
			continue
		}
		choices += len(s.Pool.Servers) * len(s.SourceAddresses)
		for _, source := range s.SourceAddresses {
			addresses[source] = true
			for _, server := range s.Pool.Servers {
				port := cmp.Or(server.Port, s.Addresses[0].Port())
				pairs[pair{netip.AddrPortFrom(server.Address, port), source, s.Protocol}] = true
			}
		}
	}
	for _, l := range []struct {
		what       string
		want, room int
	}{
		// Number 0 of each is none. Open addressing is sure to find places while its
		// table is filled to a quarter.
		{"services", len(services), int(lbLimitsMAX_SERVICES) - 1},
		{"backends of all services together", backends, int(lbLimitsMAX_BACKENDS) - 1},
		{"VIPs and source addresses", len(addresses), int(lbLimitsMAX_VIPS) / 4},
		{"VIPs with services, by protocol", len(listening), int(lbLimitsMAX_PORT_TABLES) - 1},
		{"pairs of a nat server and a source address", len(pairs), int(lbLimitsMAX_PAIRS) - 1},
		// Old and new ones must fit together while they change.
		{"allow and deny prefixes", rules, int(lbLimitsMAX_RULES) / 2},
		{"source addresses of all nat backends together", choices, int(lbLimitsMAX_CHOICES)},
	} {
		if l.want > l.room {
			errs = append(errs, fmt.Errorf("%d %s: there is room for %d", l.want, l.what, l.room))
		}
	}
	return errors.Join(errs...)
}
