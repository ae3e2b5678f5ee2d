package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestLoadDNS(t *testing.T) {
	got := mustLoad(t, `
pools:
- {name: web, health: {type: tcp}, servers: [{address: 192.0.2.11, weight: 2}, {address: "2001:db8::11", backup: true}]}
- {name: other, servers: [{address: 192.0.2.12}]}
http: {upstreams: [{name: app, pool: web, port: 8080}], servers: [{listen: ":80", locations: [{path: /, upstream: app}]}]}
dns:
  listen: ["192.0.2.100:53", ":5353"]
  zones:
  - name: Example.COM.
    name_servers: [{name: ns1.example.com, addresses: [192.0.2.100, "2001:db8::100"]}, ns.example.net.]
    mailbox: dns.admin@example.com
    serial: 4294967295
    ttl: 2h
    negative_ttl: 1s
  records:
  - {name: www.example.com, ttl: 5s, policy: weighted, pool: web}
  - {name: "*.Wild.example.com", pool: web, answers: 3}
  - {name: a.b.example.net, policy: source_hash, pool: other, answers: 0}
  - {name: example.net, pool: other, ttl: 0s, policy: all}
  - {name: "*.example.org", pool: other}
  rate_limit: {rate: 5, burst: 0, slip: 0, exempt: [192.0.2.0/24, "2001:db8::1"]}
  tcp: {max_connections: 7, idle_timeout: 1m}
`).DNS
	web := lb.Pool{
		Name: "web", Probe: &lb.Probe{Type: lb.ProbeTCP, ViaVIP: true, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3},
		Servers: []lb.Server{{Address: addr("192.0.2.11"), Weight: 2}, {Address: addr("2001:db8::11"), Weight: 1, Backup: true}},
	}
	other := lb.Pool{Name: "other", Servers: []lb.Server{{Address: addr("192.0.2.12"), Weight: 1}}}
	derived := func(name string) lb.DNSZone {
		z := defaultZone(name)
		z.NameServers = []lb.DNSNameServer{{Name: "ns." + name, Addresses: []netip.Addr{addr("192.0.2.100")}}}
		return z
	}
	want := lb.DNS{
		Listen: []netip.AddrPort{addrPort("192.0.2.100:53"), addrPort("0.0.0.0:5353"), addrPort("[::]:5353")},
		Zones: []lb.DNSZone{
			{
				Name: "example.com.", NameServers: []lb.DNSNameServer{
					{Name: "ns1.example.com.", Addresses: []netip.Addr{addr("192.0.2.100"), addr("2001:db8::100")}}, {Name: "ns.example.net."},
				},
				Mailbox: `dns\.admin.example.com.`, Serial: 1<<32 - 1, Refresh: time.Hour, Retry: 10 * time.Minute, Expire: 14 * 24 * time.Hour,
				TTL: 2 * time.Hour, NegativeTTL: time.Second,
			},
			derived("example.net."), derived("example.org."), // and not a.b.example.net, which is in the first of them
		},
		Records: []lb.DNSRecord{
			{Name: "www.example.com.", TTL: 5 * time.Second, Policy: lb.DNSWeighted, Answers: 1, Pool: web, Port: 8080},
			{Name: "*.wild.example.com.", TTL: 30 * time.Second, Policy: lb.DNSRoundRobin, Answers: 3, Pool: web, Port: 8080},
			{Name: "a.b.example.net.", TTL: 30 * time.Second, Policy: lb.DNSSourceHash, Pool: other},
			{Name: "example.net.", Policy: lb.DNSAll, Pool: other},
			{Name: "*.example.org.", TTL: 30 * time.Second, Policy: lb.DNSRoundRobin, Pool: other},
		},
		RateLimit: &lb.DNSRateLimit{Rate: 5, Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")}},
		TCP:       lb.DNSTCP{MaxConnections: 7, IdleTimeout: time.Minute},
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("dns (-want +got):\n%s", diff)
	}
}

// The port at which servers are probed, where it need not be said.
func TestPortOfRecords(t *testing.T) {
	const service = "datapath: {interfaces: [e]}\nservices: [{name: s, address: \"192.0.2.100:80\", pool: p}]\n"
	for _, tt := range []struct {
		name, pool, record, rest string
		want                     uint16
	}{
		{"that of a service", "health: {type: tcp}, servers: [{address: 192.0.2.11}]", "", service, 80},
		{"also without health", "servers: [{address: 192.0.2.11}]", "", service, 80},
		{"that of the first service", "health: {type: tcp}, servers: [{address: 192.0.2.11}]}, {name: q, servers: [{address: 192.0.2.11}]", "",
			"datapath: {interfaces: [e]}\nservices: [{name: q, address: \"192.0.2.100:79\", pool: q}, {name: s, address: \"192.0.2.100:80\", pool: p}, {name: t, address: \"192.0.2.100:81\", pool: p}]\n", 80},
		{"that of an upstream", "health: {type: tcp}, servers: [{address: 192.0.2.11}]", "",
			"http: {upstreams: [{name: u, pool: p, port: 84}], servers: [{listen: \":80\", locations: [{path: /, upstream: u}]}]}\n", 84},
		{"its own", "health: {type: tcp}, servers: [{address: 192.0.2.11}]", ", port: 81", service, 81},
		{"of a probe with a port", "health: {type: tcp, port: 82}, servers: [{address: 192.0.2.11}]", "", "", 0},
		{"of servers with ports", "health: {type: tcp}, servers: [{address: \"192.0.2.11:83\"}]", "", "", 0},
		{"of a check", "health: {check: c}, servers: [{address: 192.0.2.11}]", "", "checks: [{name: c, type: exec, command: [/bin/true]}]\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := mustLoad(t, tt.rest+"pools: [{name: p, "+tt.pool+"}]\ndns: {listen: \"192.0.2.101:53\", records: [{name: a.example, pool: p"+tt.record+"}]}\n")
			if got := c.DNS.Records[0].Port; got != tt.want {
				t.Errorf("port %d, want %d", got, tt.want)
			}
		})
	}
}

