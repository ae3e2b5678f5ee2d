// SPDX-License-Identifier: Apache-2.0

// Package pace sends packets on time, whatever keeps the rest of the program
// from running: garbage collection, a busy machine, a slow system call.
//
// A Pacer keeps a few jobs: messages that go out again and again at an interval. An
// engine does the sending, a process of its own with real-time priority and a
// small heap, or threads of this one where that can't be. It is given sockets and messages,
// and knows nothing of what they mean. It ends with the program that started it.
// Each job has a lease: a program that hangs, and renews nothing, falls silent
// after that time as a dead one does.
package pace

import (
	"encoding/binary"
	"errors"
	"time"
)

// A Parcel is a message as a system call takes it.
type Parcel struct {
	Address []byte // a socket address of the kernel's; empty where the socket is connected
	Control []byte // control messages of the kernel's
	Payload []byte
}

// A Job is what an engine sends.
type Job struct {
	Interval time.Duration
	// Lease is how long it goes on without being renewed.
	Lease time.Duration
	// Now sends the first round at once, not after one interval.
	Now     bool
	Parcels []Parcel
	// Stamp, where it is set, makes each message a new one.
	Stamp *Stamp
}

// A Stamp gives every message a number of its own, and signs it: the last 32
// bytes of the payload become HMAC-SHA256 of all before.
type Stamp struct {
	Key [32]byte
	// At is where the number stands, 8 bytes, big endian. Numbers only grow, over
	// all jobs of a Pacer.
	At int
}

// tagLen is the length of a signature.
const tagLen = 32

// Limits of a request: it is one message on a socket pair.
const (
	maxRequest = 64 << 10
	maxParcels = 255
)

// The operations of a request.
const (
	opSet   = 1 // slot, job; the socket comes along
	opRenew = 2 // slot
	opClear = 3 // slot
)

// A request is what a Pacer asks of its engine.
type request struct {
	op   byte
	slot uint16
	job  Job
	// first is the number before the first that the engine may use.
	first uint64
}

var errRequest = errors.New("malformed request")

// append encodes a request: operation, flags, slot, and for a job its interval,
// lease, first number, stamp and parcels.
func (r *request) append(b []byte) []byte {
	flags := byte(0)
	if r.job.Now {
		flags |= 1
	}
	if r.job.Stamp != nil {
		flags |= 2
	}
	b = append(b, r.op, flags)
	b = binary.BigEndian.AppendUint16(b, r.slot)
	if r.op != opSet {
		return b
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.job.Interval))
	b = binary.BigEndian.AppendUint64(b, uint64(r.job.Lease))
	b = binary.BigEndian.AppendUint64(b, r.first)
	if s := r.job.Stamp; s != nil {
		b = append(b, s.Key[:]...)
		b = binary.BigEndian.AppendUint16(b, uint16(s.At))
	}
	b = append(b, byte(len(r.job.Parcels)))
	for _, p := range r.job.Parcels {
		for _, part := range [][]byte{p.Address, p.Control, p.Payload} {
			b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
			b = append(b, part...)
		}
	}
	return b
}

// A cursor takes a request apart. After the first part that is missing all
// others are empty.
type cursor struct {
	b      []byte
	failed bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.failed = true
		return make([]byte, n)
	}
	part := c.b[:n:n]
	c.b = c.b[n:]
	return part
}

func (c *cursor) number16() int    { return int(binary.BigEndian.Uint16(c.take(2))) }
func (c *cursor) number64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }

// readRequest decodes a request. What it returns shares no memory with b.
func readRequest(b []byte) (r request, err error) {
	c := &cursor{b: append([]byte(nil), b...)}
	head := c.take(2)
	r.op, r.job.Now = head[0], head[1]&1 != 0
	r.slot = uint16(c.number16())
	if r.op == opSet {
		r.job.Interval, r.job.Lease = time.Duration(c.number64()), time.Duration(c.number64())
		r.first = c.number64()
		if head[1]&2 != 0 {
			s := &Stamp{Key: [32]byte(c.take(32))}
			s.At = c.number16()
			r.job.Stamp = s
		}
		for range c.take(1)[0] {
			p := Parcel{Address: c.take(c.number16()), Control: c.take(c.number16()), Payload: c.take(c.number16())}
			r.job.Parcels = append(r.job.Parcels, p)
		}
	}
	if c.failed || len(c.b) > 0 || r.op < opSet || r.op > opClear || r.op == opSet && !r.job.valid() {
		return request{}, errRequest
	}
	return r, nil
}

// valid reports whether an engine can do a job.
func (j *Job) valid() bool {
	if j.Interval < time.Millisecond || j.Lease < j.Interval || len(j.Parcels) == 0 || len(j.Parcels) > maxParcels {
		return false
	}
	for _, p := range j.Parcels {
		if len(p.Payload) == 0 || j.Stamp != nil && (j.Stamp.At < 0 || j.Stamp.At+8+tagLen > len(p.Payload)) {
			return false
		}
	}
	return true
}

// A report is what an engine says of a job: how often sending has failed, and why the
// last time; and by how many microseconds it was late at worst, where that matters.
type report struct {
	slot  uint16
	count uint32
	errno uint32
	late  uint32
}

const reportLen = 14

func (r report) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, r.slot)
	for _, n := range []uint32{r.count, r.errno, r.late} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func readReport(b []byte) (report, bool) {
	if len(b) != reportLen {
		return report{}, false
	}
	word := func(at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	return report{binary.BigEndian.Uint16(b), word(2), word(6), word(10)}, true
}
