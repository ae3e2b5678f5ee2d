package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A slotView is a slot of a table, whatever the numbers of its backends.
type slotView struct {
	Owner, Previous netip.AddrPort
	Phase           lb.SlotPhase
	Left            time.Duration
}

func slotViews(t lb.TableState) []slotView {
	at := func(i uint16) netip.AddrPort {
		if i == 0 {
			return netip.AddrPort{}
		}
		return t.Backends[i-1].Address
	}
	var all []slotView
	for _, s := range t.Slots {
		all = append(all, slotView{at(s.Owner), at(s.Previous), s.Phase, s.Left})
	}
	return all
}

// sends returns where the slot has a connection go that is older than its window.
func (p slotView) sends() netip.AddrPort {
	if p.Phase == lb.SlotTracked && p.Previous.IsValid() {
		return p.Previous
	}
	return p.Owner
}

// equateSlotViews takes windows for equal that close within what rounding makes of them.
var equateSlotViews = cmp.Options{equateAddrs, cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() <= closesUnit+time.Second })}

// A planned is a node whose tables are planned and written to nothing.
type planned struct {
	state *State
	sim   *sim
	want  lb.Snapshot
	lim   limits
}

func newPlanned(booted time.Duration) *planned {
	lim := testLimits
	lim.now = booted
	return &planned{state: newState(), sim: newSim(), lim: lim}
}

func (n *planned) apply(t *testing.T, want lb.Snapshot, adopted map[string]lb.TableState) []string {
	t.Helper()
	lim := n.lim
	lim.adopted = adopted
	steps, next, err := plan(n.state, want, lim, testTable)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for i, s := range steps {
		lines = append(lines, place1(s.String()))
		n.sim.apply(t, s)
		n.sim.complete = i == len(steps)-1
		if err := n.sim.check(); err != nil {
			t.Fatalf("after %q: %v", lines, err)
		}
	}
	n.sim.generation = next.generation
	if diff := diffStates(next, n.sim.State); diff != "" {
		t.Fatalf("what the steps make is not what was planned (-planned +made):\n%s", diff)
	}
	n.state, n.want = next, want
	return lines
}

func (n *planned) tables() []lb.TableState {
	var all []lb.TableState
	for _, s := range n.want.Services {
		if number := n.state.numberOf(s.Service); number != 0 {
			all = append(all, n.state.table(number, s.Name, n.lim.now, 0))
		}
	}
	return all
}

// adopt takes another node's tables in, as AdoptTables does.
func (n *planned) adopt(t *testing.T, tables []lb.TableState) []string {
	t.Helper()
	want := lb.Snapshot{Services: slices.Clone(n.want.Services)}
	adopted := map[string]lb.TableState{}
	for _, table := range tables {
		i := slices.IndexFunc(want.Services, func(s lb.ServiceState) bool { return s.Name == table.Service })
		if why := n.state.misfit(want, want.Services[i], table); why != "" {
			t.Fatalf("the table of %s is refused: %s", table.Service, why)
		}
		want.Services[i].Followed = true
		adopted[table.Service] = table
	}
	return n.apply(t, want, adopted)
}

// follows marks all services as followed.
func follows(s lb.Snapshot) lb.Snapshot {
	out := lb.Snapshot{Services: slices.Clone(s.Services)}
	for i := range out.Services {
		out.Services[i].Followed = true
	}
	return out
}

