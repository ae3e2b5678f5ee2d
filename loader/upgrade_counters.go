package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// A counterCopy adds what an old map has counted to a new one, all that is new each
// time. The new one may count meanwhile: what the program counts in an entry in the
// microseconds between reading and writing it is lost, which is all.
type counterCopy struct {
	old, new *ebpf.Map
	fields   []fieldCopy
	place    func(i uint32) (uint32, bool) // of an old entry; false: there is none
	copied   map[uint32][]byte             // of each entry, with all CPUs
	lost     uint64                        // what was counted in entries without a place
	gone     []lostField
	goneSums []uint64 // what was counted in those
	name     string   // of the map
}

func (u *upgrade) newCounterCopy(name string, old, now *ebpf.Map, value btf.Type) (*counterCopy, error) {
	from, err := entryType(old, value)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", name, err)
	}
	conv, err := newConverter(from, value, nil)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", name, err)
	}
	for _, f := range conv.fields {
		if f.size != 8 {
			return nil, fmt.Errorf("take over %s: a counter has %d bytes", name, f.size)
		}
	}
	for _, f := range conv.lost {
		if f.size%8 != 0 {
			return nil, fmt.Errorf("take over %s: counter %s has %d bytes", name, f.name, f.size)
		}
	}
	c := &counterCopy{
		old: old, new: now, fields: conv.fields, copied: map[uint32][]byte{},
		gone: conv.lost, goneSums: make([]uint64, len(conv.lost)), name: name,
	}
	c.place = func(i uint32) (uint32, bool) { return i, i < now.MaxEntries() }
	if name == "outcomes" {
		numbers := map[string]uint32{}
		for o, text := range outcomeNames {
			numbers[text] = uint32(o)
		}
		c.place = func(i uint32) (uint32, bool) {
			if i >= uint32(len(u.layout.outcomes)) {
				return 0, false
			}
			n, ok := numbers[u.layout.outcomes[i]]
			return n, ok
		}
	}
	return c, nil
}

func (c *counterCopy) copy() error {
	for i := range c.old.MaxEntries() {
		now, err := c.old.LookupBytes(i)
		if err != nil {
			return fmt.Errorf("read entry %d of %v: %w", i, c.old, err)
		}
		before := c.copied[i]
		if before == nil {
			before = make([]byte, len(now))
		}
		if bytes.Equal(now, before) {
			continue
		}
		if err := c.add(i, before, now); err != nil {
			return err
		}
		c.copied[i] = now
	}
	return nil
}

func (c *counterCopy) add(i uint32, before, now []byte) error {
	place, ok := c.place(i)
	if !ok {
		c.lost += counted(now) - counted(before)
		return nil
	}
	sum, err := c.new.LookupBytes(place)
	if err != nil {
		return fmt.Errorf("read entry %d of %v: %w", place, c.new, err)
	}
	// Both have one value for each CPU, at multiples of 8 bytes.
	from, to := int(c.old.ValueSize()+7)&^7, int(c.new.ValueSize()+7)&^7
	values := make([][]byte, len(sum)/to)
	for cpu := range values {
		for n, f := range c.gone {
			c.goneSums[n] += counted(f.in(now[cpu*from:])) - counted(f.in(before[cpu*from:]))
		}
		for _, f := range c.fields {
			at := sum[cpu*to+int(f.to):]
			old := cpu*from + int(f.from)
			added := binary.NativeEndian.Uint64(now[old:]) - binary.NativeEndian.Uint64(before[old:])
			binary.NativeEndian.PutUint64(at, binary.NativeEndian.Uint64(at)+added)
		}
		values[cpu] = sum[cpu*to:][:c.new.ValueSize()]
	}
	if err := c.new.Put(place, values); err != nil {
		return fmt.Errorf("write entry %d of %v: %w", place, c.new, err)
	}
	return nil
}

// notKept tells what was counted and has no place any more.
func (c *counterCopy) notKept() []string {
	var all []string
	if c.lost > 0 {
		all = append(all, fmt.Sprintf("%d packets that were counted by an outcome that there is no more", c.lost))
	}
	for n, f := range c.gone {
		if c.goneSums[n] > 0 {
			all = append(all, fmt.Sprintf("%d of counter %s of %s", c.goneSums[n], f.name, c.name))
		}
	}
	return all
}

// counted sums up counters of 64 bits.
func counted(words []byte) uint64 {
	sum := uint64(0)
	for at := 0; at < len(words); at += 8 {
		sum += binary.NativeEndian.Uint64(words[at:])
	}
	return sum
}
