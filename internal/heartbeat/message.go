// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
)

// An Epoch names one run of a daemon: random bytes, so that no two runs of any
// node have the same one.
type Epoch [16]byte

func (e Epoch) isZero() bool { return e == Epoch{} }

// A ticket is what a run wants to see in the heartbeats of one path: random bytes,
// which it gives to the peer there. A run may have several paths to another one, and
// numbers of heartbeats only grow on each.
type ticket [16]byte

func newTicket() (t ticket) {
	_, _ = rand.Read(t[:]) // never fails (crypto/rand)
	return t
}

// A kind is what a message is for.
type kind uint8

const (
	kindChallenge kind = iota + 1 // who are you? nonce, ticket, name
	kindResponse                  // it is me, now: the challenge's nonce, ticket, name
	kindBeat                      // instances
	kindHello                     // on a connection: nonce
	kindWelcome                   // the hello's nonce, another one
	kindConfirm                   // the welcome's nonce
	kindBye                       // the end is meant
)

// The layout of a message, big endian:
//
//	 0 magic, 4 bytes; version, 1; kind, 1; zero, 2
//	 8 epoch of the sender, 16
//	24 epoch of the receiver, 16; zero where the sender does not know it; of beats
//	   the receiver's ticket
//	40 counter, 8; of beats
//	48 body
//	   HMAC-SHA256 of all before, 32
//
// A message counts for one receiver in one of its runs, and a beat on one of its
// paths, so nothing that was recorded is of use elsewhere or later.
const (
	magic      = "slhb"
	version    = 1
	headerLen  = 48
	counterAt  = 40
	tagLen     = sha256.Size
	nonceLen   = 16
	entryLen   = 8
	maxName    = 63
	maxEntries = 150
	// maxMessage fits into one frame of Ethernet behind any IP header.
	maxMessage = headerLen + 4 + maxEntries*entryLen + tagLen
)

// A message is one that has been read, and is authentic where open says so.
type message struct {
	kind     kind
	from, to Epoch
	counter  uint64
	body     []byte // valid as long as what it was read from
}

// The reasons why a message does not count.
var (
	errMalformed = errors.New("malformed")
	errForged    = errors.New("signed with another key")
)

// A signer signs and checks messages with one key. It does not allocate. It is
// not safe for concurrent use.
type signer struct {
	mac hash.Hash
	sum [tagLen]byte
}

func newSigner(k key.Key) *signer { return &signer{mac: hmac.New(sha256.New, k[:])} }

func (s *signer) tag(b []byte) []byte {
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(s.sum[:0])
}

// appendMessage appends a message with its tag.
func (s *signer) appendMessage(b []byte, m message) []byte {
	start := len(b)
	b = appendUnsigned(b, m)
	return append(b, s.tag(b[start:])...)
}

func appendUnsigned(b []byte, m message) []byte {
	b = append(b, magic...)
	b = append(b, version, byte(m.kind), 0, 0)
	b = append(b, m.from[:]...)
	b = append(b, m.to[:]...)
	b = binary.BigEndian.AppendUint64(b, m.counter)
	return append(b, m.body...)
}

// read takes a message apart. It says nothing of who has sent it.
func read(b []byte) (message, error) {
	if len(b) < headerLen+tagLen || len(b) > maxMessage || string(b[:4]) != magic || b[4] != version || b[6] != 0 || b[7] != 0 {
		return message{}, errMalformed
	}
	m := message{
		kind: kind(b[5]), from: Epoch(b[8:24]), to: Epoch(b[24:40]),
		counter: binary.BigEndian.Uint64(b[counterAt:]), body: b[headerLen : len(b)-tagLen],
	}
	if m.kind == 0 || m.kind > kindBye || m.from.isZero() {
		return message{}, errMalformed
	}
	return m, nil
}

// open reads a message and checks that one of the keys has signed it. It returns
// which.
func open(b []byte, keys []*signer) (message, int, error) {
	m, err := read(b)
	if err != nil {
		return m, 0, err
	}
	signed, tag := b[:len(b)-tagLen], b[len(b)-tagLen:]
	for i, k := range keys {
		if hmac.Equal(k.tag(signed), tag) {
			return m, i, nil
		}
	}
	return m, 0, errForged
}

// An Instance names a virtual router on every node.
type Instance struct {
	VRID   uint8
	IPv6   bool
	Digest uint32 // of its addresses: others are another virtual router
}

// An entry is what a beat says of one instance.
type entry struct {
	Instance
	state    uint8
	priority uint8
}

// appendBeat appends the body of a beat: the sender's interval in microseconds, 4
// bytes, then for each instance VRID, family and state, priority, zero, digest.
func appendBeat(b []byte, intervalMicros uint32, entries []entry) []byte {
	b = binary.BigEndian.AppendUint32(b, intervalMicros)
	for _, e := range entries {
		flags := e.state
		if e.IPv6 {
			flags |= 0x80
		}
		b = append(b, e.VRID, flags, e.priority, 0)
		b = binary.BigEndian.AppendUint32(b, e.Digest)
	}
	return b
}

// beatInterval is the sender's interval.
func beatInterval(body []byte) time.Duration {
	if len(body) < 4 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint32(body)) * time.Microsecond
}

// eachEntry calls f for each instance of a beat's body. It reports whether the
// body is well formed; if not, f was not called.
func eachEntry(body []byte, f func(entry)) bool {
	if len(body) < 4 || (len(body)-4)%entryLen != 0 {
		return false
	}
	all := body[4:]
	for b := all; len(b) > 0; b = b[entryLen:] {
		if b[3] != 0 {
			return false
		}
	}
	for b := all; len(b) > 0; b = b[entryLen:] {
		f(entry{Instance{b[0], b[1]&0x80 != 0, binary.BigEndian.Uint32(b[4:])}, b[1] & 0x7f, b[2]})
	}
	return true
}

// An introduction is the body of a challenge or response.
type introduction struct {
	nonce  [nonceLen]byte
	ticket ticket // what the sender wants to see
	name   string // of the sender
}

// inShort is a node's name as messages have it.
func inShort(name string) string { return name[:min(len(name), maxName)] }

func (i introduction) append(b []byte) []byte {
	b = append(b, i.nonce[:]...)
	b = append(b, i.ticket[:]...)
	return append(b, inShort(i.name)...)
}

func readIntroduction(body []byte) (i introduction, ok bool) {
	const name = len(i.nonce) + len(i.ticket)
	if len(body) < name || len(body) > name+maxName {
		return i, false
	}
	return introduction{[nonceLen]byte(body), ticket(body[nonceLen:]), string(body[name:])}, true
}