func TestPlanFollowing(t *testing.T) {
	const web = "web dsr 192.0.2.100:80: "
	tests := []struct {
		name     string
		there    []string // what the other node's backends were, one after the other
		here     string   // this node's, before
		adopting string   // steps
		then     string   // this node's, afterwards, while it follows
		applied  string
		own      string // and when it follows no more
		taken    string
	}{
		{
			name: "the same table", there: []string{"11 12"}, here: "11 12",
		},
		{
			name: "other weights here", there: []string{"11 12"}, here: "11 12*2", adopting: `
			set 3 slots of service 1`,
			then: "11*3 12", own: "11 12",
		},
		{
			name: "a backend has failed here", there: []string{"11 12"}, here: "11 12!", adopting: `
			set backend 2 192.0.2.12:80 of service 1 alive generation 2
			set 3 slots of service 1`,
			then: "11 12!", own: "11 12!", taken: `
			set 3 slots of service 1
			set backend 2 192.0.2.12:80 of service 1 failed generation 3`,
		},
		{
			name: "a backend has failed there", there: []string{"11 12", "11! 12"}, here: "11 12", adopting: `
			set 3 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 3`,
			then: "11 12", own: "11 12", taken: `
			set backend 1 192.0.2.11:80 of service 1 alive generation 3
			set 3 slots of service 1`,
		},
		{
			name: "one that fails here while it follows", there: []string{"11 12"}, here: "11 12",
			then: "11! 12", own: "11! 12", taken: `
			set 3 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 3`,
		},
		{
			name: "a backend that is not here", there: []string{"11 12"}, here: "11", adopting: `
			set backend 2 192.0.2.12:80 of service 1 alive leaving generation 2
			set 3 slots of service 1`,
			then: "11", own: "11", taken: `
			set 3 slots of service 1`,
		},
		{
			name: "one that has failed there and is not here", there: []string{"11 12", "11 12!"}, here: "11",
		},
		{
			name: "one that leaves there and is here", there: []string{"11 12", "11"}, here: "11 12", adopting: `
			set 3 slots of service 1`,
			own: "11 12", taken: `
			set 3 slots of service 1`,
		},
		{
			name: "one that joins here", there: []string{"11 12"}, here: "11 12", then: "11 12 13", applied: `
			set backend 3 192.0.2.13:80 of service 1 alive generation 3`,
			own: "11 12 13", taken: `
			set 4 slots of service 1`,
		},
		{
			name: "one that leaves here", there: []string{"11 12"}, here: "11 12", then: "11", applied: `
			set backend 2 192.0.2.12:80 of service 1 alive leaving generation 2`,
			own: "11", taken: `
			set 3 slots of service 1`,
		},
		{
			name: "a next hop is found", there: []string{"11 12"}, here: "11 12", then: "11>7 12", applied: `
			set backend 1 192.0.2.11:80 of service 1 alive generation 1`,
			own: "11 12",
		},
		{
			name: "all have failed there", there: []string{"11", "11!"}, here: "11", adopting: `
			set 6 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 2`,
			own: "11", taken: `
			set backend 1 192.0.2.11:80 of service 1 alive generation 2
			set 6 slots of service 1`,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newPlanned(1000*time.Second), newPlanned(5003*time.Second)
			window := func(backends string) lb.Snapshot {
				s := snapshot(t, web+backends)
				s.Services[0].TrackWindow, s.Services[0].DrainTimeout = testWindow, time.Hour
				return s
			}
			for _, backends := range tc.there {
				a.apply(t, window(backends), nil)
			}
			b.apply(t, window(tc.here), nil)
			wantSteps(t, "adopt", tc.adopting, b.adopt(t, a.tables()))
			if diff := cmp.Diff(slotViews(a.tables()[0]), slotViews(b.tables()[0]), equateSlotViews); diff != "" {
				t.Errorf("slots (-there +here):\n%s", diff)
			}
			then := tc.then
			if then == "" {
				then = tc.here
			}
			before := b.state.Slots[1]
			wantSteps(t, "apply while it follows", tc.applied, b.apply(t, follows(window(then)), nil))
			if !sameSlots(before, b.state.Slots[1]) {
				t.Errorf("slots have changed: %v, were %v", b.state.Slots[1], before)
			}
			if again := b.adopt(t, a.tables()); len(again) != 0 {
				t.Errorf("adopted again, there is more to do: %v", again)
			}
			old := slotViews(b.tables()[0])
			if tc.own == "" {
				return
			}
			wantSteps(t, "take over", tc.taken, b.apply(t, window(tc.own), nil))
			wantStay(t, b, old)
		})
	}
}

func wantSteps(t *testing.T, what, want string, got []string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if diff := cmp.Diff(lines, got); diff != "" {
		t.Errorf("%s: steps (-want +got):\n%s", what, diff)
	}
}

// wantStay checks that connections of the only service go where they went, unless
// their backend has failed here.
func wantStay(t *testing.T, n *planned, before []slotView) {
	t.Helper()
	table := n.tables()[0]
	for i, p := range slotViews(table) {
		failed := slices.ContainsFunc(table.Backends, func(b lb.TableBackend) bool { return b.Address == before[i].sends() && b.Failed })
		if to := before[i].sends(); to.IsValid() && !failed && p.sends() != to {
			t.Errorf("slot %d: a connection at %v goes to %v: %+v, was %+v", i, to, p.sends(), p, before[i])
		}
	}
}

