package loader

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// Types of entries for tests.
var (
	u8  = &btf.Int{Name: "u8", Size: 1}
	u16 = &btf.Int{Name: "u16", Size: 2}
	u32 = &btf.Typedef{Name: "__u32", Type: &btf.Int{Name: "unsigned int", Size: 4}}
)

// structOf makes a struct of a size from members, each at the next offset in bytes.
func structOf(size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: "entry", Size: size, Members: members}
}

func at(offset uint32, name string, t btf.Type) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: btf.Bits(offset * 8)}
}

func array(n uint32, t btf.Type) *btf.Array { return &btf.Array{Index: u32, Type: t, Nelems: n} }

func TestConverter(t *testing.T) {
	inner := func(names ...string) *btf.Struct {
		s := &btf.Struct{Name: "inner", Size: 4}
		for i, name := range names {
			s.Members = append(s.Members, at(uint32(2*i), name, u16))
		}
		return s
	}
	for _, tc := range []struct {
		name     string
		from, to *btf.Struct
		moved    map[string]string
		in, want string
		lost     []string
		err      string
	}{
		{"fields change places", structOf(8, at(0, "a", u32), at(4, "b", u32)), structOf(8, at(0, "b", u32), at(4, "a", u32)),
			nil, "aaaabbbb", "bbbbaaaa", nil, ""},
		{"a new field is zero", structOf(4, at(0, "a", u32)), structOf(8, at(0, "new", u32), at(4, "a", u32)),
			nil, "aaaa", "\x00\x00\x00\x00aaaa", nil, ""},
		{"a field is gone", structOf(8, at(0, "a", u32), at(4, "b", u32)), structOf(4, at(0, "b", u32)),
			nil, "aaaabbbb", "bbbb", []string{"a=aaaa"}, ""},
		{"padding is nothing", structOf(8, at(0, "pad", u32), at(4, "pad2", u32)), structOf(8, at(0, "pad", u32), at(4, "pad2", u32)),
			nil, "aaaabbbb", "\x00\x00\x00\x00\x00\x00\x00\x00", nil, ""},
		{"a name that begins like padding", structOf(4, at(0, "padded", u32)), structOf(4, at(0, "padded", u32)),
			nil, "aaaa", "aaaa", nil, ""},
		{"a field becomes wider", structOf(2, at(0, "a", u16)), structOf(4, at(0, "a", u32)),
			nil, "aa", "aa\x00\x00", nil, ""},
		{"a field becomes narrower", structOf(4, at(0, "a", u32)), structOf(2, at(0, "a", u16)),
			nil, "aaaa", "", nil, "a was"},
		{"a number becomes an array", structOf(4, at(0, "a", u32)), structOf(4, at(0, "a", array(2, u16))),
			nil, "aaaa", "", nil, "a was"},
		{"an array becomes a number", structOf(4, at(0, "a", array(2, u16))), structOf(4, at(0, "a", u32)),
			nil, "aaaa", "", nil, "was an array"},
		{"a struct becomes a number", structOf(4, at(0, "a", inner("x", "y"))), structOf(4, at(0, "a", u32)),
			nil, "xxyy", "", nil, "was a struct"},
		{"a longer array", structOf(4, at(0, "a", array(2, u16))), structOf(8, at(2, "a", array(3, u16))),
			nil, "0011", "\x00\x000011\x00\x00", nil, ""},
		{"a shorter array", structOf(6, at(0, "a", array(3, u16))), structOf(4, at(0, "a", array(2, u16))),
			nil, "001122", "0011", []string{"a[2] and what is behind it=22"}, ""},
		{"structs in an array", structOf(8, at(0, "a", array(2, inner("x", "y")))), structOf(8, at(0, "a", array(2, inner("y", "x")))),
			nil, "x0y0x1y1", "y0x0y1x1", nil, ""},
		{"what is gone of a struct in a struct", structOf(4, at(0, "a", inner("x", "y"))), structOf(4, at(0, "a", inner("y"))),
			nil, "xxyy", "yy\x00\x00", []string{"a.x=xx"}, ""},
		{"fields become an array", structOf(4, at(0, "tcp", u16), at(2, "udp", u16)), structOf(4, at(0, "ports", array(2, u16))),
			map[string]string{"entry.tcp": "ports[1]", "entry.udp": "ports[0]"}, "ttuu", "uutt", nil, ""},
		{"no such element", structOf(4, at(0, "tcp", u16)), structOf(4, at(0, "ports", array(2, u16))),
			map[string]string{"entry.tcp": "ports[2]"}, "ttuu", "", nil, "no element 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := newConverter(tc.from, tc.to, tc.moved)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one that says %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, tc.to.Size)
			c.convert([]byte(tc.in), got)
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
			var lost []string
			for _, f := range c.lost {
				lost = append(lost, f.name+"="+string(f.in([]byte(tc.in))))
			}
			if diff := cmp.Diff(tc.lost, lost); diff != "" {
				t.Errorf("lost fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSameShape(t *testing.T) {
	entry := structOf(12, at(0, "a", u32), at(4, "b", array(2, u8)), at(6, "pad", u16), at(8, "pad2", u32))
	for _, tc := range []struct {
		name string
		to   *btf.Struct
		want bool
	}{
		{"itself", entry, true},
		{"a new field in the padding", structOf(12, at(0, "a", u32), at(4, "b", array(2, u8)), at(8, "c", u32)), true},
		{"a larger one", structOf(16, at(0, "a", u32), at(4, "b", array(2, u8)), at(12, "c", u32)), false},
		{"a field in another place", structOf(12, at(8, "a", u32), at(4, "b", array(2, u8))), false},
		{"a field of another size", structOf(12, at(0, "a", u16), at(4, "b", array(2, u8))), false},
		{"a field is gone", structOf(12, at(0, "a", u32)), false},
		{"a field of another name", structOf(12, at(0, "c", u32), at(4, "b", array(2, u8))), false},
		{"a longer array", structOf(12, at(0, "a", u32), at(4, "b", array(4, u8))), false},
		{"an array of something else", structOf(12, at(0, "a", u32), at(4, "b", array(2, u16))), false},
		{"a field is padding now", structOf(12, at(0, "pad", u32), at(4, "b", array(2, u8))), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := sameShape(entry, tc.to); got != tc.want {
				t.Errorf("same shape: %v, want %v", got, tc.want)
			}
		})
	}
}
