package loader

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A kernel that waits in each look-up takes minutes for what is looked for one by one.
func TestAnyInner(t *testing.T) {
	testenv.RequireRoot(t)
	const most = uint32(lbLimitsMAX_PAIRS)
	const limit = time.Minute // a tenth of a second here; in emulation a few
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 7}
	for _, tc := range []struct {
		name string
		keys []uint32
	}{
		{"none", nil}, {"the first", []uint32{0}}, {"the last", []uint32{most - 1}}, {"several", []uint32{200, 201, 5000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: most, InnerMap: inner})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			for _, key := range tc.keys {
				one, err := ebpf.NewMap(inner)
				if err != nil {
					t.Fatal(err)
				}
				err = m.Put(key, one)
				one.Close()
				if err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			found, err := anyInner(m)
			if err != nil || (found != nil) != (len(tc.keys) > 0) {
				t.Fatalf("got %v, %v, want one of %d", found, err, len(tc.keys))
			}
			if found != nil {
				if n := found.MaxEntries(); n != inner.MaxEntries {
					t.Errorf("it has %d entries, want %d", n, inner.MaxEntries)
				}
				found.Close()
			}
			if took := time.Since(began); took > limit {
				t.Errorf("it took %v, want %v at most", took, limit)
			}
		})
	}
}

func TestForAll(t *testing.T) {
	var all []int
	for i := range 3 * together {
		all = append(all, i)
	}
	var sum, now atomic.Int64
	wrong := errors.New("wrong")
	err := forAll(all, func(i int) error {
		if now.Add(1) > together {
			t.Error("more than that are called at a time")
		}
		defer now.Add(-1)
		sum.Add(int64(i))
		if i == 7 {
			return wrong
		}
		return nil
	})
	n := int64(len(all))
	if !errors.Is(err, wrong) || sum.Load() != n*(n-1)/2 {
		t.Errorf("error %v, sum %d, want %v and %d", err, sum.Load(), wrong, n*(n-1)/2)
	}
}
