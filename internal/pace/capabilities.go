// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// lastCapability is above all that there are; the kernel says which is one.
const lastCapability = 63

// keeps are the capabilities of an engine's process: that memory which it takes later
// can be locked as well. The rest it has no use for. Its sockets were opened by the
// daemon, and whoever may open one is not asked again; real-time priority it has from
// the thread that starts it.
var keeps = []uintptr{unix.CAP_IPC_LOCK}

// shedCapabilities bounds what the programs may do that this thread starts, whoever's
// they are: to what an engine's process needs. Where that is refused, as it is without
// CAP_SETPCAP, they get what this process has. The thread is bounded for good.
func shedCapabilities() error {
	for c := uintptr(0); c <= lastCapability; c++ {
		if slices.Contains(keeps, c) {
			continue
		}
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err {
		case nil:
		case unix.EINVAL: // the kernel has no more
			return nil
		default:
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}
