// SPDX-License-Identifier: Apache-2.0

// Package statesync streams flow states and tables between the nodes of a cluster, so
// that each has what the others forward by before it needs it.
//
// Every node connects to every other one, and tells it by that connection what it
// has: first everything, then what changes. The other end writes that to its own data
// plane and acknowledges it. A record says how a flow is, not what has happened to
// it, so one that comes twice does no harm, and of several changes that wait for a
// slow peer the last one is sent.
//
// The connections are TLS 1.3 between nodes that have one key in common, and nobody
// else.
package statesync

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A Source is this node's data plane, as far as it is told to peers. Its methods are
// called from several goroutines, and while earlier calls go on.
type Source interface {
	// Snapshot goes through the state of all flows that peers are to have. Flows that
	// begin and end meanwhile may be among them or not: Changes has them. It may read
	// 65,536 states ahead of the one that it yields. It goes on while its consumer waits
	// for a slow peer, so it must hold nothing up. After an error it ends.
	Snapshot() iter.Seq2[lb.FlowState, error]
	// Changes appends to into how the flows are that have changed since the last call:
	// each as it is now, with FlowOver for one that is not any more, and no more than
	// 16,384 at a time. It does not wait, and has one caller, who calls no more while peers
	// do not keep up. Lost says that it has lost track of some, so that peers need
	// everything again.
	Changes(into []lb.FlowState) (changed []lb.FlowState, lost bool, err error)
	// Unread is about how many changes there are that Changes has not told of yet.
	Unread() int
	// Owned are the VIPs whose flows this node answers for: Snapshot has all of theirs,
	// and no others. When there are others, Changes says that it has lost track.
	Owned() []netip.Addr
	// Tables are those in force.
	Tables() []lb.TableState
}

// A Sink is where what a peer tells is written to. Calls for one peer come one after
// the other, but for Held, those for several peers at the same time. The slices are
// valid until a call returns.
//
// What a peer tells of a flow is what it knows, which may be less than what this
// node's own packets have shown: what then counts is the Sink's to know.
type Sink interface {
	// ApplyFlows takes states of flows. It returns those that it has no use for: of a
	// service or backend that this node has not, or that contradict what it has. After
	// an error the connection begins anew, and with it everything.
	ApplyFlows(peer string, states []lb.FlowState) (refused []lb.FlowID, err error)
	// BeginSnapshot says that from here on all flows to the VIPs that the peer owns are
	// mentioned. A snapshot that was not ended before does not count.
	BeginSnapshot(peer string, owned []netip.Addr) error
	// EndSnapshot says that what of these was not mentioned since is over.
	EndSnapshot(peer string) error
	// ApplyTables takes tables. Its error, which may be a *TableError, is told to who has
	// published them.
	ApplyTables(peer string, tables []lb.TableState) error
	// ApplyOverrides takes operators' changes that are later than all that this node
	// knows of what they are about.
	ApplyOverrides(peer string, changes []Override) error
	// Held goes through the flows that this node has from a peer, to the VIPs that it
	// owns, as the peer has told them. Other methods are called meanwhile.
	Held(peer string) iter.Seq2[lb.FlowState, error]
}

// A Peer is another node.
type Peer struct {
	Name    string
	Address netip.AddrPort
}

// A ServiceDigest is a service and what stands for its configuration: the same on two
// nodes if the service is.
type ServiceDigest struct {
	Name   string
	Digest uint64
}

// Told is who is told of what happens. Its functions must not wait.
type Told struct {
	// Connected: this node's state goes to a peer, or does not any more, and why.
	Connected func(peer string, connected bool, why error)
	// Synced: this node has all of a peer's state, or the connection that kept it so
	// has ended.
	Synced func(peer string, synced bool)
	// Gone: there is no connection with a peer in either direction, and nobody takes one
	// there. This is told at each attempt.
	Gone func(peer string)
	// Refused: a stranger was refused. Of many of one address the first is told.
	Refused func(from netip.Addr, why Reason)
}

