// SPDX-License-Identifier: Apache-2.0

// Package heartbeat tells the other nodes every few milliseconds how this node's
// virtual routers stand, hears the same of them, and notices at once when another
// node's daemon has ended.
//
// The messages are UDP, one to each address of another node, a path, and
// authenticated with a key that the nodes share. Between two daemons there is a
// connection as well, which carries nothing: the kernel closes it when one of them
// ends, however it ends.
//
// A node trusts no run of another daemon before that has answered a challenge, and
// takes from it only what is meant for its own run and newer than what it has
// taken before.
package heartbeat

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/vrrp"
)

// Timing of a Node.
const (
	keepEvery = 50 * time.Millisecond // looks at its paths
	// lease is how long heartbeats go on when the daemon hangs. On a machine that is
	// busy beyond reason it may be late by a second.
	lease      = 3 * time.Second
	retryAfter = time.Second // after a socket could not be opened
	logEvery   = time.Minute // how often one path's mistake is logged
)

// A Config is what a Node needs.
type Config struct {
	Name string // of this node
	// Local is this node's address as the others have it, where there is a roster:
	// heartbeats to the addresses in Roster come from it.
	Local netip.Addr
	// Roster are the other nodes. Who is at the address of one has its name, and who is
	// at any other address the name of one of them. Empty: any name but this node's.
	Roster []Peer
	Port   uint16
	// Open makes the listener of other nodes' connections, where TCP's port is shared with
	// something else; nil: a socket at Port.
	Open  func(context.Context) (net.Listener, error)
	Keys  []key.Key // the first is its own, the others count as well
	Pacer *pace.Pacer
	Log   *slog.Logger
}

// A Peer is another node, as the roster has it.
type Peer struct {
	Name    string
	Address netip.Addr
}

// A Node is this daemon among others. Instances are added before Run.
type Node struct {
	cfg       Config
	log       *slog.Logger
	listenOn  string
	open      func(context.Context) (net.Listener, error)
	instances []*Handle
	paths     []*way

	mu    sync.Mutex // guards all below, paths and instances
	own   identity
	links links
	wake  chan struct{} // to the keeper
}

// A way is a path with its socket and its job.
type way struct {
	path
	interval time.Duration
	slot     *pace.Slot
	socket   atomic.Pointer[socket] // nil while there is none
	silent   bool                   // is logged
	logged   time.Time
	theirs   time.Duration // the peer's interval
	problem  string        // why there is no socket
}

// New makes a Node.
func New(cfg Config) *Node {
	n := &Node{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), listenOn: ":" + strconv.Itoa(int(cfg.Port))}
	_, _ = rand.Read(n.own.epoch[:]) // never fails (crypto/rand)
	n.own.name = inShort(cfg.Name)
	if n.open = cfg.Open; n.open == nil {
		n.open = n.listenTCP
	}
	for _, k := range cfg.Keys {
		n.own.keys = append(n.own.keys, newSigner(k))
	}
	n.links.init()
	return n
}

// point makes the path's job say what is true now, at once.
func (n *Node) point(w *way) {
	s := w.socket.Load()
	if s == nil || w.peer.isZero() {
		w.slot.Clear()
		return
	}
	var entries []entry
	for _, h := range n.instances {
		if slices.Contains(h.peers, w.address) {
			entries = append(entries, entry{h.id, uint8(h.state), h.priority})
		}
	}
	m := message{
		kind: kindBeat, from: n.own.epoch, to: Epoch(w.show),
		body: appendBeat(nil, uint32(w.interval.Microseconds()), entries),
	}
	w.slot.Set(s.raw, pace.Job{
		Interval: w.interval, Lease: lease, Now: true,
		Parcels: []pace.Parcel{{Payload: append(appendUnsigned(nil, m), make([]byte, tagLen)...)}},
		Stamp:   &pace.Stamp{Key: n.cfg.Keys[w.key], At: counterAt},
	})
}

