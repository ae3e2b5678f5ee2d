// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsSession in the environment makes this test binary a process that raises its
// session's share, and says what that is then.
const actAsSession = "TEST_BINARY_RAISES_ITS_SESSION"

func tellSession() (string, error) {
	if err := RaiseSession(); err != nil {
		return "", err
	}
	share, err := os.ReadFile(sessionFile)
	return string(share), err
}

func TestRaiseSession(t *testing.T) {
	testenv.RequireRoot(t)
	if _, err := os.Stat(sessionFile); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the kernel knows no shares of sessions")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"of its own", []string{program}, " nice -10"},
		{"a shell's", []string{"/bin/sh", "-c", `"$0"; exit $?`, program}, " nice 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(tc.args[0], tc.args[1:]...)
			cmd.Env = append(os.Environ(), actAsSession+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), tc.want) {
				t.Errorf("%v: %q, want ...%q", err, out, tc.want)
			}
		})
	}
}
