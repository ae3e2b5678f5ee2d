// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// maxSlots is how many slots a table may have.
const maxSlots = 1 << 20

// A table, in parts, is:
//
//	service, a text; term and number of its epoch, 8 bytes each
//	backends, their count first: endpoint, failed (bit 0), leaving (1), each a record
//	slots, 4 bytes; then each one's owner, in 1 byte if there are up to 255
//	backends, else in 2
//	the slots that have more than an owner, their count first: how many slots since the
//	last one, previous owner, phase, seconds left
const (
	flagFailed  = 1 << 0
	flagLeaving = 1 << 1
)

func checkTable(t *lb.TableState) error {
	switch {
	case t.Service == "" || len(t.Service) > 255:
		return fmt.Errorf("table of service %q", t.Service)
	case len(t.Backends) > math.MaxUint16 || len(t.Slots) > maxSlots:
		return fmt.Errorf("table of %s: %d backends, %d slots", t.Service, len(t.Backends), len(t.Slots))
	}
	for _, k := range t.Backends {
		if !k.Address.IsValid() || k.Address.Addr().Zone() != "" {
			return fmt.Errorf("table of %s: backend %v", t.Service, k.Address)
		}
	}
	for i, s := range t.Slots {
		if err := checkSlot(s, len(t.Backends)); err != nil {
			return fmt.Errorf("table of %s: slot %d: %w", t.Service, i, err)
		}
	}
	return nil
}

func checkSlot(s lb.Slot, backends int) error {
	switch {
	case int(s.Owner) > backends || int(s.Previous) > backends:
		return fmt.Errorf("owner %d and previous owner %d of %d backends", s.Owner, s.Previous, backends)
	case s.Phase > lb.SlotSettling:
		return fmt.Errorf("phase %d", s.Phase)
	}
	return nil
}

func appendEpoch(b []byte, e lb.Epoch) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, e.Term), e.Number)
}

func (c *cursor) epoch() lb.Epoch { return lb.Epoch{Term: c.u64("term"), Number: c.u64("number")} }

// A TableError is why a peer does not take a table.
type TableError struct {
	Peer    string // who; empty from a Sink
	Service string
	Why     string
	Held    lb.Epoch // of the one that is in force there
	Later   bool     // it may be taken when it is published again
}

func (e *TableError) Error() string {
	if e.Peer == "" {
		return fmt.Sprintf("the table of %s is refused: %s", e.Service, e.Why)
	}
	return fmt.Sprintf("%s refuses the table of %s: %s", e.Peer, e.Service, e.Why)
}

// seconds is a duration as it is sent.
func seconds(d time.Duration) uint64 { return uint64(min(max(d/time.Second, 0), math.MaxUint32)) }

func appendIndex(b []byte, i uint16, wide bool) []byte {
	if wide {
		return binary.BigEndian.AppendUint16(b, i)
	}
	return append(b, byte(i))
}

func (c *cursor) index(wide bool, what string) uint16 {
	if wide {
		return c.u16(what)
	}
	return uint16(c.u8(what))
}

// appendTable appends a table that checkTable has nothing against.
func appendTable(b []byte, t *lb.TableState) []byte {
	b = appendText(b, t.Service)
	b = appendEpoch(b, t.Epoch)
	b = binary.AppendUvarint(b, uint64(len(t.Backends)))
	for _, k := range t.Backends {
		b = appendRecord(b, func(b []byte) []byte {
			var flags byte
			if k.Failed {
				flags |= flagFailed
			}
			if k.Leaving {
				flags |= flagLeaving
			}
			return append(appendEndpoint(b, k.Address), flags)
		})
	}
	wide := len(t.Backends) > math.MaxUint8
	b = binary.BigEndian.AppendUint32(b, uint32(len(t.Slots)))
	more := 0
	for _, s := range t.Slots {
		b = appendIndex(b, s.Owner, wide)
		if !plain(s) {
			more++
		}
	}
	b = binary.AppendUvarint(b, uint64(more))
	next := 0
	for i, s := range t.Slots {
		if plain(s) {
			continue
		}
		b = binary.AppendUvarint(b, uint64(i-next))
		b = append(appendIndex(b, s.Previous, wide), byte(s.Phase))
		b = binary.AppendUvarint(b, seconds(s.Left))
		next = i + 1
	}
	return b
}

