// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel deals out CPUs to sessions first, each with all of its processes, and then
// within them (autogroups, sched(7)). This is where it is said whether it does so, and where a
// session's share is read and set.
const (
	sessionsSwitch = "/proc/sys/kernel/sched_autogroup_enabled"
	sessionFile    = "/proc/self/autogroup"
	// sessionNice is some ten times the share of an ordinary session, as CPUWeight=1000
	// is of a service.
	sessionNice = "-10"
)

// ErrNotLeader says that a session is not the calling process's alone.
var ErrNotLeader = errors.New("another process leads the session")

// RaiseSession gives the calling process's session, with all processes that it starts, a
// greater share of the CPUs than others have. With the same share, kernels were seen
// (Linux 6.18) that let it wait for its turn for seconds, beside a session that computes
// without a rest. A session that another process leads, a shell say, stays as it is: the
// error is ErrNotLeader. Where the kernel knows no shares of sessions nothing is done.
func RaiseSession() error {
	on, err := os.ReadFile(sessionsSwitch)
	if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(on)) == "0" {
		return nil
	}
	leader, err := unix.Getsid(0)
	if err != nil {
		return fmt.Errorf("find the session: %w", err)
	}
	if leader != os.Getpid() {
		return ErrNotLeader
	}
	f, err := os.OpenFile(sessionFile, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set the session's share: %w", err)
	}
	_, err = f.WriteString(sessionNice)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set the session's share: %w", err)
	}
	return nil
}
