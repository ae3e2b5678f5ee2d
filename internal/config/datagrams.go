package config

import (
	"regexp"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

var querySchema = schema{
	what: "query",
	keys: []string{"name", "type"},
}

// Bounds of a name in DNS (RFC 1035, section 2.3.4): as text, with its final dot.
const (
	maxDNSName  = 254
	maxDNSLabel = 63
)

// query decodes a name, which is asked for its addresses of IPv4, or a mapping.
func (d *decoder) query(n *node) (q lb.Query, ok bool) {
	q.Type = lb.QueryA
	name := n
	if n.kind == mapping {
		f, _ := d.fields(n, &querySchema)
		if t := f.own["type"]; t != nil {
			q.Type = d.queryType(t)
		}
		if name = f.need("name"); name == nil {
			return q, false
		}
	}
	s, ok := d.text(name, "query")
	if !ok {
		return q, false
	}
	q.Name = strings.TrimSuffix(s, ".") + "."
	if q.Name == "." {
		return q, true // the root
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(q.Name, "."), ".") {
		if label == "" || len(label) > maxDNSLabel || strings.ContainsAny(label, " /\\:") {
			d.errorf(name, "query: %q is no name that a name server could know", s)
			return q, false
		}
	}
	if len(q.Name) > maxDNSName {
		d.errorf(name, "query: the name is longer than %d bytes", maxDNSName-1)
		return q, false
	}
	return q, true
}

func (d *decoder) queryType(n *node) lb.QueryType {
	var words []string
	for _, t := range lb.QueryTypes() {
		words = append(words, t.String())
		if n.kind == scalar && strings.EqualFold(n.text, t.String()) {
			return t
		}
	}
	d.oneOf(n, "type", words, nil)
	return lb.QueryA
}

// maxSend bounds a datagram: what every network carries in one piece, in bytes.
const maxSend = 1200

// datagrams decodes send and expect.
func (d *decoder) datagrams(f fields) (send string, expect *regexp.Regexp) {
	if n := f.get("send"); n != nil {
		switch {
		case n.kind != scalar:
			d.mismatch(n, "send", "a text")
		case len(n.text) > maxSend:
			d.errorf(n, "send has %d bytes: a datagram of %d at most goes everywhere in one piece", len(n.text), maxSend)
		default:
			send = n.text
		}
	}
	if n := f.get("expect"); n != nil {
		expect = d.expression(n, "expect")
	}
	return send, expect
}
