package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// fiveMistakes has one on each of the lines 3, 6, 10, 12 and 16.
const fiveMistakes = `nodes:
  - {name: lb1, address: 192.0.2.1, priority: 100}
  - {name: lb2, address: 192.0.2.300}
datapath:
  interfaces: [eth0]
  mode: fast
pools:
  - name: web
    servers:
      - {address: 192.0.2.11, wieght: 2}
services:
  - {name: dsr, address: "192.0.2.100:80", forward: dsr, pool: wbe}
vrrp:
  - name: VI_1
    interface: eth0
    virtual_router_id: 300
    addresses: [192.0.2.100/24]
`

// lab1 is one node alone.
func lab1() testenv.Spec {
	spec := testenv.Default(0)
	return testenv.Spec{Hosts: spec.Hosts[1:2]}
}

func TestMistakesArePrintedWithTheirPlaces(t *testing.T) {
	r := newRig(t, lab1())
	bad := r.file("bad.yaml", fiveMistakes)
	for _, command := range []string{"check", "run"} {
		t.Run(command, func(t *testing.T) {
			got := r.wantRun(exitFailed, "lb1", command, "-c", bad, "--node", "lb1")
			var places []string
			for _, m := range regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(bad)+`:(\d+:\d+): .+$`).FindAllStringSubmatch(got.stderr, -1) {
				places = append(places, m[1])
			}
			if diff := cmp.Diff([]string{"3:26", "6:9", "10:31", "12:64", "16:24"}, places); diff != "" {
				t.Errorf("places (-want +got):\n%s\nstderr:\n%s", diff, got.stderr)
			}
			for _, line := range []string{"wieght: 2", "virtual_router_id: 300"} {
				if !strings.Contains(got.stderr, line) {
					t.Errorf("stderr does not show the line with %q:\n%s", line, got.stderr)
				}
			}
			if got.stdout != "" {
				t.Errorf("stdout has %q", got.stdout)
			}
			// Nothing was started, and nobody holds the lock.
			r.wantNothing("lb1")
			if files, err := os.ReadDir(r.host("lb1").RunDir); err != nil || len(files) > 0 {
				t.Errorf("the run directory has %v (%v), want nothing", files, err)
			}
			r.wantRun(0, "lb1", "detach")
			if err := os.RemoveAll(r.host("lb1").RunDir); err != nil {
				t.Error(err)
			}
			if err := os.Mkdir(r.host("lb1").RunDir, 0o755); err != nil {
				t.Error(err)
			}
		})
	}
}

// Too much for the data plane is a mistake like any other.
func TestCheckOfTooMuch(t *testing.T) {
	var many []string
	for i := range 256 {
		many = append(many, fmt.Sprintf(`"198.51.100.%d:80"`, i))
	}
	file := filepath.Join(t.TempDir(), "sluice.yaml")
	text := roster + webPool + services(dsr, `{name: many, address: [`+strings.Join(many, ", ")+`], forward: dsr, pool: web}`)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	code := run(t.Context(), []string{"sluice", "check", "-c", file, "--node", "lb1"}, &stdout, &stderr)
	want := file + ":16:12: too much for the data plane: 257 VIPs with services, by protocol, there is room for 255\n"
	if code != exitFailed || !strings.HasPrefix(stderr.String(), want) || !strings.HasSuffix(stderr.String(), ": 1 error\n") || stdout.Len() > 0 {
		t.Errorf("it ends with %d and says %q, want %q", code, stderr.String(), want)
	}
}

