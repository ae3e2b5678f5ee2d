package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A Reload is other services for a Loop. Its functions are called by the goroutine of
// Run, which alone writes the data plane.
type Reload struct {
	Services []lb.Service
	// Patience is how long the first verdicts on what is new may take. The services of
	// before serve meanwhile.
	Patience time.Duration
	// Prepare makes the data plane ready for old and new services; Finish, when the new
	// ones are written, lets go of what only the old ones needed. Undo takes back what
	// Prepare has done, or has begun to do.
	Prepare, Finish func() error
	Undo            func()
}

// A reload is one under way.
type reload struct {
	Reload
	before   []lb.Service // the services that it takes the place of
	fresh    []health.Target
	checks   []string // those that only the new services are healthy by
	deadline time.Time
	done     chan error // has room for the result
}

// errReloading is the error of a Reload while another one is under way.
var errReloading = errors.New("another reload is under way")

// Reload has other services take the place of the present ones, and waits until the
// data plane holds them. After an error it holds those of before, and goes on with
// them. One at a time.
//
// What is unchanged stays as it is: verdicts, next hops, connections. A server that is
// new is probed first, so that a service whose servers are all new ones is at no time
// without any.
func (l *Loop) Reload(ctx context.Context, r Reload) error {
	asked := &reload{Reload: r, done: make(chan error, 1)}
	select {
	case l.reloads <- asked:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-asked.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin prepares a reload, and has what is new probed beside what there is.
func (l *Loop) begin(r *reload) {
	if l.coming != nil {
		r.done <- errReloading
		return
	}
	if err := r.Prepare(); err != nil {
		r.Undo()
		r.done <- err
		return
	}
	r.before, r.deadline = l.services, time.Now().Add(r.Patience)
	// A probe that takes the place of another one inherits its verdict when that goes;
	// only who has not been probed at all is to be waited for.
	targets := targetsOfAll(r.before)
	known := map[netip.AddrPort]bool{}
	for _, t := range targets {
		known[t.Endpoint()] = true
	}
	for _, t := range targetsOfAll(r.Services) {
		if !known[t.Endpoint()] {
			r.fresh = append(r.fresh, t)
		}
	}
	old := checksOf(r.before)
	r.checks = slices.DeleteFunc(checksOf(r.Services), func(name string) bool { return slices.Contains(old, name) })
	l.coming = r
	l.follow(addressesOf(slices.Concat(r.before, r.Services)), slices.Concat(targets, r.fresh))
}

// takeOver makes the services that come the present ones, if it is time. It returns
// the reload that brought them.
func (l *Loop) takeOver() *reload {
	r := l.coming
	if r == nil || !l.known(r) && time.Now().Before(r.deadline) {
		return nil
	}
	l.coming = nil
	l.serve(r.Services)
	return r
}

// known tells whether there is a verdict on all that is new, and a way to it, but for what
// the services can do without.
func (l *Loop) known(r *reload) bool {
	if !l.decided(r.checks) {
		return false
	}
	spared, away := l.spares(r.Services, nil), l.downByCheck(r.Services)
	for _, t := range r.fresh {
		s, _ := l.checker.Status(t)
		if s.Verdict == health.Unknown && !spared {
			return false
		}
		if s.Verdict != health.Up {
			away[t.Address.Addr()] = true
		}
	}
	for _, a := range addressesOf(r.Services) {
		if _, err := l.hops.Lookup(a); err != nil && !away[a] && !slices.Contains(addressesOf(r.before), a) {
			return false
		}
	}
	return true
}

// downByCheck returns the servers whose health is a check that fails.
func (l *Loop) downByCheck(services []lb.Service) map[netip.Addr]bool {
	down := map[netip.Addr]bool{}
	for _, s := range services {
		if p := s.Pool.Probe; p == nil || p.Type != lb.ProbeCheck {
			continue
		}
		if v, _ := l.check(s.Pool.Probe.Check); v != health.Down {
			continue
		}
		for _, server := range s.Pool.Servers {
			down[server.Address] = true
		}
	}
	return down
}

// giveUp goes back to the services of before a reload.
func (l *Loop) giveUp(r *reload, err error) {
	l.serve(r.before)
	r.Undo()
	r.done <- fmt.Errorf("write the data plane: %w", err)
}

// serve makes these the present services.
func (l *Loop) serve(services []lb.Service) {
	l.mu.Lock()
	l.services = services
	l.mu.Unlock()
	l.follow(addressesOf(services), targetsOfAll(services))
}

// Everything returns services with all of their servers, whatever becomes of them:
// the most that a data plane may have to hold.
func Everything(services []lb.Service) lb.Snapshot {
	var views []View
	for _, s := range services {
		v := View{Service: s}
		for _, server := range s.Pool.Servers {
			v.Servers = append(v.Servers, Server{Server: server, Address: endpoint(s, server), State: ServerUp, Serving: true})
		}
		views = append(views, v)
	}
	return snapshot(views)
}
