package maglev

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestDisruption(t *testing.T) {
	ab := []Backend{{"a", 1}, {"b", 1}}
	type result struct{ Changed, Least int }
	for _, tt := range []struct {
		name     string
		from, to *Table
		want     result
	}{
		{
			"same",
			&Table{ab, []int32{0, 1, 0}}, &Table{ab, []int32{0, 1, 0}},
			result{0, 0},
		},
		{
			"same, in another order",
			&Table{ab, []int32{0, 1, 0}}, &Table{[]Backend{{"b", 1}, {"a", 1}}, []int32{1, 0, 1}},
			result{0, 0},
		},
		{
			"exchanged without need",
			&Table{ab, []int32{0, 1, 0}}, &Table{ab, []int32{1, 0, 0}},
			result{2, 0},
		},
		{
			"one slot more for b",
			&Table{ab, []int32{0, 1, 0}}, &Table{ab, []int32{0, 1, 1}},
			result{1, 1},
		},
		{
			"one slot more for b, three changed",
			&Table{ab, []int32{0, 1, 0}}, &Table{ab, []int32{1, 0, 1}},
			result{3, 1},
		},
		{
			"b replaced by c",
			&Table{ab, []int32{0, 1, 0}}, &Table{[]Backend{{"c", 1}, {"a", 1}}, []int32{1, 0, 1}},
			result{1, 1},
		},
		{
			"all gone",
			&Table{ab, []int32{0, 1, 0}}, &Table{nil, []int32{None, None, None}},
			result{3, 3},
		},
		{
			"the first come",
			&Table{nil, []int32{None, None, None}}, &Table{ab, []int32{0, 1, 0}},
			result{3, 3},
		},
		{
			"other size",
			&Table{ab, []int32{0, 1, 0}}, &Table{ab, []int32{0, 1, 0, 1, 0}},
			result{5, 5},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got result
			got.Changed, got.Least = Disruption(tt.from, tt.to)
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Errorf("disruption (-want +got):\n%s", diff)
			}
		})
	}
}

// classic is the construction of the Maglev paper: in each round every backend takes
// its next free slot, where one of less weight than the largest sits some rounds
// out.
func classic(size int, backends []Backend) *Table {
	t := &Table{Backends: backends, Slots: make([]int32, size)}
	for i := range t.Slots {
		t.Slots[i] = None
	}
	pos, skip, credit := make([]int, len(backends)), make([]int, len(backends)), make([]int, len(backends))
	most := 0
	for i, b := range backends {
		pos[i], skip[i] = permutation(b.Key, size)
		most = max(most, b.Weight)
	}
	for left := size; left > 0; {
		for i, b := range backends {
			if credit[i] += b.Weight; credit[i] < most || left == 0 {
				continue
			}
			credit[i] -= most
			for t.Slots[pos[i]] != None {
				pos[i] = (pos[i] + skip[i]) % size
			}
			t.Slots[pos[i]] = int32(i)
			left--
		}
	}
	return t
}

// Only ratios of weights count: a slow start may scale them all.
func TestBuildScales(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1}, {1, 2, 3}, {65535, 1, 7}} {
		for _, factor := range []int{7, 20, 100} {
			a := servers(3, func(i int) int { return weights[i] })
			b := servers(3, func(i int) int { return weights[i] * factor })
			if !slices.Equal(mustBuild(t, defaultSize, a).Slots, mustBuild(t, defaultSize, b).Slots) {
				t.Errorf("weights %v times %d give another table", weights, factor)
			}
		}
	}
}

// Changes of one backend, repeated with different ones and added up: slots that
// change over slots that must. The bounds lie a tenth or so above what was
// measured. The construction of the Maglev paper, with the same quotas and turns
// by weight, has 1.6 for 100 backends and 6.8 for 1000 where one leaves.
func TestBuildDisruption(t *testing.T) {
	mixed := func(i int) int { return 1 + i*37%100 }
	leave := func(b []Backend, i int) []Backend { return slices.Delete(b, i, i+1) }
	raise := func(b []Backend, i int) []Backend { b[i].Weight++; return b }
	join := func(b []Backend, i int) []Backend {
		return append(b, Backend{Key: fmt.Sprintf("203.0.113.%d:80", i+1), Weight: 1})
	}
	drain := func(b []Backend, i int) []Backend { b[i].Weight = 0; return b }
	for _, tt := range []struct {
		name   string
		n      int
		weight func(int) int
		change func([]Backend, int) []Backend
		bound  float64
	}{
		{"leave", 2, equal, leave, 1},
		{"leave", 3, equal, leave, 1.02},
		{"leave", 10, equal, leave, 1.05},
		{"leave", 100, equal, leave, 1.4},
		{"leave", 1000, equal, leave, 4.7},
		{"leave, mixed weights", 3, mixed, leave, 1.02},
		{"leave, mixed weights", 10, mixed, leave, 1.05},
		{"leave, mixed weights", 100, mixed, leave, 1.45},
		{"join", 3, equal, join, 1.02},
		{"join", 10, equal, join, 1.05},
		{"join", 100, equal, join, 1.45},
		{"weight 1 to 2", 3, equal, raise, 1.05},
		{"weight to zero", 100, mixed, drain, 1.4},
		{"weight 1 to 2", 2, equal, raise, 1.02},
		{"weight 1 to 2", 10, equal, raise, 1.05},
		{"weight 1 to 2", 100, equal, raise, 1.45},
		{"weight plus one, mixed weights", 3, mixed, raise, 1.05},
		{"weight plus one, mixed weights", 10, mixed, raise, 1.3},
		{"weight plus one, mixed weights", 100, mixed, raise, 3.9},
	} {
		t.Run(fmt.Sprintf("%s, %d backends", tt.name, tt.n), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(4, 4))
			backends := servers(tt.n, tt.weight)
			from := mustBuild(t, defaultSize, backends)
			var changed, least, changedThere, leastThere int
			there := classic(defaultSize, backends)
			for _, i := range rng.Perm(tt.n)[:min(tt.n, 10)] {
				to := mustBuild(t, defaultSize, tt.change(slices.Clone(backends), i))
				c, l := Disruption(from, to)
				changed, least = changed+c, least+l
				c, l = Disruption(there, classic(defaultSize, to.Backends))
				changedThere, leastThere = changedThere+c, leastThere+l
			}
			ratio := float64(changed) / float64(least)
			t.Logf("%d slots changed, %d had to: %.3f; in the paper's construction %.3f", changed, least, ratio,
				float64(changedThere)/float64(leastThere))
			if least == 0 || ratio > tt.bound {
				t.Errorf("%d slots changed where %d had to: %.3f times, want at most %.2f", changed, least, ratio, tt.bound)
			}
		})
	}
}
