package config

import "testing"

// mistake cases: a configuration and every mistake in it, with its place.
type mistakeCase struct {
	name string
	yaml string
	want []string
}

var mistakes = []mistakeCase{
	// Keys.
	{"unknown key at the top", "srevices: []\n", []string{
		`1:1: unknown key "srevices" in a configuration; did you mean "services"?`,
	}},
	{"unknown key without a likeness", "frobnicate: 1\n", []string{
		`1:1: unknown key "frobnicate" in a configuration`,
	}},
	{"unknown key in a list item", "pools:\n- name: web\n  sarvers: []\n", []string{
		`2:3: missing key "servers": a pool needs it`,
		`3:3: unknown key "sarvers" in a pool; did you mean "servers"?`,
	}},
	{"unknown key in flow style", "pools: [{name: web, servers: [{address: 192.0.2.1, wieght: 2}]}]\n", []string{
		`1:52: unknown key "wieght" in a server; did you mean "weight"?`,
	}},
	{"key of another program", "vrrp:\n- {name: v, interface: e, virtual_router_id: 1, virtual_ipaddress: [192.0.2.1]}\n", []string{
		`2:3: missing key "addresses": a VRRP instance needs it`,
		`2:49: unknown key "virtual_ipaddress" in a VRRP instance; keepalived's virtual_ipaddress is "addresses"`,
	}},
	{"x- key below the top", "admin:\n  x-a: 1\n", []string{
		`2:3: unknown key "x-a" in admin`,
	}},
	{"duplicate mapping key", "admin:\n  socket: /a\n  socket: /b\n", []string{
		`3:3: duplicate key "socket": it is set on line 2 already`,
	}},
	{"duplicate top-level key", "node: a\npools: []\nnode: b\n", []string{
		`3:1: duplicate key "node": it is set on line 1 already`,
	}},
	{"missing keys", "nodes: [{}]\npools: [{}]\nservices: [{}]\nvrrp: [{}]\ndatapath: {interfaces: [e]}\n", []string{
		`1:9: missing key "address": a node needs it`,
		`1:9: missing key "name": a node needs it`,
		`2:9: missing key "servers": a pool needs it`,
		`2:9: missing key "name": a pool needs it`,
		`3:12: missing key "address": a service needs it`,
		`3:12: missing key "pool": a service needs it, or "backends"`,
		`3:12: missing key "name": a service needs it`,
		`4:8: missing key "interface": a VRRP instance needs it`,
		`4:8: missing key "virtual_router_id": a VRRP instance needs it`,
		`4:8: missing key "addresses": a VRRP instance needs it`,
		`4:8: missing key "name": a VRRP instance needs it`,
	}},
	{"missing address of a server", "pools:\n- name: p\n  servers:\n  - weight: 1\n", []string{
		`4:5: missing key "address": a server needs it`,
	}},

	// Types.
	{"list instead of a mapping", "- 1\n", []string{
		`1:1: a configuration must be a mapping ("key: value"), not a list`,
	}},
	{"text instead of a mapping", "hello\n", []string{
		`1:1: a configuration must be a mapping ("key: value"), not "hello"`,
	}},
	{"mapping instead of a list", "pools:\n  name: p\n", []string{
		`2:3: pools must be a list (its items start with "- "), not a mapping`,
	}},
	{"text instead of a list", "services: web\n", []string{
		`1:11: services must be a list (its items start with "- "), not "web"`,
	}},
	{"one text instead of a list of texts", "datapath: {interfaces: eth0}\n", []string{
		`1:24: interfaces must be a list: write [eth0]`,
	}},
	{"list instead of a text", "node: [a]\n", []string{
		`1:7: node must be a text, not a list`,
	}},
	{"mapping instead of a text", "admin: {socket: {a: b}}\n", []string{
		`1:17: socket must be a text, not a mapping`,
	}},
	{"key without a value", "pools:\nnode:\ndatapath:\n  mode:\n", []string{
		`1:1: pools has no value: it must be a list (its items start with "- ")`,
		`2:1: node has no value: it must be a text`,
		`4:3: mode has no value: it must be a text`,
	}},
	{"empty text", "node: \"\"\n", []string{
		`1:7: node is empty`,
	}},
	{"number instead of a mapping", "vrrp: [5]\n", []string{
		`1:8: a VRRP instance must be a mapping ("key: value"), not "5"`,
	}},
	{"server that is not a mapping", "pools: [{name: p, servers: [192.0.2.1, \"192.0.2.1:80\", x]}]\n", []string{
		`1:29: a server must be a mapping: write {address: 192.0.2.1}`,
		`1:40: a server must be a mapping: write {address: "192.0.2.1:80"}`,
		`1:56: a server must be a mapping ("key: value"), not "x"`,
	}},
	{"no space after a colon", "pools:\n- name: p\n  servers:\n  - address:192.0.2.1\n", []string{
		`4:5: a server must be a mapping ("key: value"), not the text "address:192.0.2.1": is a space missing after the colon (address: 192.0.2.1)?`,
	}},
	{"numbers", "pools:\n- name: p\n  servers:\n" +
		"  - {address: 192.0.2.1, weight: 1.5}\n  - {address: 192.0.2.2, weight: 010}\n  - {address: 192.0.2.3, weight: 0x10}\n" +
		"  - {address: 192.0.2.4, weight: \"1\"}\n  - {address: 192.0.2.5, weight: []}\n  - {address: 192.0.2.6, weight: 1e3}\n" +
		"  - {address: 192.0.2.7, weight: 99999999999999999999}\n  - {address: 192.0.2.8, weight: ~}\n", []string{
		`4:34: weight must be a whole number from 0 to 65535 in decimal digits, not "1.5"`,
		`5:34: weight must be a whole number from 0 to 65535 in decimal digits, not "010"`,
		`6:34: weight must be a whole number from 0 to 65535 in decimal digits, not "0x10"`,
		`7:34: weight must be a whole number from 0 to 65535, not a text in quotes`,
		`8:34: weight must be a whole number from 0 to 65535, not a list`,
		`9:34: weight must be a whole number from 0 to 65535 in decimal digits, not "1e3"`,
		`10:34: weight must be a whole number from 0 to 65535, not 99999999999999999999`,
		`11:34: weight must be a whole number from 0 to 65535 in decimal digits, not "~"`,
	}},
	{"truth values", "pools:\n- name: p\n  servers:\n  - {address: 192.0.2.1, backup: yes}\n  - {address: 192.0.2.2, backup: \"true\"}\n  - {address: 192.0.2.3, backup: off}\n", []string{
		`4:34: backup must be true or false: write true for yes`,
		`5:34: backup must be true or false, not "true"`,
		`6:34: backup must be true or false: write false for off`,
	}},
	{"durations", "pools:\n" +
		"- {name: a, health: {type: tcp, interval: 1}, servers: [{address: 192.0.2.1}]}\n" +
		"- {name: b, health: {type: tcp, interval: 1.5}, servers: [{address: 192.0.2.1}]}\n" +
		"- {name: c, health: {type: tcp, interval: 1 s}, servers: [{address: 192.0.2.1}]}\n" +
		"- {name: d, health: {type: tcp, interval: 1day}, servers: [{address: 192.0.2.1}]}\n" +
		"- {name: e, health: {type: tcp, interval: -1s}, servers: [{address: 192.0.2.1}]}\n" +
		"- {name: f, health: {type: tcp, interval: [1s]}, servers: [{address: 192.0.2.1}]}\n", []string{
		`2:43: interval has no unit: write 1s`,
		`3:43: interval has no unit: write 1.5s`,
		`4:43: interval must have no space in it: write 1s`,
		`5:43: interval must be a duration such as 1s, 500ms or 1h30m (units: ms s m h), not "1day"`,
		`6:43: interval must be from 10ms to 24h, not -1s`,
		`7:43: interval must be a duration such as 1s or 500ms, not a list`,
	}},

	// Nodes and the datapath.
	{"duplicate node", "nodes:\n- {name: lb1, address: 192.0.2.1}\n- {name: lb1, address: 192.0.2.2}\n", []string{
		`3:10: duplicate node "lb1": the first one is on line 2`,
	}},
	{"two nodes with one address", "nodes:\n- {name: lb1, address: 192.0.2.1}\n- {name: lb2, address: 192.0.2.1}\n", []string{
		`3:24: address 192.0.2.1 is the one of node "lb1" already`,
	}},
	{"priority of a node", "nodes:\n- {name: lb1, address: 192.0.2.1, priority: 0}\n- {name: lb2, address: 192.0.2.2, priority: 256}\n", []string{
		`2:45: priority must be a whole number from 1 to 255, not 0`,
		`3:45: priority must be a whole number from 1 to 255, not 256`,
	}},
	{"names", "nodes:\n- {name: -x, address: 192.0.2.1}\n- {name: a b, address: 192.0.2.2}\n- {name: a123456789012345678901234567890123456789012345678901234567890123, address: 192.0.2.3}\n", []string{
		`2:10: node name "-x" must consist of letters, digits, '.', '_' and '-', and start with a letter, a digit or '_'`,
		`3:10: node name "a b" must consist of letters, digits, '.', '_' and '-', and start with a letter, a digit or '_'`,
		`4:10: node name is longer than 63 bytes`,
	}},
	{"interfaces", "datapath:\n  interfaces: [eth0, eth0, a234567890123456, a/b, \"\"]\n", []string{
		`2:22: duplicate interface "eth0"`,
		`2:28: interface "a234567890123456" is longer than the 15 bytes that an interface name may have`,
		`2:46: interface "a/b" is no name of an interface`,
		`2:51: interface is empty`,
	}},
	{"no interface", "datapath: {interfaces: []}\n", []string{
		`1:24: interfaces is empty: name at least one`,
	}},
	{"services without interfaces", "services:\n- {name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.1}]}\n", []string{
		`1:1: missing "interfaces" in datapath: services need to know where their traffic comes in, such as datapath: {interfaces: [eth0]}`,
	}},
	{"one node without interfaces", "nodes:\n- {name: lb1, address: 192.0.2.1, interfaces: [eth0]}\n- {name: lb2, address: 192.0.2.2}\n" +
		"services:\n- {name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.11}]}\n", []string{
		`3:10: node "lb2" has no interfaces: its services need "interfaces" here or in datapath`,
	}},
	{"datapath", "datapath: {mode: fast, max_flows: 10, nat: {ports: 80}}\n", []string{
		`1:18: mode must be one of auto, native, generic, not "fast"`,
		`1:35: max_flows must be a whole number from 1024 to 67108864, not 10`,
		`1:52: ports must be a range of ports such as 1024-65535, not "80"`,
	}},
	{"ports the wrong way round", "datapath: {nat: {ports: 2000-1000}}\n", []string{
		`1:25: ports 2000-1000: the first port is above the last one`,
	}},
	{"translation log without a root", "datapath: {nat: {log: nat.log}}\n", []string{
		`1:23: log must be the absolute path of a file, not "nat.log"`,
	}},
	{"translation log that is a directory", "datapath: {nat: {log: /var/log/}}\n", []string{
		`1:23: log must be the absolute path of a file, not "/var/log/"`,
	}},
	{"translation log without a name", "datapath: {nat: {log: \"\", logs: /x}}\n", []string{
		`1:23: log is empty`,
		`1:27: unknown key "logs" in nat; did you mean "log"?`,
	}},
	{"port out of range", "datapath: {nat: {ports: 0-70000}}\n", []string{
		`1:25: ports must be a range of ports such as 1024-65535, not "0-70000"`,
	}},
	{"fewer ports than nodes", "nodes:\n- {name: lb1, address: 192.0.2.1}\n- {name: lb2, address: 192.0.2.2}\ndatapath: {nat: {ports: 7-7}}\n", []string{
		`1:1: nat ports 7-7 are 1: too few to give each of 2 nodes a share`,
	}},
	{"socket", "admin: {socket: run/sock}\n", []string{
		`1:17: socket must be an absolute path, not "run/sock"`,
	}},
	{"long socket", "admin:\n  socket: /23456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678\n", []string{
		`2:11: socket is longer than the 107 bytes that a Unix socket's path may have`,
	}},
	{"listen", "admin: {listen: 9780}\n", []string{
		`1:17: listen must be an address of the node with a port, such as "127.0.0.1:9780" or "[::]:9780", or none, not "9780"`,
	}},
	{"listen without a port", "admin: {listen: 127.0.0.1}\n", []string{
		`1:17: listen must be an address of the node with a port, such as "127.0.0.1:9780" or "[::]:9780", or none, not "127.0.0.1"`,
	}},
	{"listen on a name", "admin: {listen: \"localhost:9780\"}\n", []string{
		`1:17: listen must be an address of the node with a port, such as "127.0.0.1:9780" or "[::]:9780", or none, not "localhost:9780"`,
	}},
	{"listen on port 0", "admin: {listen: \"[::]:0\"}\n", []string{
		`1:17: listen must be an address of the node with a port, such as "127.0.0.1:9780" or "[::]:9780", or none, not "[::]:0"`,
	}},

	// Addresses.
	{"bad addresses", "pools:\n- name: p\n  servers:\n" +
		"  - {address: 192.0.2.256}\n  - {address: 192.0.2}\n  - {address: 192.0.2.01}\n  - {address: web1}\n  - {address: \"web1:80\"}\n" +
		"  - {address: 192.0.2.1/24}\n  - {address: \"192.0.2.1:0\"}\n  - {address: \"192.0.2.1:65536\"}\n  - {address: \"192.0.2.1:http\"}\n  - {address: \":80\"}\n  - {address: 0123}\n", []string{
		`4:15: bad address "192.0.2.256": IPv4 field has value >255`,
		`5:15: bad address "192.0.2": IPv4 address too short`,
		`6:15: bad address "192.0.2.01": IPv4 field has octet with leading zero`,
		`7:15: bad address "web1": names are not looked up, write the IP address`,
		`8:15: bad address "web1": names are not looked up, write the IP address`,
		`9:15: bad address "192.0.2.1/24": an address without a prefix is wanted here`,
		`10:15: bad address "192.0.2.1:0": the port must be a number from 1 to 65535`,
		`11:15: bad address "192.0.2.1:65536": the port must be a number from 1 to 65535`,
		`12:15: bad address "192.0.2.1:http": the port must be a number from 1 to 65535`,
		`13:15: bad address ":80": there is no address before the port`,
		`14:15: bad address "0123": unable to parse IP`,
	}},
	{"addresses of no host", "pools:\n- name: p\n  servers:\n" +
		"  - {address: 0.0.0.0}\n  - {address: 127.0.0.1}\n  - {address: 224.0.0.18}\n  - {address: 255.255.255.255}\n  - {address: \"::ffff:192.0.2.1\"}\n", []string{
		`4:15: address 0.0.0.0 is not the address of a host (0.0.0.0/8 is unspecified)`,
		`5:15: address 127.0.0.1 is a loopback address: no other machine can reach it`,
		`6:15: address 224.0.0.18 is a multicast address`,
		`7:15: address 255.255.255.255 is the broadcast address`,
		`8:15: bad address "::ffff:192.0.2.1": write 192.0.2.1`,
	}},
	{"addresses of a service", "datapath: {interfaces: [e]}\nservices:\n- name: s\n  address: [192.0.2.100, \"127.0.0.1:80\", \"224.0.0.1:80\", \"0.0.0.0:80\", \"192.0.2.101:80\", [x]]\n  backends: [{address: 192.0.2.1}]\n", []string{
		`4:13: address 192.0.2.100 has no port: write "192.0.2.100:80" (with the port that is meant)`,
		`4:26: address 127.0.0.1 is a loopback address: no other machine can reach it`,
		`4:42: address 224.0.0.1 is a multicast address`,
		`4:58: address 0.0.0.0 is not the address of a host (0.0.0.0/8 is unspecified)`,
		`4:90: address must be an address such as "192.0.2.1:80", not a list`,
	}},
	{"no address of a service", "datapath: {interfaces: [e]}\nservices:\n- {name: s, address: [], backends: [{address: 192.0.2.1}]}\n", []string{
		`3:22: address is empty: a service needs one at least`,
	}},
	{"addresses of an instance", "vrrp:\n- name: v\n  interface: e\n  virtual_router_id: 1\n" +
		"  addresses: [192.0.2.0/24, 192.0.2.255/24, 192.0.2.1/33, 192.0.2.2/0, 192.0.2.3/x, 224.0.0.1/4, 192.0.2.9/31, 192.0.2.300]\n", []string{
		`5:15: address 192.0.2.0/24 is the address of the network, not of a host in it`,
		`5:29: address 192.0.2.255/24 is the broadcast address of its network`,
		`5:45: bad address "192.0.2.1/33": the prefix after / must be a number from 1 to 32`,
		`5:59: bad address "192.0.2.2/0": the prefix after / must be a number from 1 to 32`,
		`5:72: bad address "192.0.2.3/x": the prefix after / must be a number from 1 to 32`,
		`5:85: address 224.0.0.1 is a multicast address`,
		`5:112: bad address "192.0.2.300": IPv4 field has value >255`,
	}},
	{"addresses of nodes", "nodes:\n- {name: lb1, address: 127.0.0.1}\n- {name: lb2, address: \"192.0.2.1:80\"}\n", []string{
		`2:24: address 127.0.0.1 is a loopback address: no other machine can reach it`,
		`3:24: bad address "192.0.2.1:80": unexpected character (at ":80")`,
	}},
}

func TestMistakes(t *testing.T) {
	for _, tt := range mistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
