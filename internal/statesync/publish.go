// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A publication is a table on its way to the peers.
type publication struct {
	service string
	epoch   lb.Epoch
	whole   []byte
	waiters []chan<- error // of those who wait until it is acknowledged
}

// errGone is what waiters hear when there is no connection any more.
var errGone = errors.New("the connection has ended")

// tell tells each waiter one thing; later ones are not heard.
func tell(waiters []chan<- error, err error) {
	for _, w := range waiters {
		select {
		case w <- err:
		default:
		}
	}
}

func (p *publication) done(err error) { tell(p.waiters, err) }

func newPublication(t *lb.TableState) (*publication, error) {
	if err := checkTable(t); err != nil {
		return nil, err
	}
	return &publication{service: t.Service, epoch: t.Epoch, whole: appendTable(nil, t)}, nil
}

// PublishTables tells all peers of tables that are to be in force, and waits until
// each peer that is connected has acknowledged them, or its connection has ended. A peer
// whose service is another one is not told, nor waited for. What it returns, then
// and when ctx ends, names the peers and tables that are missing; peers that
// connect later get the tables all the same.
func (n *Node) PublishTables(ctx context.Context, tables []lb.TableState) error {
	var all []*publication
	for i := range tables {
		p, err := newPublication(&tables[i])
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	waits, err := n.publish(all)
	if err != nil {
		return err
	}
	var errs []error
	for _, w := range waits {
		if err := w.await(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// A wait is for one peer and one table.
type wait struct {
	peer, service string
	answer        chan error
}

func (w *wait) await(ctx context.Context) error {
	var err error
	select {
	case err = <-w.answer:
	default:
		select {
		case err = <-w.answer:
		case <-ctx.Done():
			return fmt.Errorf("%s has not acknowledged the table of %s: %w", w.peer, w.service, context.Cause(ctx))
		}
	}
	if err == nil || errors.Is(err, errGone) {
		return nil
	}
	var refused *TableError
	if errors.As(err, &refused) { // it is told to several
		return &TableError{Peer: w.peer, Service: w.service, Why: refused.Why, Held: refused.Held, Later: refused.Later}
	}
	return fmt.Errorf("%s refuses the table of %s: %w", w.peer, w.service, err)
}

// publish puts tables into all connections.
func (n *Node) publish(all []*publication) (waits []*wait, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range all {
		if before := n.published[p.service]; before != nil && p.epoch.Less(before.epoch) {
			return nil, fmt.Errorf("table of %s: epoch %d.%d is before %d.%d, which was published",
				p.service, p.epoch.Term, p.epoch.Number, before.epoch.Term, before.epoch.Number)
		}
	}
	for _, p := range all {
		n.published[p.service] = p
		for _, to := range n.peers {
			if to.sending != nil {
				w := &wait{to.Name, p.service, make(chan error, 1)}
				to.sending.putTable(p, w.answer)
				waits = append(waits, w)
			}
		}
	}
	return waits, nil
}

// putTable takes a table that the peer is to have; who waits for an earlier one waits
// for this one.
func (o *outgoing) putTable(p *publication, waiter chan<- error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	own := &publication{service: p.service, epoch: p.epoch, whole: p.whole}
	if before := o.tables[p.service]; before != nil {
		own.waiters = before.waiters
	}
	if waiter != nil {
		own.waiters = append(own.waiters, waiter)
	}
	o.tables[p.service] = own
	o.poke()
}

// sendTables sends those that wait, once the peer has told its services.
func (o *outgoing) sendTables(ctx context.Context) error {
	o.mu.Lock()
	ready := o.services.theirs != nil
	gather := ready && o.gather
	if gather {
		o.gather = false
	}
	o.mu.Unlock()
	if gather {
		o.gatherTables()
	}
	for ready {
		t := o.nextTable()
		if t == nil {
			return nil
		}
		err := parts(t.whole, func(body func([]byte) []byte, last bool) error {
			var s sent
			if last {
				s.waiters, s.since = t.waiters, time.Now()
			}
			return o.say(ctx, kindTable, s, body)
		})
		if err != nil {
			t.done(errGone)
			return err
		}
	}
	return nil
}

// gatherTables looks for those that the peer may not have: in force, or published and
// perhaps not in force yet.
func (o *outgoing) gatherTables() {
	var all []*publication
	for _, t := range o.node.source.Tables() {
		p, err := newPublication(&t)
		if err != nil {
			o.node.warn("table", "sync: a table cannot be told to peers", "error", err)
			continue
		}
		all = append(all, p)
	}
	o.node.mu.Lock()
	for _, p := range o.node.published {
		all = append(all, p)
	}
	o.node.mu.Unlock()
	for _, p := range all {
		o.mu.Lock()
		epoch, known := o.told[p.service]
		if before := o.tables[p.service]; before != nil {
			epoch, known = before.epoch, true
		}
		o.mu.Unlock()
		if !known || epoch.Less(p.epoch) {
			o.putTable(p, nil)
		}
	}
}

// nextTable takes one of those that wait. Of a service that the peer has not, or has
// otherwise, it has nothing to be told.
func (o *outgoing) nextTable() *publication {
	o.mu.Lock()
	defer o.mu.Unlock()
	for service, t := range o.tables {
		delete(o.tables, service)
		if o.services.same(service) {
			o.told[service] = t.epoch
			return t
		}
		t.done(nil)
	}
	return nil
}

// tellServices says that this node has other services now. Node.mu is held.
func (o *outgoing) tellServices() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.services.have(o.node.services)
	o.gather = true
	o.poke()
}

func (o *outgoing) sendServices(ctx context.Context) error {
	o.mu.Lock()
	list, due := o.services.list, o.services.tell
	o.services.tell = false
	o.mu.Unlock()
	if !due {
		return nil
	}
	return parts(appendServices(nil, list), func(body func([]byte) []byte, _ bool) error {
		return o.say(ctx, kindServices, sent{}, body)
	})
}

func (o *outgoing) heardServices(a *assembler, body []byte) error {
	whole, complete, err := a.add(body)
	if err != nil || !complete {
		return err
	}
	list, err := readServices(whole)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	theirs := byName(list)
	if o.services.theirs != nil && !maps.Equal(o.services.theirs, theirs) {
		o.startOver() // it may have a use for flows that it had none for
	}
	o.services.theirs = theirs
	o.gather = true
	o.poke()
	return nil
}

// PublishOverrides tells all peers of operators' changes, those that connect later,
// too. It returns them with their stamps: whoever keeps them must keep these.
func (n *Node) PublishOverrides(changes []Override) ([]Override, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, all := time.Now().UnixNano(), make([]Override, 0, len(changes))
	for _, o := range changes {
		if o.Stamp == (Stamp{}) {
			o.Stamp = Stamp{max(now, n.overrides[o.Key].Stamp.Time+1), n.cfg.Name}
		}
		if err := checkOverride(o); err != nil {
			return nil, err
		}
		if _, known := n.overrides[o.Key]; !known && len(n.overrides)+len(all) >= maxOverrides {
			return nil, fmt.Errorf("%d operators' changes: there is no room for more", maxOverrides)
		}
		all = append(all, o)
	}
	for _, o := range all {
		if n.merge(o) {
			n.forward(o, nil)
		}
	}
	return all, nil
}

// merge takes a change, if it is later than what is known. Node.mu is held, or nobody
// else knows n yet.
func (n *Node) merge(o Override) bool {
	before, known := n.overrides[o.Key]
	if known && !before.Stamp.Less(o.Stamp) || !known && len(n.overrides) >= maxOverrides {
		return false
	}
	n.overrides[o.Key] = o
	return true
}

// forward has all peers but one told of a change. Node.mu is held.
func (n *Node) forward(o Override, except *peer) {
	for _, p := range n.peers {
		if p == except || p.sending == nil {
			continue
		}
		s := p.sending
		s.mu.Lock()
		if s.overrides == nil {
			s.overrides = map[string]Override{}
		}
		s.overrides[o.Key] = o
		s.poke()
		s.mu.Unlock()
	}
}

func (o *outgoing) sendOverrides(ctx context.Context) error {
	o.mu.Lock()
	waiting := o.overrides
	o.overrides = nil
	o.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	all := make([]Override, 0, len(waiting))
	for _, c := range waiting {
		all = append(all, c)
	}
	return parts(appendOverrides(nil, all), func(body func([]byte) []byte, last bool) error {
		var s sent
		if last {
			s.since = time.Now()
		}
		return o.say(ctx, kindOverrides, s, body)
	})
}
