package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

// The services that explain and flows are tried with, beside dsr and nat: one that
// keeps a network out, and one that nobody serves.
const (
	closedTo = `{name: closed, address: "192.0.2.100:81", forward: dsr, deny: [198.51.100.0/24], pool: web81}`
	unserved = `{name: unserved, address: "192.0.2.100:82", forward: dsr, pool: web82}`
	morePool = `
  - {name: web81, servers: [{address: 192.0.2.11}]}
  - {name: web82, health: {type: tcp, port: 9, interval: 300ms, timeout: 300ms, rise: 2, fall: 1}, servers: [{address: 192.0.2.11}]}
`
)

// explained runs `sluice explain` on lb1.
func (r *rig) explained(args ...string) string {
	r.Helper()
	return r.wantRun(0, "lb1", append([]string{"explain"}, args...)...).stdout
}

// flowsIn reads what `sluice flows --json` has printed.
func (r *rig) flowsIn(text string) (flows []loader.Flow, summary map[string]int) {
	r.Helper()
	for line := range strings.Lines(text) {
		var s struct{ Summary map[string]int }
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			r.Fatalf("line %q: %v", line, err)
		}
		if s.Summary != nil {
			summary = s.Summary
			continue
		}
		var f struct {
			Kind                         loader.FlowKind
			State, Service, Protocol     string
			Client, VIP, Backend, Source netip.AddrPort
		}
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			r.Fatalf("line %q: %v", line, err)
		}
		flows = append(flows, loader.Flow{
			Kind: f.Kind, State: f.State, Service: f.Service, Protocol: f.Protocol,
			Client: f.Client, VIP: f.VIP, Backend: f.Backend, Source: f.Source,
		})
	}
	return flows, summary
}

