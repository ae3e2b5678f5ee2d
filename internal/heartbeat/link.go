// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Bounds of connections.
const (
	handshakeTime = 2 * time.Second
	dialEvery     = 250 * time.Millisecond
	maxAccepting  = 4 // handshakes at a time for each address
	goodbyeTime   = 100 * time.Millisecond
	// grace is by how much the heartbeat may be late that shows that a connection's
	// end was not its peer's: what a network does, or somebody who forges packets.
	grace = time.Millisecond
	// lookAgain is when to look again whether all is read.
	lookAgain = time.Millisecond / 2
)

// A link is a connection to a run of another node's daemon, which tells of that
// run's end.
type link struct {
	peer    Epoch
	address netip.Addr
	conn    net.Conn
	key     int // which of the keys the peer has
}

// links are the connections of a node: one for each path. Of two daemons the one
// with the lesser epoch connects.
type links struct {
	all       []*link
	dialling  map[netip.Addr]time.Time // when it was tried last; far ahead while it is being tried
	accepting map[netip.Addr]int
	closed    bool
}

func (l *links) init() {
	l.dialling, l.accepting = map[netip.Addr]time.Time{}, map[netip.Addr]int{}
}

func (l *links) has(peer Epoch, a netip.Addr) bool {
	return slices.ContainsFunc(l.all, func(k *link) bool { return k.peer == peer && k.address == a })
}

// wanted reports whether a path lacks a connection that this node has to make, and
// marks it as being made.
func (l *links) wanted(now time.Time, w *way, own *identity) bool {
	if w.peer.isZero() || string(own.epoch[:]) > string(w.peer[:]) || l.closed || l.has(w.peer, w.address) {
		return false
	}
	if now.Sub(l.dialling[w.address]) < dialEvery {
		return false
	}
	l.dialling[w.address] = now.Add(time.Hour) // until connect says otherwise
	return true
}

// goodbye tells all peers that the end of their connections is no end that they
// have to act on: what had to be handed over has been.
func (l *links) goodbye(own *identity) {
	l.closed = true
	for _, k := range l.all {
		k.leave(own)
	}
}

// leave closes a connection. The peer is told that it is no end of this daemon.
func (k *link) leave(own *identity) {
	_ = k.conn.SetWriteDeadline(time.Now().Add(goodbyeTime))
	_ = writeFrame(k.conn, own.keys[k.key].appendMessage(nil, message{kind: kindBye, from: own.epoch, to: k.peer}))
	k.conn.Close()
}

// writeFrame writes a message behind its length, in one piece.
func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxMessage {
		return nil, errMalformed
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// A handshake is the beginning of a connection: each side shows that it has a key and is
// the run that the other knows from its heartbeats, now.
type handshake struct {
	node *Node
	conn net.Conn
	peer Epoch
	key  int
}

func (t *handshake) say(k kind, body []byte) error {
	t.node.mu.Lock()
	b := t.node.own.keys[t.key].appendMessage(nil, message{kind: k, from: t.node.own.epoch, to: t.peer, body: body})
	t.node.mu.Unlock()
	return writeFrame(t.conn, b)
}

// hear reads a message of one kind from the peer.
func (t *handshake) hear(k kind, bodyLen int) ([]byte, error) {
	b, err := readFrame(t.conn)
	if err != nil {
		return nil, err
	}
	t.node.mu.Lock()
	defer t.node.mu.Unlock()
	m, key, err := open(b, t.node.own.keys)
	switch {
	case err != nil:
		return nil, err
	case m.kind != k || m.to != t.node.own.epoch || len(m.body) != bodyLen:
		return nil, errMalformed
	case m.from != t.peer:
		return nil, errors.New("another run of the daemon than sends heartbeats")
	}
	t.key = key
	return m.body, nil
}

func newNonce() []byte {
	b := make([]byte, nonceLen)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

var errNonce = errors.New("the answer is to something else")

// call is the side that connects.
func (t *handshake) call() error {
	nonce := newNonce()
	if err := t.say(kindHello, nonce); err != nil {
		return err
	}
	body, err := t.hear(kindWelcome, 2*nonceLen)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(body[:nonceLen], nonce) != 1 {
		return errNonce
	}
	theirs := body[nonceLen:]
	if err := t.say(kindConfirm, theirs); err != nil {
		return err
	}
	// The other side has taken it: from now on its end is news.
	body, err = t.hear(kindConfirm, nonceLen)
	if err == nil && subtle.ConstantTimeCompare(body, nonce) != 1 {
		err = errNonce
	}
	return err
}

// answer is the side that is connected to.
func (t *handshake) answer() error {
	theirs, err := t.hear(kindHello, nonceLen)
	if err != nil {
		return err
	}
	nonce := newNonce()
	if err := t.say(kindWelcome, append(slices.Clone(theirs), nonce...)); err != nil {
		return err
	}
	body, err := t.hear(kindConfirm, nonceLen)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(body, nonce) != 1 {
		return errNonce
	}
	return t.say(kindConfirm, theirs)
}

func (n *Node) listenTCP(ctx context.Context) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", n.listenOn)
}

// listen accepts connections until ctx ends.
func (n *Node) listen(ctx context.Context, all *sync.WaitGroup) {
	var logged time.Time
	for ctx.Err() == nil {
		l, err := n.open(ctx)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { l.Close() })
			err = n.accept(ctx, l, all)
			stop()
			l.Close()
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(logged) >= logEvery {
			logged = time.Now()
			n.log.Warn("heartbeats: connections of other nodes cannot be accepted", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

func (n *Node) accept(ctx context.Context, l net.Listener, all *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		from := netip.Addr{}
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		peer, ok := n.admit(from)
		if !ok {
			conn.Close()
			continue
		}
		all.Go(func() {
			t := &handshake{node: n, conn: conn, peer: peer}
			err := t.shake(ctx, t.answer)
			n.mu.Lock()
			n.links.accepting[from]--
			n.mu.Unlock()
			n.keepLink(ctx, t, from, err)
		})
	}
}

// admit tells who may connect from an address.
func (n *Node) admit(from netip.Addr) (Epoch, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.wayTo(from)
	if w == nil || w.peer.isZero() || n.links.closed || n.links.accepting[from] >= maxAccepting {
		return Epoch{}, false
	}
	n.links.accepting[from]++
	return w.peer, true
}

// shake does one side of the handshake, in bounded time.
func (t *handshake) shake(ctx context.Context, side func() error) error {
	stop := context.AfterFunc(ctx, func() { t.conn.Close() })
	defer stop()
	if err := t.conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if err := side(); err != nil {
		return err
	}
	return t.conn.SetDeadline(time.Time{})
}

// connect makes a connection to a run of a daemon, which has one of the keys, and
// keeps it.
func (n *Node) connect(ctx context.Context, peer Epoch, key int, to netip.Addr) {
	dialer := net.Dialer{Timeout: handshakeTime}
	if local := n.localFor(to); local.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(to, n.cfg.Port).String())
	t := &handshake{node: n, conn: conn, peer: peer, key: key}
	if err == nil {
		err = t.shake(ctx, t.call)
	}
	n.mu.Lock()
	n.links.dialling[to] = time.Now()
	n.mu.Unlock()
	if conn == nil {
		n.log.Debug("heartbeats: no connection to a peer", "address", to, "error", err)
		return
	}
	n.keepLink(ctx, t, to, err)
}

// keepLink waits for the end of a connection. Err is that of its handshake.
func (n *Node) keepLink(ctx context.Context, t *handshake, address netip.Addr, err error) {
	defer t.conn.Close()
	k := &link{peer: t.peer, address: address, conn: t.conn, key: t.key}
	n.mu.Lock()
	switch {
	case err != nil:
	case n.links.closed:
		k.leave(&n.own) // the peer may have it already
		err = context.Canceled
	default:
		n.links.all = append(n.links.all, k)
	}
	n.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			n.log.Debug("heartbeats: a connection was refused", "address", address, "error", err)
		}
		return
	}
	// What ends the node closes the connection, after its goodbye.
	_, err = t.hear(kindBye, 0)
	n.ended(k, err)
}

