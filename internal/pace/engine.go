// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An engine sends. A few threads, its hands, each on a processor of its own, do the same:
// wait for requests and for the next job that is due, in one system call. Whoever wakes up
// first does the work. So it is on time also where the kernel holds up one of the
// processors, as it may for tens of milliseconds, whatever the priority of who waits.
// It may do so in the middle of sending: what comes next another hand sends, so none
// holds the lock meanwhile. It allocates only for requests.
type engine struct {
	control int
	began   time.Time
	next    atomic.Int64 // when the first job is due, as a time.Duration; never: none is
	ended   atomic.Bool

	mu    sync.Mutex // guards all below
	err   error
	slots map[uint16]*work
	buf   []byte
	oob   []byte
}

// maxHands is how many threads an engine has at most.
const maxHands = 4

// taken is how long a thread leaves the work to another one that is at it.
const taken = 100 * time.Microsecond

const never = time.Duration(1<<63 - 1)

// work is a job under way. Times count from the engine's beginning.
type work struct {
	slot    uint16
	job     Job
	socket  int
	due     time.Duration
	expires time.Duration
	hands   [maxHands]share
	number  uint64
	sending int  // how many hands are at it
	gone    bool // nothing more is to be sent
	asked   bool // the word that it is gone is waited for

	said     report // what there is to say since the last one
	reported time.Duration
}

// A share is what a hand has of a job, its own: what it makes and sends of it takes no
// lock.
type share struct {
	mails  []mail
	number uint64    // before that of its first message
	mac    hash.Hash // nil: no stamp
	sum    [tagLen]byte
}

// mail is a parcel, as sendmsg takes it.
type mail struct {
	header  unix.Msghdr
	vector  unix.Iovec
	payload []byte
}

// alive is the answer to a renewal: neither a report nor the word of a clearing.
var alive [1]byte

// reportEvery bounds how often it is told what has gone wrong with a job.
const reportEvery = time.Second

// maxLate bounds the lateness that is told: one that was due an hour ago is due anew.
const maxLate = time.Hour

// Run is an engine: it does what is asked over a socket of a pair, until the other
// end is closed.
func Run(control int) error {
	e := newEngine(control)
	var hands sync.WaitGroup
	for hand, cpu := range processors() {
		hands.Go(func() {
			e.fail(onThread(func() error {
				if cpu.Count() > 0 {
					_ = unix.SchedSetaffinity(0, &cpu) // else it runs where it can
				}
				return e.hand(hand)
			}))
		})
	}
	hands.Wait()
	for _, w := range e.slots {
		unix.Close(w.socket)
	}
	return e.err
}

func newEngine(control int) *engine {
	e := &engine{
		control: control, began: time.Now(), slots: map[uint16]*work{},
		buf: make([]byte, maxRequest), oob: make([]byte, unix.CmsgSpace(4)),
	}
	e.next.Store(int64(never))
	return e
}

// processors are those that the threads of an engine are to run on, one for each
// thread; of an empty set, any.
func processors() (all []unix.CPUSet) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return make([]unix.CPUSet, 1)
	}
	for cpu := 0; len(all) < maxHands && cpu < 8*int(unsafe.Sizeof(allowed)); cpu++ {
		if allowed.IsSet(cpu) {
			all = append(all, unix.CPUSet{})
			all[len(all)-1].Set(cpu)
		}
	}
	return all
}

// fail ends the engine, because of an error or of its own accord.
func (e *engine) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended.Store(true)
	if e.err == nil {
		e.err = err
	}
}

