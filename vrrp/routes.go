// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// A Route is one that comes and goes with the VIPs.
type Route struct {
	To        netip.Prefix `json:"to"`
	Via       netip.Addr   `json:"via"`       // invalid: To is on the link of Interface
	Interface string       `json:"interface"` // "": the one that leads to Via
	Source    netip.Addr   `json:"source"`    // invalid: the kernel chooses
	Table     uint32       `json:"table"`
	Metric    uint32       `json:"metric"` // 0: the kernel's default
	// Local: the node takes packets to To for its own, without an address. Interface is
	// lo then, and Via is invalid.
	Local bool `json:"local,omitempty"`
}

func (r Route) String() string {
	text := fmt.Sprintf("route to %v", r.To)
	if r.Local {
		text = fmt.Sprintf("local route to %v", r.To)
	}
	if r.Via.IsValid() {
		text += fmt.Sprintf(" via %v", r.Via)
	}
	if r.Interface != "" {
		text += " on " + r.Interface
	}
	return fmt.Sprintf("%s in table %d", text, r.Table)
}

// A Rule is one of policy routing that comes and goes with the VIPs.
type Rule struct {
	V6        bool         `json:"v6"`
	From      netip.Prefix `json:"from"` // invalid: any
	To        netip.Prefix `json:"to"`   // invalid: any
	Interface string       `json:"interface"`
	Table     uint32       `json:"table"`
	Priority  uint32       `json:"priority"` // never 0: the kernel tells equal rules by it
}

func (r Rule) String() string {
	text := "rule"
	if r.From.IsValid() {
		text += fmt.Sprintf(" from %v", r.From)
	}
	if r.To.IsValid() {
		text += fmt.Sprintf(" to %v", r.To)
	}
	if r.Interface != "" {
		text += " in by " + r.Interface
	}
	return fmt.Sprintf("%s for table %d", text, r.Table)
}

// A RouteSet is what an instance brings along beside its VIPs.
type RouteSet struct {
	Routes []Route `json:"routes"`
	Rules  []Rule  `json:"rules"`
}

func (s RouteSet) empty() bool { return len(s.Routes) == 0 && len(s.Rules) == 0 }

// A RouteStore puts routes and rules into the host's tables and takes them out.
// Routes is the real one.
type RouteStore interface {
	// Add adds what is not there already, as much as it can.
	Add(RouteSet) error
	// Remove removes what was added. Anything else is left alone.
	Remove(RouteSet) error
}

// A routeTable is the host's routes and rules. Host implements it. Of what is
// there already the error is syscall.EEXIST; what is not there any more is removed
// without an error.
type routeTable interface {
	addRoute(Route) error
	removeRoute(Route) error
	addRule(Rule) error
	removeRule(Rule) error
}

// routesName is the file in the state directory.
const routesName = "routes.json"

type routesFile struct {
	BootID string `json:"boot_id"`
	RouteSet
}

// Routes puts routes and rules into the host's tables and takes them out. It writes
// down what it added, so that a later run knows what an earlier one, killed, has
// left. It is safe for concurrent use by several Routers of one process.
type Routes struct {
	table     routeTable
	log       *slog.Logger
	dir, boot string

	mu  sync.Mutex
	own RouteSet
}

// OpenRoutes reads the record in dir. A record of an earlier boot is void; one that
// cannot be read is reported, and counts as empty.
func OpenRoutes(host *Host, dir string, log *slog.Logger) (*Routes, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return openRoutes(host, dir, boot, log), nil
}

func openRoutes(table routeTable, dir, boot string, log *slog.Logger) *Routes {
	r := &Routes{table: table, log: log, dir: dir, boot: boot}
	var f routesFile
	switch err := readRecord(dir, routesName, &f); {
	case err != nil:
		log.Warn("the record of added routes cannot be read; what an earlier run has left stays", "error", err)
	case f.BootID == boot:
		r.own = f.RouteSet
	}
	return r
}

// Forget removes everything recorded that is not configured. It is called at start.
func (r *Routes) Forget(configured RouteSet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s RouteSet
	s.Routes = slices.DeleteFunc(slices.Clone(r.own.Routes), func(x Route) bool { return slices.Contains(configured.Routes, x) })
	s.Rules = slices.DeleteFunc(slices.Clone(r.own.Rules), func(x Rule) bool { return slices.Contains(configured.Rules, x) })
	return r.remove(s)
}

