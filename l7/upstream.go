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
}

// A server is one of an upstream. It outlives reloads: what it has learnt stays.
type server struct {
	address netip.AddrPort
	text    string // the address

	requests, failures, bytes atomic.Uint64

	// The rest is guarded by the upstream's mu.
	config    lb.Server
	weight    int
	current   int // see roundRobin
	effective int // the weight that failures leave
	active    int // requests under way
	state     State
	why       string
	since     time.Time

	// What requests have shown, as in nginx: failures in a row of windows, the moment of
	// the last one, and the moment at which the present window began.
	fails             int
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
	circle    circle // of the primaries
}

// An upstream chooses servers for requests. It outlives reloads.
type upstream struct {
	name     string
	now      atomic.Pointer[generation]
	requests atomic.Uint64
	failures atomic.Uint64 // answered by nobody

	mu      sync.Mutex
	servers map[netip.AddrPort]*server
}

// A choice is what of a request counts for the policy.
type choice struct {
	client netip.Addr
	key    string
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
		t, err := newTransport(config)
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
			s = &server{address: at, text: at.String(), state: StateUnknown, since: time.Now(), weight: c.Weight, effective: c.Weight}
		}
		if c.Backup {
			g.backups = append(g.backups, s)
		} else {
			g.primaries = append(g.primaries, s)
		}
	}
	return g, nil
}

// commit makes a generation the one that counts.
func (u *upstream) commit(g *generation) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.servers = map[netip.AddrPort]*server{}
	all := slices.Concat(g.primaries, g.backups)
	for _, c := range g.config.Pool.Servers {
		at := g.config.Endpoint(c)
		i := slices.IndexFunc(all, func(s *server) bool { return s.address == at })
		s := all[i]
		if s.config.Weight != c.Weight {
			s.reweigh(c.Weight)
		}
		s.config = c
		u.servers[at] = s
	}
	if g.config.Policy == lb.Hash {
		g.circle = newCircle(g.primaries)
	}
	old := u.now.Swap(g)
	if old != nil && old.transport != g.transport {
		old.transport.retire()
	}
}

// pick chooses a server that has not had the request yet, and counts it as active.
// Backups come when no primary may be chosen. Where requests alone have shown
// failures everywhere, who has rested shortest of all is better than nobody. Nil: there
// is no server.
func (u *upstream) pick(g *generation, c choice, now time.Time) *server {
	u.mu.Lock()
	defer u.mu.Unlock()
	usable := func(s *server) bool {
		return s.weight > 0 && s.state != StateDown && s.state != StateDrained &&
			(g.config.MaxConns == 0 || s.active < g.config.MaxConns) && !slices.Contains(c.tried, s)
	}
	rested := func(s *server) bool { return usable(s) && !s.resting(g.config, now) }
	for _, ok := range []eligible{rested, usable} {
		for _, primary := range []bool{true, false} {
			s := g.choose(primary, ok, c)
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
	}
	return nil
}

// choose applies the policy.
func (g *generation) choose(primary bool, ok eligible, c choice) *server {
	servers := g.primaries
	if !primary {
		servers = g.backups
	}
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
	defer u.mu.Unlock()
	switch {
	case failed:
		s.fails++
		s.accessed, s.checked = now, now
		if g.config.MaxFails > 0 {
			s.effective = max(0, s.effective-s.weight/g.config.MaxFails)
		}
	case s.accessed.Before(s.checked): // it has rested since the last failure
		s.fails = 0
	}
}

// count tells how many servers the upstream has.
func (g *generation) count() int { return len(g.primaries) + len(g.backups) }