func TestCheckOfAGoodFile(t *testing.T) {
	r := newRig(t, lab1())
	file := r.usual()
	got := r.wantRun(0, "lb1", "check", "-c", file, "--node", "lb1")
	if want := file + ": ok: 2 services, 1 pool, 1 VRRP instance\n"; got.stdout != want || got.stderr != "" {
		t.Errorf("stdout %q, want %q; stderr %q", got.stdout, want, got.stderr)
	}
	r.wantNothing("lb1")
	// The file serves the nodes that it names, and no other.
	for _, tc := range []struct{ name, node, want string }{
		{"an unknown node", "lb3", "lb3"},
		{"a file that is not there", "", "absent.yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"check", "-c", file, "--node", tc.node}
			if tc.node == "" {
				args = []string{"check", "-c", filepath.Join(r.lab.Dir(), "absent.yaml")}
			}
			if got := r.wantRun(exitFailed, "lb1", args...); !strings.Contains(got.stderr, tc.want) {
				t.Errorf("stderr %q does not name %s", got.stderr, tc.want)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	r := newRig(t, lab1())
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // on stderr, or on stdout where code is 0
	}{
		{"an unknown command", []string{"chek"}, exitUsage, `"chek"`},
		{"an unknown flag", []string{"check", "--fast"}, exitUsage, "-fast"},
		{"an unknown flag before the command", []string{"--fast", "check"}, exitUsage, "-fast"},
		{"an argument too many", []string{"status", "now"}, exitUsage, `"now"`},
		{"a flag without its value", []string{"check", "-c"}, exitUsage, "-c"},
		{"an unknown log level", []string{"run", "--log-level", "loud"}, exitUsage, `"loud"`},
		{"two services", []string{"probe", "web", "mail"}, exitUsage, `"mail"`},
		{"a flag behind a service", []string{"probe", "web", "-c"}, exitUsage, "-c"},
		{"help", []string{"--help"}, 0, "detach"},
		{"help of a command", []string{"run", "--help"}, 0, "--log-level"},
		{"version", []string{"version"}, 0, "sluice "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := r.wantRun(tc.code, "lb1", tc.args...)
			said, silent := got.stderr, got.stdout
			if tc.code == 0 {
				said, silent = silent, said
			}
			if !strings.Contains(said, tc.want) || silent != "" {
				t.Errorf("stdout %q, stderr %q, want %q in one and nothing in the other", got.stdout, got.stderr, tc.want)
			}
			if tc.code != 0 && strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line", got.stderr)
			}
		})
	}
	r.wantNothing("lb1")
}

func TestOneDaemonPerRunDirectory(t *testing.T) {
	r := webRig(t, 3)
	file := r.usual()
	first := r.start("lb1", file)
	r.waitReady("lb1")
	program := r.xdpProgram("lb1", "eth0")
	got := r.wantRun(exitFailed, "lb1", "run", "-c", file, "--node", "lb1")
	if !strings.Contains(got.stderr, "another sluice runs") || !strings.Contains(got.stderr, r.host("lb1").RunDir) {
		t.Errorf("stderr %q does not say that another one runs, and where", got.stderr)
	}
	// The first one is as it was.
	if now := r.xdpProgram("lb1", "eth0"); now != program {
		t.Errorf("the XDP program is %d, was %d", now, program)
	}
	if s := r.mustStatus("lb1"); s.PID != first.ID().PID {
		t.Errorf("process %d answers, want %d", s.PID, first.ID().PID)
	}
	r.wantServing(dsrService, "b1", "b2", "b3")
}

// jsonShape lists the keys of a JSON text, with those of the first element of
// each list.
func jsonShape(t *testing.T, text string) []string {
	t.Helper()
	var tree any
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatalf("not JSON: %v:\n%s", err, text)
	}
	var keys []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				keys = append(keys, path+k)
				walk(path+k+".", e)
			}
		case []any:
			if len(v) > 0 {
				walk(path, v[0])
			}
		}
	}
	walk("", tree)
	slices.Sort(keys)
	return keys
}

// keysOf are those of jsonShape that one key has below it, and itself.
func keysOf(t *testing.T, text, key string) []string {
	t.Helper()
	return slices.DeleteFunc(jsonShape(t, text), func(k string) bool { return k != key && !strings.HasPrefix(k, key+".") })
}

// deadKeys are those of a daemon that does not run.
var deadKeys = strings.Fields(`
left left.dead_since left.instances left.instances.addresses left.instances.fenced left.instances.held left.instances.interface
left.instances.name left.instances.other left.instances.seen left.instances.virtual_router_id left.vips left.vips.address left.vips.interface
`)

// statusKeys are the contract with whoever reads `sluice status --json`.
var statusKeys = strings.Fields(`
alarms checks config forwarding interfaces interfaces.mode interfaces.name node
outcomes outcomes.answered outcomes.dropped outcomes.name outcomes.packets pid problems running
services services.addresses services.backends services.backends.address services.backends.backup
services.backends.bytes services.backends.configured_weight services.backends.flows services.backends.next_hop services.backends.packets services.backends.pinned services.backends.ports services.backends.ports_used services.backends.previous_slots
services.backends.rate services.backends.rate.bytes_per_second services.backends.rate.connections_per_second services.backends.rate.over_ns services.backends.rate.packets_per_second services.backends.rate.reply_bytes_per_second services.backends.rate.reply_packets_per_second
services.backends.reply_bytes services.backends.reply_packets services.backends.serving services.backends.share services.backends.slots
services.backends.state services.backends.weight services.forward services.healthy services.losses
services.losses.early_reuse services.losses.evicted services.losses.flows_full services.losses.handshakes_full services.losses.no_backend
services.losses.no_port services.losses.pins_full services.losses.too_big services.name services.pool services.protocol services.quorum
services.rate services.rate.bytes_per_second services.rate.connections_per_second services.rate.over_ns services.rate.packets_per_second services.rate.reply_bytes_per_second services.rate.reply_packets_per_second services.state
started tables tables.name tables.size tables.used time version
vrrp vrrp.addresses vrrp.alarms vrrp.dropped vrrp.failed vrrp.interface vrrp.name vrrp.present vrrp.priority vrrp.reason
vrrp.received vrrp.releasing vrrp.sent vrrp.since vrrp.source vrrp.state vrrp.version vrrp.virtual_router_id
`)

