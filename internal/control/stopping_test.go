package control

import (
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/statesync"
)

// sayingNode is a SharedState of a node that has a name, over a loop that does not run.
func sayingNode(t *testing.T, name string) (s *SharedState, told *int) {
	t.Helper()
	changes, err := OpenOverrides(filepath.Join(t.TempDir(), "overrides.json"), name)
	if err != nil {
		t.Fatal(err)
	}
	told = new(int)
	loop := NewLoop(nil, nil, nil, nil, nil, changes, slog.New(slog.DiscardHandler))
	loop.TellChanges(func() { *told++ })
	s = NewSharedState(t.Context(), loop, &fakeFeed{}, func() map[netip.Addr]bool { return nil })
	s.Introduce(name)
	return s, told
}

// hears brings what one node tells to another.
func hears(t *testing.T, s *SharedState, peer string, words []statesync.Override) {
	t.Helper()
	if err := s.ApplyOverrides(peer, words); err != nil {
		t.Fatal(err)
	}
}

func TestNodeSaysThatItStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, told := sayingNode(t, "lb1")
		two, _ := sayingNode(t, "lb2")
		want := func(when string, stops bool) {
			t.Helper()
			if got, _ := two.loop.stopping("lb1"); got != stops {
				t.Errorf("%s: lb1 is about to stop: %v", when, got)
			}
			for _, other := range []string{"lb2", ""} {
				if stops, gone := two.loop.stopping(other); stops || gone {
					t.Errorf("%s: another node is about to stop", when)
				}
			}
		}
		hears(t, two, "lb1", one.Overrides())
		want("at the start", false)
		one.Stop(20 * time.Second)
		if *told != 1 {
			t.Errorf("peers are told %d times", *told)
		}
		last := one.Overrides()
		hears(t, two, "lb1", last)
		want("it has said so", true)
		time.Sleep(19 * time.Second)
		want("it has time still", true)
		time.Sleep(2 * time.Second)
		want("its time is over", false)

		// A later run that is back at once takes it back, whatever its clock says.
		hears(t, two, "lb1", last)
		want("it has said so again", true)
		again, told := sayingNode(t, "lb1")
		again.word.Stamp.Time = last[0].Stamp.Time - int64(time.Hour)
		hears(t, again, "lb2", last)
		now := again.Overrides()
		if *told != 1 || !last[0].Stamp.Less(now[0].Stamp) {
			t.Errorf("told %d times, %+v after %+v", *told, now[0].Stamp, last[0].Stamp)
		}
		hears(t, two, "lb1", now)
		want("it is back", false)
	})
}

// A node that is killed on the way to its end is not waited for: what it has served is
// over, and so it is with one that has come to its end.
func TestNodeThatStopsIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := sayingNode(t, "lb2")
		word := func(stops string) {
			hears(t, s, "lb1", []statesync.Override{
				{Key: nodeKey + "lb1", Stamp: statesync.Stamp{Time: time.Now().UnixNano(), Node: "lb1"}, Value: []byte(`{"stops_ms":` + stops + `}`)},
			})
		}
		dirty := func() bool {
			select {
			case <-s.loop.dirty:
				return true
			default:
				return false
			}
		}
		want := func(when string, wantStops, wantGone, wantDirty bool) {
			t.Helper()
			if stops, gone := s.loop.stopping("lb1"); stops != wantStops || stops && gone != wantGone || dirty() != wantDirty {
				t.Errorf("%s: stops %v, gone %v", when, stops, gone)
			}
		}
		s.loop.NodeGone("lb1")
		want("it crashes, and has not said that it stops", false, false, false)
		word("20000")
		want("it stops", true, false, true)
		s.loop.NodeGone("lb1")
		want("it is gone", true, true, true)
		s.loop.NodeGone("lb1")
		want("it is still gone", true, true, false)
		word("19000")
		want("it is heard again: only the connection had broken", true, false, true)
		s.loop.NodeGone("lb1")
		want("it is gone again", true, true, true)
		s.loop.NodeBack("lb1")
		want("it is heard again, and has no other word", true, false, true)
		s.loop.NodeBack("lb1")
		want("its other connection has broken", true, false, false)
		s.loop.NodeGone("lb1")
		want("it is gone once more", true, true, true)
		word("0")
		want("it is back", false, false, true)
		word("20000")
		want("it stops again", true, false, true)
	})
}

// Words of nodes are no changes of operators, and those of a later version that make no
// sense here are none either.
func TestWordsAreNoChanges(t *testing.T) {
	s, _ := sayingNode(t, "lb1")
	hears(t, s, "lb2", []statesync.Override{
		{Key: nodeKey + "lb2", Stamp: statesync.Stamp{Time: 1, Node: "lb2"}, Value: []byte(`{"stops_ms":5000,"more":[1]}`)},
		{Key: nodeKey + "lb3", Stamp: statesync.Stamp{Time: 1, Node: "lb3"}, Value: []byte("{")},
	})
	if changes := s.loop.Changes(); len(changes) != 0 {
		t.Errorf("changes of operators: %+v", changes)
	}
	if got := maps.Clone(s.loop.stops.until); len(got) != 1 || !got["lb2"].After(time.Now()) {
		t.Errorf("nodes that are about to stop: %v", got)
	}
}

func TestSettled(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sharing *sharing
		want    bool
	}{
		{"nothing in common", nil, true},
		{"another service", &sharing{tables: map[string]*sharedTable{"web": {role: RoleBackup}}}, true},
		{"a table of its own", &sharing{tables: map[string]*sharedTable{"www": {role: RoleOwn}}}, true},
		{"Backup, and the Active node's has not come", &sharing{tables: map[string]*sharedTable{"www": {role: RoleBackup}}}, false},
		{"Backup, and it has come", &sharing{tables: map[string]*sharedTable{"www": {role: RoleBackup, peer: "lb1"}}}, true},
		{"Active, and all have it", &sharing{tables: map[string]*sharedTable{"www": {role: RoleActive}}}, true},
		{"Active, and it is on its way", &sharing{tables: map[string]*sharedTable{"www": {role: RoleActive}}, flights: 1}, false},
		{"Active, and it is late", &sharing{tables: map[string]*sharedTable{"www": {role: RoleActive}}, late: map[string]lateTable{"www": {}}}, false},
	} {
		if got := (&Loop{sharing: tt.sharing}).Settled("www"); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
