package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// A sharing is what this node has in common with its peers: nil where there is no
// service, no key or no peer.
type sharing struct {
	feed   *loader.FlowFeed
	stream *statesync.Node
	state  *control.SharedState
	poke   chan struct{} // what the routers may rely on has changed

	mu     sync.Mutex
	synced map[string]bool // peers whose state is here
}

// An activity is for which VIPs this node is Active.
type activity struct {
	mu        sync.Mutex
	active    map[string]bool // instances
	instances []config.Instance
	vips      atomic.Pointer[map[netip.Addr]bool]
}

// follow takes other instances.
func (a *activity) follow(instances []config.Instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.instances = instances
	a.update()
}

// change takes note of an instance's state.
func (a *activity) change(c vrrp.Change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active == nil {
		a.active = map[string]bool{}
	}
	a.active[c.Instance] = c.To == vrrp.Active
	a.update()
}

func (a *activity) update() {
	vips := map[netip.Addr]bool{}
	for _, i := range a.instances {
		for _, p := range i.Addresses {
			vips[p.Addr()] = vips[p.Addr()] || a.active[i.Name]
		}
	}
	a.vips.Store(&vips)
}

// activeVIPs are the addresses that VRRP moves, and whether this node is Active for
// them.
func (a *activity) activeVIPs() map[netip.Addr]bool {
	if vips := a.vips.Load(); vips != nil {
		return *vips
	}
	return nil
}

// syncPeers are the other nodes of the roster.
func syncPeers(cfg *config.Config) (own netip.Addr, peers []statesync.Peer) {
	for _, other := range cfg.Nodes {
		if other.Name == cfg.Node {
			own = other.Address
		} else {
			peers = append(peers, statesync.Peer{Name: other.Name, Address: netip.AddrPortFrom(other.Address, cfg.Sync.Port)})
		}
	}
	return own, peers
}

// shares tells whether a configuration has nodes share their state.
func shares(cfg *config.Config) bool {
	_, peers := syncPeers(cfg)
	return len(cfg.Services) > 0 && len(cfg.Sync.Keys) > 0 && len(peers) > 0
}

// openSharing makes what the node has in common with its peers. The data plane is
// attached, and the loop does not run yet.
func (n *node) openSharing(ctx context.Context, goroutines *sync.WaitGroup, datapath *loader.Datapath) error {
	n.activity.follow(n.cfg.VRRP)
	if !shares(n.cfg) {
		return nil
	}
	feed, err := datapath.OpenFlowFeed()
	if err != nil {
		return err
	}
	n.closers = append(n.closers, feed.Close)
	epochs, err := control.OpenEpochs(filepath.Join(n.runDir, "tables.json"), datapath.Fresh())
	if err != nil {
		return err
	}
	s := &sharing{
		feed: feed, state: control.NewSharedState(ctx, n.loop, feed, n.activity.activeVIPs),
		poke: make(chan struct{}, 1), synced: map[string]bool{},
	}
	s.state.Introduce(n.cfg.Node)
	told := make(chan struct{}, 1)
	n.loop.TellChanges(func() { wake(told) })
	own, peers := syncPeers(n.cfg)
	s.stream, err = statesync.New(statesync.Config{
		Name: n.cfg.Node, Listen: netip.AddrPortFrom(own, n.cfg.Sync.Port), Open: n.sharedPort().Sync, Peers: peers, Keys: n.cfg.Sync.Keys,
		Services: digests(n.cfg), Overrides: s.state.Overrides(), Told: statesync.Told{Synced: s.hear, Connected: func(_ string, connected bool, _ error) {
			if connected {
				n.loop.TellTables()
			}
		}}, Log: n.log,
	}, s.state, s.state)
	if err != nil {
		return err
	}
	n.loop.Share(control.Exchange{Publisher: control.Stream{Node: s.stream}, VIPs: n.activity.activeVIPs, Epochs: epochs})
	n.sharing = s
	goroutines.Go(func() { s.stream.Run(ctx) })
	goroutines.Go(func() {
		for {
			select {
			case <-told:
			case <-ctx.Done():
				return
			}
			if _, err := s.stream.PublishOverrides(s.state.Overrides()); err != nil {
				n.log.Error("other nodes are not told of an operator's change", "error", err)
			}
		}
	})
	return nil
}

// digests stand for the services, as far as their tables depend on it: two nodes follow
// each other's table of a service whose servers differ, but not if it does.
func digests(cfg *config.Config) []statesync.ServiceDigest {
	var all []statesync.ServiceDigest
	for _, s := range cfg.Services {
		h := sha256.Sum256(fmt.Append(nil, s.Protocol, s.Forward, s.Addresses, s.SourceAddresses, s.Scheduler, s.Affinity, s.TableSize))
		all = append(all, statesync.ServiceDigest{Name: s.Name, Digest: binary.BigEndian.Uint64(h[:])})
	}
	return all
}

// hear takes note that a peer's state is here, or not any more. It waits for nothing.
func (s *sharing) hear(peer string, synced bool) {
	s.mu.Lock()
	s.synced[peer] = synced
	s.mu.Unlock()
	wake(s.poke)
}

