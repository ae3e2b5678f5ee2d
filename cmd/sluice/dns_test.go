package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// dnsNames have the pool of the other tests behind them, and one with many servers. An
// upstream has the former, too.
func dnsNames(records ...string) string {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("{address: 203.0.113.%d}", i+1))
	}
	return "  - {name: many, servers: [" + strings.Join(many, ", ") + "]}\n" + `
dns:
  listen: ["192.0.2.100:53"]
  zones:
    - name: lb.example.com
      name_servers: [{name: ns1.lb.example.com, addresses: [192.0.2.100]}, ns2.example.net]
      serial: 2026010101
  records:
    - ` + strings.Join(records, "\n    - ") + `
http:
  upstreams: [{name: app, pool: web}]
  servers: [{listen: "192.0.2.100:8080", locations: [{path: /, upstream: app}]}]
`
}

var usualNames = []string{
	"{name: www.lb.example.com, ttl: 1s, pool: web}", "{name: w.lb.example.com, policy: weighted, pool: web}",
	"{name: h.lb.example.com, policy: source_hash, pool: web}", "{name: many.lb.example.com, policy: all, pool: many}",
}

// dnsFile writes the configuration of a pair with these pools and names.
func (r *rig) dnsFile(pools, names string) string {
	r.Helper()
	return r.file("sluice.yaml", roster, pools, names, services(nat), vrrps(pair), "sync: {key_file: sync.key}\n")
}

// dig asks the VIP from the client.
func (r *rig) dig(args ...string) string {
	r.Helper()
	return r.digAt("192.0.2.100", args...)
}

