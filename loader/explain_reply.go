package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// reply fills in whose answer a packet is that goes to no VIP. nat without source NAT
// keeps no flows, so its source alone says it, to the program as well.
func (e *Explainer) reply(x *Explanation, p Packet) {
	if x.VIP || x.Service != nil || x.Outcome == outcomeNames[lbOutcomePASS_NOT_VIP] {
		return
	}
	number, ok := e.pinned.state.answering(p.Source, p.Protocol)
	if !ok {
		return
	}
	x.Found = FoundDNATReply
	x.Service, x.Backend = e.explainedService(e.pinned.state.Backends[number].Service), e.backend(number)
}

// answering is the backend that an address and port answers as, where it is one of nat
// without source NAT: find_reply of dnat.h.
func (s *State) answering(from netip.AddrPort, protocol lb.Protocol) (backend uint32, ok bool) {
	if r, ok := s.Replies[replyID{from.Addr(), from.Port(), protocol}]; ok {
		return r.Backend, true
	}
	r, ok := s.Replies[replyID{from.Addr(), 0, protocol}]
	if !ok {
		return 0, false
	}
	vip := s.VIPs[s.vipsByIndex()[r.VIP]]
	return r.Backend, s.service(vip.Tables[portTable(protocol)], from.Port()) == s.Backends[r.Backend].Service
}
