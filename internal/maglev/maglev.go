// Package maglev builds the table that says which backend serves which slot.
//
// A Maglev table has a prime number of slots. Every backend ranks all of them in
// a pseudo-random order of its own, its permutation, and the backends take slots
// in that order, those with more weight faster. The construction has three
// properties that sluice is built on:
//
//   - Weights are met exactly: a backend of weight w out of a sum of W holds
//     size*w/W slots, rounded down or up. The largest remainders are rounded up;
//     among equal ones, those of the smaller keys.
//   - It is a pure function of the set of backends. Neither the order in which
//     they are given nor the past matters, and it computes in integers only, so
//     that all nodes, whatever their architecture, build the same table.
//   - A change of the set moves few slots beyond those that must move.
//
// The last one is where it differs from the construction in the Maglev paper.
// There a backend whose next slot is taken goes on to its next free one at once,
// so that one early change shifts what everybody finds free later. Here a slot
// belongs to whichever backend arrives first, where a backend of weight w arrives
// at the slot of rank k, counted from 0, at the time
//
//	(1/size + 1/(size-1) + ... + 1/(size-k)) / w
//
// That is when, on average, k+1 out of size exponential clocks have rung that run
// w times as fast. Without a limit this is weighted rendezvous hashing: a slot
// moves only when its owner leaves or is overtaken. The limit is the backend's
// quota: it is out of the race once it holds that many slots. The outcome is the
// only stable matching of backends and slots, one where nobody would have been
// earlier at a slot that it could still use, and so it does not depend on the
// order in which it is worked out.
//
// The race is run on positions. They are dealt out to slots by a shuffle that is
// the same for all tables of a size, because the first ranks of a permutation
// can lie close together.
package maglev

import (
	"cmp"
	"fmt"
	"slices"
)

// None is the value of a slot that belongs to no backend.
const None = -1

// The limits that keep the arithmetic below within 64 bits.
const (
	MaxSize   = 1 << 24 // slots of a table
	MaxWeight = 1 << 24 // of one backend
)

// A Backend is one owner of slots.
type Backend struct {
	// Key identifies the backend on all nodes, "192.0.2.11:80" for instance.
	// Its permutation depends on nothing else.
	Key string
	// Weight is the share of the slots, in relation to the other backends'. 0
	// means no slot. A positive weight may round to no slot, too, where it is
	// less than the sum of weights divided by the size of the table.
	Weight int
}

// A Table says which backend each slot belongs to.
type Table struct {
	Backends []Backend // as they were given to Build
	Slots    []int32   // by slot: index in Backends, or None
}

// Build makes the table of size slots for a set of backends. Two sets that are
// equal give the same owner for every slot, in whatever order they are given.
// Without a backend of positive weight every slot is None.
//
// It is an error if size is not a prime or exceeds MaxSize, if a key is empty or
// occurs twice, if a weight is negative or exceeds MaxWeight, and if more
// backends of positive weight are given than there are slots.
func Build(size int, backends []Backend) (*Table, error) {
	if err := validate(size, backends); err != nil {
		return nil, fmt.Errorf("build maglev table: %w", err)
	}
	m := newMatching(size, backends)
	m.run()
	t := &Table{Backends: slices.Clone(backends), Slots: make([]int32, size)}
	for pos, slot := range deal(size) {
		t.Slots[slot] = m.owners[pos]
	}
	return t, nil
}

func validate(size int, backends []Backend) error {
	if size > MaxSize {
		return fmt.Errorf("size %d exceeds %d", size, MaxSize)
	}
	if !isPrime(size) {
		return fmt.Errorf("size %d is not a prime", size)
	}
	seen := make(map[string]bool, len(backends))
	weighted := 0
	for i, b := range backends {
		switch {
		case b.Key == "":
			return fmt.Errorf("backend %d has no key", i)
		case seen[b.Key]:
			return fmt.Errorf("backend %s is given twice", b.Key)
		case b.Weight < 0:
			return fmt.Errorf("backend %s: weight %d is negative", b.Key, b.Weight)
		case b.Weight > MaxWeight:
			return fmt.Errorf("backend %s: weight %d exceeds %d", b.Key, b.Weight, MaxWeight)
		case b.Weight > 0:
			weighted++
		}
		seen[b.Key] = true
	}
	if weighted > size {
		return fmt.Errorf("%d backends do not fit into %d slots", weighted, size)
	}
	return nil
}

