package config

import (
	_ "embed"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

//go:embed testdata/pair.yaml
var pair string

var compare = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
	cmp.Transformer("regexp", func(r *regexp.Regexp) string {
		if r == nil {
			return ""
		}
		return r.String()
	}),
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestLoadPair(t *testing.T) {
	web := lb.Pool{
		Name: "web",
		Servers: []lb.Server{
			{Address: addr("192.0.2.11"), Weight: 3},
			{Address: addr("192.0.2.12"), Port: 8080, Weight: 0},
			{Address: addr("192.0.2.13"), Weight: 1, Backup: true},
		},
		Probe: &lb.Probe{
			Type: lb.ProbeHTTP, ViaVIP: true, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 5, Fall: 3, Port: 8080,
			Pages: []lb.Page{{Host: "www.example.com", Path: "/healthz"}}, Status: []lb.StatusRange{{First: 200, Last: 200}, {First: 301, Last: 302}},
			Body: regexp.MustCompile("^ok"),
		},
	}
	want := &Config{
		File: "sluice.yaml", Files: []string{"sluice.yaml"},
		Node: "lb1",
		Nodes: []Node{
			{Name: "lb2", Address: addr("192.0.2.2"), Priority: 99, Interfaces: []string{"ens1"}},
			{Name: "lb1", Address: addr("192.0.2.1"), Priority: 150},
		},
		Datapath: Datapath{
			Interfaces: []string{"eth0", "eth1"}, Mode: ModeNative, MaxFlows: 5000, Ports: lb.PortRange{First: 1025, Last: 2024}, NATLog: "/var/log/nat.log",
			TunnelSource4: netip.MustParsePrefix("172.16.0.0/16"), TunnelSource6: netip.MustParsePrefix("100::/64"),
			ProbeAddresses4: netip.MustParsePrefix("198.18.0.0/16"), ProbeAddresses6: netip.MustParsePrefix("2001:2::/64"),
		},
		ShareIndex: 0, ShareCount: 2, PortShare: lb.PortRange{First: 1025, Last: 1524},
		Pools: []lb.Pool{web},
		Services: []lb.Service{
			{
				Name: "web", Addresses: []lb.Frontend{lb.FrontendOf(addrPort("192.0.2.100:80"))}, Protocol: lb.TCP, Forward: lb.NAT,
				SourceAddresses: []netip.Addr{addr("192.0.2.100")}, TableSize: 65537, Quorum: 1,
				TrackWindow: 5 * time.Minute, DrainTimeout: time.Hour, Pool: web,
			},
			{
				Name: "mail", Addresses: []lb.Frontend{lb.FrontendOf(addrPort("198.51.100.1:25")), lb.FrontendOf(addrPort("198.51.100.2:25"))},
				Protocol: lb.TCP, Forward: lb.NAT, SourceAddresses: []netip.Addr{addr("198.51.100.9")}, TableSize: 251, Quorum: 0,
				TrackWindow: 5 * time.Minute, DrainTimeout: time.Hour,
				Pool: lb.Pool{
					Name:    "mail",
					Servers: []lb.Server{{Address: addr("192.0.2.21"), Weight: 1}},
					Probe:   &lb.Probe{Type: lb.ProbeTCP, ViaVIP: true, Interval: 10 * time.Second, Timeout: 5 * time.Second, Rise: 2, Fall: 3},
				},
			},
			{
				Name: "files", Addresses: []lb.Frontend{lb.FrontendOf(addrPort("192.0.2.100:20")), lb.FrontendOf(addrPort("192.0.2.100:21"))},
				Protocol: lb.TCP, Forward: lb.DSR, TableSize: 65537, Quorum: 1,
				TrackWindow: 5 * time.Minute, DrainTimeout: time.Hour,
				Pool: lb.Pool{
					Name:    "files",
					Servers: []lb.Server{{Address: addr("192.0.2.31"), Weight: 1}, {Address: addr("192.0.2.32"), Weight: 1}},
				},
			},
		},
		VRRP: []Instance{
			{
				Name: "VI_1", Interface: "eth0", VRID: 51, Priority: 150, Version: 2, Interval: 2 * time.Second,
				Password: "0123", Accept: true, Checksum: "auto", Preempt: false, PreemptDelay: 5 * time.Second, StartTimeout: time.Minute,
				Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24"), netip.MustParsePrefix("198.51.100.1/32")},
			},
			{
				Name: "VI_2", Interface: "eth1", VRID: 51, Priority: 7, Version: 3, Interval: 20 * time.Millisecond,
				Preempt: true, StartTimeout: 10 * time.Second, Accept: true, Checksum: "auto",
				Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.2/25")},
			},
		},
		Sync:  Sync{Port: 3780},
		Admin: Admin{Socket: "/run/test.sock", Listen: netip.MustParseAddrPort("[2001:db8::1]:9780")},
	}
	if diff := cmp.Diff(want, mustLoad(t, pair), compare...); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestLoadDefaultsOfDefaults(t *testing.T) {
	got := mustLoad(t, "vrrp:\n- {name: v, interface: eth0, virtual_router_id: 1, addresses: [192.0.2.1]}\n")
	want := &Config{
		File: "sluice.yaml", Files: []string{"sluice.yaml"}, Node: "lb1", Nodes: []Node{},
		Datapath: Datapath{
			Mode: ModeAuto, MaxFlows: 1000000, Ports: lb.PortRange{First: 1024, Last: 65535},
			TunnelSource4: netip.MustParsePrefix("172.16.0.0/16"), TunnelSource6: netip.MustParsePrefix("100::/64"),
			ProbeAddresses4: netip.MustParsePrefix("198.18.0.0/16"), ProbeAddresses6: netip.MustParsePrefix("2001:2::/64"),
		},
		ShareCount: 2, PortShare: lb.PortRange{First: 1024, Last: 33279},
		VRRP: []Instance{{
			Name: "v", Interface: "eth0", VRID: 1, Priority: 100, Version: 3, Interval: time.Second, Preempt: true, Accept: true, Checksum: "auto",
			StartTimeout: 10 * time.Second, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")},
		}},
		Sync:  Sync{Port: 3780},
		Admin: Admin{Socket: "/run/sluice/sluice.sock", Listen: netip.MustParseAddrPort("127.0.0.1:9780")},
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// TestReference loads the reference configuration, and demands that it shows
// every key that the schemas know.
func TestReference(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	if err := os.WriteFile(path, []byte(Reference), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := key.Write(filepath.Join(filepath.Dir(path), "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"ca.pem": testPair()[0], "www.pem": testPair()[0], "www.key": testPair()[1], "sorry.html": "<p>sorry"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(path, Options{})
	if err != nil {
		t.Fatalf("load the reference configuration:\n%v", err)
	}
	checkInvariants(t, c)
	if len(c.Services) != 4 || len(c.VRRP) != 2 || len(c.Pools) != 6 || len(c.Nodes) != 2 {
		t.Errorf("services %d, instances %d, pools %d, nodes %d", len(c.Services), len(c.VRRP), len(c.Pools), len(c.Nodes))
	}
	for _, s := range supported {
		for _, k := range s.keys {
			if !regexp.MustCompile(`(^|[\s{,])` + k + `:`).MatchString(Reference) {
				t.Errorf("key %q of %s is missing in the reference", k, s.what)
			}
		}
	}
}

// supported is every schema.
var supported = []*schema{
	&topLevel, &defaultsSchema, &serviceDefaultsSchema, &nodeSchema, &datapathSchema, &natSchema, &tunnelSchema, &poolSchema, &tlsSchema, &querySchema,
	&serverSchema, &healthSchema, &serviceSchema, &sourceLimitSchema, &instanceSchema, &authenticationSchema, &checkSchema, &recoverSchema, &trackSchema, &notifySchema, &routeSchema, &ruleSchema, &adminSchema,
	&heartbeatSchema, &syncSchema, &httpSchema, &accessLogSchema, &upstreamSchema, &upstreamTLSSchema, &stickySchema, &httpServerSchema, &listenSchema, &serverTLSSchema,
	&dnsSchema, &dnsZoneSchema, &nameServerSchema, &dnsRecordSchema, &dnsRateSchema, &dnsTCPSchema,
	&locationSchema, &returnSchema, &redirectSchema, &rewriteSchema, &headersSchema, &rateLimitSchema, &errorPageSchema, &gzipSchema,
}

func TestLoadMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(path, Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v is not fs.ErrNotExist", err)
	}
	if want := path + ": cannot read the configuration: no such file or directory"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestLoadDirectory(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(dir, Options{})
	if want := dir + ": cannot read the configuration: it is a directory"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestLoadHugeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.yaml")
	if err := os.WriteFile(path, []byte(strings.Repeat("#", maxFileSize+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path, Options{})
	if want := path + ": cannot read the configuration: it is larger than 8 MiB"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestSelf(t *testing.T) {
	const roster = "nodes:\n- {name: lb1, address: 192.0.2.1, priority: 10}\n- {name: lb2, address: 192.0.2.2, priority: 20}\n"
	tests := []struct {
		name string
		yaml string
		opts Options
		node string
		want string // mistakes
	}{
		{name: "host name", yaml: roster, opts: Options{Hostname: "lb2"}, node: "lb2"},
		{name: "host name with a domain", yaml: roster, opts: Options{Hostname: "lb2.example.com"}, node: "lb2"},
		{name: "option", yaml: roster, opts: Options{Node: "lb1", Hostname: "lb2"}, node: "lb1"},
		{name: "key", yaml: roster + "node: lb1\n", opts: Options{Hostname: "lb2"}, node: "lb1"},
		{name: "option before key", yaml: roster + "node: lb1\n", opts: Options{Node: "lb2"}, node: "lb2"},
		{name: "no roster", yaml: "{}", opts: Options{Hostname: "any.example.com"}, node: "any.example.com"},
		{name: "no roster, key", yaml: "node: edge", opts: Options{Hostname: "any"}, node: "edge"},
		{
			name: "unknown host name", yaml: roster, opts: Options{Hostname: "x.y"},
			want: `1:1: this host's name "x.y" is not listed in nodes: say with --node, or with the key node, which of them it is`,
		},
		{
			name: "unknown option", yaml: roster, opts: Options{Node: "lb3", Hostname: "lb1"},
			want: `1:1: node "lb3", given with --node, is not listed in nodes; did you mean "lb1"?`,
		},
		{
			name: "unknown key", yaml: roster + "node: web\n", opts: Options{Hostname: "lb1"},
			want: `4:7: node "web" is not listed in nodes`,
		},
		{
			name: "unknown key, good option", yaml: roster + "node: web\n", opts: Options{Node: "lb1"},
			want: `4:7: node "web" is not listed in nodes`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(memFiles{"f": tt.yaml}, "f", tt.opts)
			if got := mistakesOf(err); got != tt.want {
				t.Fatalf("mistakes: got %s, want %s", got, tt.want)
			}
			if err == nil && c.Node != tt.node {
				t.Errorf("node %q, want %q", c.Node, tt.node)
			}
		})
	}
}

// mistakesOf returns the mistakes of an error, a line each.
func mistakesOf(err error) string {
	var all Errors
	if !errors.As(err, &all) {
		return ""
	}
	lines := make([]string, len(all))
	for i, e := range all {
		lines[i] = mistake(e)
	}
	return strings.Join(lines, "\n")
}

func TestPortShares(t *testing.T) {
	const header = "datapath: {nat: {ports: 1000-1009}}\nnodes:\n"
	const roster = header + "- {name: c, address: 192.0.2.3}\n- {name: a, address: 192.0.2.1}\n- {name: b, address: 192.0.2.2}\n"
	tests := []struct {
		name         string
		yaml, node   string
		index, count int
		want         lb.PortRange
	}{
		{"first by name", roster, "a", 0, 3, lb.PortRange{First: 1000, Last: 1002}},
		{"second by name", roster, "b", 1, 3, lb.PortRange{First: 1003, Last: 1005}},
		{"third by name", roster, "c", 2, 3, lb.PortRange{First: 1006, Last: 1009}},
		{"alone in the roster", header + "- {name: a, address: 192.0.2.1}\n", "a", 0, 1, lb.PortRange{First: 1000, Last: 1009}},
		{"no roster", "datapath: {nat: {ports: 1000-1009}}\n", "a", 0, 2, lb.PortRange{First: 1000, Last: 1004}},
		{"no roster, all ports", "{}", "a", 0, 2, lb.PortRange{First: 1024, Last: 33279}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(memFiles{"f": tt.yaml}, "f", Options{Node: tt.node})
			if err != nil {
				t.Fatal(err)
			}
			if c.PortShare != tt.want || c.ShareIndex != tt.index || c.ShareCount != tt.count {
				t.Errorf("share %v (%d of %d), want %v (%d of %d)", c.PortShare, c.ShareIndex, c.ShareCount, tt.want, tt.index, tt.count)
			}
		})
	}
}

// TestSplitIsAPartition checks that shares neither overlap nor leave a port out,
// whatever the numbers.
func TestSplitIsAPartition(t *testing.T) {
	for _, r := range []lb.PortRange{{First: 1, Last: 65535}, {First: 1024, Last: 65535}, {First: 7, Last: 7}, {First: 65530, Last: 65535}, {First: 100, Last: 116}} {
		for n := 1; n <= min(r.Count(), 40); n++ {
			next := int(r.First)
			for i := range n {
				s := share(r, i, n)
				if int(s.First) != next || s.Last < s.First {
					t.Fatalf("part %d of %d of %v is %v, want it to start at %d", i, n, r, s, next)
				}
				if c := s.Count(); c < r.Count()/n || c > r.Count()/n+1 {
					t.Fatalf("part %d of %d of %v has %d ports", i, n, r, c)
				}
				next = int(s.Last) + 1
			}
			if next != int(r.Last)+1 {
				t.Fatalf("%d parts of %v end before %d", n, r, next)
			}
		}
	}
}

func TestInterfacesOfNode(t *testing.T) {
	const yaml = `nodes:
- {name: lb1, address: 192.0.2.1}
- {name: lb2, address: 192.0.2.2, interfaces: [ens1, ens2]}
datapath: {interfaces: [eth0]}
services: [{name: s, address: "192.0.2.100:80", backends: [{address: 192.0.2.11}]}]
`
	for node, want := range map[string][]string{"lb1": {"eth0"}, "lb2": {"ens1", "ens2"}} {
		c, err := load(memFiles{"f": yaml}, "f", Options{Node: node})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, c.Datapath.Interfaces); diff != "" {
			t.Errorf("%s: interfaces (-want +got):\n%s", node, diff)
		}
	}
}

func TestAdminListen(t *testing.T) {
	for _, tc := range []struct{ yaml, want string }{
		{"admin: {listen: none}\n", "invalid AddrPort"},
		{"admin: {listen: 0.0.0.0:9780}\n", "0.0.0.0:9780"},
		{"admin: {listen: \"[::]:80\"}\n", "[::]:80"},
		{"admin: {socket: /a}\n", "127.0.0.1:9780"},
	} {
		cfg, err := load(memFiles{"f": tc.yaml}, "f", Options{})
		if err != nil {
			t.Errorf("%s: %v", tc.yaml, err)
			continue
		}
		if got := cfg.Admin.Listen.String(); got != tc.want {
			t.Errorf("%s: listen is %s, want %s", tc.yaml, got, tc.want)
		}
	}
}
