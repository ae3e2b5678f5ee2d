package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeBuffer bounds an answer, head and body.
	probeBuffer = 4096
	// expiryInterval is how often the loop looks for requests over time.
	expiryInterval = 10 * time.Millisecond
)

// Who an epoll event is for, where it is not a connection's index.
const (
	wakeEvent = -1
	tickEvent = -2
)

// A probeConn is a connection with its request. Closed, its fd is -1.
type probeConn struct {
	fd      int
	started time.Duration // after the timeline's start
	sent    bool
	got     int
	buf     [probeBuffer]byte
}

// A probeLoop drives all connections of a Prober by epoll on one thread, in the
// namespace that the thread is in.
type probeLoop struct {
	p       *Prober
	request []byte
	target  unix.Sockaddr
	family  int
	epoll   int
	ticker  int // timerfd, -1 without an interval
	conns   []probeConn
	free    []int // indices of closed connections
}

func newProbeLoop(p *Prober) (*probeLoop, error) {
	keep := "keep-alive"
	if p.cfg.ServerCloses {
		keep = "close"
	}
	l := &probeLoop{
		p: p, epoll: -1, ticker: -1,
		request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", p.cfg.Path, p.cfg.Target, keep),
		conns:   make([]probeConn, p.cfg.Outstanding),
	}
	l.target, l.family = sockaddr(p.cfg.Target)
	for i := range l.conns {
		l.conns[i].fd = -1
		l.free = append(l.free, i)
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *probeLoop) open() (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("make epoll: %w", err)
	}
	if err := l.watch(l.p.wake, wakeEvent, unix.EPOLLIN); err != nil {
		return err
	}
	if l.p.cfg.Interval == 0 {
		return nil
	}
	if l.ticker, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("make timerfd: %w", err)
	}
	every := unix.NsecToTimespec(int64(l.p.cfg.Interval))
	if err := unix.TimerfdSettime(l.ticker, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil); err != nil {
		return fmt.Errorf("set timerfd: %w", err)
	}
	return l.watch(l.ticker, tickEvent, unix.EPOLLIN)
}

func (l *probeLoop) watch(fd, who int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(who)}); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

// close closes everything that the loop has opened.
func (l *probeLoop) close() error {
	var errs []error
	for i := range l.conns {
		if l.conns[i].fd >= 0 {
			errs = append(errs, unix.Close(l.conns[i].fd))
		}
	}
	for _, fd := range []int{l.ticker, l.epoll} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// run probes until it is woken or Count requests have ended.
func (l *probeLoop) run() error {
	var (
		events [64]unix.EpollEvent
		expiry time.Duration
	)
	if l.ticker < 0 {
		l.fill()
	}
	for !l.complete() {
		n, err := unix.EpollWait(l.epoll, events[:], int(expiryInterval.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for events: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			switch e.Fd {
			case wakeEvent:
				return nil
			case tickEvent:
				if err := l.tick(); err != nil {
					return err
				}
			default:
				l.advance(int(e.Fd), e.Events)
			}
		}
		if now := l.now(); now >= expiry {
			l.expire(now)
			expiry = now + expiryInterval
		}
		if l.ticker < 0 {
			l.fill()
		}
	}
	return nil
}

func (l *probeLoop) now() time.Duration { return time.Since(l.p.result.Start) }

func (l *probeLoop) allSent() bool {
	return l.p.cfg.Count > 0 && l.p.result.Sent >= l.p.cfg.Count
}

func (l *probeLoop) complete() bool { return l.allSent() && len(l.free) == len(l.conns) }

// fill starts as many requests as may be outstanding.
func (l *probeLoop) fill() {
	for range len(l.free) {
		if l.allSent() {
			return
		}
		l.begin()
	}
}

// tick starts the request that is due. Where this process was late for several,
// the others are skipped: a burst would measure something else.
func (l *probeLoop) tick() error {
	var count [8]byte
	if _, err := unix.Read(l.ticker, count[:]); err == unix.EAGAIN {
		return nil
	} else if err != nil {
		return fmt.Errorf("read timerfd: %w", err)
	}
	if l.allSent() {
		return nil
	}
	due := int(count[0]) | int(count[1])<<8
	skipped := max(due-1, 0)
	if len(l.free) > 0 {
		l.begin()
	} else {
		skipped++
	}
	l.p.mu.Lock()
	l.p.result.Skipped += skipped
	l.p.mu.Unlock()
	return nil
}

// begin opens a connection for the next request.
func (l *probeLoop) begin() {
	l.p.mu.Lock()
	l.p.result.Sent++
	l.p.mu.Unlock()
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	c := &l.conns[i]
	c.started, c.sent, c.got = l.now(), false, 0

	var err error
	c.fd, err = unix.Socket(l.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		l.end(i, nil, "open socket: "+err.Error())
		return
	}
	if err := unix.Connect(c.fd, l.target); err != nil && err != unix.EINPROGRESS {
		l.end(i, nil, "connect: "+err.Error())
		return
	}
	// Edge-triggered: one registration serves from connect to close.
	if err := l.watch(c.fd, i, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		l.end(i, nil, err.Error())
	}
}

// advance takes a connection as far as it goes after an event.
func (l *probeLoop) advance(i int, events uint32) {
	c := &l.conns[i]
	if c.fd < 0 {
		return // ended earlier in the same batch of events
	}
	if !c.sent {
		if errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			l.end(i, nil, "connect: "+unix.Errno(errno).Error())
			return
		}
		if events&unix.EPOLLOUT == 0 {
			return
		}
		// A fresh socket's buffer takes a request whole.
		if _, err := unix.Write(c.fd, l.request); err != nil {
			l.end(i, nil, "write: "+err.Error())
			return
		}
		c.sent = true
	}
	for {
		n, err := unix.Read(c.fd, c.buf[c.got:])
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err != nil:
			l.end(i, nil, "read: "+err.Error())
			return
		}
		c.got += n
		closed := n == 0
		body, complete, failure := parseAnswer(c.buf[:c.got], closed)
		if failure == "" && c.got == len(c.buf) {
			failure = "answer too long"
		}
		if failure != "" || closed || complete && !l.p.cfg.ServerCloses {
			l.end(i, body, failure)
			return
		}
	}
}

