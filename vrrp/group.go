// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Group is virtual routers of one node that move together: two sides of a
// gateway, say, of which one is of no use without the other.
//
//   - While one cannot run, all are in Fault.
//   - One that becomes Active takes the others along, at once.
//   - One that loses its VIPs to a better node takes the others along: they give
//     theirs away as in a handover, each until it hears who has taken over. One
//     that nobody takes over from stays Active.
//   - One that leaves its VIPs to whom it has handed them over does so no more
//     while another one stays Active.
//   - One whose takeover is due waits while another one hears an Active node that
//     it has to respect. So neither a network that is cut on one side nor a
//     priority that differs on one side makes all of them change to and fro.
//
// Its Routers are given it as Deps.Group. It is safe for concurrent use.
type Group struct {
	name string

	mu      sync.Mutex
	members []*member
}

// A member is what a group knows of one of its Routers.
type member struct {
	router   *Router
	fault    string    // its own
	respects time.Time // Machine.Respects
	keeps    bool      // it is Active, and does not give its VIPs away
}

// A wish is what a group wants of a member.
type wish uint8

const (
	wishNothing wish = iota
	wishFollow
	wishStepDown
)

// NewGroup returns a group without members.
func NewGroup(name string) *Group { return &Group{name: name} }

// join is called once for each Router, before it runs.
func (g *Group) join(r *Router) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = append(g.members, &member{router: r})
}

// others are all members but one.
func (g *Group) others(r *Router) []*member {
	return slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m.router == r })
}

// note notes how a member stands. The others look again where that matters to them.
func (g *Group) note(r *Router, fault string, respects time.Time, keeps bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if m.router != r {
			continue
		}
		m.respects = respects
		if m.fault == fault && m.keeps == keeps {
			return
		}
		m.fault, m.keeps = fault, keeps
	}
	for _, m := range g.others(r) {
		m.router.ask(func(*wanted) {})
	}
}

// fault is what the others' faults mean for a member.
func (g *Group) fault(r *Router) string {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, m := range g.others(r) {
		if m.fault != "" {
			all = append(all, fmt.Sprintf("%s of group %s is in fault: %s", m.router.cfg.Name, g.name, m.fault))
		}
	}
	return strings.Join(all, "; ")
}

// changed has the others follow a change of a member.
func (g *Group) changed(r *Router, from, to State) {
	if g == nil {
		return
	}
	var w wish
	switch {
	case to == Active:
		w = wishFollow
	case from == Active && to == Backup:
		w = wishStepDown
	default:
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.others(r) {
		m.router.ask(func(all *wanted) { all.group, all.groupBy = w, r.cfg.Name })
	}
}

// kept reports whether another member stays Active.
func (g *Group) kept(r *Router) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.members, func(m *member) bool { return m.router != r && m.keeps })
}

// against names the member that has an Active node to respect, and so is against
// a takeover by another one; "": none.
func (g *Group) against(r *Router, now time.Time) string {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.others(r) {
		if m.respects.After(now) {
			return m.router.cfg.Name
		}
	}
	return ""
}

// follow carries out what the group wants.
func (r *Router) follow(now time.Time, w wish, by string) {
	switch w {
	case wishFollow:
		r.perform(now, r.machine.Follow(now, fmt.Sprintf("%s of group %s became active", by, r.deps.Group.name)))
	case wishStepDown:
		r.perform(now, r.machine.StepDown(now))
	}
}

// putOff reports whether a takeover that is due has to wait for the group.
func (r *Router) putOff(now time.Time) bool {
	deadline, ok := r.machine.Deadline()
	if r.deps.Group == nil || !ok || now.Before(deadline) || r.machine.State() != Backup {
		return false
	}
	r.waits = r.deps.Group.against(r, now)
	if r.waits == "" {
		return false
	}
	r.machine.PutOff(now)
	return true
}

// noteGroup tells the group how this member stands.
func (r *Router) noteGroup() {
	if r.deps.Group == nil {
		return
	}
	if r.machine.State() != Backup || r.machine.Respects().After(time.Now()) {
		r.waits = ""
	}
	if yielded, _, _ := r.machine.StandsBack(); yielded && r.deps.Group.kept(r) {
		r.machine.Unyield()
	}
	r.deps.Group.note(r, r.faultReason(faultGroup), r.machine.Respects(), r.machine.State() == Active && !r.machine.Releasing())
}
