package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/sluice-lb/sluice/internal/lb"
)

const (
	// MaxChanges is about how many changes a call of Changes returns: where there are so
	// many there may be more.
	MaxChanges = 8192
	// maxEnded is how many flows that the daemon has ended wait to be told.
	maxEndedFlows = 1 << 17
	// walkTime is how long it takes to look at every nat flow that other nodes know: by so
	// much a flow's last packet may be older there, beyond a quarter of its idle time.
	walkTime = 30 * time.Second
)

// A FlowFeed tells what other nodes are to know of this node's flows, and takes in
// what they tell. Changes and ApplyFlows may be called while others run a Snapshot.
//
// A flow that another node has told of is held: its end by time is not told on. It is
// this node's own from the first packet on that comes for it here.
type FlowFeed struct {
	d        *Datapath
	notes    *ringbuf.Reader
	record   ringbuf.Record
	before   uint64 // notes that were lost when they were last counted
	timeouts [lbNatStateNAT_STATES]int32

	// Changed under the data plane's mutex and mu, in this order; who only looks at it takes
	// mu, and does not wait while a change of the tables is written. It waits while a
	// batch of flows is told or taken in.
	mu     sync.Mutex
	closed bool

	index flowIndex
	pairs [lbLimitsMAX_PAIRS]*toldPair
	order []uint32 // the numbers of those that are open
	first int      // of order: whose news are read first
	names natNames
	ended []lb.FlowState // by the daemon, and not told yet
	lost  bool           // some of these were too many
	runs  map[*snapshotRun]bool
	walk  walk
}

// OpenFlowFeed begins to collect what other nodes are to know: Options.TellFlows has
// the program note it. It comes after Attach, so that no other program is at work, and
// its Close before the data plane's.
func (d *Datapath) OpenFlowFeed() (*FlowFeed, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.tellsFlows:
		return nil, errors.New("the data plane was opened without TellFlows")
	case d.upgrade != nil:
		return nil, errors.New("an upgrade is under way: Attach ends it")
	case d.feed != nil:
		return nil, errors.New("there is a flow feed")
	}
	// A program that was replaced may be at its last packet.
	if err := waitForPrograms(); err != nil {
		time.Sleep(longRun) // a kernel that can't be asked
	}
	notes, err := ringbuf.NewReader(d.objects.FlowNotes)
	if err != nil {
		return nil, fmt.Errorf("read the notes of flows: %w", err)
	}
	var meta lbMeta
	if err := d.objects.Meta.Lookup(uint32(0), &meta); err != nil {
		return nil, errors.Join(fmt.Errorf("read the pinned maps: %w", err), notes.Close())
	}
	f := &FlowFeed{d: d, notes: notes, runs: map[*snapshotRun]bool{}, names: natNames{d.tables.buckets, meta.NatSeed, meta.BucketMask}}
	notes.SetDeadline(time.Unix(1, 0)) // it never waits
	for state, t := range d.timeouts {
		f.timeouts[state] = int32(t / tick)
	}
	if _, err = f.lostNotes(); err == nil {
		err = f.refresh()
	}
	if err != nil {
		f.closePairs()
		return nil, errors.Join(err, notes.Close())
	}
	f.releaseClaims()
	d.feed, d.tables.dropped = f, f.dropPair
	return f, nil
}

func (f *FlowFeed) lock() {
	f.d.mu.Lock()
	f.mu.Lock()
}

func (f *FlowFeed) unlock() {
	f.mu.Unlock()
	f.d.mu.Unlock()
}

// Translated is how many translated flows to some VIPs are not closed and known to other
// nodes, or told by them, as of the last call of Changes or ApplyFlows.
func (f *FlowFeed) Translated(vips map[netip.Addr]bool) (flows int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.order {
		for vip, open := range f.pairs[n].open {
			if vips[f.index.vips[uint32(vip)]] {
				flows += open
			}
		}
	}
	return flows
}

// Unread is about how many changes Changes has not told of yet.
func (f *FlowFeed) Unread() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0
	}
	const header = 8 // of a note in the ring
	changes := len(f.ended) + f.notes.AvailableBytes()/(int(unsafe.Sizeof(lbFlowNote{}))+header)
	for _, n := range f.order {
		changes += f.pairs[n].unread()
	}
	return changes
}

// Close ends the collecting.
func (f *FlowFeed) Close() error {
	f.lock()
	defer f.unlock()
	f.d.feed, f.d.tables.dropped, f.closed = nil, nil, true
	f.closePairs()
	return f.notes.Close()
}

func (f *FlowFeed) closePairs() {
	for _, n := range f.order {
		f.pairs[n].close()
		f.pairs[n] = nil
	}
	f.order = nil
}

// releaseClaims takes away the claims of a daemon that was killed while it wrote
// entries: those that outlast every run of the program.
func (f *FlowFeed) releaseClaims() {
	type place struct {
		p    *toldPair
		port uint16
	}
	var claimed []place
	for _, n := range f.order {
		for port := range int(lbLimitsNAT_PORTS) {
			if p := f.pairs[n]; atomic.LoadUint32(&p.flow(uint16(port)).Flags)&claimedFlag != 0 {
				claimed = append(claimed, place{p, uint16(port)})
			}
		}
	}
	if len(claimed) == 0 {
		return
	}
	if err := waitForPrograms(); err != nil {
		time.Sleep(longRun) // a kernel that can't be asked
	}
	for _, c := range claimed {
		c.p.release(c.port)
	}
}

