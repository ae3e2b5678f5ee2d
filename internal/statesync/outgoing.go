// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An outgoing is a connection by which this node's state goes to a peer. One goroutine
// writes, another one reads what the peer says to that, and what changes is put into
// it by a third.
type outgoing struct {
	endpoint
	beat *time.Ticker

	writing  chan struct{} // has an element while a message is numbered and written
	sequence uint64

	// The writer's own.
	buf     []byte
	changes flowBatch // the stream's
	bulk    flowBatch // snapshots' and mends'
	recent  recent    // sent by the stream while one of these goes on
	taken   []lb.FlowState

	mu        sync.Mutex // guards all below
	said      uint64     // sequence of the last message
	queue     queue
	taking    bool // what was taken from it is not in flight yet
	gone      bool // the connection has ended
	flight    flight
	refused   uint64 // flows, of this connection, by the peer's count
	refusing  uint64 // likewise, that are not over
	stalls    uint64 // times that something waited for acknowledgements
	snapshots uint64 // sent
	mends     uint64

	wanted     bool // a snapshot is
	wantedFrom time.Time
	snapshot   bool // is under way
	begun      time.Time
	synced     bool // the peer has all, and what follows
	services   services
	tables     map[string]*publication // to be sent, by service
	told       map[string]lb.Epoch     // that were
	gather     bool                    // tables are to be looked for
	overrides  map[string]Override     // to be sent

	buckets bucketing
	scan    *scan      // digests in the making
	scanAt  time.Time  // when the next are due
	mend    *selection // that the peer has asked for
}

// send streams by a connection until that ends.
func (n *Node) send(ctx context.Context, o *outgoing) error {
	ctx, o.cancel = context.WithCancelCause(ctx)
	defer o.cancel(nil)
	o.prepare()
	if err := n.started(o); err != nil {
		o.beat.Stop()
		o.wire.Close()
		return err
	}
	stop := context.AfterFunc(ctx, o.wire.leave)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { o.cancel(o.listen(ctx)) })
	all.Go(func() { o.cancel(o.keepAlive(ctx)) })
	err := o.write(ctx, &all)
	select {
	case <-ctx.Done():
	case <-time.After(goodbyeTime): // the peer may have said why it reads no more
	}
	o.cancel(err)
	o.bye(context.Cause(ctx))
	all.Wait()
	o.wire.finish()
	err = context.Cause(ctx)
	n.stopped(o, err)
	return err
}

func (o *outgoing) prepare() {
	o.beat = time.NewTicker(o.node.tuning.ping)
	o.writing = make(chan struct{}, 1)
	o.queue.limit = o.node.tuning.pending
	o.wanted, o.gather = true, true
	o.tables, o.told = map[string]*publication{}, map[string]lb.Epoch{}
	o.buckets = newBucketing(0)
}

// started makes the connection the peer's: from now on changes are put into it.
func (n *Node) started(o *outgoing) error {
	p := o.peer
	n.mu.Lock()
	if !n.inForce(o.identity) {
		n.mu.Unlock()
		return errKeysGone
	}
	o.services.have(n.services)
	o.overrides = maps.Clone(n.overrides)
	p.sending = o
	p.out.connected, p.out.since, p.out.version = true, time.Now(), o.version
	n.mu.Unlock()
	n.log.Info("sync: connected to a peer", "peer", p.Name, "address", p.Address, "version", o.version)
	if n.cfg.Told.Connected != nil {
		n.cfg.Told.Connected(p.Name, true, nil)
	}
	return nil
}

func (n *Node) stopped(o *outgoing, err error) {
	o.beat.Stop()
	p := o.peer
	n.mu.Lock()
	p.sending = nil
	p.out.connected, p.out.since = false, time.Now()
	p.out.end(err)
	n.countBreach(err)
	n.mu.Unlock()
	o.giveUp()
	if n.cfg.Told.Connected != nil {
		n.cfg.Told.Connected(p.Name, false, err)
	}
	n.logEnd("sync: the connection to a peer has ended", p, p.Address.Addr(), err)
}

// giveUp tells who waits for acknowledgements that none will come.
func (o *outgoing) giveUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range o.tables {
		t.done(errGone)
	}
	for _, s := range o.flight.all {
		tell(s.waiters, errGone)
	}
	o.tables, o.flight, o.gone = nil, flight{}, true
}

// bye tells the peer why, if it listens still.
func (o *outgoing) bye(why error) {
	c := farewell(why)
	o.writing <- struct{}{}
	defer func() { <-o.writing }()
	_, _ = o.conn.Write(endMessage(c.append(beginMessage(nil, kindBye, o.sequence+1)), 0))
}

// put takes what has changed.
func (o *outgoing) put(states []lb.FlowState, lost bool, now time.Time) {
	if len(states) == 0 && !lost {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.queue.put(states, now) || lost {
		o.startOver()
	}
	if o.scan != nil {
		for i := range states {
			o.scan.mark(&states[i].FlowID)
		}
	}
	o.poke()
}

// waiting is how many flows wait to be sent.
func (o *outgoing) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queue.len()
}