// hand is what each thread does.
func (e *engine) hand(number int) error {
	fds := []unix.PollFd{{Fd: int32(e.control), Events: unix.POLLIN}}
	moment := unix.NsecToTimespec(int64(taken))
	var left unix.Timespec
	for !e.ended.Load() {
		var wait *unix.Timespec
		if next := time.Duration(e.next.Load()); next != never {
			left = unix.NsecToTimespec(int64(max(0, next-e.now())))
			wait = &left
		}
		n, err := unix.Ppoll(fds, wait, nil)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for requests: %w", err)
		}
		if !e.mu.TryLock() {
			pause := moment // the kernel may write to it
			_, _ = unix.Ppoll(nil, &pause, nil)
			continue
		}
		end := false
		if n > 0 {
			end, err = e.serve()
		}
		e.work(number)
		e.mu.Unlock()
		if end {
			return err
		}
	}
	return nil
}

func (e *engine) now() time.Duration { return time.Since(e.began) }

// serve reads one request. It reports whether there are no more.
func (e *engine) serve() (end bool, err error) {
	n, oobn, _, _, err := unix.Recvmsg(e.control, e.buf, e.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case err == unix.ECONNRESET:
		return true, nil
	case err != nil:
		return true, fmt.Errorf("read request: %w", err)
	case n == 0:
		return true, nil
	}
	socket := socketOf(e.oob[:oobn])
	r, err := readRequest(e.buf[:n])
	if err != nil || (r.op == opSet) != (socket >= 0) {
		if socket >= 0 {
			unix.Close(socket)
		}
		return true, errRequest
	}
	e.obey(r, socket)
	return false, nil
}

// socketOf returns the socket that came with a request, or -1.
func socketOf(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return fds[0]
		}
	}
	return -1
}

