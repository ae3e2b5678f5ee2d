package main

import (
	"context"
	"maps"
	"sync"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/web"
	"github.com/sluice-lb/sluice/vrrp"
)

// transitions counts changes of state. Its methods may be called from several
// goroutines.
type transitions struct {
	mu  sync.Mutex
	all map[web.Transition]uint64
}

func (t *transitions) add(c vrrp.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[web.Transition]uint64{}
	}
	t.all[web.Transition{Instance: c.Instance, To: c.To.String()}]++
}

func (t *transitions) counts() map[web.Transition]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.all)
}

// openWeb opens the address for monitoring. At the start that comes before the data
// plane, which keeps nat off the ports that the node listens on.
func (n *node) openWeb(cfg *config.Config) {
	var w *web.Server
	if cfg.Admin.Listen.IsValid() {
		w = web.Listen(cfg.Admin.Listen, n.log)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.web = w
}

// serveWeb answers monitoring until the daemon ends, or n.endWeb is called and
// waited for.
func (n *node) serveWeb() {
	ctx, cancel := context.WithCancel(n.inside)
	w, done := n.web, make(chan struct{})
	n.endWeb = func() { cancel(); <-done }
	n.goroutines.Go(func() {
		defer close(done)
		if w != nil {
			w.Serve(ctx, n.report)
		}
	})
}

// webProblem tells why there is no monitoring where it is wanted.
func (n *node) webProblem() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.web == nil {
		return ""
	}
	return n.web.Problem()
}

// report is what monitoring gets.
func (n *node) report() web.Report {
	r := web.Report{
		Status: n.status(), Ready: n.isReady(), Transitions: n.transitions.counts(), Events: n.events.Counts(),
	}
	if n.checker != nil {
		r.Probes = n.checker.Statuses()
	}
	return r
}

// isReady tells whether the data plane holds what the configuration says.
func (n *node) isReady() bool {
	select {
	case <-n.ready:
	default:
		return false
	}
	if n.loop == nil {
		return true
	}
	for _, a := range n.loop.Alarms() {
		if a.Kind == control.AlarmTables || a.Kind == control.AlarmInterfaces {
			return false
		}
	}
	return true
}
