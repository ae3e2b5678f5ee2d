package loader

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestCompareOwners(t *testing.T) {
	owners := func(numbers ...uint32) (s []slot) {
		for _, n := range numbers {
			s = append(s, makeSlot(n, 0, lbSlotStateSLOT_CLEAN))
		}
		return s
	}
	for _, tc := range []struct {
		name          string
		before, after []slot
		want          Moves
	}{
		{"nothing", owners(1, 2, 1), owners(1, 2, 1), Moves{}},
		{"one more for a backend", owners(1, 2, 1), owners(1, 2, 2), Moves{Changed: 1, Least: 1}},
		{"exchanged without need", owners(1, 2, 1), owners(2, 1, 1), Moves{Changed: 2}},
		{"one replaces another", owners(1, 2, 1), owners(1, 3, 1), Moves{Changed: 1, Least: 1}},
		{"nobody is left", owners(1, 2, 1), owners(0, 0, 0), Moves{Changed: 3, Least: 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, compareOwners(tc.before, tc.after), cmpopts.IgnoreFields(Moves{}, "At"), cmpopts.IgnoreUnexported(Moves{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Stats tells what the last change of a service has moved, and nothing before one.
func TestStatsTellMoves(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(3, 80)))
	if m := stats(t, d).Services[0].Moves; m != nil {
		t.Errorf("the first backends moved %+v", m)
	}
	apply(t, d, service("web", lb.DSR, 80, backends(4, 80)))
	m := stats(t, d).Services[0].Moves
	if m == nil || m.Least < lb.DefaultTableSize/4 || m.Least > lb.DefaultTableSize/4+1 || m.Changed < m.Least || m.Changed > m.Least*11/10 {
		t.Errorf("a fourth backend moved %+v", m)
	}
}
