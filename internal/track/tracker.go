// Package track watches what virtual routers depend on, and has their priority
// and their faults follow it: checks, which it runs, interfaces, services and upstreams.
//
// An item with a weight changes the priority, one without is a fault while it
// fails. Neither takes a VIP from the last node: all nodes see alike what becomes
// of a service or an upstream, so that needs a weight, and a node that is in fault is the last
// resort where no other one is Active.
package track

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"regexp"
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
// for Service and Upstream.
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
	// Upstream tells the same of an upstream.
	Upstream func(name string) (known bool, problem string)
}

// lookEvery is how often a Tracker looks at the world even if nobody called.
const lookEvery = 10 * time.Second

// A Tracker follows what instances depend on. Its methods may be called from
// several goroutines.
type Tracker struct {
	world World
	log   *slog.Logger
	dirty chan struct{}
	told  Told
	run   sync.WaitGroup // the loops of checkers

	driving sync.Mutex // held while instances are driven, or become others

	mu        sync.Mutex
	instances []*instance
	checkers  []*checker
	byName    map[string]*checker
	ctx       context.Context // of Run; nil: it has not begun
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
	began time.Time

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
	t := &Tracker{world: w, log: log, dirty: make(chan struct{}, 1)}
	t.Tell(Told{})
	t.Set(checks, instances)
	return t
}

// Set makes these the checks and instances. A check that is the same goes on with
// its verdict and its history; so does an instance whose Router is the same, with
// what it tracks now. Other Routers are to be new ones.
func (t *Tracker) Set(checks []lb.Check, instances []Instance) {
	t.driving.Lock()
	defer t.driving.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	var checkers []*checker
	byName := map[string]*checker{}
	for _, c := range checks {
		k := t.byName[c.Name]
		if k == nil || !sameCheck(k.check, c) {
			k = t.newChecker(c, k)
		}
		checkers = append(checkers, k)
		byName[c.Name] = k
	}
	for _, k := range t.checkers {
		if byName[k.check.Name] != k {
			k.cancel()
		}
	}
	var all []*instance
	for _, i := range instances {
		next := &instance{Instance: i, ready: make(chan struct{}), began: time.Now(), standing: Standing{Base: i.Priority, Priority: i.Priority}}
		for _, old := range t.instances {
			if old.Router == i.Router {
				next.ready, next.began, next.standing = old.ready, old.began, old.get()
			}
		}
		all = append(all, next)
	}
	t.checkers, t.byName, t.instances = checkers, byName, all
	t.Dirty()
}

// sameCheck tells whether two checks do the same.
func sameCheck(a, b lb.Check) bool {
	text := func(r *regexp.Regexp) string {
		if r == nil {
			return ""
		}
		return "~" + r.String()
	}
	same := text(a.Body) == text(b.Body) && text(a.Expect) == text(b.Expect)
	a.Body, b.Body, a.Expect, b.Expect = nil, nil, nil, nil
	return same && reflect.DeepEqual(a, b)
}

// newChecker makes a checker, which takes the place of old if that is not nil: a
// change of configuration alone fails nothing, so its verdict stands until it has
// failed, or passed, as often as any other. t.mu is held.
func (t *Tracker) newChecker(c lb.Check, old *checker) *checker {
	k := newChecker(c, t.world, t.Dirty, t.log)
	k.told = func(before, now CheckStatus) { t.told.Check(before, now) }
	k.ctx, k.cancel = context.WithCancel(context.Background())
	if old != nil {
		k.inherit(old)
	}
	if t.ctx != nil {
		t.start(k)
	}
	return k
}

// start runs a checker until its end, or Run's. t.mu is held.
func (t *Tracker) start(k *checker) {
	stop := context.AfterFunc(t.ctx, k.cancel)
	t.run.Go(func() {
		defer stop()
		k.loop(k.ctx)
	})
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

// Dirty has the Tracker look at all but checks again. It never waits.
func (t *Tracker) Dirty() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}

// Ready returns a channel that is closed when an instance may take part: all that
// it tracks is known and its Router has been told, or its StartTimeout is over.
// Instances count from 0, as New or Set was given them.
func (t *Tracker) Ready(i int) <-chan struct{} { return t.list()[i].ready }

// Standing returns how an instance stands.
func (t *Tracker) Standing(i int) Standing { return t.list()[i].get() }

func (t *Tracker) list() []*instance {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.instances
}

// Checks returns what is known of all checks, in the order of the configuration.
func (t *Tracker) Checks() []CheckStatus {
	t.mu.Lock()
	checkers := t.checkers
	t.mu.Unlock()
	all := make([]CheckStatus, len(checkers))
	for i, c := range checkers {
		all[i] = c.get()
	}
	return all
}

// Verdict returns the verdict on a check, and why that is Down; Unknown for one that
// is not there.
func (t *Tracker) Verdict(check string) (v health.Verdict, why string) {
	s := t.checkStatus(check)
	return s.Verdict, s.Why
}

// Run runs the checks and drives the routers until ctx ends.
func (t *Tracker) Run(ctx context.Context) {
	defer t.run.Wait()
	now := time.Now()
	t.mu.Lock()
	t.ctx = ctx
	for _, c := range t.checkers {
		t.start(c)
	}
	for _, i := range t.instances {
		i.began = now
	}
	t.mu.Unlock()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	start := time.NewTimer(0) // the next end of a StartTimeout
	defer start.Stop()
	for {
		next := t.driveAll()
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

// driveAll drives the instances. It returns what is left of the shortest
// StartTimeout of those that are not ready; 0: all are.
func (t *Tracker) driveAll() (next time.Duration) {
	t.driving.Lock()
	defer t.driving.Unlock()
	for _, i := range t.list() {
		waited := time.Since(i.began)
		t.drive(i, waited)
		if left := i.StartTimeout - waited; !i.isReady() && (next == 0 || left < next) {
			next = left
		}
	}
	return next
}

// drive brings a router in line with what its instance depends on. Waited is the
// time since the instance began.
func (t *Tracker) drive(i *instance, waited time.Duration) {
	before := i.get()
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

func (i *instance) get() Standing {
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

func (t *Tracker) checkStatus(name string) CheckStatus {
	t.mu.Lock()
	c := t.byName[name]
	t.mu.Unlock()
	if c == nil { // Set has just taken it away, and the instance that tracked it
		return CheckStatus{}
	}
	return c.get()
}

func (t *Tracker) link(name string) error { return t.world.Link(name) }

func (t *Tracker) service(name string) (bool, string) {
	if t.world.Service == nil {
		return false, ""
	}
	return t.world.Service(name)
}

func (t *Tracker) upstream(name string) (bool, string) {
	if t.world.Upstream == nil {
		return false, ""
	}
	return t.world.Upstream(name)
}
