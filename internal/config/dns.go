package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var dnsSchema = schema{
	what: "dns",
	keys: []string{"listen", "zones", "records", "rate_limit", "tcp"},
	hints: map[string]string{
		"listen_on":       "bind's listen-on is \"listen\": [\"192.0.2.100:53\"]",
		"zone":            "zones are a list under \"zones\"",
		"record":          "records are a list under \"records\"",
		"recursion":       "there is none: names outside the zones are refused",
		"forwarders":      "there is no recursion: names outside the zones are refused",
		"rate-limit":      "it is called \"rate_limit\" here",
		"allow-query":     "everybody may ask; filter in front of the node",
		"max_connections": "it stands under \"tcp\"",
	},
}

var dnsRecordSchema = schema{
	what: "a record",
	keys: []string{"name", "ttl", "policy", "pool", "port", "answers"},
	hints: map[string]string{
		"type":      "A and AAAA follow from the addresses of the pool",
		"address":   "addresses are those of a pool: write pool: NAME",
		"addresses": "addresses are those of a pool: write pool: NAME",
		"servers":   "servers are listed in a pool: write pool: NAME",
		"health":    "health belongs into the pool",
	},
}

var (
	dnsRateSchema = schema{
		what:  "rate_limit of dns",
		keys:  []string{"rate", "burst", "slip", "exempt"},
		hints: map[string]string{"responses-per-second": "it is called \"rate\" here", "exempt-clients": "it is called \"exempt\" here"},
	}
	dnsTCPSchema = schema{what: "tcp of dns", keys: []string{"max_connections", "idle_timeout"}}
)

// Bounds and defaults of dns.
const (
	defaultRecordTTL      = 30 * time.Second
	maxTTL                = 7 * 24 * time.Hour
	defaultSlip           = 2
	defaultConnections    = 1000
	defaultDNSIdleTimeout = 10 * time.Second
	maxDNSRate            = 1_000_000
	maxDomain             = 240 // of the 253 that a name may have: others are made of it
)

// A dnsDef is the section with the places that later checks point at.
type dnsDef struct {
	lb.DNS
	listens     []*node // parallel to Listen
	records     []*node // parallel to Records: their names
	nameServers []nameServerDef
}

// dns decodes the section.
func (d *decoder) dns(n *node, pools []*poolDef, users poolUsers) *dnsDef {
	s := &dnsDef{}
	if n == nil {
		return s
	}
	f, ok := d.fields(n, &dnsSchema)
	if !ok {
		return s
	}
	if n := f.need("listen"); n != nil {
		d.dnsListens(n, s)
	}
	if n := f.own["records"]; n != nil {
		d.dnsRecords(n, s, pools, users)
	}
	wholeZones := true
	if n := f.own["zones"]; n != nil {
		wholeZones = d.dnsZones(n, s)
	}
	if f.own["records"] == nil && f.own["zones"] == nil {
		d.errorf(f.n, "missing key \"records\": without it there is nothing to answer")
	}
	d.checkZones(s, wholeZones)
	if n := f.own["rate_limit"]; n != nil {
		s.RateLimit = d.dnsRate(n)
	}
	s.TCP = lb.DNSTCP{MaxConnections: defaultConnections, IdleTimeout: defaultDNSIdleTimeout}
	if n := f.own["tcp"]; n != nil {
		d.dnsTCP(n, &s.TCP)
	}
	return s
}

func (d *decoder) dnsListens(n *node, s *dnsDef) {
	items := []*node{n}
	if n.kind == list {
		if items = n.items; len(items) == 0 {
			d.errorf(n, "listen is empty: name one address at least")
		}
	}
	for _, item := range items {
		for _, a := range d.listenAddresses(item, 53) {
			if i := slices.Index(s.Listen, a); i >= 0 {
				d.errorf(item, "listen %v is there twice: %s", a, s.listens[i].elsewhere(item))
				continue
			}
			s.Listen, s.listens = append(s.Listen, a), append(s.listens, item)
		}
	}
}

func (d *decoder) dnsRecords(n *node, s *dnsDef, pools []*poolDef, users poolUsers) {
	items, ok := d.mappings(n, "records")
	if !ok {
		return
	}
	if len(items) == 0 {
		d.errorf(n, "records is empty: leave it out, or name one")
	}
	byName := map[string]*poolDef{}
	for _, p := range pools {
		byName[p.Name] = p
	}
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &dnsRecordSchema)
		if !ok {
			continue
		}
		r := lb.DNSRecord{TTL: defaultRecordTTL, Policy: lb.DNSRoundRobin}
		d.recordSettings(f, &r)
		if n := f.need("pool"); n != nil {
			if p := d.poolOf(f, n, byName); p != nil {
				r.Pool = p.Pool
				r.Port = d.recordPort(f, p, users)
				if i := slices.IndexFunc(s.Records, func(o lb.DNSRecord) bool { return o.Pool.Name == p.Name && o.Port != r.Port }); i >= 0 {
					d.errorf(f.n, "pool %q has %s here, and %s for record %s: a pool has one port in dns", p.Name, portText(r.Port), portText(s.Records[i].Port), s.Records[i].Name)
				}
			}
		}
		n := f.need("name")
		if n == nil {
			continue
		}
		if r.Name, ok = d.domain(n, "name", true); !ok {
			continue
		}
		if first, dup := names[r.Name]; dup {
			d.duplicate(n, item, first, "record")
			continue
		}
		names[r.Name] = n
		s.Records, s.records = append(s.Records, r), append(s.records, n)
	}
}

