package config

import (
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestLoadHTTP(t *testing.T) {
	got := mustLoad(t, `
pools:
- {name: web, servers: [{address: 192.0.2.11, weight: 2}, {address: "192.0.2.12:81", backup: true}]}
http:
  trusted_proxies: [192.0.2.0/24, "2001:db8::1"]
  access_log: {path: /var/log/a.log, format: json}
  request_id: x-request-id
  client_max_header_size: 16k
  keepalive_timeout: 5s
  max_connections: 500
  gzip: true
  response_headers: {set: {X-Frame-Options: DENY}}
  upstreams:
  - {name: app, pool: web, port: 8080, policy: hash, key: "header:x-user", next_upstream: [error, http_503, non_idempotent], next_upstream_tries: 2}
  - {name: safe, servers: [{address: 192.0.2.13}], tls: {ca: cert.pem, verify: false}, host: upstream, http2: true, max_conns: 7}
  servers:
  - listen: [":80", {address: "192.0.2.100:443", tls: {certificate: cert.pem, key: cert.key, http2: false}, proxy_protocol: true}]
    names: [Example.com., "*.example.com", "[2001:DB8:0::1]", "2001:db8::2"]
    default: true
    client_max_body_size: 0
    deny: [198.51.100.0/24]
    locations:
    - {path: /a/, upstream: app, strip_prefix: true, no_regex: true, response_headers: {remove: [server]}}
    - {regex: '\.php$', ignore_case: true, upstream: safe, gzip: false, allow: [198.51.100.7], rewrite: {regex: ^/x, to: /y}}
    - {exact: /r, redirect: {to: "https://$host/", status: 301}, log: false}
    - {path: /m, redirect: {upstream: app}}
    - path: /s
      return: {status: 503}
      error_pages: [{status: 500-599, as: 200, file: sorry.html}]
      rate_limit: {rate: 5, key: cookie:id}
      client_body_buffer_size: 1m
      request_buffering: false
`).HTTP
	cert, err := filepath.Abs("cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSuffix(cert, ".pem") + ".key"
	frame := lb.HeaderChanges{Set: []lb.Header{{Name: "X-Frame-Options", Value: "DENY"}}}
	gzip := &lb.Gzip{Level: 5, MinLength: 1024, Types: gzipTypes}
	deny := []lb.Rule{{Prefix: netip.MustParsePrefix("198.51.100.0/24")}}
	const buffer = 64 << 10
	want := lb.HTTP{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
		AccessLog:      lb.AccessLog{Path: "/var/log/a.log", Format: lb.LogJSON}, RequestID: "X-Request-Id", MaxConnections: 500,
		Client: lb.ClientLimits{
			HeaderTimeout: 30 * time.Second, BodyTimeout: 60 * time.Second, MinBodyRate: 100, SendTimeout: 60 * time.Second,
			KeepaliveTimeout: 5 * time.Second, MaxHeader: 16 << 10,
		},
		Upstreams: []lb.Upstream{
			{
				Name: "app", Port: 8080, Policy: lb.Hash, Key: lb.RequestKey{Kind: lb.KeyHeader, Name: "X-User"}, Host: lb.HostClient, Keepalive: 64,
				Pool: lb.Pool{Name: "web", Servers: []lb.Server{
					{Address: addr("192.0.2.11"), Weight: 2}, {Address: addr("192.0.2.12"), Port: 81, Weight: 1, Backup: true},
				}},
				ConnectTimeout: 5 * time.Second, SendTimeout: time.Minute, ReadTimeout: time.Minute, MaxFails: 1, FailTimeout: 10 * time.Second,
				Next: lb.NextUpstream{Error: true, Status: []int{503}, NonIdempotent: true, Tries: 2},
			},
			{
				Name: "safe", Port: 443, Policy: lb.RoundRobin, Host: lb.HostUpstream, Keepalive: 64, HTTP2: true, MaxConns: 7,
				Pool:           lb.Pool{Servers: []lb.Server{{Address: addr("192.0.2.13"), Weight: 1}}},
				TLS:            &lb.UpstreamTLS{CA: []byte(testPair()[0])},
				ConnectTimeout: 5 * time.Second, SendTimeout: time.Minute, ReadTimeout: time.Minute, MaxFails: 1, FailTimeout: 10 * time.Second,
				Next: lb.NextUpstream{Error: true, Timeout: true},
			},
		},
		Servers: []lb.HTTPServer{{
			Listen: []lb.HTTPListen{
				{Address: addrPort("0.0.0.0:80")}, {Address: addrPort("[::]:80")},
				{Address: addrPort("192.0.2.100:443"), TLS: &lb.ServerTLS{Certificate: cert, Key: key}, ProxyProtocol: true},
			},
			Names: []string{"example.com", "*.example.com", "[2001:db8::1]", "[2001:db8::2]"}, Default: true,
			Locations: []lb.Location{
				{Kind: lb.LocationPrefix, Path: "/a/", NoRegex: true, Upstream: "app", StripPrefix: true, Rules: deny, Gzip: gzip,
					ResponseHeaders: lb.HeaderChanges{Remove: []string{"Server"}}, RequestBuffering: true, RequestBuffer: buffer},
				{Kind: lb.LocationRegex, Regex: regexp.MustCompile(`(?i)\.php$`), Upstream: "safe", ResponseHeaders: frame, RequestBuffering: true, RequestBuffer: buffer,
					Rules: []lb.Rule{{Prefix: netip.MustParsePrefix("198.51.100.7/32"), Allow: true}}, AllowOnly: true,
					Rewrites: []lb.Rewrite{{Regex: regexp.MustCompile("^/x"), To: "/y"}}},
				{Kind: lb.LocationExact, Path: "/r", Redirect: &lb.Redirect{Status: 301, To: "https://$host/"}, NoLog: true, Rules: deny, Gzip: gzip,
					ResponseHeaders: frame, RequestBuffering: true, RequestBuffer: buffer},
				{Kind: lb.LocationPrefix, Path: "/m", Redirect: &lb.Redirect{Status: 302, Upstream: "app"}, Rules: deny, Gzip: gzip,
					ResponseHeaders: frame, RequestBuffering: true, RequestBuffer: buffer},
				{Kind: lb.LocationPrefix, Path: "/s", Return: &lb.Return{Status: 503, ContentType: "text/plain; charset=utf-8"}, Rules: deny, Gzip: gzip,
					ResponseHeaders: frame, RequestBuffer: 1 << 20,
					ErrorPages: []lb.ErrorPage{{Status: []lb.StatusRange{{First: 500, Last: 599}}, As: 200, Body: []byte("<p>sorry"), ContentType: "text/html; charset=utf-8"}},
					RateLimit:  &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyCookie, Name: "id"}, Rate: 5, Status: 429}},
			},
			Otherwise: lb.Location{ResponseHeaders: frame, Rules: deny, Gzip: gzip, RequestBuffering: true, RequestBuffer: buffer},
		}},
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("http (-want +got):\n%s", diff)
	}
}

