// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Deps are what a Router works with. Network, Addresses and Log are required.
type Deps struct {
	Network   Network
	Addresses AddressStore
	Log       *slog.Logger
	// Fence keeps the kernel from answering for the VIPs when this process does not.
	// Nil: nothing does.
	Fence Fence
	// OnChange is told of every change of state, in order, from a goroutine of
	// its own: however long it takes, the protocol goes on. If it falls more
	// than 128 changes behind, the oldest are left out. Run waits for it.
	OnChange func(Change)
	// Heartbeats is needed where Config.Heartbeat is set.
	Heartbeats Heartbeats
	// Pacer, if it is set, sends the advertisements that are due; else the Router
	// does.
	Pacer Pacer
	// Routes is needed where Config.Extra is not empty.
	Routes RouteStore
	// MACs is needed where Config.VirtualMAC is set, and Fence with it.
	MACs MACStore
	// Group is what the Router moves together with; nil: it is alone.
	Group *Group
}

// A Change is a change of state.
type Change struct {
	Instance string
	From, To State
	Reason   string
	At       time.Time
}

// Timing of a Router's own.
const (
	recheckEvery = 10 * time.Second // looks at links and addresses even if nothing was signalled
	retryAfter   = time.Second      // after a socket could not be opened or failed
	retryAdd     = 10 * time.Second // after a VIP could not be added
	// A Backup whose timer comes by at least late listens a while longer: leastGrace,
	// or where an Active node that lives is heard within mostGrace, so long.
	late       = 2 * time.Millisecond
	leastGrace = 5 * time.Millisecond
	mostGrace  = 20 * time.Millisecond
	// While something that has arrived is not read yet, it looks again after
	// lookAgain, for at most unreadTime: on a machine that is busy beyond reason a
	// reader may be late by a second.
	lookAgain  = time.Millisecond / 2
	unreadTime = 3 * time.Second
)

// ErrNotRunning is returned by Release and HandOver where Run has not begun or has
// ended, and by a Run that Release came before.
var ErrNotRunning = errors.New("virtual router is not running")

// A Router runs one virtual router instance. Its methods are safe for
// concurrent use, and none but Run, Release and HandOver waits for anything.
type Router struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	// wake says that wanted has changed.
	wake chan struct{}

	mu     sync.Mutex
	wanted wanted
	status Status
	drops  [numReasons]uint64

	started  bool
	ended    chan struct{} // closed when Run has returned
	released chan struct{} // closed when a release is over
	handover Handover      // valid once released is closed

	beats mailbox // heartbeats that the loop has not seen

	loop
}

// wanted is what callers asked for. The loop reads it when woken, so that no
// caller waits for the loop.
type wanted struct {
	priority uint8
	fault    string
	release  bool
	hold     bool
	synced   bool
	unyield  bool             // taken by the loop
	handover *handoverRequest // taken by the loop
	group    wish             // taken by the loop
	groupBy  string           // the member that the group follows
}

// New returns a Router for a valid configuration. It opens nothing; Run does.
func New(cfg Config, deps Deps) (*Router, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if (cfg.Heartbeat > 0) != (deps.Heartbeats != nil) {
		return nil, fmt.Errorf("virtual router %q: a heartbeat interval and what carries heartbeats go together", cfg.Name)
	}
	if cfg.VirtualMAC && (deps.Fence == nil || deps.MACs == nil) {
		return nil, fmt.Errorf("virtual router %q: a virtual mac address takes a data plane that answers for it", cfg.Name)
	}
	if cfg.AnnounceRefresh == 0 {
		cfg.AnnounceRefresh = defaultAnnounceRefresh
	}
	if deps.Fence == nil {
		deps.Fence = noFence{}
	}
	r := &Router{
		cfg:      cfg,
		deps:     deps,
		log:      deps.Log.With("instance", cfg.Name),
		wake:     make(chan struct{}, 1),
		beats:    mailbox{wake: make(chan struct{}, 1)},
		wanted:   wanted{priority: cfg.Priority},
		ended:    make(chan struct{}),
		released: make(chan struct{}),
		status: Status{
			Name: cfg.Name, Interface: cfg.Interface, VRID: cfg.VRID, Version: cfg.Version,
			Priority: cfg.Priority, Since: time.Now(), Reason: "not started", VirtualMAC: cfg.virtualMAC(),
		},
	}
	r.prepare(&cfg, deps.Heartbeats)
	deps.Group.join(r)
	return r, nil
}

