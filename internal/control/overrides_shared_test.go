package control

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/lb"
)

// nodesOverrides are those of some nodes.
func nodesOverrides(t *testing.T, names ...string) []*Overrides {
	t.Helper()
	var all []*Overrides
	for _, name := range names {
		o, err := OpenOverrides(filepath.Join(t.TempDir(), "overrides.json"), name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

func (o *Overrides) mustApply(t *testing.T, c Change) {
	t.Helper()
	if _, err := o.Apply(c, twoServices()); err != nil {
		t.Fatal(err)
	}
}

// mustTake brings all of one node's changes to another one, and returns which of them
// are news there.
func (o *Overrides) mustTake(t *testing.T, from *Overrides) (news []string) {
	t.Helper()
	taken, err := o.TakeIn(from.Changes())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range taken {
		target, v, _ := override(c)
		news = append(news, fmt.Sprintf("%s of %s: %s", target.address, target.scope, v))
	}
	return news
}

func wantNews(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: news (-want +got):\n%s", what, diff)
	}
}

// wantSame checks that nodes know the same changes.
func wantSame(t *testing.T, nodes ...*Overrides) {
	t.Helper()
	for _, n := range nodes[1:] {
		if diff := cmp.Diff(nodes[0].Changes(), n.Changes()); diff != "" {
			t.Errorf("changes (-%s +%s):\n%s", nodes[0].node, n.node, diff)
		}
		if diff := cmp.Diff(nodes[0].all, n.all, cmp.AllowUnexported(target{})); diff != "" {
			t.Errorf("in force (-%s +%s):\n%s", nodes[0].node, n.node, diff)
		}
	}
}

func TestChangesTravel(t *testing.T) {
	const server = "192.0.2.12"
	synctest.Test(t, func(t *testing.T) {
		nodes := nodesOverrides(t, "lb1", "lb2")
		a, b := nodes[0], nodes[1]
		a.mustApply(t, Change{Drain, "web", server, 0})
		wantNews(t, "a drain", b.mustTake(t, a), "192.0.2.12 of web: drained")
		wantNews(t, "the same again", b.mustTake(t, a))
		wantNews(t, "and back", a.mustTake(t, b))

		// Another one on the other node, later.
		time.Sleep(time.Second)
		b.mustApply(t, Change{Weight, "web", server, 7})
		wantNews(t, "an earlier one", b.mustTake(t, a))
		wantNews(t, "a later one", a.mustTake(t, b), "192.0.2.12 of web: drained, weight 7")

		// What is undone stays so, also on a node that was away.
		time.Sleep(time.Second)
		a.mustApply(t, Change{Reset, "web", server, 0})
		again, err := OpenOverrides(a.path, "lb1")
		if err != nil {
			t.Fatal(err)
		}
		a = again
		wantNews(t, "what was undone", a.mustTake(t, b))
		wantNews(t, "a reset", b.mustTake(t, a), "192.0.2.12 of web: as configured")
		wantSame(t, a, b)

		// A node whose clock is behind has the last word all the same.
		a.stamps[target{"web", server}] = stamp{time.Now().Add(time.Hour).UTC(), "lb1"}
		b.mustTake(t, a)
		b.mustApply(t, Change{Disable, "web", server, 0})
		wantNews(t, "a clock behind", a.mustTake(t, b), "192.0.2.12 of web: disabled")
		wantSame(t, a, b)

		// The same on both is news for neither.
		a.mustApply(t, Change{Drain, "http", server, 0})
		b.mustApply(t, Change{Drain, "http", server, 0})
		wantNews(t, "the same on both", b.mustTake(t, a))
		wantNews(t, "the same on both", a.mustTake(t, b))
		wantSame(t, a, b)
	})
}

// Whatever is changed where, in whatever order nodes tell each other, some at the same
// time: in the end all of them have the same.
func TestChangesConverge(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			nodes := nodesOverrides(t, "lb1", "lb2", "lb3")
			for range 30 {
				n := nodes[r.IntN(len(nodes))]
				if r.IntN(3) == 0 {
					n.mustTake(t, nodes[r.IntN(len(nodes))])
					continue
				}
				action := []Action{Drain, Disable, Enable, Weight, Reset}[r.IntN(5)]
				n.mustApply(t, Change{action, []string{"web", "http", "https"}[r.IntN(3)], "192.0.2.12", r.IntN(3)})
				time.Sleep(time.Duration(r.IntN(2)))
			}
			for range 2 {
				for i, n := range nodes {
					n.mustTake(t, nodes[(i+1)%3])
					n.mustTake(t, nodes[(i+2)%3])
				}
			}
			wantSame(t, nodes...)
		})
	}
}

