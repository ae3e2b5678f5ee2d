package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var dnsZoneSchema = schema{
	what: "a zone",
	keys: []string{"name", "name_servers", "mailbox", "serial", "refresh", "retry", "expire", "ttl", "negative_ttl"},
	hints: map[string]string{
		"ns":      "name servers are a list under \"name_servers\"",
		"minimum": "the SOA's last field is \"negative_ttl\"",
		"file":    "there are no zone files: records are a list under \"records\" of dns",
		"records": "records are a list under \"records\" of dns, with their whole names",
		"soa":     "its fields are keys of the zone; the first of name_servers is the primary one",
	},
}

var nameServerSchema = schema{what: "a name server", keys: []string{"name", "addresses"}}

// What a zone says where the configuration does not.
const (
	defaultRefresh     = time.Hour
	defaultRetry       = 10 * time.Minute
	defaultExpire      = 14 * 24 * time.Hour
	defaultZoneTTL     = time.Hour
	defaultNegativeTTL = 30 * time.Second
	maxExpire          = 365 * 24 * time.Hour
)

func defaultZone(name string) lb.DNSZone {
	return lb.DNSZone{
		Name: name, Mailbox: "hostmaster." + name, Refresh: defaultRefresh, Retry: defaultRetry, Expire: defaultExpire,
		TTL: defaultZoneTTL, NegativeTTL: defaultNegativeTTL,
	}
}

// dnsZones decodes the list. False: some of it cannot be read.
func (d *decoder) dnsZones(n *node, s *dnsDef) (whole bool) {
	items, ok := d.mappings(n, "zones")
	if !ok {
		return false
	}
	whole = true
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &dnsZoneSchema)
		if !ok {
			whole = false
			continue
		}
		n := f.need("name")
		if n == nil {
			whole = false
			continue
		}
		name, ok := d.domain(n, "name", false)
		if !ok {
			whole = false
			continue
		}
		if first, dup := names[name]; dup {
			d.duplicate(n, item, first, "zone")
			continue
		}
		names[name] = n
		s.Zones = append(s.Zones, d.dnsZone(f, name, s))
	}
	return whole
}

func (d *decoder) dnsZone(f fields, name string, s *dnsDef) lb.DNSZone {
	z := defaultZone(name)
	if n := f.own["mailbox"]; n != nil {
		d.mailbox(n, &z)
	}
	if n := f.own["serial"]; n != nil {
		if i, ok := d.integer(n, "serial", 1, 1<<32-1); ok {
			z.Serial = uint32(i)
		}
	}
	for _, each := range []struct {
		key  string
		into *time.Duration
		lo   time.Duration
		hi   time.Duration
	}{
		{"refresh", &z.Refresh, time.Second, maxTTL}, {"retry", &z.Retry, time.Second, maxTTL}, {"expire", &z.Expire, time.Second, maxExpire},
		{"ttl", &z.TTL, 0, maxTTL}, {"negative_ttl", &z.NegativeTTL, 0, maxTTL},
	} {
		n := f.own[each.key]
		if n == nil {
			continue
		}
		v, ok := d.duration(n, each.key, each.lo, each.hi)
		switch {
		case ok && v%time.Second != 0:
			d.errorf(n, "%s must be whole seconds, not %s", each.key, n.text)
		case ok:
			*each.into = v
		}
	}
	if n := f.need("name_servers"); n != nil {
		z.NameServers = d.nameServers(n, name, s)
	}
	return z
}

// mailbox decodes who is responsible: name@domain, or as a zone file has it.
func (d *decoder) mailbox(n *node, z *lb.DNSZone) {
	s, ok := d.text(n, "mailbox")
	if !ok {
		return
	}
	local, domain, at := strings.Cut(s, "@")
	if !at {
		if name, ok := d.domain(n, "mailbox", false); ok {
			z.Mailbox = name
		}
		return
	}
	domain = strings.TrimSuffix(strings.ToLower(domain), ".")
	labels := strings.Split(local, ".")
	if problem := domainProblem(domain); problem != "" || slices.ContainsFunc(labels, func(l string) bool { return domainProblem(strings.ToLower(l)) != "" }) ||
		len(local) > 63 || len(local)+len(domain) > 250 {
		d.errorf(n, "mailbox %q must be an address such as hostmaster@example.com", s)
		return
	}
	z.Mailbox = strings.Join(labels, `\.`) + "." + domain + "."
}

// nameServers decodes the name servers of a zone: names, and addresses where nobody else
// would tell them.
func (d *decoder) nameServers(n *node, zone string, s *dnsDef) (all []lb.DNSNameServer) {
	items, ok := d.mappings(n, "name_servers")
	if !ok {
		return nil
	}
	if len(items) == 0 {
		d.errorf(n, "name_servers is empty: a zone has one at least")
	}
	for _, item := range items {
		server, at := lb.DNSNameServer{}, item
		if item.kind == mapping {
			f, ok := d.fields(item, &nameServerSchema)
			if !ok {
				continue
			}
			if n := f.own["addresses"]; n != nil {
				server.Addresses = d.addressList(n)
			}
			if at = f.need("name"); at == nil {
				continue
			}
		}
		if server.Name, ok = d.domain(at, "name server", false); !ok {
			continue
		}
		if slices.ContainsFunc(all, func(o lb.DNSNameServer) bool { return o.Name == server.Name }) {
			d.errorf(at, "name server %q is there twice", at.text)
			continue
		}
		s.nameServers = append(s.nameServers, nameServerDef{server, zone, at, false})
		all = append(all, server)
	}
	return all
}