// portText names the port of a record.
func portText(port uint16) string {
	if port == 0 {
		return "no port"
	}
	return fmt.Sprintf("port %d", port)
}

func (d *decoder) recordSettings(f fields, r *lb.DNSRecord) {
	if n := f.own["ttl"]; n != nil {
		if v, ok := d.ttl(n, "ttl", 0); ok {
			r.TTL = v
		}
	}
	if n := f.own["policy"]; n != nil {
		words := []string{string(lb.DNSRoundRobin), string(lb.DNSWeighted), string(lb.DNSSourceHash), string(lb.DNSAll)}
		if w, ok := d.oneOf(n, "policy", words, nil); ok {
			r.Policy = lb.DNSPolicy(w)
		}
	}
	if r.Policy == lb.DNSWeighted || r.Policy == lb.DNSSourceHash {
		r.Answers = 1
	}
	if n := f.own["answers"]; n != nil {
		if i, ok := d.integer(n, "answers", 0, maxWeight); ok {
			r.Answers = i
		}
	}
}

// ttl decodes a time in whole seconds, as DNS has them.
func (d *decoder) ttl(n *node, what string, lo time.Duration) (time.Duration, bool) {
	v, ok := d.duration(n, what, lo, maxTTL)
	if ok && v%time.Second != 0 {
		d.errorf(n, "%s must be whole seconds, not %s", what, n.text)
		return 0, false
	}
	return v, ok
}

// recordPort finds the port at which servers without one of their own are probed: the
// one that is said, or that of who else has the pool, so that probes are the same. 0:
// there is none, and none is needed.
func (d *decoder) recordPort(f fields, p *poolDef, users poolUsers) uint16 {
	if n := f.own["port"]; n != nil {
		i, _ := d.integer(n, "port", 1, 65535)
		return uint16(i)
	}
	if port := users[p.Name]; port != 0 {
		return port
	}
	probe := p.Probe
	if probe != nil && probe.Port == 0 && probe.Type != lb.ProbeCheck && slices.ContainsFunc(p.servers, func(s serverDef) bool { return s.Port == 0 }) {
		d.errorf(f.own["pool"], "pool %q does not say at which port its servers are probed: write port: here, in its health, or with its servers", p.Name)
	}
	return 0
}

func (d *decoder) dnsRate(n *node) *lb.DNSRateLimit {
	f, ok := d.fields(n, &dnsRateSchema)
	if !ok {
		return nil
	}
	l := &lb.DNSRateLimit{Slip: defaultSlip}
	n = f.need("rate")
	if n == nil {
		return nil
	}
	if l.Rate, ok = d.integer(n, "rate", 1, maxDNSRate); !ok {
		return nil
	}
	l.Burst = l.Rate
	if n := f.own["burst"]; n != nil {
		l.Burst, _ = d.integer(n, "burst", 0, maxDNSRate)
	}
	if n := f.own["slip"]; n != nil {
		l.Slip, _ = d.integer(n, "slip", 0, 100)
	}
	if n := f.own["exempt"]; n != nil {
		d.rules(n, "exempt", func(p netip.Prefix, _ *node) { l.Exempt = append(l.Exempt, p) })
	}
	return l
}

func (d *decoder) dnsTCP(n *node, t *lb.DNSTCP) {
	f, ok := d.fields(n, &dnsTCPSchema)
	if !ok {
		return
	}
	if n := f.own["max_connections"]; n != nil {
		if i, ok := d.integer(n, "max_connections", 1, 65535); ok {
			t.MaxConnections = i
		}
	}
	if n := f.own["idle_timeout"]; n != nil {
		if v, ok := d.duration(n, "idle_timeout", 100*time.Millisecond, time.Hour); ok {
			t.IdleTimeout = v
		}
	}
}

// domain decodes a name, into lower case and with its final dot. Wildcard allows "*." in
// front of it.
func (d *decoder) domain(n *node, what string, wildcard bool) (string, bool) {
	s, ok := d.text(n, what)
	if !ok {
		return "", false
	}
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	rest := name
	if wildcard {
		rest = strings.TrimPrefix(name, "*.")
	}
	switch problem := domainProblem(rest); {
	case strings.ContainsFunc(s, func(r rune) bool { return r > 127 }):
		d.errorf(n, "%s %q must be written as DNS has it, in ASCII (xn--...)", what, s)
	case problem != "":
		d.errorf(n, "%s %q is no name of a host or a zone: %s", what, s, problem)
	case len(name) > maxDomain:
		d.errorf(n, "%s %q is longer than %d bytes", what, s, maxDomain)
	default:
		return name + ".", true
	}
	return "", false
}

func domainProblem(name string) string {
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "a label is empty"
		case label == "*":
			return "an asterisk stands for the first label of a record only"
		case len(label) > 63:
			return "a label is longer than 63 bytes"
		case strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}):
			return "labels consist of letters, digits, '-' and '_'"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a label begins and ends with a letter or a digit"
		}
	}
	return ""
}