// inLocation is a configuration with upstream u and one location; what stands in it begins
// on line 9, in column 7.
func inLocation(text string) string {
	return "http:\n  upstreams:\n  - name: u\n    servers: [{address: 192.0.2.1}]\n  servers:\n  - listen: \":80\"\n    locations:\n    -\n      " +
		strings.ReplaceAll(text, "\n", "\n      ") + "\n"
}

func inUpstream(text string) string {
	return "http:\n  servers:\n  - {listen: \":80\", locations: [{path: /, upstream: u}]}\n  upstreams:\n  - name: u\n    " + strings.ReplaceAll(text, "\n", "\n    ") + "\n"
}

func inServers(text string) string {
	return "http:\n  upstreams: [{name: u, servers: [{address: 192.0.2.1}]}]\n  servers:\n" + text
}

const toU = "locations: [{path: /, upstream: u}]"

var httpMistakes = []mistakeCase{
	{"no servers", "http: {}\n", []string{`1:7: missing key "servers": http needs it`}},
	{"nothing in servers", "http: {servers: []}\n", []string{`1:17: servers is empty: without one nothing is served`}},
	{"nginx's words", "http:\n  server: []\n  proxy_cache: x\n  servers: [{listen: \":80\", server_name: a, location: [], locations: [{path: /, proxy_pass: x}]}]\n  upstreams: [{name: u, ip_hash: true, servers: [{address: 192.0.2.1}]}]\n", []string{
		`2:3: unknown key "server" in http; virtual hosts are a list under "servers"`,
		`3:3: unknown key "proxy_cache" in http; sluice keeps no answers`,
		`4:29: unknown key "server_name" in a server of http; nginx's server_name is "names", a list`,
		`4:45: unknown key "location" in a server of http; locations are a list under "locations"`,
		`4:71: missing key "upstream": a location needs it, or "return", or "redirect"`,
		`4:81: unknown key "proxy_pass" in a location; nginx's proxy_pass is "upstream", with the name of one`,
		`5:25: unknown key "ip_hash" in an upstream; write policy: ip_hash`,
	}},
	{"a location for nothing", inLocation("upstream: u"), []string{`9:7: missing key "path": a location needs it, or "exact", or "regex"`}},
	{"a location for two", inLocation("path: /\nexact: /a\nupstream: u"), []string{`10:7: path and exact are both set: a location is for one of them`}},
	{"two actions", inLocation("path: /\nupstream: u\nreturn: {status: 200}"), []string{`11:7: upstream and return are both set: a location does one thing`}},
	{"paths", inLocation("path: a\nupstream: u"), []string{`9:13: path must start with /, not "a"`}},
	{"paths that nothing has", inLocation("exact: /a/../b\nupstream: u"), []string{`9:14: exact "/a/../b" can match nothing: paths are compared without // and . and ..`}},
	{"a bad expression", inLocation("regex: '('\nupstream: u"), []string{"9:14: regex is not a regular expression: missing closing ): `(`"}},
	{"an expression that RE2 lacks", inLocation("regex: '(?!a)'\nupstream: u"), []string{"9:14: regex is not a regular expression: invalid or unsupported Perl syntax: `(?!`"}},
	{"keys of other kinds", inLocation("exact: /a\nignore_case: true\nno_regex: true\nstrip_prefix: true\nupstream: u"), []string{
		`10:7: ignore_case is for a location with regex, this one has exact`,
		`11:7: no_regex is for a location with path, this one has exact`,
		`12:7: strip_prefix is for a location with path; with exact write rewrite`,
	}},
	{"an upstream that is not there", inLocation("path: /\nupstream: w"), []string{`10:17: there is no upstream "w"; did you mean "u"?`}},
	{"redirects", inLocation("path: /\nredirect: {status: 304, to: a, upstream: u}"), []string{
		`10:26: status of a redirect must be one of 301, 302, 303, 307, 308, not 304`, `10:38: to and upstream are both set: a redirect leads to one of them`,
	}},
	{"a redirect nowhere", inLocation("path: /\nredirect: {}"), []string{`10:17: missing key "to": redirect needs it, or "upstream"`}},
	{"return instead of redirect", inLocation("path: /\nreturn: {status: 302}"), []string{`10:24: status 302 sends the client elsewhere: write redirect: {to: URL, status: 302}`}},
	{"statuses", inLocation("path: /\nreturn: {status: 299}"), []string{`10:24: status: HTTP has no status 299`}},
	{"variables", inLocation("path: /\nredirect: {to: \"https://$hots$remote_addr\"}"), []string{`10:22: to: there is no variable $hots; did you mean $host? ($$ is a dollar sign)`}},
	{"variables of nginx", inLocation("path: /\nreturn: {status: 200, body: \"$remote_addr\"}"), []string{
		`10:35: body: there is no variable $remote_addr; nginx's $remote_addr is $client_address ($$ is a dollar sign)`}},
	{"rewrites", inLocation("path: /\nupstream: u\nrewrite: [{regex: '^/(a)', to: /$2}, {regex: a, to: /$ab}, {regex: a, to: /$}, {regex: a}]"), []string{
		`11:38: to: regex has no group 2`, `11:59: to: regex has no group "ab" (write ${1} where a letter follows)`, `11:81: to: a dollar sign must be written $$`,
		`11:86: missing key "to": rewrite needs it`,
	}},
	{"headers", inLocation("path: /\nupstream: u\nrequest_headers: {set: {Host: a, X_A: b, \"a b\": c}, remove: [connection]}"), []string{
		`11:31: request_headers: header Host is set by the proxy itself; write host: in the upstream`,
		`11:40: request_headers: header "X_A" has an underscore: such headers are dropped, since servers may take them for others; write X-A`,
		`11:48: request_headers: "a b" is no name of a header`,
		`11:68: request_headers: header Connection is set by the proxy itself`,
	}},
	{"sizes", inLocation("path: /\nupstream: u\nclient_max_body_size: 1mb\nclient_body_buffer_size: 1g"), []string{
		`11:29: client_max_body_size must be a size in bytes such as 512, 64k or 1m, not "1mb"`, `12:32: client_body_buffer_size must be from 1k to 16m, not 1g`,
	}},
	{"limits", inLocation("path: /\nupstream: u\nrate_limit: {key: ip, burst: -1}"), []string{
		`11:19: missing key "rate": rate_limit needs it`,
		`11:25: key must be client, uri, path, host, header:NAME, cookie:NAME or query:NAME, not "ip"`,
	}},
	{"error pages", inLocation("path: /\nupstream: u\nerror_pages: [{status: 200, body: a}, {status: 502, file: none.html}, {status: 502}, {status: 502, file: sorry.html, body: b}]"), []string{
		`11:30: status: an error page is for codes from 300 on`, `11:65: file: cannot read none.html: file does not exist`,
		`11:77: missing key "file": an error page needs it, or "body"`, `11:124: file and body are both set: an error page is one of them`,
	}},
	{"gzip", inLocation("path: /\nupstream: u\ngzip: {level: 10, types: [html]}"), []string{
		`11:21: level must be a whole number from 1 to 9, not 10`, `11:33: type must be a media type such as text/html or text/*, not "html"`}},
	{"a location twice", inServers("  - {listen: \":80\", locations: [{path: /, upstream: u}, {path: /, upstream: u}]}\n"), []string{
		`4:64: location "path: /" is there twice: the first one is on line 4`}},
	{"listens", inServers("  - {listen: [80, \"192.0.2.1\", \"192.0.2.1:0\", \"a:80\", \":x\"], " + toU + "}\n"), []string{
		`4:15: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not "80": write ":80" for all addresses`,
		`4:19: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not "192.0.2.1"`,
		`4:32: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not "192.0.2.1:0"`,
		`4:47: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not "a:80"`,
		`4:55: listen must be an address with a port, such as "192.0.2.100:80" or "[2001:db8::100]:80", or ":80" for all addresses, not ":x"`,
	}},
	{"names", inServers("  - {listen: \":80\", names: [.a.example, _, \"a*.example\", a, A], " + toU + "}\n"), []string{
		`4:29: name ".a.example": write both, "a.example" and "*.a.example"`, `4:41: name "_": for all names leave names out, and set default: true`,
		`4:44: name "a*.example" must be the name of a host, or *. and one, or an address, without a port`, `4:61: name "a" is there twice`,
	}},
	{"addresses for names", inServers("  - {listen: \":80\", names: [\"[2001:db8:0::1]\", \"2001:DB8::1\", \"[::1\", \"[::1]:80\", \"a:80\", 192.0.2.1], " + toU + "}\n"), []string{
		`4:48: name "[2001:db8::1]" is there twice`,
		`4:63: name "[::1" must be the name of a host, or *. and one, or an address, without a port`,
		`4:71: name "[::1]:80" must be the name of a host, or *. and one, or an address, without a port`,
		`4:83: name "a:80" must be the name of a host, or *. and one, or an address, without a port`,
	}},
	{"servers of one listen", inServers("  - {listen: [\":80\", {address: \"192.0.2.1:443\", tls: {certificate: cert.pem, key: cert.key}}], names: [a], default: true, " + toU + "}\n" +
		"  - {listen: [\":80\", \"192.0.2.1:443\"], names: [a], default: true, " + toU + "}\n"), []string{
		`5:15: listen 0.0.0.0:80 has two servers with default: true: the first one is on line 4`,
		`5:15: name "a" is that of two servers of listen 0.0.0.0:80: the first one is on line 4`,
		`5:15: listen [::]:80 has two servers with default: true: the first one is on line 4`,
		`5:15: name "a" is that of two servers of listen [::]:80: the first one is on line 4`,
		`5:22: listen 192.0.2.1:443 has tls in one server and none in another: the first one is on line 4`,
		`5:22: listen 192.0.2.1:443 has two servers with default: true: the first one is on line 4`,
		`5:22: name "a" is that of two servers of listen 192.0.2.1:443: the first one is on line 4`,
	}},
	{"certificates", inServers("  - {listen: {address: \"192.0.2.1:443\", tls: {certificate: none.pem, key: cert.pem}}, " + toU + "}\n" +
		"  - {listen: {address: \"192.0.2.1:444\", tls: {certificate: cert.pem, key: sync.key}}, " + toU + "}\n"), []string{
		`4:60: certificate: cannot read none.pem: file does not exist`,
		`5:60: certificate and key do not fit together: failed to find any PEM data in key input`,
	}},
	{"nobody is trusted", inServers("  - {listen: {address: \"192.0.2.1:80\", proxy_protocol: true}, " + toU + "}\n"), []string{
		`4:24: listen 192.0.2.1:80 has proxy_protocol, and nobody is trusted: name the proxies in trusted_proxies`}},
	{"an upstream without servers", inUpstream("policy: round_robin"), []string{`5:5: missing key "pool": an upstream needs it, or "servers"`}},
	{"a pool that is not there", inUpstream("pool: web"), []string{`6:11: there is no pool "web"`}},
	{"hash without a key", inUpstream("policy: hash\nservers: [{address: 192.0.2.1}]"), []string{`5:5: missing key "key": policy hash needs it, such as key: uri`}},
	{"a key without hash", inUpstream("key: uri\nservers: [{address: 192.0.2.1}]"), []string{`6:5: key is for policy: hash, this one's policy is round_robin`}},
	{"policies", inUpstream("policy: roundrobin\nservers: [{address: 192.0.2.1}]"), []string{
		`6:13: policy must be one of round_robin, least_conn, ip_hash, hash, random_two, not "roundrobin"; did you mean "round_robin"?`}},
	{"next upstreams", inUpstream("next_upstream: [error, none, http_501]\nservers: [{address: 192.0.2.1}]"), []string{
		`6:28: next_upstream: none stands alone`,
		`6:34: next_upstream must be one of error, timeout, non_idempotent, http_403, http_404, http_429, http_500, http_502, http_503, http_504, none, not "http_501"; did you mean "http_500"?`,
	}},
	{"what nginx says of each server", inUpstream("servers: [{address: 192.0.2.1, slow_start: 30s, down: true}]"), []string{
		`6:36: unknown key "slow_start" in a server; it stands beside the servers, and is for all of them`,
		`6:53: unknown key "down" in a server; write weight: 0`,
	}},
	{"one server twice", inUpstream("servers: [{address: 192.0.2.1}, {address: \"192.0.2.1:80\"}]"), []string{
		`5:5: server 192.0.2.1:80 is there twice on port 80: the first one is on line 6`}},
	{"an authority that is none", inUpstream("tls: {ca: sorry.html}\nservers: [{address: 192.0.2.1}]"), []string{`6:15: ca: sorry.html holds no certificate in PEM`}},
	{"shared and not shared", inUpstream("http2: true\nproxy_protocol: 2\nservers: [{address: 192.0.2.1}]"), []string{
		`6:5: http2 shares a connection between clients, and proxy_protocol tells of one: leave one of them out`}},
	{"too few connections", "http:\n  max_connections: 0\n  worker_connections: 5\n  servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]\n", []string{
		`2:20: max_connections must be a whole number from 1 to 16777216, not 0`,
		`3:3: unknown key "worker_connections" in http; it is called "max_connections" here, and counts those of clients alone`,
	}},
	{"times and logs", "http:\n  client_header_timeout: 0s\n  access_log: {path: a.log, format: main}\n  servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]\n", []string{
		`2:26: client_header_timeout must be from 10ms to 24h, not 0s`, `3:22: path must be an absolute path, not "a.log"`,
		`3:37: format must be one of combined, json, not "main"`,
	}},
}