// refresh follows the state of the data plane.
func (f *FlowFeed) refresh() error {
	state := f.d.state
	changed := f.index.state != state
	f.index.refresh(state, f.d.tables)
	if !changed {
		return nil
	}
	var come []uint32
	for _, n := range slices.Sorted(maps.Keys(state.Pairs)) {
		if f.pairs[n] != nil {
			f.pairs[n].entry = state.Pairs[n]
		} else {
			come = append(come, n)
		}
	}
	err := forAll(come, func(n uint32) (err error) {
		f.pairs[n], err = f.d.tables.openTold(n, state.Pairs[n])
		return err
	})
	for _, n := range come {
		if f.pairs[n] != nil {
			f.order = append(f.order, n)
		}
	}
	return err
}

// dropPair is told of a pair that is out of the program's reach. The state is still
// that of before.
func (f *FlowFeed) dropPair(n uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pairs[n]
	if p == nil {
		return
	}
	now := ticks()
	for port := range int(lbLimitsNAT_PORTS) {
		if t := p.of(uint16(port)); t != nil && (!t.held || t.moved(p.flow(uint16(port)))) {
			f.end(p, uint16(port), t, now)
		}
	}
	f.pairs[n] = nil
	f.order = slices.DeleteFunc(f.order, func(o uint32) bool { return o == n })
	p.close()
}

// end has the end of a nat flow told.
func (f *FlowFeed) end(p *toldPair, port uint16, t *toldFlow, now uint32) {
	if s, ok := f.index.over(p, port, t, now); ok {
		f.tellEnd(s)
	}
}

func (f *FlowFeed) tellEnd(s lb.FlowState) {
	if len(f.ended) < maxEndedFlows {
		f.ended = append(f.ended, s)
	} else {
		f.lost = true
	}
}

// Changes appends what has changed since it was last called, each flow as it is now.
// It waits for nothing. Lost tells that some changes of flows that are not translated are not
// known: other nodes need a Snapshot.
func (f *FlowFeed) Changes(into []lb.FlowState) (all []lb.FlowState, lost bool, err error) {
	f.lock()
	defer f.unlock()
	if err := f.refresh(); err != nil {
		return into, false, err
	}
	most := len(into) + MaxChanges
	n := min(len(f.ended), MaxChanges)
	into = append(into, f.ended[:n]...)
	f.ended = append(f.ended[:0], f.ended[n:]...)
	lost, f.lost = f.lost, false
	missed, err := f.lostNotes()
	if err != nil {
		return into, lost, err
	}
	now := ticks()
	if into, err = f.readNotes(into, most, now); err != nil {
		return into, lost || missed, err
	}
	// Each is the first one in turn, so that none waits for ever.
	f.first++
	for i := range f.order {
		into = f.readNews(into, f.pairs[f.order[(f.first+i)%len(f.order)]], most, now)
	}
	return f.walkOn(into, most, now), lost || missed, nil
}

// lostNotes tells whether more notes have found no room.
func (f *FlowFeed) lostNotes() (bool, error) {
	var counts []uint64
	if err := f.d.objects.FlowNotesLost.Lookup(uint32(0), &counts); err != nil {
		return false, fmt.Errorf("read how many notes of flows were lost: %w", err)
	}
	sum := uint64(0)
	for _, n := range counts {
		sum += n
	}
	more := sum != f.before
	f.before = sum
	return more, nil
}

// readNotes appends the flows that notes name.
func (f *FlowFeed) readNotes(into []lb.FlowState, most int, now uint32) ([]lb.FlowState, error) {
	for len(into) < most && f.notes.AvailableBytes() > 0 {
		err := f.notes.ReadInto(&f.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return into, fmt.Errorf("read the notes of flows: %w", err)
		}
		var note lbFlowNote
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&note)), unsafe.Sizeof(note)), f.record.RawSample)
		for _, t := range pinTables {
			if t.number != note.Table {
				continue
			}
			if into, err = f.readEntry(into, t, &note.Key, now); err != nil {
				return into, err
			}
		}
	}
	return into, nil
}

// table returns a table of single flows.
func (f *FlowFeed) table(t pinTable) *ebpf.Map {
	switch t.kind {
	case lb.FlowPinned:
		return f.d.objects.Pins
	case lb.FlowStraggler:
		return f.d.objects.Stragglers
	}
	return f.d.objects.UdpFlows
}

// readEntry appends the flow of a key as it is now.
func (f *FlowFeed) readEntry(into []lb.FlowState, t pinTable, k *lbFlowKey, now uint32) ([]lb.FlowState, error) {
	f.outdate(t.kind, k)
	var pin lbPin
	err := f.table(t).Lookup(k, &pin)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		if id, ok := f.index.pinID(t.kind, k); ok {
			into = append(into, lb.FlowState{FlowID: id, Phase: lb.FlowOver})
		}
		return into, nil
	}
	if err != nil {
		return into, fmt.Errorf("read a flow of %v: %w", f.table(t), err)
	}
	if s, ok := f.index.pinned(t.kind, k, &pin, now); ok {
		into = append(into, s)
	}
	return into, nil
}

// dropPin is told of an entry that the daemon has deleted, and whether other nodes
// are to know.
func (f *FlowFeed) dropPin(kind lb.FlowKind, k *lbFlowKey, tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outdate(kind, k)
	if id, ok := f.index.pinID(kind, k); ok && tell {
		f.tellEnd(lb.FlowState{FlowID: id, Phase: lb.FlowOver})
	}
}
