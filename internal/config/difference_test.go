package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
)

const differenceBase = `
nodes:
- {name: lb1, address: 192.0.2.1, priority: 100}
- {name: lb2, address: 192.0.2.2, priority: 99}
node: lb1
datapath: {interfaces: [eth0, eth1], max_flows: 20000}
pools:
- name: web
  health: {type: http, body: "^ok"}
  servers: [{address: 192.0.2.11}, {address: 192.0.2.12, weight: 2}, {address: 192.0.2.13, backup: true}]
services:
- {name: web, address: "192.0.2.100:80", pool: web, allow: [198.51.100.0/24]}
- {name: mail, address: "192.0.2.100:25", forward: dsr, backends: [{address: 192.0.2.21}]}
checks:
- {name: ok, type: http, path: /, body: "fine"}
vrrp:
- {name: VI_1, interface: eth0, virtual_router_id: 51, addresses: [192.0.2.100/24], track: [{check: ok, weight: -2}]}
- {name: VI_2, interface: eth1, virtual_router_id: 52, addresses: [192.0.2.101/24]}
`

func TestCompare(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to string // what is replaced in the base, and by what
		want     Difference
	}{
		{"nothing", "", "", Difference{}},
		{"a service less", "services:\n- {name: web, address: \"192.0.2.100:80\", pool: web, allow: [198.51.100.0/24]}\n",
			"services:\n", Difference{Changes: []string{"service web: removed"}}},
		{"a weight", "192.0.2.12, weight: 2", "192.0.2.12, weight: 3", Difference{Changes: []string{"service web: 192.0.2.12 weight 2 -> 3"}}},
		{"servers", "{address: 192.0.2.12, weight: 2}, {address: 192.0.2.13, backup: true}", `{address: "192.0.2.12:81"}, {address: 192.0.2.13}`,
			Difference{Changes: []string{"service web: 192.0.2.12:81 added, 192.0.2.13 backup true -> false, 192.0.2.12 removed"}}},
		{"health", `"^ok"`, `"^fine"`, Difference{Changes: []string{"service web: health"}}},
		{"settings of a service", "pool: web, allow: [198.51.100.0/24]", "pool: web, quorum: 2, track_window: 1m",
			Difference{Changes: []string{"service web: quorum, track_window, rules, allow_only"}}},
		{"a service more", "checks:\n", "- {name: dns, address: \"192.0.2.100:53\", protocol: udp, backends: [{address: 192.0.2.31}]}\nchecks:\n",
			Difference{Changes: []string{"service dns: added"}}},
		{"ports that are kept", `address: "192.0.2.100:80", pool: web`, `address: ["192.0.2.100:80", "192.0.2.100:443"], source_addresses: [192.0.2.9], pool: web`,
			Difference{Changes: []string{"service web: addresses, source_addresses, its servers get other ports: its connections break"}}},
		{"interfaces", "interfaces: [eth0, eth1]", "interfaces: [eth1, eth2]", Difference{Changes: []string{"interface eth2: added", "interface eth0: removed"}}},
		{"a check", `"fine"`, `"good"`, Difference{Changes: []string{"check ok: body"}}},
		{"a check with TLS", `type: http, path: /, body: "fine"`, `type: https, path: /, body: "fine", tls: {verify: false}`,
			Difference{Changes: []string{"check ok: type, urls, tls"}}},
		{"health with TLS", `type: http, body: "^ok"`, `type: https, body: "^ok"`, Difference{Changes: []string{"service web: health"}}},
		{"a check over UDP", `type: http, path: /, body: "fine"`, `type: udp, port: 53, send: x, expect: y`,
			Difference{Changes: []string{"check ok: type, urls, status, body, address, send, expect"}}},
		{"a check of a name server", `type: http, path: /, body: "fine"`, `type: dns, query: www.example.com`,
			Difference{Changes: []string{"check ok: type, urls, status, body, address, query"}}},
		{"several pages", `type: http, body: "^ok"`, `type: http, body: "^ok", urls: [/, /up]`, Difference{Changes: []string{"service web: health"}}},
		{"what an instance tracks", "track: [{check: ok, weight: -2}]", "track: [{check: ok}], notify: {any: [/bin/true]}, start_timeout: 3s",
			Difference{Changes: []string{"vrrp VI_1: start_timeout, track, notify"}}},
		{"its priority", "virtual_router_id: 52,", "virtual_router_id: 52, priority: 7,", Difference{Changes: []string{"vrrp VI_2: priority"}}},
		{"it owns the addresses", "virtual_router_id: 52,", "virtual_router_id: 52, priority: 255,",
			Difference{Changes: []string{"vrrp VI_2: priority: begins anew, its VIPs stay or are handed over"}, Anew: []string{"VI_2"}}},
		{"its interval and id", "virtual_router_id: 52,", "virtual_router_id: 62, advertisement_interval: 100ms,",
			Difference{Changes: []string{"vrrp VI_2: vrid, interval: begins anew, its VIPs stay or are handed over"}, Anew: []string{"VI_2"}}},
		{"one of a group begins anew", "vrrp:\n- {name: VI_1,", "vrrp:\n- {name: VI_1, group: pair,",
			Difference{Changes: []string{"vrrp VI_1: group, its group: begins anew, its VIPs stay or are handed over"}, Anew: []string{"VI_1"}}},
		{"one instance is another", "VI_2", "VI_3", Difference{Changes: []string{"vrrp VI_3: added", "vrrp VI_2: removed"}}},
		{"admin", "checks:\n", "admin: {socket: /run/other.sock, listen: none}\nchecks:\n", Difference{
			Changes: []string{"admin.listen: 127.0.0.1:9780 -> none"}, Refused: []string{"admin.socket: /run/sluice/sluice.sock -> /run/other.sock: " + byRestart},
		}},
		{"what is set at load", "max_flows: 20000}", "max_flows: 30000, mode: generic, nat: {ports: 1024-2047, log: /var/log/nat}, tunnel: {source_ipv4: 198.51.100.0/24}, probe_addresses: [198.19.0.0/16]}",
			Difference{Refused: []string{
				"datapath.mode: auto -> generic: " + byMode, "datapath.max_flows: 20000 -> 30000: " + byDetach,
				"source ports of nat (datapath.nat.ports, or how many nodes there are): 1024-33279 -> 1024-1535: " + byRestart,
				"datapath.nat.log: none -> /var/log/nat: " + byRestart, "datapath.tunnel.source_ipv4: 172.16.0.0/16 -> 198.51.100.0/24: " + byRestart,
				"datapath.probe_addresses of IPv4: 198.18.0.0/16 -> 198.19.0.0/16: " + byRestart,
			}}},
		{"another node", "node: lb1\n", "node: lb2\n", Difference{
			Changes: []string{"vrrp VI_1: priority", "vrrp VI_2: priority"},
			Refused: []string{"node: lb1 -> lb2: " + byRestart, "source ports of nat (datapath.nat.ports, or how many nodes there are): 1024-33279 -> 33280-65535: " + byRestart},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			read := func(yaml string) *Config {
				cfg, err := load(memFiles{"f": yaml}, "f", Options{})
				if err != nil {
					t.Fatal(err)
				}
				return cfg
			}
			if !strings.Contains(differenceBase, tc.from) {
				t.Fatalf("the base has no %q", tc.from)
			}
			before, after := read(differenceBase), read(strings.Replace(differenceBase, tc.from, tc.to, 1))
			got := Compare(before, after)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("difference (-want +got):\n%s", diff)
			}
			back := Compare(after, before)
			if len(back.Changes) != len(got.Changes) || len(back.Refused) != len(got.Refused) || !slices.Equal(back.Anew, got.Anew) {
				t.Errorf("the way back is %+v, the way there %+v", back, got)
			}
		})
	}
}

