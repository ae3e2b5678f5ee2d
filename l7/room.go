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
// the files that it may have open some are for all else. Of the others connections of
// clients may be three quarters, and connections to servers what these leave: one quarter
// is never theirs.
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

// A division of the files that a process may have open.
type division struct {
	all     int // connections
	clients int // of them, at most
	servers int // of them, always to be had
}

// divide divides files; wanted is how many connections clients are to have, 0: as many as
// possible.
func divide(files, wanted int) division {
	all := max(files-min(max(files/8, filesForOthers), mostFilesForOthers), 4*leastConnections)
	d := division{all: all, clients: all * 3 / 4, servers: all / 4}
	if wanted > 0 {
		d.clients = min(d.clients, wanted)
	}
	return d
}

const (
	// quietAtFirst is how long a connection that is new may say nothing before it counts
	// as idle.
	quietAtFirst = time.Second
	// shortWait is no problem: what was idle is being closed.
	shortWait = time.Second
	// lookForIdle is how often somebody who waits looks for connections that are idle.
	lookForIdle = 100 * time.Millisecond
)

// A room bounds the connections of clients. Where it is full, those that have been idle
// for longest make room for new ones; where none is idle new ones wait, in the kernel
// but for one of each listener.
type room struct {
	waiting      atomic.Int32 // listeners that wait
	servers      *budget
	closeServers func() // closes the connections to servers that nothing uses

	mu             sync.Mutex
	freed          sync.Cond
	division       division
	open           map[*socket]bool
	since          time.Time // when the first one of who waits began
	waited, closed uint64    // connections that had to wait, and that were idle and have made room
}

// newRoom returns the room of clients, and what servers have beside it. CloseIdle closes
// the connections to servers that nothing uses.
func newRoom(closeIdle func()) *room {
	r := &room{open: map[*socket]bool{}, servers: &budget{}, closeServers: closeIdle}
	r.freed.L = &r.mu
	r.servers.makeRoom = func() {
		closeIdle()
		if r.servers.waits() {
			r.closeIdle()
		}
	}
	return r
}

// resize has room divided in another way. It closes nothing.
func (r *room) resize(d division) {
	r.mu.Lock()
	r.division = d
	r.freed.Broadcast()
	r.mu.Unlock()
	r.servers.resize(d)
}

// fits tells whether there may be one connection more. r.mu is held.
func (r *room) fits() bool {
	return len(r.open) < r.division.clients && len(r.open)+int(r.servers.used.Load()) < r.division.all
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
	if !r.fits() {
		r.waited++
		if r.waiting.Add(1) == 1 {
			r.since = time.Now()
		}
		defer r.waiting.Add(-1)
	}
	for !r.fits() {
		if giveUp() {
			return false
		}
		if r.makeRoom() {
			continue
		}
		again := time.AfterFunc(lookForIdle, r.wake)
		r.freed.Wait()
		again.Stop()
	}
	r.open[s] = true
	r.servers.clients.Store(int64(len(r.open)))
	return true
}

// makeRoom makes room for a client's connection, if something is idle; where servers have
// the room, what they do not use goes first. r.mu is held, but not all of the time.
func (r *room) makeRoom() bool {
	servers := len(r.open) < r.division.clients
	r.mu.Unlock()
	defer r.mu.Lock()
	if servers {
		r.closeServers()
		if r.hasRoom() {
			return true
		}
	}
	return r.closeIdle() || r.hasRoom()
}

func (r *room) hasRoom() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fits()
}

// closeIdle closes the connections that have been idle for longest. False: none is.
func (r *room) closeIdle() bool {
	r.mu.Lock()
	idle := r.idle(time.Now())
	r.closed += uint64(len(idle))
	r.mu.Unlock()
	for _, s := range idle {
		s.Close()
	}
	return len(idle) > 0
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
	for _, q := range all[:min(len(all), max(1, r.division.clients/32))] {
		delete(r.open, q.s) // nobody else is to find it
		sockets = append(sockets, q.s)
	}
	r.servers.clients.Store(int64(len(r.open)))
	return sockets
}

