package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestFrontends(t *testing.T) {
	front := func(vip string, first, last uint16) lb.Frontend {
		return lb.Frontend{VIP: addr(vip), Ports: lb.PortRange{First: first, Last: last}}
	}
	tests := []struct {
		name, address string
		want          []lb.Frontend
	}{
		{"IPv4", `192.0.2.100:80`, []lb.Frontend{front("192.0.2.100", 80, 80)}},
		{"IPv6", `"[2001:db8::100]:80"`, []lb.Frontend{front("2001:db8::100", 80, 80)}},
		{"IPv6 in capitals", `"[2001:DB8:0::100]:80"`, []lb.Frontend{front("2001:db8::100", 80, 80)}},
		{"a range", `192.0.2.100:8000-8100`, []lb.Frontend{front("192.0.2.100", 8000, 8100)}},
		{"a range of IPv6", `"[2001:db8::100]:8000-8100"`, []lb.Frontend{front("2001:db8::100", 8000, 8100)}},
		{"a range of one", `192.0.2.100:80-80`, []lb.Frontend{front("192.0.2.100", 80, 80)}},
		{"every port", `"192.0.2.100:*"`, []lb.Frontend{{VIP: addr("192.0.2.100"), Ports: lb.EveryPort}}},
		{"every port without quotes", `192.0.2.100:*`, []lb.Frontend{{VIP: addr("192.0.2.100"), Ports: lb.EveryPort}}},
		{"every port in a list without quotes", `[192.0.2.100:*, 192.0.2.101:1-65535]`, []lb.Frontend{
			{VIP: addr("192.0.2.100"), Ports: lb.EveryPort}, {VIP: addr("192.0.2.101"), Ports: lb.EveryPort},
		}},
		{"every port of IPv6", `"[2001:db8::100]:*"`, []lb.Frontend{{VIP: addr("2001:db8::100"), Ports: lb.EveryPort}}},
		{"a list of both families", `["192.0.2.100:80", "192.0.2.100:8000-8100", "[2001:db8::100]:80"]`, []lb.Frontend{
			front("192.0.2.100", 80, 80), front("192.0.2.100", 8000, 8100), front("2001:db8::100", 80, 80),
		}},
		{"ranges that touch", `[192.0.2.100:80-89, 192.0.2.100:90-99, 192.0.2.100:79]`, []lb.Frontend{
			front("192.0.2.100", 80, 89), front("192.0.2.100", 90, 99), front("192.0.2.100", 79, 79),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, withInterface+"services:\n- name: s\n  address: "+tt.address+"\n  forward: dsr\n  backends: [{address: 192.0.2.1}]\n")
			if diff := cmp.Diff(tt.want, c.Services[0].Addresses, compare...); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestServerAddresses(t *testing.T) {
	c := mustLoad(t, `pools: [{name: p, servers: [{address: 192.0.2.1}, {address: 192.0.2.1:80}, {address: 2001:db8::1}, {address: "2001:db8::2"}, {address: "[2001:db8::1]:80"}]}]`)
	var got []netip.AddrPort
	for _, s := range c.Pools[0].Servers {
		got = append(got, netip.AddrPortFrom(s.Address, s.Port))
	}
	want := []netip.AddrPort{
		netip.AddrPortFrom(addr("192.0.2.1"), 0), addrPort("192.0.2.1:80"),
		netip.AddrPortFrom(addr("2001:db8::1"), 0), netip.AddrPortFrom(addr("2001:db8::2"), 0), addrPort("[2001:db8::1]:80"),
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

var frontendMistakes = []mistakeCase{
	{"bad addresses of a service", withInterface + `services:
- name: s
  address:
  - "192.0.2.100:0"
  - "192.0.2.100:65536"
  - "192.0.2.100:http"
  - "192.0.2.100:8100-8000"
  - "192.0.2.100:8000-"
  - "192.0.2.100:-8000"
  - "192.0.2.100:80-**"
  - "192.0.2.100:"
  - ":80"
  - 2001:db8::100
  - "2001:db8::100:80-90"
  - "[2001:db8::100]"
  - "[2001:db8::100]80"
  - "[2001:db8::100]:"
  - "[2001:db8::100:80"
  - "[192.0.2.100]:80"
  - "[fe80::1%eth0]:80"
  - "[fe80::1]:80"
  - "[::]:80"
  - "[::1]:80"
  - "[ff02::1]:80"
  - "[::ffff:192.0.2.100]:80"
  backends: [{address: 192.0.2.1}]
`, []string{
		`5:5: bad address "192.0.2.100:0": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`6:5: bad address "192.0.2.100:65536": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`7:5: bad address "192.0.2.100:http": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`8:5: bad address "192.0.2.100:8100-8000": the first port is above the last one`,
		`9:5: bad address "192.0.2.100:8000-": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`10:5: bad address "192.0.2.100:-8000": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`11:5: bad address "192.0.2.100:80-**": the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port`,
		`12:5: bad address "192.0.2.100:": there is no port after the colon`,
		`13:5: bad address ":80": there is no address before the port`,
		`14:5: address 2001:db8::100 has no port: write "[2001:db8::100]:80" (with the port that is meant)`,
		`15:5: bad address "2001:db8::100:80-90": write the IPv6 address in brackets, "[2001:db8::100]:80-90"`,
		`16:5: address [2001:db8::100] has no port: write "[2001:db8::100]:80" (with the port that is meant)`,
		`17:5: bad address "[2001:db8::100]80": a colon and the port must follow the bracket`,
		`18:5: bad address "[2001:db8::100]:": there is no port after the colon`,
		`19:5: bad address "[2001:db8::100:80": the closing ] is missing`,
		`20:5: bad address "[192.0.2.100]:80": brackets are for IPv6, write "192.0.2.100:80"`,
		`21:5: bad address "fe80::1%eth0": a zone (%eth0) has no place here`,
		`22:5: address fe80::1 is a link-local address: it is known on one link only`,
		`23:5: address :: is not the address of a host (it is the unspecified one)`,
		`24:5: address ::1 is a loopback address: no other machine can reach it`,
		`25:5: address ff02::1 is a multicast address`,
		`26:5: bad address "::ffff:192.0.2.100": write 192.0.2.100`,
	}},
	{"unquoted IPv6 with a range", withInterface + "services:\n- name: s\n  address: [2001:db8::100]:8000-8100\n  backends: [{address: 192.0.2.1}]\n", []string{
		`4:12: put quotes around it: write "[2001:db8::100]:8000-8100" (without them YAML reads [ as the start of a list)`,
	}},
	{"bad addresses of servers", `pools:
- name: p
  servers:
  - address: "192.0.2.1:8000-8100"
  - address: "192.0.2.1:*"
  - address: "[2001:db8::1]"
  - address: "2001:db8:0:0:0:0:0:1:80"
  - address: fe80::1
`, []string{
		`4:14: bad address "192.0.2.1:8000-8100": the port must be a number from 1 to 65535`,
		`5:14: bad address "192.0.2.1:*": the port must be a number from 1 to 65535`,
		`6:14: bad address "[2001:db8::1]": without a port it needs no brackets, write 2001:db8::1`,
		`7:14: bad address "2001:db8:0:0:0:0:0:1:80": write the IPv6 address in brackets, "[2001:db8::1]:80"`,
		`8:14: address fe80::1 is a link-local address: it is known on one link only`,
	}},
	{"ports that overlap within a service", withInterface + `services:
- name: s
  address:
  - "192.0.2.100:8000-8100"
  - "192.0.2.100:8100"
  - "192.0.2.101:8000-8100"
  - "192.0.2.100:7000-8000"
  - "192.0.2.101:1-65535"
  - "192.0.2.101:*"
  - "192.0.2.100:8000-8100"
  forward: dsr
  backends: [{address: 192.0.2.1}]
`, []string{
		`6:5: address 192.0.2.100:8100 overlaps 192.0.2.100:8000-8100 of the same service: the first one is on line 5`,
		`8:5: address 192.0.2.100:7000-8000 overlaps 192.0.2.100:8000-8100 of the same service: the first one is on line 5`,
		`9:5: address 192.0.2.101:* overlaps 192.0.2.101:8000-8100 of the same service: the first one is on line 7`,
		`10:5: address 192.0.2.101:* overlaps 192.0.2.101:8000-8100 of the same service: the first one is on line 7`,
		`11:5: address 192.0.2.100:8000-8100 is listed twice in service "s": the first one is on line 5`,
	}},
	{"ports that overlap between services", withInterface + `pools: [{name: p, servers: [{address: 192.0.2.1}]}]
defaults: {service: {forward: dsr, pool: p}}
services:
- {name: a, address: ["192.0.2.100:80", "192.0.2.100:443", "[2001:db8::100]:80-89"]}
- {name: b, address: "192.0.2.100:*"}
- {name: c, address: "192.0.2.100:*", protocol: udp}
- {name: d, address: "192.0.2.100:53", protocol: udp}
- {name: e, address: "[2001:db8:0::100]:89-90"}
- {name: f, address: "[2001:db8::100]:80-89"}
- {name: g, address: "192.0.2.100:444-65535"}
`, []string{
		`6:22: address 192.0.2.100:* overlaps 192.0.2.100:80 of service "a": the first one is on line 5`,
		`8:22: address 192.0.2.100:53 overlaps 192.0.2.100:* of service "c": the first one is on line 7`,
		`9:22: address [2001:db8::100]:89-90 overlaps [2001:db8::100]:80-89 of service "a": the first one is on line 5`,
		`10:22: address [2001:db8::100]:80-89 belongs to service "a" already: the first one is on line 5`,
	}},
	{"all ports of a share are services'", `nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}]
datapath: {interfaces: [e], nat: {ports: 1000-1999}}
pools: [{name: p, servers: [{address: "192.0.2.11:80"}]}]
defaults: {service: {pool: p}}
services:
- {name: every, address: "192.0.2.100:*"}
- {name: halves, address: ["192.0.2.101:1500-1700", "192.0.2.101:1701-1999"]}
- {name: other, address: "192.0.2.102:80", source_addresses: [192.0.2.103, 192.0.2.101, 192.0.2.100]}
- {name: one_free, address: "192.0.2.104:1501-1999"}
- {name: below, address: "192.0.2.104:1-999"}
- {name: others, address: "192.0.2.104:53", protocol: udp, source_addresses: [192.0.2.100, 192.0.2.101]}
- {name: own, address: "192.0.2.105:*", source_addresses: [192.0.2.106]}
`, []string{
		`6:10: service "every" needs its own source_addresses: services listen on every tcp port of 192.0.2.100 that nat could send from (1000-1499 of node "lb1")`,
		`7:10: service "halves" needs its own source_addresses: services listen on every tcp port of 192.0.2.101 that nat could send from (1500-1999 of node "lb2")`,
		`8:76: service "other" needs its own source_addresses: services listen on every tcp port of 192.0.2.101 that nat could send from (1500-1999 of node "lb2")`,
		`8:89: service "other" needs its own source_addresses: services listen on every tcp port of 192.0.2.100 that nat could send from (1000-1499 of node "lb1")`,
	}},
	{"all ports of the share without a roster", `datapath: {interfaces: [e], nat: {ports: 1000-1999}}
pools: [{name: p, servers: [{address: "192.0.2.11:80"}]}]
services:
- {name: a, address: "192.0.2.100:900-1499", pool: p}
- {name: b, address: "192.0.2.101:900-1498", pool: p}
`, []string{
		`4:10: service "a" needs its own source_addresses: services listen on every tcp port of 192.0.2.100 that nat could send from (1000-1499)`,
	}},
	{"many ports and no port to probe", withInterface + `pools:
- {name: a, servers: [{address: 192.0.2.11}], health: {type: tcp}}
- {name: b, servers: [{address: 192.0.2.11}], health: {type: tcp, port: 21}}
- {name: c, servers: [{address: 192.0.2.11}]}
defaults: {service: {forward: dsr}}
services:
- {name: a, address: ["192.0.2.100:80", "192.0.2.100:8000-8100"], pool: a}
- {name: b, address: "192.0.2.101:*", pool: b}
- {name: c, address: "192.0.2.102:*", pool: c}
- {name: d, address: ["192.0.2.103:80", "192.0.2.103:81"], pool: a}
- {name: e, address: "192.0.2.104:*", protocol: udp, backends: [{address: 192.0.2.11}], health: {type: http}}
- {name: f, address: "192.0.2.105:8000-8100", forward: nat, backends: [{address: 192.0.2.11:80}], health: {type: http}}
`, []string{
		`8:41: address 192.0.2.100:8000-8100 has many ports, and health of the servers of service "a" does not say which to probe: set "port" in health`,
		`12:22: address 192.0.2.104:* has many ports, and health of the servers of service "e" does not say which to probe: set "port" in health`,
	}},
}

func TestFrontendMistakes(t *testing.T) {
	for _, tt := range frontendMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
