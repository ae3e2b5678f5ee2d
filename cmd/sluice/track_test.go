package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// localNginx is a pair that holds a VIP for the nginx on each node, as in the
// classic set-up: a script that restarts it, and the VIP that moves when that does
// not help.
type localNginx struct {
	*rig
	files map[string]string
}

func newLocalNginx(t *testing.T) *localNginx {
	t.Helper()
	nginx := testenv.RequireProgram(t, "nginx")
	r := &localNginx{newRig(t, testenv.Default(0)), map[string]string{}}
	for _, node := range []string{"lb1", "lb2"} {
		r.startNginx(node)
		dir := filepath.Join(r.host(node).Dir(), "nginx")
		// As an nginx that goes into the background; its configuration keeps it in the foreground.
		restart := r.file(node+"-restart", "#!/bin/sh",
			"echo restart >> "+r.log(node, "restarts"),
			fmt.Sprintf("test -e %s/nginx.conf || exit 7", dir),
			fmt.Sprintf("setsid %s -p %s -c %s/nginx.conf -e %s/error.log >/dev/null 2>&1 </dev/null &", nginx, dir, dir, dir))
		hook := r.file(node+"-hook", "#!/bin/sh", "grep SigIgn: /proc/self/status > "+r.log(node, "ignored"), `echo "$1 $SLUICE_INSTANCE $SLUICE_OLD_STATE $SLUICE_NEW_STATE" >> `+r.log(node, "hooks"))
		for _, script := range []string{restart, hook} {
			if err := os.Chmod(script, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		r.files[node] = r.file(node+".yaml", roster, fmt.Sprintf(`
checks:
  - name: web_ok
    type: http
    urls: ["http://127.0.0.1/", "http://127.0.0.1/healthz"]
    interval: 500ms
    recover: {command: [%s], wait: 1s}
`, restart), vrrps(fmt.Sprintf(`name: VI_1
    interface: eth0
    virtual_router_id: 51
    advertisement_interval: 200ms
    addresses: [192.0.2.100/24]
    track: [{check: web_ok, weight: -2}]
    notify: {active: [%[1]s, active], backup: [%[1]s, backup], fault: [%[1]s, fault], any: [%[1]s, any]}`, hook)))
	}
	return r
}

func (r *localNginx) log(node, name string) string {
	return filepath.Join(r.lab.Dir(), node+"."+name)
}

// lines are what a script of a node has written so far.
func (r *localNginx) lines(node, name string) []string {
	r.Helper()
	b, err := os.ReadFile(r.log(node, name))
	if err != nil && !os.IsNotExist(err) {
		r.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (r *localNginx) startNginx(node string) {
	r.Helper()
	if _, err := testenv.StartNginx(r.Context(), r.host(node), testenv.NginxConfig{}); err != nil {
		r.Fatal(err)
	}
}

// endNginx ends the nginx of a node, whoever has started it.
func (r *localNginx) endNginx(node string) {
	r.Helper()
	file := filepath.Join(r.host(node).Dir(), "nginx", "nginx.pid")
	b, err := os.ReadFile(file)
	if err != nil {
		r.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		r.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		r.Fatal(err)
	}
}

// waitCheck waits until the check of a node stands as wanted.
func (r *localNginx) waitCheck(node, what string, f func(control.CheckStatus) bool) {
	r.Helper()
	r.waitStatus(node, 2*soon, what, func(s control.Status) error {
		if len(s.Checks) != 1 || !f(s.Checks[0]) {
			return fmt.Errorf("checks are %+v", s.Checks)
		}
		return nil
	})
}

func (r *localNginx) wantAnswers(from string) {
	r.Helper()
	to := netip.AddrPortFrom(vip, 80)
	if got := r.answers("client", to, 10); got[from+"\n"]+got[from] != 10 {
		r.Errorf("%v is served by %v, want %s", to, got, from)
	}
}

// The classic set-up: nginx ends, the check fails, it is started again and the VIP
// stays. When that does not help the VIP moves, although a weight of -2 alone would
// do; when nginx is back, so is the VIP.
func TestNginxOnTheNodeIsRecoveredOrTheVIPMoves(t *testing.T) {
	r := newLocalNginx(t)
	daemons := map[string]*testenv.Process{}
	for _, node := range []string{"lb1", "lb2"} {
		daemons[node] = r.start(node, r.files[node])
		r.waitCheck(node, "a passing check", func(c control.CheckStatus) bool { return c.Verdict == "up" })
	}
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.wantAnswers("lb1")
	if got := r.lines("lb1", "restarts"); got[0] != "" {
		t.Errorf("nginx was restarted without a reason: %v", got)
	}

	// It helps.
	since := r.mustStatus("lb1").VRRP[0].Since
	r.endNginx("lb1")
	r.waitCheck("lb1", "a recovery", func(c control.CheckStatus) bool { return c.Recovering && c.Verdict == "up" && c.LastError != "" })
	r.waitCheck("lb1", "a check that passes again", func(c control.CheckStatus) bool {
		return !c.Recovering && c.Verdict == "up" && c.LastError == "" && c.Attempts == 0
	})
	r.wantAnswers("lb1")
	if got := r.mustStatus("lb1").VRRP[0]; !got.Since.Equal(since) || got.State != "active" || got.Tracking.Priority != 100 {
		t.Errorf("instance is %s since %v with %+v, want it undisturbed since %v", got.State, got.Since, got.Tracking, since)
	}
	if got := r.lines("lb1", "restarts"); len(got) != 1 {
		t.Errorf("nginx was restarted %d times, want once", len(got))
	}

	// It does not.
	conf := filepath.Join(r.host("lb1").Dir(), "nginx", "nginx.conf")
	if err := os.Rename(conf, conf+".away"); err != nil {
		t.Fatal(err)
	}
	r.endNginx("lb1")
	r.waitVIP(2*soon, vip, "lb2", "lb1")
	r.wantAnswers("lb2")
	r.waitStatus("lb1", soon, "the fault", func(s control.Status) error {
		if got := s.VRRP[0]; got.State != "fault" || !strings.Contains(got.Reason, "check web_ok fails, and recovery was in vain: http://127.0.0.1/: connect: connection refused") {
			return fmt.Errorf("it is %s: %s", got.State, got.Reason)
		}
		return nil
	})
	text := r.wantRun(0, "lb1", "status").stdout
	for _, want := range []string{"problem: check web_ok fails: http://127.0.0.1/", "tracks check web_ok (weight -2): failing", "recovery was in vain"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}

	// An operator mends it.
	r.startNginx("lb1")
	r.waitVIP(2*soon, vip, "lb1", "lb2")
	r.wantAnswers("lb1")
	if got := r.lines("lb1", "restarts"); len(got) != 2 {
		t.Errorf("nginx was restarted %d times, want twice", len(got))
	}
	// Hooks have seen it all, in order, and the end as well.
	r.stop(daemons["lb1"])
	// A program that the daemon runs is ended by the end of a pipe, as any other.
	ignored, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(r.lines("lb1", "ignored")[0], "SigIgn:")), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if ignored>>(int(syscall.SIGPIPE)-1)&1 != 0 {
		t.Errorf("a hook ignores SIGPIPE: %#x", ignored)
	}
	want := []string{
		"backup VI_1 initialize backup", "any VI_1 initialize backup", "active VI_1 backup active", "any VI_1 backup active",
		"fault VI_1 active fault", "any VI_1 active fault", "backup VI_1 fault backup", "any VI_1 fault backup",
		"active VI_1 backup active", "any VI_1 backup active", "any VI_1 active initialize",
	}
	if got := r.lines("lb1", "hooks"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("hooks saw\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// trackingPair tracks an interface that brings nothing but its link, and a service.
const trackingPair = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms,
     addresses: [192.0.2.100/24, 192.0.2.101/24], track: [{interface: eth1}, {service: nat, weight: -10}]}`

// A tracked interface without a carrier faults its instance, and a service below
// its quorum lowers the priority: where both nodes see that the VIP stays, where
// one does it moves.
func TestTrackedInterfaceAndService(t *testing.T) {
	spec := testenv.Default(2)
	for i := range spec.Hosts {
		if spec.Hosts[i].Node {
			spec.Hosts[i].Interfaces = append(spec.Hosts[i].Interfaces, testenv.InterfaceSpec{Name: "eth1", Segment: "back"})
		}
	}
	r := newRig(t, spec)
	servers := map[string]*testenv.HTTPServer{}
	for _, name := range []string{"b1", "b2"} {
		servers[name] = r.serve(name, r.host(name).NameHandler())
	}
	file := r.file("sluice.yaml", roster, `
pools:
  - name: web
    `+probes+`
    servers: [{address: 192.0.2.11}, {address: 192.0.2.12}]
`, services(`{name: nat, address: "192.0.2.101:80", pool: web, quorum: 2}`), vrrps(trackingPair))
	for _, node := range []string{"lb1", "lb2"} {
		r.start(node, file)
	}
	r.waitReady("lb1")
	r.waitBackup("lb2")

	// The interface.
	if err := r.host("lb1").LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.waitStatus("lb1", soon, "the fault", func(s control.Status) error {
		i, err := instanceOf(s, "VI_1")
		if err != nil || i.State != "fault" || i.Reason != "interface eth1 has no carrier" {
			return fmt.Errorf("it is %s: %s, %w", i.State, i.Reason, err)
		}
		return nil
	})
	if err := r.host("lb1").LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitBackup("lb2")

	// On both: the VIP stays where it is, with the least priority, until one is mended.
	for _, node := range []string{"lb2", "lb1"} {
		if err := r.host(node).LinkDown("eth1"); err != nil {
			t.Fatal(err)
		}
	}
	r.waitStatus("lb1", soon, "the last resort", func(s control.Status) error {
		i, err := instanceOf(s, "VI_1")
		if err != nil || !i.LastResort || i.State != "active" || i.Priority != 1 {
			return fmt.Errorf("it is %s with priority %d: %s, %w", i.State, i.Priority, i.Reason, err)
		}
		if want := "vrrp instance VI_1 is active as the last resort, no fit node is active: interface eth1 has no carrier"; !slices.Contains(s.Problems, want) {
			return fmt.Errorf("problems are %q, want %q", s.Problems, want)
		}
		return nil
	})
	r.wantOnOneNode("lb1", takeover)
	if err := r.host("lb2").LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb2", "lb1")
	if err := r.host("lb1").LinkUp("eth1"); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitBackup("lb2")

	// The service, on both.
	priorities := func(lb1, lb2 uint8) {
		t.Helper()
		for node, want := range map[string]uint8{"lb1": lb1, "lb2": lb2} {
			r.waitStatus(node, soon, fmt.Sprintf("priority %d", want), func(s control.Status) error {
				if i, err := instanceOf(s, "VI_1"); err != nil || i.Priority != want || i.Tracking.Priority != want {
					return fmt.Errorf("priority %d, tracking %+v: %w", i.Priority, i.Tracking, err)
				}
				return nil
			})
		}
	}
	if err := servers["b2"].Close(); err != nil {
		t.Fatal(err)
	}
	priorities(90, 89)
	r.wantOnOneNode("lb1", 2*takeover)
	text := r.wantRun(0, "lb1", "status").stdout
	for _, want := range []string{"priority 90 = 100 - 10 (nat)\n", "tracks service nat (weight -10): failing: service nat is below its quorum: 1 healthy, 2 wanted",
		"tracks interface eth1 (a failure is a fault): passing"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
	servers["b2"] = r.serve("b2", r.host("b2").NameHandler())
	priorities(100, 99)

	// And on one alone.
	r.wantRun(0, "lb1", "backend", "disable", "web", "192.0.2.12")
	priorities(90, 99)
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.wantRun(0, "lb1", "backend", "reset", "web", "192.0.2.12")
	r.waitVIP(soon, vip, "lb1", "lb2")
}