// A node of an earlier version has not noted when its changes were made: they travel,
// and whatever is changed later counts more.
func TestChangesWithoutTime(t *testing.T) {
	text := `{"version": 1, "overrides": [{"scope": "web", "address": "192.0.2.12", "state": "%s"}]}`
	var nodes []*Overrides
	for i, state := range []string{"drain", "disable", ""} {
		path := filepath.Join(t.TempDir(), "overrides.json")
		if state != "" {
			if err := os.WriteFile(path, fmt.Appendf(nil, text, state), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o, err := OpenOverrides(path, fmt.Sprint("lb", i+1))
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, o)
	}
	a, b, c := nodes[0], nodes[1], nodes[2]
	wantNews(t, "to who has none", c.mustTake(t, b), "192.0.2.12 of web: disabled")
	wantNews(t, "one of two", a.mustTake(t, b))
	wantNews(t, "the same one", b.mustTake(t, a), "192.0.2.12 of web: drained")
	wantNews(t, "and here", c.mustTake(t, a), "192.0.2.12 of web: drained")
	wantSame(t, a, b, c)
	c.mustApply(t, Change{Enable, "web", "192.0.2.12", 0})
	wantNews(t, "a change", a.mustTake(t, c), "192.0.2.12 of web: as configured")
}

// Nonsense is refused, by name, and does not keep out what comes with it.
func TestChangesThatMakeNoSense(t *testing.T) {
	good := lb.OperatorChange{Scope: "web", Address: "192.0.2.12", State: "drain", Weight: -1, Time: time.Now(), Node: "lb2"}
	for _, tc := range []struct {
		name   string
		change func(*lb.OperatorChange)
	}{
		{"no scope", func(c *lb.OperatorChange) { c.Scope = "" }},
		{"no address", func(c *lb.OperatorChange) { c.Address = "" }},
		{"a state of a later version", func(c *lb.OperatorChange) { c.State = "retire" }},
		{"a weight below none", func(c *lb.OperatorChange) { c.Weight = -2 }},
		{"a weight beyond all", func(c *lb.OperatorChange) { c.Weight = MaxWeight + 1 }},
		{"a long name", func(c *lb.OperatorChange) { c.Scope = strings.Repeat("x", nameLongest+1) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := openOverrides(t)
			bad := good
			tc.change(&bad)
			taken, err := o.TakeIn([]lb.OperatorChange{bad, good})
			if err == nil || !strings.Contains(err.Error(), "makes no sense") {
				t.Errorf("error %v", err)
			}
			if len(taken) != 1 || len(o.Changes()) != 1 || taken[0] != good {
				t.Errorf("taken in: %v", taken)
			}
		})
	}
}

// What is remembered is bounded, by number and by time.
func TestChangesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openOverrides(t)
		undone := func(i int) lb.OperatorChange {
			return lb.OperatorChange{Scope: "web", Address: fmt.Sprint("a", i), Weight: -1, Time: time.Now().Add(time.Duration(i)), Node: "lb2"}
		}
		var many []lb.OperatorChange
		for i := range undoneMost + 10 {
			many = append(many, undone(i))
		}
		if _, err := o.TakeIn(many); err != nil {
			t.Fatal(err)
		}
		if _, kept := o.stamps[target{"web", "a9"}]; kept || len(o.Changes()) != undoneMost {
			t.Errorf("%d are kept, the oldest too: %v", len(o.Changes()), kept)
		}
		time.Sleep(undoneFor + time.Second)
		if _, err := o.TakeIn(many); err != nil {
			t.Fatal(err)
		}
		o.mustApply(t, Change{Drain, "web", "192.0.2.12", 0})
		if got := o.Changes(); len(got) != 1 || got[0].State != "drain" {
			t.Errorf("%d are kept after their time", len(got))
		}

		many = nil
		for i := range changesMost + 1 {
			c := undone(i)
			c.State = "drain"
			many = append(many, c)
		}
		if _, err := o.TakeIn(many); err == nil || !strings.Contains(err.Error(), "is left out") {
			t.Errorf("error %v", err)
		}
		if got := len(o.Changes()); got != changesMost {
			t.Errorf("%d are kept, want %d", got, changesMost)
		}
	})
}

// A change that cannot be kept is not in force.
func TestChangesThatCannotBeKept(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := &Overrides{path: filepath.Join(blocked, "overrides.json"), all: map[target]Override{}, stamps: map[target]stamp{}}
	taken, err := o.TakeIn([]lb.OperatorChange{{Scope: "web", Address: "192.0.2.12", State: "drain", Weight: -1}})
	if err == nil || !strings.Contains(err.Error(), "none is taken in") || len(taken) > 0 || len(o.Changes()) > 0 {
		t.Errorf("taken in: %v, %v", taken, err)
	}
}

// A change of another node's reaches the data plane at once, and is told to operators.
func TestLoopTakesInChanges(t *testing.T) {
	var happened []events.Event
	told := 0
	prepare := func(l *Loop) {
		l.Record(func(e events.Event) { happened = append(happened, e) })
		l.TellChanges(func() { told++ })
	}
	runLoopWith(t, time.Second, []lb.Service{webService()}, prepare, func(t *testing.T, l *Loop, w *fakeWorld) {
		w.changes.path = filepath.Join(t.TempDir(), "overrides.json")
		healthy(w)
		close(w.ready)
		synctest.Wait()
		drained := lb.OperatorChange{Scope: "web", Address: "192.0.2.12", State: "drain", Weight: -1, Time: time.Now(), Node: "lb2"}
		for range 2 {
			if err := l.TakeInChanges("lb2", []lb.OperatorChange{drained}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if got := w.last(t).Services[0].Backends[1]; got.Weight != 0 {
			t.Errorf("the drained server has weight %d", got.Weight)
		}
		want := []events.Event{{Type: events.OperatorChange, Peer: "lb2", To: "drain", Text: "192.0.2.12 of web: drained, on lb2"}}
		var got []events.Event
		for _, e := range happened {
			if e.Type == events.OperatorChange {
				got = append(got, e)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || told != 1 {
			t.Errorf("told %d times; events (-want +got):\n%s", told, diff)
		}
		if _, err := l.Change(Change{Reset, "web", "192.0.2.12", 0}); err != nil || told != 2 {
			t.Errorf("a change here: told %d times, %v", told, err)
		}
		if diff := cmp.Diff(1, len(l.Changes())); diff != "" {
			t.Errorf("changes for another node (-want +got):\n%s", diff)
		}
	})
}