// inDNS is a configuration with a pool p, and dns with these keys, which begin on line 3, in
// column 3.
func inDNS(text string) string {
	return "pools: [{name: p, servers: [{address: 192.0.2.11}]}]\ndns:\n  " + strings.ReplaceAll(text, "\n", "\n  ") + "\n"
}

const toP = "\nrecords: [{name: a.example, pool: p}]"

var dnsMistakes = []mistakeCase{
	{"nothing", "dns: {}\n", []string{`1:6: missing key "listen": dns needs it`, `1:6: missing key "records": without it there is nothing to answer`}},
	{"bind's words", inDNS("listen: \":53\"\nforwarders: [192.0.2.1]\nzones: [{name: a, type: master, file: x, name_servers: [ns.b]}]\nrecords: [{name: a, type: A, address: 192.0.2.1, pool: p}]"), []string{
		`4:3: unknown key "forwarders" in dns; there is no recursion: names outside the zones are refused`,
		`5:21: unknown key "type" in a zone`,
		`5:35: unknown key "file" in a zone; there are no zone files: records are a list under "records" of dns`,
		`6:23: unknown key "type" in a record; A and AAAA follow from the addresses of the pool`,
		`6:32: unknown key "address" in a record; addresses are those of a pool: write pool: NAME`,
	}},
	{"no records", inDNS("listen: \"192.0.2.100:53\"\nrecords: []"), []string{`4:12: records is empty: leave it out, or name one`}},
	{"listens", inDNS("listen: [53, \"192.0.2.100:53\", \":53\", \"192.0.2.100:53\", \"0.0.0.0:53\"]" + toP), []string{
		`3:12: listen must be an address with a port, such as "192.0.2.100:53" or "[2001:db8::100]:53", or ":53" for all addresses, not "53": write ":53" for all addresses`,
		`3:41: listen 192.0.2.100:53 is there twice: the first one is on line 3`,
		`3:59: listen 0.0.0.0:53 is there twice: the first one is on line 3`,
	}},
	{"names", inDNS("listen: \"192.0.2.100:53\"\nrecords:\n- {name: a..example, pool: p}\n- {name: a.*.example, pool: p}\n- {name: \"*\", pool: p}\n- {name: \"a b\", pool: p}\n- {name: -a.example, pool: p}\n- {name: bücher.example, pool: p}\n- {name: " +
		strings.Repeat("a", 64) + ".example, pool: p}\n- {name: " + strings.Repeat("a.", 120) + "example, pool: p}\n- {name: b.example, pool: p}\n- {name: B.example., pool: p}\n- {pool: p}"), []string{
		`5:12: name "a..example" is no name of a host or a zone: a label is empty`,
		`6:12: name "a.*.example" is no name of a host or a zone: an asterisk stands for the first label of a record only`,
		`7:12: name "*" is no name of a host or a zone: an asterisk stands for the first label of a record only`,
		`8:12: name "a b" is no name of a host or a zone: labels consist of letters, digits, '-' and '_'`,
		`9:12: name "-a.example" is no name of a host or a zone: a label begins and ends with a letter or a digit`,
		`10:12: name "bücher.example" must be written as DNS has it, in ASCII (xn--...)`,
		`11:12: name "` + strings.Repeat("a", 64) + `.example" is no name of a host or a zone: a label is longer than 63 bytes`,
		`12:12: name "` + strings.Repeat("a.", 120) + `example" is longer than 240 bytes`,
		`14:12: duplicate record "B.example.": the first one is on line 13`,
		`15:5: missing key "name": a record needs it`,
	}},
	{"settings of records", inDNS("listen: \"192.0.2.100:53\"\nrecords:\n- {name: a.example, ttl: 1500ms, policy: rr, pool: p}\n- {name: b.example, ttl: 200h, answers: -1, port: 0, pool: q}\n- {name: c.example}"), []string{
		`5:28: ttl must be whole seconds, not 1500ms`,
		`5:44: policy must be one of round_robin, weighted, source_hash, all, not "rr"`,
		`6:28: ttl must be from 0s to 168h, not 200h`,
		`6:43: answers must be a whole number from 0 to 65535, not -1`,
		`6:62: there is no pool "q"; did you mean "p"?`,
		`7:5: missing key "pool": a record needs it`,
	}},
	{"ports that nobody says", "pools: [{name: p, health: {type: tcp}, servers: [{address: 192.0.2.11}]}]\n" +
		"dns: {listen: \"192.0.2.100:53\", records: [{name: a.example, pool: p}]}\n", []string{
		`2:67: pool "p" does not say at which port its servers are probed: write port: here, in its health, or with its servers`,
	}},
	{"ports that differ", "datapath: {interfaces: [e]}\npools: [{name: p, health: {type: tcp}, servers: [{address: 192.0.2.11}]}]\n" +
		"services: [{name: s, address: \"192.0.2.101:80\", pool: p}, {name: t, address: \"192.0.2.101:443\", pool: p}]\n" +
		"dns:\n  listen: \"192.0.2.100:53\"\n  records:\n  - {name: a.example, pool: p}\n  - {name: b.example, pool: p, port: 80}\n  - {name: c.example, pool: p, port: 443}\n", []string{
		`9:5: pool "p" has port 443 here, and port 80 for record a.example.: a pool has one port in dns`,
	}},
	{"a port that one record says, and another one does not", inDNS("listen: \"192.0.2.100:53\"\nrecords:\n- {name: a.example, pool: p, port: 80}\n- {name: b.example, pool: p}"), []string{
		`6:5: pool "p" has no port here, and port 80 for record a.example.: a pool has one port in dns`,
	}},
	{"the name server of a zone that is made up", inDNS("listen: \"192.0.2.100:53\"\nrecords:\n- {name: example.com, pool: p}\n- {name: ns.example.com, pool: p}"), []string{
		`5:12: no zone holds example.com, and the name server of one that is made up for it would be ns.example.com., which is a record: write zones: [{name: example.com., name_servers: [...]}]`,
	}},
	{"zones", inDNS("listen: \"192.0.2.100:53\"\nzones:\n- {name: example}\n- {name: example.com, name_servers: []}\n- {name: example.com, name_servers: [ns.example.net]}\n" +
		"- {name: example.org, name_servers: [a.b, A.B.], mailbox: \"x y@example.org\", serial: 0, ttl: 1ms, refresh: 0s, expire: 1}" + toP), []string{
		`5:5: missing key "name_servers": a zone needs it`,
		`6:39: name_servers is empty: a zone has one at least`,
		`7:12: duplicate zone "example.com": the first one is on line 6`,
		`8:45: name server "A.B." is there twice`,
		`8:61: mailbox "x y@example.org" must be an address such as hostmaster@example.com`,
		`8:88: serial must be a whole number from 1 to 4294967295, not 0`,
		`8:96: ttl must be whole seconds, not 1ms`,
		`8:110: refresh must be from 1s to 168h, not 0s`,
		`8:122: expire has no unit: write 1s`,
	}},
	{"name servers", inDNS("listen: \":53\"\nzones:\n- {name: example.com, name_servers: [ns1.example.com, {name: ns.example.net, addresses: [192.0.2.1]}, {name: www.example.com, addresses: [192.0.2.1]}, {name: ns3.example.com, addresses: [192.0.2.1]}]}\n" +
		"- {name: sub.example.com, name_servers: [{name: ns3.example.com, addresses: [192.0.2.2]}, www.example.com, {name: x.sub.example.com, addresses: [192.0.2.1, 192.0.2.1, 1]}]}\n" +
		"records: [{name: www.example.com, pool: p}]"), []string{
		`5:40: name server ns1.example.com. is in a zone of this configuration, and nothing says its addresses: write {name: ns1.example.com, addresses: [...]}`,
		`5:64: name server ns.example.net. is in no zone of this configuration, so nobody asks here for its addresses: leave them out`,
		`5:112: name server www.example.com. is a record, too: leave its addresses out, or name it otherwise`,
		`6:51: name server ns3.example.com. has other addresses in another zone`,
		`6:159: duplicate address 192.0.2.1`,
		`6:170: bad address "1": unable to parse IP`,
	}},
	{"no zone can be made up", inDNS("listen: \":53\"" + toP), []string{
		`4:20: no zone holds a.example, and none can be made up for it, since listen has no address for its name server: write zones: [{name: ..., name_servers: [...]}]`,
	}},
	{"limits", inDNS("listen: \"192.0.2.100:53\"\nrate_limit: {burst: 1}\ntcp: {max_connections: 0, idle_timeout: 1ms}" + toP), []string{
		`4:15: missing key "rate": rate_limit of dns needs it`,
		`5:26: max_connections must be a whole number from 1 to 65535, not 0`,
		`5:43: idle_timeout must be from 100ms to 1h, not 1ms`,
	}},
	{"addresses of others", "datapath: {interfaces: [e]}\npools: [{name: p, servers: [{address: \"192.0.2.11:53\"}]}]\nservices:\n- {name: s, address: \"192.0.2.100:53\", protocol: udp, pool: p}\n- {name: t, address: \"192.0.2.101:50-60\", pool: p}\n" +
		"http: {servers: [{listen: \"192.0.2.102:53\", locations: [{path: /, return: {status: 200}}]}]}\nvrrp: [{name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.103], accept: false}]\n" +
		"dns:\n  listen: [\"192.0.2.100:53\", \"192.0.2.101:53\", \"192.0.2.102:53\", \"192.0.2.103:53\", \":53\"]\n  records: [{name: a.example, pool: p, port: 80}]\n", []string{
		`9:12: listen 192.0.2.100:53 is an address of service "s" (udp), whose packets never come here: the first one is on line 4`,
		`9:30: listen 192.0.2.101:53 is an address of service "t" (tcp), whose packets never come here: the first one is on line 5`,
		`9:48: listen 192.0.2.102:53 is where http listens, too: the first one is on line 6`,
		`9:66: listen 192.0.2.103:53: instance "v" has accept: false, so that what comes to its VIPs and is no service's is dropped`,
	}},
}

