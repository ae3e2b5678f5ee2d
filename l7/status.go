package l7

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Status is how a proxy is.
type Status struct {
	Listeners   []ListenerStatus  `json:"listeners"` // by address
	Servers     []ServerStatus    `json:"servers"`   // in the order of the configuration
	Upstreams   []UpstreamStatus  `json:"upstreams"` // the same
	Connections ConnectionsStatus `json:"connections"`
	// LogDropped is how many lines of access logs were lost, since the disk was not fast
	// enough or the file cannot be written.
	LogDropped uint64 `json:"log_dropped"`
	// Problems are what is wrong, in words.
	Problems []string `json:"problems,omitempty"`
}

// A ListenerStatus is how a listener is.
type ListenerStatus struct {
	Address  netip.AddrPort `json:"address"`
	TLS      bool           `json:"tls"`
	Accepted uint64         `json:"accepted"`
	// Refused connections have failed in the PROXY protocol or in TLS.
	Refused uint64 `json:"refused"`
	// Malformed requests were no HTTP/1, or could be read in two ways: they ended their
	// connections.
	Malformed uint64 `json:"malformed"`
}

// A ServerStatus is how a virtual host is.
type ServerStatus struct {
	Name     string            `json:"name"`
	Listen   []netip.AddrPort  `json:"listen"`
	InFlight int64             `json:"in_flight"`
	Requests uint64            `json:"requests"`
	Answers  map[string]uint64 `json:"answers"` // by class: "2xx"
	Received uint64            `json:"received_bytes"`
	Sent     uint64            `json:"sent_bytes"`
}

// An UpstreamStatus is how an upstream is.
type UpstreamStatus struct {
	Name     string           `json:"name"`
	Pool     string           `json:"pool,omitempty"`
	Policy   string           `json:"policy"`
	Requests uint64           `json:"requests"`
	Failures uint64           `json:"failures"` // requests that no server has answered
	Sticky   *StickyStatus    `json:"sticky,omitempty"`
	Servers  []UpstreamServer `json:"servers"`
}

// A StickyStatus is how clients stay with their servers.
type StickyStatus struct {
	Cookie string `json:"cookie"`
	Moved  uint64 `json:"moved"` // requests that another server has answered than the cookie's
}

// A SlowStart tells how far a server is that came back a short while ago.
type SlowStart struct {
	Percent int       `json:"percent"` // of its weight
	Ends    time.Time `json:"ends"`    // when it has all of it
}

// An UpstreamServer is how a server of an upstream is.
type UpstreamServer struct {
	Address  netip.AddrPort `json:"address"`
	State    State          `json:"state"`
	Why      string         `json:"why,omitempty"`
	Since    time.Time      `json:"since"`
	Weight   int            `json:"weight"`
	Backup   bool           `json:"backup"`
	InFlight int            `json:"in_flight"`
	Requests uint64         `json:"requests"`
	Failures uint64         `json:"failures"`
	Bytes    uint64         `json:"bytes"` // of answers
	// SlowStart is there while it has less than its weight.
	SlowStart *SlowStart `json:"slow_start,omitempty"`
}

// Status tells how the proxy is.
func (p *Proxy) Status() Status {
	w := p.now.Load()
	s := Status{Listeners: []ListenerStatus{}, Servers: []ServerStatus{}, Upstreams: []UpstreamStatus{}}
	for at, l := range w.listeners {
		s.Listeners = append(s.Listeners, ListenerStatus{at, l.routes.Load().tls != nil, l.accepted.Load(), l.refused.Load(), l.malformed.Load()})
	}
	slices.SortFunc(s.Listeners, func(a, b ListenerStatus) int { return a.Address.Compare(b.Address) })
	seen := map[string]bool{}
	for _, v := range w.hosts {
		if seen[v.config.Name()] {
			continue // two of one name count as one
		}
		seen[v.config.Name()] = true
		s.Servers = append(s.Servers, v.status())
	}
	for _, u := range w.upstreams {
		s.Upstreams = append(s.Upstreams, u.status(time.Now()))
	}
	if l := w.log; l != nil {
		if problem := l.Problem(); problem != "" {
			s.Problems = append(s.Problems, problem)
		}
	}
	for _, c := range w.certs {
		if problem := c.Problem(time.Now()); problem != "" {
			s.Problems = append(s.Problems, problem)
		}
	}
	s.LogDropped = p.linesLost.Load()
	s.Connections = p.connections()
	if c := s.Connections; p.room.crowded(time.Now()) {
		s.Problems = append(s.Problems, fmt.Sprintf("%d connections of clients and %d to servers are as many as there may be: new ones wait (max_connections, and the limit of open files)", c.Open, c.Servers))
	}
	if c := s.Connections; w.config.MaxConnections > c.Max {
		s.Problems = append(s.Problems, fmt.Sprintf("max_connections is %d, and the limit of open files is good for %d: raise it (LimitNOFILE)", w.config.MaxConnections, c.Max))
	}
	slices.Sort(s.Problems)
	return s
}

