// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// maxName is how long the name of a node may be.
const maxName = 63

// A runID names one run of a daemon: random bytes.
type runID [16]byte

// A hello is the first message of each side. Its layout is the same in all versions.
type hello struct {
	oldest, newest uint8 // versions that the sender speaks
	run            runID
	name           string
	tail           []byte // of a later version
}

func (h *hello) append(b []byte) []byte {
	b = append(b, h.oldest, h.newest)
	b = append(b, h.run[:]...)
	return append(appendText(b, h.name), h.tail...)
}

func readHello(body []byte) (h hello, err error) {
	c := cursor{b: body}
	h.oldest, h.newest = c.u8("oldest version"), c.u8("newest version")
	copy(h.run[:], c.take(len(h.run), "run"))
	h.name = c.text("name")
	h.tail = c.b
	if c.err == nil && (h.oldest == 0 || h.oldest > h.newest || h.name == "" || len(h.name) > maxName) {
		c.fail("hello of %q, of versions %d to %d", h.name, h.oldest, h.newest)
	}
	return h, c.err
}

// common is the version that two nodes speak with each other: the highest that both
// know.
func common(a, b hello) (uint8, error) {
	v := min(a.newest, b.newest)
	if v < max(a.oldest, b.oldest) {
		return 0, fmt.Errorf("%w: %q speaks versions %d to %d, %q %d to %d",
			errVersions, a.name, a.oldest, a.newest, b.name, b.oldest, b.newest)
	}
	return v, nil
}

// maxWhole bounds what is put together from parts: the largest table fits.
const maxWhole = 12 << 20

// parts cuts what may be longer than a message into bodies: a byte that is 1 if
// others follow, then a piece.
func parts(whole []byte, each func(body func([]byte) []byte, last bool) error) error {
	for {
		piece, more := whole[:min(len(whole), batchBytes)], byte(0)
		if whole = whole[len(piece):]; len(whole) > 0 {
			more = 1
		}
		err := each(func(b []byte) []byte { return append(append(b, more), piece...) }, more == 0)
		if err != nil || more == 0 {
			return err
		}
	}
}

// An assembler puts parts together. The zero value is ready.
type assembler struct{ whole []byte }

// add adds a part. It returns the whole with the last one, valid until the next call.
func (a *assembler) add(body []byte) (whole []byte, complete bool, err error) {
	c := cursor{b: body}
	more := c.u8("part")
	if more > 1 {
		c.fail("part with mark %d", more)
	}
	if c.err != nil {
		return nil, false, c.err
	}
	if len(a.whole)+len(c.b) > maxWhole {
		return nil, false, fmt.Errorf("%w: parts of more than %d bytes together", errOversized, maxWhole)
	}
	a.whole = append(a.whole, c.b...)
	if more == 1 {
		return nil, false, nil
	}
	whole = a.whole
	a.whole = a.whole[:0]
	if cap(a.whole) > maxMessage {
		a.whole = nil
	}
	return whole, true, nil
}

func appendServices(b []byte, all []ServiceDigest) []byte {
	for _, s := range all {
		b = appendRecord(b, func(b []byte) []byte { return binary.BigEndian.AppendUint64(appendText(b, s.Name), s.Digest) })
	}
	return b
}

func readServices(whole []byte) (all []ServiceDigest, err error) {
	c := cursor{b: whole}
	for len(c.b) > 0 {
		r := c.record("service")
		s := ServiceDigest{Name: r.text("service's name"), Digest: r.u64("service's digest")}
		if r.err != nil {
			return nil, r.err
		}
		all = append(all, s)
	}
	return all, c.err
}

func appendOverrides(b []byte, all []Override) []byte {
	for _, o := range all {
		b = appendRecord(b, func(b []byte) []byte {
			b = appendText(b, o.Key)
			b = binary.BigEndian.AppendUint64(b, uint64(o.Stamp.Time))
			b = appendText(b, o.Stamp.Node)
			return append(binary.BigEndian.AppendUint16(b, uint16(len(o.Value))), o.Value...)
		})
	}
	return b
}

func readOverrides(whole []byte) (all []Override, err error) {
	c := cursor{b: whole}
	for len(c.b) > 0 {
		r := c.record("override")
		o := Override{Key: r.text("override's key")}
		o.Stamp = Stamp{Time: int64(r.u64("override's time")), Node: r.text("override's node")}
		if v := r.take(int(r.u16("override's value")), "override's value"); len(v) > 0 {
			o.Value = append([]byte(nil), v...)
		}
		if r.err != nil {
			return nil, r.err
		}
		if err := checkOverride(o); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
		all = append(all, o)
	}
	return all, c.err
}

// maxOwned is how many VIPs a node may own.
const maxOwned = 8192

func appendOwned(b []byte, owned []netip.Addr) []byte {
	b = binary.AppendUvarint(b, uint64(len(owned)))
	for _, a := range owned {
		b = appendHost(b, a)
	}
	return b
}