// A table that makes no sense is refused, whatever is wrong with it.
func TestTablesRefused(t *testing.T) {
	n := newPlanned(time.Hour)
	n.apply(t, snapshot(t, `
		a dnat 192.0.2.100:80: 11
		b dnat 192.0.2.101:80: 12
		nat nat 192.0.2.102:80 from 192.0.2.102: 13
		web dsr 192.0.2.103:80: 14 15`), nil)
	at := func(s string) lb.TableBackend { return lb.TableBackend{Address: netip.MustParseAddrPort(s)} }
	tests := []struct {
		name, service string
		change        func(*lb.TableState)
		want          string
	}{
		{"as it is", "web", func(*lb.TableState) {}, ""},
		{"another size", "web", func(t *lb.TableState) { t.Slots = t.Slots[1:] }, "5 slots, and 6 here"},
		{"an owner out of range", "web", func(t *lb.TableState) { t.Slots[2].Owner = 3 }, "slot 2 is of a backend that the table does not have"},
		{"a previous owner out of range", "web", func(t *lb.TableState) { t.Slots[2] = lb.Slot{Owner: 1, Previous: 65535, Phase: lb.SlotTracked} }, "slot 2 is of"},
		{"an owner that has failed", "web", func(t *lb.TableState) { t.Backends[0].Failed = true }, "slot 0 is of"},
		{"a phase that is none", "web", func(t *lb.TableState) { t.Slots[5].Phase = 3 }, "slot 5 makes no sense"},
		{"a negative window", "web", func(t *lb.TableState) { t.Slots[5].Phase, t.Slots[5].Left = lb.SlotTracked, -1 }, "slot 5 makes no sense"},
		{"a previous owner of a clean slot", "web", func(t *lb.TableState) { t.Slots[0].Previous = 2 }, "slot 0 makes no sense"},
		{"a window in nat", "nat", func(t *lb.TableState) { t.Slots[0].Phase = lb.SlotTracked }, "the service has none here"},
		{"no address", "web", func(t *lb.TableState) { t.Backends[0] = lb.TableBackend{} }, "no address that makes sense"},
		{"no port", "web", func(t *lb.TableState) { t.Backends[0] = at("192.0.2.14:0") }, "no address that makes sense"},
		{"a mapped address", "web", func(t *lb.TableState) { t.Backends[0] = at("[::ffff:192.0.2.14]:80") }, "no address that makes sense"},
		{"a backend twice", "web", func(t *lb.TableState) { t.Backends[1] = t.Backends[0] }, "twice"},
		{"another family", "nat", func(t *lb.TableState) { t.Backends[0] = at("[2001:db8::13]:80") }, "another address family"},
		{"another family in dsr", "web", func(t *lb.TableState) { t.Backends[0] = at("[2001:db8::13]:80") }, ""},
		{"another service's backend", "a", func(t *lb.TableState) { t.Backends = append(t.Backends, at("192.0.2.12:80")) }, "another service's here"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			i := slices.IndexFunc(n.want.Services, func(s lb.ServiceState) bool { return s.Name == tc.service })
			table := n.tables()[i]
			tc.change(&table)
			got := n.state.misfit(n.want, n.want.Services[i], table)
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("it is refused with %q, want %q", got, tc.want)
			}
		})
	}
}

