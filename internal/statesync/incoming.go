// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An incoming is a connection by which a peer's state comes. One goroutine reads and
// applies, another one writes what is said to that.
type incoming struct {
	endpoint
	done chan struct{} // closed once nothing of it goes on

	// The reader's own.
	codec                     flowCodec
	states                    []lb.FlowState
	theirs, tables, overrides assembler
	mending                   *mending
	refusing                  refusing
	compares                  sync.WaitGroup

	mu        sync.Mutex // guards all below
	ack       ack
	owes      bool // the peer has not got it yet
	refusals  []complaint
	services  services
	want      *selection
	synced    bool // the snapshot has ended, and what came since is applied
	snapshots uint64
	compare   *comparison // under way
	suspects  suspects
	mends     uint64
}

// shake finds out who connects, in bounded time. It returns the name of the peer, and
// has not answered it yet.
func (n *Node) meet(ctx context.Context, c *incoming, identities []*identity) (*peer, error) {
	ctx, cancel := context.WithTimeout(ctx, n.tuning.shake)
	defer cancel()
	c.conn = tls.Server(c.wire, serverConfig(identities, &c.identity))
	if err := c.conn.HandshakeContext(ctx); err != nil {
		return nil, &handshakeError{err}
	}
	stop := context.AfterFunc(ctx, c.wire.leave)
	defer stop()
	c.reader = newMessageReader(c.conn)
	k, body, err := c.reader.read()
	switch {
	case err != nil:
		return nil, &handshakeError{err}
	case k != kindHello:
		return nil, fmt.Errorf("%w: %v where hello is due", errMalformed, k)
	}
	theirs, err := readHello(body)
	if err != nil {
		return nil, err
	}
	own, p := n.hello(), n.peer(theirs.name)
	switch {
	case theirs.name == own.name:
		err = itself(own, theirs)
	case p == nil:
		err = fmt.Errorf("%w: %q", errUnknown, theirs.name)
	default:
		c.version, err = common(own, theirs)
	}
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	return p, err
}

// receive applies what comes by a connection until that ends.
func (n *Node) receive(ctx context.Context, c *incoming) error {
	ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	defer close(c.done)
	if err := n.takeOver(c); err != nil {
		n.sayWhy(c, err)
		c.wire.Close()
		return err
	}
	c.wire.count = &c.peer.in.traffic
	c.wire.watch(n.tuning.silence)
	stop := context.AfterFunc(ctx, c.wire.leave)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { c.cancel(c.speak(ctx)) })
	err := c.apply(ctx)
	c.cancel(err)
	all.Wait()
	c.compares.Wait()
	c.wire.finish()
	err = context.Cause(ctx)
	n.left(c, err)
	return err
}

// takeOverTime is for the end of a connection that another one replaces; the dialler
// waits for an answer meanwhile.
const takeOverTime = time.Second

// takeOver makes a connection the peer's. One that is there ends first: it is of
// before, even if nothing has shown that yet.
func (n *Node) takeOver(c *incoming) error {
	for {
		n.mu.Lock()
		p := c.peer
		before := p.receiving
		if !n.inForce(c.identity) {
			n.mu.Unlock()
			return errKeysGone
		}
		if before == nil {
			p.receiving = c
			p.in.connected, p.in.since, p.in.version = true, time.Now(), c.version
			c.services.have(n.services)
			n.mu.Unlock()
			return nil
		}
		n.mu.Unlock()
		before.cancel(errReplaced)
		patience := time.NewTimer(takeOverTime)
		select {
		case <-before.done:
		case <-patience.C: // its Sink does not return
			return errBefore
		}
		patience.Stop()
	}
}

func (n *Node) left(c *incoming, err error) {
	p := c.peer
	n.mu.Lock()
	p.receiving = nil
	p.in.connected, p.in.since = false, time.Now()
	p.in.end(err)
	n.countBreach(err)
	from := p.in.from
	n.mu.Unlock()
	c.mu.Lock()
	synced := c.synced
	c.mu.Unlock()
	n.tellSynced(c, synced, false)
	n.logEnd("sync: the connection of a peer has ended", p, from, err)
}

// logEnd logs the end of a connection: one that this node has meant is no trouble.
func (n *Node) logEnd(text string, p *peer, address netip.Addr, err error) {
	level := slog.LevelWarn
	if errors.Is(err, context.Canceled) {
		level = slog.LevelInfo
	}
	n.log.Log(context.Background(), level, text, "peer", p.Name, "address", address, "error", err)
}

// countBreach counts who has the key, and sends what no node sends. Node.mu is held.
func (n *Node) countBreach(err error) {
	if errors.Is(err, errMalformed) || errors.Is(err, errOversized) {
		n.strangers.count(reasonOf(err))
	}
}

// tellServices says that this node has other services now. Node.mu is held.
func (c *incoming) tellServices() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services.have(c.node.services)
	c.poke()
}

// apply reads and applies until the connection ends.
func (c *incoming) apply(ctx context.Context) error {
	for ctx.Err() == nil {
		k, body, err := c.reader.read()
		if err != nil {
			return ending(err)
		}
		if err := c.take(ctx, k, body); err != nil {
			return err
		}
		if k != kindPing {
			c.node.count(c, k)
		}
		c.mu.Lock()
		c.ack.sequence, c.owes = c.reader.last, true
		c.mu.Unlock()
		c.poke()
	}
	return context.Cause(ctx)
}

