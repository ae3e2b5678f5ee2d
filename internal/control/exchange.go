package control

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A Publisher brings tables to the other nodes.
type Publisher interface {
	// Connected tells whether there is another node now that would take tables in: at
	// the latest when that node is about to get what Published returns.
	Connected() bool
	// Publish brings tables to all nodes that are connected, and waits until they have
	// adopted them, or ctx ends. It may be called while an earlier call waits still: of
	// two tables of a service the later epoch counts. What the other nodes' Follow has
	// refused is a *RefusedError.
	Publish(ctx context.Context, tables []lb.TableState) error
}

// A RefusedError tells which tables other nodes do not follow. They follow the others.
type RefusedError struct {
	Peer   string
	Tables []RefusedTable
}

func (e *RefusedError) Error() string {
	var all []string
	for _, t := range e.Tables {
		all = append(all, fmt.Sprintf("%s does not follow the table of %s: %s", e.Peer, t.Service, t.Why))
	}
	return strings.Join(all, "; ")
}

// An Exchange is what a Loop needs to have one table of a service in force on all nodes.
type Exchange struct {
	Publisher Publisher
	// VIPs returns the addresses that VRRP moves between nodes, and whether this node
	// is Active for them. Call Dirty when that changes.
	VIPs   func() map[netip.Addr]bool
	Epochs *Epochs
}

// How long a change of tables waits for the other nodes to adopt it first: as planned,
// and where a backend has failed, whose connections are lost anyway.
const (
	publishWait  = 200 * time.Millisecond
	failureWait  = 50 * time.Millisecond
	publishGiven = 10 * time.Second // how long one call of Publish may take in all
	tryAgain     = 10 * time.Second // after another node has refused a table
)

// A Role is how this node stands with the table of a service.
type Role string

// The roles.
const (
	RoleOwn    Role = "own"    // VRRP moves none of its VIPs: each node has a table of its own
	RoleActive Role = "active" // this node is Active for its VIPs: others follow its table
	RoleBackup Role = "backup" // another node is: this one follows
	// Nodes are Active for one each of its VIPs: each has a table of its own.
	RoleSplit Role = "split"
)

// roleOf returns the role in which this node is for a service.
func roleOf(s lb.Service, vips map[netip.Addr]bool) Role {
	active, elected := 0, 0
	seen := map[netip.Addr]bool{}
	for _, f := range s.Addresses {
		on, ok := vips[f.VIP]
		if !ok || seen[f.VIP] {
			continue
		}
		seen[f.VIP] = true
		elected++
		if on {
			active++
		}
	}
	switch {
	case elected == 0:
		return RoleOwn
	case active == elected:
		return RoleActive
	case active == 0:
		return RoleBackup
	}
	return RoleSplit
}

// A sharing is the part of a Loop that has tables in common with other nodes. Its
// fields but follows and acks are Run's own, or guarded by mu for who else reads them.
type sharing struct {
	Exchange
	follows chan *following
	acks    chan ack
	sending sync.WaitGroup
	sent    int  // calls of Publish so far
	moved   bool // foreign backends have changed: their ways are to be followed
	adopted bool // the data plane is not as the last snapshot has it: there is another table

	again atomic.Bool // all tables are to be told of

	mu      sync.Mutex
	tables  map[string]*sharedTable   // by service
	strange map[string]strangeTable   // who has sent the table of a service that is not here
	unheld  map[unheldKey]unheldTable // what other nodes have in force and this one has not
	late    map[string]lateTable      // what has not been acknowledged in time, by service
	flights int                       // calls of Publish that have not ended
}

// A sharedTable is the table of a service, as far as other nodes are concerned.
type sharedTable struct {
	role    Role
	epoch   lb.Epoch         // of what is in force
	seen    uint64           // the highest term that any node has told of
	peer    string           // whose table is followed; "": this node's own is in force
	refused time.Time        // when another node has refused it last
	problem string           // why none is followed, or cannot be kept in mind
	foreign []netip.AddrPort // backends of a followed table that are not configured here
	serving []netip.AddrPort // those that its node reaches
}

// A strangeTable is one of a service that is not here.
type strangeTable struct {
	peer string
	at   time.Time // when it came last
}

// A lateTable is one that other nodes have not acknowledged in time.
type lateTable struct {
	epoch lb.Epoch
	why   string
}

// An ack is the end of a call of Publish.
type ack struct {
	number int
	tables map[string]lb.Epoch
	err    error
}

// Share has the tables of services in common with other nodes. Call it before Run.
func (l *Loop) Share(e Exchange) {
	l.sharing = &sharing{
		Exchange: e, follows: make(chan *following), acks: make(chan ack),
		tables: map[string]*sharedTable{}, strange: map[string]strangeTable{}, unheld: map[unheldKey]unheldTable{}, late: map[string]lateTable{},
	}
}

