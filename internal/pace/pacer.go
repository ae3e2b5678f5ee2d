// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Start starts an engine that takes requests from a socket, which it closes. It
// returns once the engine has begun. Wait, called when the other end is closed,
// returns when the engine has ended.
type Start func(control int) (wait func() error, err error)

// Thread is a Start that runs the engine on threads of this process.
func Thread(control int) (func() error, error) {
	ended := make(chan error, 1)
	go func() {
		ended <- errors.Join(Run(control), unix.Close(control))
	}()
	return func() error { return <-ended }, nil
}

// hangsAfter is how long an engine may leave the Pacer's word unanswered. An engine
// hangs that does so twice: a pause of the whole machine looks as if it did once.
const hangsAfter = time.Second

// closeTime is how long Close waits for the engine to end of its own accord.
const closeTime = time.Second

// restartAfter is the least time from one start of an engine to the next.
const restartAfter = time.Second

// A Pacer has an engine and keeps it running. Its methods, and those of its Slots,
// are safe for concurrent use; none waits for the engine.
type Pacer struct {
	start Start
	log   *slog.Logger
	quit  chan struct{}
	done  chan struct{}

	mu     sync.Mutex
	socket int // to the engine; -1: there is none
	number uint64
	slots  []*Slot  // by index; nil: the place is free
	free   []uint16 // the places that are
	buf    []byte
	closed bool
	asked  time.Time // since when renewals are unanswered; zero: none is
	doubts int       // how often that has lasted for hangsAfter
}

// New makes a Pacer and starts its engine. If that fails, it says so in the log
// and goes on trying; meanwhile all Slots refuse their jobs.
func New(start Start, log *slog.Logger) *Pacer {
	p := &Pacer{start: start, log: log, quit: make(chan struct{}), done: make(chan struct{}), socket: -1}
	engine, err := p.launch()
	go p.keep(engine, err)
	return p
}

// keep runs engines, one after the other.
func (p *Pacer) keep(e *running, err error) {
	defer close(p.done)
	for {
		began := time.Now()
		if err == nil {
			err = p.follow(e)
			if err != nil {
				p.log.Error("the process that sends packets on time has ended; starting another", "error", err)
			}
		} else if !p.isClosed() {
			p.log.Error("packets that must be on time are sent by the daemon itself, and may be late", "error", err)
		}
		select {
		case <-p.quit:
			return
		case <-time.After(restartAfter - time.Since(began)):
		}
		e, err = p.launch()
	}
}

func (p *Pacer) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// A running is an engine.
type running struct {
	socket int
	wait   func() error
}

// launch starts an engine and gives it all jobs that there are.
func (p *Pacer) launch() (*running, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	wait, err := p.start(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start the sender: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		unix.Close(pair[0])
		return nil, errors.Join(errors.New("closed meanwhile"), wait())
	}
	p.socket, p.asked, p.doubts = pair[0], time.Time{}, 0
	for _, s := range p.slots {
		switch {
		case s == nil:
		case s.closed: // the engine that had it is gone
			p.release(s)
		case s.conn != nil:
			p.set(s)
		}
	}
	return &running{pair[0], wait}, nil
}

// follow reads what an engine reports, until it has ended.
func (p *Pacer) follow(e *running) error {
	var buf [reportLen + 1]byte
	for {
		n, err := unix.Read(e.socket, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		p.answered()
		if r, ok := readReport(buf[:n]); ok {
			p.report(r)
		} else if n == clearedLen {
			p.cleared(binary.BigEndian.Uint16(buf[:]))
		}
	}
	p.mu.Lock()
	closed := p.closed
	p.socket = -1
	unix.Close(e.socket)
	p.mu.Unlock()
	err := e.wait()
	if err == nil && !closed {
		err = io.ErrUnexpectedEOF
	}
	if closed {
		return nil
	}
	return err
}

// answered notes that the engine is at work.
func (p *Pacer) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked, p.doubts = time.Time{}, 0
}

// ask notes that the engine owes an answer, and ends one that hangs, as a stopped
// process does: follow starts another.
func (p *Pacer) ask(now time.Time) {
	if p.asked.IsZero() {
		p.asked = now
	}
	if now.Sub(p.asked) < hangsAfter || p.unread() {
		return
	}
	p.asked = now
	if p.doubts++; p.doubts < 2 {
		return
	}
	p.log.Error("the process that sends packets on time stands still: it is ended")
	p.abandon()
}

// unread tells whether something of the engine's waits to be read: then it is this
// process that is late.
func (p *Pacer) unread() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.socket), Events: unix.POLLIN}}, 0)
	return err != nil || n > 0
}

// abandon has follow see the end of an engine, which may not see it itself.
func (p *Pacer) abandon() {
	if p.socket >= 0 {
		_ = unix.Shutdown(p.socket, unix.SHUT_RDWR)
	}
}

// clearedLen is the length of the word that a slot has been cleared: its number.
const clearedLen = 2

func (p *Pacer) cleared(slot uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.at(slot)
	switch {
	case s == nil:
	case s.closed:
		p.release(s)
	default:
		select {
		case s.cleared <- struct{}{}:
		default: // nobody waits
		}
	}
}

// at is the slot of an index, as the engine names it; nil: there is none.
func (p *Pacer) at(index uint16) *Slot {
	if int(index) >= len(p.slots) {
		return nil
	}
	return p.slots[index]
}

// release gives a place to the next slot.
func (p *Pacer) release(s *Slot) {
	p.slots[s.index] = nil
	p.free = append(p.free, s.index)
}

