// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Status is how the nodes of a cluster stand with each other, as this one sees it.
type Status struct {
	// Problems say what is wrong and what to do; none: a failover loses no more than
	// what is not acknowledged.
	Problems []string
	Peers    []PeerStatus
	// Strangers are the latest 16 addresses of connections that were refused.
	Strangers []Stranger
	Refused   map[Reason]uint64 // connections, since the start
	// Lost is how often this node's Source has lost track of what changes, so that
	// all peers got everything again; Unsaid how many states it had that no message
	// can hold.
	Lost, Unsaid uint64
	// Unread is about how many changes no peer has been told of, since there was no time
	// yet, or since peers do not keep up.
	Unread int
}

// A PeerStatus is how it stands with one peer.
type PeerStatus struct {
	Name    string
	Address netip.AddrPort
	// Differs names the services that the peer has not, or has otherwise. Their tables
	// are not synced, their flows are.
	Differs []string
	Out     OutStatus // this node's state on its way to the peer
	In      InStatus  // the peer's on its way here
	Problem string    // "": none
}

// A LinkStatus is how the connections of one direction are.
type LinkStatus struct {
	Connected  bool
	Since      time.Time     // when that became so; zero: it never was otherwise
	Version    uint8         // of the protocol
	LastError  string        // why the last connection ended, or was not made
	LastReason Reason        // the same in a word
	ErrorAgo   time.Duration // how long ago that was
	Ended      uint64        // connections

	// Over all connections.
	Messages uint64
	Records  uint64 // states of flows
	Refused  uint64 // flows that the receiver has no use for
	Sent     uint64 // bytes by this node
	Received uint64
	Unknown  uint64 // messages of a later version, which were skipped
}

// An OutStatus is how this node's state gets to a peer.
type OutStatus struct {
	LinkStatus
	Retries uint64 // attempts to connect that came to nothing
	// InSync says that the peer has acknowledged everything that this node had when
	// the connection began, so that only what follows may be missing.
	InSync bool
	// Waiting and InFlight are flows whose change has not been sent, and states that
	// have not been acknowledged; Age is that of the oldest of both.
	Waiting, InFlight int
	Age               time.Duration
	Stalls            uint64 // times that the peer did not keep up, of this connection
	Coalesced         uint64 // changes that a later one of the same flow has replaced
	// Refusing are flows that the peer has no use for, and that are not over.
	Refusing  int
	Snapshots uint64
	Mends     uint64
}

// An InStatus is how a peer's state gets here.
type InStatus struct {
	LinkStatus
	From      netip.Addr // of the last connection
	Synced    bool       // this node has all that the peer had, and what followed
	Snapshots uint64     // of this connection
	Mends     uint64     // that this node has asked for
	Differ    int        // buckets that differed at the last comparison, though nothing was on its way
}