func TestStatus(t *testing.T) {
	r := webRig(t, 3)
	got := r.wantRun(exitFailed, "lb1", "status")
	if !strings.Contains(got.stderr, "not running") || !strings.Contains(got.stderr, "nothing of it is left") {
		t.Errorf("status without a daemon says %q", got.stderr)
	}
	if got := r.wantRun(exitFailed, "lb1", "status", "--check"); !strings.HasPrefix(got.stdout, "problem: ") || strings.Count(got.stdout, "\n") != 1 || got.stderr != "" {
		t.Errorf("status --check without a daemon says %q, %q", got.stdout, got.stderr)
	}

	file := r.usual()
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	r.answers("client", dsrService, burst)
	r.answers("client", natService, burst)
	t.Run("of a running daemon", func(t *testing.T) {
		got := r.wantRun(0, "lb1", "status", "--json")
		if diff := cmp.Diff(statusKeys, jsonShape(t, got.stdout)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		var s control.Status
		if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
			t.Fatal(err)
		}
		if s.Node != "lb1" || !s.Running || !s.Forwarding || s.PID != daemon.ID().PID || len(s.Problems) > 0 {
			t.Errorf("got node %s, running %v, forwarding %v, pid %d, problems %v", s.Node, s.Running, s.Forwarding, s.PID, s.Problems)
		}
		for _, name := range []string{"dsr", "nat"} {
			v, err := serviceOf(s, name)
			if err != nil {
				t.Fatal(err)
			}
			flows := uint64(0)
			for _, b := range v.Backends {
				flows += b.Flows
			}
			if flows != burst || v.State != control.ServiceUp || v.Healthy != 3 {
				t.Errorf("service %s is %s with %d healthy and %d connections, want %d", name, v.State, v.Healthy, flows, burst)
			}
		}

		text := r.wantRun(0, "lb1", "status", "-c", file, "--node", "lb1").stdout
		for _, want := range []string{
			"node lb1, sluice ", "interface eth0: XDP native", "vrrp VI_1: ACTIVE", "192.0.2.100/24",
			"service dsr: up, tcp 192.0.2.100:80 dsr", "service nat: up, tcp 192.0.2.101:80 nat", "192.0.2.12:80",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("status does not say %q:\n%s", want, text)
			}
		}
		line := r.wantRun(0, "lb1", "status", "--check").stdout
		if want := "ok: lb1: vrrp VI_1 active; 6 of 6 servers healthy in 2 services; up "; !strings.HasPrefix(line, want) || strings.Count(line, "\n") != 1 {
			t.Errorf("status --check says %q, want a line with %q", line, want)
		}
	})

	r.kill(daemon)
	t.Run("of a dead daemon", func(t *testing.T) {
		got := r.wantRun(0, "lb1", "status", "--json")
		var s control.Status
		if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
			t.Fatal(err)
		}
		if s.Running || !s.Forwarding || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "not running") {
			t.Errorf("got running %v, forwarding %v, problems %v", s.Running, s.Forwarding, s.Problems)
		}
		// What is optional is not there; the rest has the same names.
		for _, key := range jsonShape(t, got.stdout) {
			if !slices.Contains(statusKeys, key) && !slices.Contains(deadKeys, key) {
				t.Errorf("key %s is new", key)
			}
		}
		services := map[lb.Frontend]map[string]int{}
		for _, v := range s.Services {
			services[v.Addresses[0]] = map[string]int{}
			for _, b := range v.Backends {
				services[v.Addresses[0]][b.Address.String()] = b.Slots
			}
		}
		slots := map[string]int{"192.0.2.11:80": 16384, "192.0.2.12:80": 32769, "192.0.2.13:80": 16384}
		want := map[lb.Frontend]map[string]int{lb.FrontendOf(dsrService): slots, lb.FrontendOf(natService): slots}
		if diff := cmp.Diff(want, services, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("slots (-want +got):\n%s", diff)
		}
		if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "sluice is not running, forwarding goes on") {
			t.Errorf("status says\n%s", text)
		}
		if line := r.wantRun(exitFailed, "lb1", "status", "--check").stdout; !strings.HasPrefix(line, "problem: sluice is not running") {
			t.Errorf("status --check says %q", line)
		}
		// The kernel knows no names of services; the configuration does.
		named := r.wantRun(0, "lb1", "status", "-c", file, "--node", "lb1").stdout
		for _, want := range []string{"service dsr: unknown", "service nat: unknown"} {
			if !strings.Contains(named, want) {
				t.Errorf("status -c does not say %q:\n%s", want, named)
			}
		}
		r.wantServing(dsrService, "b1", "b2", "b3")
	})
}

// Before the first verdicts there is nothing to say about services, and status
// says so.
func TestStatusWhileStarting(t *testing.T) {
	r := newRig(t, lab1())
	// Nobody has this address: the first probe ends when ARP gives up, after 3 s.
	r.start("lb1", r.file("sluice.yaml", roster, `
pools:
  - {name: web, health: {type: tcp, interval: 5s, timeout: 5s, fall: 1}, servers: [{address: 192.0.2.99}]}
`, services(dsr), vrrps(pair)))
	s := r.waitStatus("lb1", atOnce, "an answer", func(control.Status) error { return nil })
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "starting") || !s.Running {
		t.Errorf("problems while starting: %v, want one that says so", s.Problems)
	}
	if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "initialize" {
		t.Errorf("vrrp is %s (%v) before the first verdicts", i.State, err)
	}
	s = r.waitStatus("lb1", soon, "the VIP although the service is down", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "active" {
			return fmt.Errorf("%s, %w", i.State, err)
		}
		return nil
	})
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "service dsr is down") {
		t.Errorf("problems after the start: %v, want one that says that the service is down", s.Problems)
	}
}

func TestDetach(t *testing.T) {
	r := webRig(t, 3)
	nothing := r.wantRun(0, "lb1", "detach")
	if nothing.stdout != "nothing was attached\n" {
		t.Errorf("detach with nothing there says %q", nothing.stdout)
	}
	daemon := r.start("lb1", r.usual())
	r.waitReady("lb1")
	untouched := func(when string) {
		t.Helper()
		if r.xdpProgram("lb1", "eth0") == 0 || len(r.pins("lb1")) == 0 || !r.has("lb1", vip) || !r.has("lb1", natVIP) {
			t.Errorf("%s: something is gone", when)
		}
	}
	for _, args := range [][]string{{"detach"}, {"detach", "--force"}} {
		t.Run(fmt.Sprint("refused while the daemon runs: ", args), func(t *testing.T) {
			got := r.wantRun(exitFailed, "lb1", args...)
			if !strings.Contains(got.stderr, "another sluice runs") || !strings.Contains(got.stderr, "stop it first") {
				t.Errorf("stderr %q does not say what to do", got.stderr)
			}
			untouched("after detach was refused")
		})
	}
	r.kill(daemon)
	got := r.wantRun(exitFailed, "lb1", "detach")
	for _, want := range []string{"192.0.2.100/24 on eth0", "192.0.2.101/24 on eth0", "--force"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("stderr %q does not say %q", got.stderr, want)
		}
	}
	untouched("after detach was refused to the holder of a VIP")
	r.wantServing(natService, "b1", "b2", "b3")

	got = r.wantRun(0, "lb1", "detach", "--force")
	if want := "removed 192.0.2.100/24, 192.0.2.101/24\ndetached from eth0\n"; got.stdout != want {
		t.Errorf("detach says %q, want %q", got.stdout, want)
	}
	r.wantNothing("lb1")
	if got := r.wantRun(exitFailed, "lb1", "status"); !strings.Contains(got.stderr, "nothing of it is left") {
		t.Errorf("status after detach says %q", got.stderr)
	}
	r.wantRun(0, "lb1", "detach")

	// A node that holds no VIP is detached without force.
	r.start("lb2", r.usual())
	r.waitReady("lb2")
	daemon = r.start("lb1", r.file("backup.yaml", roster, webPool, services(dsr, nat),
		vrrps(`{name: VI_1, interface: eth0, virtual_router_id: 51, priority: 50, advertisement_interval: 200ms, addresses: [192.0.2.100/24, 192.0.2.101/24]}`)))
	r.waitStatus("lb1", soon, "state Backup", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "backup" || s.Services == nil {
			return fmt.Errorf("state %s, %w", i.State, err)
		}
		return nil
	})
	r.stop(daemon)
	r.wantRun(0, "lb1", "detach")
	r.wantNothing("lb1")
}
