package main

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
)

// The command says what it has done, and what is wrong with what it was asked.
func TestBackendCommand(t *testing.T) {
	r := webRig(t, 3)
	if got := r.wantRun(exitFailed, "lb1", "backend", "drain", "web", "192.0.2.11"); !strings.Contains(got.stderr, "not running") {
		t.Errorf("without a daemon: %q", got.stderr)
	}
	file := r.usual()
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	for _, tc := range []struct {
		name string
		code int
		args []string
		want string
	}{
		{"nothing", exitUsage, nil, "missing"},
		{"no such action", exitUsage, []string{"stop"}, `"stop" is no action`},
		{"no address", exitUsage, []string{"drain", "web"}, "want 2 arguments"},
		{"no weight", exitUsage, []string{"weight", "web", "192.0.2.11"}, "want 3 arguments"},
		{"a weight that is none", exitUsage, []string{"weight", "web", "192.0.2.11", "many"}, `weight "many"`},
		{"no such pool", exitFailed, []string{"drain", "wbe", "192.0.2.11"}, "there is no pool or service"},
		{"no such server", exitFailed, []string{"drain", "web", "192.0.2.99"}, "has no server"},
	} {
		if got := r.wantRun(tc.code, "lb1", append([]string{"backend"}, tc.args...)...); !strings.Contains(got.stderr, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got.stderr, tc.want)
		}
	}
	// nat knows at once that no connection is left; so does a disabled backend.
	got := r.wantRun(0, "lb1", "backend", "drain", "nat", "192.0.2.11", "--wait", "--timeout", "30s")
	if !strings.Contains(got.stdout, "192.0.2.11 of nat: drained") || !strings.Contains(got.stdout, "nothing is left") {
		t.Errorf("drain --wait says %q", got.stdout)
	}
	r.wantServing(natService, "b2", "b3")
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantRun(0, "lb1", "backend", "disable", "web", "192.0.2.12")
	r.eventually(soon, "the disabled backend to go", func() (bool, error) {
		s, err := r.status("lb1")
		if err != nil {
			return false, err
		}
		v, err := serviceOf(s, "dsr")
		return err == nil && v.Backends[1].State == "disabled" && v.Backends[1].Slots == 0, err
	})
	r.wantServing(dsrService, "b1", "b3")
	if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "disabled") || !strings.Contains(text, "drained") {
		t.Errorf("status says\n%s", text)
	}
	// Changes outlive the daemon.
	r.kill(daemon)
	daemon = r.start("lb1", file)
	r.waitStatus("lb1", soon, "the change again", func(s2 control.Status) error {
		v, err := serviceOf(s2, "dsr")
		if err == nil && v.Backends[1].State != "disabled" {
			err = fmt.Errorf("it is %s", v.Backends[1].State)
		}
		return err
	})
	r.wantRun(0, "lb1", "backend", "reset", "web", "192.0.2.12")
	r.wantRun(0, "lb1", "backend", "enable", "nat", "192.0.2.11")
	r.waitReady("lb1")
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantServing(natService, "b1", "b2", "b3")
	// What is left is shown, for as long as the command may wait.
	for _, tc := range []struct {
		scope, left string
		service     netip.AddrPort
	}{
		{"nat", " left", natService},
		{"web", "others are found while the window of ", dsrService},
	} {
		const server = "192.0.2.13"
		conns := r.keepOpen(tc.service, 40)
		got := r.wantRun(exitFailed, "lb1", "backend", "drain", tc.scope, server, "--wait", "--timeout", "2s")
		if !regexp.MustCompile(`\b\d+ connections?\b`).MatchString(got.stdout) || !strings.Contains(got.stdout, tc.left) ||
			!strings.Contains(got.stderr, server+": not drained after 2s") {
			t.Errorf("drain of %s --wait says %q, %q", tc.scope, got.stdout, got.stderr)
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		r.wantRun(0, "lb1", "backend", "reset", tc.scope, server)
	}
	r.stop(daemon)
}

// keepOpen opens connections that stay open.
func (r *rig) keepOpen(service netip.AddrPort, count int) (all []net.Conn) {
	r.Helper()
	for range count {
		c, err := r.host("client").Dial(r.Context(), "tcp", service.String())
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { _ = c.Close() }) // it may be closed already
		all = append(all, c)
	}
	return all
}

// What a change has not reached yet is not over.
func TestRemaining(t *testing.T) {
	status := func(backends ...control.BackendStatus) control.Status {
		for i := range backends {
			backends[i].Address = netip.MustParseAddrPort("192.0.2.11:80")
		}
		return control.Status{Services: []control.ServiceStatus{{Name: "web", Pool: "web", Backends: backends}}}
	}
	drain := control.Change{Action: control.Drain, Scope: "web", Address: "192.0.2.11"}
	for _, tc := range []struct {
		name   string
		s      control.Status
		change control.Change
		left   bool
		want   string
	}{
		{"another change is still being written", status(control.BackendStatus{}), drain, true, "the change is being written"},
		{"it serves", status(control.BackendStatus{Override: "drained", Slots: 5}), drain, true, "it serves: 5 slots"},
		{"somebody has enabled it again", status(control.BackendStatus{Slots: 5}), drain, true, "it serves: 5 slots"},
		{"nothing was counted", status(control.BackendStatus{Override: "drained", Pinned: -1}), drain, true, "counting its connections"},
		{"connections", status(control.BackendStatus{Override: "drained, weight 2", Pinned: 1}), drain, true, "1 connection left"},
		{"none", status(control.BackendStatus{Override: "drained"}), drain, false, "nothing is left"},
		{"in one of two services", status(control.BackendStatus{Override: "drained"}, control.BackendStatus{}), drain, true, "the change is being written"},
		{"disabled", status(control.BackendStatus{Override: "drained"}), control.Change{Action: control.Disable, Scope: "web", Address: "192.0.2.11:80"}, true, "the change is being written"},
		{"no weight", status(control.BackendStatus{Override: "enabled, weight 0"}), control.Change{Action: control.Weight, Scope: "web", Address: "192.0.2.11:80"}, false, "nothing is left"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if left, text := remaining(tc.s, tc.change); left != tc.left || text != tc.want {
				t.Errorf("got %v, %q, want %v, %q", left, text, tc.left, tc.want)
			}
		})
	}
}
