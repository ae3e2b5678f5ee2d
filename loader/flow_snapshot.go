package loader

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// pinBatch is how many entries of a table of single flows are read at once, scanPorts
// how many ports of a pair are looked at before others may go on.
const (
	pinBatch  = 4096
	scanPorts = 4096
)

// A pinKey names an entry of a table of single flows.
type pinKey struct {
	kind lb.FlowKind
	key  lbFlowKey
}

// A snapshotRun is a Snapshot under way.
type snapshotRun struct {
	// What has been told since the entries in hand were read.
	told map[pinKey]bool

	now  uint32 // ticks, as it was at
	read time.Time
}

// ticks is the program's clock, or has been a moment ago: to ask the kernel for each of
// a million flows takes longer than to read them.
func (r *snapshotRun) ticks() uint32 {
	if at := time.Now(); at.Sub(r.read) > tick/16 {
		r.now, r.read = ticks(), at
	}
	return r.now
}

// outdate has snapshots under way skip an entry that they may have in hand.
func (f *FlowFeed) outdate(kind lb.FlowKind, k *lbFlowKey) {
	for run := range f.runs {
		run.told[pinKey{kind, *k}] = true
	}
}

// Snapshot yields every flow that other nodes are to know, those too that one of
// them has told of. Each is as it is when it is yielded, so whoever hands on what comes
// from here and from Changes, in the order in which he gets it, tells the truth; what
// comes and goes meanwhile may be among them or not.
func (f *FlowFeed) Snapshot() iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		run := &snapshotRun{told: map[pinKey]bool{}}
		f.lock()
		f.runs[run] = true
		err := f.refresh()
		pairs := slices.Clone(f.order)
		f.unlock()
		defer func() {
			f.lock()
			delete(f.runs, run)
			f.unlock()
		}()
		if err != nil {
			yield(lb.FlowState{}, err)
			return
		}
		for _, n := range pairs {
			for port := 0; port < int(lbLimitsNAT_PORTS); {
				var s lb.FlowState
				var ok bool
				if s, ok, port = f.nextOf(run, n, port); ok && !yield(s, nil) {
					return
				}
			}
		}
		for _, t := range pinTables {
			if !f.yieldPins(run, t, yield) {
				return
			}
		}
	}
}

// nextOf returns the next flow of a pair from a port on, and where to go on.
func (f *FlowFeed) nextOf(run *snapshotRun, n uint32, port int) (lb.FlowState, bool, int) {
	f.lock()
	defer f.unlock()
	p := f.pairs[n]
	if p == nil {
		return lb.FlowState{}, false, int(lbLimitsNAT_PORTS) // it has gone since
	}
	now := run.ticks()
	for end := min(port+scanPorts, int(lbLimitsNAT_PORTS)); port < end; port++ {
		if !worthTelling(p.flow(uint16(port))) {
			continue
		}
		e, ok := p.read(uint16(port))
		if !ok || !worthTelling(&e) || f.void(&e, now) {
			continue
		}
		s, ok := f.index.translated(p, uint16(port), &e, now)
		if !ok {
			continue
		}
		// Whoever is told of this one has to be told of its end. That of another one,
		// which had the port before, has its mark still.
		if known := p.of(uint16(port)); known == nil {
			p.know(uint16(port), &e)
		} else if !known.is(&e) {
			f.end(p, uint16(port), known, now)
			p.know(uint16(port), &e)
		}
		return s, true, port + 1
	}
	return lb.FlowState{}, false, port
}

// void tells whether nothing goes by an entry any more.
func (f *FlowFeed) void(e *lbNatFlow, now uint32) bool {
	return !f.index.holds(uint32(e.Backend), e.Generation) ||
		int32(now-e.LastSeen) > f.timeouts[e.State%uint32(lbNatStateNAT_STATES)]
}

// yieldPins yields the flows of a table; false: nobody wants more.
func (f *FlowFeed) yieldPins(run *snapshotRun, t pinTable, yield func(lb.FlowState, error) bool) bool {
	keys, pins := make([]lbFlowKey, pinBatch), make([]lbPin, pinBatch)
	var cursor ebpf.MapBatchCursor
	for {
		f.lock()
		run.told = map[pinKey]bool{}
		n, err := f.table(t).BatchLookup(&cursor, keys, pins, nil)
		f.unlock()
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return yield(lb.FlowState{}, fmt.Errorf("read %v: %w", f.table(t), err))
		}
		for i := range n {
			if s, ok := f.stillPinned(run, t, &keys[i], &pins[i]); ok && !yield(s, nil) {
				return false
			}
		}
		if last {
			return true
		}
	}
}

// stillPinned returns the flow of an entry that was read, unless it has been told of
// since.
func (f *FlowFeed) stillPinned(run *snapshotRun, t pinTable, k *lbFlowKey, p *lbPin) (lb.FlowState, bool) {
	f.lock()
	defer f.unlock()
	if run.told[pinKey{t.kind, *k}] {
		return lb.FlowState{}, false
	}
	now := run.ticks()
	if idleFor(now, p.Seen) > pinLife(t.kind, p) {
		return lb.FlowState{}, false
	}
	return f.index.pinned(t.kind, k, p, now)
}

// pinLife is how long an entry may be idle. Of one that another node has told of
// this node knows the last packet only to a quarter of that.
func pinLife(kind lb.FlowKind, p *lbPin) (life time.Duration) {
	switch {
	case kind == lb.FlowDatagrams:
		life = udpIdle
	case p.Ending != 0:
		life = pinEnding
	default:
		life = pinIdle
	}
	if p.Held != 0 {
		life += life / 4
	}
	return life
}