// Add implements RouteStore. The record comes first, as with addresses.
func (r *Routes) Add(s RouteSet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := RouteSet{Routes: slices.Clone(r.own.Routes), Rules: slices.Clone(r.own.Rules)}
	for _, x := range s.Routes {
		if !slices.Contains(r.own.Routes, x) {
			r.own.Routes = append(r.own.Routes, x)
		}
	}
	for _, x := range s.Rules {
		if !slices.Contains(r.own.Rules, x) {
			r.own.Rules = append(r.own.Rules, x)
		}
	}
	changed := len(r.own.Routes) > len(before.Routes) || len(r.own.Rules) > len(before.Rules)
	if changed {
		r.save()
	}
	var errs []error
	// note looks at what has come of adding something: whether it is ours.
	note := func(what fmt.Stringer, known bool, err error) (ours bool) {
		switch {
		case err == nil && known:
			r.log.Warn("a route or rule was removed by somebody else; it is back", "which", what)
		case err == nil || known && errors.Is(err, syscall.EEXIST):
		case errors.Is(err, syscall.EEXIST):
			errs = append(errs, fmt.Errorf("%v: one is there that sluice has not added", what))
			return false
		default:
			errs = append(errs, fmt.Errorf("add %v: %w", what, err))
			return false
		}
		return true
	}
	for _, x := range s.Routes {
		if !note(x, slices.Contains(before.Routes, x), r.table.addRoute(x)) {
			r.own.Routes = slices.DeleteFunc(r.own.Routes, func(y Route) bool { return y == x })
			changed = true
		}
	}
	for _, x := range s.Rules {
		if !note(x, slices.Contains(before.Rules, x), r.table.addRule(x)) {
			r.own.Rules = slices.DeleteFunc(r.own.Rules, func(y Rule) bool { return y == x })
			changed = true
		}
	}
	if len(errs) > 0 && changed {
		r.save()
	}
	return errors.Join(errs...)
}

// Remove implements RouteStore.
func (r *Routes) Remove(s RouteSet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.remove(s)
}

func (r *Routes) remove(s RouteSet) error {
	var errs []error
	gone := 0
	for _, x := range s.Rules {
		if !slices.Contains(r.own.Rules, x) {
			continue
		}
		if err := r.table.removeRule(x); err != nil {
			errs = append(errs, fmt.Errorf("remove %v: %w", x, err))
			continue
		}
		r.own.Rules = slices.DeleteFunc(r.own.Rules, func(y Rule) bool { return y == x })
		gone++
	}
	for _, x := range s.Routes {
		if !slices.Contains(r.own.Routes, x) {
			continue
		}
		if err := r.table.removeRoute(x); err != nil {
			errs = append(errs, fmt.Errorf("remove %v: %w", x, err))
			continue
		}
		r.own.Routes = slices.DeleteFunc(r.own.Routes, func(y Route) bool { return y == x })
		gone++
	}
	if gone > 0 {
		r.save()
	}
	return errors.Join(errs...)
}

func (r *Routes) save() {
	f := routesFile{BootID: r.boot, RouteSet: RouteSet{Routes: orEmpty(r.own.Routes), Rules: orEmpty(r.own.Rules)}}
	if err := writeRecord(r.dir, routesName, f); err != nil {
		r.log.Error("added routes cannot be recorded; after a crash they would stay", "error", err)
	}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// addRoutes brings in what goes with the VIPs, and puts back what somebody removed.
func (r *Router) addRoutes() {
	if r.deps.Routes != nil && !r.cfg.Extra.empty() {
		r.noteRoutes(r.deps.Routes.Add(r.cfg.Extra))
	}
}

func (r *Router) removeRoutes() {
	if r.deps.Routes != nil && !r.cfg.Extra.empty() {
		r.noteRoutes(r.deps.Routes.Remove(r.cfg.Extra))
	}
}

// noteRoutes notes what is wrong with routes or rules; the next look tries again.
func (r *Router) noteRoutes(err error) {
	text := ""
	if err != nil {
		text = oneLine(err)
	}
	if text == r.routeProblem {
		return
	}
	r.routeProblem = text
	if text != "" {
		r.log.Warn("routes are not as configured; trying again", "error", text)
	}
	r.update(func(s *Status) { s.RouteProblem = text })
}
