// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A punctual Network has a clock that wakes a Router on time. Go's own timers do so
// to a millisecond: a process that sleeps waits for whole ones, and may begin another
// one just before the time has come. In fast mode that is a part of the takeover.
type punctual interface {
	openClock() (*clock, error)
}

// A clock is a timer of the kernel's, which is late by some 50 microseconds.
type clock struct {
	// C has a value when the time that was set last has come. There may be one too
	// many.
	C    chan struct{}
	file *os.File
	raw  syscall.RawConn
	done chan struct{}

	// For the function, which is made once: a closure per call would be garbage.
	spec  unix.ItimerSpec
	setFn func(uintptr)
}

func (h *Host) openClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	c := &clock{C: make(chan struct{}, 1), file: os.NewFile(uintptr(fd), "timer"), done: make(chan struct{})}
	if c.raw, err = c.file.SyscallConn(); err != nil {
		c.file.Close()
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	c.setFn = func(fd uintptr) { _ = unix.TimerfdSettime(int(fd), 0, &c.spec, nil) } // it can't fail
	go c.run()
	return c, nil
}

func (c *clock) run() {
	defer close(c.done)
	var count [8]byte
	for {
		if _, err := c.file.Read(count[:]); err != nil {
			return // it is closed
		}
		select {
		case c.C <- struct{}{}:
		default:
		}
	}
}

// set sets when C is to have a value, instead of what was set before.
func (c *clock) set(after time.Duration) {
	c.spec.Value = unix.NsecToTimespec(int64(max(after, 1))) // 0 would switch it off
	_ = c.raw.Control(c.setFn)                               // it is open
}

func (c *clock) close() {
	c.file.Close() // nothing was written
	<-c.done
}

// wakers are what wakes a Router when something is due: the clock where it has one,
// else a timer of Go's.
type wakers struct {
	timer *time.Timer
	clock *clock // nil: there is none
	sharp <-chan struct{}
}

// openWakers opens those that the Router needs.
func (r *Router) openWakers() wakers {
	w := wakers{timer: time.NewTimer(0)}
	p, ok := r.deps.Network.(punctual)
	if !ok || r.cfg.Heartbeat == 0 {
		return w
	}
	c, err := p.openClock()
	if err != nil {
		r.log.Warn("a takeover may be late by a millisecond", "error", err)
		return w
	}
	w.clock, w.sharp = c, c.C
	return w
}

func (w *wakers) set(at time.Time) {
	after := time.Until(at)
	w.timer.Reset(after)
	if w.clock != nil {
		w.clock.set(after)
	}
}

func (w *wakers) close() {
	w.timer.Stop()
	if w.clock != nil {
		w.clock.close()
	}
}