func (e *engine) obey(r request, socket int) {
	w := e.slots[r.slot]
	switch r.op {
	case opRenew:
		if w != nil {
			e.renew(w)
		}
		// It shows that the engine is at work; if nobody reads, the next one will.
		_ = unix.Send(e.control, alive[:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return
	case opClear:
		if w == nil {
			e.tellCleared(r.slot)
		} else {
			w.asked = true
			e.end(w)
		}
	case opSet:
		if w != nil {
			e.end(w)
		}
		e.slots[r.slot] = e.begin(r, socket, w)
	}
	e.plan()
}

// end ends a job. What a hand is sending at this moment it still sends.
func (e *engine) end(w *work) {
	delete(e.slots, w.slot)
	w.gone = true
	e.leave(w)
}

// leave closes the socket of a job that has ended when nobody sends on it any more: its
// number may be another one's then. Only now nothing more is sent.
func (e *engine) leave(w *work) {
	if !w.gone || w.sending > 0 {
		return
	}
	unix.Close(w.socket)
	if w.asked {
		e.tellCleared(w.slot)
	}
}

// tellCleared says that nothing of a slot is sent any more. Nobody waits for it longer
// than a moment: it may get lost.
func (e *engine) tellCleared(slot uint16) {
	_ = unix.Send(e.control, binary.BigEndian.AppendUint16(nil, slot), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// renew extends a lease. A job whose lease was over goes on at once.
func (e *engine) renew(w *work) {
	now := e.now()
	if w.expires <= now {
		w.due = now
	}
	w.expires = now + w.job.Lease
	e.plan()
}

// begin makes work of a job. One that only changes what is sent keeps the time.
func (e *engine) begin(r request, socket int, before *work) *work {
	now := e.now()
	w := &work{slot: r.slot, job: r.job, socket: socket, due: now, expires: now + r.job.Lease, number: r.first, reported: -reportEvery}
	if !r.job.Now {
		w.due = now + r.job.Interval
		if before != nil && before.expires > now {
			w.due = min(w.due, before.due)
		}
	}
	for hand := range w.hands {
		h := &w.hands[hand]
		h.mails = mailsOf(r.job.Parcels)
		if s := r.job.Stamp; s != nil {
			h.mac = hmac.New(sha256.New, s.Key[:])
		}
	}
	return w
}

// mailsOf makes mails of parcels, with payloads of their own.
func mailsOf(parcels []Parcel) []mail {
	mails := make([]mail, len(parcels))
	for i, p := range parcels {
		m := &mails[i]
		m.payload = slices.Clone(p.Payload)
		m.vector.Base = unsafe.SliceData(m.payload)
		m.vector.SetLen(len(m.payload))
		m.header.Iov = &m.vector
		m.header.SetIovlen(1)
		if len(p.Address) > 0 {
			m.header.Name, m.header.Namelen = unsafe.SliceData(p.Address), uint32(len(p.Address))
		}
		if len(p.Control) > 0 {
			m.header.Control = unsafe.SliceData(p.Control)
			m.header.SetControllen(len(p.Control))
		}
	}
	return mails
}

// plan finds out what is due next.
func (e *engine) plan() {
	next := never
	for _, w := range e.slots {
		if w.due < w.expires {
			next = min(next, w.due)
		}
	}
	e.next.Store(int64(next))
}

// work sends what is due. It lets go of the lock while it sends.
func (e *engine) work(hand int) {
	for w := e.take(hand); w != nil; w = e.take(hand) {
		e.mu.Unlock()
		count, errno := w.send(hand)
		e.mu.Lock()
		e.sent(w, count, errno)
	}
}

// take makes what is due of a job a hand's own; nil: none is due. It is all that the lock
// is held for, and takes no longer than it must: a hand that the kernel holds up just then
// holds up all of them.
func (e *engine) take(hand int) *work {
	now := e.now()
	if int64(now) < e.next.Load() {
		return nil
	}
	for _, w := range e.slots {
		if w.due > now || w.due >= w.expires {
			continue
		}
		if late := now - w.due; late > w.job.Interval/2 {
			w.said.late = max(w.said.late, uint32(min(late, maxLate).Microseconds()))
		}
		// From when it was due: lateness does not add up. After a long pause there is
		// nothing to catch up with.
		if w.due += w.job.Interval; w.due <= now {
			w.due = now + w.job.Interval
		}
		w.hands[hand].number = w.number
		w.number += uint64(len(w.job.Parcels))
		w.sending++
		e.plan()
		return w
	}
	e.plan()
	return nil
}

// sent notes what has become of a job's messages.
func (e *engine) sent(w *work, count, errno uint32) {
	if w.said.count += count; count > 0 {
		w.said.errno = errno
	}
	w.sending--
	if w.gone {
		e.leave(w)
		return
	}
	e.tell(w, e.now())
}

// send sends a hand's messages. It returns how many could not be sent, and why.
func (w *work) send(hand int) (failed, why uint32) {
	h := &w.hands[hand]
	for i := range h.mails {
		m := &h.mails[i]
		if h.mac != nil {
			h.stamp(m.payload, w.job.Stamp.At)
		}
		errno := w.sendmsg(m)
		if errno != 0 && errno != unix.EAGAIN {
			// A connected socket tells, in the place of sending, what ICMP has told of an
			// earlier packet; anybody can forge that. It does so once.
			errno = w.sendmsg(m)
		}
		// That nobody listens there is no failure of this node.
		if errno != 0 && errno != unix.ECONNREFUSED {
			failed, why = failed+1, uint32(errno)
		}
	}
	return failed, why
}

func (w *work) sendmsg(m *mail) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(w.socket), uintptr(unsafe.Pointer(&m.header)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// stamp gives a message the hand's next number, and signs it.
func (h *share) stamp(payload []byte, at int) {
	h.number++
	binary.BigEndian.PutUint64(payload[at:], h.number)
	signed := payload[:len(payload)-tagLen]
	h.mac.Reset()
	h.mac.Write(signed)
	copy(payload[len(signed):], h.mac.Sum(h.sum[:0]))
}

// tell reports what has gone wrong. If nobody reads, it is told next time.
func (e *engine) tell(w *work, now time.Duration) {
	if w.said == (report{}) || now-w.reported < reportEvery {
		return
	}
	w.said.slot, w.reported = w.slot, now
	var buf [reportLen]byte
	if unix.Send(e.control, w.said.append(buf[:0]), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) == nil {
		w.said = report{}
	}
}
