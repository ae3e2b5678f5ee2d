package loader

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// together is how many look-ups in maps of maps are made at a time. Linux before 6.8 waits
// for a grace period of RCU in each, some 12 ms, also where it finds nothing; those that wait
// at the same time wait for the same one.
const together = 128

// forAll calls f with each of all, many at a time. The error is that of the first that had one.
func forAll[T any](all []T, f func(T) error) error {
	var g errgroup.Group
	g.SetLimit(together)
	for _, one := range all {
		g.Go(func() error { return f(one) })
	}
	return g.Wait()
}

// anyInner returns one of the maps in a map of maps; nil: there is none.
func anyInner(m *ebpf.Map) (*ebpf.Map, error) {
	var keys []uint32
	var key uint32
	err := m.NextKey(nil, &key)
	for ; err == nil; err = m.NextKey(key, &key) {
		keys = append(keys, key)
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, err
	}
	var found atomic.Pointer[ebpf.Map]
	for some := range slices.Chunk(keys, together) {
		err := forAll(some, func(key uint32) error {
			var inner *ebpf.Map
			switch err := m.Lookup(key, &inner); {
			case errors.Is(err, ebpf.ErrKeyNotExist):
				return nil
			case err != nil:
				return err
			case !found.CompareAndSwap(nil, inner):
				return inner.Close()
			}
			return nil
		})
		if inner := found.Load(); inner != nil || err != nil {
			return inner, err
		}
	}
	return nil, nil
}