// Synced reports whether this node has all of a peer's state, by a connection that
// lasts.
func (n *Node) Synced(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peer(name)
	if p == nil || p.receiving == nil {
		return false
	}
	c := p.receiving
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// Status returns how everything stands.
func (n *Node) Status() Status {
	unread := n.source.Unread()
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	s := Status{
		Strangers: slices.Clone(n.strangers.all), Refused: maps.Clone(n.strangers.counts),
		Lost: n.lost, Unsaid: n.unsaid, Unread: unread,
	}
	if n.listening != nil {
		s.Problems = append(s.Problems, fmt.Sprintf("no peer can connect to this node: %v: free the port, or set another sync port on all nodes", n.listening))
	}
	if n.reading != nil {
		s.Problems = append(s.Problems, fmt.Sprintf("peers are not told what changes: %v", n.reading))
	}
	for _, p := range n.peers {
		k := p.status(now)
		if k.Problem != "" {
			s.Problems = append(s.Problems, k.Problem)
		}
		s.Peers = append(s.Peers, k)
	}
	slices.SortFunc(s.Strangers, func(a, b Stranger) int { return b.Last.Compare(a.Last) })
	return s
}

// status is p's. Node.mu is held.
func (p *peer) status(now time.Time) PeerStatus {
	s := PeerStatus{Name: p.Name, Address: p.Address}
	s.Out = OutStatus{LinkStatus: p.out.status(now), Retries: p.out.retries}
	s.In = InStatus{LinkStatus: p.in.status(now), From: p.in.from}
	if c := p.receiving; c != nil {
		c.mu.Lock()
		s.In.Synced, s.In.Snapshots, s.In.Mends, s.In.Differ = c.synced, c.snapshots, c.mends, c.suspects.differ
		s.Differs = c.services.differ()
		c.mu.Unlock()
	}
	if o := p.sending; o != nil {
		o.mu.Lock()
		o.describe(&s.Out, now)
		if s.Differs == nil {
			s.Differs = o.services.differ()
		}
		o.mu.Unlock()
	}
	s.Problem = problem(&s, now)
	return s
}

func (d *direction) status(now time.Time) LinkStatus {
	s := LinkStatus{
		Connected: d.connected, Since: d.since, Version: d.version, Ended: d.ended.Load(),
		Messages: d.messages.Load(), Records: d.records.Load(), Refused: d.refused.Load(),
		Sent: d.bytesOut.Load(), Received: d.bytesIn.Load(), Unknown: d.unknown.Load(),
	}
	if d.err != nil {
		s.LastError, s.LastReason, s.ErrorAgo = d.err.Error(), d.why, now.Sub(d.failed)
	}
	return s
}

// describe fills in what only the connection knows. Its lock is held.
func (o *outgoing) describe(s *OutStatus, now time.Time) {
	s.InSync, s.Waiting, s.InFlight = o.synced, o.queue.len(), o.flight.records
	s.Refusing = int(o.refusing)
	s.Stalls, s.Coalesced, s.Snapshots, s.Mends = o.stalls, o.queue.coalesced, o.snapshots, o.mends
	oldest := o.queue.oldest()
	for _, f := range o.flight.all {
		if !f.since.IsZero() {
			if oldest.IsZero() || f.since.Before(oldest) {
				oldest = f.since
			}
			break
		}
	}
	if !oldest.IsZero() {
		s.Age = now.Sub(oldest)
	}
}

// lateAfter is how old what is not acknowledged may become before it is a problem.
const lateAfter = 5 * time.Second

// lacks says why a peer has not all of this node's state; "": it has, but for what waits.
func lacks(s *PeerStatus, now time.Time) string {
	at := fmt.Sprintf("%s (%v)", s.Name, s.Address)
	switch {
	case !s.Out.Connected:
		return fmt.Sprintf("%s has not this node's state: %s%s", at, s.Out.LastError, advice(&s.Out.LinkStatus, s.Address))
	case !s.Out.InSync:
		return fmt.Sprintf("%s has not all of this node's state yet: %d states told since the start, for %v", at, s.Out.Records, now.Sub(s.Out.Since).Round(time.Second))
	}
	return ""
}

// problem says what is wrong with a peer, the worst first, and what to do.
func problem(s *PeerStatus, now time.Time) string {
	at := fmt.Sprintf("%s (%v)", s.Name, s.Address)
	if text := lacks(s, now); text != "" {
		return text
	}
	switch {
	case !s.In.Connected:
		return fmt.Sprintf("%s does not send its state: %s%s", at, s.In.LastError, advice(&s.In.LinkStatus, s.Address))
	case !s.In.Synced:
		return fmt.Sprintf("this node has not all of the state of %s yet: wait", at)
	case s.Out.Age > lateAfter:
		return fmt.Sprintf("%s has acknowledged nothing for %v, %d flows wait: see whether it is overloaded", at, s.Out.Age.Round(time.Second), s.Out.Waiting+s.Out.InFlight)
	case len(s.Differs) > 0:
		return fmt.Sprintf("services that differ on %s: %s: give both nodes the same configuration; the tables of these are not synced", at, strings.Join(s.Differs, ", "))
	}
	return ""
}

// advice is what to do about a direction that has no connection.
func advice(l *LinkStatus, at netip.AddrPort) string {
	switch l.LastReason {
	case ReasonWrongKey:
		return ": give all nodes the same sync key_file"
	case ReasonVersions:
		return ": upgrade the older node"
	case ReasonItself, ReasonUnknown:
		return ": compare the nodes' names and addresses in the configurations"
	case ReasonMalformed, ReasonOversized:
		return ": report it"
	case ReasonSink:
		return ": see its log and its status"
	}
	text := fmt.Sprintf("see whether sluice runs there, and let TCP port %d pass", at.Port())
	if l.LastError == "" {
		return text
	}
	return ": " + text
}