func (p *Pacer) report(r report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.at(r.slot)
	if s == nil {
		return
	}
	if s.failed += uint64(r.count); r.count > 0 {
		p.log.Warn("packets could not be sent", "what", s.name, "count", r.count, "error", unix.Errno(r.errno))
	}
	if late := time.Duration(r.late) * time.Microsecond; late > 0 {
		p.log.Warn("packets that must be on time were late: no processor was free for who sends them", "what", s.name, "late", late)
	}
}

// Close ends the engine and waits for it.
func (p *Pacer) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.quit)
		if p.socket >= 0 {
			// Not closed: follow reads it, and does that when the engine has ended.
			_ = unix.Shutdown(p.socket, unix.SHUT_WR)
			time.AfterFunc(closeTime, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.abandon()
			})
		}
	}
	p.mu.Unlock()
	<-p.done
}

// send hands a request to the engine.
func (p *Pacer) send(r *request, socket int) error {
	if p.socket < 0 {
		return errors.New("no sender runs")
	}
	if p.buf = r.append(p.buf[:0]); len(p.buf) > maxRequest {
		return errRequest
	}
	var rights []byte
	if socket >= 0 {
		rights = unix.UnixRights(socket)
	}
	return unix.Sendmsg(p.socket, p.buf, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// set gives a slot's job to the engine.
func (p *Pacer) set(s *Slot) bool {
	r := request{op: opSet, slot: s.index, job: s.job, first: (p.number + 1) << 40}
	err := errRequest
	if s.job.valid() {
		if e := s.conn.Control(func(fd uintptr) { err = p.send(&r, int(fd)) }); e != nil {
			err = e
		}
	}
	if s.set = err == nil; s.set {
		p.number++ // there are 16 million; what is refused may be tried for ever
	}
	s.renewed = time.Now()
	return s.set
}

// A Slot is the place of one job.
type Slot struct {
	pacer *Pacer
	index uint16
	name  string

	// Under the Pacer's lock.
	conn    syscall.RawConn // nil: there is no job
	job     Job
	set     bool // the engine has it
	renewed time.Time
	failed  uint64
	closed  bool

	cleared chan struct{} // word from the engine
}

// Slot makes a place for a job, until Close.
func (p *Pacer) Slot(name string) *Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &Slot{pacer: p, name: name, cleared: make(chan struct{}, 1)}
	if last := len(p.free) - 1; last >= 0 {
		s.index, p.free = p.free[last], p.free[:last]
		p.slots[s.index] = s
		return s
	}
	s.index = uint16(len(p.slots)) // there are 65,536, many times what a daemon needs
	p.slots = append(p.slots, s)
	return s
}

// Close ends the job as Clear does, and gives the place back. The slot takes no other
// job. The place is another slot's once the engine has said that it has cleared it, lest
// that one takes it for its own.
func (s *Slot) Close() {
	p := s.pacer
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.closed {
		return
	}
	s.closed, s.conn, s.set = true, nil, false
	if p.socket < 0 {
		p.release(s)
	} else if p.send(&request{op: opClear, slot: s.index}, -1) != nil {
		p.abandon() // as in clear; the next engine knows nothing of it
	}
}

// Set makes a job the slot's, in the place of one before. The socket may be closed
// once Clear or another Set has been called. False: no engine does it now.
func (s *Slot) Set(conn syscall.RawConn, j Job) bool {
	s.pacer.mu.Lock()
	defer s.pacer.mu.Unlock()
	if s.closed {
		return false
	}
	s.conn, s.job = conn, j
	return s.pacer.set(s)
}

// Renew extends the job's lease, or gives the engine a job that it could not take
// before. False: no engine does the job now; the caller has to send by itself. It does
// not allocate where the engine has the job.
func (s *Slot) Renew() bool {
	s.pacer.mu.Lock()
	defer s.pacer.mu.Unlock()
	if s.conn == nil || s.pacer.socket < 0 {
		return false
	}
	if !s.set { // its queue was full, and it goes on with the job of before
		return s.pacer.set(s)
	}
	now := time.Now()
	if now.Sub(s.renewed) < s.job.Lease/8 {
		return true
	}
	r := request{op: opRenew, slot: s.index}
	if s.pacer.send(&r, -1) != nil {
		// Its queue is full, so it does not run. If it died, follow says so soon.
		return now.Sub(s.renewed) < s.job.Lease
	}
	s.renewed = now
	s.pacer.ask(now)
	return true
}

// stopTime is how long Stop waits for the engine at most.
const stopTime = 5 * time.Millisecond

// Stop ends the job, and waits until nothing more of it is sent, a few
// milliseconds at most.
func (s *Slot) Stop() {
	select {
	case <-s.cleared: // of an earlier time
	default:
	}
	if !s.clear() {
		return
	}
	select {
	case <-s.cleared:
	case <-s.pacer.quit:
	case <-time.After(stopTime):
	}
}

// Clear ends the job. What the engine is sending at this moment it still sends.
func (s *Slot) Clear() { s.clear() }

// clear reports whether the engine will say that it has done so.
func (s *Slot) clear() bool {
	s.pacer.mu.Lock()
	defer s.pacer.mu.Unlock()
	if s.conn == nil {
		return false
	}
	s.conn, s.set = nil, false
	if s.pacer.socket < 0 {
		return false
	}
	err := s.pacer.send(&request{op: opClear, slot: s.index}, -1)
	if err != nil {
		// A full queue would leave a job that must not go on: the engine has to be
		// another one.
		s.pacer.abandon()
	}
	return err == nil
}

// Failed is how many packets of the slot could not be sent.
func (s *Slot) Failed() uint64 {
	s.pacer.mu.Lock()
	defer s.pacer.mu.Unlock()
	return s.failed
}