// plain reports whether a slot has no more than an owner.
func plain(s lb.Slot) bool { return s.Previous == 0 && s.Phase == lb.SlotClean && seconds(s.Left) == 0 }

// readTable returns a table, and what of it is of a later version.
func readTable(whole []byte) (t lb.TableState, tail []byte, err error) {
	c := cursor{b: whole}
	t.Service = c.text("service")
	t.Epoch = c.epoch()
	backends := int(c.uvarint(math.MaxUint16, "backends"))
	for range backends {
		r := c.record("backend")
		k := lb.TableBackend{Address: r.endpoint("backend")}
		flags := r.u8("flags of a backend")
		k.Failed, k.Leaving = flags&flagFailed != 0, flags&flagLeaving != 0
		if r.err == nil && flags&^(flagFailed|flagLeaving) != 0 {
			r.fail("flags %#x of a backend", flags)
		}
		if c.err = r.err; c.err != nil {
			break
		}
		t.Backends = append(t.Backends, k)
	}
	readSlots(&c, &t)
	if c.err == nil {
		if err := checkTable(&t); err != nil {
			c.fail("%v", err)
		}
	}
	if c.err != nil {
		return lb.TableState{}, nil, fmt.Errorf("table of %q: %w", t.Service, c.err)
	}
	return t, c.b, nil
}

func readSlots(c *cursor, t *lb.TableState) {
	wide, width := len(t.Backends) > math.MaxUint8, 1
	if wide {
		width = 2
	}
	n := int(c.u32("slots"))
	if n > maxSlots || n*width > len(c.b) {
		c.fail("%d slots in %d bytes", n, len(c.b))
		return
	}
	t.Slots = make([]lb.Slot, n)
	for i := range t.Slots {
		t.Slots[i].Owner = c.index(wide, "owner")
	}
	next := uint64(0)
	for range c.uvarint(maxSlots, "slots with more") {
		at := next + c.uvarint(maxSlots, "place of a slot")
		if c.err == nil && at >= uint64(n) {
			c.fail("slot %d of %d", at, n)
		}
		if c.err != nil {
			return
		}
		s := &t.Slots[at]
		s.Previous = c.index(wide, "previous owner")
		s.Phase = lb.SlotPhase(c.u8("phase"))
		s.Left = time.Duration(c.uvarint(math.MaxUint32, "seconds left")) * time.Second
		if c.err == nil && plain(*s) {
			c.fail("slot %d has no more than an owner", at)
		}
		next = at + 1
	}
}

// An override's bounds.
const (
	maxOverrides     = 8192
	maxOverrideValue = 1024
)

// A Stamp says when an override was made, and on which node. The later one wins, and
// of two of one moment the one of the greater name.
type Stamp struct {
	Time int64 // ns since 1970
	Node string
}

// Less tells whether s is older than o.
func (s Stamp) Less(o Stamp) bool { return s.Time < o.Time || s.Time == o.Time && s.Node < o.Node }

// An Override is an operator's change, as nodes tell each other of it: what Key names
// has Value since Stamp. An empty Value is a change that was taken back; it must be
// kept as the others are, or an older one would come back from another node.
type Override struct {
	Key   string // up to 255 bytes
	Stamp Stamp  // zero, to PublishOverrides: now, by this node
	Value []byte // up to 1,024 bytes
}

var errOverride = errors.New("no override")

func checkOverride(o Override) error {
	if o.Key == "" || len(o.Key) > 255 || len(o.Value) > maxOverrideValue || o.Stamp.Node == "" || len(o.Stamp.Node) > maxName || o.Stamp.Time < 0 {
		return fmt.Errorf("%w: key %q, stamp %d of %q, value of %d bytes", errOverride, o.Key, o.Stamp.Time, o.Stamp.Node, len(o.Value))
	}
	return nil
}
