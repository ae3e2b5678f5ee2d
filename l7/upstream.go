package l7

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A State is what is known about a server of an upstream.
type State string

// The states. Health tells the first four.
const (
	StateUnknown State = "unknown" // not probed, or not yet: it serves
	StateUp      State = "up"
	StateDown    State = "down"
	StateDrained State = "drained" // an operator wants nothing new to go there
	StateFailing State = "failing" // requests have failed: it gets no other for a while
)

// Health tells what is known of a server of an upstream. It is asked in Refresh.
type Health func(*lb.Upstream, lb.Server) Standing

// A Standing is what is known of a server.
type Standing struct {
	State  State
	Why    string
	Weight int // as operators want it
	// Pending: it is to be probed, and has not been yet.
	Pending bool
}

// A server is one of an upstream. It outlives reloads: what it has learnt stays.
type server struct {
	address netip.AddrPort
	text    string // the address

	requests, failures, bytes atomic.Uint64

	// The rest is guarded by the upstream's mu.
	config    lb.Server
	wanted    int // the weight that configuration and operators give
	weight    int // what of it policies count by: see step
	current   int // see roundRobin
	effective int // the weight that failures leave
	active    int // requests under way
	state     State
	why       string
	since     time.Time
	ramp      ramp
	fresh     bool // it is new beside others, and is to be probed first

	// What requests have shown, as in nginx: failures in a row of windows, the moment of
	// the last one, and the moment at which the present window began.
	fails             int
	failing           bool // as the last event has said
	accessed, checked time.Time
}

// advance lets the current weight grow, and returns by how much. What failures have
// taken from a weight comes back step by step.
func (s *server) advance() int {
	s.current += s.effective
	grown := s.effective
	if s.effective < s.weight {
		s.effective++
	}
	return grown
}

// reweigh gives the server another weight.
func (s *server) reweigh(weight int) { s.weight, s.effective, s.current = weight, weight, 0 }

// resting tells whether requests have failed so often that no more go there now.
func (s *server) resting(u *lb.Upstream, now time.Time) bool {
	return u.MaxFails > 0 && s.fails >= u.MaxFails && now.Sub(s.checked) <= u.FailTimeout
}

// A generation of an upstream is what one configuration makes of it. It is never
// changed.
type generation struct {
	config    *lb.Upstream
	transport *transport
	primaries []*server
	backups   []*server
	circle    circle  // of the primaries
	sticky    *sticky // nil: clients stay with nobody
}

// An upstream chooses servers for requests. It outlives reloads.
type upstream struct {
	name     string
	budget   *budget       // of connections to servers
	tell     func([]Event) // is told of what requests have shown; nil: nobody is
	now      atomic.Pointer[generation]
	requests atomic.Uint64
	failures atomic.Uint64 // answered by nobody
	moved    atomic.Uint64 // whose cookie named another server than the one that has answered

	mu       sync.Mutex
	servers  map[netip.AddrPort]*server
	nextStep time.Time // of a slow start; zero: there is none
}

// A choice is what of a request counts for the policy.
type choice struct {
	client netip.Addr
	key    string
	bound  *server   // whom the client is to stay with; nil: anybody
	slow   bool      // a server is in its slow start
	tried  []*server // who has had the request already
}

