package config

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestAccess(t *testing.T) {
	allow := func(s string) lb.Rule { return lb.Rule{Prefix: netip.MustParsePrefix(s), Allow: true} }
	deny := func(s string) lb.Rule { return lb.Rule{Prefix: netip.MustParsePrefix(s)} }
	type access struct {
		Rules []lb.Rule
		Only  bool
		Limit lb.SourceLimit
	}
	tests := []struct {
		name, defaults, service string
		want                    access
	}{
		{"nothing", "", "", access{}},
		{"empty lists", "", "allow: [], deny: []", access{}},
		{"deny", "", "deny: [192.0.2.0/24, 198.51.100.7]", access{Rules: []lb.Rule{deny("192.0.2.0/24"), deny("198.51.100.7/32")}}},
		{
			"both families, allow and deny", "", `allow: [198.51.100.0/24, "2001:db8::/32", "2001:db8::1"], deny: [198.51.100.0/25, "2001:DB8:1::/48"]`,
			access{
				Rules: []lb.Rule{allow("198.51.100.0/24"), allow("2001:db8::/32"), allow("2001:db8::1/128"), deny("198.51.100.0/25"), deny("2001:db8:1::/48")},
				Only:  true,
			},
		},
		{"everyone", "", `deny: [0.0.0.0/0, "::/0"]`, access{Rules: []lb.Rule{deny("0.0.0.0/0"), deny("::/0")}}},
		{"a default", "allow: [198.51.100.0/24], deny: [198.51.100.1]", "", access{Rules: []lb.Rule{allow("198.51.100.0/24"), deny("198.51.100.1/32")}, Only: true}},
		{"a default replaced", "allow: [198.51.100.0/24], deny: [198.51.100.1]", "allow: [192.0.2.1]", access{Rules: []lb.Rule{allow("192.0.2.1/32"), deny("198.51.100.1/32")}, Only: true}},
		{"a default lifted", "allow: [198.51.100.0/24]", "allow: []", access{}},
		{"a limit", "", "source_limit: {rate: 100, burst: 200}", access{Limit: lb.SourceLimit{Rate: 100, Burst: 200}}},
		{"a burst below the rate", "", "source_limit: {rate: 1000000, burst: 1}", access{Limit: lb.SourceLimit{Rate: 1000000, Burst: 1}}},
		{"a limit without a burst", "", "source_limit: {rate: 7}", access{Limit: lb.SourceLimit{Rate: 7, Burst: 7}}},
		{"a default limit replaced whole", "source_limit: {rate: 5, burst: 6}", "source_limit: {rate: 7}", access{Limit: lb.SourceLimit{Rate: 7, Burst: 7}}},
		{"a default limit", "source_limit: {rate: 5, burst: 6}", "", access{Limit: lb.SourceLimit{Rate: 5, Burst: 6}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, "defaults: {service: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, address: 192.0.2.100:80, backends: [{address: 192.0.2.11}], "+tt.service+"}]\n")
			s := c.Services[0]
			if diff := cmp.Diff(tt.want, access{s.Rules, s.AllowOnly, s.SourceLimit}, compare...); diff != "" {
				t.Errorf("access (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	type times struct{ Slow, Window, Drain time.Duration }
	for _, tt := range []struct {
		name, defaults, service string
		want                    times
	}{
		{"nothing", "", "", times{0, 5 * time.Minute, time.Hour}},
		{"a default", "slow_start: 1m, track_window: 1h, drain_timeout: 24h", "drain_timeout: 0s", times{time.Minute, time.Hour, 0}},
		{"least", "", "slow_start: 0s, track_window: 0s, drain_timeout: 0s", times{}},
		{"least window", "", "track_window: 1s", times{0, time.Second, time.Hour}},
		{"most", "", "slow_start: 24h, track_window: 18h, drain_timeout: 168h", times{24 * time.Hour, 18 * time.Hour, 168 * time.Hour}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, "defaults: {service: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, address: 192.0.2.100:80, backends: [{address: 192.0.2.11}], "+tt.service+"}]\n")
			s := c.Services[0]
			if diff := cmp.Diff(tt.want, times{s.SlowStart, s.TrackWindow, s.DrainTimeout}); diff != "" {
				t.Errorf("times (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTunnelSources(t *testing.T) {
	c := mustLoad(t, `datapath: {tunnel: {source_ipv4: 198.51.100.7, source_ipv6: "2001:db8::/32"}}`)
	got := []netip.Prefix{c.Datapath.TunnelSource4, c.Datapath.TunnelSource6}
	want := []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8::/32")}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
}

var accessMistakes = []mistakeCase{
	{"prefixes", withInterface + `services:
- name: s
  address: 192.0.2.100:80
  allow:
  - 198.51.100.1/24
  - "2001:db8::1/64"
  - 198.51.100.0/33
  - 198.51.100.0/024
  - 198.51.100.0/
  - 198.51.100/24
  - office
  - "fe80::1%eth0"
  - "::ffff:198.51.100.0/120"
  - 198.51.100.0/24
  - [x]
  - ""
  deny: 192.0.2.1
  backends: [{address: 192.0.2.1}]
`, []string{
		`6:5: prefix 198.51.100.1/24 has bits set behind its length: write 198.51.100.0/24`,
		`7:5: prefix 2001:db8::1/64 has bits set behind its length: write 2001:db8::/64`,
		`8:5: bad prefix "198.51.100.0/33": the length after / must be a number from 0 to 32`,
		`9:5: bad prefix "198.51.100.0/024": the length after / must be a number from 0 to 32`,
		`10:5: bad prefix "198.51.100.0/": the length after / must be a number from 0 to 32`,
		`11:5: bad prefix "198.51.100/24": IPv4 address too short`,
		`12:5: bad prefix "office": names are not looked up, write the IP addresses`,
		`13:5: bad prefix "fe80::1%eth0": a zone (%eth0) has no place here`,
		`14:5: bad prefix "::ffff:198.51.100.0/120": write it as IPv4, 198.51.100.0`,
		`16:5: allow must be an address such as 192.0.2.0/24, not a list`,
		`17:5: allow is empty`,
		`18:9: deny must be a list: write [192.0.2.1]`,
	}},
	{"prefixes twice", withInterface + `services:
- name: s
  address: 192.0.2.100:80
  allow: [198.51.100.0/24, 198.51.100.7, 198.51.100.0/24, "2001:db8::/64"]
  deny: [198.51.100.7/32, 192.0.2.0/24, 192.0.2.0/24, 198.51.100.0/25, "2001:db8:0::/64"]
  backends: [{address: 192.0.2.1}]
`, []string{
		`5:42: duplicate prefix 198.51.100.0/24 in allow: the first one is on line 5`,
		`6:10: prefix 198.51.100.7/32 is in allow and in deny: the first one is on line 5`,
		`6:41: duplicate prefix 192.0.2.0/24 in deny: the first one is on line 6`,
		`6:72: prefix 2001:db8::/64 is in allow and in deny: the first one is on line 5`,
	}},
	{"a prefix that a default denies", "defaults: {service: {deny: [198.51.100.7]}}\n" + withInterface + `services:
- name: s
  address: 192.0.2.100:80
  allow: [198.51.100.7]
  backends: [{address: 192.0.2.1}]
`, []string{
		`6:11: prefix 198.51.100.7/32 is in allow and in deny: the first one is on line 1`,
	}},
	{"limits", withInterface + `services:
- {name: a, address: 192.0.2.100:80, source_limit: {}, backends: [{address: 192.0.2.1}]}
- {name: b, address: 192.0.2.100:81, source_limit: {rate: 0, burst: 0}, backends: [{address: 192.0.2.1}]}
- {name: c, address: 192.0.2.100:82, source_limit: {rate: 1000001, burst: 1000001, per: 1s}, backends: [{address: 192.0.2.1}]}
- {name: d, address: 192.0.2.100:83, source_limit: 100, backends: [{address: 192.0.2.1}]}
`, []string{
		`3:52: missing key "rate": source_limit needs it`,
		`4:59: rate must be a whole number from 1 to 1000000, not 0`,
		`4:69: burst must be a whole number from 1 to 1000000, not 0`,
		`5:59: rate must be a whole number from 1 to 1000000, not 1000001`,
		`5:75: burst must be a whole number from 1 to 1000000, not 1000001`,
		`5:84: unknown key "per" in source_limit`,
		`6:52: source_limit must be a mapping ("key: value"), not "100"`,
	}},
	{"times", withInterface + `services:
- name: a
  address: 192.0.2.100:80
  slow_start: 25h
  track_window: 500ms
  drain_timeout: -1s
  backends: [{address: 192.0.2.1}]
- name: b
  address: 192.0.2.100:81
  slow_start: 30
  track_window: 19h
  drain_timeout: 169h
  backends: [{address: 192.0.2.1}]
`, []string{
		`5:15: slow_start must be from 0s to 24h, not 25h`,
		`6:17: track_window must be 0s (none) or at least 1s, not 500ms`,
		`7:18: drain_timeout must be from 0s to 168h, not -1s`,
		`11:15: slow_start has no unit: write 30s`,
		`12:17: track_window must be from 0s to 18h, not 19h`,
		`13:18: drain_timeout must be from 0s to 168h, not 169h`,
	}},
	{"sources of tunnels", `datapath:
  tunnel:
    source_ipv4: "100::/64"
    source_ipv6: 172.16.0.0/16
    sources: x
`, []string{
		`3:18: source_ipv4 must be an IPv4 prefix, 100::/64 is IPv6`,
		`4:18: source_ipv6 must be an IPv6 prefix, 172.16.0.0/16 is IPv4`,
		`5:5: unknown key "sources" in tunnel`,
	}},
	{"sources of tunnels, too wide", "datapath: {tunnel: {source_ipv4: 8.0.0.0/7, source_ipv6: \"2001::/16\"}}\n", []string{
		`1:34: source_ipv4 must have a length from 8 to 32, not 8.0.0.0/7`,
		`1:58: source_ipv6 must have a length from 32 to 128, not 2001::/16`,
	}},
	{"sources of tunnels, of no host", "datapath: {tunnel: {source_ipv4: 127.0.0.0/8, source_ipv6: \"ff02::/64\"}}\n", []string{
		`1:34: source_ipv4 127.0.0.0/8 cannot be a source: address 127.0.0.0 is a loopback address: no other machine can reach it`,
		`1:60: source_ipv6 ff02::/64 cannot be a source: address ff02:: is a multicast address`,
	}},
	{"sources of tunnels, host bits", "datapath: {tunnel: {source_ipv4: 172.16.0.1/16, source_ipv6: [x]}}\n", []string{
		`1:34: prefix 172.16.0.1/16 has bits set behind its length: write 172.16.0.0/16`,
		`1:62: source_ipv6 must be an address such as 192.0.2.0/24, not a list`,
	}},
}

func TestAccessMistakes(t *testing.T) {
	for _, tt := range accessMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