// expire fails the requests that take too long.
func (l *probeLoop) expire(now time.Duration) {
	for i := range l.conns {
		if c := &l.conns[i]; c.fd >= 0 && now-c.started > l.p.cfg.Timeout {
			what := "connect"
			if c.sent {
				what = "answer"
			}
			l.end(i, nil, what+": timeout")
		}
	}
}

// end records how a request ended and frees its connection.
func (l *probeLoop) end(i int, body []byte, failure string) {
	at := l.now()
	c := &l.conns[i]
	if c.fd >= 0 {
		_ = unix.Close(c.fd) // read to its end, or given up
		c.fd = -1
	}
	l.free = append(l.free, i)
	l.p.mu.Lock()
	l.p.result.finish(at, body, failure)
	l.p.mu.Unlock()
}

// parseAnswer reads an HTTP answer as far as it has come. It is complete with as
// many bytes of body as its Content-Length says, and a failure when it is not
// that of status 200, or closed before it is complete.
func parseAnswer(data []byte, closed bool) (body []byte, complete bool, failure string) {
	head, body, ok := bytes.Cut(data, []byte("\r\n\r\n"))
	if !ok {
		if closed {
			return nil, false, "closed before the answer"
		}
		return nil, false, ""
	}
	_, status, _ := bytes.Cut(head[:min(len(head), len("HTTP/1.1 200"))], []byte(" "))
	if string(status) != "200" {
		return nil, false, "status " + string(status)
	}
	length, ok := contentLength(head)
	switch {
	case !ok:
		return nil, false, "no content length"
	case len(body) < length && closed:
		return nil, false, "closed in the middle of the answer"
	case len(body) < length:
		return nil, false, ""
	}
	return bytes.TrimSuffix(body[:length], []byte("\n")), true, ""
}

func contentLength(head []byte) (int, bool) {
	for len(head) > 0 {
		var line []byte
		line, head, _ = bytes.Cut(head, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			return n, err == nil && n >= 0
		}
	}
	return 0, false
}

func sockaddr(addr netip.AddrPort) (unix.Sockaddr, int) {
	if ip := addr.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(addr.Port())}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}, unix.AF_INET6
}