// Whatever changes on one node, the other one's slots are the same after it has adopted
// them, at every step of which packets find all they need; and when that one takes over,
// with a configuration and verdicts of its own, no connection moves but those of
// backends that have failed there.
func TestFollowWalk(t *testing.T) {
	vary := func(r *rand.Rand, s lb.Snapshot) lb.Snapshot {
		out := lb.Snapshot{Services: slices.Clone(s.Services)}
		for i := range out.Services {
			v := &out.Services[i]
			v.Backends = slices.Clone(v.Backends)
			v.Backends = slices.DeleteFunc(v.Backends, func(lb.Backend) bool { return r.IntN(6) == 0 })
			for k := range v.Backends {
				if r.IntN(3) == 0 {
					v.Backends[k].Weight, v.Backends[k].Failed = r.IntN(3), r.IntN(4) == 0
				}
			}
		}
		return out
	}
	adoptions, takeovers := 0, 0
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 8))
		a, b := newPlanned(1000*time.Second), newPlanned(77777*time.Second)
		for step := range 60 {
			pass := time.Duration(r.IntN(200)) * time.Second
			a.lim.now += pass
			b.lim.now += pass
			want := randomSnapshot(r)
			for i := range want.Services {
				want.Services[i].TrackWindow, want.Services[i].DrainTimeout = testWindow, time.Hour
			}
			a.apply(t, want, nil)
			here := vary(r, want)
			b.apply(t, follows(here), nil)
			b.adopt(t, a.tables())
			adoptions++
			for i, table := range a.tables() {
				if diff := cmp.Diff(slotViews(table), slotViews(b.tables()[i]), equateSlotViews); diff != "" {
					t.Fatalf("seed %d, step %d: slots of %s (-there +here):\n%s", seed, step, table.Service, diff)
				}
			}
			if again := b.adopt(t, a.tables()); len(again) != 0 {
				t.Fatalf("seed %d, step %d: adopted again, there is more to do: %v", seed, step, again)
			}
			if r.IntN(4) != 0 {
				continue
			}
			takeovers++
			before := b.tables()
			b.apply(t, here, nil)
			for i, s := range here.Services {
				if !s.Forward.Stateless() {
					continue
				}
				one := &planned{state: b.state, want: lb.Snapshot{Services: here.Services[i : i+1]}, lim: b.lim}
				wantStay(t, one, slotViews(before[i]))
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d: %s", seed, step, fmt.Sprint(here))
			}
			a, b = b, a // it is the one that others follow now
		}
	}
	if adoptions != 1200 || takeovers < 200 {
		t.Errorf("%d adoptions and %d takeovers", adoptions, takeovers)
	}
}

// A table that goes to and fro between two nodes keeps its windows: the rounding of
// their ends does not add up.
func TestWindowsDoNotGrow(t *testing.T) {
	a, b := newPlanned(1000*time.Second), newPlanned(77773*time.Second)
	window := func(backends string) lb.Snapshot {
		s := snapshot(t, "web dsr 192.0.2.100:80: "+backends)
		s.Services[0].TrackWindow, s.Services[0].DrainTimeout = testWindow, time.Hour
		return s
	}
	a.apply(t, window("11 12"), nil)
	b.apply(t, window("11 12"), nil)
	a.apply(t, window("11 12 13"), nil)
	const pass = 7 * time.Second
	for round := range int(testWindow / pass) {
		b.adopt(t, a.tables())
		a.adopt(t, b.tables())
		left := testWindow - time.Duration(round)*pass
		for i, v := range slotViews(a.tables()[0]) {
			if v.Phase == lb.SlotTracked && (v.Left < left || v.Left > left+2*closesUnit) {
				t.Fatalf("round %d: the window of slot %d is open for %v still, want %v", round, i, v.Left, left)
			}
		}
		a.lim.now += pass
		b.lim.now += pass
	}
}

// Who leaves is not let go at drain_timeout, nor when nothing is left of it here, while
// a table that is followed names it: that the other node decides.
func TestFollowedBackendStays(t *testing.T) {
	a, b := newPlanned(1000*time.Second), newPlanned(5000*time.Second)
	window := func(backends string) lb.Snapshot {
		s := snapshot(t, "web dsr 192.0.2.100:80: "+backends)
		s.Services[0].TrackWindow, s.Services[0].DrainTimeout = testWindow, time.Hour
		return s
	}
	a.apply(t, window("11 12"), nil)
	b.apply(t, window("11"), nil)
	b.adopt(t, a.tables())
	there := slotViews(a.tables()[0])
	b.lim.now += 2 * time.Hour
	for n := range b.state.Backends {
		b.lim.drained = map[uint32]bool{n: true}
		b.apply(t, follows(window("11")), nil)
		if diff := cmp.Diff(there, slotViews(b.tables()[0]), equateSlotViews); diff != "" {
			t.Errorf("slots (-there +here):\n%s", diff)
		}
	}
	b.lim.drained = nil
	b.apply(t, window("11"), nil)
	for _, v := range slotViews(b.tables()[0]) {
		if v.sends() != netip.MustParseAddrPort("192.0.2.11:80") {
			t.Errorf("a connection goes to %v, whose time is over", v.sends())
		}
	}
}
