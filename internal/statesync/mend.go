// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Bounds of mends.
const (
	// mendShare is the most that is mended at a time: one bucket in so many, but
	// mendLeast of them.
	mendShare = 16
	mendLeast = 8
	// maxMended bounds the flows that one mend may be about.
	maxMended = 1 << 17
	// A bucket that differs gains points each time, and is mended when it has enough: the
	// second time if nothing was on its way, the fourth if something always was.
	pointsClean = 2
	pointsBusy  = 1
	pointsMend  = 4
	// maxPatience bounds, as a power of two, the comparisons that a bucket is left alone
	// that goes on to differ when it was mended: the Sink has no use for some of it.
	maxPatience = 6
)

// suspects are what earlier comparisons have said of the buckets.
type suspects struct {
	bucketing
	points   []uint8
	pause    []uint8 // comparisons for which it is left alone
	patience []uint8 // how often it was mended, and differed again
	differ   int     // buckets that differed the last time, with nothing on its way
}

// A comparison is of a peer's digests and what this node has from it.
type comparison struct {
	digests
}

// A mending is a mend that is under way.
type mending struct {
	begun time.Time
	selection
	mentioned map[uint64]struct{} // hashes of flows
	held      chan []lb.FlowID    // of those buckets; one value
	full      bool                // more flows than were expected: nothing is over
}

// touch notes which flows come while something else looks at what is held.
func (c *incoming) touch(states []lb.FlowState) {
	c.mu.Lock()
	if k := c.compare; k != nil {
		for i := range states {
			k.busy.set(k.of(hashID(k.seed, &states[i].FlowID)))
		}
	}
	c.mu.Unlock()
	m := c.mending
	if m == nil {
		return
	}
	for i := range states {
		h := hashID(m.seed, &states[i].FlowID)
		if !m.chosen.has(m.of(h)) {
			continue
		}
		if m.full = m.full || len(m.mentioned) >= maxMended; !m.full {
			m.mentioned[h] = struct{}{}
		}
	}
}

// takeDigests begins to compare, unless an earlier comparison goes on.
func (c *incoming) takeDigests(ctx context.Context, body []byte) error {
	d, err := readDigests(body)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compare != nil || !c.synced {
		return nil
	}
	k := &comparison{digests: d}
	c.compare = k
	c.compares.Go(func() { c.compareWith(ctx, k) })
	return nil
}

// compareWith sums up what is held, and asks for what differs.
func (c *incoming) compareWith(ctx context.Context, k *comparison) {
	sums, seen, broken := make([]uint64, k.count()), 0, false
	for s, err := range c.node.sink.Held(c.peer.Name) {
		if seen++; err != nil || seen%1024 == 0 && ctx.Err() != nil {
			broken = true
			break
		}
		id := hashID(k.seed, &s.FlowID)
		sums[k.of(id)] += hashState(id, &s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compare = nil
	if broken || !c.synced || ctx.Err() != nil {
		return
	}
	if chosen := c.suspects.judge(k, sums); chosen != nil {
		c.want = &selection{bucketing: k.bucketing, chosen: chosen}
		c.mends++
		c.poke()
	}
}

// judge says what is to be mended; nil: nothing.
func (s *suspects) judge(k *comparison, sums []uint64) bitset {
	if s.bucketing != k.bucketing {
		n := k.count()
		*s = suspects{bucketing: k.bucketing, points: make([]uint8, n), pause: make([]uint8, n), patience: make([]uint8, n)}
	}
	s.differ = 0
	most, chosen := max(k.count()/mendShare, mendLeast), newBitset(k.count())
	n := 0
	for i, sum := range sums {
		switch {
		case sum == k.sums[i]:
			s.points[i], s.pause[i], s.patience[i] = 0, 0, 0
			continue
		case k.busy.has(i):
			s.points[i] = min(s.points[i]+pointsBusy, pointsMend)
		default:
			s.points[i] = min(s.points[i]+pointsClean, pointsMend)
			s.differ++
		}
		if s.pause[i] > 0 {
			s.pause[i]--
			continue
		}
		if s.points[i] < pointsMend || n == most {
			continue
		}
		chosen.set(i)
		n++
		s.points[i] = 0
		s.pause[i] = 1<<s.patience[i] - 1
		s.patience[i] = min(s.patience[i]+1, maxPatience)
	}
	if n == 0 {
		return nil
	}
	return chosen
}

// beginMend looks up what is held of the buckets that are mended, while they come.
func (c *incoming) beginMend(ctx context.Context, body []byte) error {
	s, err := readSelection(body)
	if err != nil {
		return err
	}
	m := &mending{begun: time.Now(), selection: s, mentioned: map[uint64]struct{}{}, held: make(chan []lb.FlowID, 1)}
	c.mending = m
	c.compares.Go(func() { m.held <- c.heldOf(ctx, &m.selection) })
	return nil
}

// heldOf returns which flows are held of some buckets.
func (c *incoming) heldOf(ctx context.Context, m *selection) (all []lb.FlowID) {
	seen := 0
	for s, err := range c.node.sink.Held(c.peer.Name) {
		if seen++; err != nil || len(all) == maxMended || seen%1024 == 0 && ctx.Err() != nil {
			return nil
		}
		if m.chosen.has(m.of(hashID(m.seed, &s.FlowID))) {
			all = append(all, s.FlowID)
		}
	}
	return all
}

// endMend ends the flows that were held and not mentioned: their end has been missed.
func (c *incoming) endMend(ctx context.Context) error {
	m := c.mending
	c.mending = nil
	if m == nil {
		return nil // a snapshot came in between
	}
	var held []lb.FlowID
	select {
	case held = <-m.held:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if m.full {
		return nil
	}
	var over []lb.FlowState
	for _, id := range held {
		if _, ok := m.mentioned[hashID(m.seed, &id)]; !ok {
			over = append(over, lb.FlowState{FlowID: id, Phase: lb.FlowOver, Idle: time.Since(m.begun)})
		}
	}
	for len(over) > 0 {
		n := min(len(over), batchRecords)
		if err := c.applyFlows(over[:n]); err != nil {
			return err
		}
		over = over[n:]
	}
	return nil
}
