package config

import "testing"

const withInterface = "datapath: {interfaces: [e]}\n"

var semanticMistakes = []mistakeCase{
	// Pools and services.
	{"duplicate names", withInterface + `pools:
- {name: web, servers: [{address: 192.0.2.1}]}
- {name: web, servers: [{address: 192.0.2.2}]}
services:
- {name: s, address: "192.0.2.100:80", pool: web}
- {name: s, address: "192.0.2.100:81", pool: web}
vrrp:
- {name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.100]}
- {name: v, interface: e, virtual_router_id: 2, addresses: [192.0.2.101]}
`, []string{
		`4:10: duplicate pool "web": the first one is on line 3`,
		`7:10: duplicate service "s": the first one is on line 6`,
		`10:10: duplicate VRRP instance "v": the first one is on line 9`,
	}},
	{"server twice", "pools:\n- name: p\n  servers:\n  - address: 192.0.2.1\n  - address: \"192.0.2.1:80\"\n  - address: 192.0.2.1\n  - address: \"192.0.2.1:80\"\n", []string{
		`6:14: duplicate server "192.0.2.1": the first one is on line 4`,
		`7:14: duplicate server "192.0.2.1:80": the first one is on line 5`,
	}},
	{"server twice once the port is known", withInterface + "services:\n- name: s\n  address: \"192.0.2.100:80\"\n  backends: [{address: 192.0.2.1}, {address: \"192.0.2.1:80\"}]\n", []string{
		`5:46: duplicate server 192.0.2.1:80 for service "s", which has port 80: the first one is on line 5`,
	}},
	{"VIP and port in two services", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}]}]\nservices:\n" +
		"- {name: a, address: \"192.0.2.100:80\", forward: dsr, pool: p}\n- name: b\n  address: [\"192.0.2.100:81\", \"192.0.2.100:80\", \"192.0.2.100:81\"]\n  forward: dsr\n  pool: p\n", []string{
		`6:31: address 192.0.2.100:80 belongs to service "a" already: the first one is on line 4`,
		`6:49: address 192.0.2.100:81 is listed twice in service "b": the first one is on line 6`,
	}},
	{"dangling pool", withInterface + "pools: [{name: web, servers: [{address: 192.0.2.1}]}]\nservices:\n" +
		"- {name: a, address: \"192.0.2.100:80\", pool: wbe}\n- {name: b, address: \"192.0.2.100:81\", pool: other}\n", []string{
		`4:46: there is no pool "wbe"; did you mean "web"?`,
		`5:46: there is no pool "other"`,
	}},
	{"pool and backends", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}]}]\nservices:\n- name: s\n  address: \"192.0.2.100:80\"\n  pool: p\n  backends: [{address: x}]\n", []string{
		`7:3: pool and backends are both set: a service has one or the other`,
		`7:24: bad address "x": names are not looked up, write the IP address`,
	}},
	{"health with a pool", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}]}]\nservices:\n- name: s\n  address: \"192.0.2.100:80\"\n  pool: p\n  health: {type: tcp, rise: 0}\n", []string{
		`7:3: health belongs into the pool: a service has it only with backends of its own`,
		`7:29: rise must be a whole number from 1 to 255, not 0`,
	}},
	{"service with backends, named as a pool", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}]}]\nservices:\n- name: p\n  address: \"192.0.2.100:80\"\n  backends: [{address: 192.0.2.1}]\n", []string{
		`4:9: service "p" has backends of its own and the name of a pool: commands could not tell them apart`,
	}},
	{"no servers", withInterface + "pools: [{name: p, servers: []}]\nservices:\n- {name: s, address: \"192.0.2.100:80\", backends: []}\n", []string{
		`2:28: servers is empty: name at least one`,
		`4:50: backends is empty: name at least one`,
	}},
	{"weights", "pools:\n- name: p\n  servers:\n  - {address: 192.0.2.1, weight: -1}\n  - {address: 192.0.2.2, weight: 65536}\n  - {address: 192.0.2.3, weight: 65535}\n", []string{
		`4:34: weight must be a whole number from 0 to 65535, not -1`,
		`5:34: weight must be a whole number from 0 to 65535, not 65536`,
	}},
	{"more backends than slots", withInterface + "services:\n- name: s\n  address: \"192.0.2.100:80\"\n  table_size: 2\n  backends:\n" +
		"  - address: 192.0.2.1\n  - address: 192.0.2.2\n  - {address: 192.0.2.3, weight: 0}\n  - address: 192.0.2.4\n", []string{
		`5:15: 3 backends are more than the 2 slots of the table: raise table_size`,
	}},
	{"table size", withInterface + "services:\n- {name: s, address: \"192.0.2.100:80\", table_size: 65536, backends: [{address: 192.0.2.1}]}\n" +
		"- {name: t, address: \"192.0.2.100:81\", table_size: 1, backends: [{address: 192.0.2.1}]}\n" +
		"- {name: u, address: \"192.0.2.100:82\", table_size: 1048576, backends: [{address: 192.0.2.1}]}\n", []string{
		`3:52: table_size must be a prime, not 65536: take 65537`,
		`4:52: table_size must be a whole number from 2 to 1048576, not 1`,
		`5:52: table_size must be a prime, not 1048576: take 1048573`,
	}},
	{"quorum", withInterface + "services:\n- {name: s, address: \"192.0.2.100:80\", quorum: 2, backends: [{address: 192.0.2.1}]}\n", []string{
		`3:48: quorum 2 can never be met: the number of servers of service "s" is 1`,
	}},
	{"dsr with another port", withInterface + "services:\n- name: s\n  address: \"192.0.2.100:80\"\n  forward: dsr\n  backends: [{address: \"192.0.2.1:8080\"}, {address: \"192.0.2.2:80\"}]\n" +
		"- name: t\n  address: [\"192.0.2.100:81\", \"192.0.2.100:82\"]\n  forward: dsr\n  backends: [{address: \"192.0.2.1:81\"}, {address: 192.0.2.2}]\n", []string{
		`6:24: server port 8080 differs from port 80 of service "s": dsr cannot rewrite it; leave the port out, or use forward: nat`,
		`10:24: server port 81 differs from port 82 of service "t": dsr cannot rewrite it; leave the port out, or use forward: nat`,
	}},
	{"nat without a port for several", withInterface + "services:\n- name: s\n  address: [\"192.0.2.100:80\", \"192.0.2.100:443\"]\n  backends: [{address: 192.0.2.1}, {address: \"192.0.2.2:8080\"}]\n", []string{
		`5:24: server 192.0.2.1 has no port, and others of service "s", which has several, have one: write "192.0.2.1:80" (with the port that is meant), or leave all of them out, so that each is kept`,
	}},
	{"source addresses", withInterface + "services:\n- name: s\n  address: \"192.0.2.100:80\"\n  source_addresses: [224.0.0.1, 127.0.0.1, 0.0.0.0, 192.0.2.9, 192.0.2.9, x, 192.0.2.1]\n  backends: [{address: 192.0.2.1}]\n", []string{
		`5:22: address 224.0.0.1 is a multicast address`,
		`5:33: address 127.0.0.1 is a loopback address: no other machine can reach it`,
		`5:44: address 0.0.0.0 is not the address of a host (0.0.0.0/8 is unspecified)`,
		`5:64: duplicate source address 192.0.2.9`,
		`5:75: bad address "x": names are not looked up, write the IP address`,
		`6:24: server 192.0.2.1 is a source address of service "s": its traffic would go round in a circle`,
	}},
	{"a nat source on a dsr backend's loopback", `datapath: {interfaces: [e]}
services:
- {name: a, address: "192.0.2.100:80", forward: dsr, backends: [{address: 192.0.2.1}]}
- {name: b, address: "192.0.2.100:81", backends: [{address: 192.0.2.1}, {address: 192.0.2.2}]}
- {name: c, address: "192.0.2.101:81", source_addresses: [192.0.2.102, 192.0.2.100], backends: [{address: 192.0.2.1}]}
- {name: d, address: "192.0.2.100:82", backends: [{address: 192.0.2.2}]}
`, []string{
		`4:10: server 192.0.2.1 has 192.0.2.100 on its loopback for the dsr service "a", so it cannot answer what comes from there: set source_addresses to another VIP`,
		`5:72: server 192.0.2.1 has 192.0.2.100 on its loopback for the dsr service "a", so it cannot answer what comes from there: set source_addresses to another VIP`,
	}},
	{"source NAT with dsr", withInterface + "services:\n- name: s\n  address: \"192.0.2.100:80\"\n  forward: dsr\n  source_nat: true\n  source_addresses: [192.0.2.9]\n  backends: [{address: 192.0.2.1}]\n", []string{
		`6:15: source_nat is for forward: nat; with dsr the backend sees the client's address`,
		`7:21: source_addresses is for forward: nat; with dsr the backend sees the client's address`,
	}},
	{"a backend that is a VIP", withInterface + "pools: [{name: p, servers: [{address: 192.0.2.1}, {address: 192.0.2.101}]}]\nservices:\n" +
		"- {name: a, address: \"192.0.2.100:80\", pool: p}\n- {name: b, address: \"192.0.2.102:80\", backends: [{address: \"192.0.2.100:8080\"}]}\n" +
		"vrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.101/24]}]\n", []string{
		`2:61: server 192.0.2.101 is the VIP of instance "v": its traffic would go round in a circle`,
		`5:61: server 192.0.2.100 is the VIP of service "a": its traffic would go round in a circle`,
	}},
	{"words", withInterface + "services:\n- {name: a, address: \"192.0.2.100:80\", protocol: TCP, forward: natt, scheduler: rr, backends: [{address: 192.0.2.1}]}\n", []string{
		`3:50: protocol must be one of tcp, udp, not "TCP"; did you mean "tcp"?`,
		`3:64: forward must be one of nat, dsr, tunnel, proxy, not "natt"; did you mean "nat"?`,
		`3:81: scheduler must be one of maglev, source_hash, not "rr"`,
	}},

	// Health.
	{"probes", "pools:\n" +
		"- {name: a, servers: [{address: 192.0.2.1}], health: {interval: 1s}}\n" +
		"- {name: b, servers: [{address: 192.0.2.1}], health: {type: tcp, interval: 1s, timeout: 2s}}\n" +
		"- {name: c, servers: [{address: 192.0.2.1}], health: {type: tcp, path: /, body: a}}\n" +
		"- {name: d, servers: [{address: 192.0.2.1}], health: {type: http, path: up, host: a/b, body: \"(\", port: 0, fall: 256}}\n" +
		"- {name: e, servers: [{address: 192.0.2.1}], health: {type: http, path: \"/a b\", status: [200-, 99, 300-200, 200-600, ok]}}\n" +
		"- {name: f, servers: [{address: 192.0.2.1}], health: {type: http, status: []}}\n" +
		"- {name: g, servers: [{address: 192.0.2.1}], health: {type: htpp}}\n" +
		"- {name: h, servers: [{address: 192.0.2.1}], health: tcp}\n" +
		"- {name: i, servers: [{address: 192.0.2.1}], health: {type: tcp, timeout: 2s}}\n", []string{
		`2:54: missing key "type": health needs it`,
		`3:89: timeout 2s is longer than the interval 1s`,
		`4:66: path is for probes of type http or https, this one's type is tcp`,
		`4:75: body is for probes of type http or https, this one's type is tcp`,
		`5:73: path must start with /, not "up"`,
		`5:83: host must be a host name with an optional port, not "a/b"`,
		"5:94: body is not a regular expression: missing closing ): `(`",
		`5:105: port must be a whole number from 1 to 65535, not 0`,
		`5:114: fall must be a whole number from 1 to 255, not 256`,
		`6:73: path must have no space in it (write %20)`,
		`6:90: status must be a code or a range of codes from 100 to 599, such as 200-399, not "200-"`,
		`6:96: status must be a code or a range of codes from 100 to 599, such as 200-399, not "99"`,
		`6:100: status must be a code or a range of codes from 100 to 599, such as 200-399, not "300-200"`,
		`6:109: status must be a code or a range of codes from 100 to 599, such as 200-399, not "200-600"`,
		`6:118: status must be a code or a range of codes from 100 to 599, such as 200-399, not "ok"`,
		`7:75: status is empty: no answer would do`,
		`8:61: type must be one of tcp, http, https, dns, udp, exec, not "htpp"; did you mean "http"?`,
		`9:54: health must be a mapping ("key: value"), not "tcp"`,
		`10:75: timeout 2s is longer than the interval 1s`,
	}},
	{"a default timeout and a short interval", "defaults: {health: {timeout: 2s, interval: 3s}}\npools:\n- name: p\n  health: {type: tcp, interval: 1s}\n  servers: [{address: 192.0.2.1}]\n", []string{
		`4:33: timeout 2s is longer than the interval 1s`,
	}},
	{"defaults that nothing uses", "defaults:\n  service: {forward: x, protocol: sctp, address: y, quorum: -1}\n  health: {interval: 1, rise: x, via: lo}\n  pools: {}\n", []string{
		`2:22: forward must be one of nat, dsr, tunnel, proxy, not "x"`,
		`2:35: protocol must be one of tcp, udp, not "sctp"`,
		`2:41: unknown key "address" in the defaults of services; each service has its own`,
		`2:61: quorum must be a whole number from 0 to 65535, not -1`,
		`3:22: interval has no unit: write 1s`,
		`3:31: rise must be a whole number from 1 to 255 in decimal digits, not "x"`,
		`3:39: via must be one of vip, direct, not "lo"`,
		`4:3: unknown key "pools" in defaults`,
	}},

	// VRRP.
	{"virtual router ids", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 0, addresses: [192.0.2.1]}\n" +
		"- {name: b, interface: e, virtual_router_id: 256, addresses: [192.0.2.2]}\n" +
		"- {name: c, interface: e, virtual_router_id: 5, addresses: [192.0.2.3]}\n" +
		"- {name: d, interface: f, virtual_router_id: 5, addresses: [192.0.2.4]}\n" +
		"- {name: e, interface: e, virtual_router_id: 5, version: 2, addresses: [192.0.2.5]}\n", []string{
		`2:46: virtual_router_id must be a whole number from 1 to 255, not 0`,
		`3:46: virtual_router_id must be a whole number from 1 to 255, not 256`,
		`6:46: virtual_router_id 5 is used twice on e: instance "c" has it already`,
	}},
	{"VIP twice", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 1, addresses: [192.0.2.1/24, 192.0.2.1]}\n" +
		"- {name: b, interface: f, virtual_router_id: 2, addresses: [192.0.2.1/32]}\n", []string{
		`2:75: VIP 192.0.2.1 is listed twice: the first one is on line 2`,
		`3:61: VIP 192.0.2.1 is listed twice: the first one is on line 2`,
	}},
	{"no VIP", "vrrp: [{name: a, interface: e, virtual_router_id: 1, addresses: []}]\n", []string{
		`1:65: addresses is empty: an instance needs one at least`,
	}},
	{"interface of an instance", "vrrp: [{name: a, interface: a234567890123456, virtual_router_id: 1, addresses: [192.0.2.1]}]\n", []string{
		`1:29: interface "a234567890123456" is longer than the 15 bytes that an interface name may have`,
	}},
	{"password", "vrrp:\n- name: a\n  interface: e\n  virtual_router_id: 1\n  version: 2\n  authentication: {type: pass, password: 123456789}\n  addresses: [192.0.2.1]\n", []string{
		`6:42: password has 9 bytes: VRRP carries 8 (other implementations cut the rest off)`,
	}},
	{"password without a value", "vrrp:\n- name: a\n  interface: e\n  virtual_router_id: 1\n  version: 2\n  authentication:\n    type: ah\n    password:\n  addresses: [192.0.2.1]\n", []string{
		`7:11: type must be pass, not "ah"`,
		`8:5: password has no value: it must be a text`,
	}},
	{"authentication with version 3", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 1, addresses: [192.0.2.1], authentication: {type: pass, password: a}}\n" +
		"- {name: b, interface: e, virtual_router_id: 2, addresses: [192.0.2.2], authentication: {type: pass, password: a}, version: 3}\n", []string{
		`2:73: authentication needs version: 2 (version 3, the default, has none)`,
		`3:73: version 3 has no authentication (RFC 9568): remove it, or use version: 2`,
	}},
	{"version", "vrrp: [{name: a, interface: e, virtual_router_id: 1, version: 4, addresses: [192.0.2.1]}]\n", []string{
		`1:63: version must be a whole number from 2 to 3, not 4`,
	}},
	{"intervals", "vrrp:\n" +
		"- {name: a, interface: e, virtual_router_id: 1, addresses: [192.0.2.1], version: 2, advertisement_interval: 1500ms}\n" +
		"- {name: b, interface: e, virtual_router_id: 2, addresses: [192.0.2.2], version: 2, advertisement_interval: 100ms}\n" +
		"- {name: c, interface: e, virtual_router_id: 3, addresses: [192.0.2.3], version: 2, advertisement_interval: 256s}\n" +
		"- {name: d, interface: e, virtual_router_id: 4, addresses: [192.0.2.4], advertisement_interval: 15ms}\n" +
		"- {name: e, interface: e, virtual_router_id: 5, addresses: [192.0.2.5], advertisement_interval: 41s}\n" +
		"- {name: f, interface: e, virtual_router_id: 6, addresses: [192.0.2.6], advertisement_interval: 1}\n" +
		"- {name: g, interface: e, virtual_router_id: 7, addresses: [192.0.2.7], preempt_delay: -1s, start_timeout: x, preempt: 1}\n", []string{
		`2:109: advertisement_interval must be whole seconds in version 2, not 1500ms`,
		`3:109: advertisement_interval must be from 1s to 4m15s, not 100ms`,
		`4:109: advertisement_interval must be from 1s to 4m15s, not 256s`,
		`5:97: advertisement_interval must be a multiple of 10ms in version 3, not 15ms`,
		`6:97: advertisement_interval must be from 10ms to 40.95s, not 41s`,
		`7:97: advertisement_interval has no unit: write 1s`,
		`8:88: preempt_delay must be from 0s to 24h, not -1s`,
		`8:108: start_timeout must be a duration such as 1s, 500ms or 1h30m (units: ms s m h), not "x"`,
		`8:120: preempt must be true or false, not "1"`,
	}},
	{"priority", "vrrp: [{name: a, interface: e, virtual_router_id: 1, priority: 0, addresses: [192.0.2.1]}]\n", []string{
		`1:64: priority must be a whole number from 1 to 255, not 0`,
	}},
}