// Other certificates in the same file are a change.
func TestCompareAuthorities(t *testing.T) {
	read := func(ca string) *Config {
		cfg, err := load(memFiles{"f": withInterface + `services:
- {name: web, address: "192.0.2.100:443", backends: [{address: 192.0.2.11}], health: {type: https, tls: {ca: ca.pem}}}
checks:
- {name: ok, type: https, path: /, tls: {ca: ca.pem}}
`, "ca.pem": ca}, "f", Options{})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	ca, other := testCA(t), testCA(t)
	if got := Compare(read(ca), read(ca)).Changes; len(got) > 0 {
		t.Errorf("the same: %q", got)
	}
	if got, want := Compare(read(ca), read(other)).Changes, []string{"service web: health", "check ok: tls"}; !slices.Equal(got, want) {
		t.Errorf("others: %q, want %q", got, want)
	}
}

func TestFirstAndLastService(t *testing.T) {
	none, one := &Config{}, &Config{}
	cfg, err := load(memFiles{"f": differenceBase}, "f", Options{})
	if err != nil {
		t.Fatal(err)
	}
	one.Services = cfg.Services
	if got := Compare(none, one).Refused; !slices.Equal(got, []string{"the first service: " + byRestart}) {
		t.Errorf("the first: %q", got)
	}
	if got := Compare(one, none).Refused; !slices.Equal(got, []string{"no service any more: needs a restart, which ends forwarding"}) {
		t.Errorf("the last: %q", got)
	}
}

// The instances of a group are made together, and so they begin anew together.
func TestGroupsBeginAnewTogether(t *testing.T) {
	all := func(priorities ...uint8) []Instance {
		var is []Instance
		for k, p := range priorities {
			is = append(is, Instance{Name: string(rune('a' + k)), Group: []string{"one", "one", "two", ""}[k], Priority: p, VRID: 1})
		}
		return is
	}
	other := func(k int, change func(*Instance)) []Instance {
		is := all(1, 1, 1, 1)
		change(&is[k])
		return is
	}
	for _, tc := range []struct {
		name          string
		before, after []Instance
		want          []string
	}{
		{"the same", all(1, 1, 1, 1), all(1, 1, 1, 1), nil},
		{"priorities", all(1, 1, 1, 1), all(2, 3, 4, 5), nil},
		{"one of two", all(1, 1, 1, 1), other(1, func(i *Instance) { i.VRID = 2 }), []string{"a", "b"}},
		{"one alone", all(1, 1, 1, 1), other(3, func(i *Instance) { i.VRID = 2 }), []string{"d"}},
		{"one goes", all(1, 1, 1, 1), all(1, 1, 1, 1)[1:], []string{"b"}},
		{"one comes", all(1), all(1, 1), []string{"a"}},
		{"one changes its group", all(1, 1, 1, 1), other(1, func(i *Instance) { i.Group = "two" }), []string{"a", "b", "c"}},
	} {
		if got := Compare(&Config{VRRP: tc.before}, &Config{VRRP: tc.after}).Anew; !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q begin anew, want %q", tc.name, got, tc.want)
		}
	}
}

