package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A listening is where ports of services are: those of TCP and UDP have nothing
// to do with each other.
type listening struct {
	vip      netip.Addr
	protocol lb.Protocol
}

// A holding is a frontend and whose it is.
type holding struct {
	lb.Frontend
	service *serviceDef
	at      *node
}

// checkFrontends finds ports of a VIP that two services, or one twice, have. It
// returns the ports that are held, in order and without what overlaps.
func (d *decoder) checkFrontends(services []*serviceDef, vips map[netip.Addr]string) map[listening][]holding {
	held := map[listening][]holding{}
	for _, s := range services {
		for i, f := range s.Addresses {
			if _, ok := vips[f.VIP]; !ok {
				vips[f.VIP] = fmt.Sprintf("the VIP of service %q", s.Name)
			}
			if s.Protocol == 0 {
				continue
			}
			h, l := holding{f, s, s.addresses[i]}, listening{f.VIP, s.Protocol}
			// The first that does not end before this one begins.
			k, _ := slices.BinarySearchFunc(held[l], f.Ports.First, func(h holding, first uint16) int { return cmp.Compare(h.Ports.Last, first) })
			if k < len(held[l]) && held[l][k].Ports.First <= f.Ports.Last {
				d.overlap(h, held[l][k])
				continue
			}
			held[l] = slices.Insert(held[l], k, h)
		}
	}
	return held
}

func (d *decoder) overlap(h, first holding) {
	where := first.at.elsewhere(h.at)
	switch {
	case h.Ports == first.Ports && h.service == first.service:
		d.errorf(h.at, "address %v is listed twice in service %q: %s", h, h.service.Name, where)
	case h.Ports == first.Ports:
		d.errorf(h.at, "address %v belongs to service %q already: %s", h, first.service.Name, where)
	case h.service == first.service:
		d.errorf(h.at, "address %v overlaps %v of the same service: %s", h, first, where)
	default:
		d.errorf(h.at, "address %v overlaps %v of service %q: %s", h, first, first.service.Name, where)
	}
}

// checkSourcePorts finds source addresses on which services have all the ports
// that a node could send from. It looks at the share of every node: they have
// one file.
func (d *decoder) checkSourcePorts(c *Config, services []*serviceDef, held map[listening][]holding) {
	if c.PortShare.First == 0 {
		return // the range is wrong
	}
	known := map[listening]string{}
	for _, s := range services {
		if s.Forward != lb.NAT || s.Protocol == 0 {
			continue
		}
		for i, a := range s.SourceAddresses {
			l := listening{a, s.Protocol}
			if len(held[l]) == 0 {
				continue
			}
			full, ok := known[l]
			if !ok {
				full = c.shareWithin(held[l])
				known[l] = full
			}
			if full != "" {
				d.errorf(s.sourceAt(i), "service %q needs its own source_addresses: services listen on every %v port of %v that nat could send from (%s)",
					s.Name, s.Protocol, a, full)
			}
		}
	}
}

// shareWithin names a share of the source ports all of which are held, or
// returns "".
func (c *Config) shareWithin(held []holding) string {
	shares := []int{c.ShareIndex}
	names := c.shareOrder()
	if len(names) > 0 {
		shares = shares[:0]
		for i := range names {
			shares = append(shares, i)
		}
	}
	for _, i := range shares {
		r := share(c.Datapath.Ports, i, c.ShareCount)
		if !within(r, held) {
			continue
		}
		if len(names) == 0 {
			return r.String()
		}
		return fmt.Sprintf("%v of node %q", r, names[i])
	}
	return ""
}

// within tells whether all ports of a range are held.
func within(r lb.PortRange, held []holding) bool {
	next := int(r.First)
	for _, h := range held {
		if int(h.Ports.First) > next {
			break
		}
		next = max(next, int(h.Ports.Last)+1)
	}
	return next > int(r.Last)
}
