package dns

import (
	"net/netip"
	"reflect"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A zone is a part of the tree of names that is answered with authority.
type zone struct {
	config *lb.DNSZone
	serial uint32
	// names are all that exist, in lower case: also those that are only on the way to
	// others, whose entries are empty.
	names map[string]*entry
}

// An entry is what there is of a name.
type entry struct {
	record    *record      // nil: no pool stands behind it
	addresses []netip.Addr // of a name server
}

// zones are those of a configuration, by name.
type zones map[string]*zone

// newZones makes zones of a configuration and its records. Serials that are not
// configured are those of before where nothing has changed.
func newZones(config, before *lb.DNS, old zones, records []*record, now time.Time) zones {
	all := zones{}
	for i := range config.Zones {
		c := &config.Zones[i]
		all[c.Name] = &zone{config: c, serial: c.Serial, names: map[string]*entry{c.Name: {}}}
	}
	for _, z := range all {
		if parent := all.above(z.config.Name); parent != nil {
			parent.add(z.config.Name)
		}
	}
	for _, r := range records {
		if z := all.of(r.config.Name); z != nil {
			z.add(r.config.Name).record = r
		}
	}
	for i := range config.Zones {
		for _, s := range config.Zones[i].NameServers {
			if z := all.of(s.Name); z != nil && len(s.Addresses) > 0 {
				z.add(s.Name).addresses = s.Addresses
			}
		}
	}
	for name, z := range all {
		if z.serial != 0 {
			continue
		}
		z.serial = max(uint32(now.Unix()), 1)
		if o := old[name]; o != nil {
			if sameZone(config, before, name) {
				z.serial = o.serial
			} else if int32(z.serial-o.serial) <= 0 { // as RFC 1982 compares them
				z.serial = max(o.serial+1, 1)
			}
		}
	}
	return all
}

// sameZone tells whether two configurations say the same of a zone.
func sameZone(a, b *lb.DNS, name string) bool {
	of := func(c *lb.DNS) (z lb.DNSZone, records []lb.DNSRecord) {
		for _, each := range c.Zones {
			if each.Name == name {
				z = each
			}
		}
		for _, r := range c.Records {
			if dns.IsSubDomain(name, r.Name) {
				r.Pool = lb.Pool{Name: r.Pool.Name, Servers: r.Pool.Servers} // how it is probed is nothing of a zone's
				records = append(records, r)
			}
		}
		return z, records
	}
	z1, r1 := of(a)
	z2, r2 := of(b)
	return reflect.DeepEqual(z1, z2) && reflect.DeepEqual(r1, r2)
}

// add makes a name exist, and all names between it and the zone's.
func (z *zone) add(name string) *entry {
	for off, end := 0, false; !end && len(name)-off > len(z.config.Name); off, end = dns.NextLabel(name, off) {
		if z.names[name[off:]] == nil {
			z.names[name[off:]] = &entry{}
		}
	}
	return z.names[name]
}

// of returns the zone that a name in lower case is in; nil: none.
func (all zones) of(name string) *zone {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if z := all[name[off:]]; z != nil {
			return z
		}
	}
	return nil
}

// above returns the zone that the name of a zone would be in without it; nil: none.
func (all zones) above(name string) *zone {
	off, end := dns.NextLabel(name, 0)
	if end {
		return nil
	}
	return all.of(name[off:])
}

// find returns what there is of a name in lower case: its own entry, or that of the
// wildcard below the closest name that exists (RFC 4592); nil: the name does not exist.
func (z *zone) find(name string) *entry {
	if e := z.names[name]; e != nil {
		return e
	}
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		if z.names[name[off:]] != nil {
			return z.names["*."+name[off:]]
		}
	}
	return nil
}

// soa is the zone's SOA record, under its name as the client wrote it.
func (z *zone) soa(name string, ttl time.Duration) dns.RR {
	c := z.config
	return &dns.SOA{
		Hdr: header(name, dns.TypeSOA, ttl), Ns: c.NameServers[0].Name, Mbox: c.Mailbox, Serial: z.serial,
		Refresh: seconds(c.Refresh), Retry: seconds(c.Retry), Expire: seconds(c.Expire), Minttl: seconds(c.NegativeTTL),
	}
}

// nameServers are the zone's NS records.
func (z *zone) nameServers(name string) (all []dns.RR) {
	for _, s := range z.config.NameServers {
		all = append(all, &dns.NS{Hdr: header(name, dns.TypeNS, z.config.TTL), Ns: s.Name})
	}
	return all
}

// glue are the addresses of the zone's name servers that are known here.
func (z *zone) glue() (all []dns.RR) {
	for _, s := range z.config.NameServers {
		for _, a := range s.Addresses {
			all = append(all, address(s.Name, a, z.config.TTL))
		}
	}
	return all
}

func header(name string, of uint16, ttl time.Duration) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: of, Class: dns.ClassINET, Ttl: seconds(ttl)}
}

// address is the A or AAAA record of an address.
func address(name string, a netip.Addr, ttl time.Duration) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()}
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }
