package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// since tells since when an instance is in its state, which another process, or
// another instance of that name, would not know.
func (r *rig) since(on, instance string) time.Time {
	r.Helper()
	i, err := instanceOf(r.mustStatus(on), instance)
	if err != nil {
		r.Fatal(err)
	}
	return i.Since
}

// A reload under traffic changes a weight, adds a server and a service, and loses
// neither a packet nor a connection; a file that cannot be applied changes nothing.
func TestReload(t *testing.T) {
	spec := testenv.Default(5)
	r := newRig(t, spec)
	for _, name := range []string{"b1", "b2", "b3"} { // of connections that last
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
		r.startEcho(name)
	}
	for _, name := range []string{"b4", "b5"} { // of requests
		r.serve(name, r.host(name).NameHandler())
	}
	write := func(echo, web string, more ...string) string {
		return r.file("sluice.yaml", roster,
			"pools:\n  - {name: echo, "+patientProbes+", servers: ["+echo+"]}\n  - {name: web, "+patientProbes+", servers: ["+web+"]}\n",
			services(append([]string{
				`{name: dsr, address: "192.0.2.100:80", forward: dsr, pool: echo}`, `{name: nat, address: "192.0.2.101:80", forward: nat, pool: web}`,
			}, more...)...), vrrps(pair))
	}
	const b1, b2, b3, b4, b5 = "{address: 192.0.2.11}", "{address: 192.0.2.12}", "{address: 192.0.2.13}", "{address: 192.0.2.14}", "{address: 192.0.2.15}"
	file := write(b1+", "+b2, b4)
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	crowd := r.crowd("client", prefix("192.0.2.200/24"))
	crowd.mustOpen([]netip.AddrPort{dsrService}, 300)
	requests := r.prober(natService)
	r.answersMore(requests, 20)
	began := r.since("lb1", "VI_1")
	before := r.mustStatus("lb1")
	probes := func() float64 {
		n, err := r.metric("lb1", "sluice_probe_runs_total", "tcp 192.0.2.100:80 at 192.0.2.11")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	probed := probes()

	// Nothing has changed, and nothing changes.
	for _, args := range [][]string{{"reload"}, {"reload", "--dry-run"}} {
		if got := r.wantRun(0, "lb1", args...).stdout; got != "nothing changes\n" {
			t.Errorf("%v of the same file says %q", args, got)
		}
	}

	// A weight, two servers, and a service.
	write("{address: 192.0.2.11, weight: 3}, "+b2+", "+b3, b4+", "+b5,
		`{name: extra, address: "192.0.2.101:81", forward: nat, backends: [{address: "192.0.2.15:80"}], `+patientProbes+`}`)
	want := "service dsr: 192.0.2.11 weight 1 -> 3, 192.0.2.13 added\nservice nat: 192.0.2.15 added\nservice extra: added\n"
	if got := r.wantRun(0, "lb1", "reload", "--dry-run").stdout; got != want {
		t.Errorf("a dry run says\n%s, want\n%s", got, want)
	}
	if s := r.mustStatus("lb1"); len(s.Services) != 2 || len(s.Services[0].Backends) != 2 {
		t.Errorf("a dry run has changed the services: %+v", s.Services)
	}
	if got := r.wantRun(0, "lb1", "reload").stdout; got != want {
		t.Errorf("the reload says\n%s, want\n%s", got, want)
	}
	after := r.waitReady("lb1")
	slots := map[string]int{}
	for _, b := range after.Services[0].Backends {
		slots[b.Address.Addr().String()] = b.Slots
	}
	if one := slots["192.0.2.12"]; one < 13107 || one > 13108 || slots["192.0.2.11"] < 3*13107 || slots["192.0.2.13"] < 13107 {
		t.Errorf("slots are %v, want them 3:1:1", slots)
	}
	crowd.talk("after the reload")
	if now := probes(); now < probed || probed == 0 {
		t.Errorf("a server that is the same was probed %v times, and %v before", now, probed)
	}
	if got := r.answers("client", netip.AddrPortFrom(natVIP, 81), 10); got["b5"]+got["b5\n"] != 10 {
		t.Errorf("the new service is served by %v, want b5", got)
	}
	r.answersMore(requests, 50)
	if is := packetsOf(after, "dsr"); is < packetsOf(before, "dsr") {
		t.Errorf("the service has counted %d packets, and %d before", is, packetsOf(before, "dsr"))
	}
	r.waitEvents("lb1", soon, "daemon.ready", "daemon.reload applied")

	// What cannot be applied is named, and nothing changes.
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, from, to string
		want           []string
	}{
		{"two mistakes", "forward: dsr", "forward: drs, wieght: 2", []string{":12:53:", ":12:58:", `unknown key "wieght"`, "forward"}},
		{"what is set at load", "max_flows: 20000", "max_flows: 30000, nat: {ports: 2000-3999}", []string{
			"datapath.max_flows: 20000 -> 30000: the tables keep their size over a restart",
			"1024-33279 -> 2000-2999: needs a restart, which loses nothing\n",
		}},
		{"an interface that does not exist", "[eth0]", "[eth0, eth9]", []string{"attach to eth9", "ip link shows"}},
		{"more than there is room for", "forward: dsr", "forward: dsr, table_size: 1048573", []string{"restart the daemon, which makes the table larger"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.file("sluice.yaml", strings.Replace(string(good), tc.from, tc.to, 1))
			for _, args := range [][]string{{"reload", "--dry-run"}, {"reload"}} {
				got := r.wantRun(exitFailed, "lb1", args...)
				for _, want := range append(tc.want, "sluice: the daemon goes on with the configuration that it has\n") {
					if !strings.Contains(got.stderr, want) || got.stdout != "" {
						t.Errorf("%v: stdout %q, stderr %q, want %q in it", args, got.stdout, got.stderr, want)
					}
				}
			}
			if s := r.mustStatus("lb1"); len(s.Services) != 3 || len(s.Problems) > 0 {
				t.Errorf("%d services, problems %q", len(s.Services), s.Problems)
			}
		})
	}
	r.waitEvents("lb1", soon, "daemon.reload applied", "daemon.reload refused")

	for _, e := range r.events("lb1") {
		if strings.Contains(e.Text, "{name: dsr") {
			t.Errorf("an event has a line of the file: %s", e.Text)
		}
	}

	// SIGHUP is a reload, too. A server that goes keeps its connections.
	write(b1+", "+b3, b4)
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.waitStatus("lb1", soon, "two services", func(s control.Status) error {
		if len(s.Services) != 2 {
			return fmt.Errorf("%d services", len(s.Services))
		}
		return nil
	})
	r.waitReady("lb1")
	crowd.talk("after a server has gone")
	r.answersMore(requests, 50)
	if now := r.since("lb1", "VI_1"); !now.Equal(began) || r.mustStatus("lb1").PID != daemon.ID().PID {
		t.Errorf("VI_1 is active since %v, was since %v", now, began)
	}
	r.wantNoFailure(requests)
	if err := daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := r.wantRun(exitFailed, "lb1", "reload"); !strings.Contains(got.stderr, "reload: ask the daemon on") || !strings.Contains(got.stderr, "start it first") {
		t.Errorf("without a daemon: %q", got.stderr)
	}
}

// The file that names another socket has a mistake, so nobody is asked there: that the
// daemon does not run is not known, and not said.
func TestReloadWithAFileThatDoesNotTellTheSocket(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name, file, want string
		args             []string
	}{
		{"a mistake", "admin: {socket: " + dir + "/other.sock}\nnone: 1\n",
			"the daemon may have another admin.socket, which " + dir + "/sluice.yaml does not tell as it is: ", nil},
		{"a host that the roster has not", "nodes: [{name: lb1, address: 192.0.2.1}]\n", "say with --node", nil},
		{"no mistake", "admin: {socket: " + dir + "/other.sock}\n", "/other.sock: sluice is not running: start it first", nil},
		{"the node is named", "nodes: [{name: lb1, address: 192.0.2.1}]\n", "/sluice.sock: sluice is not running: start it first", []string{"--node", "lb1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(dir, "sluice.yaml")
			if err := os.WriteFile(file, []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"sluice", "--run-dir", dir, "reload", "-c", file}, tc.args...), &stdout, &stderr)
			if code != exitFailed || !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("code %d, stderr %q, want %q", code, stderr.String(), tc.want)
			}
		})
	}
}

// On a host that the roster does not have, who names a file has to name the node, and is
// told so.
func TestStatusOfAHostThatIsNotInTheRoster(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, []byte("nodes: [{name: lb1, address: 192.0.2.1}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"sluice", "--run-dir", dir, "--pin-dir", dir, "status", "-c", file}, &stdout, &stderr)
	if want := "is not listed in nodes: say with --node"; code != exitFailed || !strings.Contains(stderr.String(), want) {
		t.Errorf("code %d, stderr %q, want %q", code, stderr.String(), want)
	}
}

// Instances that change begin anew, alone, and their VIPs stay meanwhile; those
// that come and go do so with their VIPs; the priority and what is tracked change on
// the way.
func TestReloadOfVRRP(t *testing.T) {
	r := webRig(t, 2)
	other, more := netip.MustParseAddr("192.0.2.103"), netip.MustParseAddr("192.0.2.104")
	write := func(checks string, instances ...string) string {
		return r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(dsr), checks, vrrps(instances...))
	}
	const (
		first  = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [192.0.2.100/24]}`
		second = `{name: VI_2, interface: eth0, virtual_router_id: 52, advertisement_interval: 200ms, addresses: [192.0.2.103/24]}`
		third  = `{name: VI_3, interface: eth0, virtual_router_id: 53, advertisement_interval: 200ms, addresses: [192.0.2.104/24]}`
	)
	daemon := r.start("lb1", write("", first, second))
	r.waitReady("lb1")
	requests := r.prober(dsrService)
	r.answersMore(requests, 20)
	began, pid := r.since("lb1", "VI_2"), r.mustStatus("lb1").PID

	// While the first one begins anew nobody misses its VIP.
	absent := make(chan int)
	stop := make(chan struct{})
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				absent <- n
				return
			default:
			}
			if has, err := r.host("lb1").AddrOn(vip); err != nil || !has {
				n++
			}
		}
	}()
	write("", strings.Replace(first, "200ms", "300ms", 1), second, third)
	got := r.wantRun(0, "lb1", "reload").stdout
	if want := "vrrp VI_1: interval: begins anew, its VIPs stay or are handed over\nvrrp VI_3: added\n"; got != want {
		t.Errorf("the reload says %q, want %q", got, want)
	}
	r.waitReady("lb1")
	close(stop)
	if n := <-absent; n > 0 {
		t.Errorf("the VIP was away in %d looks", n)
	}
	if !r.has("lb1", more) {
		t.Errorf("%v of the new instance is not there", more)
	}
	r.answersMore(requests, 20)

	// What is tracked, and the priority: no instance begins anew.
	write("checks:\n  - {name: gone, type: process, process: no-such-process, interval: 100ms}\n",
		strings.Replace(strings.Replace(first, "200ms", "300ms", 1), "addresses", "track: [{check: gone, weight: -7}], addresses", 1),
		strings.Replace(second, "addresses", "priority: 150, addresses", 1), third)
	before := r.since("lb1", "VI_1")
	r.wantRun(0, "lb1", "reload")
	r.waitStatus("lb1", soon, "other priorities", func(s control.Status) error {
		var priorities []uint8
		for _, i := range s.VRRP {
			priorities = append(priorities, i.Priority)
		}
		if !slices.Equal(priorities, []uint8{93, 150, 100}) {
			return fmt.Errorf("priorities %v", priorities)
		}
		return nil
	})
	if now := r.since("lb1", "VI_1"); !now.Equal(before) {
		t.Errorf("VI_1 has begun anew")
	}

	// One goes, with its VIP; the others do not notice.
	write("", strings.Replace(first, "200ms", "300ms", 1), strings.Replace(second, "addresses", "priority: 150, addresses", 1))
	r.wantRun(0, "lb1", "reload")
	if r.has("lb1", more) || !r.has("lb1", other) || !r.has("lb1", vip) {
		t.Errorf("%v is there: %v; %v: %v; %v: %v", more, r.has("lb1", more), other, r.has("lb1", other), vip, r.has("lb1", vip))
	}
	s := r.mustStatus("lb1")
	var priorities []uint8
	for _, i := range s.VRRP {
		priorities = append(priorities, i.Priority)
	}
	if diff := cmp.Diff([]uint8{100, 150}, priorities); diff != "" || len(s.Checks) != 0 || s.PID != pid {
		t.Errorf("%d checks, process %d; priorities (-want +got):\n%s", len(s.Checks), s.PID, diff)
	}
	if now := r.since("lb1", "VI_2"); !now.Equal(began) {
		t.Errorf("VI_2 is active since %v, was since %v", now, began)
	}
	r.wantNoFailure(requests)

	// The data plane has forgotten it, too.
	if err := daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(got, "virtual router 52 on") || strings.Contains(got, "virtual router 53 on") {
		t.Errorf("without a daemon, status says\n%s", got)
	}
}

// Interfaces and monitoring come and go with a reload; what goes on is not
// disturbed by it.
func TestReloadOfInterfaces(t *testing.T) {
	r := newRig(t, testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: interfaces(on("lan", "192.0.2.200/24"))},
		{Name: "lb1", Node: true, Interfaces: interfaces(on("lan", "192.0.2.1/24"), second("back", "198.51.100.1/24"))},
		{Name: "b1", Interfaces: interfaces(on("lan", "192.0.2.11/24"))},
		{Name: "b2", Interfaces: interfaces(on("back", "198.51.100.11/24")), Routes: []testenv.RouteSpec{to("", "198.51.100.1")}},
	}})
	for _, name := range []string{"b1", "b2"} {
		r.serve(name, r.host(name).NameHandler())
	}
	write := func(interfaces, servers, listen string) string {
		return r.file("sluice.yaml", strings.Replace(roster, "[eth0]", "["+interfaces+"]", 1), pool(servers), services(nat), vrrps(pair),
			"admin: {listen: "+listen+"}\n")
	}
	const b1, b2 = "{address: 192.0.2.11}", "{address: 198.51.100.11}"
	dial := func(port int) error {
		return r.host("lb1").Do(func() error {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), atOnce)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
	r.start("lb1", write("eth0", b1, `"127.0.0.1:9780"`))
	r.waitReady("lb1")
	requests := r.prober(natService)
	r.answersMore(requests, 20)
	if err := dial(9780); err != nil {
		t.Error(err)
	}

	write("eth0, eth1", b1+", "+b2, `"127.0.0.1:9781"`)
	r.wantRun(0, "lb1", "reload")
	s := r.waitReady("lb1")
	if len(s.Interfaces) != 2 || r.xdpProgram("lb1", "eth1") == 0 {
		t.Errorf("interfaces are %v, program %d on eth1", s.Interfaces, r.xdpProgram("lb1", "eth1"))
	}
	r.wantServing(natService, "b1", "b2")
	if old, now := dial(9780), dial(9781); old == nil || now != nil {
		t.Errorf("port 9780: %v, port 9781: %v", old, now)
	}

	write("eth0", b1, "none")
	r.wantRun(0, "lb1", "reload")
	s = r.waitReady("lb1")
	if len(s.Interfaces) != 1 || r.xdpProgram("lb1", "eth1") != 0 || r.xdpProgram("lb1", "eth0") == 0 {
		t.Errorf("interfaces are %v, programs %d and %d", s.Interfaces, r.xdpProgram("lb1", "eth0"), r.xdpProgram("lb1", "eth1"))
	}
	if err := dial(9781); err == nil {
		t.Error("somebody answers on port 9781")
	}
	r.wantServing(natService, "b1")
	r.answersMore(requests, 20)
	got, err := requests.Stop()
	if err != nil {
		t.Fatal(err)
	}
	// Connections of a server whose interface goes go with it.
	if got.Failed > got.Answered/20 {
		t.Errorf("%d of %d requests failed: %v", got.Failed, got.Sent, got.Errors)
	}
}

// With a peer an instance that begins anew gives its VIPs away, and comes back, as
// in planned moves.
func TestReloadHandsOver(t *testing.T) {
	r := webRig(t, 2)
	write := func(delay string) string {
		return r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(dsr),
			vrrps(`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, preempt_delay: `+delay+`, addresses: [192.0.2.100/24]}`))
	}
	r.startPair(write("0s"))
	requests := r.prober(dsrService)
	r.answersMore(requests, 50)
	write("300ms")
	if got, want := r.wantRun(0, "lb1", "reload").stdout, "vrrp VI_1: preempt_delay: begins anew, its VIPs stay or are handed over\n"; got != want {
		t.Errorf("the reload says %q, want %q", got, want)
	}
	r.waitEvents("lb1", soon, "vrrp.state VI_1: active -> initialize: released: 192.0.2.2 took over",
		"daemon.reload applied", "vrrp.state VI_1: backup -> active: preempting 192.0.2.2 with priority 99")
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.answersMore(requests, 100)
	r.wantNoFailure(requests)
}