func (v *virtualHost) status() ServerStatus {
	s := ServerStatus{Name: v.config.Name(), InFlight: v.stats.inFlight.Load(), Requests: v.stats.requests.Load(), Answers: map[string]uint64{}}
	for _, l := range v.config.Listen {
		s.Listen = append(s.Listen, l.Address)
	}
	for i := range v.stats.classes {
		s.Answers[string(rune('1'+i))+"xx"] = v.stats.classes[i].Load()
	}
	s.Received, s.Sent = v.stats.received.Load(), v.stats.sent.Load()
	return s
}

func (u *upstream) status(now time.Time) UpstreamStatus {
	g := u.now.Load()
	s := UpstreamStatus{Name: u.name, Pool: g.config.Pool.Name, Policy: string(g.config.Policy), Requests: u.requests.Load(), Failures: u.failures.Load()}
	if g.sticky != nil {
		s.Sticky = &StickyStatus{g.sticky.config.Cookie, u.moved.Load()}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range g.config.Pool.Servers {
		b := u.servers[g.config.Endpoint(c)]
		if b == nil {
			continue
		}
		state, why := b.state, b.why
		if (state == StateUp || state == StateUnknown) && b.resting(g.config, now) {
			state, why = StateFailing, "requests have failed"
		}
		s.Servers = append(s.Servers, UpstreamServer{
			Address: b.address, State: state, Why: why, Since: b.since, Weight: b.wanted, Backup: c.Backup, SlowStart: b.slowStart(g.config.SlowStart, now),
			InFlight: b.active, Requests: b.requests.Load(), Failures: b.failures.Load(), Bytes: b.bytes.Load(),
		})
	}
	return s
}

// ServerStats count what a virtual host does. They outlive reloads.
type serverStats struct {
	inFlight       atomic.Int64
	requests       atomic.Uint64
	classes        [5]atomic.Uint64 // of answers: 1xx to 5xx
	received, sent atomic.Uint64
}

func (s *serverStats) begin() {
	s.inFlight.Add(1)
	s.requests.Add(1)
}

func (s *serverStats) end(status int, received, sent int64) {
	s.inFlight.Add(-1)
	s.classes[min(max(status/100, 1), 5)-1].Add(1)
	s.received.Add(uint64(received))
	s.sent.Add(uint64(sent))
}

// A statsBook has the counts of all virtual hosts that there were, by name.
type statsBook struct {
	mu  sync.Mutex
	all map[string]*serverStats
}

func (b *statsBook) of(name string) *serverStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil {
		b.all = map[string]*serverStats{}
	}
	s := b.all[name]
	if s == nil {
		s = &serverStats{}
		b.all[name] = s
	}
	return s
}

// Serves tells whether the server may be given requests, as far as is known: one that
// rests after failures is asked where no other is there.
func (b *UpstreamServer) Serves() bool {
	return b.Weight > 0 && b.State != StateDown && b.State != StateDrained
}

// Able tells whether an upstream can serve, by what probes and operators say: that
// requests fail is not for who elects an Active node. Not known: nothing is known yet of a
// server that could make a difference, or there is no such upstream.
func (p *Proxy) Able(name string) (known bool, problem string) {
	for _, u := range p.now.Load().upstreams {
		if u.name == name {
			return u.able()
		}
	}
	return false, ""
}

func (u *upstream) able() (known bool, problem string) {
	g := u.now.Load()
	u.mu.Lock()
	defer u.mu.Unlock()
	known = true
	for _, s := range slices.Concat(g.primaries, g.backups) {
		switch {
		case !s.serves():
		case s.state == StateUp || g.config.Pool.Probe == nil:
			return true, ""
		default:
			known = false
		}
	}
	if !known {
		return false, ""
	}
	return true, "down: no server can serve"
}

// Reason says what there is to say of a server beside its numbers.
func (b UpstreamServer) Reason(now time.Time) string {
	slow := ""
	if s := b.SlowStart; s != nil {
		slow = fmt.Sprintf("slow start, %d %%, %v left", s.Percent, max(0, s.Ends.Sub(now)).Round(time.Second))
	}
	if b.Why != "" && slow != "" {
		return b.Why + "; " + slow
	}
	return b.Why + slow
}
