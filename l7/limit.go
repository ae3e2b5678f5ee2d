package l7

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// limiterKeys bounds the keys that a limiter knows; twice as many are in memory.
const limiterKeys = 1 << 16

// A limiter bounds the requests of each key, as a bucket that leaks: a key's moment is
// when all its requests up to now would have been right, one each interval.
//
// It forgets the keys that were not used for longest, all at once: those that still
// count are in the younger of two maps, since each use moves a key there. A flood of
// more keys than it has room for makes it lenient, not large.
type limiter struct {
	interval time.Duration // between two requests of a key
	burst    time.Duration // how far the moment may be ahead
	seed     maphash.Seed
	begun    time.Time
	most     int

	mu           sync.Mutex
	young, older map[uint64]time.Duration // moments, since begun
}

func newLimiter(l *lb.RateLimit) *limiter {
	interval := time.Duration(float64(time.Second) / l.Rate)
	return &limiter{
		interval: interval, burst: time.Duration(l.Burst) * interval, seed: maphash.MakeSeed(), begun: time.Now(), most: limiterKeys,
		young: map[uint64]time.Duration{},
	}
}

// allows tells whether a request with this key is within the limit, and counts it if
// it is.
func (l *limiter) allows(key string, now time.Time) bool {
	id, at := maphash.String(l.seed, key), now.Sub(l.begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	moment, known := l.young[id]
	if !known {
		moment = l.older[id]
	}
	moment = max(moment, at)
	allowed := moment-at <= l.burst
	if allowed {
		moment += l.interval
	}
	if len(l.young) >= l.most && !known {
		l.young, l.older = map[uint64]time.Duration{}, l.young
	}
	l.young[id] = moment
	return allowed
}
