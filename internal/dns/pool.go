package dns

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A State is what is known about a server of a pool.
type State string

// The states.
const (
	StateUnknown  State = "unknown" // not probed yet
	StateUp       State = "up"
	StateDown     State = "down"
	StateDrained  State = "drained"  // an operator wants nothing new to go there
	StateDisabled State = "disabled" // by an operator: as if it had failed
)

// Health tells what is known of a server of a record's pool. All records of a pool have
// it probed in the same way. It is asked in Refresh.
type Health func(*lb.DNSRecord, lb.Server) Standing

// A Standing is what is known of a server.
type Standing struct {
	State  State
	Why    string
	Weight int // as operators want it
}

// An Event is a change of what is known about a server of a pool.
type Event struct {
	Pool, Server string
	From, To     State
	Text         string // why
}

// A server is one of a pool. It outlives reloads.
type server struct {
	endpoint netip.AddrPort // where it is probed; the port may be 0
	text     string         // the same, without a port of 0
	given    atomic.Uint64  // for how many answers it was chosen

	// Guarded by the pool's mu.
	config lb.Server
	state  State
	why    string
	weight int
	since  time.Time
}

// A pool has the servers of a pool, and what is known of them. It outlives reloads.
type pool struct {
	name string
	now  atomic.Pointer[choice]

	mu      sync.Mutex
	record  *lb.DNSRecord // one that has it
	servers []*server     // in the order of the configuration
}

// A choice is which servers may be given. It is never changed.
type choice struct {
	v4, v6 []candidate // in the order of the configuration
	// healthy is false where no server is: then those are given that were not taken out
	// on purpose.
	healthy bool
}

// A candidate is an address that may be given: that of several servers, where they
// differ by their ports.
type candidate struct {
	address netip.Addr
	weight  int
	servers []*server
}

// configure makes the pool that of a record. What is known of those that stay is kept.
// They count once learn has been called.
func (p *pool) configure(record *lb.DNSRecord, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := map[netip.AddrPort]*server{}
	for _, s := range p.servers {
		known[s.endpoint] = s
	}
	p.record, p.servers = record, nil
	for _, c := range record.Pool.Servers {
		at := record.Endpoint(c)
		s := known[at]
		if s == nil {
			s = &server{endpoint: at, text: at.String(), state: StateUnknown, weight: c.Weight, since: now}
			if at.Port() == 0 {
				s.text = at.Addr().String()
			}
		}
		if s.config.Weight != c.Weight {
			s.weight = c.Weight
		}
		s.config = c
		p.servers = append(p.servers, s)
	}
	if p.now.Load() == nil {
		p.choose()
	}
}

// choose has what is known of the servers count. A choice that is the one of before stays,
// and with it whose turn it is. p.mu is held.
func (p *pool) choose() {
	next := choose(p.servers)
	if now := p.now.Load(); now == nil || !next.same(now) {
		p.now.Store(next)
	}
}

// learn has what is known of the servers count, and tells what has changed.
func (p *pool) learn(health Health, now time.Time) (changed []Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.servers {
		known := health(p.record, s.config)
		before := s.state
		s.why, s.weight = known.Why, known.Weight
		if before == known.State {
			continue
		}
		s.state, s.since = known.State, now
		if before != StateUnknown || known.State != StateUp {
			changed = append(changed, Event{p.name, s.text, before, known.State, known.Why})
		}
	}
	p.choose()
	return changed
}

// ranks of servers: those of the first rank that has any are given.
const (
	rankUp = iota
	rankUnknown
	rankBackupUp
	rankBackupUnknown
	rankDown // and only if there is no other
	ranks
)

// rank tells when a server may be given; false: never.
func (s *server) rank() (int, bool) {
	if s.weight == 0 {
		return 0, false
	}
	rank := rankUp
	if s.config.Backup {
		rank = rankBackupUp
	}
	switch s.state {
	case StateUp:
		return rank, true
	case StateUnknown:
		return rank + 1, true
	case StateDown:
		return rankDown, true
	}
	return 0, false
}

// choose finds who may be given: of the servers that an operator and their weights
// allow, the healthy ones; the backup servers, if all others fail; all, if none is
// healthy. That is decided for both families together: where clients can use the healthy
// servers of one family, they are not given servers of the other one that fail.
func choose(servers []*server) *choice {
	best := ranks
	for _, s := range servers {
		if r, ok := s.rank(); ok {
			best = min(best, r)
		}
	}
	c := &choice{healthy: best < rankDown}
	for _, s := range servers {
		if r, ok := s.rank(); !ok || r != best {
			continue
		}
		into := &c.v4
		if s.config.Address.Is6() {
			into = &c.v6
		}
		*into = join(*into, s)
	}
	return c
}

// join adds a server to candidates: to the one that has its address, if there is one.
func join(all []candidate, s *server) []candidate {
	for i := range all {
		if all[i].address == s.config.Address {
			all[i].weight += s.weight
			all[i].servers = append(all[i].servers, s)
			return all
		}
	}
	return append(all, candidate{s.config.Address, s.weight, []*server{s}})
}

// of returns the candidates of a family.
func (c *choice) of(v6 bool) []candidate {
	if v6 {
		return c.v6
	}
	return c.v4
}

// same tells whether two choices give the same addresses in the same way.
func (c *choice) same(o *choice) bool {
	equal := func(a, b candidate) bool {
		return a.address == b.address && a.weight == b.weight && slices.Equal(a.servers, b.servers)
	}
	return c.healthy == o.healthy && slices.EqualFunc(c.v4, o.v4, equal) && slices.EqualFunc(c.v6, o.v6, equal)
}
