package health

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A Checker probes a set of targets and keeps a verdict on each. Its methods may
// be called from several goroutines.
type Checker struct {
	probe   func(context.Context, Target) error
	log     *slog.Logger
	epoch   time.Time // what the phases of all targets refer to
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	changed chan struct{}

	sharing sync.Mutex // held while a share changes its targets; before mu
	mu      sync.Mutex
	shares  []*Share // changed under both
	closed  bool
	runners map[string]*runner // by identity of the target
	ending  []*runner          // removed, but perhaps in a last run
	untried int                // runners without a result
	ready   chan struct{}
	isReady bool // ready is closed
}

// NewChecker returns a Checker without targets. It logs changes of verdicts to
// log. Paths is for targets with a path; without such it may be nil. Close it when
// it is no longer needed.
func NewChecker(log *slog.Logger, paths Paths) *Checker { return newChecker(log, prober{paths}.probe) }

// newChecker returns a Checker with a probe of the caller's, which must return
// soon after its context ends.
func newChecker(log *slog.Logger, probe func(context.Context, Target) error) *Checker {
	ctx, cancel := context.WithCancel(context.Background())
	return &Checker{
		probe:   probe,
		log:     log,
		epoch:   time.Now(),
		ctx:     ctx,
		cancel:  cancel,
		changed: make(chan struct{}, 1),
		runners: make(map[string]*runner),
		ready:   make(chan struct{}),
	}
}

// Set makes targets the set that is probed, without waiting for anything.
// Targets that are the same are probed once; those that were there before keep
// their state and rhythm. New ones are run within 100 ms.
//
// A change of configuration must not take a server out of service: where only
// interval, timeout, rise or fall of a target differ from those of one that goes,
// it takes over the state; where the probe of an endpoint is replaced by another,
// the verdict of the old one stands until the first result of the new one, which
// decides at once.
//
// An interval or timeout that is not positive counts as one second. After Close,
// Set does nothing.
func (c *Checker) Set(targets []Target) { c.set(targets, nil) }

// set is Set for one of several users, which has left some targets: what is new may take
// over from these, too, though others want them still.
func (c *Checker) set(targets, left []Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	wanted := make(map[string]Target, len(targets))
	for _, t := range targets {
		id := t.Identity()
		if _, ok := wanted[id]; !ok {
			wanted[id] = t
		}
	}
	var removed []*runner
	for id, r := range c.runners {
		if _, ok := wanted[id]; !ok {
			r.cancel()
			delete(c.runners, id)
			removed = append(removed, r)
		}
	}
	c.ending = append(c.ending, removed...)
	for _, t := range left {
		if r := c.runners[t.Identity()]; r != nil {
			removed = append(removed, r)
		}
	}
	for id, t := range wanted {
		if c.runners[id] == nil {
			c.runners[id] = c.start(t, removed)
		}
	}
	c.untried = 0
	for _, r := range c.runners {
		if !r.status.Tried() {
			c.untried++
		}
	}
	if c.isReady && c.untried > 0 {
		c.ready, c.isReady = make(chan struct{}), false
	}
	c.markReady()
}

// start starts a runner for t, which may inherit from those that it may take the place of.
// c.mu is held.
func (c *Checker) start(t Target, before []*runner) *runner {
	ctx, cancel := context.WithCancel(c.ctx)
	r := newRunner(t, cancel)
	r.inherit(before)
	var ends []<-chan struct{}
	for _, old := range c.ending {
		if old.action == r.action {
			ends = append(ends, old.done)
		}
	}
	c.wg.Go(func() {
		defer close(r.done)
		defer c.forget(r)
		for _, done := range ends {
			<-done // its context has ended
		}
		c.loop(ctx, r)
	})
	return r
}

func (c *Checker) forget(r *runner) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = slices.DeleteFunc(c.ending, func(e *runner) bool { return e == r })
}

// loop runs the probe of r until ctx ends.
func (c *Checker) loop(ctx context.Context, r *runner) {
	timer := time.NewTimer(r.rhythm.start())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := bounded(ctx, r.target, c.probe)
		if ctx.Err() != nil {
			return // the run was broken off: its result says nothing
		}
		pace := c.record(r, began, err)
		next := pace.next(began.Sub(c.epoch), time.Since(c.epoch))
		timer.Reset(next - time.Since(c.epoch))
	}
}

// record takes down the result of a run and tells about a change of verdict. It returns
// the rhythm to go on in.
func (c *Checker) record(r *runner, began time.Time, err error) rhythm {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runners[r.identity] != r {
		return r.rhythm // Set has removed it meanwhile
	}
	before, lastError, tried := r.status.Verdict, r.status.LastError, r.status.Tried()
	r.record(began, time.Now(), err)
	after := r.status.Verdict
	log := c.log.With("target", r.target.String())
	if r.status.Tried() != tried {
		c.untried--
		c.markReady()
		c.signal()
	}
	switch after {
	case before:
		if inconclusive(err) && r.status.LastError != lastError {
			log.Warn("cannot probe", "error", err)
		}
		return r.pace()
	case Up:
		log.Info("target is up")
	default:
		log.Warn("target is down", "error", err)
	}
	c.signal()
	return r.pace()
}

// signal tells that something has changed. c.mu is held.
func (c *Checker) signal() {
	signal(c.changed)
	for _, s := range c.shares {
		signal(s.changed)
	}
}

func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default: // a signal is pending, and whoever takes it will see this change too
	}
}

// markReady closes c.ready if it is time. c.mu is held.
func (c *Checker) markReady() {
	if c.untried == 0 && !c.isReady {
		close(c.ready)
		c.isReady = true
	}
}

// Changed returns a channel that has a value after verdicts changed, the first
// ones included, and after a target without one has failed first. Changes are
// coalesced: after receiving, read all verdicts. Changes by Set itself are not
// signalled.
func (c *Checker) Changed() <-chan struct{} { return c.changed }

// Ready returns a channel that is closed when every target of the current set
// has a result, which may be a failure that decides nothing yet. It is open before the
// first Set. A Set that adds targets without a result needs a new call of Ready.
func (c *Checker) Ready() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

// Verdict returns the verdict on t; Unknown if t is not in the set.
func (c *Checker) Verdict(t Target) Verdict {
	s, _ := c.Status(t)
	return s.Verdict
}

// Status returns what is known about t, and whether t is in the set.
func (c *Checker) Status(t Target) (Status, bool) {
	id := t.Identity()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runners[id]
	if r == nil {
		return Status{}, false
	}
	return r.status, true
}

// Statuses returns what is known about all targets, sorted by endpoint.
func (c *Checker) Statuses() []Status {
	c.mu.Lock()
	runners := make([]*runner, 0, len(c.runners))
	for _, r := range c.runners {
		runners = append(runners, r)
	}
	slices.SortFunc(runners, func(a, b *runner) int {
		return cmp.Or(a.target.Endpoint().Compare(b.target.Endpoint()), cmp.Compare(a.identity, b.identity))
	})
	statuses := make([]Status, len(runners))
	for i, r := range runners {
		statuses[i] = r.status
	}
	c.mu.Unlock()
	return statuses
}

// Close stops all runs and waits for their end. Statuses can still be read.
func (c *Checker) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}
