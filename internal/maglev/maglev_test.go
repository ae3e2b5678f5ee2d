package maglev

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

const defaultSize = 65537

func mustBuild(t testing.TB, size int, backends []Backend) *Table {
	t.Helper()
	table, err := Build(size, backends)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return table
}

// servers returns n backends with the weights that weight gives them.
func servers(n int, weight func(i int) int) []Backend {
	backends := make([]Backend, n)
	for i := range backends {
		backends[i] = Backend{Key: fmt.Sprintf("198.51.%d.%d:80", 100+i/250, 1+i%250), Weight: weight(i)}
	}
	return backends
}

func equal(int) int { return 1 }

// owners spells a table by keys, so that tables of differently ordered sets
// compare.
func owners(table *Table) []string {
	out := make([]string, len(table.Slots))
	for slot, owner := range table.Slots {
		if owner != None {
			out[slot] = table.Backends[owner].Key
		}
	}
	return out
}

// reference is the definition in the package comment, taken literally: of all
// arrivals of all backends at all positions, the earliest first, each counts whose
// position is free and whose backend has not met its quota.
func reference(size int, backends []Backend) []string {
	type arrival struct {
		backend, pos int
		time         uint64 // times the weight of the backend
	}
	var all []arrival
	for i, b := range backends {
		if b.Weight == 0 {
			continue
		}
		offset, skip := permutation(b.Key, size)
		for rank, at := range arrivals(size) {
			all = append(all, arrival{i, (offset + rank*skip) % size, at})
		}
	}
	slices.SortFunc(all, func(a, b arrival) int {
		x, y := backends[a.backend], backends[b.backend]
		return cmp.Or(cmp.Compare(a.time*uint64(y.Weight), b.time*uint64(x.Weight)), cmp.Compare(x.Key, y.Key))
	})
	table, slots, left := make([]string, size), deal(size), quotas(size, backends)
	for _, a := range all {
		if slot := slots[a.pos]; table[slot] == "" && left[a.backend] > 0 {
			table[slot] = backends[a.backend].Key
			left[a.backend]--
		}
	}
	return table
}

func TestBuildGolden(t *testing.T) {
	// A change here means that nodes of the old and of the new version build
	// different tables: flows move when one of a pair is upgraded. The values
	// were worked out by another program, from the documentation alone.
	backends := []Backend{
		{Key: "192.0.2.11:80", Weight: 1},
		{Key: "192.0.2.12:80", Weight: 2},
		{Key: "192.0.2.13:80", Weight: 0},
		{Key: "[2001:db8::14]:80", Weight: 3},
	}
	small := mustBuild(t, 23, backends)
	if diff := gocmp.Diff([]int32{1, 3, 3, 0, 3, 3, 3, 3, 1, 1, 1, 1, 0, 1, 3, 3, 1, 3, 0, 3, 0, 1, 3}, small.Slots); diff != "" {
		t.Errorf("table of 23 slots (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(backends, small.Backends); diff != "" {
		t.Errorf("backends of the table (-want +got):\n%s", diff)
	}

	large := mustBuild(t, defaultSize, servers(100, func(i int) int { return 1 + i%7 }))
	h := sha256.New()
	if err := binary.Write(h, binary.LittleEndian, large.Slots); err != nil {
		t.Fatal(err)
	}
	const want = "9a717c9b9f43ce54f55a80cf56e951afbfcd2c54813802cf323164a372466c43"
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("sha256 of the table of %d slots: got %s, want %s", defaultSize, got, want)
	}
}