// wake has who waits for a channel go on, now or when it waits again.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sharedPort is the TCP port of sync and of heartbeats.
func (n *node) sharedPort() *statesync.Port {
	if n.port == nil {
		cfg := n.cfg
		n.port = &statesync.Port{
			Address: fmt.Sprintf(":%d", cfg.Sync.Port),
			Known: func(a netip.Addr) bool {
				return slices.ContainsFunc(cfg.Nodes, func(other config.Node) bool { return other.Address == a })
			},
		}
	}
	return n.port
}

// tellSynced has each instance know whether this node holds the state of the node that
// is Active for it.
func (n *node) tellSynced(ctx context.Context) {
	ticker := time.NewTicker(time.Second) // another node may be Active by now
	defer ticker.Stop()
	for {
		for _, r := range n.instances() {
			r.SetSynced(n.holdsStateOf(r.Status().Peer.Address))
		}
		select {
		case <-ctx.Done():
			return
		case <-n.sharing.poke:
		case <-ticker.C:
		}
	}
}

// holdsStateOf tells whether the state of the node at an address is here: of one that
// is not in the roster, those of all that are.
func (n *node) holdsStateOf(address netip.Addr) bool {
	cfg, s := n.config(), n.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range cfg.Nodes {
		if other.Address == address {
			return s.synced[other.Name]
		}
	}
	_, peers := syncPeers(cfg)
	return !slices.ContainsFunc(peers, func(p statesync.Peer) bool { return !s.synced[p.Name] })
}

// syncStatus describes it. Services are described already.
func (n *node) syncStatus(services []control.ServiceStatus) *control.SyncStatus {
	if n.sharing == nil {
		return nil
	}
	vips, kept := n.activity.activeVIPs(), 0
	if slices.Contains(slices.Collect(maps.Values(vips)), true) {
		kept = n.sharing.feed.Translated()
	}
	for _, s := range services {
		if s.Forward == lb.NAT.String() || !slices.ContainsFunc(s.Addresses, func(f lb.Frontend) bool { return vips[f.VIP] }) {
			continue
		}
		for _, b := range s.Backends {
			kept += max(b.Pinned, 0)
		}
	}
	return control.Sync(n.sharing.stream.Status(), n.sharing.state.Taken(), kept)
}

// flushWait is how long a planned move of VIPs waits until the peers have everything.
const flushWait = 500 * time.Millisecond

// flush has the peers acknowledge what they do not have yet.
func (n *node) flush(ctx context.Context) {
	if n.sharing == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	if err := n.sharing.stream.Flush(ctx); err != nil {
		n.log.Warn("some connections of the last moments may not be known to the other nodes yet", "error", err)
	}
}

// lacks says what no peer has of this node's connections; "": nothing, or none is shared.
func (n *node) lacks() string {
	if n.sharing == nil {
		return ""
	}
	n.flush(context.Background())
	var problems []string
	for _, p := range n.sharing.stream.Status().Peers {
		if p.Out.InSync {
			return ""
		}
		problems = append(problems, p.Problem)
	}
	return strings.Join(problems, "; ")
}

// printSync prints how the state of connections gets to the other nodes.
func printSync(w io.Writer, s control.Status) {
	if s.Sync == nil {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SYNC\tADDRESS\tHAS OURS\tWE HAVE THEIRS\tWAITING\tOLDEST\tSENT\tRECEIVED\tREFUSED")
	for _, p := range s.Sync.Peers {
		ours := "no"
		switch {
		case p.InSync:
			ours = "yes"
		case p.Connected:
			ours = "not all yet"
		}
		theirs := "no"
		if p.Synced {
			theirs = "yes"
		}
		oldest := time.Duration(p.Age * float64(time.Second)).Round(time.Millisecond)
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%d\t%v\t%d\t%d\t%d\n", p.Node, p.Address, ours, theirs, p.Waiting, oldest, p.RecordsSent, p.RecordsReceived, p.Refused)
	}
	t.Flush()
	switch {
	case s.Sync.AtRisk > 0:
		fmt.Fprintf(w, "a failover now would break %d connections\n", s.Sync.AtRisk)
	default:
		fmt.Fprintln(w, "a failover now would break no connection")
	}
	for _, why := range slices.Sorted(maps.Keys(s.Sync.Taken.Refused)) {
		r := s.Sync.Taken.Refused[why]
		fmt.Fprintf(w, "%d flows of the other nodes were refused: %s: %s\n", r.Flows, why, r.Example)
	}
	for _, x := range s.Sync.Strangers {
		fmt.Fprintf(w, "refused: %v, %d times, %s ago: %s\n", x.Address, x.Count, age(s.Time, x.Last), x.Error)
	}
}

// syncWait is how long an instance waits for a peer's state, where there is any.
func (n *node) syncWait(i config.Instance) time.Duration {
	if n.sharing == nil {
		return 0
	}
	return i.SyncWait
}
