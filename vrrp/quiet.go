// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Inbox knows whether anything that has arrived at a socket is still to be
// handed on: in the socket, or in the hands of a reader that the kernel keeps
// from running. A timer that is due in the same moment can be early by as much.
type Inbox struct {
	raw  syscall.RawConn
	idle atomic.Bool // the reader waits, and holds nothing

	// The look is made once: a closure per call would be garbage. It has one caller.
	poll   [1]unix.PollFd
	looked int
	look   func(uintptr)
}

// Open sets the socket. It comes before all else.
func (i *Inbox) Open(raw syscall.RawConn) {
	i.raw = raw
	i.look = func(fd uintptr) {
		i.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		i.looked, _ = unix.Poll(i.poll[:], 0)
	}
}

// Reads is called by the reader around each attempt: before it with false, and
// with true once it has found nothing.
func (i *Inbox) Reads(nothing bool) { i.idle.Store(nothing) }

// Quiet reports whether everything has been handed on. The socket comes first: what the reader takes after
// that look makes it busy.
func (i *Inbox) Quiet() bool {
	if err := i.raw.Control(i.look); err != nil || i.looked != 0 {
		return err != nil // closed: nothing more comes
	}
	return i.idle.Load()
}
