// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// The kernel deals out CPUs to sessions first, each with all of its processes, and then
// within them (autogroups, sched(7)). This is where a session's share is read and set.
const (
	sessionFile = "/proc/self/autogroup"
	// sessionNice is some ten times the share of an ordinary session, as CPUWeight=1000
	// is of a service.
	sessionNice = "-10"
)

// RaiseSession gives the calling process's session a greater share of the CPUs than
// others have. With the same share, kernels were seen (Linux 6.18) that let it wait for
// its turn for seconds, beside a session that computes without a rest. A session that
// another process leads, a shell say, stays as it is: it is not this process's alone.
func RaiseSession() error {
	leader, err := unix.Getsid(0)
	if err != nil {
		return fmt.Errorf("find the session: %w", err)
	}
	if leader != os.Getpid() {
		return nil
	}
	f, err := os.OpenFile(sessionFile, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel knows no shares of sessions
	}
	if err != nil {
		return fmt.Errorf("raise the session's share of the CPUs: %w", err)
	}
	_, err = f.WriteString(sessionNice)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("raise the session's share of the CPUs: %w", err)
	}
	return nil
}