func TestPermutation(t *testing.T) {
	// FNV-1a of "" and "a" as its authors publish them; the outputs of
	// SplitMix64 seeded with 1234567 are widely used to check implementations.
	if got, want := fnv1a(""), uint64(0xcbf29ce484222325); got != want {
		t.Errorf("fnv1a of nothing: got %#x, want %#x", got, want)
	}
	if got, want := fnv1a("a"), uint64(0xaf63dc4c8601ec8c); got != want {
		t.Errorf("fnv1a of a: got %#x, want %#x", got, want)
	}
	got := []uint64{splitMix(1234567 + gamma), splitMix(1234567 + 2*gamma)}
	if diff := gocmp.Diff([]uint64{6457827717110365317, 3203168211198807973}, got); diff != "" {
		t.Errorf("SplitMix64 (-want +got):\n%s", diff)
	}

	type offsetSkip struct{ Offset, Skip int }
	for _, tt := range []struct {
		key  string
		size int
		want offsetSkip
	}{
		{"192.0.2.11:80", defaultSize, offsetSkip{22389, 5553}},
		{"192.0.2.12:80", defaultSize, offsetSkip{2856, 35105}},
		{"[2001:db8::14]:80", defaultSize, offsetSkip{25927, 28441}},
		{"192.0.2.11:80", 23, offsetSkip{20, 3}},
		{"192.0.2.11:80", 2, offsetSkip{1, 1}},
	} {
		t.Run(fmt.Sprintf("%s of %d", tt.key, tt.size), func(t *testing.T) {
			var got offsetSkip
			got.Offset, got.Skip = permutation(tt.key, tt.size)
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Errorf("permutation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeal(t *testing.T) {
	want := []int32{20, 5, 10, 17, 16, 9, 12, 14, 6, 3, 15, 11, 1, 21, 2, 13, 0, 8, 22, 7, 18, 19, 4}
	if diff := gocmp.Diff(want, deal(23)); diff != "" {
		t.Errorf("slots of 23 positions (-want +got):\n%s", diff)
	}
	slots := deal(defaultSize)
	slices.Sort(slots)
	for i, slot := range slots {
		if slot != int32(i) {
			t.Fatalf("slot %d is dealt twice or never", i)
		}
	}
}

func TestBuildReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{2, 3, 7, 101, 499} {
		for n := range min(size, 12) + 1 {
			t.Run(fmt.Sprintf("%d slots, %d backends", size, n), func(t *testing.T) {
				backends := servers(n, func(int) int { return rng.IntN(6) })
				if diff := gocmp.Diff(reference(size, backends), owners(mustBuild(t, size, backends))); diff != "" {
					t.Errorf("table of %v (-want +got):\n%s", backends, diff)
				}
			})
		}
	}
}

func TestBuildErrors(t *testing.T) {
	one := []Backend{{Key: "192.0.2.11:80", Weight: 1}}
	for _, tt := range []struct {
		name     string
		size     int
		backends []Backend
		want     string
	}{
		{"no slot", 0, one, "size 0 is not a prime"},
		{"negative size", -7, one, "size -7 is not a prime"},
		{"one slot", 1, one, "size 1 is not a prime"},
		{"composite size", 65535, one, "size 65535 is not a prime"},
		{"square of a prime", 251 * 251, one, "size 63001 is not a prime"},
		{"size beyond the limit", 16777259, one, "size 16777259 exceeds 16777216"},
		{"no key", 7, []Backend{one[0], {Weight: 1}}, "backend 1 has no key"},
		{"duplicate", 7, []Backend{one[0], {Key: "192.0.2.11:80", Weight: 2}}, "backend 192.0.2.11:80 is given twice"},
		{"duplicate without weight", 7, []Backend{one[0], {Key: "192.0.2.11:80"}}, "backend 192.0.2.11:80 is given twice"},
		{"negative weight", 7, []Backend{{Key: "192.0.2.11:80", Weight: -1}}, "backend 192.0.2.11:80: weight -1 is negative"},
		{"weight beyond the limit", 7, []Backend{{Key: "192.0.2.11:80", Weight: MaxWeight + 1}}, "backend 192.0.2.11:80: weight 16777217 exceeds 16777216"},
		{"more backends than slots", 7, servers(8, equal), "8 backends do not fit into 7 slots"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, err := Build(tt.size, tt.backends)
			if err == nil {
				t.Fatalf("got a table of %d slots, want an error", len(table.Slots))
			}
			if diff := gocmp.Diff("build maglev table: "+tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildCounts(t *testing.T) {
	weights := func(w ...int) []Backend { return servers(len(w), func(i int) int { return w[i] }) }
	for _, tt := range []struct {
		name     string
		size     int
		backends []Backend
		want     []int
	}{
		{"no backend", 7, nil, []int{}},
		{"no weight", 7, weights(0, 0), []int{0, 0}},
		{"one backend", 7, weights(5), []int{7}},
		{"a weight of zero", 7, weights(1, 0, 1), []int{4, 0, 3}},
		{"a tie goes to the smaller key", 7, []Backend{{"b", 1}, {"a", 1}}, []int{3, 4}},
		{"one slot each", 7, weights(1, 1, 1, 1, 1, 1, 1), []int{1, 1, 1, 1, 1, 1, 1}},
		{"one to two to three", 65537, weights(1, 2, 3), []int{10923, 21846, 32768}},
		// Exact shares 3.5, 2.1 and 1.4 of 7: the first remainder is the largest.
		{"largest remainder", 7, weights(50, 30, 20), []int{4, 2, 1}},
		{"less than half a slot", 7, weights(1000, 1), []int{7, 0}},
		{"more backends than slots, most without weight", 3, weights(0, 1, 0, 1, 0), []int{0, 2, 0, 1, 0}},
		{"largest weights", 5, weights(MaxWeight, MaxWeight, MaxWeight-1), []int{2, 2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := gocmp.Diff(tt.want, counts(mustBuild(t, tt.size, tt.backends))); diff != "" {
				t.Errorf("slots per backend (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildNone(t *testing.T) {
	for name, backends := range map[string][]Backend{
		"no backend": nil,
		"no weight":  servers(3, func(int) int { return 0 }),
	} {
		t.Run(name, func(t *testing.T) {
			if diff := gocmp.Diff([]int32{None, None, None, None, None}, mustBuild(t, 5, backends).Slots); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildExactWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	sizes := []int{251, 1021, 65537, 131071}
	for trial := range 60 {
		size := sizes[trial%len(sizes)]
		n, top := 1+rng.IntN(200), 1<<rng.IntN(20)
		backends := servers(n, func(int) int { return rng.IntN(top + 1) })
		sum := 0
		for _, b := range backends {
			sum += b.Weight
		}
		if sum == 0 {
			continue
		}
		table := mustBuild(t, size, backends)
		if slices.Contains(table.Slots, None) {
			t.Fatalf("trial %d: a slot of %d without a backend", trial, size)
		}
		for i, got := range counts(table) {
			// Rounded down or up, and not up where nothing is to be rounded.
			if low, high := size*backends[i].Weight/sum, (size*backends[i].Weight+sum-1)/sum; got < low || got > high {
				t.Fatalf("trial %d: weight %d of %d holds %d of %d slots, want %d to %d",
					trial, backends[i].Weight, sum, got, size, low, high)
			}
		}
	}
}

func TestBuildOrderIndependent(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{2, 10, 100, 250} {
		t.Run(fmt.Sprintf("%d backends", n), func(t *testing.T) {
			backends := servers(n, func(int) int { return rng.IntN(50) })
			want := owners(mustBuild(t, 4099, backends))
			for range 10 {
				rng.Shuffle(n, func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
				if diff := gocmp.Diff(want, owners(mustBuild(t, 4099, backends))); diff != "" {
					t.Fatalf("table after a shuffle (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// A change of all weights by one factor is no change.
func TestBuildScaleIndependent(t *testing.T) {
	backends := servers(20, func(i int) int { return i })
	want := owners(mustBuild(t, 4099, backends))
	for i := range backends {
		backends[i].Weight *= 1000
	}
	if diff := gocmp.Diff(want, owners(mustBuild(t, 4099, backends))); diff != "" {
		t.Errorf("table of a thousandfold weights (-want +got):\n%s", diff)
	}
}

// The slots of a backend lie evenly over the table, so that a flow hash that is
// a little uneven does not load one backend more than another.
func TestBuildUniformSpread(t *testing.T) {
	const parts = 16
	for _, n := range []int{2, 3, 10, 100} {
		t.Run(fmt.Sprintf("%d backends", n), func(t *testing.T) {
			table := mustBuild(t, defaultSize, servers(n, func(i int) int { return 1 + i%4 }))
			total := counts(table)
			in := make([][parts]int, n)
			for slot, owner := range table.Slots {
				in[owner][slot*parts/defaultSize]++
			}
			for i := range in {
				mean := float64(total[i]) / parts
				// Variance of a random choice of total[i] slots.
				variance := mean * (1 - 1.0/parts)
				for part, got := range in[i] {
					if off := float64(got) - mean; off*off > 25*variance {
						t.Errorf("backend %d holds %d slots in part %d, want %.0f within 5 standard deviations", i, got, part, mean)
					}
				}
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	mixed := func(i int) int { return 1 + i*37%100 }
	heavy := func(i int) int {
		if i == 0 {
			return 1_000_000
		}
		return 1
	}
	for _, bm := range []struct {
		name   string
		n      int
		weight func(int) int
	}{
		{"backends=3", 3, equal},
		{"backends=100", 100, equal},
		{"backends=100,mixed", 100, mixed},
		{"backends=1000", 1000, equal},
		{"backends=1000,mixed", 1000, mixed},
		{"backends=1000,one heavy", 1000, heavy},
	} {
		b.Run(strings.ReplaceAll(bm.name, " ", "_"), func(b *testing.B) {
			backends := servers(bm.n, bm.weight)
			b.ReportAllocs()
			for b.Loop() {
				mustBuild(b, defaultSize, backends)
			}
		})
	}
}

// counts is how many slots each backend holds, by its index in Backends.
func counts(t *Table) []int {
	all := make([]int, len(t.Backends))
	for _, owner := range t.Slots {
		if owner != None {
			all[owner]++
		}
	}
	return all
}