func (n *Node) count(c *incoming, k kind) {
	c.peer.in.messages.Add(1)
	if k > kindWant {
		c.peer.in.unknown.Add(1)
	}
}

// take applies one message.
func (c *incoming) take(ctx context.Context, k kind, body []byte) error {
	switch k {
	case kindFlows:
		return c.takeFlows(body)
	case kindPing:
		return nil
	case kindSnapshotBegin:
		c.mu.Lock()
		was := c.synced
		c.synced = false
		c.mu.Unlock()
		c.mending, c.refusing = nil, nil
		c.node.tellSynced(c, was, false)
		owned, err := readOwned(body)
		if err != nil {
			return err
		}
		return failed(c.node.sink.BeginSnapshot(c.peer.Name, owned))
	case kindSnapshotEnd:
		return c.endSnapshot()
	case kindTable:
		return c.takeTable(body)
	case kindOverrides:
		return c.takeOverrides(body)
	case kindServices:
		return c.takeServices(body)
	case kindDigests:
		return c.takeDigests(ctx, body)
	case kindMendBegin:
		return c.beginMend(ctx, body)
	case kindMendEnd:
		return c.endMend(ctx)
	case kindBye:
		return byeError(body)
	case kindHello, kindAck, kindRefused, kindWant:
		return fmt.Errorf("%w: %v is not a dialler's, or comes twice", errMalformed, k)
	}
	return nil // of a later version
}

// failed marks an error as the Sink's.
func failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errSink, err)
}

func (c *incoming) takeFlows(body []byte) (err error) {
	if c.states, err = c.codec.decode(body, c.states[:0]); err != nil {
		return err
	}
	return c.applyFlows(c.states)
}

func (c *incoming) applyFlows(states []lb.FlowState) error {
	c.touch(states) // before they are applied: what is compared meanwhile may have them or not
	refused, err := c.node.sink.ApplyFlows(c.peer.Name, states)
	if err != nil {
		return failed(err)
	}
	c.refusing.note(states, refused)
	c.peer.in.records.Add(uint64(len(states)))
	c.peer.in.refused.Add(uint64(len(refused)))
	c.mu.Lock()
	c.ack.refused += uint64(len(refused))
	c.ack.refusing = uint64(len(c.refusing))
	c.mu.Unlock()
	return nil
}

func (c *incoming) endSnapshot() error {
	if err := c.node.sink.EndSnapshot(c.peer.Name); err != nil {
		return failed(err)
	}
	c.mu.Lock()
	was := c.synced
	c.synced = true
	c.snapshots++
	c.mu.Unlock()
	c.node.tellSynced(c, was, true)
	return nil
}

func (n *Node) tellSynced(c *incoming, was, now bool) {
	if was == now {
		return
	}
	if now {
		n.log.Info("sync: this node has all of a peer's state", "peer", c.peer.Name)
	}
	if n.cfg.Told.Synced != nil {
		n.cfg.Told.Synced(c.peer.Name, now)
	}
}

// takeTable applies a table with its last part. That it cannot be applied is no reason
// to end the connection: who has published it hears of it.
func (c *incoming) takeTable(body []byte) error {
	whole, complete, err := c.tables.add(body)
	if err != nil || !complete {
		return err
	}
	t, _, err := readTable(whole)
	if err != nil {
		return err
	}
	c.mu.Lock()
	known, same := c.services.theirs != nil, c.services.same(t.Service)
	c.mu.Unlock()
	if known && !same {
		return c.complain(fmt.Errorf("service %s differs here", t.Service))
	}
	if err := c.node.sink.ApplyTables(c.peer.Name, []lb.TableState{t}); err != nil {
		return c.complain(err)
	}
	return nil
}

// maxRefusals is how many wait to be sent.
const maxRefusals = 1024

// complain notes why the message in hand was not applied.
func (c *incoming) complain(err error) error {
	c.node.warn("refused "+c.peer.Name, "sync: what a peer has sent is not applied", "peer", c.peer.Name, "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	refusal := complaint{sequence: c.reader.last, text: err.Error()}
	var table *TableError
	if errors.As(err, &table) {
		refusal.text, refusal.held, refusal.later = table.Why, table.Held, table.Later
	}
	if len(c.refusals) >= maxRefusals {
		return fmt.Errorf("%w: it sends what makes no sense, and does not read the answers", errMalformed)
	}
	c.refusals = append(c.refusals, refusal)
	return nil
}

func (c *incoming) takeOverrides(body []byte) error {
	whole, complete, err := c.overrides.add(body)
	if err != nil || !complete {
		return err
	}
	all, err := readOverrides(whole)
	if err != nil {
		return err
	}
	later := all[:0]
	c.node.mu.Lock()
	for _, o := range all {
		if c.node.merge(o) {
			c.node.forward(o, c.peer)
			later = append(later, o)
		}
	}
	c.node.mu.Unlock()
	if len(later) == 0 {
		return nil
	}
	if err := c.node.sink.ApplyOverrides(c.peer.Name, later); err != nil {
		return c.complain(err)
	}
	return nil
}

func (c *incoming) takeServices(body []byte) error {
	whole, complete, err := c.theirs.add(body)
	if err != nil || !complete {
		return err
	}
	list, err := readServices(whole)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services.theirs = byName(list)
	return nil
}
