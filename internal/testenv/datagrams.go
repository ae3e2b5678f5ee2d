package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A DatagramProber sends a numbered UDP datagram at each interval, all from one
// socket, and notes when its echo comes back. Where a connection would hide a loss
// by sending again, this one shows it. It runs on a thread of its own in its host's
// namespace, [undisturbed].
type DatagramProber struct {
	target netip.AddrPort
	wake   wakeup
	done   chan struct{}
	err    error // of the loop; read after done

	mu       sync.Mutex // guards what follows while the loop runs
	result   DatagramResult
	answered int
	streak   int
}

// A DatagramResult is what a DatagramProber has found.
type DatagramResult struct {
	Start    time.Time
	Interval time.Duration
	// Sent is when each datagram was sent, and Answered when its echo came, after
	// Start; 0: it has not come.
	Sent, Answered []time.Duration
	// Skipped counts datagrams that were due while the prober itself was late.
	Skipped int
	// Realtime says that the prober had real-time priority.
	Realtime bool
}

// LostBetween counts the datagrams sent from one moment up to another that were
// never answered.
func (r DatagramResult) LostBetween(from, to time.Time) (n int) {
	for i, sent := range r.Sent {
		if at := r.Start.Add(sent); r.Answered[i] == 0 && !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// LongestSilenceBetween returns the longest time without an answer between two
// moments. While the prober itself is late, there is nothing to answer: that does not
// count, up to one interval, where its next datagram is answered within an interval.
func (r DatagramResult) LongestSilenceBetween(from, to time.Time) (longest time.Duration) {
	first, last := from.Sub(r.Start), to.Sub(r.Start)
	began := first
	note := func(end time.Duration) {
		longest = max(longest, min(end, last)-max(began, first))
	}
	waiting := false // a datagram has been sent since the last answer
	for i, sent := range r.Sent {
		answered := r.Answered[i]
		if !waiting && answered != 0 && answered-sent <= r.Interval {
			began = max(began, sent-r.Interval)
		}
		waiting = true
		if answered != 0 {
			note(answered)
			began, waiting = answered, false
		}
	}
	if waiting {
		note(last)
	}
	return longest
}

// LongestPauseBetween returns the longest time between two datagrams, that is, how
// late the prober was at worst, and one interval. It has seen nothing of what went on
// meanwhile.
func (r DatagramResult) LongestPauseBetween(from, to time.Time) (longest time.Duration) {
	for i := 1; i < len(r.Sent); i++ {
		if r.Start.Add(r.Sent[i]).After(from) && r.Start.Add(r.Sent[i-1]).Before(to) {
			longest = max(longest, r.Sent[i]-r.Sent[i-1])
		}
	}
	return longest
}

// StartDatagramProber starts to probe from the host. The lab stops it at Close.
func (h *Host) StartDatagramProber(target netip.AddrPort, interval time.Duration) (*DatagramProber, error) {
	p := &DatagramProber{target: target, done: make(chan struct{})}
	p.result.Start, p.result.Interval = time.Now(), interval
	var err error
	if p.wake, err = newWakeup(); err != nil {
		return nil, fmt.Errorf("start datagram prober on %s: %w", h.Name, err)
	}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		p.err = h.Do(func() error {
			l, err := newDatagramLoop(p)
			started <- err
			if err != nil {
				return nil
			}
			return errors.Join(undisturbed(&p.result.Realtime, l.run), l.close())
		})
		select {
		case started <- p.err: // the namespace could not be entered
		default:
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start datagram prober on %s: %w", h.Name, errors.Join(err, p.wake.close()))
	}
	h.lab.adopt(p)
	return p, nil
}

// Progress returns how many datagrams have been answered, and how many of these
// came last without one that is missing among them.
func (p *DatagramProber) Progress() (answered, streak int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered, p.streak
}

// Stop ends the prober and returns the result.
func (p *DatagramProber) Stop() (DatagramResult, error) {
	p.wake.end(p.done)
	return p.result, p.err
}

func (p *DatagramProber) stop() error {
	_, err := p.Stop()
	return err
}

// datagramSize is what a datagram holds: its number.
const datagramSize = 8

// A datagramLoop is the thread of a DatagramProber.
type datagramLoop struct {
	p      *DatagramProber
	socket int
	ticker int // timerfd

	control [64]byte // control messages
}

func newDatagramLoop(p *DatagramProber) (_ *datagramLoop, err error) {
	l := &datagramLoop{p: p, socket: -1, ticker: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	target, family := sockaddr(p.target)
	if l.socket, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptInt(l.socket, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return nil, fmt.Errorf("ask for times of arrival: %w", err)
	}
	if err := unix.Connect(l.socket, target); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if l.ticker, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make timerfd: %w", err)
	}
	every := unix.NsecToTimespec(int64(p.result.Interval))
	if err := unix.TimerfdSettime(l.ticker, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil); err != nil {
		return nil, fmt.Errorf("set timerfd: %w", err)
	}
	// Room for half a minute, so that nothing is copied in the middle of it.
	room := int(30 * time.Second / p.result.Interval)
	p.result.Sent = make([]time.Duration, 0, room)
	p.result.Answered = make([]time.Duration, 0, room)
	return l, nil
}

func (l *datagramLoop) close() error {
	var errs []error
	for _, fd := range []int{l.socket, l.ticker} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// run probes until it is woken.
func (l *datagramLoop) run() error {
	fds := []unix.PollFd{
		{Fd: int32(l.p.wake.fd), Events: unix.POLLIN},
		{Fd: int32(l.socket), Events: unix.POLLIN},
		{Fd: int32(l.ticker), Events: unix.POLLIN},
	}
	last := -1 // the number of the last echo
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for events: %w", err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		// What has come is noted before anything is sent.
		if err := l.receive(&last); err != nil {
			return err
		}
		if err := l.tick(); err != nil {
			return err
		}
	}
}

// tick sends the datagram that is due, if one is.
func (l *datagramLoop) tick() error {
	var count [8]byte
	if _, err := unix.Read(l.ticker, count[:]); err == unix.EAGAIN {
		return nil
	} else if err != nil {
		return fmt.Errorf("read timerfd: %w", err)
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	r := &l.p.result
	r.Skipped += int(binary.NativeEndian.Uint64(count[:])) - 1
	var msg [datagramSize]byte
	binary.BigEndian.PutUint64(msg[:], uint64(len(r.Sent)))
	r.Sent, r.Answered = append(r.Sent, time.Since(r.Start)), append(r.Answered, 0)
	_, err := unix.Write(l.socket, msg[:])
	if err == unix.ECONNREFUSED {
		// That was about an earlier one; this one was not sent.
		_, err = unix.Write(l.socket, msg[:])
	}
	if err != nil && !fromNetwork(err) {
		return fmt.Errorf("send datagram: %w", err)
	}
	return nil
}

// receive notes all echoes that have come.
func (l *datagramLoop) receive(last *int) error {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	r := &l.p.result
	var msg [datagramSize]byte
	for {
		n, control, _, _, err := unix.Recvmsg(l.socket, msg[:], l.control[:], 0)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR || fromNetwork(err):
			continue
		case err != nil:
			return fmt.Errorf("receive echo: %w", err)
		}
		number := int(binary.BigEndian.Uint64(msg[:]))
		if n != len(msg) || number >= len(r.Sent) || r.Answered[number] != 0 {
			continue // not an echo, or a second one
		}
		at, err := Arrival(l.control[:control])
		if err != nil {
			return err
		}
		// The two clocks may differ by a little; an answer follows its question.
		r.Answered[number] = max(at.Sub(r.Start), r.Sent[number]+1)
		if number != *last+1 {
			l.p.streak = 0
		}
		l.p.streak++
		l.p.answered++
		*last = number
	}
}

// Arrival reads when the kernel got a packet, which may have waited for its reader
// since, in the control messages of a socket with SO_TIMESTAMPNS.
func Arrival(control []byte) (time.Time, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}, fmt.Errorf("read control message: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), nil
		}
	}
	return time.Time{}, errors.New("a packet says not when it came")
}

// fromNetwork tells whether a socket's error is what the network, or its want,
// has said about a datagram.
func fromNetwork(err error) bool {
	return slices.Contains([]error{
		unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENOBUFS, unix.EPERM,
	}, err)
}
