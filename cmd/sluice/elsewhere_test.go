package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// apart starts the daemon on a node in a mount namespace of its own, as `ip netns
// exec` does, with its pins on a file system that is mounted there alone.
func (r *rig) apart(on, file, pins string) *testenv.Process {
	r.Helper()
	own := sluice(r.host(on), "--pin-dir", pins, "run", "-c", file, "--node", on)
	cmd := exec.Command("unshare", append([]string{"--mount", "--"}, own.Args...)...)
	cmd.Env = own.Env
	p, err := r.host(on).Start("sluice", cmd)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// A daemon whose pins are in another mount namespace is not taken for none.
func TestPinsInAnotherMountNamespace(t *testing.T) {
	r := newRig(t, lab1())
	pins := filepath.Join(r.host("lb1").Dir(), "own")
	file := r.file("sluice.yaml", roster, webPool, services(dsr))
	daemon := r.apart("lb1", file, pins)
	r.waitStatus("lb1", soon, "an answer", func(control.Status) error { return nil })
	syn := []string{"explain", "--src", "203.0.113.7:4000", "--dst", "192.0.2.100:80"}
	commands := [][]string{syn, {"flows"}, {"drops", "--interval", "10ms"}}

	enter := fmt.Sprintf("nsenter -t %d -m -n", daemon.ID().PID)
	for _, args := range commands {
		got := r.wantRun(exitFailed, "lb1", append([]string{"--pin-dir", pins}, args...)...)
		for _, want := range []string{fmt.Sprintf("(pid %d) runs", daemon.ID().PID), enter, "nsenter --net="} {
			if !strings.Contains(got.stderr, want) || strings.Count(got.stderr, "\n") != 1 || strings.Contains(got.stderr, "start it") {
				t.Errorf("%v says %q, want one line with %q", args, got.stderr, want)
			}
		}
		// What it says helps, whatever namespace that is said in.
		cmd := sluice(r.host("lb1"), append([]string{"--pin-dir", pins}, args...)...)
		inside := exec.CommandContext(t.Context(), "nsenter", append(strings.Fields(enter)[1:], cmd.Args...)...)
		inside.Env = cmd.Env
		if text, err := inside.CombinedOutput(); err != nil {
			t.Errorf("%v after %s: %v: %s", args, enter, err, text)
		}
	}
	if got := r.wantRun(exitFailed, "lb1", "flows"); !strings.Contains(got.stderr, "give the --pin-dir that it has") {
		t.Errorf("flows with another --pin-dir says %q", got.stderr)
	}
	r.stop(daemon)
	const warning = "mount namespace that ends with this process"
	if n := strings.Count(daemon.Tail(40), warning); n != 1 {
		t.Errorf("the daemon says %d times that its pins end with it, want once:\n%s", n, daemon.Tail(40))
	}

	daemon = r.start("lb1", file)
	r.waitStatus("lb1", soon, "an answer", func(control.Status) error { return nil })
	r.wantRun(0, "lb1", "flows")
	r.stop(daemon)
	// The log is that of both.
	if n := strings.Count(daemon.Tail(40), warning); n != 1 {
		t.Errorf("a daemon whose pins outlive it warns:\n%s", daemon.Tail(40))
	}

	r.start("lb1", r.file("none.yaml", roster, vrrps(pair)))
	r.waitStatus("lb1", soon, "an answer", func(control.Status) error { return nil })
	if got := r.wantRun(exitFailed, "lb1", "flows"); !strings.Contains(got.stderr, "has no service") {
		t.Errorf("flows of a daemon without a service says %q", got.stderr)
	}
}
