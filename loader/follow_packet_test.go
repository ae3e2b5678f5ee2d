package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// copyFlows brings the entries of one node's flow tables to another, as far as that one
// has their backends.
func copyFlows(t *testing.T, from, to *Datapath) {
	t.Helper()
	vips := from.state.vipsByIndex()
	numbers := map[netip.AddrPort]uint32{}
	for n, b := range to.state.Backends {
		numbers[b.Address] = n
	}
	for _, m := range []struct{ from, to *ebpf.Map }{
		{from.objects.Pins, to.objects.Pins}, {from.objects.Stragglers, to.objects.Stragglers},
	} {
		err := eachFlow(m.from, func(k lbFlowKey, p lbPin) {
			b := from.state.Backends[p.Backend]
			n, ok := numbers[b.Address]
			if !ok || !b.Alive || b.Generation != p.Generation {
				return
			}
			k.Vip = to.state.VIPs[vips[k.Vip]].Index
			p.Backend, p.Generation = n, to.state.Backends[n].Generation
			if err := m.to.Put(&k, &p); err != nil {
				t.Fatal(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// restart forgets what a daemon knows that is not in the maps.
func restart(t *testing.T, d *Datapath) {
	t.Helper()
	state, err := d.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	d.state, d.want, d.names = state, lb.Snapshot{}, map[uint16]string{}
	d.scan, d.moves, d.cache, d.pressure = scan{}, map[uint16]Moves{}, &tableCache{}, pressure{}
	d.show()
}

func adopt(t *testing.T, d *Datapath, tables []lb.TableState) {
	t.Helper()
	refused, err := d.AdoptTables(tables)
	if err != nil || len(refused) > 0 {
		t.Fatalf("adopt: refused %v, %v", refused, err)
	}
}

// on returns the same clients at another node.
func on(d *Datapath, cs []dsrClient) []dsrClient {
	out := slices.Clone(cs)
	for i := range out {
		out[i].d = d
	}
	return out
}

// A node that has adopted another one's tables sends every connection where that one
// did, whatever its own verdicts and weights, over restarts of either; and when it takes
// over, with a table of its own, all that sends while the window is open stays.
func TestTakeoverMovesNothing(t *testing.T) {
	weighing := func(change func([]lb.Backend), ws ...int) lb.ServiceState {
		s := withWindow(weights(ws...))
		if change != nil {
			change(s.Backends)
		}
		return s
	}
	following := func(s lb.ServiceState) lb.ServiceState { s.Followed = true; return s }
	a := newDatapath(t, weighing(nil, 1, 1, 1))
	b := newDatapath(t, weighing(nil, 1, 1, 1))
	// The way to a backend that only the other node has is known, too.
	foreign := weighing(nil, 1, 1, 1)
	foreign.Leaving = weights(1, 1, 1, 1)[3:]
	all := clients(a, 0, 1000)
	for _, c := range all {
		c.open(t)
	}
	for i, step := range []struct {
		there, here lb.ServiceState
		restarts    *Datapath
	}{
		{weighing(nil, 1, 1, 1, 1), foreign, nil}, // the fourth is configured there first
		{weighing(nil, 3, 1, 1, 1), weighing(nil, 1, 1, 1, 1), b},
		{weighing(nil, 3, 0, 1, 1), weighing(func(bs []lb.Backend) { bs[0].Failed = true }, 1, 1, 1, 1), a},
		{weighing(nil, 1, 1, 2, 0), weighing(func(bs []lb.Backend) { bs[3].Failed = true }, 1, 2, 1, 1), b},
	} {
		// The other node has the table before it is in force there.
		tables, err := a.Preview(lb.Snapshot{Services: []lb.ServiceState{step.there}})
		if err != nil || len(tables) != 1 {
			t.Fatalf("step %d: preview of %d tables, %v", i, len(tables), err)
		}
		adopt(t, b, tables)
		apply(t, a, step.there)
		apply(t, b, following(step.here))
		if step.restarts != nil {
			restart(t, step.restarts)
			apply(t, a, step.there)
			apply(t, b, following(step.here))
		}
		fresh := clients(a, 10000*(i+1), 300)
		for _, c := range fresh {
			c.open(t)
		}
		all = append(all, fresh...)
		at := where(t, all)
		if diff := cmp.Diff(slotViews(a.TableStates()[0]), slotViews(b.TableStates()[0]), equateSlotViews); diff != "" {
			t.Fatalf("step %d: slots (-there +here):\n%.2000s", i, diff)
		}
		copyFlows(t, a, b)
		if n := movedBetween(at, where(t, on(b, all))); n != 0 {
			t.Fatalf("step %d: the other node sends %d of %d connections elsewhere", i, n, len(all))
		}
	}

	// The backend that had failed here has come back; another one fails at once.
	before := where(t, all)
	own := weighing(func(bs []lb.Backend) { bs[2].Failed = true }, 2, 1, 1, 1)
	tables, err := b.Preview(lb.Snapshot{Services: []lb.ServiceState{own}})
	if err != nil || len(tables) != 1 {
		t.Fatalf("preview of the takeover: %d tables, %v", len(tables), err)
	}
	apply(t, b, own)
	if diff := cmp.Diff(slotViews(tables[0]), slotViews(b.TableStates()[0]), equateSlotViews); diff != "" {
		t.Errorf("slots (-previewed +applied):\n%.2000s", diff)
	}
	at := where(t, on(b, all))
	lost := 0
	for i := range all {
		switch {
		case before[i] == 3 && at[i] == 3:
			t.Fatalf("%v goes to the backend that has failed", all[i].addr)
		case before[i] == 3:
			lost++
		case at[i] != before[i]:
			t.Fatalf("%v was at %d, and is at %d after the takeover", all[i].addr, before[i], at[i])
		}
	}
	if lost < len(all)/10 || lost > len(all)/2 {
		t.Errorf("%d of %d connections were at the backend that fails", lost, len(all))
	}
	// Nor does the end of the windows move any.
	for range 2 {
		later(t, b, testWindow+closesUnit)
		if n := movedBetween(at, where(t, on(b, all))); n != 0 {
			t.Fatalf("the end of the windows moves %d connections", n)
		}
	}
	for _, c := range on(b, clients(a, 90000, 200)) {
		if to := c.open(t); to != c.owner() || to == 3 {
			t.Fatalf("a new connection goes to %d, its slot is of %d", to, c.owner())
		}
	}
}

// A node that follows closes windows by their own time, and lets a backend go that it
// knows from the other node's table when nothing names it any more.
func TestFollowerMaintains(t *testing.T) {
	there, here := withWindow(weights(1, 1)), withWindow(weights(1))
	a, b := newDatapath(t, there), newDatapath(t, here)
	adopt(t, b, a.TableStates())
	apply(t, a, withWindow(weights(1, 0)))
	adopt(t, b, a.TableStates())
	count := func() map[lb.SlotPhase]int {
		n := map[lb.SlotPhase]int{}
		for _, s := range b.TableStates()[0].Slots {
			n[s.Phase]++
		}
		return n
	}
	if n := count(); n[lb.SlotTracked] == 0 || n[lb.SlotSettling] != 0 {
		t.Fatalf("slots by phase %v after the table was adopted", n)
	}
	later(t, b, time.Minute)
	if n := count(); n[lb.SlotTracked] == 0 || len(b.state.Backends) != 2 {
		t.Errorf("slots by phase %v before the window closes, %d backends", n, len(b.state.Backends))
	}
	later(t, b, testWindow+2*closesUnit)
	later(t, b, testWindow+2*closesUnit)
	if n := count(); n[lb.SlotClean] != lb.DefaultTableSize {
		t.Errorf("slots by phase %v after the window has closed", n)
	}
	if n := len(b.state.Backends); n != 1 {
		t.Errorf("%d backends when nothing names the one that is not configured, want 1", n)
	}
}

// What is refused is named, and the rest is adopted.
func TestAdoptTables(t *testing.T) {
	web, mail := withWindow(weights(1, 1)), service("mail", lb.NAT, 25, backends(2, 25))
	a := newDatapath(t, mail, web)
	smaller := web
	smaller.TableSize = 251
	b := newDatapath(t, mail, smaller)
	mail.Backends = mail.Backends[:1]
	apply(t, a, mail, web)
	tables := a.TableStates()
	tables = append(tables, lb.TableState{Service: "ftp"})
	for i := range tables[0].Backends {
		// Which is not here.
		tables[0].Backends[i].Address = netip.AddrPortFrom(backendAddr(7+i), 25)
	}
	refused, err := b.AdoptTables(tables)
	if err != nil {
		t.Fatal(err)
	}
	want := []RefusedTable{
		{"web", "its table has 65537 slots, and 251 here: give both nodes the same configuration"},
		{"ftp", "there is no such service here: give both nodes the same configuration"},
	}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(slotViews(tables[0]), slotViews(b.TableStates()[0]), equateSlotViews); diff != "" {
		t.Errorf("slots of mail (-there +here):\n%.2000s", diff)
	}
	read, err := b.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffStates(b.state, read); diff != "" {
		t.Errorf("tables (-planned +read):\n%s", diff)
	}
	// Its next hop comes when it is known.
	hop := lb.NextHop{Interface: nicIndex, Destination: backendMAC(7), Source: nicMAC}
	mail.Followed, mail.Leaving = true, []lb.Backend{{Address: netip.AddrPortFrom(backendAddr(7), 25), NextHop: hop}}
	apply(t, b, mail, smaller)
	c := &conn{d: b, client: clientPort, service: netip.AddrPortFrom(vipIP, 25)}
	c.open(t)
	if want := netip.AddrPortFrom(backendAddr(7), 25); c.backend != want {
		t.Errorf("a connection goes to %v, want %v", c.backend, want)
	}
}
