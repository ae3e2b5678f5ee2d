package dns

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Options are what a Responder works with.
type Options struct {
	Log    *slog.Logger
	Health Health
	Event  func(Event) // is told what Refresh has found; must not wait; nil: nobody
}

// A world is what one configuration has made of a Responder. It is never changed.
type world struct {
	config    *lb.DNS
	zones     zones
	records   []*record // in the order of the configuration
	pools     []*pool   // in the order in which records name them
	listeners map[netip.AddrPort]*listener
	limiter   *limiter // nil: none
}

// A Responder answers queries as a configuration says.
type Responder struct {
	log    *slog.Logger
	health Health
	event  func(Event)
	now    atomic.Pointer[world]
	counts counts
	conns  conns

	applying sync.Mutex // held while the configuration changes
	closed   bool
	pools    map[string]*pool        // guarded by applying
	stats    map[string]*recordStats // of all records that there were, by name; the same
}

// New returns a responder that answers nothing yet.
func New(o Options) *Responder {
	r := &Responder{log: o.Log, health: o.Health, event: o.Event, pools: map[string]*pool{}, stats: map[string]*recordStats{}}
	r.now.Store(&world{config: &lb.DNS{}})
	return r
}

// errClosed is the error of a responder that was closed.
var errClosed = errors.New("the responder is closed")

// Apply has the responder answer what a configuration says in place of what it answers.
// After an error it answers what it did. Listeners that are in both stay as they are, and
// so does what is known of servers: no query is lost.
func (r *Responder) Apply(config lb.DNS) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	if r.closed {
		return errClosed
	}
	before, now := r.now.Load(), time.Now()
	after := &world{config: &config, listeners: map[netip.AddrPort]*listener{}, limiter: limiterOf(&config, before)}
	opened, err := r.listen(before, after)
	if err != nil {
		for _, l := range opened {
			l.discard()
		}
		return err
	}
	r.assemble(after, now)
	after.zones = newZones(&config, before.config, before.zones, after.records, now)
	r.learn(now)
	r.now.Store(after)
	for _, l := range opened {
		l.serve()
	}
	for at, l := range before.listeners {
		if after.listeners[at] == nil {
			l.close()
		}
	}
	return nil
}

// listen finds the listeners of a world among those of the one before, and opens the
// others.
func (r *Responder) listen(before, after *world) (opened []*listener, err error) {
	beside := slices.Collect(maps.Values(before.listeners))
	for _, at := range after.config.Listen {
		l := before.listeners[at]
		if l == nil {
			l, err = r.open(at, slices.Concat(beside, opened))
			if missingFamily(at, err) {
				continue // this host has no IPv6
			}
			if err != nil {
				return opened, err
			}
			opened = append(opened, l)
		}
		after.listeners[at] = l
	}
	return opened, nil
}

// limiterOf returns the limiter of a configuration: the one of before, with what it
// knows, where the limit is the same.
func limiterOf(config *lb.DNS, before *world) *limiter {
	switch {
	case config.RateLimit == nil:
		return nil
	case before.limiter != nil && reflect.DeepEqual(before.limiter.config, config.RateLimit):
		return before.limiter
	}
	return newLimiter(config.RateLimit)
}

// assemble makes the records and pools of a world, of those that are known where they
// are the same.
func (r *Responder) assemble(w *world, now time.Time) {
	pools := map[string]*pool{}
	for i := range w.config.Records {
		c := &w.config.Records[i]
		name := c.Pool.Name
		if pools[name] == nil {
			p := r.pools[name]
			if p == nil {
				p = &pool{name: name}
			}
			p.configure(c, now)
			pools[name] = p
			w.pools = append(w.pools, p)
		}
		stats := r.stats[c.Name]
		if stats == nil {
			stats = &recordStats{}
			r.stats[c.Name] = stats
		}
		w.records = append(w.records, &record{config: c, pool: pools[name], stats: stats})
	}
	r.pools = pools
}

// Refresh asks what is known of servers, and has it count.
func (r *Responder) Refresh() {
	r.applying.Lock()
	defer r.applying.Unlock()
	r.learn(time.Now())
}

func (r *Responder) learn(now time.Time) {
	for _, p := range r.pools {
		for _, e := range p.learn(r.health, now) {
			if r.event != nil {
				r.event(e)
			}
		}
	}
}

// Close ends all listeners. Queries that have been read are answered.
func (r *Responder) Close() {
	r.applying.Lock()
	defer r.applying.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	var all sync.WaitGroup
	for _, l := range r.now.Load().listeners {
		all.Go(l.close)
	}
	all.Wait()
}
