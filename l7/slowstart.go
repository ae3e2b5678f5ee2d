package l7

import (
	"hash/crc32"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A ramp is where a server of an upstream stands that came back a short while ago. It is
// guarded by the upstream's mu.
type ramp struct {
	away    bool      // it does not serve, or is new beside others
	back    time.Time // since when it serves again; zero: it has all of its weight
	percent int       // of its weight; 0: all
	// withheld is how many of a hundred keys go to others, that would be its own: what
	// it has less than the server that has most.
	withheld int
}

// turn follows a server into service and out of it. Backups have no slow start: they
// serve when nobody else can.
func (s *server) turn(g *generation, now time.Time) {
	switch {
	case !s.serves():
		s.ramp = ramp{away: true}
	case s.config.Backup || g.config.SlowStart == 0:
		s.ramp = ramp{}
	case s.ramp.away:
		s.ramp = ramp{back: now}
	}
}

// serves tells whether a server is given requests, as far as health and operators say.
func (s *server) serves() bool {
	return s.wanted > 0 && s.state != StateDown && s.state != StateDrained
}

// step gives servers what they have of their weights by now. Only the ratios mean
// something: where all that serve have come back together they have all of it. The
// upstream's mu is held.
func (u *upstream) step(g *generation, now time.Time) {
	u.nextStep = time.Time{}
	common, most := 0, 0
	for _, s := range g.primaries {
		percent := u.climb(s, g.config.SlowStart, now)
		if s.serves() {
			common, most = lb.GCD(common, percent), max(most, percent)
		}
	}
	for _, s := range g.primaries {
		weight := s.wanted
		s.ramp.withheld = 0
		switch percent := s.percent(); {
		case !s.serves():
		case g.config.Policy == lb.Hash || g.config.Policy == lb.IPHash: // other weights would move the keys of others, too
			s.ramp.withheld = 100 - percent*100/most
		default:
			weight = s.wanted * (percent / common)
		}
		if weight != s.weight {
			s.reweigh(weight)
		}
	}
	for _, s := range g.backups {
		if s.wanted != s.weight {
			s.reweigh(s.wanted)
		}
	}
}

// climb brings a slow start to where it is by now, and has the next step made in time.
func (u *upstream) climb(s *server, total time.Duration, now time.Time) (percent int) {
	if s.ramp.back.IsZero() {
		s.ramp.percent = 0
		return 100
	}
	percent, next := lb.SlowStartAt(total, now.Sub(s.ramp.back))
	if percent == 100 {
		s.ramp = ramp{}
		return 100
	}
	s.ramp.percent = percent
	if at := s.ramp.back.Add(next); u.nextStep.IsZero() || at.Before(u.nextStep) {
		u.nextStep = at
	}
	return percent
}

func (s *server) percent() int {
	if s.ramp.percent == 0 {
		return 100
	}
	return s.ramp.percent
}

// takes tells whether a server that has not all of its weight yet takes a key that would
// be its own. Which ones it does not take is the same for all requests: their keys come
// back to it one after the other, and no other server's keys move.
func (s *server) takes(key string) bool {
	return s.ramp.withheld == 0 || int(crc32.Checksum([]byte(key), castagnoli)%100) >= s.ramp.withheld
}

// castagnoli is another CRC than the circle's: there the keys of one server are neighbours.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// slowKey is what a choice is by, where the policy is by a key and a server does not take
// all of its own.
func (g *generation) slowKey(c choice) (string, bool) {
	switch {
	case !c.slow:
	case g.config.Policy == lb.Hash:
		return c.key, true
	case g.config.Policy == lb.IPHash:
		return string(network(c.client)), true
	}
	return "", false
}

// network is what of a client's address counts for ip_hash, as in nginx: the first three
// octets of IPv4, all of IPv6.
func network(client netip.Addr) []byte {
	octets := client.AsSlice()
	if client.Is4() {
		octets = octets[:3]
	}
	return octets
}

// slowStart tells how far a slow start is; nil: the server has all of its weight.
func (s *server) slowStart(total time.Duration, now time.Time) *SlowStart {
	if s.ramp.back.IsZero() {
		return nil
	}
	percent, _ := lb.SlowStartAt(total, now.Sub(s.ramp.back))
	if percent == 100 {
		return nil
	}
	return &SlowStart{percent, s.ramp.back.Add(total)}
}
