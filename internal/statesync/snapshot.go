// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

func newBucketing(flows int) bucketing {
	return bucketing{seed: rand.Uint64(), bits: bucketBits(flows)}
}

// flowsPerBucket is how many there are in a bucket, or a few more: so many are sent
// again when one of them is wrong.
const flowsPerBucket = 64

func bucketBits(flows int) uint8 {
	return uint8(min(max(bits.Len(uint(flows/flowsPerBucket)), minBucketBits), maxBucketBits))
}

// snapshotDue reports whether one is to be sent now. Before the peer has told its services
// nobody knows which tables belong to it.
func (o *outgoing) snapshotDue(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wanted && o.services.theirs != nil && !now.Before(o.wantedFrom)
}

// sendSnapshot sends everything, between what changes meanwhile; tables and operators'
// changes, too, before its end, since a peer counts as in sync from there on. What is lost
// on the way makes another one due.
func (o *outgoing) sendSnapshot(ctx context.Context) error {
	o.mu.Lock()
	o.wanted, o.snapshot, o.begun = false, true, time.Now()
	o.mu.Unlock()
	owned := o.node.source.Owned()
	if len(owned) > maxOwned {
		return fmt.Errorf("%w: %d VIPs, %d is the most", errOversized, len(owned), maxOwned)
	}
	begin := func(b []byte) []byte { return appendOwned(b, owned) }
	if err := o.say(ctx, kindSnapshotBegin, sent{}, begin); err != nil {
		return err
	}
	flows, broken, err := o.stream(ctx, func(*lb.FlowState) bool { return true })
	if err != nil {
		return err
	}
	broken = broken || !slices.Equal(owned, o.node.source.Owned())
	o.mu.Lock()
	o.snapshot = false
	switch {
	case broken:
		o.wanted, o.wantedFrom = true, time.Now().Add(o.node.tuning.again)
	case o.wanted: // changes were lost meanwhile, or the VIPs are others
		broken = true
	default:
		o.snapshots++
		if want := bucketBits(flows); want+1 < o.buckets.bits || want > o.buckets.bits+1 || o.snapshots == 1 {
			o.buckets.bits = want
		}
	}
	o.mu.Unlock()
	if broken {
		return nil // the next beginning takes this one back
	}
	if _, err := o.some(ctx); err != nil {
		return err
	}
	return o.say(ctx, kindSnapshotEnd, sent{snapshot: true, since: time.Now()}, nil)
}

// readAhead is how many states a Source may have read before it yields them.
const readAhead = 1 << 16

// recent are the flows whose change was sent while a snapshot goes on. What the
// Source has read of one before that must not come after it; and if it is of after that,
// another change follows. It forgets what a Source cannot have read ahead of.
type recent struct {
	seed        uint64
	now, before map[uint64]struct{} // hashes of flows
	seen        int
}

func (r *recent) begin() {
	r.seed, r.seen = rand.Uint64(), 0
	r.now, r.before = map[uint64]struct{}{}, map[uint64]struct{}{}
}

func (r *recent) end() { r.now, r.before = nil, nil }

// sent notes a flow whose change is sent.
func (r *recent) sent(id *lb.FlowID) {
	if r.now != nil {
		r.now[hashID(r.seed, id)] = struct{}{}
	}
}

// step is called for each state that a Source yields.
func (r *recent) step() {
	if r.seen++; r.seen%readAhead == 0 {
		r.now, r.before = map[uint64]struct{}{}, r.now
	}
}

// overtaken reports whether a state of the snapshot may be older than one that was sent.
func (r *recent) overtaken(id *lb.FlowID) bool {
	if len(r.now)+len(r.before) == 0 {
		return false
	}
	h := hashID(r.seed, id)
	if _, ok := r.now[h]; ok {
		return true
	}
	_, ok := r.before[h]
	return ok
}

