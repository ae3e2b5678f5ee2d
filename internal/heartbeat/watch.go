// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/vrrp"
)

// keep does what is due.
func (n *Node) keep(ctx context.Context, all *sync.WaitGroup) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.watchInstances(now)
	for _, w := range n.paths {
		s := w.socket.Load()
		if s == nil {
			continue
		}
		if w.due(now) {
			_ = s.write(w.challenge(now, &n.own))
		}
		w.slot.Renew()
		n.watch(now, w)
		if n.links.wanted(now, w, &n.own) {
			peer, key, to := w.peer, w.key, w.address
			all.Go(func() { n.connect(ctx, peer, key, to) })
		}
	}
}

// watchInstances finds virtual routers that hang.
func (n *Node) watchInstances(now time.Time) {
	for _, h := range n.instances {
		if h.state != vrrp.Active || now.Sub(h.told) < h.patience {
			continue
		}
		n.log.Error("a virtual router hangs: heartbeats call it active no more", "virtual_router_id", h.id.VRID)
		h.state = vrrp.Fault
		for _, w := range n.paths {
			n.point(w)
		}
	}
}

// watch logs what becomes of a path.
func (n *Node) watch(now time.Time, w *way) {
	silent := !w.heard.IsZero() && now.Sub(w.heard) > doubtAfter
	if silent != w.silent {
		w.silent = silent
		if silent {
			n.log.Warn("heartbeats: a path is silent", "peer", w.name, "address", w.address)
		} else {
			n.log.Info("heartbeats: a path is heard again", "peer", w.name, "address", w.address)
		}
	}
	if text := w.mistake(now); text != "" && now.Sub(w.logged) >= logEvery {
		w.logged = now
		n.log.Error("heartbeats: " + text)
	}
}

// mistake says what is wrong with a path, and what to change.
func (w *way) mistake(now time.Time) string {
	switch {
	case w.wrongKey(now):
		return fmt.Sprintf("what %v sends is signed with another key: give all nodes the same sync key_file", w.address)
	case w.problem != "":
		return w.problem
	case w.misnamed(now):
		return fmt.Sprintf("who answers at %v calls itself %q, and should be %s: give all nodes the same list of nodes, and each node's address there", w.address, w.stranger, w.expected())
	case w.theirs != 0 && w.theirs != w.interval:
		return fmt.Sprintf("%v sends heartbeats every %v, this node every %v: set one heartbeat interval on all nodes", w.address, w.theirs, w.interval)
	}
	return ""
}

// A PathStatus is how a path stands.
type PathStatus struct {
	Address   netip.Addr
	Node      string    // who is there; "": nobody has shown it
	Heard     time.Time // the last message that counted; zero: none
	Connected bool      // the end of the peer's daemon would be noticed at once
	Mistake   string    // what to change; "": nothing
	Counters
}

// Status returns how the paths stand.
func (n *Node) Status() []PathStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []PathStatus
	for _, w := range n.paths {
		s := PathStatus{Address: w.address, Heard: w.heard, Mistake: w.mistake(time.Now()), Counters: w.counts}
		if !w.peer.isZero() {
			s.Node, s.Connected = w.name, n.links.has(w.peer, w.address)
		}
		all = append(all, s)
	}
	return all
}
