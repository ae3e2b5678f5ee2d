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
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/l7"
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
		Services: digests(n.cfg), Overrides: s.state.Overrides(), Told: statesync.Told{Synced: s.hear, Gone: n.loop.NodeGone, Connected: func(peer string, connected bool, _ error) {
			if connected {
				n.loop.NodeBack(peer)
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
		h := sha256.Sum256(fmt.Append(nil, s.Protocol, s.Forward, s.Addresses, s.SourceAddresses, s.KeepsPorts, s.Scheduler, s.Affinity, s.TableSize))
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

// tellSynced has each instance know whether this node may take the place of the node that
// is Active for it: it holds that one's state, and reaches the servers that serve there.
func (n *node) tellSynced(ctx context.Context) {
	ticker := time.NewTicker(time.Second) // another node may be Active by now
	defer ticker.Stop()
	unready := map[string]string{} // by instance, as the log has it
	for {
		for _, r := range n.instances() {
			s := r.Status()
			held, why := n.holdsStateOf(s.Peer.Address), ""
			if held {
				why = n.unreadyFor(s.Peer.Address)
			}
			if why != "" && unready[s.Name] == "" && !s.AwaitsState.IsZero() {
				n.log.Warn("the VIPs stay where they are: what serves there would not from here", "instance", s.Name, "lacking", why, "at_most_until", s.AwaitsState.Format(time.TimeOnly))
				unready[s.Name] = why
			} else if why == "" {
				delete(unready, s.Name)
			}
			r.SetSynced(held && why == "")
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
	s := n.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(n.namesOf(address), func(name string) bool { return !s.synced[name] })
}

// unreadyFor says what the node at an address has, and this one has not: a table, or the
// way to a server.
func (n *node) unreadyFor(address netip.Addr) string {
	for _, name := range n.namesOf(address) {
		if why := n.loop.Unready(name); why != "" {
			return why
		}
	}
	return ""
}

// namesOf returns the name of the node at an address, or those of all peers that share
// their state where it is not in the roster.
func (n *node) namesOf(address netip.Addr) (names []string) {
	cfg := n.config()
	for _, other := range cfg.Nodes {
		if other.Address == address {
			return []string{other.Name}
		}
	}
	_, peers := syncPeers(cfg)
	for _, p := range peers {
		names = append(names, p.Name)
	}
	return names
}

// syncStatus describes it. Services are described already.
func (n *node) syncStatus(services []control.ServiceStatus) *control.SyncStatus {
	if n.sharing == nil {
		return nil
	}
	vips := n.activity.activeVIPs()
	kept := n.sharing.feed.Translated(vips)
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
	fmt.Fprintln(w, riskText(s.Sync, s.HTTP))
	for _, why := range slices.Sorted(maps.Keys(s.Sync.Taken.Refused)) {
		r := s.Sync.Taken.Refused[why]
		fmt.Fprintf(w, "%d flows of the other nodes were refused: %s: %s\n", r.Flows, why, r.Example)
	}
	for _, x := range s.Sync.Strangers {
		fmt.Fprintf(w, "refused: %v, %d times, %s ago: %s\n", x.Address, x.Count, age(s.Time, x.Last), x.Error)
	}
}

// riskText says what a failover now would break.
func riskText(s *control.SyncStatus, http *l7.Status) string {
	text := "a failover now would break no connection"
	if s.AtRisk > 0 {
		text = "a failover now would break " + count(s.AtRisk, "connection")
	}
	requests := 0
	if http != nil {
		for _, v := range http.Servers {
			requests += int(v.InFlight)
		}
	}
	if requests > 0 { // these end with the node, whoever has the state of connections
		text += fmt.Sprintf(", beside those of %s that http serves here", count(requests, "request"))
	}
	return text
}

// syncWait is how long an instance waits for a peer's state, where there is any.
func (n *node) syncWait(i config.Instance) time.Duration {
	if n.sharing == nil {
		return 0
	}
	return i.SyncWait
}
