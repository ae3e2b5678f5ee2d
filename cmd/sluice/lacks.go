package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/statesync"
)

// How long a planned move of VIPs waits for the other nodes: while an operator waits for
// the answer; and in a stop, before the log says so.
const (
	handoverPatience = 5 * time.Second
	stopSilence      = 500 * time.Millisecond
)

// lacks waits, before VIPs move, until the other nodes have acknowledged all of this node's
// connections, and says what they do not have after that time, or when nobody is there to
// wait for; "": nothing, or none is shared.
func (n *node) lacks(ctx context.Context, patience time.Duration) string {
	if n.sharing == nil {
		return ""
	}
	moves := patience + time.Second
	for _, r := range n.instances() {
		moves = max(moves, patience+r.ReleaseWait())
	}
	n.sharing.state.Moves(moves)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it was waited for %v", patience))
	defer cancel()
	err := n.sharing.stream.Flush(ctx)
	if err == nil {
		return ""
	}
	var all []string
	for line := range strings.Lines(err.Error()) {
		all = append(all, strings.TrimSpace(line))
	}
	return strings.Join(all, "; ")
}

// peersWait bounds the wait of a planned stop for the other nodes: by what an instance
// waits for a peer's state at its return.
func (n *node) peersWait() (longest time.Duration) {
	if n.sharing == nil {
		return 0
	}
	for _, i := range n.config().VRRP {
		longest = max(longest, i.SyncWait)
	}
	return longest
}

// tellAll waits, before a planned stop, until the other nodes have all of this node's
// connections: by the rule of a handover, but in the end the daemon stops all the same,
// and says what breaks by it.
func (n *node) tellAll(ctx context.Context) {
	if n.sharing == nil || len(n.sharing.state.Owned()) == 0 {
		return
	}
	why, wait := n.lacks(ctx, stopSilence), n.peersWait()
	// A node that is alone waits for another one that may just come back, but only where
	// that may have something to lose.
	if risk := n.atRisk(); why != "" && (risk > 0 || n.hasPeer()) && wait > 0 && ctx.Err() == nil {
		began := time.Now()
		n.log.Warn("the stop waits until the other nodes have this node's connections", "connections", risk, "lacking", why, "at_most", wait)
		if why = n.lacks(ctx, wait); why == "" {
			n.log.Info("the other nodes have this node's connections", "waited", time.Since(began).Round(time.Millisecond))
		}
	}
	risk := n.atRisk()
	if why == "" || risk == 0 {
		return
	}
	n.log.Error("the stop breaks connections, if another node takes over", "connections", risk, "lacking", why)
	n.unshared = fmt.Sprintf("no other node had %s: %s", count(risk, "connection"), why)
}

// hasPeer tells whether another node is connected, by either direction.
func (n *node) hasPeer() bool {
	return slices.ContainsFunc(n.sharing.stream.Status().Peers, func(p statesync.PeerStatus) bool { return p.Out.Connected || p.In.Connected })
}

// atRisk is how many connections a failover now would break.
func (n *node) atRisk() int {
	services, _, _, err := n.loop.Services()
	if err != nil {
		n.log.Error("the connections cannot be counted", "error", err)
	}
	if s := n.syncStatus(services); s != nil {
		return s.AtRisk
	}
	return 0
}