func TestDNSMistakes(t *testing.T) {
	for _, tt := range dnsMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

func TestCompareDNS(t *testing.T) {
	const base = "pools: [{name: p, servers: [{address: 192.0.2.1}]}, {name: q, servers: [{address: 192.0.2.1}]}]\n" +
		"dns:\n  listen: \"192.0.2.100:53\"\n  zones: [{name: example, name_servers: [ns.test]}]\n  records:\n  - {name: a.example, pool: p}\n  - {name: b.example, pool: q}\n"
	for _, tt := range []struct {
		name, from, to string
		want           []string
	}{
		{"nothing", "", "", nil},
		{"a server of a pool", "p, servers: [{address: 192.0.2.1}]", "p, servers: [{address: 192.0.2.3}]", []string{"dns record a.example.: 192.0.2.3 added, 192.0.2.1 removed"}},
		{"a policy", "pool: p}", "pool: p, policy: weighted, ttl: 1s}", []string{"dns record a.example.: ttl, policy, answers"}},
		{"a pool", "pool: p}", "pool: q}", []string{"dns record a.example.: pool"}},
		{"health", "name: p, ", "name: p, health: {type: tcp, port: 1}, ", []string{"dns record a.example.: health"}},
		{"a zone", "ns.test]", "ns.test], negative_ttl: 1s, mailbox: a@b.test", []string{"dns zone example.: mailbox, negative_ttl"}},
		{"a record", "- {name: b.example, pool: q}", "- {name: c.example, pool: q}", []string{"dns record c.example.: added", "dns record b.example.: removed"}},
		{"the rest", "192.0.2.100:53\"", "192.0.2.101:53\"\n  rate_limit: {rate: 1}\n  tcp: {max_connections: 3}", []string{"dns: listen, rate_limit, tcp"}},
		{"all of it", base[strings.Index(base, "dns:"):], "", []string{
			"dns zone example.: removed", "dns record a.example.: removed", "dns record b.example.: removed", "dns: listen, tcp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Compare(mustLoad(t, base), mustLoad(t, strings.Replace(base, tt.from, tt.to, 1)))
			if diff := cmp.Diff(Difference{Changes: tt.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