var proxiedMistakes = []mistakeCase{
	{"an address of layer 4", "datapath: {interfaces: [e]}\nservices:\n- {name: s, address: \"192.0.2.100:80-90\", backends: [{address: \"192.0.2.1:80\"}]}\n" +
		"http: {servers: [{listen: \"192.0.2.100:85\", locations: [{path: /, return: {status: 200}}]}]}\n", []string{
		`4:27: listen 192.0.2.100:85 is an address of service "s", whose packets never come here: the first one is on line 3; write forward: proxy there, or leave one of them out`,
	}},
	{"what says nothing", "services:\n- {name: s, address: [\"192.0.2.100:80\", \"192.0.2.100:81-82\"], forward: proxy, pool: web, protocol: udp}\n" +
		"vrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.100], track: [{service: s, weight: -1}]}]\n", []string{
		`2:23: nothing in http listens on 192.0.2.100:80: write a server with listen: "192.0.2.100:80"`,
		`2:41: forward: proxy is for single ports, not 192.0.2.100:81-82`,
		`2:79: pool goes with no forward: proxy: what is done with requests is said in http`,
		`2:100: forward: proxy is for protocol: tcp`,
		`3:98: service "s" has forward: proxy, and no backends that could fail: track the upstream that serves it, {upstream: NAME, weight: -20}`,
	}},
	{"a service of the same address", "datapath: {interfaces: [e]}\nservices:\n- {name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.1}]}\n" +
		"- {name: t, address: \"192.0.2.100:80\", forward: proxy}\nhttp: {servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]}\n", []string{
		`4:22: address 192.0.2.100:80 belongs to service "s" already: the first one is on line 3`,
	}},
	{"spread, and no other node", spreadBase("", spreadVRRP), []string{
		`3:64: spread: true needs other nodes, and nodes lists none: list this node and the others there, or leave spread out`}},
	{"spread, and another mode", "datapath: {interfaces: [e]}\nservices:\n- {name: s, address: \"192.0.2.100:80\", forward: dsr, spread: true, backends: [{address: 192.0.2.11}]}\n", []string{
		`3:54: spread is for forward: proxy, whose packets the proxies of all nodes may serve: write that, or leave spread out`}},
	{"spread, and a VIP that stays", spreadBase(spreadNodes, ""), []string{
		`4:22: VIP 192.0.2.100 is in no vrrp instance: spread: true is for a VIP that one node has at a time`}},
	{"spread, and no program", strings.Replace(spreadBase(spreadNodes, spreadVRRP), "datapath: {interfaces: [e]}\n", "", 1), []string{
		`2:1: missing "interfaces" in datapath: services need to know where their traffic comes in, such as datapath: {interfaces: [eth0]}`}},
	{"spread, and health elsewhere", strings.Replace(spreadBase(spreadNodes, spreadVRRP), "spread: true", "spread: true, quorum: 2, health: {type: tcp, via: direct}", 1), []string{
		`4:70: quorum goes with no forward: proxy: what is done with requests is said in http`,
		`4:89: health of a service with spread: true is that of the proxies of other nodes, which are probed through the VIP: it is of type tcp, http or https, without via: direct`}},
	{"not spread, and windows", strings.Replace(spreadBase(spreadNodes, spreadVRRP), "spread: true", "spread: false, track_window: 1m", 1), []string{
		`4:71: track_window goes with no forward: proxy without spread: true: what is done with requests is said in http`}},
	{"spread, and another service's address", strings.Replace(spreadBase(spreadNodes, spreadVRRP), "services:\n", "services:\n- {name: t, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.11}]}\n", 1), []string{
		`5:22: address 192.0.2.100:80 belongs to service "t" already: the first one is on line 4`}},
	{"spread, and nat from the VIP to a node", strings.Replace(spreadBase(spreadNodes, spreadVRRP), "services:\n", "services:\n- {name: t, address: \"192.0.2.100:81\", backends: [{address: 192.0.2.2}]}\n", 1), []string{
		`4:10: server 192.0.2.2 has 192.0.2.100 on its loopback for the proxy, spread service "s", so it cannot answer what comes from there: set source_addresses to another VIP`}},
	{"a default", "defaults: {service: {forward: proxy}}\n", []string{"1:31: forward: proxy is no default: each such service says it itself"}},
}

