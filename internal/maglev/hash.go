package maglev

import "hash/fnv"

// All nodes of a cluster must agree on these functions: a change to any of them
// gives other tables, and an upgrade of one node would move its flows.

// permutation returns the first position of a key's permutation and the distance
// from each to the next, modulo size, a prime. They are the first and the second
// output of the SplitMix64 generator, seeded with the 64-bit FNV-1a hash of the
// key: the first modulo size, the second modulo size-1, plus 1.
func permutation(key string, size int) (offset, skip int) {
	seed := fnv1a(key)
	offset = int(splitMix(seed+gamma) % uint64(size))
	skip = int(splitMix(seed+2*gamma)%uint64(size-1)) + 1
	return offset, skip
}

// deal returns the slot of each position. It starts with every position at the
// slot of its own number and, for i from size-1 down to 1, exchanges the slots of
// i and of the next output of SplitMix64, seeded with size, modulo i+1.
func deal(size int) []int32 {
	slots := make([]int32, size)
	for i := range slots {
		slots[i] = int32(i)
	}
	state := uint64(size)
	for i := size - 1; i > 0; i-- {
		state += gamma
		j := splitMix(state) % uint64(i+1)
		slots[i], slots[j] = slots[j], slots[i]
	}
	return slots
}

// fnv1a is the 64-bit FNV-1a hash of key.
func fnv1a(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key)) // never fails
	return h.Sum64()
}

// gamma is what the state of SplitMix64 grows by from one output to the next. A
// variable, because adding it is meant to wrap around, which constants may not.
var gamma uint64 = 0x9e3779b97f4a7c15

// splitMix is the output function of SplitMix64 (Steele, Lea and Flood, 2014). FNV
// alone would not do: keys that differ in the last byte differ in few bits.
func splitMix(state uint64) uint64 {
	state = (state ^ state>>30) * 0xbf58476d1ce4e5b9
	state = (state ^ state>>27) * 0x94d049bb133111eb
	return state ^ state>>31
}