// channels are what Run hears of other nodes by, nil where there is nothing in common
// with them; end is for when it has ended.
func (l *Loop) channels() (follows <-chan *following, acks <-chan ack, end func()) {
	if l.sharing == nil {
		return nil, nil, func() {}
	}
	return l.sharing.follows, l.sharing.acks, l.sharing.sending.Wait
}

// TellTables has the other nodes told of all tables that they are to follow, since one of
// them is connected as of now. It does not wait.
func (l *Loop) TellTables() {
	if l.sharing != nil {
		l.sharing.again.Store(true)
		l.Dirty()
	}
}

// elect finds out the roles of this node, and returns the services whose tables the
// other nodes are to be told of: those for which it answers as of now, whose term is one
// that no node has told of, and after TellTables all.
func (l *Loop) elect() (risen []string) {
	x := l.sharing
	if x == nil {
		return nil
	}
	vips, again := x.VIPs(), x.again.Swap(false)
	defer l.saveEpochs()
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.tables
	x.tables = map[string]*sharedTable{}
	for _, s := range l.services {
		t := before[s.Name]
		known := t != nil
		if !known {
			h := x.Epochs.of(s.Name)
			t = &sharedTable{role: RoleBackup, epoch: h.Epoch, peer: h.Peer, seen: max(h.Seen, h.Term)}
		}
		x.tables[s.Name] = t
		role := roleOf(s, vips)
		if known && role != t.role {
			l.log.Info("this node has another role for the table of a service", "service", s.Name, "role", role, "before", t.role)
			t.problem = ""
		}
		if role == RoleSplit && t.peer != "" {
			x.unheld[unheldKey{s.Name, t.peer}] = unheldTable{epoch: t.epoch, serving: t.serving}
		}
		if role != RoleBackup {
			t.peer = ""
		}
		if role == RoleSplit {
			t.problem = "another node is active for one of its VIPs: each node has a table of its own, and a failover may move connections; put its VIPs into one instance, or into one group"
		}
		switch {
		case role == RoleActive && t.role != RoleActive:
			t.rise()
			risen = append(risen, s.Name)
		case role == RoleActive && again:
			risen = append(risen, s.Name)
		}
		t.role = role
		l.keep(s.Name, t)
		delete(x.strange, s.Name)
	}
	maps.DeleteFunc(x.unheld, func(key unheldKey, u unheldTable) bool {
		t := x.tables[key.service]
		return t == nil || u.at.IsZero() && t.role != RoleSplit
	})
	maps.DeleteFunc(x.late, func(name string, _ lateTable) bool { return x.tables[name] == nil || x.tables[name].role != RoleActive })
	return risen
}

// rise begins a term that no node has told of.
func (t *sharedTable) rise() {
	t.seen = max(t.seen, t.epoch.Term) + 1
	t.epoch = lb.Epoch{Term: t.seen}
}

// keep notes what a restart must know of, and saveEpochs writes it down.
func (l *Loop) keep(service string, t *sharedTable) {
	l.sharing.Epochs.set(service, heldEpoch{Epoch: t.epoch, Peer: t.peer, Seen: t.seen})
}

func (l *Loop) saveEpochs() {
	if err := l.sharing.Epochs.save(); err != nil {
		l.log.Error("a restart of this daemon may not know which tables are newer", "error", err)
	}
}

// mark tells a snapshot, which nobody else has yet, which services follow another node's
// table.
func (l *Loop) mark(s lb.Snapshot) {
	x := l.sharing
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range s.Services {
		t := x.tables[s.Services[i].Name]
		if t == nil {
			continue
		}
		s.Services[i].Followed = t.role == RoleBackup && t.peer != ""
		s.Services[i].Leaving = nil
		for _, a := range t.foreign {
			b := lb.Backend{Address: a}
			b.NextHop, _ = l.hops.Lookup(a.Addr()) // as of one that is configured: it comes later
			b.NextHop.Routed = false
			s.Services[i].Leaving = append(s.Services[i].Leaving, b)
		}
	}
}

// settle tells whether the data plane has another table than the last snapshot had in
// mind, since one was adopted; that is over with what is written next.
func (l *Loop) settle() (adopted bool) {
	if l.sharing != nil {
		adopted, l.sharing.adopted = l.sharing.adopted, false
	}
	return adopted
}

// lead has the ways followed to servers, and to backends that only another node's
// table has.
func (l *Loop) lead() {
	all := slices.Clone(l.addresses)
	if x := l.sharing; x != nil {
		x.mu.Lock()
		x.moved = false
		for _, t := range x.tables {
			for _, a := range t.foreign {
				all = append(all, a.Addr())
			}
		}
		x.mu.Unlock()
	}
	slices.SortFunc(all, netip.Addr.Compare)
	l.hops.Set(slices.Compact(all))
}
