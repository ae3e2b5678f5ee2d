package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVia(t *testing.T) {
	tests := []struct {
		name     string
		defaults string // of health
		health   string
		want     bool
	}{
		{"nothing said", "", "", true},
		{"vip", "", "via: vip", true},
		{"direct", "", "via: direct", false},
		{"default direct", "via: direct", "", false},
		{"default direct, undone", "via: direct", "via: vip", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, "defaults: {health: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, address: 192.0.2.100:80, forward: dsr, backends: [{address: 192.0.2.1}], health: {type: tcp, "+tt.health+"}}]\n")
			if got := c.Services[0].Pool.Probe.ViaVIP; got != tt.want {
				t.Errorf("through the VIP: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestProbeAddresses(t *testing.T) {
	tests := []struct {
		name, text   string
		want4, want6 string
	}{
		{"nothing said", "", "198.18.0.0/16", "2001:2::/64"},
		{"IPv4 alone", "probe_addresses: [203.0.113.0/24]", "203.0.113.0/24", "2001:2::/64"},
		{"IPv6 alone", `probe_addresses: ["2001:db8:9::/120"]`, "198.18.0.0/16", "2001:db8:9::/120"},
		{"both", `probe_addresses: ["2001:db8:9::/64", 203.0.113.128/31]`, "203.0.113.128/31", "2001:db8:9::/64"},
		{"none", "probe_addresses: []", "198.18.0.0/16", "2001:2::/64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, "datapath: {interfaces: [eth0], "+tt.text+"}\n")
			want := [2]netip.Prefix{netip.MustParsePrefix(tt.want4), netip.MustParsePrefix(tt.want6)}
			got := [2]netip.Prefix{c.Datapath.ProbeAddresses4, c.Datapath.ProbeAddresses6}
			if diff := cmp.Diff(want, got, compare...); diff != "" {
				t.Errorf("probe addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProbeMistakes(t *testing.T) {
	const (
		health   = ", health: {type: tcp}"
		backends = ", backends: [{address: 192.0.2.1}, {address: 192.0.2.2}]"
	)
	datapath := func(text string) string { return "datapath: {interfaces: [eth0], probe_addresses: " + text + "}\n" }
	for _, tt := range []mistakeCase{
		{"via for nat", withInterface + "services: [{name: s, address: 192.0.2.100:80, backends: [{address: 192.0.2.1}], health: {type: tcp, via: vip}}]\n", []string{
			`2:106: via: vip is for services with forward: dsr or tunnel; in service "s" a server does not know the VIP`,
		}},
		{"via of a pool for nat alone", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {type: tcp, via: vip}}]\n" +
			"services: [{name: s, address: 192.0.2.100:80, pool: p}, {name: t, address: 192.0.2.100:81, pool: p}]\n", []string{
			`2:77: via: vip is for services with forward: dsr or tunnel; in service "s" a server does not know the VIP`,
		}},
		{"another word", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {type: tcp, via: lo}}]\n", []string{
			`2:77: via must be one of vip, direct, not "lo"`,
		}},
		{"no list", datapath("198.18.0.0/16"), []string{"1:49: probe_addresses must be a list: write [198.18.0.0/16]"}},
		{"two of a family", datapath("[198.18.0.0/16, 198.19.0.0/16]"), []string{"1:65: probe_addresses has two IPv4 prefixes: one is enough"}},
		{"lengths", datapath(`[198.18.0.1/32, "2001:db8::/16"]`), []string{
			"1:50: the IPv4 prefix of probe_addresses must have a length from 8 to 31, not 198.18.0.1/32",
			"1:65: prefix 2001:db8::/16 has bits set behind its length: write 2001::/16",
		}},
		{"a long way", datapath(`["2000::/16"]`), []string{
			"1:50: the IPv6 prefix of probe_addresses must have a length from 32 to 127, not 2000::/16",
		}},
		{"nobody's", datapath("[224.0.0.0/24, \"fe80::/64\"]"), []string{
			"1:50: probe_addresses 224.0.0.0/24 cannot be dialled: address 224.0.0.0 is a multicast address",
			"1:64: probe_addresses fe80::/64 cannot be dialled: address fe80:: is a link-local address: it is known on one link only",
		}},
		{"somebody's", "nodes: [{name: lb1, address: 192.0.2.9}]\n" + datapath("[192.0.2.0/24]") +
			"services: [{name: s, address: 192.0.2.100:80, forward: dsr, backends: [{address: 192.0.2.1}]" + health + "}]\n" +
			"vrrp: [{name: v, interface: eth0, virtual_router_id: 1, addresses: [192.0.2.100/24]}]\n", []string{
			"3:19: node 192.0.2.9 is in 192.0.2.0/24, which the addresses are taken from that probes dial: set probe_addresses in datapath to a prefix that nobody uses",
			"3:31: VIP 192.0.2.100 is in 192.0.2.0/24, which the addresses are taken from that probes dial: set probe_addresses in datapath to a prefix that nobody uses",
			"3:82: server 192.0.2.1 is in 192.0.2.0/24, which the addresses are taken from that probes dial: set probe_addresses in datapath to a prefix that nobody uses",
			"4:69: VIP 192.0.2.100 is in 192.0.2.0/24, which the addresses are taken from that probes dial: set probe_addresses in datapath to a prefix that nobody uses",
		}},
		{"too few", datapath("[203.0.113.0/31]") + "services: [{name: s, address: 192.0.2.100:80, forward: tunnel" + backends + health + "}]\n", []string{
			`2:19: 203.0.113.0/31 of probe_addresses in datapath has room for 1 addresses, and 2 are needed: one for each VIP at each server`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// What probes do not use may be anybody's, and a pool may be probed in two ways.
func TestProbesThatAreNoMistake(t *testing.T) {
	for name, yaml := range map[string]string{
		"nat in the default prefix":    withInterface + "services: [{name: s, address: 198.18.0.100:80, backends: [{address: 198.18.0.1}], health: {type: tcp}}]\n",
		"direct in the default prefix": withInterface + "services: [{name: s, address: 198.18.0.100:80, forward: dsr, backends: [{address: 198.18.0.1}], health: {type: tcp, via: direct}}]\n",
		"a pool for nat and dsr": withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {type: tcp, via: vip}}]\n" +
			"services: [{name: s, address: 192.0.2.100:80, pool: p}, {name: t, address: 192.0.2.101:80, forward: dsr, pool: p}]\n",
		"a pool that nobody uses": withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {type: tcp, via: vip}}]\n",
		"as many as there is room": "datapath: {interfaces: [eth0], probe_addresses: [203.0.113.0/31]}\n" +
			"services: [{name: s, address: 192.0.2.100:80, forward: dsr, backends: [{address: 192.0.2.1}], health: {type: tcp}}]\n",
	} {
		t.Run(name, func(t *testing.T) { mustLoad(t, yaml) })
	}
}