// isPrime reports whether n is a prime. n is at most MaxSize.
func isPrime(n int) bool {
	if n < 2 {
		return false
	}
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

// quotas returns how many slots each backend is to hold. They add up to size
// unless all weights are 0.
func quotas(size int, backends []Backend) []int {
	q := make([]int, len(backends))
	var sum int64
	for _, b := range backends {
		sum += int64(b.Weight)
	}
	if sum == 0 {
		return q
	}
	left := size
	remainders := make([]int64, len(backends))
	byRemainder := make([]int, len(backends))
	for i, b := range backends {
		share := int64(size) * int64(b.Weight)
		q[i], remainders[i] = int(share/sum), share%sum
		left -= q[i]
		byRemainder[i] = i
	}
	slices.SortFunc(byRemainder, func(i, j int) int {
		return cmp.Or(
			cmp.Compare(remainders[j], remainders[i]),
			cmp.Compare(backends[i].Key, backends[j].Key),
		)
	})
	// The remainders add up to left times sum and each is less than sum: if left
	// is not 0, more than left of them are not, so that a weight of 0 gets no slot.
	for _, i := range byRemainder[:left] {
		q[i]++
	}
	return q
}

// arrivals returns by rank when a backend of weight 1 arrives, in units of
// 2^-32. Below 2^37 for every size up to MaxSize.
func arrivals(size int) []uint64 {
	times := make([]uint64, size)
	var t uint64
	for k := range times {
		t += (1 << 32) / uint64(size-k)
		times[k] = t
	}
	return times
}

// A matching is the work of Build: the race for the positions.
type matching struct {
	owners   []int32  // by position: index in racers, or None
	reached  []uint64 // by position: when its owner arrived, before division by weight
	arrivals []uint64 // by rank, before division by weight
	racers   []racer  // by index in the set of backends
}

// A racer is a backend on its way through its permutation.
type racer struct {
	weight  uint64
	order   int // place among the keys, which breaks ties
	missing int // positions left to the quota
	rank    int // of pos
	pos     int
	skip    int
}

func newMatching(size int, backends []Backend) *matching {
	m := &matching{
		owners:   make([]int32, size),
		reached:  make([]uint64, size),
		arrivals: arrivals(size),
		racers:   make([]racer, len(backends)),
	}
	for pos := range m.owners {
		m.owners[pos] = None
	}
	byKey := make([]int, len(backends))
	for i := range byKey {
		byKey[i] = i
	}
	slices.SortFunc(byKey, func(i, j int) int { return cmp.Compare(backends[i].Key, backends[j].Key) })
	quota := quotas(size, backends)
	for order, i := range byKey {
		offset, skip := permutation(backends[i].Key, size)
		m.racers[i] = racer{
			weight:  uint64(backends[i].Weight),
			order:   order,
			missing: quota[i],
			pos:     offset,
			skip:    skip,
		}
	}
	return m
}

// run is deferred acceptance: a backend claims positions in the order of its
// permutation until it holds its quota; who loses one to an earlier arrival goes
// on where it stopped. All are claimed in the end because the quotas add up to
// the size and every permutation visits every position.
func (m *matching) run() {
	var waiting []int32
	for i := range m.racers {
		waiting = append(waiting, int32(i))
	}
	for len(waiting) > 0 {
		i := waiting[len(waiting)-1]
		waiting = waiting[:len(waiting)-1]
		r := &m.racers[i]
		for r.missing > 0 {
			loser, won := m.claim(i, r)
			if won {
				r.missing--
			}
			if loser != None {
				l := &m.racers[loser]
				if l.missing == 0 {
					waiting = append(waiting, loser)
				}
				l.missing++
			}
			r.rank++
			r.pos += r.skip
			if r.pos >= len(m.owners) {
				r.pos -= len(m.owners)
			}
		}
	}
}

// claim gives the position at which r is to backend i, its index, unless the
// owner arrived earlier. It returns who lost the position, or None.
func (m *matching) claim(i int32, r *racer) (loser int32, won bool) {
	owner, now := m.owners[r.pos], m.arrivals[r.rank]
	if owner != None {
		// Compares now/r.weight with reached/o.weight, without a division. Both
		// products are below 2^61.
		o := &m.racers[owner]
		mine, theirs := now*o.weight, m.reached[r.pos]*r.weight
		if mine > theirs || mine == theirs && r.order > o.order {
			return None, false
		}
	}
	m.owners[r.pos], m.reached[r.pos] = i, now
	return owner, true
}