func (d *decoder) addressList(n *node) (all []netip.Addr) {
	items, ok := d.list(n, "addresses")
	if !ok {
		return nil
	}
	for _, item := range items {
		a, ok := d.address(item, "address")
		switch {
		case !ok:
		case slices.Contains(all, a):
			d.errorf(item, "duplicate address %v", a)
		default:
			all = append(all, a)
		}
	}
	return all
}

// A nameServerDef is a name server of a zone, and its place.
type nameServerDef struct {
	lb.DNSNameServer
	zone    string
	at      *node
	derived bool // the zone is made up for a record
}

// checkZones gives records that no zone holds one of their own, and looks at what names
// have to do with each other.
func (d *decoder) checkZones(s *dnsDef, whole bool) {
	if !whole {
		return // what seems to be missing may be in what cannot be read
	}
	d.deriveZones(s)
	byName := map[string]bool{}
	for _, z := range s.Zones {
		byName[z.Name] = true
	}
	records := map[string]bool{}
	for _, r := range s.Records {
		records[r.Name] = true
	}
	known := map[string][]netip.Addr{}
	for _, k := range s.nameServers {
		if len(k.Addresses) > 0 && known[k.Name] == nil {
			known[k.Name] = k.Addresses
		}
	}
	for _, k := range s.nameServers {
		inside := zoneOf(k.Name, byName) != ""
		switch {
		case len(k.Addresses) > 0 && !inside:
			d.errorf(k.at, "name server %s is in no zone of this configuration, so nobody asks here for its addresses: leave them out", k.Name)
		case len(k.Addresses) > 0 && records[k.Name] && k.derived:
			d.errorf(k.at, "no zone holds %s, and the name server of one that is made up for it would be %s, which is a record: write zones: [{name: %s, name_servers: [...]}]", k.at.text, k.Name, k.zone)
		case len(k.Addresses) > 0 && records[k.Name]:
			d.errorf(k.at, "name server %s is a record, too: leave its addresses out, or name it otherwise", k.Name)
		case len(k.Addresses) > 0 && !slices.Equal(known[k.Name], k.Addresses):
			d.errorf(k.at, "name server %s has other addresses in another zone", k.Name)
		case inside && len(k.Addresses) == 0 && known[k.Name] == nil && !records[k.Name]:
			d.errorf(k.at, "name server %s is in a zone of this configuration, and nothing says its addresses: write {name: %s, addresses: [...]}", k.Name, k.at.text)
		}
	}
}

// deriveZones makes a zone of each record that is in none, but for those below another
// one. Its name server is called ns, and has the addresses that are listened on.
func (d *decoder) deriveZones(s *dnsDef) {
	var addresses []netip.Addr
	for _, a := range s.Listen {
		if !a.Addr().IsUnspecified() && !slices.Contains(addresses, a.Addr()) {
			addresses = append(addresses, a.Addr())
		}
	}
	all := map[string]bool{}
	for _, z := range s.Zones {
		all[z.Name] = true
	}
	order := make([]int, len(s.Records))
	for i := range order {
		order[i] = i
	}
	apexOf := func(i int) string { return strings.TrimPrefix(s.Records[i].Name, "*.") }
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(len(apexOf(i)), len(apexOf(j))) })
	for _, i := range order {
		apex := apexOf(i)
		if zoneOf(apex, all) != "" {
			continue
		}
		all[apex] = true
		at := s.records[i]
		if len(addresses) == 0 {
			if len(s.Listen) > 0 {
				d.errorf(at, "no zone holds %s, and none can be made up for it, since listen has no address for its name server: write zones: [{name: ..., name_servers: [...]}]", at.text)
			}
			continue
		}
		z := defaultZone(apex)
		z.NameServers = []lb.DNSNameServer{{Name: "ns." + apex, Addresses: addresses}}
		s.nameServers = append(s.nameServers, nameServerDef{z.NameServers[0], apex, at, true})
		s.Zones = append(s.Zones, z)
	}
}

// zoneOf returns the longest of names that a name is or is below; "": none.
func zoneOf(name string, all map[string]bool) string {
	for rest := name; rest != ""; {
		if all[rest] {
			return rest
		}
		_, rest, _ = strings.Cut(rest, ".")
	}
	return ""
}

// poolUsers are the ports at which servers without one of their own are reached, by
// pool: those of the first service that has the pool, or else of the first upstream.
type poolUsers map[string]uint16

func usersOf(services []*serviceDef, h *httpDef) poolUsers {
	all := poolUsers{}
	add := func(pool string, port uint16) {
		if all[pool] == 0 {
			all[pool] = port
		}
	}
	for _, s := range services {
		if len(s.Addresses) > 0 && s.Pool.Name != "" {
			add(s.Pool.Name, s.Addresses[0].Port())
		}
	}
	for _, u := range h.Upstreams {
		if u.Pool.Name != "" {
			add(u.Pool.Name, u.Port)
		}
	}
	return all
}
