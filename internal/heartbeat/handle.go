// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/vrrp"
)

// A Handle is one virtual router's part in heartbeats. It implements
// vrrp.Heartbeats.
type Handle struct {
	node     *Node
	id       Instance
	peers    []netip.Addr
	interval time.Duration
	patience time.Duration
	hear     func(vrrp.Beat)

	state    vrrp.State
	priority uint8
	told     time.Time
}

// Digest identifies a set of addresses.
func Digest(addresses []netip.Prefix) uint32 {
	var all []netip.Addr
	for _, p := range addresses {
		all = append(all, p.Addr())
	}
	slices.SortFunc(all, netip.Addr.Compare)
	h := fnv.New32a()
	for _, a := range all {
		b := a.As16()
		h.Write(b[:])
	}
	return h.Sum32()
}

// Add adds a virtual router, with the addresses of the other nodes that hear of it.
func (n *Node) Add(id Instance, peers []netip.Addr, interval time.Duration) *Handle {
	h := &Handle{node: n, id: id, peers: peers, interval: interval, hear: func(vrrp.Beat) {}}
	n.instances = append(n.instances, h)
	for _, a := range peers {
		w := n.wayTo(a)
		if w == nil {
			w = &way{path: path{address: a, ticket: newTicket(), names: n.namesAt(a)}, interval: interval, slot: n.cfg.Pacer.Slot("heartbeats to " + a.String())}
			n.paths = append(n.paths, w)
		}
		w.interval = min(w.interval, interval)
	}
	return h
}

// namesAt are the names that may be at an address. Nil: any but this node's own.
func (n *Node) namesAt(a netip.Addr) (all []string) {
	for _, p := range n.cfg.Roster {
		if p.Address == a {
			return []string{inShort(p.Name)}
		}
		all = append(all, inShort(p.Name))
	}
	return all
}

func (n *Node) wayTo(a netip.Addr) *way {
	for _, w := range n.paths {
		if w.address == a {
			return w
		}
	}
	return nil
}

// Find returns a virtual router that was added, or nil.
func (n *Node) Find(id Instance) *Handle {
	for _, h := range n.instances {
		if h.id == id {
			return h
		}
	}
	return nil
}

// Deliver sets who hears what heartbeats say of this virtual router, which must not
// wait for anything. Where it has told nothing for as long as patience while Active,
// heartbeats call it Active no more.
func (h *Handle) Deliver(hear func(vrrp.Beat), patience time.Duration) {
	h.node.mu.Lock()
	defer h.node.mu.Unlock()
	h.hear, h.patience = hear, patience
}

// ID implements vrrp.Heartbeats.
func (h *Handle) ID() vrrp.NodeID { return vrrp.NodeID(h.node.own.epoch) }

// Tell implements vrrp.Heartbeats.
func (h *Handle) Tell(s vrrp.State, priority uint8) {
	h.node.mu.Lock()
	defer h.node.mu.Unlock()
	h.told = time.Now()
	if h.state == s && h.priority == priority {
		return
	}
	h.state, h.priority = s, priority
	for _, w := range h.node.paths {
		if slices.Contains(h.peers, w.address) {
			h.node.point(w)
		}
	}
}

// Quiet implements vrrp.Heartbeats.
func (h *Handle) Quiet() bool {
	h.node.mu.Lock()
	defer h.node.mu.Unlock()
	for _, w := range h.node.paths {
		if s := w.socket.Load(); s != nil && slices.Contains(h.peers, w.address) && !s.Quiet() {
			return false
		}
	}
	return true
}