const (
	spreadNodes = "nodes: [{name: lb1, address: 192.0.2.1}, {name: lb2, address: 192.0.2.2}]\n"
	spreadVRRP  = "vrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.100]}]\n"
)

// spreadBase is a service that is spread over nodes, with what belongs to it.
func spreadBase(nodes, vrrp string) string {
	return nodes + "datapath: {interfaces: [e]}\nservices:\n- {name: s, address: \"192.0.2.100:80\", forward: proxy, spread: true}\n" + vrrp +
		"http: {servers: [{listen: \":80\", locations: [{path: /, return: {status: 200}}]}]}\n"
}

// A service that is spread has the nodes as backends.
func TestSpreadService(t *testing.T) {
	c := mustLoad(t, strings.Replace(spreadBase(spreadNodes, spreadVRRP), "spread: true", "spread: true, scheduler: source_hash, track_window: 1m", 1)+"node: lb2\n")
	probe := spreadProbe
	want := []lb.Service{{
		Name: "s", Addresses: []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.100:80"))}, Protocol: lb.TCP, Forward: lb.Proxy,
		Scheduler: lb.SourceHash, TableSize: lb.DefaultTableSize, Quorum: 1, TrackWindow: time.Minute, DrainTimeout: time.Hour,
		Pool: lb.Pool{Name: "s", Probe: &probe, Servers: []lb.Server{
			{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1, Node: "lb1"}, {Address: netip.MustParseAddr("192.0.2.2"), Weight: 1, Node: "lb2", Here: true},
		}},
	}}
	if diff := cmp.Diff(want, c.Services, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestProxiedMistakes(t *testing.T) {
	for _, tt := range proxiedMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// A service of forward: proxy is nothing to the data plane.
func TestProxiedService(t *testing.T) {
	for _, listen := range []string{`"192.0.2.100:80"`, `":80"`} {
		c := mustLoad(t, "services: [{name: s, address: \"192.0.2.100:80\", forward: proxy}]\n"+
			"http: {servers: [{listen: "+listen+", locations: [{path: /, return: {status: 200}}]}]}\n")
		if len(c.Services) != 0 || len(c.HTTP.Servers) != 1 {
			t.Errorf("%d services, %d servers", len(c.Services), len(c.HTTP.Servers))
		}
	}
}

func TestHTTPMistakes(t *testing.T) {
	for _, tt := range httpMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

func TestCompareHTTP(t *testing.T) {
	const base = "pools: [{name: web, servers: [{address: 192.0.2.1}]}]\n" +
		"http:\n  request_id: X-Id\n  upstreams: [{name: u, pool: web}, {name: v, servers: [{address: 192.0.2.2}]}]\n  servers:\n" +
		"  - {listen: \":80\", names: [a.example], locations: [{path: /, upstream: u}]}\n  - {listen: \":81\", locations: [{regex: a, upstream: v}]}\n"
	for _, tt := range []struct {
		name, from, to string
		want           []string
	}{
		{"nothing", "", "", nil},
		{"a server of a pool", "{address: 192.0.2.1}", "{address: 192.0.2.3}", []string{"upstream u: 192.0.2.3 added, 192.0.2.1 removed"}},
		{"an upstream", "{name: v, ", "{name: v, policy: least_conn, ", []string{"upstream v: policy"}},
		{"a location", "{path: /, upstream: u}", "{path: /, upstream: v}", []string{"http server a.example: locations"}},
		{"a setting", "names: [a.example], ", "names: [a.example], log: false, ", []string{"http server a.example: locations"}},
		{"a setting that no location takes over", "names: [a.example], locations: [{path: /, ", "names: [a.example], log: false, locations: [{path: /, log: true, ", []string{"http server a.example: settings where no location is"}},
		{"an expression", "regex: a", "regex: b", []string{"http server 0.0.0.0:81: locations"}},
		{"a name", "a.example", "b.example", []string{"http server b.example: added", "http server a.example: removed"}},
		{"limits", "request_id: X-Id", "keepalive_timeout: 1s", []string{"http: client, request_id"}},
		{"how many connections", "request_id: X-Id", "request_id: X-Id\n  max_connections: 7", []string{"http: max_connections"}},
		{"all of it", base[strings.Index(base, "http:"):], "", []string{
			"upstream u: removed", "upstream v: removed", "http server a.example: removed", "http server 0.0.0.0:81: removed", "http: client, request_id"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Compare(mustLoad(t, base), mustLoad(t, strings.Replace(base, tt.from, tt.to, 1)))
			if diff := cmp.Diff(Difference{Changes: tt.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
