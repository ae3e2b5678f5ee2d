package config

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestDatagrams(t *testing.T) {
	type settings struct {
		Type   lb.ProbeType
		Query  lb.Query
		Send   string
		Expect *regexp.Regexp
		ViaVIP bool
	}
	dns := func(name string, of lb.QueryType) settings {
		return settings{Type: lb.ProbeDNS, Query: lb.Query{Name: name, Type: of}}
	}
	for _, tt := range []struct {
		name, defaults, health string
		want                   settings
	}{
		{"a name", "", "type: dns, query: www.example.com", dns("www.example.com.", lb.QueryA)},
		{"a name with its dot", "", "type: dns, query: www.example.com.", dns("www.example.com.", lb.QueryA)},
		{"a type", "", "type: dns, query: {name: _sip._udp.example.com, type: SRV}", dns("_sip._udp.example.com.", lb.QuerySRV)},
		{"a type in small letters", "", "type: dns, query: {name: www.example.com, type: aaaa}", dns("www.example.com.", lb.QueryAAAA)},
		{"no type", "", "type: dns, query: {name: www.example.com}", dns("www.example.com.", lb.QueryA)},
		{"the root", "", "type: dns, query: {name: ., type: NS}", dns(".", lb.QueryNS)},
		{"by default", "type: dns, query: www.example.com", "", dns("www.example.com.", lb.QueryA)},
		{"half by default", "type: dns", "type: dns, query: www.example.com", dns("www.example.com.", lb.QueryA)},
		{"nothing of udp", "", "type: udp", settings{Type: lb.ProbeUDP}},
		{"an empty datagram", "", `type: udp, send: ""`, settings{Type: lb.ProbeUDP}},
		{"escapes", "", `type: udp, send: "a\r\n\0\u00fc", expect: "(?s)^b.$"`,
			settings{Type: lb.ProbeUDP, Send: "a\r\n\x00ü", Expect: regexp.MustCompile("(?s)^b.$")}},
		{"through the VIP by default", "via: vip", "type: udp", settings{Type: lb.ProbeUDP}},
		{"direct", "", "type: udp, via: direct", settings{Type: lb.ProbeUDP}},
		{"for others by default", "query: www.example.com, send: x, expect: x", "type: tcp", settings{Type: lb.ProbeTCP, ViaVIP: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			health := ""
			if tt.health != "" {
				health = ", health: {" + tt.health + "}"
			}
			c := mustLoad(t, "defaults: {health: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, protocol: udp, forward: dsr, address: 192.0.2.100:53, backends: [{address: 192.0.2.1}]"+health+"}]\n")
			checkInvariants(t, c)
			p := c.Services[0].Pool.Probe
			if diff := cmp.Diff(tt.want, settings{p.Type, p.Query, p.Send, p.Expect, p.ViaVIP}, compare...); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDatagramMistakes(t *testing.T) {
	health := func(text string) string {
		return "pools:\n- name: p\n  servers: [{address: 192.0.2.1}]\n  health: {" + text + "}\n"
	}
	for _, tt := range []mistakeCase{
		{"no query", health("type: dns"), []string{`4:11: missing key "query": a probe of type dns needs it`}},
		{"no query anywhere", "defaults: {health: {type: dns}}\npools: [{name: p, servers: [{address: 192.0.2.1}]}]\n", []string{
			`1:27: missing key "query": a probe of type dns needs it`,
		}},
		{"an empty query", health("type: dns, query: {}"), []string{`4:30: missing key "name": query needs it`}},
		{"a query of another kind", health("type: dns, query: [a]"), []string{"4:30: query must be a text, not a list"}},
		{"names", health("type: dns, query: a..b"), []string{`4:30: query: "a..b" is no name that a name server could know`}},
		{"a URL", health("type: dns, query: 'http://a/'"), []string{`4:30: query: "http://a/" is no name that a name server could know`}},
		{"a long label", health("type: dns, query: " + strings.Repeat("a", 64) + ".example.com"), []string{
			`4:30: query: "` + strings.Repeat("a", 64) + `.example.com" is no name that a name server could know`,
		}},
		{"a long name", health("type: dns, query: " + strings.Repeat("aaaa.", 51)), []string{"4:30: query: the name is longer than 253 bytes"}},
		{"types of queries", health("type: dns, query: {name: a, type: AAA, class: IN}"), []string{
			`4:46: type must be one of A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, HTTPS, CAA, not "AAA"`,
			`4:51: unknown key "class" in query`,
		}},
		{"a long datagram", health("type: udp, send: " + strings.Repeat("x", 1201)), []string{
			"4:29: send has 1201 bytes: a datagram of 1200 at most goes everywhere in one piece",
		}},
		{"datagrams", health("type: udp, send: [a], expect: '('"), []string{
			"4:29: send must be a text, not a list",
			"4:42: expect is not a regular expression: missing closing ): `(`",
		}},
		{"keys of other types", health("type: udp, query: a, path: /"), []string{
			"4:23: query is for probes of type dns, this one's type is udp",
			"4:33: path is for probes of type http or https, this one's type is udp",
		}},
		{"through the VIP", health("type: dns, query: a, via: vip"), []string{
			"4:38: via: vip is for probes over TCP (tcp, http, https): one of type dns does not go there",
		}},
		{"through the VIP, in a service", withInterface + "services: [{name: s, address: 192.0.2.100:53, forward: dsr, protocol: udp, backends: [{address: 192.0.2.1}], health: {type: udp, via: vip}}]\n", []string{
			"2:135: via: vip is for probes over TCP (tcp, http, https): one of type udp does not go there",
		}},
		{"mistakes in defaults", "defaults: {health: {query: a b, send: [], expect: '['}}\n", []string{
			`1:28: query: "a b" is no name that a name server could know`,
			"1:39: send must be a text, not a list",
			"1:51: expect is not a regular expression: missing closing ]: `[`",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