// prepare makes a generation of a configuration, with the servers that are known.
// Nothing is changed before commit.
func (u *upstream) prepare(config *lb.Upstream) (*generation, error) {
	g := &generation{config: config}
	old := u.now.Load()
	if old != nil && old.transport.serves(config) {
		g.transport = old.transport
	} else {
		t, err := newTransport(config, u.budget)
		if err != nil {
			return nil, err
		}
		g.transport = t
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range config.Pool.Servers {
		at := config.Endpoint(c)
		s := u.servers[at]
		if s == nil {
			s = &server{address: at, text: at.String(), state: StateUnknown, since: time.Now(), wanted: c.Weight, weight: c.Weight, effective: c.Weight}
			if len(u.servers) > 0 { // a newcomer beside others
				s.ramp.away, s.fresh = true, config.Pool.Probe != nil
			}
		}
		if c.Backup {
			g.backups = append(g.backups, s)
		} else {
			g.primaries = append(g.primaries, s)
		}
	}
	g.sticky = newSticky(config, slices.Concat(g.primaries, g.backups))
	return g, nil
}

// commit makes a generation the one that counts, with what is known of its servers now.
// It returns what is news about them.
func (u *upstream) commit(g *generation, known map[*server]Standing, now time.Time) []Event {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.servers = map[netip.AddrPort]*server{}
	for _, c := range g.config.Pool.Servers {
		s := g.server(c)
		if s.config.Weight != c.Weight {
			s.wanted = c.Weight
		}
		s.config = c
		u.servers[s.address] = s
	}
	changed := u.learn(g, known, now)
	if g.config.Policy == lb.Hash {
		g.circle = newCircle(g.primaries)
	}
	old := u.now.Swap(g)
	if old != nil && old.transport != g.transport {
		old.transport.retire()
	}
	return changed
}

// refresh has what is known of an upstream's servers count.
func (u *upstream) refresh(known map[*server]Standing, now time.Time) []Event {
	u.mu.Lock()
	defer u.mu.Unlock()
	g := u.now.Load()
	weights := weightsOf(g.primaries)
	changed := u.learn(g, known, now)
	if g.config.Policy == lb.Hash && !slices.Equal(weights, weightsOf(g.primaries)) {
		next := *g
		next.circle = newCircle(g.primaries)
		u.now.Store(&next)
	}
	return changed
}

func weightsOf(servers []*server) (all []int) {
	for _, s := range servers {
		all = append(all, s.weight)
	}
	return all
}

// learn takes down what is known of servers. The upstream's mu is held.
func (u *upstream) learn(g *generation, known map[*server]Standing, now time.Time) (changed []Event) {
	for _, s := range slices.Concat(g.primaries, g.backups) {
		if k, ok := known[s]; ok {
			if e := s.learn(k, now); e != nil {
				e.Upstream = u.name
				changed = append(changed, *e)
			}
		}
		s.turn(g, now)
	}
	u.step(g, now)
	return changed
}

// learn takes down what is known of a server; nil: that is no news. Another probe than
// the one before that has no result yet leaves what the one before has found.
func (s *server) learn(known Standing, now time.Time) *Event {
	s.wanted = known.Weight
	s.fresh = s.fresh && known.Pending
	if known.Pending && known.State == StateUnknown && s.state != StateUnknown {
		return nil
	}
	before := s.state
	s.why = known.Why
	if before == known.State {
		return nil
	}
	s.state, s.since = known.State, now
	if known.State == StateDown {
		s.failing = false // that is said already
	}
	if before == StateDown { // what requests have shown of it is of before
		s.fails, s.effective, s.current = 0, s.weight, 0
	}
	if before == StateUnknown && known.State == StateUp {
		return nil
	}
	return &Event{"", s.text, before, known.State, known.Why}
}

// pick chooses a server that has not had the request yet, and counts it as active.
// Backups come when no primary may be chosen, those that were never probed before them. Where requests alone have shown
// failures everywhere, who has rested shortest of all is better than nobody. Nil: there
// is no server.
func (u *upstream) pick(g *generation, c choice, now time.Time) *server {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.nextStep.IsZero() && !now.Before(u.nextStep) {
		u.step(u.now.Load(), now)
	}
	c.slow = !u.nextStep.IsZero()
	usable := func(s *server) bool {
		return s.weight > 0 && s.state != StateDown && (s.state != StateDrained || s == c.bound) &&
			(g.config.MaxConns == 0 || s.active < g.config.MaxConns) && !slices.Contains(c.tried, s)
	}
	rested := func(s *server) bool { return usable(s) && !s.resting(g.config, now) }
	sure := func(s *server) bool { return rested(s) && !s.fresh }
	for _, try := range []struct {
		primary bool
		ok      eligible
	}{{true, sure}, {true, rested}, {false, rested}, {true, usable}, {false, usable}} {
		s := g.choose(try.primary, try.ok, c)
		if s == nil {
			continue
		}
		if now.Sub(s.checked) > g.config.FailTimeout {
			s.checked = now
		}
		s.active++
		s.requests.Add(1)
		return s
	}
	return nil
}

// choose applies the policy, unless the client is to stay with one that may be chosen.
func (g *generation) choose(primary bool, ok eligible, c choice) *server {
	servers := g.primaries
	if !primary {
		servers = g.backups
	}
	if c.bound != nil && slices.Contains(servers, c.bound) && ok(c.bound) {
		return c.bound
	}
	if key, slow := g.slowKey(c); slow {
		if s := g.byPolicy(servers, primary, func(s *server) bool { return ok(s) && s.takes(key) }, c); s != nil {
			return s
		}
	}
	return g.byPolicy(servers, primary, ok, c)
}

func (g *generation) byPolicy(servers []*server, primary bool, ok eligible, c choice) *server {
	switch policy := g.config.Policy; {
	case policy == lb.LeastConn:
		return leastConn(servers, ok)
	case policy == lb.IPHash:
		return ipHash(servers, ok, c.client)
	case policy == lb.RandomTwo:
		return randomTwo(servers, ok, draw)
	case policy == lb.Hash && primary:
		return g.circle.choose(c.key, servers, ok)
	}
	return roundRobin(servers, ok)
}

// release ends a request that pick has counted.
func (u *upstream) release(s *server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.active--
}

// judge takes down what a request has shown of a server.
func (u *upstream) judge(g *generation, s *server, failed bool, now time.Time) {
	if failed {
		s.failures.Add(1)
	}
	u.mu.Lock()
	before := s.failing
	u.mark(g, s, failed, now)
	after, state := s.failing, s.state
	u.mu.Unlock()
	switch {
	case after == before || u.tell == nil:
	case after:
		u.tell([]Event{{u.name, s.text, state, StateFailing, "requests have failed"}})
	default:
		u.tell([]Event{{u.name, s.text, StateFailing, state, "a request has not failed"}})
	}
}

// mark does so for who holds u.mu.
func (u *upstream) mark(g *generation, s *server, failed bool, now time.Time) {
	out := g.config.MaxFails > 0 && s.fails >= g.config.MaxFails
	switch {
	case failed:
		s.fails++
		s.accessed, s.checked = now, now
		if g.config.MaxFails > 0 {
			s.effective = max(0, s.effective-s.weight/g.config.MaxFails)
			s.failing = s.failing || s.fails >= g.config.MaxFails
		}
	case s.accessed.Before(s.checked): // it has rested since the last failure
		if out && s.serves() {
			s.ramp.away = true // it was as good as down
			s.turn(g, now)
			u.step(u.now.Load(), now)
		}
		s.fails, s.failing = 0, false
	}
}

// server returns the server that a configured one is.
func (g *generation) server(c lb.Server) *server {
	at := g.config.Endpoint(c)
	same := func(s *server) bool { return s.address == at }
	if i := slices.IndexFunc(g.primaries, same); i >= 0 {
		return g.primaries[i]
	}
	return g.backups[slices.IndexFunc(g.backups, same)]
}

// count tells how many servers the upstream has.
func (g *generation) count() int { return len(g.primaries) + len(g.backups) }