// Nodes that share their state know each other from the start.
func TestNodesThatShareState(t *testing.T) {
	nodes := func(second string) []Node {
		return []Node{{Name: "lb1", Address: netip.MustParseAddr("192.0.2.1")}, {Name: "lb2", Address: netip.MustParseAddr(second)}}
	}
	shared := Sync{Keys: []key.Key{{1}}}
	for _, tc := range []struct {
		name          string
		before, after *Config
		want          []string
	}{
		{"the same", &Config{Nodes: nodes("192.0.2.2"), Sync: shared}, &Config{Nodes: nodes("192.0.2.2"), Sync: shared}, nil},
		{"another address", &Config{Nodes: nodes("192.0.2.2"), Sync: shared}, &Config{Nodes: nodes("192.0.2.3"), Sync: shared},
			[]string{"nodes that share their state, or their addresses: " + byRestart}},
		{"another address, nothing is shared", &Config{Nodes: nodes("192.0.2.2")}, &Config{Nodes: nodes("192.0.2.3")}, nil},
	} {
		if got := Compare(tc.before, tc.after).Refused; !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q is refused, want %q", tc.name, got, tc.want)
		}
	}
}

// A setting that Compare does not know is refused, and those that it knows are there.
func TestUnknownSettingsAreRefused(t *testing.T) {
	type settings struct{ Known, Sync int }
	var d Difference
	d.refuseOthers(settings{1, 1}, settings{2, 2}, "x.", "Known")
	if want := []string{"x.sync: " + byRestart}; !slices.Equal(d.Refused, want) {
		t.Errorf("got %q, want %q", d.Refused, want)
	}
	d = Difference{}
	d.refuseOthers(settings{1, 1}, settings{2, 1}, "x.", "Known")
	if len(d.Refused) > 0 {
		t.Errorf("got %q", d.Refused)
	}
}