// A Config is what a Node needs.
type Config struct {
	Name string // of this node
	// Listen is where peers connect to; without an address: at all of this node. With
	// one, connections to peers of its family come from it.
	Listen netip.AddrPort
	// Open makes the listener, where it is not simply a socket at Listen.
	Open  func(context.Context) (net.Listener, error)
	Peers []Peer
	// Keys authenticate nodes. The first is tried first, all are accepted.
	Keys     []key.Key
	Services []ServiceDigest
	// Overrides are the operators' changes that this node knows, with their stamps.
	Overrides []Override
	Told      Told
	Log       *slog.Logger
}

// tuning has what tests have otherwise.
type tuning struct {
	oldest, newest uint8
	poll           time.Duration // between calls of Changes
	ping           time.Duration // a message is sent at least so often
	silence        time.Duration // without one, a connection is cut
	shake          time.Duration // for the beginning of a connection
	pause          time.Duration // that a stranger keeps his place, so that he comes not too often
	dial           time.Duration
	firstRetry     time.Duration
	lastRetry      time.Duration
	window         int           // bytes that are sent before they are acknowledged
	pending        int           // flows whose changes wait for one peer
	again          time.Duration // between the beginnings of two snapshots that a loss makes necessary
	digests        time.Duration // between digests, at least
}

// batchBytes is how much a message of many records holds: it fits into one record of
// TLS.
const (
	batchBytes   = 16<<10 - 256
	batchRecords = 1024 // that are taken from what waits at a time
)

func defaults() tuning {
	return tuning{
		oldest: oldestVersion, newest: newestVersion,
		poll: 5 * time.Millisecond, ping: 500 * time.Millisecond, silence: 2500 * time.Millisecond,
		shake: 3 * time.Second, pause: 100 * time.Millisecond, dial: 2 * time.Second, firstRetry: 100 * time.Millisecond, lastRetry: 2 * time.Second,
		window: 256 << 10, pending: 1 << 16, again: 2 * time.Second, digests: 20 * time.Second,
	}
}

// A Node is this node among its peers.
type Node struct {
	cfg    Config
	log    *slog.Logger
	source Source
	sink   Sink
	tuning tuning
	run    runID
	peers  []*peer

	dial func(context.Context, netip.AddrPort) (net.Conn, error)
	open func(context.Context) (net.Listener, error)

	mu         sync.Mutex // guards all below, and of peers what they say
	identities []*identity
	services   []ServiceDigest
	published  map[string]*publication // the latest of each service
	overrides  map[string]Override
	accepting  map[netip.Addr]int // connections that have not shown who they are
	strangers  strangers
	listening  error         // why nobody can connect; nil: they can
	reading    error         // why Changes fails
	polled     chan struct{} // closed when Changes was called the next time
	lost       uint64
	unsaid     uint64
	logged     map[string]time.Time
}

// New makes a Node.
func New(cfg Config, source Source, sink Sink) (*Node, error) {
	n := &Node{
		cfg: cfg, log: cfg.Log, source: source, sink: sink, tuning: defaults(),
		published: map[string]*publication{}, overrides: map[string]Override{},
		accepting: map[netip.Addr]int{}, logged: map[string]time.Time{},
		listening: errors.New("it has not begun"), polled: make(chan struct{}),
	}
	_, _ = rand.Read(n.run[:]) // never fails (crypto/rand)
	n.dial, n.open = n.dialTCP, cfg.Open
	if n.open == nil {
		n.open = n.listenTCP
	}
	if cfg.Name == "" || len(cfg.Name) > maxName {
		return nil, fmt.Errorf("state synchronisation: node name %q: it must have 1 to %d bytes", cfg.Name, maxName)
	}
	for _, p := range cfg.Peers {
		switch {
		case p.Name == "" || len(p.Name) > maxName || p.Name == cfg.Name || n.peer(p.Name) != nil:
			return nil, fmt.Errorf("state synchronisation: peer name %q: each node has one of its own", p.Name)
		case !p.Address.IsValid():
			return nil, fmt.Errorf("state synchronisation: peer %s has no address", p.Name)
		}
		n.peers = append(n.peers, &peer{Peer: p})
	}
	if err := n.Reconfigure(cfg.Services, cfg.Keys); err != nil {
		return nil, err
	}
	for _, o := range cfg.Overrides {
		if err := checkOverride(o); err != nil {
			return nil, fmt.Errorf("state synchronisation: %w", err)
		}
		n.merge(o)
	}
	return n, nil
}

