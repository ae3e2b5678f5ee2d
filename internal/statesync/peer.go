// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
)

// A peer is another node, and what there is between it and this one. Node.mu guards
// it.
type peer struct {
	Peer
	out, in   direction
	sending   *outgoing // nil: not connected
	receiving *incoming // likewise
}

// A direction is what is known of the connections that carry one node's state.
type direction struct {
	traffic
	connected bool
	since     time.Time // when that became so; zero: it never was otherwise
	version   uint8
	from      netip.Addr // in: where the connection comes from
	err       error      // of the last connection that ended, or the last attempt
	failed    time.Time  // when
	why       Reason
	retries   uint64 // attempts that came to nothing
}

// fail notes why there is no connection.
func (d *direction) fail(err error) { d.err, d.why, d.failed = err, reasonOf(err), time.Now() }

// end notes why a connection has ended.
func (d *direction) end(err error) {
	d.fail(err)
	d.ended.Add(1)
}

// endpoint is what both kinds of sessions have in common.
type endpoint struct {
	node     *Node
	peer     *peer
	identity *identity
	conn     *tls.Conn
	wire     *watchedConn
	reader   *messageReader
	version  uint8
	cancel   context.CancelCauseFunc
	wake     chan struct{}
}

func (e *endpoint) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// servicesChanged has the peer told of the services. Node.mu is held.
func (p *peer) servicesChanged() {
	if p.sending != nil {
		p.sending.tellServices()
	}
	if p.receiving != nil {
		p.receiving.tellServices()
	}
}

// inForce reports whether the key of an identity counts still. Node.mu is held.
func (n *Node) inForce(i *identity) bool {
	return slices.ContainsFunc(n.identities, func(k *identity) bool { return k.key == i.key })
}

// endWithoutKey ends connections whose key is not in force. Node.mu is held.
func (p *peer) endWithoutKey(keys []key.Key) {
	if s := p.sending; s != nil && !slices.Contains(keys, s.identity.key) {
		s.cancel(errKeysGone)
	}
	if s := p.receiving; s != nil && !slices.Contains(keys, s.identity.key) {
		s.cancel(errKeysGone)
	}
}

// keep connects to a peer again and again until ctx ends.
func (n *Node) keep(ctx context.Context, p *peer) {
	wait := n.tuning.firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		connected, err := n.connect(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if connected && time.Since(began) > n.tuning.lastRetry {
			wait = n.tuning.firstRetry
		}
		if !connected {
			n.mu.Lock()
			p.out.fail(err)
			p.out.retries++
			n.mu.Unlock()
			n.warn("dial "+p.Name, "sync: no connection to a peer", "peer", p.Name, "address", p.Address, "error", err)
		}
		pause := time.NewTimer(wait/2 + rand.N(wait/2+1))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
		wait = min(2*wait, n.tuning.lastRetry)
	}
}

// connect connects to a peer with one key after the other, and streams until the
// connection ends.
func (n *Node) connect(ctx context.Context, p *peer) (connected bool, err error) {
	n.mu.Lock()
	identities := n.identities
	n.mu.Unlock()
	for _, i := range identities {
		var o *outgoing
		if o, err = n.introduce(ctx, p, i); err == nil {
			return true, n.send(ctx, o)
		}
		var failed *handshakeError
		if !errors.As(err, &failed) {
			break // another key would change nothing
		}
	}
	return false, err
}

// A handshakeError is one that another key may not have.
type handshakeError struct{ err error }

func (h *handshakeError) Error() string { return h.err.Error() }
func (h *handshakeError) Unwrap() error { return h.err }

// introduce connects, and finds out that the peer is who it must be.
func (n *Node) introduce(ctx context.Context, p *peer, i *identity) (*outgoing, error) {
	dialling, cancel := context.WithTimeout(ctx, n.tuning.dial)
	defer cancel()
	raw, err := n.dial(dialling, p.Address)
	if err != nil {
		if ctx.Err() == nil {
			n.tellGone(p)
		}
		return nil, err
	}
	wire := &watchedConn{Conn: raw, count: &p.out.traffic}
	conn := tls.Client(wire, i.client)
	o := &outgoing{endpoint: endpoint{
		node: n, peer: p, identity: i, conn: conn, wire: wire,
		reader: newMessageReader(conn), wake: make(chan struct{}, 1),
	}}
	if err := o.shake(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return o, nil
}

// tellGone says that a peer takes no connection, unless it has one with this node.
func (n *Node) tellGone(p *peer) {
	n.mu.Lock()
	connected := p.sending != nil || p.receiving != nil
	n.mu.Unlock()
	if !connected && n.cfg.Told.Gone != nil {
		n.cfg.Told.Gone(p.Name)
	}
}

func (o *outgoing) shake(ctx context.Context) error {
	n := o.node
	ctx, cancel := context.WithTimeout(ctx, n.tuning.shake)
	defer cancel()
	if err := o.conn.HandshakeContext(ctx); err != nil {
		return &handshakeError{explain(err)}
	}
	stop := context.AfterFunc(ctx, func() { o.wire.leave() })
	defer stop()
	own := n.hello()
	if err := o.greet(own); err != nil {
		return err
	}
	k, body, err := o.reader.read()
	switch {
	case err != nil:
		return explain(err)
	case k == kindBye:
		return byeError(body)
	case k != kindHello:
		return fmt.Errorf("%w: %v where hello is due", errMalformed, k)
	}
	theirs, err := readHello(body)
	switch {
	case err != nil:
		return err
	case theirs.name == own.name:
		return itself(own, theirs)
	case theirs.name != o.peer.Name:
		return fmt.Errorf("%w: %q answers there", errUnknown, theirs.name)
	}
	if o.version, err = common(own, theirs); err != nil {
		return err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	o.wire.watch(n.tuning.silence)
	return nil
}

// itself is the error for a node that says this node's name.
func itself(own, theirs hello) error {
	if theirs.run == own.run {
		return errItself
	}
	return fmt.Errorf("%w, or another one of the same name, %q", errItself, own.name)
}

// greet sends hello.
func (o *outgoing) greet(own hello) error {
	o.sequence, o.said = 1, 1
	b := own.append(beginMessage(nil, kindHello, 1))
	_, err := o.conn.Write(endMessage(b, 0))
	return err
}

// explain says in other words what TLS's errors mean here.
func explain(err error) error {
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("%w, or is no sluice node (%w)", errWrongKey, err)
	case isTimeout(err):
		return fmt.Errorf("%w in time: %w", errSilent, err)
	}
	return err
}

// byeError is why the other end has ended a connection, in its words.
func byeError(body []byte) error {
	c, err := readComplaint(body)
	if err != nil {
		return err
	}
	return &endedError{c.reason, c.text}
}

// An endedError is the other end's reason to end a connection.
type endedError struct {
	reason Reason
	text   string
}

func (e *endedError) Error() string { return "the other end says: " + e.text }

// farewell is what the other end is told of why a connection ends.
func farewell(why error) complaint {
	if why == nil || errors.Is(why, context.Canceled) {
		why = errStopped
	}
	return complaint{reason: reasonOf(why), text: why.Error()}
}