// leave tells that a connection is closed.
func (r *room) leave(s *socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, s)
	r.servers.clients.Store(int64(len(r.open)))
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

// crowded tells whether somebody has been waiting for more than a moment.
func (r *room) crowded(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting.Load() > 0 && now.Sub(r.since) > shortWait
}

// full tells whether somebody waits: answers say then that they are the last ones of
// their connections.
func (r *room) full() bool { return r.waiting.Load() > 0 }

// A budget bounds the connections to servers. Who waits for one gets it in turn. A nil
// budget bounds nothing.
type budget struct {
	makeRoom      func()       // closes connections that are idle
	used, clients atomic.Int64 // connections to servers, and those of clients

	mu       sync.Mutex
	division division
	waiting  []chan struct{} // closed when it is theirs: it is counted in used then
	looking  bool            // makeRoom runs
	looked   time.Time       // when it last has
}

// errTooMany is why a server is not asked: it is not the server's doing.
var errTooMany = errors.New("there are too many connections to servers")

func (b *budget) resize(d division) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.division = d
	b.grant()
}

// most is how many connections to servers there may be now. b.mu is held.
func (b *budget) most() int {
	return max(b.division.servers, b.division.all-int(b.clients.Load()))
}

// fits tells whether there may be one more. b.mu is held.
func (b *budget) fits() bool { return int(b.used.Load()) < b.most() }

// waits tells whether somebody waits.
func (b *budget) waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) > 0
}

// grant gives connections to those who wait, as far as there may be more. b.mu is held.
func (b *budget) grant() {
	for len(b.waiting) > 0 && b.fits() {
		b.used.Add(1)
		close(b.waiting[0])
		b.waiting = b.waiting[1:]
	}
}

// take waits for a connection to be possible, as long as ctx lasts. Who has got nil
// gives it back.
func (b *budget) take(ctx context.Context) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	if len(b.waiting) == 0 && b.fits() {
		b.used.Add(1)
		b.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	b.waiting = append(b.waiting, turn)
	b.mu.Unlock()
	for {
		b.look()
		select {
		case <-turn:
			return nil
		case <-time.After(lookForIdle):
		case <-ctx.Done():
			return b.withdraw(turn)
		}
	}
}

// look has room be made for who waits: by one of them, and not all of the time, since to
// look for what is idle takes its time.
func (b *budget) look() {
	b.mu.Lock()
	b.grant() // clients may have left
	if len(b.waiting) == 0 || b.looking || time.Since(b.looked) < lookForIdle {
		b.mu.Unlock()
		return
	}
	b.looking = true
	b.mu.Unlock()
	b.makeRoom()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looking, b.looked = false, time.Now()
	b.grant()
}

// withdraw has somebody wait no more; nil: it has got its connection meanwhile.
func (b *budget) withdraw(turn chan struct{}) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, turn)
	if i < 0 {
		return nil
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	return errTooMany
}

func (b *budget) giveBack() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used.Add(-1)
	b.grant()
}

// A ConnectionsStatus is how many connections there are.
type ConnectionsStatus struct {
	Open    int    `json:"open"` // of clients
	Max     int    `json:"max"`
	Waiting int    `json:"waiting"` // listeners that accept none, since there are as many as there may be
	Waited  uint64 `json:"waited"`  // connections that had to wait before they were served
	Closed  uint64 `json:"closed"`  // that were idle and have made room

	Servers    int `json:"servers"`     // to servers
	MaxServers int `json:"max_servers"` // beside the clients' as they are now
}

func (p *Proxy) connections() ConnectionsStatus {
	s := ConnectionsStatus{Waiting: int(p.room.waiting.Load())}
	p.room.mu.Lock()
	s.Open, s.Max, s.Waited, s.Closed = len(p.room.open), p.room.division.clients, p.room.waited, p.room.closed
	p.room.mu.Unlock()
	b := p.room.servers
	b.mu.Lock()
	s.Servers, s.MaxServers = int(b.used.Load()), b.most()
	b.mu.Unlock()
	return s
}
