package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

var sourceLimitSchema = schema{
	what: "source_limit",
	keys: []string{"rate", "burst"},
}

// maxRate bounds rate and burst of a source limit.
const maxRate = 1000000

// access decodes who may use a service, and how much.
func (d *decoder) access(f fields, s *lb.Service) {
	places := map[netip.Prefix]*node{}
	if n := f.get("allow"); n != nil {
		d.rules(n, "allow", func(p netip.Prefix, at *node) {
			places[p] = at
			s.Rules = append(s.Rules, lb.Rule{Prefix: p, Allow: true})
			s.AllowOnly = true
		})
	}
	if n := f.get("deny"); n != nil {
		d.rules(n, "deny", func(p netip.Prefix, at *node) {
			if allowed := places[p]; allowed != nil {
				if !f.sets("deny") && f.sets("allow") {
					at, allowed = allowed, at // the default is not what is wrong
				}
				d.errorf(at, "prefix %v is in allow and in deny: %s", p, allowed.elsewhere(at))
				return
			}
			s.Rules = append(s.Rules, lb.Rule{Prefix: p})
		})
	}
	if n := f.get("source_limit"); n != nil {
		limit := d.sourceLimit(n)
		switch {
		case s.Protocol != lb.UDP:
			s.SourceLimit = limit
		case f.sets("source_limit"): // a default does not go with it, and is left out
			d.errorf(n, "source_limit counts new connections, and UDP has none: leave it out")
		}
	}
}

// rules decodes a list of prefixes, each of them once.
func (d *decoder) rules(n *node, what string, add func(netip.Prefix, *node)) {
	items, ok := d.list(n, what)
	if !ok {
		return
	}
	seen := map[netip.Prefix]*node{}
	for _, item := range items {
		p, ok := d.sources(item, what)
		if !ok {
			continue
		}
		if first := seen[p]; first != nil {
			d.errorf(item, "duplicate prefix %v in %s: %s", p, what, first.elsewhere(item))
			continue
		}
		seen[p] = item
		add(p, item)
	}
}

// sources decodes a prefix of either family, in which no bit behind its length
// is set; an address stands for itself alone.
func (d *decoder) sources(n *node, what string) (netip.Prefix, bool) {
	s, ok := d.addressText(n, what, "192.0.2.0/24")
	if !ok {
		return netip.Prefix{}, false
	}
	p, problem := parseSources(s)
	if problem != "" {
		d.errorf(n, "%s", problem)
		return netip.Prefix{}, false
	}
	return p, true
}

func parseSources(s string) (netip.Prefix, string) {
	host, bits, has := strings.Cut(s, "/")
	a, err := netip.ParseAddr(host)
	switch {
	case s == "all":
		return netip.Prefix{}, `bad prefix "all": write 0.0.0.0/0 and "::/0"`
	case err != nil && !strings.Contains(host, ":") && strings.ContainsFunc(host, isLetter):
		return netip.Prefix{}, fmt.Sprintf("bad prefix %q: names are not looked up, write the IP addresses", s)
	case err != nil:
		return netip.Prefix{}, fmt.Sprintf("bad prefix %q: %s", s, addrReason(err))
	case a.Zone() != "":
		return netip.Prefix{}, fmt.Sprintf("bad prefix %q: a zone (%%%s) has no place here", s, a.Zone())
	case a.Is4In6():
		return netip.Prefix{}, fmt.Sprintf("bad prefix %q: write it as IPv4, %v", s, a.Unmap())
	}
	if !has {
		return netip.PrefixFrom(a, a.BitLen()), ""
	}
	p, err := netip.ParsePrefix(host + "/" + bits)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Sprintf("bad prefix %q: the length after / must be a number from 0 to %d", s, a.BitLen())
	case p != p.Masked():
		return netip.Prefix{}, fmt.Sprintf("prefix %s has bits set behind its length: write %v", s, p.Masked())
	}
	return p, ""
}

func (d *decoder) sourceLimit(n *node) lb.SourceLimit {
	f, ok := d.fields(n, &sourceLimitSchema)
	if !ok {
		return lb.SourceLimit{}
	}
	var l lb.SourceLimit
	if n := f.need("rate"); n != nil {
		l.Rate, _ = d.integer(n, "rate", 1, maxRate)
	}
	l.Burst = l.Rate
	if n := f.own["burst"]; n != nil {
		l.Burst, _ = d.integer(n, "burst", 1, maxRate)
	}
	return l
}
