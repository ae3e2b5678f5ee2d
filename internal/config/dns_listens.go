package config

import (
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// checkDNSListens finds addresses that somebody else has, or where nothing arrives.
func (d *decoder) checkDNSListens(s *dnsDef, h *httpDef, instances []*instanceDef, held map[listening][]holding) {
	for i, a := range s.Listen {
		at := s.listens[i]
		for _, protocol := range []lb.Protocol{lb.UDP, lb.TCP} {
			for _, o := range held[listening{a.Addr(), protocol}] {
				if o.Ports.Contains(a.Port()) {
					d.errorf(at, "listen %v is an address of service %q (%v), whose packets never come here: %s", a, o.service.Name, protocol, o.at.elsewhere(at))
				}
			}
		}
		if k := slices.IndexFunc(h.listens, func(l listenDef) bool { return l.Address == a }); k >= 0 {
			d.errorf(at, "listen %v is where http listens, too: %s", a, h.listens[k].at.elsewhere(at))
		}
		for _, v := range instances {
			if !v.Accept && slices.Contains(v.VIPs(), a.Addr()) {
				d.errorf(at, "listen %v: instance %q has accept: false, so that what comes to its VIPs and is no service's is dropped", a, v.Name)
			}
		}
	}
}