// stream sends the flows that keep wants, and in between whatever else waits. Broken
// says that the Source could not name all.
func (o *outgoing) stream(ctx context.Context, keep func(*lb.FlowState) bool) (flows int, broken bool, err error) {
	const lookEvery = 1024
	o.recent.begin()
	defer o.recent.end()
	o.bulk.records = 0
	var s lb.FlowState // one for all, since it escapes
	for state, err := range o.node.source.Snapshot() {
		if err != nil {
			o.node.warn("snapshot", "sync: the state of this node cannot be read", "error", err)
			return flows, true, ctx.Err()
		}
		flows++
		o.recent.step()
		s = state
		went := false
		if keep(&s) && !o.recent.overtaken(&s.FlowID) {
			if err := o.add(ctx, &o.bulk, &s, time.Time{}); err != nil {
				return flows, false, err
			}
			went = o.bulk.records == 0
		}
		if !went && flows%lookEvery != 0 {
			continue
		}
		// What was read must not be sent behind what changes since.
		if err := o.flush(ctx, &o.bulk, time.Time{}); err != nil {
			return flows, false, err
		}
		if _, err := o.some(ctx); err != nil {
			return flows, false, err
		}
	}
	return flows, false, o.flush(ctx, &o.bulk, time.Time{})
}

func (o *outgoing) mendDue() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mend != nil
}

// sendMend sends what is in the buckets that the peer has asked for. It is a snapshot
// of them.
func (o *outgoing) sendMend(ctx context.Context) error {
	o.mu.Lock()
	m := o.mend
	o.mend = nil
	o.mends++
	o.mu.Unlock()
	if err := o.say(ctx, kindMendBegin, sent{}, m.append); err != nil {
		return err
	}
	_, broken, err := o.stream(ctx, func(s *lb.FlowState) bool {
		return m.chosen.has(m.of(hashID(m.seed, &s.FlowID)))
	})
	if err != nil || broken {
		return err // the peer asks again
	}
	return o.say(ctx, kindMendEnd, sent{}, nil)
}

// asked takes the peer's wish for buckets.
func (o *outgoing) asked(body []byte) error {
	s, err := readSelection(body)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.bucketing == o.buckets { // else it is about digests of before
		o.mend = &s
		o.poke()
	}
	return nil
}

// A scan is digests in the making. While it is there, each flow that changes has its
// bucket marked: the peer may hear of it before the digests or after.
type scan struct {
	digests
	complete bool
}

func (s *scan) mark(id *lb.FlowID) { s.busy.set(s.of(hashID(s.seed, id))) }

// digestShare bounds the time that digests take: one part in so many.
const digestShare = 50

// startScan begins to make digests when they are due, if the peer has everything.
func (o *outgoing) startScan(ctx context.Context, all *sync.WaitGroup) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !o.synced || o.wanted || o.scan != nil || o.mend != nil:
		return
	case o.scanAt.IsZero():
		o.scanAt = now.Add(o.node.tuning.digests)
		return
	case now.Before(o.scanAt):
		return
	}
	k := o.buckets
	s := &scan{digests: digests{bucketing: k, busy: newBitset(k.count()), sums: make([]uint64, k.count())}}
	for _, w := range o.queue.order[o.queue.head:] {
		s.mark(&w.id)
	}
	o.scan = s
	all.Go(func() { o.makeDigests(ctx, s) })
}

func (o *outgoing) makeDigests(ctx context.Context, s *scan) {
	began, flows, broken := time.Now(), 0, false
	var f lb.FlowState // as in stream
	for state, err := range o.node.source.Snapshot() {
		if err != nil || flows%1024 == 0 && ctx.Err() != nil {
			broken = true
			break
		}
		flows++
		f = state
		if checkFlow(&f) != nil || f.Phase == lb.FlowOver {
			continue // the peer has it not either
		}
		id := hashID(s.seed, &f.FlowID)
		s.sums[s.of(id)] += hashState(id, &f)
	}
	took := time.Since(began)
	// What has been read of the last moments is marked once Changes has it, too.
	settle := time.NewTimer(2 * o.node.tuning.poll)
	defer settle.Stop()
	select {
	case <-ctx.Done():
	case <-settle.C:
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.scanAt = time.Now().Add(max(o.node.tuning.digests, digestShare*took))
	if broken {
		o.scan = nil
		return
	}
	s.complete = true
	o.poke()
}

// sendDigests sends those that are ready.
func (o *outgoing) sendDigests(ctx context.Context) error {
	o.mu.Lock()
	s := o.scan
	ready := s != nil && s.complete
	o.mu.Unlock()
	if !ready {
		return nil
	}
	if err := o.room(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	o.scan = nil // from here on nothing is sent before the digests
	o.mu.Unlock()
	return o.say(ctx, kindDigests, sent{}, s.append)
}
