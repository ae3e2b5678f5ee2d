package main

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sluice-lb/sluice/internal/track"
)

// stopWait is how long the daemon may take to stop: the wait until peers have all
// connections, and until one has the VIPs, the hooks of the last changes, one instance
// after the other, other nodes that take over what is spread, requests that are under way,
// and what else there is to do.
func (n *node) stopWait() time.Duration {
	const rest = 10 * time.Second
	var longest time.Duration
	for _, r := range n.instances() {
		longest = max(longest, r.ReleaseWait())
	}
	if len(n.config().HTTP.Servers) > 0 {
		longest += drainHTTP
	}
	if len(spreadVIPs(n.config())) > 0 {
		longest += leaveSpreadWait
	}
	return longest + n.peersWait() + time.Duration(len(n.instances()))*track.LastHooks + rest
}

// stopping tells systemd that the daemon stops, and to have patience: with long
// intervals the wait for a peer is longer than the unit's timeout, which counts
// where it is the longer one.
func stopping(wait time.Duration) string {
	return fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d", daemon.SdNotifyStopping, wait.Microseconds())
}
