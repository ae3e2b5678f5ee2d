package dns

import (
	"cmp"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A record is a name with a pool behind it.
type record struct {
	config *lb.DNSRecord
	pool   *pool
	stats  *recordStats
}

// recordStats are what a record has counted, and whose turn it is. They outlive
// reloads.
type recordStats struct {
	queries atomic.Uint64
	v4, v6  turns
}

// turns are whose turn it is among the candidates of one family.
type turns struct {
	mu      sync.Mutex
	begun   uint64  // answers of round_robin so far
	current []int   // of weighted, parallel to the candidates of of
	of      *choice // another one begins anew
}

// addresses chooses the addresses of an answer, in their order.
func (r *record) addresses(v6 bool, client netip.Addr) []netip.Addr {
	c := r.pool.now.Load()
	candidates, t := c.of(v6), &r.stats.v4
	if v6 {
		t = &r.stats.v6
	}
	if len(candidates) == 0 {
		return nil
	}
	switch r.config.Policy {
	case lb.DNSRoundRobin:
		candidates = t.rotate(candidates)
	case lb.DNSWeighted:
		candidates = t.weighted(c, candidates)
	case lb.DNSSourceHash:
		candidates = bySource(candidates, client)
	}
	if n := r.config.Answers; n > 0 && n < len(candidates) {
		candidates = candidates[:n]
	}
	all := make([]netip.Addr, len(candidates))
	for i, k := range candidates {
		all[i] = k.address
		for _, s := range k.servers {
			s.given.Add(1)
		}
	}
	return all
}

// rotate returns the candidates from the next one on, and the others behind them.
func (t *turns) rotate(all []candidate) []candidate {
	t.mu.Lock()
	first := int(t.begun % uint64(len(all)))
	t.begun++
	t.mu.Unlock()
	return slices.Concat(all[first:], all[:first])
}

// weighted is smooth weighted round robin, as that of layer 7: each candidate's current
// weight grows by its weight, and the greatest falls by the sum. The others follow in the
// order in which their turn would be.
func (t *turns) weighted(of *choice, all []candidate) []candidate {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of != of {
		t.of, t.current = of, make([]int, len(all))
	}
	sum, order := 0, make([]int, len(all))
	for i, c := range all {
		t.current[i] += c.weight
		sum += c.weight
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(t.current[j], t.current[i]) })
	t.current[order[0]] -= sum
	ordered := make([]candidate, len(all))
	for k, i := range order {
		ordered[k] = all[i]
	}
	return ordered
}

// bySource orders candidates by the client's network, so that each network has one of
// its own, as often as weights say, which changes only if that one comes or goes
// (rendezvous hashing). Two nodes have the same order.
func bySource(all []candidate, client netip.Addr) []candidate {
	type scored struct {
		candidate
		score float64
	}
	network := networkOf(client).Addr()
	scores := make([]scored, len(all))
	for i, c := range all {
		// Of the logarithms of even draws from 0 to 1 the greatest, divided by its
		// weight, is each candidate's as often as its weight says.
		scores[i] = scored{c, math.Log(draw(network, c.address)) / float64(c.weight)}
	}
	slices.SortStableFunc(scores, func(a, b scored) int { return cmp.Compare(b.score, a.score) })
	ordered := make([]candidate, len(all))
	for i, s := range scores {
		ordered[i] = s.candidate
	}
	return ordered
}

// draw is a number above 0 and below 1 that depends on two addresses.
func draw(network, server netip.Addr) float64 {
	h := fnv.New64a()
	a, b := network.As16(), server.As16()
	h.Write(a[:])
	h.Write(b[:])
	x := h.Sum64()
	// FNV leaves the last bytes' marks in the low bits only; this mixes them.
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return (float64(x>>11) + 0.5) / (1 << 53)
}

// What of an address is a client's network.
const (
	network4 = 24
	network6 = 56
)

// networkOf is the network of a client, as source_hash and the rate limit know it.
func networkOf(client netip.Addr) netip.Prefix {
	bits := network4
	if client.Is6() {
		bits = network6
	}
	p, err := client.Prefix(bits)
	if err != nil { // the zero address
		return netip.Prefix{}
	}
	return p
}
