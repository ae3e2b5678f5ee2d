package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIPv6Instances(t *testing.T) {
	c := mustLoad(t, `
nodes: [{name: lb1, address: "2001:db8::1"}, {name: lb2, address: 2001:db8::2}]
vrrp:
  - {name: four, interface: e, virtual_router_id: 5, addresses: [192.0.2.100]}
  - {name: six, interface: e, virtual_router_id: 5, addresses: ["fe80::100/64", 2001:db8::100, 2001:db8::101/64]}
  - {name: link, interface: f, virtual_router_id: 5, addresses: ["fe80::100"]}
  - {name: ends, interface: e, virtual_router_id: 6, addresses: ["2001:db8:1::/127"]}
`)
	got := map[string][]netip.Prefix{}
	for _, i := range c.VRRP {
		got[i.Name] = i.Addresses
	}
	want := map[string][]netip.Prefix{
		"four": {netip.MustParsePrefix("192.0.2.100/32")},
		"six": {
			netip.MustParsePrefix("fe80::100/64"), netip.MustParsePrefix("2001:db8::100/128"), netip.MustParsePrefix("2001:db8::101/64"),
		},
		"link": {netip.MustParsePrefix("fe80::100/128")},
		"ends": {netip.MustParsePrefix("2001:db8:1::/127")},
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestUnicast(t *testing.T) {
	const (
		four = "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}, {name: lb3, address: 198.51.100.3}]\n"
		six  = "nodes: [{name: lb1, address: 2001:db8::1}, {name: lb2, address: 2001:db8::2}]\n"
	)
	type peers struct {
		Peers  []netip.Addr
		Source netip.Addr
	}
	for _, tt := range []struct {
		name, yaml string
		want       peers
	}{
		{"off", four + instance("addresses: [192.0.2.100], unicast: false"), peers{}},
		{"the other nodes", four + instance("addresses: [192.0.2.100], unicast: true"),
			peers{[]netip.Addr{addr("192.0.2.2"), addr("198.51.100.3")}, addr("192.0.2.1")}},
		{"the other node, IPv6", six + instance("addresses: [2001:db8::100], unicast: true"),
			peers{[]netip.Addr{addr("2001:db8::2")}, addr("2001:db8::1")}},
		{"a list without a roster", instance("addresses: [192.0.2.100], unicast_peers: [192.0.2.2, 192.0.2.3]"),
			peers{Peers: []netip.Addr{addr("192.0.2.2"), addr("192.0.2.3")}}},
		{"a list of the other family than the roster", four + instance("addresses: [2001:db8::100], unicast_peers: [\"2001:db8::2\"]"),
			peers{Peers: []netip.Addr{addr("2001:db8::2")}}},
		{"a list with a roster", four + instance("addresses: [192.0.2.100], unicast_peers: [192.0.2.2]"),
			peers{[]netip.Addr{addr("192.0.2.2")}, addr("192.0.2.1")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := mustLoad(t, tt.yaml).VRRP[0]
			if diff := cmp.Diff(tt.want, peers{i.Peers, i.Source}, compare...); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
		})
	}
}

// instance is a section with one instance, on line 2, whose own keys start in
// column 50.
func instance(keys string) string {
	return "vrrp:\n- {name: v, interface: e, virtual_router_id: 1, " + keys + "}\n"
}

func TestChecksum(t *testing.T) {
	for _, tt := range []struct{ name, keys, want string }{
		{"not set", "addresses: [192.0.2.100]", "auto"},
		{"auto", "addresses: [192.0.2.100], checksum: auto", "auto"},
		{"without a pseudo-header", "addresses: [192.0.2.100], checksum: plain", "plain"},
		{"with one", "checksum: pseudo_header, addresses: [192.0.2.100]", "pseudo_header"},
		{"auto in version 2", "version: 2, addresses: [192.0.2.100], checksum: auto", "auto"},
		{"auto for ipv6", "addresses: [\"2001:db8::100\"], checksum: auto", "auto"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustLoad(t, instance(tt.keys)).VRRP[0].Checksum; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for _, tt := range []mistakeCase{
		{"another word", instance("addresses: [192.0.2.100], checksum: rfc"), []string{
			"2:85: checksum must be one of auto, plain, pseudo_header, not \"rfc\"",
		}},
		{"in version 2", instance("version: 2, checksum: plain, addresses: [192.0.2.100]"), []string{
			"2:71: checksum: version 2 has one form only (RFC 3768): leave it out",
		}},
		{"for ipv6", instance("checksum: plain, addresses: [\"2001:db8::100\"]"), []string{
			"2:59: checksum: IPv6 has one form only: leave it out",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

func TestRoutes(t *testing.T) {
	c := mustLoad(t, `
vrrp:
  - name: four
    interface: e
    virtual_router_id: 1
    addresses: [192.0.2.100/24]
    routes:
      - {to: default, via: 192.0.2.254, table: 100, source: 192.0.2.100, interface: f, metric: 20}
      - {to: 198.51.100.0/24, via: 192.0.2.253}
      - {to: 203.0.113.7}
    rules:
      - {from: 192.0.2.100, table: 100, priority: 1000}
      - {to: 198.51.100.0/24, interface: f, table: 4294967295}
  - {name: six, interface: e, virtual_router_id: 1, addresses: [2001:db8::100], routes: [{to: default, via: "fe80::1", interface: e}], rules: [{interface: e, table: 7}]}
`)
	type extra struct {
		Routes []Route
		Rules  []Rule
	}
	got := map[string]extra{}
	for _, i := range c.VRRP {
		got[i.Name] = extra{i.Routes, i.Rules}
	}
	p := netip.MustParsePrefix
	want := map[string]extra{
		"four": {[]Route{
			{To: p("0.0.0.0/0"), Via: addr("192.0.2.254"), Table: 100, Source: addr("192.0.2.100"), Interface: "f", Metric: 20},
			{To: p("198.51.100.0/24"), Via: addr("192.0.2.253"), Table: 254},
			{To: p("203.0.113.7/32"), Interface: "e", Table: 254},
		}, []Rule{
			{From: p("192.0.2.100/32"), Table: 100, Priority: 1000},
			{To: p("198.51.100.0/24"), Interface: "f", Table: 4294967295, Priority: 32000},
		}},
		"six": {[]Route{{To: p("::/0"), Via: addr("fe80::1"), Interface: "e", Table: 254}}, []Rule{{V6: true, Interface: "e", Table: 7, Priority: 32000}}},
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("routes and rules (-want +got):\n%s", diff)
	}
}

var vrrpMistakes = []mistakeCase{
	{"routes", instance(`addresses: [192.0.2.100], routes: [{via: 192.0.2.1}, {to: 192.0.2.1/24}, {to: "::/0", via: "fe80::1"}, {to: default, dev: e}, {to: default, table: 0}, {to: x}, 7]`), []string{
		`2:84: missing key "to": a route needs it`,
		`2:107: prefix 192.0.2.1/24 has bits set behind its length: write 192.0.2.0/24`,
		`2:127: to is IPv6, and the addresses of the instance are IPv4`,
		`2:140: via is IPv6, and the addresses of the instance are IPv4`,
		`2:166: unknown key "dev" in a route; write interface: NAME`,
		`2:196: table must be a whole number from 1 to 4294967295, not 0`,
		`2:205: bad prefix "x": names are not looked up, write the IP addresses`,
		`2:209: a route must be a mapping ("key: value"), not "7"`,
	}},
	{"rules", instance(`addresses: [192.0.2.100], rules: [{table: 7}, {from: 192.0.2.1}, {to: "2001:db8::/32", table: 7}, {from: 192.0.2.1, lookup: 7}, {from: 192.0.2.1, table: main}]`), []string{
		`2:83: a rule is for certain packets: say which, by from, to or interface`,
		`2:95: missing key "table": a rule needs it`,
		`2:119: to is IPv6, and the addresses of the instance are IPv4`,
		`2:147: missing key "table": a rule needs it`,
		`2:165: unknown key "lookup" in a rule; write table: NUMBER`,
		`2:202: table must be a whole number from 1 to 4294967295 in decimal digits, not "main"`,
	}},
	{"routes that are listed twice", instance(`addresses: [192.0.2.100], routes: [{to: default, via: 192.0.2.1}, {to: 0.0.0.0/0, via: 192.0.2.2}], rules: [{to: 192.0.2.1, table: 7}, {to: 192.0.2.1/32, table: 7}]`), []string{
		`2:115: duplicate route to 0.0.0.0/0 in table 254: the first one is on line 2`,
		`2:184: duplicate rule: the first one is on line 2`,
	}},
	{"a group without a name", instance(`addresses: [192.0.2.100], group: ""`), []string{`2:82: group is empty`}},
	{"keepalived's word for a group", instance(`addresses: [192.0.2.100], vrrp_sync_group: x`), []string{
		`2:75: unknown key "vrrp_sync_group" in a VRRP instance; write group: NAME in each of its instances`,
	}},
	{"families in one instance", instance(`addresses: [192.0.2.100, "2001:db8::100"]`), []string{
		`2:74: VIP 2001:db8::100 is IPv6 and 192.0.2.100 is IPv4: an instance has one family, make two instances`,
	}},
	{"IPv6 in version 2", instance(`addresses: ["2001:db8::100", "2001:db8::101"], version: 2`), []string{
		`2:61: VIP 2001:db8::100: version 2 has IPv4 only (RFC 3768): use version: 3`,
	}},
	{"link-local behind another", instance(`addresses: ["2001:db8::100", "fe80::1"]`), []string{
		`2:78: VIP fe80::1 is link-local: it must be the first address, and the only link-local one (RFC 9568)`,
	}},
	{"two link-local", instance(`addresses: ["fe80::1", "fe80::2"]`), []string{
		`2:72: VIP fe80::2 is link-local: it must be the first address, and the only link-local one (RFC 9568)`,
	}},
	{"link-local with a zone", instance(`addresses: ["fe80::1%e"]`), []string{
		`2:61: bad address "fe80::1%e": a zone (%e) has no place here`,
	}},
	{"link-local twice on an interface", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 1, addresses: [\"fe80::1\"]}\n" +
		"- {name: b, interface: e, virtual_router_id: 2, addresses: [\"fe80::1/64\"]}\n", []string{
		`3:61: VIP fe80::1 is listed twice: the first one is on line 2`,
	}},
	{"IPv6 prefixes", instance(`addresses: ["2001:db8::1/129", "2001:db8::1/0", "2001:db8::/64", "2001:db8::2/064"]`), []string{
		`2:61: bad address "2001:db8::1/129": the prefix after / must be a number from 1 to 128`,
		`2:80: bad address "2001:db8::1/0": the prefix after / must be a number from 1 to 128`,
		`2:97: address 2001:db8::/64 is the anycast address of the network's routers, not of a host in it`,
		`2:114: bad address "2001:db8::2/064": the prefix after / must be a number from 1 to 128`,
	}},
	{"router id twice in IPv6", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 1, addresses: [\"2001:db8::1\"]}\n" +
		"- {name: b, interface: e, virtual_router_id: 1, addresses: [\"2001:db8::2\"]}\n", []string{
		`3:46: virtual_router_id 1 is used twice on e: instance "a" has it already`,
	}},
	{"unicast and a list", instance(`addresses: [192.0.2.100], unicast: true, unicast_peers: [192.0.2.2]`), []string{
		`2:90: unicast and unicast_peers are both set: take one of them`,
	}},
	{"unicast without nodes", instance(`addresses: [192.0.2.100], unicast: true`), []string{
		`2:84: unicast needs another node in nodes, or unicast_peers instead`,
	}},
	{"unicast alone", "nodes: [{name: lb1, address: 192.0.2.1}]\n" + instance(`addresses: [192.0.2.100], unicast: true`), []string{
		`3:84: unicast needs another node in nodes, or unicast_peers instead`,
	}},
	{"unicast with nodes of the other family", "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}]\n" +
		instance(`addresses: ["2001:db8::100"], unicast: true`), []string{
		`3:88: node "lb2" has no IPv6 address in nodes: name the peers in unicast_peers`,
	}},
	{"unicast is no truth value", instance(`addresses: [192.0.2.100], unicast: 1`), []string{
		`2:84: unicast must be true or false, not "1"`,
	}},
	{"unicast with a peer that is a VIP", "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.100}]\n" +
		instance(`addresses: [192.0.2.100], unicast: true`), []string{
		`3:84: peer 192.0.2.100 is a VIP: it moves, a peer is another node's own address`,
	}},
	{"no peers", instance(`addresses: [192.0.2.100], unicast_peers: []`), []string{
		`2:90: unicast_peers is empty: name the other nodes, or leave it out for multicast`,
	}},
	{"peers that are none", "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}]\n" +
		instance(`addresses: [192.0.2.100], unicast_peers: [192.0.2.1, 192.0.2.2, 192.0.2.2, "2001:db8::2", 192.0.2.100, x]`), []string{
		`3:91: peer 192.0.2.1 is this node, "lb1": list the others, or write unicast: true, which leaves it out`,
		`3:113: peer 192.0.2.2 is listed twice: the first one is on line 3`,
		`3:124: peer 2001:db8::2 is IPv6, the addresses of the instance are IPv4`,
		`3:139: peer 192.0.2.100 is a VIP: it moves, a peer is another node's own address`,
		`3:152: bad address "x": names are not looked up, write the IP address`,
	}},
	{"a peer of one link", instance(`addresses: ["2001:db8::100"], unicast_peers: ["fe80::2"]`), []string{
		`2:95: address fe80::2 is a link-local address: it is known on one link only`,
	}},
}

func TestVRRPMistakes(t *testing.T) {
	for _, tt := range vrrpMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