// startOver makes a snapshot due: at once if there was none for a while.
func (o *outgoing) startOver() {
	if o.wanted {
		return
	}
	o.wanted, o.synced = true, false
	o.wantedFrom = o.begun.Add(o.node.tuning.again)
}

// write sends whatever there is until the connection ends.
func (o *outgoing) write(ctx context.Context, all *sync.WaitGroup) error {
	for ctx.Err() == nil {
		more, err := o.some(ctx)
		switch {
		case err != nil:
			return err
		case o.snapshotDue(time.Now()):
			err = o.sendSnapshot(ctx)
		case o.mendDue():
			err = o.sendMend(ctx)
		case !more:
			o.startScan(ctx, all)
			err = o.rest(ctx)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// rest waits until there may be something to do.
func (o *outgoing) rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-o.wake:
	case <-o.beat.C: // something may be due
	}
	return nil
}

// keepAlive sends something every now and then, however long the Source takes to name
// the next flow.
func (o *outgoing) keepAlive(ctx context.Context) error {
	beat := time.NewTicker(o.node.tuning.ping)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-beat.C:
		}
		if err := o.transmit(endMessage(beginMessage(nil, kindPing, 0), 0), nil); err != nil {
			return err
		}
	}
}

// some sends what waits, but no more than one message of changes. More says that
// others wait.
func (o *outgoing) some(ctx context.Context) (more bool, err error) {
	err = o.sendServices(ctx)
	if err == nil {
		err = o.sendTables(ctx)
	}
	if err == nil {
		err = o.sendOverrides(ctx)
	}
	if err == nil {
		err = o.sendDigests(ctx)
	}
	if err == nil {
		more, err = o.sendChanges(ctx)
	}
	return more, err
}

// say sends a message once there is room for it.
func (o *outgoing) say(ctx context.Context, k kind, s sent, body func([]byte) []byte) error {
	if err := o.room(ctx); err != nil {
		return err
	}
	o.buf = beginMessage(o.buf[:0], k, 0)
	if body != nil {
		o.buf = body(o.buf)
	}
	if len(o.buf) > maxMessage {
		return fmt.Errorf("%w: %v of %d bytes", errOversized, k, len(o.buf))
	}
	o.peer.out.messages.Add(1)
	o.peer.out.records.Add(uint64(s.records))
	return o.transmit(endMessage(o.buf, 0), &s)
}

// transmit numbers a message and writes it. One that is to be acknowledged has a sent.
func (o *outgoing) transmit(message []byte, s *sent) error {
	o.writing <- struct{}{}
	defer func() { <-o.writing }()
	o.sequence++
	setSequence(message, o.sequence)
	o.mu.Lock()
	o.said = o.sequence
	if s != nil {
		s.sequence, s.bytes = o.sequence, len(message)
		o.flight.add(*s)
	}
	o.mu.Unlock()
	_, err := o.conn.Write(message)
	return err
}

// room waits until so much is acknowledged that more may be sent.
func (o *outgoing) room(ctx context.Context) error {
	for stalled := false; ; stalled = true {
		o.mu.Lock()
		full := o.flight.bytes >= o.node.tuning.window
		if full && !stalled {
			o.stalls++
		}
		o.mu.Unlock()
		if !full {
			return nil
		}
		if err := o.rest(ctx); err != nil {
			return err
		}
	}
}

// sendChanges sends one message of them.
func (o *outgoing) sendChanges(ctx context.Context) (more bool, err error) {
	o.mu.Lock()
	none := o.queue.len() == 0
	o.mu.Unlock()
	if none {
		return false, nil
	}
	if err := o.room(ctx); err != nil { // what waits coalesces meanwhile
		return false, err
	}
	o.mu.Lock()
	since := o.queue.oldest()
	o.taken = o.queue.take(batchRecords, o.taken[:0])
	more, o.taking = o.queue.len() > 0, true
	o.mu.Unlock()
	for i := range o.taken {
		o.recent.sent(&o.taken[i].FlowID)
		if err := o.add(ctx, &o.changes, &o.taken[i], since); err != nil {
			return false, err
		}
	}
	err = o.flush(ctx, &o.changes, since)
	o.mu.Lock()
	o.taking = false
	o.mu.Unlock()
	return more, err
}

// add adds a state to a batch, and sends that when it is full.
func (o *outgoing) add(ctx context.Context, b *flowBatch, s *lb.FlowState, since time.Time) error {
	if err := b.add(s); err != nil {
		o.node.mu.Lock()
		o.node.unsaid++
		o.node.mu.Unlock()
		o.node.warn("unsaid", "sync: a flow cannot be told to peers", "error", err)
		return nil
	}
	if !b.full() {
		return nil
	}
	return o.flush(ctx, b, since)
}

func (o *outgoing) flush(ctx context.Context, b *flowBatch, since time.Time) error {
	if b.records == 0 {
		return nil
	}
	s := sent{records: b.records, since: since}
	b.records = 0
	return o.say(ctx, kindFlows, s, func(to []byte) []byte { return append(to, b.body...) })
}
