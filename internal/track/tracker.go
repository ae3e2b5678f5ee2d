// Package track watches what virtual routers depend on, and has their priority
// and their faults follow it: checks, which it runs, interfaces and services.
//
// An item with a weight changes the priority, one without is a fault while it
// fails. Services have a weight, so that a fault that all nodes share takes no VIP
// from the last node.
package track

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A Router is a virtual router, as far as a Tracker drives it.
type Router interface {
	SetPriority(uint8) error
	Fault(reason string)
	ClearFault()
}

// An Instance is a virtual router and what it depends on.
type Instance struct {
	Name     string
	Priority uint8 // configured
	Track    []lb.Tracked
	// StartTimeout is how long it waits for the first verdicts.
	StartTimeout time.Duration
	Router       Router
}

// A World is what a Tracker looks at. Nil fields are those of this machine, but
// for Service.
type World struct {
	// Run runs a check once.
	Run func(context.Context, lb.Check) error
	// Recover runs a command to its end.
	Recover func(context.Context, []string) error
	// Link tells why an interface cannot carry anything; nil: it can.
	Link func(name string) error
	// Service tells whether something is known of a service yet, and what is wrong
	// with it; "": nothing.
	Service func(name string) (known bool, problem string)
}

// lookEvery is how often a Tracker looks at the world even if nobody called.
const lookEvery = 10 * time.Second

// A Tracker follows what instances depend on. Its methods may be called from
// several goroutines.
type Tracker struct {
	instances []*instance
	checkers  []*checker
	byName    map[string]*checker
	world     World
	log       *slog.Logger
	dirty     chan struct{}
	told      Told
}

// Told is who is told of what happens. Its functions must not wait.
type Told struct {
	// Check got another verdict, its recovery another attempt, or that made it pass.
	Check func(before, now CheckStatus)
	// Standing of an instance got another priority.
	Standing func(instance string, before, now Standing)
}

// An instance is one that is driven.
type instance struct {
	Instance
	ready chan struct{} // closed when it may take part

	mu       sync.Mutex
	standing Standing
}

// New returns a Tracker of the checks of a configuration. Run runs it.
func New(checks []lb.Check, instances []Instance, w World, log *slog.Logger) *Tracker {
	if w.Run == nil {
		w.Run = health.RunCheck
	}
	if w.Recover == nil {
		w.Recover = runCommand
	}
	if w.Link == nil {
		w.Link = hostLink
	}
	t := &Tracker{byName: map[string]*checker{}, world: w, log: log, dirty: make(chan struct{}, 1)}
	t.Tell(Told{})
	for _, c := range checks {
		k := newChecker(c, w, t.Dirty, log)
		k.told = func(before, now CheckStatus) { t.told.Check(before, now) }
		t.checkers = append(t.checkers, k)
		t.byName[c.Name] = k
	}
	for _, i := range instances {
		t.instances = append(t.instances, &instance{Instance: i, ready: make(chan struct{}), standing: Standing{Base: i.Priority, Priority: i.Priority}})
	}
	return t
}

// Tell makes these functions those that are told; nil: nobody. Call it before Run.
func (t *Tracker) Tell(told Told) {
	if told.Check == nil {
		told.Check = func(CheckStatus, CheckStatus) {}
	}
	if told.Standing == nil {
		told.Standing = func(string, Standing, Standing) {}
	}
	t.told = told
}

// hostLink looks at an interface of this machine.
func hostLink(name string) error {
	link, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		return fmt.Errorf("interface %s does not exist", name)
	case link.Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s is down", name)
	case link.Flags&net.FlagRunning == 0:
		return fmt.Errorf("interface %s has no carrier", name)
	}
	return nil
}

// Dirty has the Tracker look at interfaces and services again. It never waits.
func (t *Tracker) Dirty() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}

// Ready returns a channel that is closed when an instance may take part: all that
// it tracks is known and its Router has been told, or its StartTimeout is over.
// Instances count from 0, as New was given them.
func (t *Tracker) Ready(i int) <-chan struct{} { return t.instances[i].ready }

// Standing returns how an instance stands.
func (t *Tracker) Standing(i int) Standing {
	k := t.instances[i]
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.standing
}

// Checks returns what is known of all checks, in the order of the configuration.
func (t *Tracker) Checks() []CheckStatus {
	all := make([]CheckStatus, len(t.checkers))
	for i, c := range t.checkers {
		all[i] = c.get()
	}
	return all
}

// Run runs the checks and drives the routers until ctx ends.
func (t *Tracker) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range t.checkers {
		all.Go(func() { c.loop(ctx) })
	}
	began := time.Now()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	start := time.NewTimer(0) // the next end of a StartTimeout
	defer start.Stop()
	for {
		var next time.Duration // of what is left of the shortest of those
		waited := time.Since(began)
		for _, i := range t.instances {
			t.drive(i, waited)
			if left := i.StartTimeout - waited; !i.isReady() && (next == 0 || left < next) {
				next = left
			}
		}
		start.Stop()
		if next > 0 {
			start.Reset(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.dirty:
		case <-ticker.C:
		case <-start.C:
		}
	}
}

// drive brings a router in line with what its instance depends on. Waited is the
// time since the start.
func (t *Tracker) drive(i *instance, waited time.Duration) {
	before := t.standingOf(i)
	now := stand(i.Priority, i.Track, t)
	if now.Priority != before.Priority {
		if err := i.Router.SetPriority(now.Priority); err != nil {
			t.log.Error("the priority stays as it is", "instance", i.Name, "error", err)
		} else {
			text := now.Sum()
			if text == "" {
				text = fmt.Sprintf("%d, as configured", now.Priority)
			}
			t.log.Info("priority of virtual router", "instance", i.Name, "priority", text)
			t.told.Standing(i.Name, before, now)
		}
	}
	switch now.Fault {
	case before.Fault:
	case "":
		i.Router.ClearFault()
	default:
		i.Router.Fault(now.Fault)
	}
	i.mu.Lock()
	i.standing = now
	i.mu.Unlock()
	if i.isReady() || !now.Known && waited < i.StartTimeout {
		return
	}
	if !now.Known {
		t.log.Warn("not all that the instance tracks is known yet; taking part without", "instance", i.Name, "waited", i.StartTimeout)
	}
	close(i.ready)
}

func (t *Tracker) standingOf(i *instance) Standing {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.standing
}

// isReady is for the goroutine of Run, which closes the channel.
func (i *instance) isReady() bool {
	select {
	case <-i.ready:
		return true
	default:
		return false
	}
}

func (t *Tracker) checkStatus(name string) CheckStatus { return t.byName[name].get() }

func (t *Tracker) link(name string) error { return t.world.Link(name) }

func (t *Tracker) service(name string) (bool, string) {
	if t.world.Service == nil {
		return false, ""
	}
	return t.world.Service(name)
}
