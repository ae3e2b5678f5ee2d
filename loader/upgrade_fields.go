package loader

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// A fieldCopy takes a field of an entry, or several side by side, to its place in
// an entry of another layout. A field that has become wider is little-endian, so
// its low bytes come first.
type fieldCopy struct{ from, to, size uint32 }

// A lostField is a field of an earlier layout that this version has no place for.
type lostField struct {
	name     string
	at, size uint32
}

// in returns what an entry has in the field.
func (f lostField) in(entry []byte) []byte { return entry[f.at:][:f.size] }

// holds tells whether an entry has anything in the field: zero is nothing.
func (f lostField) holds(entry []byte) bool {
	return slices.ContainsFunc(f.in(entry), func(b byte) bool { return b != 0 })
}

// A converter makes entries of this version of those of an earlier one, field by
// field. What the earlier one did not have is zero.
type converter struct {
	fields []fieldCopy
	lost   []lostField
	moved  map[string]string
}

func newConverter(from, to btf.Type, moved map[string]string) (*converter, error) {
	c := &converter{moved: moved}
	if err := c.walk(from, to, 0, 0, ""); err != nil {
		return nil, err
	}
	return c, nil
}

// convert fills in an entry, which is zero.
func (c *converter) convert(from, to []byte) {
	for _, f := range c.fields {
		copy(to[f.to:f.to+f.size], from[f.from:f.from+f.size])
	}
}

func (c *converter) walk(from, to btf.Type, at, place uint32, name string) error {
	from, to = btf.UnderlyingType(from), btf.UnderlyingType(to)
	switch f := from.(type) {
	case *btf.Struct:
		t, ok := to.(*btf.Struct)
		if !ok {
			return fmt.Errorf("%s was a struct and is none", name)
		}
		return c.members(f, t, at, place, name)
	case *btf.Array:
		t, ok := to.(*btf.Array)
		if !ok {
			return fmt.Errorf("%s was an array and is none", name)
		}
		size, err := btf.Sizeof(f.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		newSize, err := btf.Sizeof(t.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if f.Nelems > t.Nelems {
			c.lost = append(c.lost, lostField{
				name: fmt.Sprintf("%s[%d] and what is behind it", name, t.Nelems),
				at:   at + t.Nelems*uint32(size), size: (f.Nelems - t.Nelems) * uint32(size),
			})
		}
		for i := range min(f.Nelems, t.Nelems) {
			element := fmt.Sprintf("%s[%d]", name, i)
			if err := c.walk(f.Type, t.Type, at+i*uint32(size), place+i*uint32(newSize), element); err != nil {
				return err
			}
		}
		return nil
	}
	size, ok := scalar(from)
	newSize, newOK := scalar(to)
	if !ok || !newOK || size > newSize {
		return fmt.Errorf("%s was %v and is %v", name, from, to)
	}
	c.fields = append(c.fields, fieldCopy{at, place, size})
	return nil
}

func (c *converter) members(from, to *btf.Struct, at, place uint32, name string) error {
	for _, m := range from.Members {
		if padding(m) {
			continue
		}
		path := strings.TrimPrefix(name+"."+m.Name, ".")
		wanted := m.Name
		if moved, ok := c.moved[from.Name+"."+m.Name]; ok {
			wanted = moved
		}
		t, offset, err := member(to, wanted)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if t == nil {
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			c.lost = append(c.lost, lostField{path, at + m.Offset.Bytes(), uint32(size)})
			continue
		}
		if err := c.walk(m.Type, t, at+m.Offset.Bytes(), place+offset, path); err != nil {
			return err
		}
	}
	return nil
}

// member finds a member of a struct, or an element of one ("ports[1]"); the type is
// nil where there is none.
func member(s *btf.Struct, name string) (btf.Type, uint32, error) {
	name, index, element := strings.Cut(strings.TrimSuffix(name, "]"), "[")
	for _, m := range s.Members {
		if m.Name != name || padding(m) {
			continue
		}
		if !element {
			return m.Type, m.Offset.Bytes(), nil
		}
		a, ok := btf.UnderlyingType(m.Type).(*btf.Array)
		i, err := strconv.ParseUint(index, 10, 32)
		if !ok || err != nil || uint32(i) >= a.Nelems {
			return nil, 0, fmt.Errorf("%s.%s has no element %s", s.Name, name, index)
		}
		size, err := btf.Sizeof(a.Type)
		return a.Type, m.Offset.Bytes() + uint32(i)*uint32(size), err
	}
	return nil, 0, nil
}

// padding tells members that hold nothing: they are called pad, pad2 and so on.
func padding(m btf.Member) bool {
	digits, ok := strings.CutPrefix(m.Name, "pad")
	return ok && strings.Trim(digits, "0123456789") == ""
}

// scalar returns the size of a number.
func scalar(t btf.Type) (uint32, bool) {
	switch t := t.(type) {
	case *btf.Int:
		return t.Size, true
	case *btf.Enum:
		return t.Size, true
	}
	return 0, false
}

// sameShape tells whether a program that knows entries of type to may share those of
// type from with one that knows these: every field is where it was. What is new
// lies where there was padding.
func sameShape(from, to btf.Type) bool {
	from, to = btf.UnderlyingType(from), btf.UnderlyingType(to)
	switch f := from.(type) {
	case *btf.Struct:
		t, ok := to.(*btf.Struct)
		if !ok || f.Size != t.Size {
			return false
		}
		for _, m := range f.Members {
			if padding(m) {
				continue
			}
			at, offset, err := member(t, m.Name)
			if err != nil || at == nil || offset != m.Offset.Bytes() || !sameShape(m.Type, at) {
				return false
			}
		}
		return true
	case *btf.Array:
		t, ok := to.(*btf.Array)
		return ok && f.Nelems == t.Nelems && sameShape(f.Type, t.Type)
	}
	size, ok := scalar(from)
	newSize, newOK := scalar(to)
	return ok && newOK && size == newSize
}

// entryType returns what the kernel knows of the entries of a map: the struct of
// that name. A number has no name of its own, so it is taken for what it is now.
func entryType(m *ebpf.Map, now btf.Type) (btf.Type, error) {
	s, ok := btf.UnderlyingType(now).(*btf.Struct)
	if !ok {
		if size, err := btf.Sizeof(now); err != nil || uint32(size) != m.ValueSize() {
			return nil, fmt.Errorf("its entries are of %d bytes", m.ValueSize())
		}
		return now, nil
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for its types: %w", err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read its types: %w", err)
	}
	var old *btf.Struct
	if err := spec.TypeByName(s.Name, &old); err != nil {
		return nil, fmt.Errorf("find the type of its entries: %w", err)
	}
	if old.Size != m.ValueSize() {
		return nil, fmt.Errorf("its entries are of %d bytes, and %s of %d", m.ValueSize(), s.Name, old.Size)
	}
	return old, nil
}
