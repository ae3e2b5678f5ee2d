package dns

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// limiterKeys bounds the keys that a limiter knows; twice as many are in memory, some
// 7 MB.
const limiterKeys = 1 << 16

// An answerKind is what answers have in common that are counted together: what the
// client asked for is part of it only where the configuration knows it, so that nobody
// makes many kinds by asking for many names.
type answerKind struct {
	rcode int
	name  string // of what has answered: a record's, a name server's, or the zone's
	of    uint16 // the type that was asked for, where there is such a record
}

// What becomes of an answer.
type passage int

const (
	passes passage = iota
	slips          // it is sent cut short, so that a client which is there comes back over TCP
	isDropped
)

// A limiter bounds the answers of one kind to one network: a bucket that leaks. A
// network's moment is when all its answers up to now would have been right, one each
// interval.
//
// It forgets the keys that were not used for longest, all at once: those that still count
// are in the younger of two maps, since each use moves a key there. A flood of more keys
// than it has room for makes it lenient, not large.
type limiter struct {
	config   *lb.DNSRateLimit
	interval time.Duration // between two answers
	burst    time.Duration // how far the moment may be ahead
	seed     maphash.Seed
	begun    time.Time
	most     int

	mu           sync.Mutex
	young, older map[uint64]bucket
}

type bucket struct {
	moment time.Duration // since begun
	over   uint32        // answers that were too many, in a row
}

type limiterKey struct {
	network netip.Prefix
	kind    answerKind
}

func newLimiter(config *lb.DNSRateLimit) *limiter {
	interval := time.Second / time.Duration(config.Rate)
	return &limiter{
		config: config, interval: interval, burst: time.Duration(config.Burst) * interval, seed: maphash.MakeSeed(),
		begun: time.Now(), most: limiterKeys, young: map[uint64]bucket{},
	}
}

// judge tells what becomes of an answer to a client, and counts it.
func (l *limiter) judge(client netip.Addr, kind answerKind, now time.Time) passage {
	if slices.ContainsFunc(l.config.Exempt, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return passes
	}
	id, at := maphash.Comparable(l.seed, limiterKey{networkOf(client), kind}), now.Sub(l.begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.young[id]
	if !known {
		b = l.older[id]
	}
	b.moment = max(b.moment, at)
	p := passes
	if b.moment-at <= l.burst {
		b.moment += l.interval
		b.over = 0
	} else {
		b.over++
		p = isDropped
		if l.config.Slip > 0 && b.over%uint32(l.config.Slip) == 0 {
			p = slips
		}
	}
	if len(l.young) >= l.most && !known {
		l.young, l.older = make(map[uint64]bucket), l.young
	}
	l.young[id] = b
	return p
}
