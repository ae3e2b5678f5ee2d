package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A daemon that is started as any program is, outside of a lab, which does the same for all of
// its programs, has more of the CPUs than other sessions.
func TestDaemonHasAGreaterShare(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireSessions(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, []byte("admin: {listen: none}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), self, "--run-dir", dir, "--pin-dir", filepath.Join(dir, "pins"), "--state-dir", dir, "run", "-c", file)
	cmd.Env = append(os.Environ(), actAsSluice+"=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, soon, "the daemon", func() (bool, error) {
		_, err := control.Ask(t.Context(), filepath.Join(dir, "sluice.sock"))
		return err == nil, nil
	})
	share, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid))
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(share)), " nice -10") {
		t.Errorf("its share is %q, %v, want nice -10", share, err)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
}