// Run opens the paths and keeps them until ctx ends; then it says goodbye.
func (n *Node) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, w := range n.paths {
		all.Go(func() { n.serve(ctx, w) })
	}
	all.Go(func() { n.listen(ctx, &all) })
	ticker := time.NewTicker(keepEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		n.keep(ctx, &all)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-n.wake:
		}
	}
	n.mu.Lock()
	n.links.goodbye(&n.own)
	n.mu.Unlock()
	all.Wait()
	for _, w := range n.paths {
		w.slot.Clear()
	}
}

// localFor is the address of this node that another one knows it by, where that is
// certain.
func (n *Node) localFor(peer netip.Addr) netip.Addr {
	listed := slices.ContainsFunc(n.cfg.Roster, func(p Peer) bool { return p.Address == peer })
	if listed && n.cfg.Local.IsValid() && n.cfg.Local.Is4() == peer.Is4() {
		return n.cfg.Local
	}
	return netip.Addr{}
}

// serve reads what comes by a path.
func (n *Node) serve(ctx context.Context, w *way) {
	for ctx.Err() == nil {
		s, err := dial(n.localFor(w.address), w.address, n.cfg.Port)
		n.opened(w, s, err)
		if err == nil {
			stop := context.AfterFunc(ctx, s.close)
			err = n.read(w, s)
			stop()
			n.mu.Lock()
			w.socket.Store(nil)
			w.slot.Clear()
			n.mu.Unlock()
			s.close()
		}
		if ctx.Err() != nil {
			return
		}
		n.failed(w, err)
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

func (n *Node) opened(w *way, s *socket, err error) {
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w.socket.Store(s)
	w.problem, w.asked = "", time.Time{}
	n.point(w)
	n.poke()
}

func (n *Node) failed(w *way, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w.problem = fmt.Sprint(err)
	if time.Since(w.logged) >= logEvery {
		w.logged = time.Now()
		n.log.Warn("no heartbeats by this path", "peer", w.address, "error", err)
	}
}

// poke makes the keeper look at once.
func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// read takes messages until the socket is closed or fails.
func (n *Node) read(w *way, s *socket) error {
	buf := make([]byte, maxMessage+1) // a byte more shows what is too long
	for {
		k, err := s.read(buf)
		if err != nil {
			return fmt.Errorf("read heartbeats of %v: %w", w.address, err)
		}
		n.take(time.Now(), w, s, buf[:k])
	}
}

// take takes one message. It waits for nothing and allocates nothing for a
// heartbeat.
func (n *Node) take(now time.Time, w *way, s *socket, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := w.receive(now, b, &n.own)
	if v.reply != nil {
		_ = s.write(v.reply) // what is lost is asked again
	}
	if v.ask {
		_ = s.write(w.challenge(now, &n.own))
	}
	if v.met {
		n.log.Info("heartbeats: a peer has shown who it is", "peer", w.name, "address", w.address)
		n.point(w)
		if !v.left.isZero() && !n.trusts(v.left) {
			n.gone(v.left)
		}
		n.poke() // for a connection
	}
	if v.beat != nil {
		n.deliver(w, v.beat)
	}
}

func (n *Node) trusts(e Epoch) bool {
	return slices.ContainsFunc(n.paths, func(w *way) bool { return w.peer == e })
}

// deliver hands on what a heartbeat says.
func (n *Node) deliver(w *way, body []byte) {
	interval := beatInterval(body)
	ok := eachEntry(body, func(e entry) {
		if vrrp.State(e.state) > vrrp.Fault {
			return
		}
		for _, h := range n.instances {
			if h.id == e.Instance && slices.Contains(h.peers, w.address) {
				h.hear(vrrp.Beat{
					Node: vrrp.NodeID(w.peer), Source: w.address, Interval: interval,
					State: vrrp.State(e.state), Priority: e.priority,
				})
			}
		}
	})
	if !ok {
		w.counts.Malformed++
	}
	w.theirs = interval
}

// gone is the end of a run of another node's daemon.
func (n *Node) gone(e Epoch) {
	for _, h := range n.instances {
		h.hear(vrrp.Beat{Node: vrrp.NodeID(e), Gone: true})
	}
	for _, w := range n.paths {
		if w.peer == e {
			w.forget()
			n.point(w)
		}
	}
	n.poke()
}
