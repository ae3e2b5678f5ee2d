// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Pacer repeats an instance's advertisements on time while it is Active,
// whatever keeps this program from running.
type Pacer interface {
	// Repeat sends messages on a socket, over and over, the first time one interval
	// from now, in the place of those before. It goes on until Stop, or until
	// nothing has been renewed for a while. False: it can't now.
	Repeat(socket syscall.RawConn, interval time.Duration, messages []Parcel) bool
	// Renew says that they are still to be sent. False: nobody sends them.
	Renew() bool
	// Stop ends it. Nothing more is sent when it returns; for that it may wait a few
	// milliseconds.
	Stop()
}

// A Parcel is a message as a system call takes it: to a socket address of the
// kernel's, with control messages.
type Parcel struct{ Address, Control, Payload []byte }

// A repeatable is a Transport whose messages another process can send.
type repeatable interface {
	conn() syscall.RawConn
	parcel(msg []byte, to netip.Addr) Parcel
}

// paced is what a Pacer repeats.
type paced struct {
	on           bool
	priority     uint8
	pseudoHeader bool
}

// renewed reports whether the Pacer sends the advertisement that is due.
func (r *Router) renewed(priority uint8) bool {
	return r.paced == paced{true, priority, r.out.PseudoHeader} && r.deps.Pacer.Renew()
}

// repeat gives the Pacer what has been sent, to go on with.
func (r *Router) repeat(priority uint8) {
	if r.deps.Pacer == nil || r.transport == nil || r.renewed(priority) {
		return
	}
	t, ok := r.transport.Transport.(repeatable)
	if !ok || r.machine.State() != Active || r.machine.Releasing() {
		return
	}
	var all []Parcel
	for _, to := range r.transport.Destinations() {
		msg, err := r.out.Append(nil, r.link.Source, to)
		if err != nil {
			return // sending it has failed, too
		}
		all = append(all, t.parcel(msg, to))
	}
	r.paced = paced{r.deps.Pacer.Repeat(t.conn(), r.cfg.Interval, all), priority, r.out.PseudoHeader}
}

// stopRepeating comes before a goodbye, and before the socket is closed.
func (r *Router) stopRepeating() {
	if r.paced != (paced{}) { // also what was refused: it may be taken up later
		r.deps.Pacer.Stop()
	}
	r.paced = paced{}
}

func (t *ipv4Transport) conn() syscall.RawConn { return connOf(t.raw, t.virtual) }

// connOf is the socket that what a Pacer repeats is sent on.
func connOf(own syscall.RawConn, virtual *virtualSender) syscall.RawConn {
	if virtual != nil {
		return virtual.raw
	}
	return own
}

func (t *ipv4Transport) parcel(msg []byte, to netip.Addr) Parcel {
	if t.virtual != nil {
		return t.virtual.parcel(msg)
	}
	b := make([]byte, unix.SizeofSockaddrInet4)
	binary.NativeEndian.PutUint16(b, unix.AF_INET)
	a := to.As4()
	copy(b[4:], a[:])
	return Parcel{Address: b, Payload: msg}
}

func (t *ipv6Transport) conn() syscall.RawConn { return connOf(t.raw, t.virtual) }

func (t *ipv6Transport) parcel(msg []byte, to netip.Addr) Parcel {
	if t.virtual != nil {
		return t.virtual.parcel(msg)
	}
	b := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	a := to.As16()
	copy(b[8:], a[:])
	binary.NativeEndian.PutUint32(b[24:], zone(to, int(t.index)))
	return Parcel{Address: b, Control: slices.Clone(t.send.control[:t.control]), Payload: msg}
}