func readOwned(body []byte) (owned []netip.Addr, err error) {
	c := cursor{b: body}
	for range c.uvarint(maxOwned, "owned VIPs") {
		a := c.host("owned VIP")
		if c.err != nil {
			break
		}
		owned = append(owned, a)
	}
	return owned, c.err
}

// An ack says how far the listener has come.
type ack struct {
	sequence uint64 // everything up to here is applied
	refused  uint64 // how often the listener had no use for a flow of this connection
	refusing uint64 // flows that it has no use for, and that are not over
	tail     []byte
}

func (a *ack) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, a.sequence)
	b = binary.BigEndian.AppendUint64(b, a.refused)
	return append(binary.BigEndian.AppendUint64(b, a.refusing), a.tail...)
}

func readAck(body []byte) (a ack, err error) {
	c := cursor{b: body}
	a.sequence, a.refused, a.refusing = c.u64("sequence"), c.u64("refused"), c.u64("refusing")
	a.tail = c.b
	return a, c.err
}

// A complaint is why something was not applied, or why a connection ends.
type complaint struct {
	sequence uint64
	reason   Reason
	text     string
	held     lb.Epoch // of a table: of the one that is in force
	later    bool     // of a table: it may be taken later
	tail     []byte
}

func (r *complaint) append(b []byte) []byte {
	b = appendText(binary.BigEndian.AppendUint64(b, r.sequence), string(r.reason))
	b = appendEpoch(appendText(b, r.text), r.held)
	later := byte(0)
	if r.later {
		later = 1
	}
	return append(append(b, later), r.tail...)
}

func readComplaint(body []byte) (r complaint, err error) {
	c := cursor{b: body}
	r.sequence = c.u64("sequence")
	r.reason = Reason(c.text("reason"))
	r.text = c.text("text of a reason")
	r.held = c.epoch()
	later := c.u8("whether it may be taken later")
	if r.later = later == 1; later > 1 {
		c.fail("a refusal for later marked %d", later)
	}
	r.tail = c.b
	return r, c.err
}

// The number of buckets is a power of two.
const (
	minBucketBits = 6
	maxBucketBits = 14
)

// A bucketing sorts flows into buckets: by a hash with a seed, so that nobody chooses
// ports that fall into one.
type bucketing struct {
	seed uint64
	bits uint8
}

func (k bucketing) count() int { return 1 << k.bits }

// of is the bucket of a flow by the hash of its identity.
func (k bucketing) of(hash uint64) int { return int(hash >> (64 - k.bits)) }

func (k bucketing) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(b, k.seed), k.bits)
}

func (c *cursor) bucketing() bucketing {
	k := bucketing{c.u64("seed"), c.u8("buckets")}
	if c.err == nil && (k.bits < minBucketBits || k.bits > maxBucketBits) {
		c.fail("2^%d buckets", k.bits)
	}
	return k
}

// A bitset has a bit for each bucket.
type bitset []byte

func newBitset(n int) bitset    { return make(bitset, (n+7)/8) }
func (s bitset) set(i int)      { s[i/8] |= 1 << (i % 8) }
func (s bitset) has(i int) bool { return s[i/8]&(1<<(i%8)) != 0 }

// digests are what a node has, by bucket.
type digests struct {
	bucketing
	busy bitset   // buckets of which something may be on its way
	sums []uint64 // of the hashes of their flows
	tail []byte
}

func (d *digests) append(b []byte) []byte {
	b = append(d.bucketing.append(b), d.busy...)
	for _, s := range d.sums {
		b = binary.BigEndian.AppendUint64(b, s)
	}
	return append(b, d.tail...)
}

func readDigests(body []byte) (d digests, err error) {
	c := cursor{b: body}
	d.bucketing = c.bucketing()
	if c.err != nil {
		return digests{}, c.err
	}
	d.busy = append(bitset(nil), c.take(d.count()/8, "marks of buckets")...)
	sums := c.take(8*d.count(), "sums of buckets")
	if c.err != nil {
		return digests{}, c.err
	}
	d.sums = make([]uint64, d.count())
	for i := range d.sums {
		d.sums[i] = binary.BigEndian.Uint64(sums[8*i:])
	}
	d.tail = c.b
	return d, nil
}

// A selection is some of the buckets: what a listener wants to be mended, and what
// the dialler mends.
type selection struct {
	bucketing
	chosen bitset
	tail   []byte
}

func (s *selection) append(b []byte) []byte {
	return append(append(s.bucketing.append(b), s.chosen...), s.tail...)
}

func readSelection(body []byte) (s selection, err error) {
	c := cursor{b: body}
	s.bucketing = c.bucketing()
	if c.err != nil {
		return selection{}, c.err
	}
	s.chosen = append(bitset(nil), c.take(s.count()/8, "chosen buckets")...)
	s.tail = c.b
	if c.err != nil {
		return selection{}, c.err
	}
	return s, nil
}
