package l7

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A daemon that has no file left to open can neither probe nor talk to its peers. So of
// the files that it may have open some are for all else, and connections of clients and
// connections to servers have one half of the others each.
const (
	filesForOthers     = 256  // at least
	mostFilesForOthers = 4096 // an eighth of all, but no more than that
	leastConnections   = 16
)

// openFiles is how many files the process may have open.
func openFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, math.MaxInt32))
}

// divide tells how many connections clients and servers may have; wanted is what clients
// are to have, 0: as many as possible.
func divide(files, wanted int) (clients, servers int) {
	room := files - min(max(files/8, filesForOthers), mostFilesForOthers)
	clients = max(room/2, leastConnections)
	if wanted > 0 {
		clients = min(clients, wanted)
	}
	return clients, max(room-clients, leastConnections)
}

const (
	// quietAtFirst is how long a connection that is new may say nothing before it counts
	// as idle.
	quietAtFirst = time.Second
	// lookForIdle is how often somebody who waits looks for connections that are idle.
	lookForIdle = 100 * time.Millisecond
)

// A room bounds the connections of clients. Where it is full, those that have been idle
// for longest make room for new ones; where none is idle new ones wait, in the kernel
// but for one of each listener.
type room struct {
	waiting atomic.Int32 // listeners that wait

	mu             sync.Mutex
	freed          sync.Cond
	most           int
	open           map[*socket]bool
	waited, closed uint64 // connections that had to wait, and that were idle and have made room
}

func newRoom() *room {
	r := &room{open: map[*socket]bool{}}
	r.freed.L = &r.mu
	return r
}

// resize makes most the number of connections that there may be. It closes none.
func (r *room) resize(most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.most = most
	r.freed.Broadcast()
}

// wake has everybody who waits look whether that makes sense still.
func (r *room) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.freed.Broadcast()
}

// enter waits for room for a connection. False: giveUp says so, and there is none.
func (r *room) enter(s *socket, giveUp func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) >= r.most {
		r.waited++
		r.waiting.Add(1)
		defer r.waiting.Add(-1)
	}
	for len(r.open) >= r.most {
		if giveUp() {
			return false
		}
		if idle := r.idle(time.Now()); len(idle) > 0 {
			r.closed += uint64(len(idle))
			r.mu.Unlock()
			for _, s := range idle {
				s.Close()
			}
			r.mu.Lock()
			continue
		}
		again := time.AfterFunc(lookForIdle, r.wake)
		r.freed.Wait()
		again.Stop()
	}
	r.open[s] = true
	return true
}

// idle returns the connections that have been idle for longest: of many a few at a time,
// since looking for them takes its time.
func (r *room) idle(now time.Time) []*socket {
	type quiet struct {
		s     *socket
		since int64
	}
	var all []quiet
	for s := range r.open {
		if since := s.quietSince.Load(); since != 0 && since <= now.UnixNano() {
			all = append(all, quiet{s, since})
		}
	}
	slices.SortFunc(all, func(a, b quiet) int { return int(a.since - b.since) })
	var sockets []*socket
	for _, q := range all[:min(len(all), max(1, r.most/32))] {
		delete(r.open, q.s) // nobody else is to find it
		sockets = append(sockets, q.s)
	}
	return sockets
}

// leave tells that a connection is closed.
func (r *room) leave(s *socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, s)
	r.freed.Signal()
}

// closeAll closes all connections.
func (r *room) closeAll() {
	r.mu.Lock()
	all := slices.Collect(maps.Keys(r.open))
	r.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
}

// full tells whether somebody waits: answers say then that they are the last ones of
// their connections.
func (r *room) full() bool { return r.waiting.Load() > 0 }

// A budget bounds the connections to servers. A nil budget bounds nothing.
type budget struct {
	makeRoom func() // closes the connections that nothing uses

	mu      sync.Mutex
	most    int
	used    int
	waiting int
	freed   chan struct{} // closed when there is room
}

// errTooMany is why a server is not asked: it is not the server's doing.
var errTooMany = errors.New("there are too many connections to servers")

func newBudget(makeRoom func()) *budget {
	return &budget{makeRoom: makeRoom, freed: make(chan struct{})}
}

func (b *budget) resize(most int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most = most
	b.tell()
}

// tell wakes who waits. b.mu is held.
func (b *budget) tell() {
	if b.waiting > 0 {
		close(b.freed)
		b.freed, b.waiting = make(chan struct{}), 0
	}
}

// take waits for a connection to be possible, as long as ctx lasts. Who has got nil
// gives it back.
func (b *budget) take(ctx context.Context) error {
	if b == nil {
		return nil
	}
	for {
		b.mu.Lock()
		if b.used < b.most {
			b.used++
			b.mu.Unlock()
			return nil
		}
		freed := b.freed
		b.waiting++
		b.mu.Unlock()
		b.makeRoom()
		select {
		case <-freed:
		case <-time.After(lookForIdle):
		case <-ctx.Done():
			return errTooMany
		}
	}
}

func (b *budget) giveBack() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used--
	b.tell()
}

// A ConnectionsStatus is how many connections there are.
type ConnectionsStatus struct {
	Open    int    `json:"open"` // of clients
	Max     int    `json:"max"`
	Waiting int    `json:"waiting"` // listeners that accept none, since there are as many as there may be
	Waited  uint64 `json:"waited"`  // connections that had to wait before they were served
	Closed  uint64 `json:"closed"`  // that were idle and have made room

	Servers    int `json:"servers"` // to servers
	MaxServers int `json:"max_servers"`
}

func (p *Proxy) connections() ConnectionsStatus {
	s := ConnectionsStatus{Waiting: int(p.room.waiting.Load())}
	p.room.mu.Lock()
	s.Open, s.Max, s.Waited, s.Closed = len(p.room.open), p.room.most, p.room.waited, p.room.closed
	p.room.mu.Unlock()
	p.budget.mu.Lock()
	s.Servers, s.MaxServers = p.budget.used, p.budget.most
	p.budget.mu.Unlock()
	return s
}