func TestSemanticMistakes(t *testing.T) {
	for _, tt := range semanticMistakes {
		t.Run(tt.name, func(t *testing.T) {
			wantMistakes(t, tt.yaml, tt.want)
		})
	}
}

// TestAllowed checks what looks like a mistake and is none.
func TestAllowed(t *testing.T) {
	for name, yaml := range map[string]string{
		"all weights 0":              "pools: [{name: p, servers: [{address: 192.0.2.1, weight: 0}]}]\n",
		"backups only":               "pools: [{name: p, servers: [{address: 192.0.2.1, backup: true}]}]\n",
		"dsr with the same port":     withInterface + "services: [{name: s, address: \"192.0.2.100:80\", forward: dsr, backends: [{address: \"192.0.2.1:80\"}]}]\n",
		"one server in two services": withInterface + "services: [{name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.1}]}, {name: t, address: \"192.0.2.100:81\", backends: [{address: 192.0.2.1}]}]\n",
		"a pool that is not used":    "pools: [{name: p, servers: [{address: 192.0.2.100}]}]\nvrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.100]}]\n",
		"one status":                 "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {type: http, status: 200}}]\n",
		"point-to-point prefix":      "vrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.0/31, 192.0.2.3/31]}]\n",
		"longest interface name":     "datapath: {interfaces: [a23456789012345]}\n",
		"letters of any alphabet":    "pools: [{name: 网站, servers: [{address: 192.0.2.1}]}]\n",
		"priority 255":               "vrrp: [{name: v, interface: e, virtual_router_id: 255, priority: 255, addresses: [192.0.2.1]}]\n",
		"an empty mapping":           "{}\n",
		"x- keys":                    "x-a: [1, {b: c}]\nx-b: 0x10\n",
	} {
		t.Run(name, func(t *testing.T) { mustLoad(t, yaml) })
	}
}
