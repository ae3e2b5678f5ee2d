// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"fmt"
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

func tellSession() string {
	err := RaiseSession()
	share, readErr := os.ReadFile(sessionFile)
	return fmt.Sprint(strings.TrimSpace(string(share)), " ", errors.Join(err, readErr))
}

func TestRaiseSession(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireSessions(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"of its own", []string{program}, " nice -10 <nil>"},
		{"a shell's", []string{"/bin/sh", "-c", `"$0"; exit $?`, program}, " nice 0 " + ErrNotLeader.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(tc.args[0], tc.args[1:]...)
			cmd.Env = append(os.Environ(), actAsSession+"=1", actAsEngine+"=") // other tests set it
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), tc.want) {
				t.Errorf("%v: %q, want ...%q", err, out, tc.want)
			}
		})
	}
}