// SetPriority changes the priority while running, as tracking asks for. It is
// refused for the owner of the addresses, whose priority the protocol fixes.
func (r *Router) SetPriority(p uint8) error {
	switch {
	case r.cfg.owner():
		return fmt.Errorf("set priority of %s: the owner of the addresses always has %d", r.cfg.Name, PriorityOwner)
	case p == PriorityRelease || p == PriorityOwner:
		return fmt.Errorf("set priority of %s to %d: want 1 to 254", r.cfg.Name, p)
	}
	r.ask(func(w *wanted) { w.priority = p })
	return nil
}

// Fault makes the instance leave the election, with a reason that status shows,
// until ClearFault. An Active one tells its peers and removes the VIPs.
func (r *Router) Fault(reason string) {
	if reason == "" {
		reason = "faulted"
	}
	r.ask(func(w *wanted) { w.fault = reason })
}

// ClearFault takes back Fault. Faults that the Router found itself stay.
func (r *Router) ClearFault() { r.ask(func(w *wanted) { w.fault = "" }) }

// SetSynced tells whether this node can go on with the Active one's connections: it holds
// what that one knows of them, and reaches the servers that it reaches.
// Until it does, a Router with Config.SyncWait leaves the VIPs to an Active node of
// lower priority that is heard, for no longer than that.
func (r *Router) SetSynced(on bool) { r.ask(func(w *wanted) { w.synced = on }) }

func (r *Router) ask(change func(*wanted)) {
	r.mu.Lock()
	change(&r.wanted)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // the loop has yet to look
	}
}

// A Status is a snapshot of an instance.
type Status struct {
	Name      string
	Interface string
	VRID      uint8
	Version   Version
	State     State
	Since     time.Time // of State
	Reason    string    // why it is in State
	// Releasing: priority 0 was sent, and the VIPs are kept until a peer is
	// Active.
	Releasing bool
	// Yielded: a Backup that leaves the VIPs to the peer that it has handed them
	// to. Held: an operator keeps it from becoming Active. Silent: it is, and
	// no Active node is heard.
	Yielded, Held, Silent bool
	// Waits names the instance of the group that hears an Active node, where this
	// one does not become Active for that.
	Waits string
	// AwaitsState is until when, at the longest, it does not take over from a node of
	// lower priority, since it does not hold its state yet. Zero: it does not wait.
	AwaitsState time.Time
	// LastResort: it is Active though Router.Fault says that it should not be, since
	// no other node is.
	LastResort bool
	// RouteProblem says which routes or rules are not as they should be; "": none.
	RouteProblem string
	Priority     uint8
	VirtualMAC   MAC // that the VIPs are at; zero: the interface's own
	// Source is the address that this node sends from; invalid while its
	// interface cannot be used.
	Source netip.Addr
	// Addresses are the VIPs that are on the interface by this program's doing.
	Addresses []netip.Prefix
	Peer      Peer
	// Alarms are the mistakes of configuration that show in what others send.
	Alarms   []Alarm
	Unfenced string // why the kernel would go on answering for the VIPs beside another node; "": it would not
	Sent     uint64 // advertisements
	Received uint64 // advertisements of this instance that were accepted
	Failed   uint64 // advertisements that could not be sent, to one of the peers at least
	// Dropped counts received packets by why they were dropped. ReasonVRID is
	// usual where several virtual routers share a segment.
	Dropped map[Reason]uint64
}

// A Peer is the node whose advertisement was accepted last.
type Peer struct {
	Address  netip.Addr // invalid: none so far
	Priority uint8
	Interval time.Duration
	Heard    time.Time
}

// Status returns a snapshot.
func (r *Router) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Held = r.wanted.hold // also before Run
	s.Addresses = append([]netip.Prefix(nil), r.status.Addresses...)
	s.Dropped = make(map[Reason]uint64)
	for reason, n := range r.drops {
		if n > 0 {
			s.Dropped[Reason(reason)] = n
		}
	}
	return s
}