func TestExplainFlowsAndDrops(t *testing.T) {
	r := newRig(t, testenv.Default(3))
	for _, name := range []string{"b1", "b2", "b3"} {
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
		r.startEcho(name)
	}
	syn := []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.100:80"}
	t.Run("with nothing there", func(t *testing.T) {
		for _, args := range [][]string{append([]string{"explain"}, syn...), {"flows"}, {"drops"}} {
			got := r.wantRun(exitFailed, "lb1", args...)
			if !strings.Contains(got.stderr, "start it with `sluice run`") || strings.Count(got.stderr, "\n") != 1 || got.stdout != "" {
				t.Errorf("%v: stdout %q, stderr %q, want one line that says what to do", args, got.stdout, got.stderr)
			}
		}
	})

	file := r.file("sluice.yaml", roster, webPool+morePool, services(dsr, nat, closedTo, unserved), vrrps(pair))
	daemon := r.start("lb1", file)
	r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerUp, control.ServerUp)
	r.waitServers("lb1", "unserved", soon, control.ServerDown)
	r.waitVIP(soon, vip, "lb1")

	c := r.crowd("client", netip.PrefixFrom(r.host("client").Address(), 24))
	c.mustOpen([]netip.AddrPort{dsrService}, 40)
	translated := c.mustOpen([]netip.AddrPort{natService}, 1)[0].LocalAddr().String()
	r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.11")
	r.eventually(soon, "b1 to lose its slots", func() (bool, error) {
		v, err := serviceOf(r.mustStatus("lb1"), "dsr")
		return err == nil && v.Backends[0].Slots == 0, err
	})
	c.talk("after the drain")

	var ofDrained loader.Flow
	t.Run("flows", func(t *testing.T) {
		all, summary := r.flowsIn(r.wantRun(0, "lb1", "flows", "--json").stdout)
		count := map[string]int{"handshake": 0, "udp": 0, "total": len(all), "shown": len(all)}
		known := map[netip.AddrPort]bool{}
		for _, f := range all {
			count[string(f.Kind)]++
			known[f.Client] = true
			if f.Kind == loader.FlowStraggler && f.Backend == netip.MustParseAddrPort("192.0.2.11:80") {
				ofDrained = f
			}
		}
		count["pinned"] += 0
		if diff := cmp.Diff(count, summary); diff != "" {
			t.Errorf("summary (-lines +summary):\n%s", diff)
		}
		if count["nat"] != 1 || !known[netip.MustParseAddrPort(translated)] {
			t.Errorf("flows %v, want one of nat from %v", all, translated)
		}
		if !ofDrained.Client.IsValid() || ofDrained.Service != "dsr" || ofDrained.VIP != dsrService {
			t.Fatalf("no flow of the drained backend among %v", all)
		}
		for _, tc := range []struct {
			name string
			args []string
			want int // lines
		}{
			{"of a service", []string{"--service", "nat"}, 1},
			{"of another one", []string{"--service", "closed"}, 0},
			{"of the client", []string{"--client", "192.0.2.200", "--service", "nat"}, 1},
			{"of nobody", []string{"--client", "192.0.2.201"}, 0},
			{"not so many", []string{"--limit", "2"}, 2},
		} {
			flows, _ := r.flowsIn(r.wantRun(0, "lb1", append([]string{"flows", "--json"}, tc.args...)...).stdout)
			if len(flows) != tc.want {
				t.Errorf("%s: %d flows, want %d", tc.name, len(flows), tc.want)
			}
		}
		text := r.wantRun(0, "lb1", "flows", "--limit", "1", "--service", "dsr").stdout
		for _, want := range []string{"KIND", "straggler", "dsr", "192.0.2.100:80", " straggler, 0 udp, 0 nat; 1 shown"} {
			if !strings.Contains(text, want) {
				t.Errorf("flows do not say %q:\n%s", want, text)
			}
		}
		if got := r.wantRun(exitFailed, "lb1", "flows", "--service", "wbe"); !strings.Contains(got.stderr, "there are closed, dsr, nat, unserved") {
			t.Errorf("flows of an unknown service: %q", got.stderr)
		}
	})

	explainCases := []struct {
		name string
		args []string
		want []string
	}{
		{"a new connection", syn, []string{"service dsr: tcp 192.0.2.100:80 dsr", "owner 192.0.2.1", "rewrite the frame's addresses only", "next hop eth0, to 02:", "verdict sent by eth0 (XDP_TX)"}},
		{"a pinned flow of a drained backend", []string{"--src", ofDrained.Client.String(), "--dst", "192.0.2.100:80", "--tcp-flags", "ack"},
			[]string{"tracked, owner 192.0.2.1", "previous owner 192.0.2.11:80", "its window closes in", "flow pinned as a straggler", "backend 192.0.2.11:80, drained", "verdict sent by eth0"}},
		{"a new flow of nat", []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.101:80"},
			[]string{"service nat: tcp 192.0.2.101:80 nat", "flow none: a new one is made", "would be taken, of ", " of 192.0.2.101 towards 192.0.2.1", "rewrite 203.0.113.7:4000 > 192.0.2.101:80 to 192.0.2.101:"}},
		{"a flow of nat", []string{"--src", translated, "--dst", "192.0.2.101:80", "--tcp-flags", "ack,psh", "--interface", "eth0"},
			[]string{"flow translated, established, idle ", "rewrite " + translated + " > 192.0.2.101:80 to 192.0.2.101:", "verdict sent"}},
		{"no flow of nat", []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.101:80", "--tcp-flags", "ack"},
			[]string{"verdict passed to the kernel: no_flow (XDP_PASS)", "what to do expected after a failover"}},
		{"who is kept out", []string{"--src", "198.51.100.9:4000", "--dst", "192.0.2.100:81"},
			[]string{"service closed: ", "rule 198.51.100.0/24 keeps it out", "verdict dropped: denied (XDP_DROP)"}},
		{"nobody serves it", []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.100:82"},
			[]string{"owner none", "verdict dropped: no_backend", "meaning no healthy backend"}},
		{"a frame for another machine", append([]string{"--mac", "02:00:00:00:00:99"}, syn...), []string{"verdict passed to the kernel: other_mac"}},
		{"no service", []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.100:22"}, []string{"vip yes", "verdict passed to the kernel: no_service"}},
		{"udp", []string{"--src", "203.0.113.7:4000", "--dst", "192.0.2.100:80", "--protocol", "udp"}, []string{"packet udp ", "no_service"}},
		{"an echo request", []string{"--src", "203.0.113.7", "--dst", "192.0.2.100", "--protocol", "icmp"}, []string{"packet icmp 203.0.113.7 > 192.0.2.100", "protocol (XDP_PASS)"}},
		{"no VIP", []string{"--src", "[2001:db8::7]:4000", "--dst", "[2001:db8::1]:80"}, []string{"vip no", "not_vip"}},
	}
	wantExplained := func(t *testing.T, more ...string) {
		t.Helper()
		for _, tc := range explainCases {
			text := strings.Join(strings.Fields(r.explained(append(more, tc.args...)...)), " ")
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("%s: it does not say %q: %s", tc.name, want, text)
				}
			}
		}
	}
	t.Run("explain", func(t *testing.T) {
		if !ofDrained.Client.IsValid() {
			t.Skip("no flow of the drained backend")
		}
		wantExplained(t)
		text := r.explained("--src", translated, "--dst", "192.0.2.101:80", "--tcp-flags", "ack", "--json")
		keys := strings.Join(jsonShape(t, text), " ")
		for _, want := range []string{"service.name", "flow.service", "flow.left_seconds", "next_hop.destination", "sent.source", "outcome", "xdp"} {
			if !strings.Contains(keys, want) {
				t.Errorf("JSON has no %s: %s", want, keys)
			}
		}
		var outline struct {
			Outcome string
			Service struct{ Name string }
		}
		if err := json.Unmarshal([]byte(text), &outline); err != nil || outline.Outcome != loader.OutcomeSent || outline.Service.Name != "nat" {
			t.Errorf("JSON says %+v (%v)", outline, err)
		}
		if got := r.wantRun(exitFailed, "lb1", append([]string{"explain", "--interface", "lo"}, syn...)...); !strings.Contains(got.stderr, "it sees packets of eth0") {
			t.Errorf("an interface without the program: %q", got.stderr)
		}
	})

	t.Run("drops", func(t *testing.T) {
		text := r.wantRun(0, "lb1", "drops", "--interval", "10ms").stdout
		if strings.Contains(text, "no_backend") {
			t.Errorf("explaining has been counted:\n%s", text)
		}
		// Nobody answers: the client's SYN is dropped, and comes again.
		d := net.Dialer{Timeout: time.Second}
		if err := r.host("client").Do(func() error {
			c, err := d.DialContext(t.Context(), "tcp", "192.0.2.100:82")
			if err == nil {
				c.Close()
				return fmt.Errorf("somebody serves %v", c.RemoteAddr())
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		text = r.wantRun(0, "lb1", "drops", "--interval", "10ms").stdout
		for _, want := range []string{"PER SECOND", "no_backend", "no healthy backend", "total"} {
			if !strings.Contains(text, want) {
				t.Errorf("drops do not say %q:\n%s", want, text)
			}
		}
		var count dropCount
		if err := json.Unmarshal([]byte(r.wantRun(0, "lb1", "drops", "--interval", "10ms", "--json").stdout), &count); err != nil {
			t.Fatal(err)
		}
		if count.Total == 0 || len(count.Reasons) < 10 {
			t.Errorf("drops as JSON: %+v", count)
		}
		watch, err := r.host("lb1").Start("drops", sluice(r.host("lb1"), "drops", "--watch", "--json", "--interval", "20ms"))
		if err != nil {
			t.Fatal(err)
		}
		r.eventually(soon, "three looks", func() (bool, error) { return strings.Count(watch.Tail(10), "packets_per_second\":") >= 3, nil })
		r.stop(watch)
	})

	r.kill(daemon)
	t.Run("of a dead daemon", func(t *testing.T) {
		wantExplained(t, "-c", file, "--node", "lb1")
		if text := r.explained(syn...); !strings.Contains(text, "(name not known)") {
			t.Errorf("without a configuration:\n%s", text)
		}
		flows, _ := r.flowsIn(r.wantRun(0, "lb1", "flows", "--json", "-c", file, "--node", "lb1", "--service", "nat").stdout)
		if len(flows) != 1 || flows[0].Client.String() != translated {
			t.Errorf("flows of nat: %v, want one from %v", flows, translated)
		}
		if got := r.wantRun(exitFailed, "lb1", "flows", "--service", "nat"); !strings.Contains(got.stderr, "give its configuration with -c") {
			t.Errorf("flows of a service without a configuration: %q", got.stderr)
		}
		r.wantRun(0, "lb1", "drops", "--interval", "10ms")
	})
}

func TestExplainUsage(t *testing.T) {
	r := newRig(t, lab1())
	src, dst := []string{"--src", "203.0.113.7:4000"}, []string{"--dst", "192.0.2.100:80"}
	for _, tc := range []struct {
		name string
		args [][]string
		want string
	}{
		{"no source", [][]string{{"explain"}, dst}, "--src is missing"},
		{"no destination", [][]string{{"explain"}, src}, "--dst is missing"},
		{"no port", [][]string{{"explain"}, src, {"--dst", "192.0.2.100"}}, "want IP:PORT"},
		{"a port for icmp", [][]string{{"explain", "--protocol", "icmp"}, src, dst}, "want an IP address"},
		{"a protocol that is none", [][]string{{"explain", "--protocol", "sctp"}, src, dst}, "want tcp, udp or icmp"},
		{"a flag that is none", [][]string{{"explain", "--tcp-flags", "syn,urg"}, src, dst}, `"urg"`},
		{"flags of udp", [][]string{{"explain", "--protocol", "udp", "--tcp-flags", "syn"}, src, dst}, "is for tcp"},
		{"a sequence number of 33 bits", [][]string{{"explain", "--seq", "4294967296"}, src, dst}, "32 bits"},
		{"a MAC address that is none", [][]string{{"explain", "--mac", "here"}, src, dst}, `"here"`},
		{"two families", [][]string{{"explain", "--dst", "[2001:db8::1]:80"}, src}, "two families"},
		{"too long", [][]string{{"explain", "--length", "9000"}, src, dst}, "9000 bytes"},
		{"an argument too many", [][]string{{"explain"}, src, dst, {"now"}}, `"now"`},
		{"a client that is none", [][]string{{"flows", "--client", "192.0.2.100:80"}}, "want an IP address"},
		{"a negative limit", [][]string{{"flows", "--limit", "-1"}}, "--limit -1"},
		{"no time", [][]string{{"drops", "--interval", "0s"}}, "--interval 0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var args []string
			for _, a := range tc.args {
				args = append(args, a...)
			}
			got := r.wantRun(exitUsage, "lb1", args...)
			if !strings.Contains(got.stderr, tc.want) || strings.Count(got.stderr, "\n") != 1 || got.stdout != "" {
				t.Errorf("stdout %q, stderr %q, want one line with %q", got.stdout, got.stderr, tc.want)
			}
		})
	}
	r.wantNothing("lb1")
}
