// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Bounds of connections that have not shown who they are. Those from addresses of
// peers have places of their own, so that strangers keep no peer out.
const (
	acceptPeer      = 4 // of each peer's address
	acceptStranger  = 2 // of each other address
	acceptStrangers = 8 // of all these together
	// maxStrangers is how many are remembered.
	maxStrangers = 16
)

// A Stranger is an address from which somebody has connected who is no peer, or not
// as a peer does.
type Stranger struct {
	Address netip.Addr
	Why     Reason // the last time
	Error   string
	Count   uint64
	First   time.Time
	Last    time.Time
}

// strangers are those of late.
type strangers struct {
	all    []Stranger
	counts map[Reason]uint64 // of all that ever were
}

func (s *strangers) count(why Reason) {
	if s.counts == nil {
		s.counts = map[Reason]uint64{}
	}
	s.counts[why]++
}

// add counts one, and reports whether its address is new.
func (s *strangers) add(from netip.Addr, why Reason, err error, now time.Time) bool {
	s.count(why)
	oldest := 0
	for i := range s.all {
		if k := &s.all[i]; k.Address == from {
			k.Why, k.Error, k.Last = why, err.Error(), now
			k.Count++
			return false
		}
		if s.all[i].Last.Before(s.all[oldest].Last) {
			oldest = i
		}
	}
	k := Stranger{Address: from, Why: why, Error: err.Error(), Count: 1, First: now, Last: now}
	if len(s.all) < maxStrangers {
		s.all = append(s.all, k)
	} else {
		s.all[oldest] = k
	}
	return true
}

// listen accepts connections until ctx ends.
func (n *Node) listen(ctx context.Context, all *sync.WaitGroup) {
	for ctx.Err() == nil {
		l, err := n.open(ctx)
		n.setListening(err)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { l.Close() })
			err = n.accept(ctx, l, all)
			stop()
			l.Close()
			n.setListening(err)
		}
		if ctx.Err() != nil {
			return
		}
		n.warn("listen", "sync: peers cannot connect", "error", err)
		pause := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

func (n *Node) setListening(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listening = err
}

func (n *Node) accept(ctx context.Context, l net.Listener, all *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		from := addressOf(conn)
		if !n.admit(from) {
			conn.Close()
			n.refuse(from, errTooMany)
			continue
		}
		all.Go(func() { n.serve(ctx, conn, from) })
	}
}

func addressOf(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// isPeer reports whether a peer is configured at an address.
func (n *Node) isPeer(a netip.Addr) bool {
	for _, p := range n.peers {
		if p.Address.Addr().Unmap() == a {
			return true
		}
	}
	return false
}

// admit reserves a place for a connection that has not shown who it is.
func (n *Node) admit(from netip.Addr) bool {
	peer := n.isPeer(from)
	n.mu.Lock()
	defer n.mu.Unlock()
	most, others := acceptPeer, 0
	if !peer {
		most = acceptStranger
		for a, k := range n.accepting {
			if !n.isPeer(a) {
				others += k
			}
		}
	}
	if n.accepting[from] >= most || others >= acceptStrangers {
		return false
	}
	n.accepting[from]++
	return true
}

func (n *Node) release(from netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.accepting[from]--; n.accepting[from] <= 0 {
		delete(n.accepting, from)
	}
}

// penalty waits a moment where a stranger has connected.
func (n *Node) penalty(ctx context.Context, from netip.Addr) {
	if n.isPeer(from) || n.tuning.pause == 0 {
		return
	}
	pause := time.NewTimer(n.tuning.pause)
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
}

// serve finds out who has connected, and takes a peer's state.
func (n *Node) serve(ctx context.Context, conn net.Conn, from netip.Addr) {
	n.mu.Lock()
	identities := n.identities
	n.mu.Unlock()
	var before traffic // until it is known whose it is
	c := &incoming{endpoint: endpoint{
		node: n, wire: &watchedConn{Conn: conn, count: &before}, wake: make(chan struct{}, 1),
	}, done: make(chan struct{})}
	p, err := n.meet(ctx, c, identities)
	if err != nil {
		if ctx.Err() == nil {
			n.refuse(from, err)
			n.sayWhy(c, err)
		}
		conn.Close()
		n.penalty(ctx, from)
		n.release(from)
		return
	}
	n.release(from)
	c.peer = p
	n.mu.Lock()
	p.in.from = from
	n.mu.Unlock()
	n.log.Info("sync: a peer has connected", "peer", p.Name, "address", from, "version", c.version)
	_ = n.receive(ctx, c) // it is in Status
}

// sayWhy tells who has the key why it is refused all the same.
func (n *Node) sayWhy(c *incoming, why error) {
	var failed *handshakeError
	if errors.As(why, &failed) {
		return
	}
	c.wire.leave() // bounds the time
	w := &speaker{conn: c.conn}
	r := farewell(why)
	_ = w.say(kindBye, r.append)
	c.wire.finish()
}

// refuse counts and names who was refused.
func (n *Node) refuse(from netip.Addr, err error) {
	why := handshakeReason(err)
	n.mu.Lock()
	fresh := n.strangers.add(from, why, err, time.Now())
	n.mu.Unlock()
	n.warn("stranger "+string(why), "sync: a connection was refused", "address", from, "reason", why, "error", err)
	if fresh && n.cfg.Told.Refused != nil {
		n.cfg.Told.Refused(from, why)
	}
}
