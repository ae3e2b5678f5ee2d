package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a node has to itself may be on its loopback: the servers of an upstream that only http
// uses, and what a check looks at. What clients or other nodes must reach may not.
func TestLoopbackServers(t *testing.T) {
	c := mustLoad(t, "http:\n  upstreams:\n"+
		"  - {name: u, servers: [{address: \"127.0.0.1:3000\"}, {address: \"[::1]:3000\"}, {address: 127.0.0.2}], health: {type: tcp}}\n"+
		"  servers: [{listen: \":80\", "+toU+"}]\n"+
		"checks: [{name: c, type: tcp, address: \"127.0.0.1:3000\"}]\n")
	var got []netip.AddrPort
	for _, s := range c.HTTP.Upstreams[0].Pool.Servers {
		got = append(got, c.HTTP.Upstreams[0].Endpoint(s))
	}
	got = append(got, c.Checks[0].Address)
	want := []netip.AddrPort{addrPort("127.0.0.1:3000"), addrPort("[::1]:3000"), addrPort("127.0.0.2:80"), addrPort("127.0.0.1:3000")}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

var ownMistakes = []mistakeCase{
	{"loopback that clients are sent to", "http:\n  upstreams: [{name: u, servers: [{address: 192.0.2.1}, {address: 127.0.0.1}]}]\n  servers: [{listen: \":80\", locations: [{path: /, redirect: {upstream: u}}]}]\n", []string{
		`3:72: upstream "u" has server 127.0.0.1, where no client can be sent`}},
	{"loopback in a pool", "pools: [{name: p, servers: [{address: 127.0.0.1}]}]\nhttp:\n  upstreams: [{name: u, pool: p}]\n  servers: [{listen: \":80\", " + toU + "}]\n", []string{
		`1:39: address 127.0.0.1 is a loopback address: no other machine can reach it`}},
	{"loopback in two ways", inUpstream("servers: [{address: \"::ffff:127.0.0.1\"}, {address: \"127.0.0.1:0\"}, {address: \"::1:80x\"}]"), []string{
		`6:25: bad address "::ffff:127.0.0.1": write 127.0.0.1`,
		`6:56: bad address "127.0.0.1:0": the port must be a number from 1 to 65535`,
		`6:82: bad address "::1:80x": write the IPv6 address in brackets, "[::1]:80x"`,
	}},
	{"servers that nobody reaches", inServers("  - {listen: [\":80\", \":81\"], " + toU + "}\n  - {listen: \":80\", " + toU + "}\n" +
		"  - {listen: \":81\", names: [a], default: true, " + toU + "}\n"), []string{
		`4:22: no request of listen 0.0.0.0:81 is for this server: it has no names, and is not the first one there, nor its default: the first one is on line 6`,
		`5:14: no request of listen 0.0.0.0:80 is for this server: it has no names, and is not the first one there, nor its default: the first one is on line 4`,
	}},
	{"all addresses in nginx's way", inServers("  - {listen: \"*:80\", " + toU + "}\n"), []string{
		`4:14: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not "*:80": write ":80" for all addresses`}},
	{"a URL for an upstream", inLocation("path: /\nupstream: http://127.0.0.1:3000"), []string{
		`10:17: there is no upstream "http://127.0.0.1:3000": this is its name, and its servers stand in upstreams: [{name: NAME, servers: [{address: "192.0.2.1:80"}]}]`}},
	{"paths as they stand in URLs", inServers("  - {listen: \":80\", locations: [{path: /a?b, upstream: u}, {exact: /a%20b, upstream: u}, {path: /100%, upstream: u}]}\n"), []string{
		`4:40: path "/a?b" is not what clients mean by it: paths are compared without the query (a question mark in a path needs regex)`,
		`4:68: exact "/a%20b" is not what clients mean by it: paths are compared decoded, so write the character itself`,
	}},
	{"a redirect to no URL", inLocation("path: /\nredirect: {to: www.example.com}"), []string{
		`10:22: to must be a URL, such as https://www.example.com$request_uri, or a path that starts with /, not "www.example.com"`}},
	{"a redirect to a host and a port", inLocation("path: /\nredirect: {to: \"www.example.com:8080/x\"}"), []string{
		`10:22: to must be a URL, such as https://www.example.com$request_uri, or a path that starts with /, not "www.example.com:8080/x"`}},
	{"queries", inLocation("path: /\nupstream: u\nrewrite: [{regex: ^/a, to: \"/b c?d=e f\"}, {regex: ^/a, to: \"/é?é\"}, {regex: ^/a, to: \"/b?c#d\"}]"), []string{
		`11:34: to: the query must be written as in a URL, with %20 for ' '`,
		`11:66: to: the query must be written as in a URL, with %C3%A9 for 'é'`,
		`11:92: to: the query must be written as in a URL, with %23 for '#'`,
	}},
	{"a host that is not in ASCII", inUpstream("host: bücher.example\nservers: [{address: 192.0.2.1}]"), []string{
		`6:11: host must be in ASCII, as it is sent (xn--...), not "bücher.example"`}},
	{"names that are wrong", inServers("  - {listen: \":80\", " + toU + "}\n  - {listen: \":80\", names: [\"b c\"], " + toU + "}\n"), []string{
		`5:29: name "b c" must be the name of a host, or *. and one, or an address, without a port`}},
	{"a redirect to nothing", inLocation("path: /\nredirect: {to: \"\"}"), []string{
		`10:22: to must be a URL, such as https://www.example.com$request_uri, or a path that starts with /, not ""`}},
	{"hosts", inUpstream("host: $host\nservers: [{address: 192.0.2.1}]"), []string{
		`6:11: host has no variables: write client for what the client has asked for, which is nginx's $host, not "$host"`}},
	{"a host with a scheme", inUpstream("host: http://a\nservers: [{address: 192.0.2.1}]"), []string{`6:11: host must be client, upstream or a host name with an optional port, not "http://a"`}},
	{"a host with a bad port", inUpstream("host: \"a:0\"\nservers: [{address: 192.0.2.1}]"), []string{`6:11: host must be client, upstream or a host name with an optional port, not "a:0"`}},
	{"the host as a header", inUpstream("policy: hash\nkey: \"header:host\"\nservers: [{address: 192.0.2.1}]"), []string{
		`7:10: key: the host is no header here: write host, not "header:host"`}},
	{"names that no client sends", inServers("  - {listen: \":80\", names: [bücher.example, \"*.bücher.example\", xn--bcher-kva.example], " + toU + "}\n"), []string{
		`4:29: name "bücher.example" must be written as clients send it, in ASCII (xn--...)`,
		`4:45: name "*.bücher.example" must be written as clients send it, in ASCII (xn--...)`,
	}},
	{"probes without TLS", inUpstream("servers: [{address: 192.0.2.1}]\ntls: {verify: false}\nhealth: {type: http, path: /}"), []string{
		`7:5: servers speak TLS, and their health is of type http, which does not: write type: https, or give health a port of its own`}},
	{"probes with TLS", inUpstream("servers: [{address: 192.0.2.1}]\nhealth: {type: https, path: /}"), []string{
		`5:5: servers are spoken to without TLS, and their health is of type https: write tls here, or give health a port of its own`}},
	{"where the daemon listens", "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}]\nnode: lb1\nsync: {key_file: sync.key}\n" +
		"dns: {listen: [\"127.0.0.1:9780\", \"192.0.2.2:3780\"], zones: [{name: a.example, name_servers: [ns.b.example]}]}\nhttp:\n  servers:\n" +
		"  - {listen: [\":9780\", \"127.0.0.2:9780\", \"[::1]:9780\", \"192.0.2.1:3780\"], locations: [{path: /, return: {status: 200}}]}\n", []string{
		`4:16: listen 127.0.0.1:9780 is where admin listens (127.0.0.1:9780): take another port, or write admin: {listen: ...}`,
		`7:15: listen 0.0.0.0:9780 is where admin listens (127.0.0.1:9780): take another port, or write admin: {listen: ...}`,
		`7:56: listen 192.0.2.1:3780 is where sync listens (192.0.2.1:3780): take another port, or write sync: {port: ...}`,
	}},
	{"where the daemon listens on all of IPv4", "admin: {listen: \"0.0.0.0:81\"}\n" + inServers("  - {listen: \"[2001:db8::1]:81\", "+toU+"}\n"), []string{
		`5:14: listen [2001:db8::1]:81 is where admin listens (0.0.0.0:81): take another port, or write admin: {listen: ...}`}},
	{"where the daemon listens on all", "admin: {listen: \"[::]:81\"}\n" + inServers("  - {listen: [\"192.0.2.1:81\", \"[2001:db8::1]:81\", \"192.0.2.1:9780\"], "+toU+"}\n"), []string{
		`5:15: listen 192.0.2.1:81 is where admin listens ([::]:81): take another port, or write admin: {listen: ...}`,
		`5:31: listen [2001:db8::1]:81 is where admin listens ([::]:81): take another port, or write admin: {listen: ...}`,
	}},
	{"nginx's words in a location", inLocation("path: /\nupstream: u\nproxy_set_header: {Host: a}\nproxy_read_timeout: 5s\naccess_log: off\nroot: /a"), []string{
		`11:7: unknown key "proxy_set_header" in a location; write request_headers: {set: {NAME: VALUE}}; Host is "host" of the upstream, and X-Forwarded-For and its like are always sent`,
		`12:7: unknown key "proxy_read_timeout" in a location; it is "read_timeout" of the upstream`,
		`13:7: unknown key "access_log" in a location; it stands in http: write log: false for no line`,
		`14:7: unknown key "root" in a location; sluice serves no files`,
	}},
	{"nginx's words in a server", inServers("  - {listen: \":80\", add_header: {A: b}, ssl_protocols: TLSv1.3, " + toU + "}\n"), []string{
		`4:21: unknown key "add_header" in a server of http; write response_headers: {add: {NAME: VALUE}}`,
		`4:41: unknown key "ssl_protocols" in a server of http; TLS is 1.2 or later`,
	}},
	{"nginx's words in http", "http:\n  limit_req_zone: a\n  servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]\n", []string{
		`2:3: unknown key "limit_req_zone" in http; write rate_limit: {rate: 10, burst: 20}, which needs no zone`}},
	{"a header that is none", "http:\n  request_id: true\n  servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]\n", []string{
		`2:15: request_id is the name of a header, such as X-Request-Id; without it requests have none`}},
	{"rates", inServers("  - {listen: \":80\", locations: [{path: /, upstream: u, rate_limit: {rate: 5r/h}}, {path: /a, upstream: u, rate_limit: {rate: 0r/s}}, {path: /b, upstream: u, rate_limit: {rate: 0.5}}]}\n"), []string{
		`4:75: rate must be requests a second, such as 10 or 10r/s, or 5r/m for those of a minute, not "5r/h"`,
		`4:126: rate must be requests a second, such as 10 or 10r/s, or 5r/m for those of a minute, not "0r/s"`,
		`4:177: rate must be a whole number from 1 to 1000000 in decimal digits, not "0.5"`,
	}},
	{"everybody", inLocation("path: /\nupstream: u\nallow: [192.0.2.0/24]\ndeny: [all]"), []string{`12:14: bad prefix "all": write 0.0.0.0/0 and "::/0"`}},
}

func TestOwnMistakes(t *testing.T) {
	for _, tt := range ownMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// Rates are numbers, or what nginx writes.
func TestRates(t *testing.T) {
	for text, want := range map[string]float64{"10": 10, "10r/s": 10, "30r/m": 0.5, "1r/m": 1. / 60, "1000000": 1e6} {
		c := mustLoad(t, inLocation("path: /\nupstream: u\nrate_limit: {rate: "+text+"}"))
		if got := c.HTTP.Servers[0].Locations[0].RateLimit.Rate; got != want {
			t.Errorf("%s: %v requests a second, want %v", text, got, want)
		}
	}
}

// Hosts that servers may be told.
func TestHosts(t *testing.T) {
	for _, host := range []string{"client", "upstream", "a.example", "a.example:8080", "192.0.2.1", "192.0.2.1:80", "\"[2001:db8::1]\"", "\"[2001:db8::1]:80\"", "_a", "A.example"} {
		mustLoad(t, inUpstream("host: "+host+"\nservers: [{address: 192.0.2.1}]"))
	}
}
