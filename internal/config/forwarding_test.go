package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestForwardingModes(t *testing.T) {
	type mode struct {
		Protocol  lb.Protocol
		Forward   lb.Forward
		Sources   []netip.Addr
		Scheduler lb.Scheduler
		Affinity  lb.Affinity
	}
	vip := []netip.Addr{addr("192.0.2.100")}
	tests := []struct {
		name     string
		defaults string
		service  string // behind its name, VIP 192.0.2.100:80 and servers of IPv4
		want     mode
	}{
		{"nothing said", "", "", mode{lb.TCP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
		{"udp", "", "protocol: udp", mode{lb.UDP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
		{"tunnel, each flow", "", "protocol: udp, forward: tunnel, affinity: flow", mode{lb.UDP, lb.Tunnel, nil, lb.Maglev, lb.AffinityFlow}},
		{"no source NAT", "", "source_nat: false, scheduler: source_hash", mode{lb.TCP, lb.DNAT, nil, lb.SourceHash, lb.AffinityNone}},
		{"no source NAT, each flow", "", "source_nat: false, protocol: udp, affinity: flow", mode{lb.UDP, lb.DNAT, nil, lb.Maglev, lb.AffinityFlow}},
		{"no source NAT, empty source addresses", "", "source_nat: false, source_addresses: []", mode{lb.TCP, lb.DNAT, nil, lb.Maglev, lb.AffinityNone}},
		{"affinity none, said for tcp", "", "affinity: none", mode{lb.TCP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
		{"source addresses", "", "source_addresses: [192.0.2.9]", mode{lb.TCP, lb.NAT, []netip.Addr{addr("192.0.2.9")}, lb.Maglev, lb.AffinityNone}},
		{"default affinity and tcp", "affinity: flow, forward: dsr", "", mode{lb.TCP, lb.DSR, nil, lb.Maglev, lb.AffinityNone}},
		{"default affinity and udp", "affinity: flow, forward: dsr", "protocol: udp", mode{lb.UDP, lb.DSR, nil, lb.Maglev, lb.AffinityFlow}},
		{"default affinity and nat", "affinity: flow", "protocol: udp", mode{lb.UDP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
		{"default source_nat and dsr", "source_nat: false", "forward: dsr", mode{lb.TCP, lb.DSR, nil, lb.Maglev, lb.AffinityNone}},
		{"default source_nat and nat", "source_nat: false", "", mode{lb.TCP, lb.DNAT, nil, lb.Maglev, lb.AffinityNone}},
		{"default source_nat, undone", "source_nat: false", "source_nat: true", mode{lb.TCP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
		{"default source addresses and tunnel", "source_addresses: [192.0.2.9]", "forward: tunnel", mode{lb.TCP, lb.Tunnel, nil, lb.Maglev, lb.AffinityNone}},
		{
			"default source addresses, of the family", `source_addresses: [192.0.2.9, "2001:db8::9", 192.0.2.8]`, "",
			mode{lb.TCP, lb.NAT, []netip.Addr{addr("192.0.2.9"), addr("192.0.2.8")}, lb.Maglev, lb.AffinityNone},
		},
		{"default source addresses, none of the family", `source_addresses: ["2001:db8::9"]`, "", mode{lb.TCP, lb.NAT, vip, lb.Maglev, lb.AffinityNone}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, "defaults: {service: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, address: 192.0.2.100:80, backends: [{address: 192.0.2.1}], "+tt.service+"}]\n")
			s := c.Services[0]
			got := mode{s.Protocol, s.Forward, s.SourceAddresses, s.Scheduler, s.Affinity}
			if diff := cmp.Diff(tt.want, got, compare...); diff != "" {
				t.Errorf("service (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAllowedForwarding checks mixes of addresses and servers that look like
// mistakes and are none.
func TestAllowedForwarding(t *testing.T) {
	for name, services := range map[string]string{
		"any families with dsr":         `{name: s, address: ["192.0.2.100:80", "[2001:db8::100]:80"], forward: dsr, backends: [{address: 192.0.2.1}, {address: "2001:db8::1"}]}`,
		"any families with tunnel":      `{name: s, address: ["192.0.2.100:80", "[2001:db8::100]:80"], forward: tunnel, backends: [{address: 192.0.2.1}, {address: "2001:db8::1"}]}`,
		"nat of IPv6":                   `{name: s, address: "[2001:db8::100]:80", backends: [{address: "2001:db8::1"}, {address: "[2001:db8::2]:8080"}], source_addresses: ["2001:db8::9"]}`,
		"nat of a range that is kept":   `{name: s, address: 192.0.2.100:8000-8100, backends: [{address: 192.0.2.1}]}`,
		"nat of every port":             `{name: s, address: "192.0.2.100:*", source_addresses: [192.0.2.109], scheduler: source_hash, backends: [{address: 192.0.2.1}]}`,
		"nat of a range to one port":    `{name: s, address: 192.0.2.100:8000-8100, backends: [{address: 192.0.2.1:80}]}`,
		"every port without source NAT": `{name: s, address: "192.0.2.100:*", source_nat: false, backends: [{address: 192.0.2.1}]}`,
		"several ports without source NAT": `{name: s, address: [192.0.2.100:80, 192.0.2.100:443], source_nat: false, backends: [{address: 192.0.2.1}]}, ` +
			`{name: t, address: 192.0.2.101:80, source_nat: false, backends: [{address: 192.0.2.2}]}`,
		"servers shared without source NAT, by port": `{name: s, address: 192.0.2.100:80, source_nat: false, backends: [{address: 192.0.2.1}, {address: 192.0.2.1:81}]}, ` +
			`{name: t, address: 192.0.2.101:80, source_nat: false, backends: [{address: 192.0.2.1:82}]}, ` +
			`{name: u, address: 192.0.2.100:443, source_nat: false, backends: [{address: 192.0.2.1}]}`,
		"servers shared without source NAT, by protocol": `{name: s, address: "192.0.2.100:*", source_nat: false, backends: [{address: 192.0.2.1}]}, ` +
			`{name: t, address: "192.0.2.101:*", source_nat: false, protocol: udp, backends: [{address: 192.0.2.1}]}`,
		"servers shared of which one has source NAT": `{name: s, address: 192.0.2.100:80, source_nat: false, backends: [{address: 192.0.2.1}]}, ` +
			`{name: t, address: 192.0.2.101:80, backends: [{address: 192.0.2.1}]}`,
		"the same port on TCP and UDP": `{name: s, address: 192.0.2.100:53, backends: [{address: 192.0.2.1}]}, {name: t, address: 192.0.2.100:53, protocol: udp, backends: [{address: 192.0.2.1}]}`,
	} {
		t.Run(name, func(t *testing.T) { checkInvariants(t, mustLoad(t, withInterface+"services: ["+services+"]\n")) })
	}
}

var forwardingMistakes = []mistakeCase{
	{"two families with nat", withInterface + `services:
- name: a
  address: ["192.0.2.100:80", "[2001:db8::100]:80", "[2001:db8::101]:80"]
  backends: [{address: 192.0.2.1}, {address: "2001:db8::1"}]
- name: b
  address: "[2001:db8::102]:80"
  backends: [{address: 192.0.2.1}, {address: "2001:db8::1"}]
- name: c
  address: "192.0.2.102:80"
  source_nat: false
  backends: [{address: 192.0.2.1}, {address: "2001:db8::1"}]
`, []string{
		`4:31: service "a" has IPv4 and IPv6 addresses, which nat cannot send to the same servers: make two services of it, or use forward: tunnel`,
		`8:24: server 192.0.2.1 is IPv4, service "b" has the IPv6 address 2001:db8::102: nat cannot go from one to the other, use forward: tunnel, or servers with IPv6`,
		`12:46: server 2001:db8::1 is IPv6, service "c" has the IPv4 address 192.0.2.102: nat cannot go from one to the other, use forward: tunnel, or servers with IPv4`,
	}},
	{"source addresses of the other family", withInterface + `services:
- name: s
  address: 192.0.2.100:80
  source_addresses: ["2001:db8::9", 192.0.2.9, "2001:db8::9", "::"]
  backends: [{address: 192.0.2.1}]
`, []string{
		`5:22: source address 2001:db8::9 is IPv6, service "s" has the IPv4 address 192.0.2.100: nat cannot go from one to the other`,
		`5:48: duplicate source address 2001:db8::9`,
		`5:63: address :: is not the address of a host (it is the unspecified one)`,
	}},
	{"source NAT with tunnel", withInterface + `services:
- name: s
  address: 192.0.2.100:80
  forward: tunnel
  source_nat: false
  source_addresses: [192.0.2.9]
  backends: [{address: 192.0.2.1}]
`, []string{
		`6:15: source_nat is for forward: nat; with tunnel the backend sees the client's address`,
		`7:21: source_addresses is for forward: nat; with tunnel the backend sees the client's address`,
	}},
	{"source addresses without source NAT", withInterface + `services:
- name: s
  address: 192.0.2.100:80
  source_nat: false
  source_addresses: [192.0.2.9]
  backends: [{address: 192.0.2.1}]
`, []string{
		`6:21: source_addresses is for forward: nat; with nat, source_nat: false the backend sees the client's address`,
	}},
	{"source_nat that is no truth value", withInterface + "services:\n- {name: s, address: 192.0.2.100:80, source_nat: no, source_addresses: [192.0.2.9], backends: [{address: 192.0.2.1}]}\n", []string{
		`3:50: source_nat must be true or false: write false for no`,
	}},
	{"ports without source NAT", withInterface + `services:
- name: s
  address: [192.0.2.100:80, 192.0.2.100:443]
  source_nat: false
  backends: [{address: 192.0.2.1:80}, {address: 192.0.2.2}]
- name: t
  address: 192.0.2.101:8000-8100
  source_nat: false
  backends: [{address: 192.0.2.3:80}]
`, []string{
		`6:24: server 192.0.2.1:80 has one port, and service "s" has several: with source_nat: false a reply would not say which of them it is from; leave the port out, so that each is kept`,
		`10:24: server 192.0.2.3:80 has one port, and service "t" has several: with source_nat: false a reply would not say which of them it is from; leave the port out, so that each is kept`,
	}},
	{"two VIPs without source NAT", withInterface + "services:\n- {name: s, address: [192.0.2.100:80, 192.0.2.100:81, 192.0.2.101:80], source_nat: false, backends: [{address: 192.0.2.1}]}\n", []string{
		`3:55: service "s" has source_nat: false and the VIPs 192.0.2.100 and 192.0.2.101: a reply would not say which of them it is from; make two services of it, with servers or ports of their own`,
	}},
	{"servers shared without source NAT", withInterface + `pools: [{name: p, servers: [{address: 192.0.2.1}, {address: 192.0.2.2}]}]
defaults: {service: {source_nat: false}}
services:
- {name: a, address: 192.0.2.100:80, pool: p}
- {name: b, address: 192.0.2.101:80, pool: p}
- {name: c, address: 192.0.2.101:443, backends: [{address: 192.0.2.9}, {address: 192.0.2.2:80}]}
- {name: d, address: "192.0.2.102:*", backends: [{address: 192.0.2.9}]}
- {name: e, address: "192.0.2.103:*", backends: [{address: 192.0.2.10}]}
- {name: f, address: 192.0.2.104:80, backends: [{address: 192.0.2.10}]}
- {name: g, address: "192.0.2.105:*", backends: [{address: 192.0.2.10}]}
`, []string{
		`6:10: server 192.0.2.1 is one of service "a" already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: the first one is on line 5`,
		`7:82: server 192.0.2.2 is one of service "a" already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: the first one is on line 2`,
		`8:60: server 192.0.2.9 is one of service "c" already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: the first one is on line 7`,
		`10:59: server 192.0.2.10 is one of service "e" already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: the first one is on line 9`,
		`11:60: server 192.0.2.10 is one of service "e" already, and both have source_nat: false: a reply would not say which of them it is from; use another server or port, or source_nat: true: the first one is on line 9`,
	}},
	{"ports with dsr and tunnel", withInterface + `services:
- {name: s, address: "[2001:db8::100]:80", forward: tunnel, backends: [{address: "192.0.2.1:8080"}]}
- {name: t, address: "192.0.2.100:80-81", forward: dsr, backends: [{address: "192.0.2.1:80"}]}
`, []string{
		`3:82: server port 8080 differs from port 80 of service "s": tunnel cannot rewrite it; leave the port out, or use forward: nat`,
		`4:78: server port 80 differs from port 80-81 of service "t": dsr cannot rewrite it; leave the port out, or use forward: nat`,
	}},
	{"nat of many ports, of which some servers have one", withInterface + `services:
- {name: s, address: "[2001:db8::100]:80-81", backends: [{address: "2001:db8::1"}, {address: "[2001:db8::2]:80"}]}
`, []string{
		`3:68: server 2001:db8::1 has no port, and others of service "s", which has several, have one: write "[2001:db8::1]:80" (with the port that is meant), or leave all of them out, so that each is kept`,
	}},
	{"nat of every port from the VIP", withInterface + "services:\n- {name: ftp, address: \"192.0.2.100:*\", backends: [{address: 192.0.2.1}]}\n", []string{
		`3:10: service "ftp" needs its own source_addresses: services listen on every tcp port of 192.0.2.100 that nat could send from (1024-33279)`,
	}},
	{"nat that keeps ports beside another from the same address", withInterface + `services:
- {name: ftp, address: "192.0.2.100:*", source_addresses: [192.0.2.109, 192.0.2.110], backends: [{address: 192.0.2.2}, {address: 192.0.2.1}]}
- {name: web, address: "192.0.2.101:80", source_addresses: [192.0.2.110], backends: [{address: 192.0.2.1}]}
- {name: dns, address: "192.0.2.101:53", protocol: udp, source_addresses: [192.0.2.109], backends: [{address: 192.0.2.1}]}
- {name: more, address: "192.0.2.101:81", source_addresses: [192.0.2.109], backends: [{address: 192.0.2.3}]}
`, []string{
		`3:73: service "ftp" needs its own source_addresses: from 192.0.2.110 service "web" sends to server 192.0.2.1, too, and this one keeps the ports, so that nothing would tell their connections apart`,
	}},
	{"affinity", withInterface + `services:
- {name: a, address: 192.0.2.101:80, forward: dsr, affinity: flow, backends: [{address: 192.0.2.1}]}
- {name: b, address: 192.0.2.100:81, protocol: udp, affinity: flow, backends: [{address: 192.0.2.1}]}
- {name: c, address: 192.0.2.101:82, forward: dsr, protocol: udp, affinity: client, backends: [{address: 192.0.2.1}]}
`, []string{
		`3:62: affinity: flow is for protocol: udp; a tcp connection stays with its backend anyway`,
		`4:63: affinity: flow says nothing with source NAT, which keeps an entry for each flow anyway: leave it out`,
		`5:77: affinity must be one of none, flow, not "client"`,
	}},
	{"a nat source on a tunnel backend's loopback", withInterface + `services:
- {name: a, address: "192.0.2.100:80", forward: tunnel, backends: [{address: 192.0.2.1}]}
- {name: b, address: "192.0.2.100:81", backends: [{address: 192.0.2.1}]}
- {address: "192.0.2.100:82", backends: [{address: 192.0.2.1}]}
`, []string{
		`4:10: server 192.0.2.1 has 192.0.2.100 on its loopback for the tunnel service "a", so it cannot answer what comes from there: set source_addresses to another VIP`,
		`5:3: missing key "name": a service needs it`,
		`5:3: server 192.0.2.1 has 192.0.2.100 on its loopback for the tunnel service "a", so it cannot answer what comes from there: set source_addresses to another VIP`,
	}},
	{"a server that is a default source address", "defaults: {service: {source_addresses: [192.0.2.1]}}\n" + withInterface + "services: [{name: s, address: 192.0.2.100:80, backends: [{address: 192.0.2.1}]}]\n", []string{
		`3:68: server 192.0.2.1 is a source address of service "s": its traffic would go round in a circle`,
	}},
}

func TestForwardingMistakes(t *testing.T) {
	for _, tt := range forwardingMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