func (r *rig) digAt(server string, args ...string) string {
	r.Helper()
	cmd := exec.Command("dig", append([]string{"@" + server, "+time=3", "+tries=3", "+norecurse"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := r.host("client").Do(cmd.Start); err != nil {
		r.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		r.Fatalf("dig %v: %v: %s", args, err, out.String())
	}
	return out.String()
}

// addresses asks for those of a name.
func (r *rig) addresses(name string) []string {
	r.Helper()
	return strings.Fields(r.dig("+short", name))
}

// waitGiven waits until a name has exactly these addresses, in whatever order.
func (r *rig) waitGiven(name string, want ...string) {
	r.Helper()
	r.eventually(soon, fmt.Sprintf("%s with %v", name, want), func() (bool, error) {
		got := r.addresses(name)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return false, fmt.Errorf("it has %v", got)
		}
		return true, nil
	})
}

// Names over a VIP, by dig: policies, servers that fail, come back and are drained,
// truncation, errors, reload, and the other node.
func TestDNS(t *testing.T) {
	testenv.RequireProgram(t, "dig")
	r := webRig(t, 3)
	const b1, b2, b3 = "192.0.2.11", "192.0.2.12", "192.0.2.13"
	if err := key.Write(filepath.Join(r.lab.Dir(), "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	file := r.dnsFile(webPool, dnsNames(usualNames...))
	lb1 := r.start("lb1", file)
	r.waitReady("lb1")
	r.waitGiven("www.lb.example.com", b1, b2, b3)

	t.Run("round robin", func(t *testing.T) {
		first := r.addresses("www.lb.example.com")
		for i := range 3 {
			first = append(first[1:], first[0])
			if got := r.addresses("www.lb.example.com"); !slices.Equal(got, first) {
				t.Errorf("answer %d: %v, want %v", i, got, first)
			}
		}
	})
	t.Run("by weight", func(t *testing.T) {
		got := map[string]int{}
		for range 8 {
			got[strings.Join(r.addresses("w.lb.example.com"), " ")]++
		}
		if diff := cmp.Diff(map[string]int{b1: 2, b2: 4, b3: 2}, got); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	t.Run("by the client's network", func(t *testing.T) {
		first := r.addresses("h.lb.example.com")
		for range 3 {
			if got := r.addresses("h.lb.example.com"); len(got) != 1 || !slices.Equal(got, first) {
				t.Errorf("%v after %v", got, first)
			}
		}
	})
	t.Run("what dig says", func(t *testing.T) {
		for _, tt := range []struct {
			args string
			want []string
		}{
			{"www.lb.example.com A", []string{"status: NOERROR", "flags: qr aa;", "ANSWER: 3, AUTHORITY: 0, ADDITIONAL: 1", "EDNS: version: 0, flags:; udp: 1232", "www.lb.example.com.\t1\tIN\tA\t192.0.2.11"}},
			{"www.lb.example.com AAAA", []string{"status: NOERROR", "flags: qr aa;", "ANSWER: 0, AUTHORITY: 1", "lb.example.com.\t\t1\tIN\tSOA\tns1.lb.example.com. hostmaster.lb.example.com. 2026010101 3600 600 1209600 30"}},
			{"none.lb.example.com", []string{"status: NXDOMAIN", "flags: qr aa;", "lb.example.com.\t\t30\tIN\tSOA"}},
			{"lb.example.com NS", []string{"status: NOERROR", "IN\tNS\tns1.lb.example.com.", "IN\tNS\tns2.example.net.", "ns1.lb.example.com.\t3600\tIN\tA\t192.0.2.100"}},
			{"lb.example.com SOA +noedns", []string{"status: NOERROR", "flags: qr aa;", "ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 0"}},
			{"www.lb.example.com ANY", []string{"status: NOERROR", `HINFO	"RFC8482" ""`}},
			{"www.example.org", []string{"status: REFUSED", "flags: qr;"}},
			{"version.bind CH TXT", []string{"status: REFUSED", "flags: qr;"}},
			{"www.lb.example.com +edns=1 +noednsnegotiation", []string{"status: BADVERS", "EDNS: version: 0"}},
			{"www.lb.example.com +opcode=notify", []string{"opcode: NOTIFY, status: NOTIMP"}},
			{"lb.example.com AXFR", []string{"Transfer failed"}},
			{"WWW.lb.example.com +tcp", []string{"status: NOERROR", "WWW.lb.example.com.\t1\tIN\tA\t192.0.2.11", "(TCP)"}},
		} {
			got := r.dig(strings.Fields(tt.args)...)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("dig %s does not say %q:\n%s", tt.args, want, got)
				}
			}
		}
	})
	t.Run("too long for a datagram", func(t *testing.T) {
		cut := r.dig("many.lb.example.com", "+ignore")
		if !strings.Contains(cut, "flags: qr aa tc;") || strings.Count(cut, "\tA\t203.0.113.") >= 100 {
			t.Errorf("by UDP:\n%s", cut)
		}
		whole := r.dig("many.lb.example.com")
		for _, want := range []string{"Truncated, retrying in TCP mode", "flags: qr aa;", "ANSWER: 100,"} {
			if !strings.Contains(whole, want) {
				t.Errorf("by TCP, it does not say %q:\n%s", want, whole)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		out := r.wantRun(0, "lb1", "status", "--json").stdout
		if diff := cmp.Diff(dnsStatusKeys, keysOf(t, out, "dns")); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		text := r.wantRun(0, "lb1", "status").stdout
		for _, want := range []string{"\ndns\n", "www.lb.example.com.", "round robin", "dns pool web\n", "192.0.2.12:80", "2026010101"} {
			if !strings.Contains(text, want) {
				t.Errorf("status does not say %q:\n%s", want, text)
			}
		}
		r.waitMetric("lb1", 1, "sluice_dns_server_state", "web", "192.0.2.13:80", "up")
		// Servers that a service and records have in common are probed once.
		_, metrics, err := r.fetch("lb1", "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(metrics, "\nsluice_probe_runs_total{"); n != 3 {
			t.Errorf("%d probes, want 3", n)
		}
	})
	t.Run("an operator drains a server", func(t *testing.T) {
		r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.12:80")
		r.waitGiven("www.lb.example.com", b1, b3)
		r.wantRun(0, "lb1", "backend", "reset", "web", "192.0.2.12:80")
		r.waitGiven("www.lb.example.com", b1, b2, b3)
	})
	t.Run("a server fails and comes back", func(t *testing.T) {
		if err := r.host("b1").LinkDown("eth0"); err != nil {
			t.Fatal(err)
		}
		r.waitGiven("www.lb.example.com", b2, b3)
		if err := r.host("b1").LinkUp("eth0"); err != nil {
			t.Fatal(err)
		}
		r.waitGiven("www.lb.example.com", b1, b2, b3)
		text := r.wantRun(0, "lb1", "events", "--json").stdout
		if !strings.Contains(text, `"type":"pool.state","service":"web","server":"192.0.2.11:80","from":"up","to":"down"`) {
			t.Errorf("events say\n%s", text)
		}
	})
	t.Run("reload under load", func(t *testing.T) { r.reloadDNSUnderLoad(file) })
	t.Run("reload with servers that are all new", func(t *testing.T) { r.reloadDNSWithNewServers(file) })
	t.Run("the other node", func(t *testing.T) {
		r.start("lb2", file)
		r.waitStatus("lb2", soon, "a Backup that listens", func(s control.Status) error {
			if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "backup" || len(s.DNS.Listeners) != 1 {
				return fmt.Errorf("it is %s", i.State)
			}
			return nil
		})
		// Both nodes answer and serve as an operator of either of them wants it.
		r.waitShared("lb1")
		for _, tt := range []struct {
			action string
			want   dns.State
		}{{"drain", dns.StateDrained}, {"reset", dns.StateUp}} {
			r.wantRun(0, "lb1", "backend", tt.action, "web", b1)
			r.waitStatus("lb2", soon, "what was changed on lb1", func(s control.Status) error {
				if got := s.DNS.Pools[0].Servers[0].State; got != tt.want {
					return fmt.Errorf("it is %s, want %s", got, tt.want)
				}
				if got := s.HTTP.Upstreams[0].Servers[0].State; string(got) != string(tt.want) {
					return fmt.Errorf("of the upstream it is %s, want %s", got, tt.want)
				}
				return nil
			})
		}
		r.stop(lb1)
		r.waitVIP(soon, vip, "lb2", "lb1")
		r.waitGiven("www.lb.example.com", b1, b2, b3)
	})
	t.Run("none is healthy", func(t *testing.T) {
		for _, name := range []string{"b1", "b2", "b3"} {
			if err := r.host(name).LinkDown("eth0"); err != nil {
				t.Fatal(err)
			}
		}
		r.waitStatus("lb2", soon, "a problem", func(s control.Status) error {
			if !slices.Contains(s.Problems, "dns pool web: no server is healthy (3 configured): all are given") {
				return fmt.Errorf("problems %q", s.Problems)
			}
			return nil
		})
		r.waitGiven("www.lb.example.com", b1, b2, b3)
	})
}

// dnsStatusKeys are the contract with whoever reads dns of `sluice status --json`.
var dnsStatusKeys = strings.Fields(`
dns dns.answers dns.answers.BADVERS dns.answers.FORMERR dns.answers.NOERROR dns.answers.NOTIMP dns.answers.NXDOMAIN dns.answers.REFUSED
dns.answers.SERVFAIL dns.connections dns.dropped dns.dropped.malformed dns.dropped.rate_limited dns.dropped.response dns.dropped.unsent
dns.evicted dns.listeners dns.listeners.accepted dns.listeners.address dns.listeners.tcp dns.listeners.udp
dns.pools dns.pools.healthy dns.pools.name dns.pools.port dns.pools.servers dns.pools.servers.address dns.pools.servers.answers
dns.pools.servers.backup dns.pools.servers.given dns.pools.servers.since dns.pools.servers.state dns.pools.servers.weight
dns.records dns.records.name dns.records.policy dns.records.pool dns.records.queries dns.records.ttl dns.slipped dns.truncated
dns.zones dns.zones.name dns.zones.serial
`)

// A node that only answers needs no service, no XDP program and no VIP; its servers may be
// as healthy as a check.
func TestDNSAlone(t *testing.T) {
	testenv.RequireProgram(t, "dig")
	r := newRig(t, testenv.Default(0))
	flag := r.file("healthy")
	r.start("lb1", r.file("sluice.yaml", fmt.Sprintf(`
pools: [{name: site, health: {check: here}, servers: [{address: 203.0.113.10}, {address: 203.0.113.20, weight: 0}]}]
checks: [{name: here, type: exec, command: [test, -e, %s], interval: 200ms, rise: 1, fall: 1}]
dns: {listen: ["192.0.2.1:53"], records: [{name: www.example.com, ttl: 1s, pool: site}]}
`, flag)))
	ask := func(args ...string) string { return r.digAt("192.0.2.1", args...) }
	state := func(want string) {
		t.Helper()
		r.waitStatus("lb1", soon, "a server that is "+want, func(s control.Status) error {
			if got := s.DNS.Pools[0].Servers[0]; string(got.State) != want {
				return fmt.Errorf("it is %s: %s", got.State, got.Why)
			}
			return nil
		})
	}
	state("up")
	if got := ask("+short", "www.example.com"); got != "203.0.113.10\n" {
		t.Errorf("dig says %q", got)
	}
	if got := ask("+short", "www.example.com", "NS"); got != "ns.www.example.com.\n" {
		t.Errorf("dig says %q", got)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	state("down")
	if got := ask("+short", "www.example.com"); got != "203.0.113.10\n" {
		t.Errorf("with no healthy server dig says %q", got)
	}
	for _, tt := range []struct{ action, state string }{{"drain", "drained"}, {"disable", "disabled"}} {
		r.wantRun(0, "lb1", "backend", tt.action, "site", "203.0.113.10")
		state(tt.state)
		if got := ask("www.example.com"); !strings.Contains(got, "status: NOERROR") || !strings.Contains(got, "ANSWER: 0, AUTHORITY: 1") {
			t.Errorf("with its server that fails %s dig says\n%s", tt.state, got)
		}
		if text := r.wantRun(0, "lb1", "status").stdout; tt.state == "drained" && !strings.Contains(text, "by an operator; check here fails: ") {
			t.Errorf("status does not say that the drained server fails:\n%s", text)
		}
	}
}
