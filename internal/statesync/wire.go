// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// The versions of the protocol that this program speaks. A program speaks two at
// least once there is a second one, so that nodes are upgraded one by one. What a
// later version adds, it appends: to a record, to a body, or as another kind of
// message; an earlier one skips it.
const (
	oldestVersion = 1
	newestVersion = 1
)

// A message is, in network byte order:
//
//	0 length of all that follows, 4 bytes
//	4 kind, 1
//	5 sequence, 8: from 1, one more with each message of this direction
//	13 body
const (
	lengthLen  = 4
	headerLen  = lengthLen + 1 + 8
	maxMessage = 256 << 10 // with its header
)

// A kind is what a message is for.
type kind uint8

// The dialler's messages, and those of the listener from kindAck on. Hello, services
// and bye are of both.
const (
	kindHello         kind = 1  // first: versions, run, name
	kindServices      kind = 2  // in parts: the node's services
	kindBye           kind = 3  // last: why the connection ends
	kindPing          kind = 4  // nothing
	kindFlows         kind = 5  // records of flows
	kindSnapshotBegin kind = 6  // from here on all flows are mentioned
	kindSnapshotEnd   kind = 7  // what was not mentioned is over
	kindTable         kind = 8  // in parts: a service's table
	kindOverrides     kind = 9  // in parts: operators' changes
	kindDigests       kind = 10 // of all flows, by bucket
	kindMendBegin     kind = 11 // as snapshotBegin, of some buckets
	kindMendEnd       kind = 12
	kindAck           kind = 13 // the last sequence that was applied
	kindRefused       kind = 14 // a sequence that could not be, and why
	kindWant          kind = 15 // buckets to be mended
)

func (k kind) String() string {
	names := [...]string{
		kindHello: "hello", kindServices: "services", kindBye: "bye", kindPing: "ping", kindFlows: "flows",
		kindSnapshotBegin: "snapshot begin", kindSnapshotEnd: "snapshot end", kindTable: "table",
		kindOverrides: "overrides", kindDigests: "digests", kindMendBegin: "mend begin", kindMendEnd: "mend end",
		kindAck: "ack", kindRefused: "refused", kindWant: "want",
	}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// What is wrong with a message; each error of a decoder wraps one of these.
var (
	errMalformed = errors.New("malformed message")
	errOversized = errors.New("oversized message")
)

// beginMessage appends a message's header. endMessage, with where that begins, goes
// behind its body.
func beginMessage(b []byte, k kind, sequence uint64) []byte {
	b = append(b, 0, 0, 0, 0, byte(k))
	return binary.BigEndian.AppendUint64(b, sequence)
}

func endMessage(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-lengthLen))
	return b
}

// setSequence numbers a message after all.
func setSequence(message []byte, sequence uint64) {
	binary.BigEndian.PutUint64(message[lengthLen+1:], sequence)
}

// A messageReader reads the messages of one direction.
type messageReader struct {
	r    *bufio.Reader
	head [headerLen]byte
	body []byte
	last uint64 // sequence of the last message
}

func newMessageReader(r io.Reader) *messageReader {
	return &messageReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// read returns the next message. Its body is valid until the next call.
func (m *messageReader) read() (kind, []byte, error) {
	if _, err := io.ReadFull(m.r, m.head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(m.head[:])
	k, sequence := kind(m.head[lengthLen]), binary.BigEndian.Uint64(m.head[lengthLen+1:])
	switch {
	case length > maxMessage-lengthLen:
		return 0, nil, fmt.Errorf("%w: %v of %d bytes, %d is the most", errOversized, k, uint64(length)+lengthLen, maxMessage)
	case length < headerLen-lengthLen:
		return 0, nil, fmt.Errorf("%w: a length of %d bytes, less than a header's", errMalformed, length)
	case sequence != m.last+1:
		return 0, nil, fmt.Errorf("%w: %v has sequence %d, behind %d", errMalformed, k, sequence, m.last)
	}
	m.last = sequence
	n := int(length) - (headerLen - lengthLen)
	if cap(m.body) < n {
		m.body = make([]byte, n)
	}
	m.body = m.body[:n]
	if _, err := io.ReadFull(m.r, m.body); err != nil {
		return 0, nil, fmt.Errorf("%v of %d bytes is cut short: %w", k, length+lengthLen, err)
	}
	return k, m.body, nil
}

// A cursor reads the fields of a body. The first field that is not there, or is not
// as it must be, is its error; from then on everything is zero.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
	}
	c.b = nil
}

func (c *cursor) take(n int, what string) []byte {
	if n > len(c.b) {
		c.fail("%s: %d bytes, and %d are left", what, n, len(c.b))
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u8(what string) uint8 {
	if b := c.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16(what string) uint16 {
	if b := c.take(2, what); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32(what string) uint32 {
	if b := c.take(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64(what string) uint64 {
	if b := c.take(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// uvarint reads a number in the shortest form of encoding/binary's Uvarint, no
// greater than most.
func (c *cursor) uvarint(most uint64, what string) uint64 {
	v, n := binary.Uvarint(c.b)
	switch {
	case n <= 0:
		c.fail("%s: no number", what)
		return 0
	case n > 1 && n != (bits.Len64(v)+6)/7:
		c.fail("%s: a number longer than it need be", what)
		return 0
	case v > most:
		c.fail("%s: %d, and %d is the most", what, v, most)
		return 0
	}
	c.b = c.b[n:]
	return v
}

// record reads a length, and returns what has it. What of it is not read in the end is
// of a later version.
func (c *cursor) record(what string) cursor {
	n := c.uvarint(maxMessage, what)
	return cursor{b: c.take(int(n), what), err: c.err}
}

// text reads a text of up to 255 bytes.
func (c *cursor) text(what string) string { return string(c.take(int(c.u8(what)), what)) }

// appendText appends what text reads; what is longer is cut.
func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), 255)]
	return append(append(b, byte(len(s))), s...)
}

// appendRecord appends what append appends behind its length, as record reads it.
func appendRecord(b []byte, add func([]byte) []byte) []byte {
	start := len(b)
	b = add(append(b, 0))
	return closeRecord(b, start)
}

// closeRecord writes the length of a record for which one byte was left at start.
func closeRecord(b []byte, start int) []byte {
	n := len(b) - start - 1
	if n < 0x80 {
		b[start] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	more := binary.PutUvarint(length[:], uint64(n)) - 1
	b = append(b, length[:more]...) // room
	copy(b[start+1+more:], b[start+1:start+1+n])
	copy(b[start:], length[:more+1])
	return b
}
