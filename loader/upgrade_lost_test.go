package loader

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// oldMap makes a map of an earlier layout, whose types the kernel knows.
func oldMap(t *testing.T, kind ebpf.MapType, value *btf.Struct) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "old", Type: kind, KeySize: 4, ValueSize: value.Size, MaxEntries: 4, Key: u32, Value: value,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// A field that is gone is told of if it held anything, in that many entries.
func TestUpgradeTellsOfLostFields(t *testing.T) {
	testenv.RequireRoot(t)
	old := structOf(16, at(0, "kept", u32), at(4, "gone", u32), at(8, "list", array(4, u16)))
	now := structOf(8, at(0, "kept", u32), at(4, "list", array(2, u16)))
	for _, tc := range []struct {
		name    string
		entries []string
		room    uint32
		want    []string
	}{
		{"no entry", nil, 4, nil},
		{"nothing in the field", []string{"kkkk\x00\x00\x00\x00llll\x00\x00\x00\x00"}, 4, nil},
		{"something in some", []string{"kkkk\x00\x00\x00\x00llll\x00\x00\x00\x00", "kkkk\x00g\x00\x00llll\x00\x00\x00l", "\x00\x00\x00\x00gggg\x00\x00\x00\x00\x00\x00\x00\x00"}, 4,
			[]string{"gone of 2 entries of web", "list[2] and what is behind it of 1 entries of web"}},
		{"in an entry that is lost itself", []string{"kkkk\x00\x00\x00\x00llll\x00\x00\x00\x00", "kkkkggggllllmmmm"}, 1,
			[]string{"1 entries of web that do not fit any more"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := oldMap(t, ebpf.Array, old)
			for i, entry := range tc.entries {
				if err := m.Put(uint32(i), []byte(entry)); err != nil {
					t.Fatal(err)
				}
			}
			u := &upgrade{old: map[string]*ebpf.Map{"web": m}}
			if err := u.convert("web", now, func(uint32, []byte) {}, tc.room); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, u.notKept); diff != "" {
				t.Errorf("not kept (-want +got):\n%s", diff)
			}
		})
	}
}

// A counter that is gone is told of if it has counted anything, with all that it has.
func TestUpgradeTellsOfLostCounters(t *testing.T) {
	testenv.RequireRoot(t)
	u64 := &btf.Int{Name: "unsigned long long", Size: 8}
	old := structOf(32, at(0, "kept", u64), at(8, "gone", u64), at(16, "list", array(2, u64)))
	now := structOf(16, at(0, "kept", u64), at(8, "list", array(1, u64)))
	cpus := ebpf.MustPossibleCPU()
	counts := func(words ...uint64) [][]byte {
		var entry []byte
		for _, w := range words {
			entry = binary.NativeEndian.AppendUint64(entry, w)
		}
		all := make([][]byte, cpus)
		for i := range all {
			all[i] = entry
		}
		return all
	}
	gone := func(field, list int) []string {
		return []string{
			fmt.Sprintf("%d of counter gone of losses", field*cpus),
			fmt.Sprintf("%d of counter list[1] and what is behind it of losses", list*cpus),
		}
	}
	from, to := oldMap(t, ebpf.PerCPUArray, old), oldMap(t, ebpf.PerCPUArray, now)
	u := &upgrade{}
	c, err := u.newCounterCopy("losses", from, to, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name    string
		entries [][]byte
		kept    uint64
		want    []string
	}{
		{"nothing in those that are gone", counts(5, 0, 7, 0), 5, nil},
		{"something", counts(6, 3, 7, 2), 6, gone(3, 2)},
		{"more", counts(6, 4, 8, 2), 6, gone(4, 2)},
	} {
		if err := from.Put(uint32(1), step.entries); err != nil {
			t.Fatal(err)
		}
		if err := c.copy(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, c.notKept()); diff != "" {
			t.Errorf("%s: not kept (-want +got):\n%s", step.name, diff)
		}
		var got [][]byte
		if err := to.Lookup(uint32(1), &got); err != nil {
			t.Fatal(err)
		}
		if n := binary.NativeEndian.Uint64(got[0]); n != step.kept {
			t.Errorf("%s: counter kept is %d, want %d", step.name, n, step.kept)
		}
	}
	if _, err := u.newCounterCopy("losses", oldMap(t, ebpf.PerCPUArray, structOf(12, at(0, "kept", u64), at(8, "narrow", u32))), to, now); err == nil {
		t.Error("a counter of 32 bits was taken")
	}
}