// peer finds a peer by its name.
func (n *Node) peer(name string) *peer {
	for _, p := range n.peers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Reconfigure takes other services and keys. A connection whose key is not in force
// any more is made anew.
func (n *Node) Reconfigure(services []ServiceDigest, keys []key.Key) error {
	if len(keys) == 0 {
		return errors.New("state synchronisation: no key")
	}
	identities, err := newIdentities(keys)
	if err != nil {
		return fmt.Errorf("state synchronisation: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.identities = identities
	if !slices.Equal(n.services, services) {
		n.services = slices.Clone(services)
		for _, p := range n.peers {
			p.servicesChanged()
		}
	}
	for _, p := range n.peers {
		p.endWithoutKey(keys)
	}
	return nil
}

// Run streams until ctx ends.
func (n *Node) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { n.readChanges(ctx) })
	all.Go(func() { n.listen(ctx, &all) })
	for _, p := range n.peers {
		all.Go(func() { n.keep(ctx, p) })
	}
	all.Wait()
}

// choked reports whether what changes is left where it is, since peers do not keep up:
// the Source loses less of it than a queue that is full, and a flow that changes again
// costs nothing there. Of several peers the quickest counts, so that none waits for
// another one.
func (n *Node) choked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	connected := false
	for _, p := range n.peers {
		if p.sending == nil {
			continue
		}
		if p.sending.waiting() < n.tuning.pending/2 {
			return false
		}
		connected = true
	}
	return connected
}

// readChanges hands on to all connected peers what changes.
func (n *Node) readChanges(ctx context.Context) {
	ticker := time.NewTicker(n.tuning.poll)
	defer ticker.Stop()
	var states []lb.FlowState
	for {
		if n.choked() {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			continue
		}
		var lost bool
		var err error
		states, lost, err = n.source.Changes(states[:0])
		if err != nil {
			n.warn("read", "sync: what changes cannot be read", "error", err)
		}
		now := time.Now()
		n.mu.Lock()
		n.reading = err
		if lost {
			n.lost++
		}
		for _, p := range n.peers {
			if p.sending != nil {
				p.sending.put(states, lost, now)
			}
		}
		close(n.polled)
		n.polled = make(chan struct{})
		n.mu.Unlock()
		if len(states) >= batchRecords && ctx.Err() == nil {
			continue // there may be more already
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// logEvery is how often one kind of trouble is logged.
const logEvery = time.Minute

// warn logs one kind of trouble at a bounded rate. Nothing of this node is locked.
func (n *Node) warn(what, text string, args ...any) {
	n.mu.Lock()
	now := time.Now()
	quiet := now.Sub(n.logged[what]) < logEvery
	if !quiet {
		n.logged[what] = now
	}
	n.mu.Unlock()
	if !quiet {
		n.log.Warn(text, args...)
	}
}

func (n *Node) hello() hello {
	return hello{oldest: n.tuning.oldest, newest: n.tuning.newest, run: n.run, name: n.cfg.Name}
}

func (n *Node) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if local := n.cfg.Listen.Addr(); local.IsValid() && !local.IsUnspecified() && local.Is4() == to.Addr().Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

func (n *Node) listenTCP(ctx context.Context) (net.Listener, error) {
	at := ":" + strconv.Itoa(int(n.cfg.Listen.Port()))
	if n.cfg.Listen.Addr().IsValid() {
		at = n.cfg.Listen.String()
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", at)
}