// ended is the end of a connection. One without a goodbye is made by the peer's kernel
// when its daemon has ended, or by whoever has forged a packet or cut the connection
// off: then heartbeats go on.
func (n *Node) ended(k *link, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links.all = slices.DeleteFunc(n.links.all, func(other *link) bool { return other == k })
	k.leave(&n.own)
	if n.links.closed || !n.trusts(k.peer) {
		return
	}
	switch {
	case err == nil:
		n.log.Info("heartbeats: a peer has said goodbye", "address", k.address)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		n.suspect(k, time.Now())
	default:
		n.log.Info("heartbeats: a connection has ended", "address", k.address, "error", fmt.Sprint(err))
	}
}

// suspect decides what the end of a connection meant, which was at a moment: its peer's
// daemon has ended, if no heartbeat comes when the next one is due.
func (n *Node) suspect(k *link, end time.Time) {
	now := time.Now()
	due, alive := n.nextOf(k.peer, end)
	again := due.Sub(now)
	if again <= 0 && !n.quiet(k.peer) {
		again = lookAgain // this node is late itself: what it has not read yet counts
	}
	switch {
	case n.links.closed || !n.trusts(k.peer):
	case alive:
		n.log.Info("heartbeats: a connection was cut off, and its peer goes on", "address", k.address)
	case again > 0:
		time.AfterFunc(again, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.suspect(k, end)
		})
	default:
		n.log.Warn("heartbeats: the daemon of a peer has ended", "address", k.address)
		n.gone(k.peer)
	}
}

// nextOf is when the next heartbeat of a run is overdue, whose connection has ended at a
// moment; and whether one has come that shows that the run goes on. One that comes within
// an interval shows nothing: the pacemaker may not have seen yet that its daemon is gone.
func (n *Node) nextOf(peer Epoch, end time.Time) (due time.Time, alive bool) {
	due = end.Add(grace)
	for _, w := range n.paths {
		if w.peer != peer {
			continue
		}
		alive = alive || w.heard.Sub(end) >= w.every()
		if at := w.heard.Add(w.every() + grace); at.After(due) {
			due = at
		}
	}
	return due, alive
}

// every is how often heartbeats come by a path.
func (w *way) every() time.Duration { return max(w.interval, w.theirs) }

// quiet reports whether all that has come of a run is read.
func (n *Node) quiet(peer Epoch) bool {
	for _, w := range n.paths {
		if s := w.socket.Load(); w.peer == peer && s != nil && !s.Quiet() {
			return false
		}
	}
	return true
}
