package loader

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// claimed says which service of the snapshot other than this one is to have what
// comes from a backend that leaves this one; "": none. The backend cannot keep its
// connections then: nothing would tell its replies from those of the other service.
func (p *planner) claimed(number uint16, s lb.Service, backend netip.AddrPort) string {
	for i, other := range p.want.Services {
		if p.numbers[i] == number || other.Forward != s.Forward || other.Protocol != s.Protocol {
			continue
		}
		var why string
		switch s.Forward {
		case lb.DNAT:
			why = claimsReplies(other, replyOf(s, backend))
		case lb.NAT:
			why = claimsPorts(other, s, backend.Addr())
		}
		if why != "" {
			return fmt.Sprintf("what is left of the connections of service %s with %v breaks: %s, or add it when they are over", s.Name, backend, why)
		}
	}
	return ""
}

// claimsReplies tells whether replies to a dnat service may come from the same place.
func claimsReplies(s lb.ServiceState, id replyID) string {
	for _, b := range s.Backends {
		if id.collides(replyOf(s.Service, b.Address)) {
			return fmt.Sprintf("what comes from there is taken for answers of service %s: to keep them give that one another server or port", s.Name)
		}
	}
	return ""
}

// claimsPorts tells whether a nat service sends to a server from an address from which
// another one does, each by a pair of its own, of which one is to all ports: both would
// hand out the same source ports, and a reply would be looked for in one of them. Two
// services that keep their ports have one pair, as two that send to the same port.
func claimsPorts(s lb.ServiceState, other lb.Service, server netip.Addr) string {
	if keepsPort(s.Service) == keepsPort(other) ||
		!slices.ContainsFunc(s.Backends, func(b lb.Backend) bool { return b.Address.Addr() == server }) {
		return ""
	}
	for _, a := range s.SourceAddresses {
		if slices.Contains(other.SourceAddresses, a) {
			return fmt.Sprintf("service %s sends to that server from %v, too, and one of the two keeps the ports: to keep them give that one source_addresses of its own", s.Name, a)
		}
	}
	return ""
}
