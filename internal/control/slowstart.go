package control

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A SlowStart is where a server stands that came back a short while ago. The zero
// value: it has all of its weight.
type SlowStart struct {
	Percent int       // of its weight
	Ends    time.Time // when it has all of it
}

// effective returns the weights of servers, by place, with slow starts in them.
// Only their ratios mean something: where all that serve have come back together
// they are the ones that were asked for, as they are where none has.
func effective(servers []Server) []int {
	common := 0
	for _, s := range servers {
		if s.Serving {
			common = lb.GCD(common, s.percent())
		}
	}
	weights := make([]int, len(servers))
	for i, s := range servers {
		if s.Serving {
			weights[i] = s.Weight * (s.percent() / common)
		}
	}
	return weights
}

func (s Server) percent() int {
	if s.SlowStart.Percent == 0 {
		return 100
	}
	return s.SlowStart.Percent
}

// slowStarts follows who comes back. Backups have no slow start: they serve when
// nobody else can.
type slowStarts struct {
	services map[string]map[netip.AddrPort]*member // by name; those with a slow_start that have been seen
	stepped  time.Time                             // when servers that are back got more of their weight last
	next     time.Time                             // when they get more; zero: never
}

// A member is a server of a service, as far as its slow start is concerned.
type member struct {
	standing standing
	back     time.Time // since when it is back; zero: it has all of its weight
	percent  int
	next     time.Time // when there is more for it
}

// A standing is what has been known of a server so far.
type standing int

const (
	awaited standing = iota // it has had no chance to serve: the daemon starts
	serving
	away // it has failed, or was taken out of service, or is new beside others
)

// adopt learns who served when the daemon started. Who has no slot in a table
// that has owners is a newcomer, or was away.
func (r *slowStarts) adopt(services []lb.Service, stats loader.Stats) {
	r.services = map[string]map[netip.AddrPort]*member{}
	for _, s := range services {
		served := map[netip.AddrPort]bool{}
		for _, b := range countsOf(s, stats).Backends {
			if b.Slots > 0 {
				served[b.Address] = true
			}
		}
		if s.SlowStart == 0 || len(served) == 0 {
			continue
		}
		members := map[netip.AddrPort]*member{}
		for _, server := range s.Pool.Servers {
			m := &member{standing: away}
			if served[endpoint(s, server)] {
				m.standing = awaited
			}
			members[endpoint(s, server)] = m
		}
		r.services[s.Name] = members
	}
}

// observe writes into the views who has less than its weight now. It makes steps
// at most once a lb.LeastStep, however many servers are back.
func (r *slowStarts) observe(views []View, now time.Time) {
	stepping := !r.next.IsZero() && !now.Before(r.next)
	if stepping {
		r.stepped = now
	}
	r.next = time.Time{}
	seen := map[string]map[netip.AddrPort]*member{}
	for _, v := range views {
		total := v.Service.SlowStart
		if total == 0 {
			continue
		}
		before, known := r.services[v.Service.Name]
		members := map[netip.AddrPort]*member{}
		seen[v.Service.Name] = members
		for i := range v.Servers {
			s := &v.Servers[i]
			if s.Backup {
				continue
			}
			m := before[s.Address]
			if m == nil {
				m = &member{}
				if known {
					m.standing = away
				}
			}
			members[s.Address] = m
			began := m.turn(s, now)
			if m.back.IsZero() {
				continue
			}
			if stepping || began {
				m.step(total, now)
			}
			if m.back.IsZero() {
				continue
			}
			s.SlowStart = SlowStart{m.percent, m.back.Add(total)}
			if r.next.IsZero() || m.next.Before(r.next) {
				r.next = m.next
			}
		}
	}
	r.services = seen
	if earliest := r.stepped.Add(lb.LeastStep); !r.next.IsZero() && r.next.Before(earliest) {
		r.next = earliest
	}
}

// turn follows a server into service and out of it. Began: it is back as of now.
func (m *member) turn(s *Server, now time.Time) (began bool) {
	switch {
	case s.Serving:
		if began = m.standing == away; began {
			m.back = now
		}
		m.standing = serving
	case s.State == ServerUnknown, s.State == ServerNoRoute && m.standing == awaited:
		// It has not been asked yet, or its neighbour is still being resolved.
	default:
		m.standing, m.back = away, time.Time{}
	}
	return began
}

// step gives a server that is back what it has by now.
func (m *member) step(total time.Duration, now time.Time) {
	percent, next := lb.SlowStartAt(total, now.Sub(m.back))
	if percent == 100 {
		m.back = time.Time{}
		return
	}
	m.percent, m.next = percent, m.back.Add(next)
}
