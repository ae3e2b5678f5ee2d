package loader

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

const testWindow = 5 * time.Minute

// withWindow returns a dsr service with a window.
func withWindow(bs []lb.Backend) lb.ServiceState {
	s := service("web", lb.DSR, 80, bs)
	s.TrackWindow, s.DrainTimeout = testWindow, time.Hour
	return s
}

// weights returns as many backends as there are weights.
func weights(ws ...int) []lb.Backend {
	bs := backends(len(ws), 80)
	for i, w := range ws {
		bs[i].Weight = w
	}
	return bs
}

// A client of a dsr service knows the sequence number that it sends next.
type dsrClient struct {
	d    *Datapath
	addr netip.AddrPort
	isn  uint32
	// There may be no room for its handshake.
	crowded bool
}

// sendTo returns the number of the backend that a packet went to; 0: dropped.
func (c dsrClient) send(t testing.TB, flags testenv.TCPFlags, seq uint32, payload string) int {
	t.Helper()
	frame := toVIP(func(f *testenv.Frame) {
		f.Src, f.Flags, f.Seq, f.Payload = c.addr, flags, seq, []byte(payload)
	})
	through := send
	if c.crowded {
		through = sendForeseen
	}
	verdict, out := through(t, c.d, frame.Bytes())
	if verdict != xdpTX {
		return 0
	}
	return int(out[5])
}

func (c dsrClient) syn(t testing.TB) int { t.Helper(); return c.send(t, testenv.SYN, c.isn, "") }
func (c dsrClient) ack(t testing.TB) int { t.Helper(); return c.send(t, testenv.ACK, c.isn+1, "") }
func (c dsrClient) data(t testing.TB) int {
	t.Helper()
	return c.send(t, testenv.ACK|testenv.PSH, c.isn+70000, "data")
}
func (c dsrClient) open(t testing.TB) int { t.Helper(); c.syn(t); return c.ack(t) }

// clients returns n clients, from the first one on.
func clients(d *Datapath, first, n int) []dsrClient {
	var cs []dsrClient
	for i := first; i < first+n; i++ {
		cs = append(cs, dsrClient{d: d, addr: clientAddr(i), isn: 0x9000_0000 + uint32(i)*7919})
	}
	return cs
}

// owner is the backend that owns the client's slot now.
func (c dsrClient) owner() int {
	number := c.d.state.service(c.d.state.VIPs[vipIP].Tables[tcpTable], 80)
	s := c.d.state.Slots[number][Slot(FlowHash(c.addr, vipPort, lb.TCP), lb.DefaultTableSize)]
	if s.owner() == 0 {
		return 0
	}
	a := c.d.state.Backends[s.owner()].Address.Addr().As4()
	return int(a[3]) - 10
}

func entries(t testing.TB, m *ebpf.Map) int {
	t.Helper()
	n := 0
	if err := eachFlow(m, func(lbFlowKey, lbPin) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

// where returns where each client's data goes.
func where(t testing.TB, cs []dsrClient) []int {
	t.Helper()
	var at []int
	for _, c := range cs {
		at = append(at, c.data(t))
	}
	return at
}

func movedBetween(before, after []int) int {
	n := 0
	for i := range before {
		if before[i] != after[i] {
			n++
		}
	}
	return n
}

// later runs Maintain as if so long had passed.
func later(t testing.TB, d *Datapath, by time.Duration) {
	t.Helper()
	d.scan.next = 0
	if err := d.maintain(sinceBoot()+by, ticks()+uint32(by/tick)); err != nil {
		t.Fatal(err)
	}
}

// Five changes within one window move no connection, neither those from before nor
// those that opened between two of them; new ones follow the weights of the moment.
func TestPlannedChangesMoveNothing(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 1, 1)))
	all := clients(d, 0, 2000)
	for _, c := range all {
		if got := c.open(t); got != c.owner() {
			t.Fatalf("%v opened at %d, its slot is of %d", c.addr, got, c.owner())
		}
	}
	before := where(t, all)
	for i, change := range [][]lb.Backend{
		weights(1, 1, 1, 1),
		weights(3, 1, 1, 1),
		weights(3, 0, 1, 1),
		append(weights(3, 0, 1, 1)[:1:1], weights(3, 0, 1, 1)[2:]...), // the drained one is removed
		weights(1, 1, 2, 0),
	} {
		apply(t, d, withWindow(change))
		fresh := clients(d, 10000*(i+1), 500)
		for _, c := range fresh {
			if at := c.syn(t); at != c.owner() {
				t.Fatalf("change %d: a new connection went to %d, its slot is of %d", i+1, at, c.owner())
			}
			c.ack(t)
		}
		all = append(all, fresh...)
		before = append(before, where(t, fresh)...)
		if n := movedBetween(before, where(t, all)); n != 0 {
			t.Fatalf("change %d moved %d of %d connections", i+1, n, len(all))
		}
	}
	// Nor does the end of the window.
	later(t, d, testWindow+closesUnit)
	if n := movedBetween(before, where(t, all)); n != 0 {
		t.Errorf("the end of the window moved %d of %d connections", n, len(all))
	}
	later(t, d, testWindow+closesUnit)
	if n := movedBetween(before, where(t, all)); n != 0 {
		t.Errorf("tidying up moved %d of %d connections", n, len(all))
	}
	if losses := losses(t, d); losses != (Losses{}) {
		t.Errorf("losses %+v", losses)
	}
}

// Once a window has closed and its flows are gone, slots are clean again, and
// nothing is left in the flow tables.
func TestSlotsReturnToClean(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 1)))
	old := clients(d, 0, 300)
	for _, c := range old {
		c.open(t)
	}
	apply(t, d, withWindow(weights(1, 0)))
	where(t, old)
	count := func() (n map[lbSlotState]int) {
		n = map[lbSlotState]int{}
		for _, slots := range d.state.Slots {
			for _, s := range slots {
				n[s.state()]++
			}
		}
		return n
	}
	if n := count(); n[lbSlotStateSLOT_TRACKED] != lb.DefaultTableSize/2 && n[lbSlotStateSLOT_TRACKED] != lb.DefaultTableSize/2+1 {
		t.Errorf("slots by state %v after half of them have changed", n)
	}
	later(t, d, time.Minute)
	if n := count(); n[lbSlotStateSLOT_TRACKED] == 0 || n[lbSlotStateSLOT_SETTLING] != 0 {
		t.Errorf("slots by state %v before the window closes", n)
	}
	later(t, d, testWindow+closesUnit)
	at := map[uint32]bool{}
	for _, c := range old {
		if c.data(t) == 2 {
			at[Slot(FlowHash(c.addr, vipPort, lb.TCP), lb.DefaultTableSize)] = true
		}
	}
	if n := count(); len(at) < 100 || n[lbSlotStateSLOT_SETTLING] != len(at) || n[lbSlotStateSLOT_TRACKED] != 0 {
		t.Errorf("slots by state %v, want %d to settle", n, len(at))
	}
	if got := stats(t, d).Services[0].Backends[1]; got.Pinned < len(at) || got.Slots != 0 || got.Previous != 0 {
		t.Errorf("the drained backend holds %d flows, want %d; slots %d, previous %d", got.Pinned, len(at), got.Slots, got.Previous)
	}
	// The drained backend's clients hang up.
	for _, c := range old {
		c.send(t, testenv.FIN|testenv.ACK, c.isn+80000, "")
		c.send(t, testenv.ACK, c.isn+80001, "") // acknowledges the backend's FIN
	}
	later(t, d, testWindow+pinEnding+closesUnit)
	if n := count(); n[lbSlotStateSLOT_CLEAN] != lb.DefaultTableSize {
		t.Errorf("slots by state %v after all connections have ended", n)
	}
	for _, m := range []*ebpf.Map{d.objects.Handshakes, d.objects.Pins, d.objects.Stragglers} {
		if n := entries(t, m); n != 0 {
			t.Errorf("%d entries are left in %v", n, m)
		}
	}
}

// A clean slot leaves no trace of any packet.
func TestCleanSlotsLeaveNoTrace(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 1)))
	for _, c := range clients(d, 0, 100) {
		c.open(t)
		c.data(t)
	}
	for _, m := range []*ebpf.Map{d.objects.Handshakes, d.objects.Pins, d.objects.Stragglers} {
		if n := entries(t, m); n != 0 {
			t.Errorf("%d entries in %v", n, m)
		}
	}
}

// What a segment that comes to a tracked slot does, alone.
func TestTrackedSegments(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1)))
	apply(t, d, withWindow(weights(0, 1))) // every slot goes from 1 to 2
	i := 0
	next := func() dsrClient { i++; return clients(d, i, 1)[0] }
	old := func() dsrClient { // a straggler of backend 1
		c := next()
		c.data(t)
		return c
	}
	pinnedAt2 := func() dsrClient { c := next(); c.open(t); return c }
	tests := []struct {
		name   string
		client dsrClient
		do     func(c dsrClient) int
		want   int
		then   int // where data goes afterwards
	}{
		{"a SYN goes to the current owner", next(), func(c dsrClient) int { return c.syn(t) }, 2, 2},
		{"data without a SYN goes to the previous owner", next(), func(c dsrClient) int { return c.data(t) }, 1, 1},
		{"a FIN without a SYN goes to the previous owner", next(),
			func(c dsrClient) int { return c.send(t, testenv.FIN|testenv.ACK, 1, "") }, 1, 1},
		{"the answer to a SYN-ACK pins", next(), func(c dsrClient) int { c.syn(t); return c.ack(t) }, 2, 2},
		{"data ahead of it follows its SYN", next(),
			func(c dsrClient) int { c.syn(t); return c.send(t, testenv.ACK, c.isn+1461, "x") }, 2, 2},
		{"a sequence number out of reach does not", next(),
			func(c dsrClient) int { c.syn(t); return c.send(t, testenv.ACK, c.isn+2<<20, "x") }, 1, 2},
		{"a SYN sent again goes the same way", next(), func(c dsrClient) int { c.syn(t); return c.syn(t) }, 2, 2},
		{"a SYN on an old flow changes nothing for it", old(), func(c dsrClient) int { c.syn(t); return c.send(t, testenv.ACK, c.isn-5, "x") }, 1, 2},
		{"a port used again leaves the old backend", old(), func(c dsrClient) int { c.isn += 1 << 30; c.syn(t); return c.ack(t) }, 2, 2},
		{"a blind RST breaks nothing", old(), func(c dsrClient) int { return c.send(t, testenv.RST, 7, "") }, 1, 1},
		{"nor one to a pinned flow", pinnedAt2(), func(c dsrClient) int { return c.send(t, testenv.RST, 7, "") }, 2, 2},
		{"SYN with FIN is no SYN", next(), func(c dsrClient) int { return c.send(t, testenv.SYN|testenv.FIN, c.isn, "") }, 1, 1},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.do(tc.client); got != tc.want {
				t.Errorf("it went to backend %d, want %d", got, tc.want)
			}
			c := tc.client
			if got := c.send(t, testenv.ACK|testenv.PSH, c.isn+5000, "data"); got != tc.then {
				t.Errorf("data afterwards goes to %d, want %d", got, tc.then)
			}
		})
	}
}

// What is pinned to a backend that fails goes to the owner of its slot at once.
func TestFailureVoidsPins(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 1)))
	cs := clients(d, 0, 200)
	for _, c := range cs {
		c.open(t)
	}
	apply(t, d, withWindow(weights(1, 0, 1)))
	where(t, cs)
	failed := weights(1, 0, 1)
	failed[1].Failed = true
	apply(t, d, withWindow(failed))
	for i, at := range where(t, cs) {
		if at == 2 || at == 0 {
			t.Fatalf("client %d goes to %d after backend 2 has failed", i, at)
		}
	}
	for _, c := range clients(d, 1000, 100) {
		if at := c.open(t); at != c.owner() {
			t.Fatalf("a new connection went to %d, want %d", at, c.owner())
		}
	}
}

// A removed backend stays until its connections are gone, or its time is over.
func TestRemovedBackend(t *testing.T) {
	var said bytes.Buffer
	remove := func() (*Datapath, []dsrClient) {
		o := Options{MaxFlows: 100000, Ports: allPorts, Log: slog.New(slog.NewTextHandler(&said, nil))}
		d := newDatapathWith(t, o, natTimeouts, withWindow(weights(1, 1)))
		said.Reset()
		cs := clients(d, 0, 100)
		for _, c := range cs {
			c.open(t)
		}
		apply(t, d, withWindow(weights(1)))
		where(t, cs)
		return d, cs
	}
	t.Run("drained", func(t *testing.T) {
		d, cs := remove()
		later(t, d, testWindow+closesUnit)
		later(t, d, testWindow+closesUnit)
		if n := len(d.state.Backends); n != 2 {
			t.Fatalf("%d backends while one has connections, want 2", n)
		}
		for _, c := range cs {
			c.send(t, testenv.FIN|testenv.ACK, c.isn+80000, "")
		}
		later(t, d, testWindow+pinEnding+closesUnit)
		if n := len(d.state.Backends); n != 1 {
			t.Errorf("%d backends after the connections have ended, want 1", n)
		}
		if !strings.Contains(said.String(), `"connections broken"=0`) {
			t.Errorf("it breaks nothing, and the log says\n%s", &said)
		}
	})
	t.Run("timed out", func(t *testing.T) {
		d, cs := remove()
		breaks := 0
		for _, at := range where(t, cs) {
			if at == 2 {
				breaks++
			}
		}
		later(t, d, time.Hour+10*time.Second)
		if !strings.Contains(said.String(), fmt.Sprintf(`"connections broken"=%d`, breaks)) || breaks == 0 {
			t.Errorf("it breaks %d connections, and the log says\n%s", breaks, &said)
		}
		if n := len(d.state.Backends); n != 1 {
			t.Errorf("%d backends after drain_timeout, want 1", n)
		}
		for _, at := range where(t, cs) {
			if at != 1 {
				t.Fatalf("data goes to %d", at)
			}
		}
	})
	t.Run("back again", func(t *testing.T) {
		d, cs := remove()
		before := where(t, cs)
		apply(t, d, withWindow(weights(1, 1)))
		if n := movedBetween(before, where(t, cs)); n != 0 {
			t.Errorf("%d connections have moved", n)
		}
		for _, b := range d.state.Backends {
			if b.Leaving != 0 {
				t.Errorf("%v is leaving still", b.Address)
			}
		}
	})
}

// With no room for its handshake a SYN goes where its later packets will go.
func TestHandshakesFull(t *testing.T) {
	d := newDatapathWith(t, Options{MaxFlows: 1024, Ports: allPorts}, natTimeouts, withWindow(weights(1)))
	apply(t, d, withWindow(weights(0, 1)))
	all := clients(d, 0, 3000)
	for i := range all {
		all[i].crowded = true
	}
	at := map[int]int{}
	for _, c := range all {
		at[c.syn(t)]++
	}
	if at[2] == 0 || at[1] == 0 || at[1]+at[2] != len(all) {
		t.Fatalf("SYNs went to %v", at)
	}
	if got := losses(t, d).HandshakesFull; got != uint64(at[1]) {
		t.Errorf("handshakes_full is %d, want %d", got, at[1])
	}
	found := map[Found]int{}
	for _, c := range all {
		x, err := explainerOf(t, d).Explain(Packet{Protocol: lb.TCP, Source: c.addr, Destination: vipPort, Flags: TCPSyn, Sequence: &c.isn})
		if err != nil {
			t.Fatal(err)
		}
		found[x.Found]++
	}
	if diff := cmp.Diff(map[Found]int{FoundHandshake: at[2], NewHandshakeLost: at[1]}, found); diff != "" {
		t.Errorf("explained (-want +got):\n%s", diff)
	}
	// Another SYN of a flow that is remembered takes the place of the first.
	for _, c := range all {
		c.isn++
		if to := c.syn(t); to == 2 {
			found[FoundHandshake]--
		}
	}
	if found[FoundHandshake] != 0 {
		t.Errorf("%d other SYNs of flows that are remembered went elsewhere", found[FoundHandshake])
	}
	if got := losses(t, d).HandshakesFull; got != uint64(2*at[1]) {
		t.Errorf("handshakes_full is %d after the other SYNs, want %d", got, 2*at[1])
	}
	for _, c := range all {
		if syn, ack := c.syn(t), c.ack(t); syn != ack {
			t.Fatalf("the SYN goes to %d, what follows to %d", syn, ack)
		}
	}
	// They are forgotten after 5 s.
	later(t, d, handshakeIdle+time.Second)
	if n := entries(t, d.objects.Handshakes); n != 0 {
		t.Errorf("%d handshakes are left after 6 s", n)
	}
}

// What a new daemon reads back has the same windows.
func TestWindowsAreReadBack(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 1)))
	apply(t, d, withWindow(weights(1, 2, 1)))
	got, err := d.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffStates(d.state, got); diff != "" {
		t.Errorf("state (-planned +read):\n%s", diff)
	}
	if !slices.ContainsFunc(got.Slots[1], func(s slot) bool { return s.left(sinceBoot()) > testWindow-time.Minute }) {
		t.Error("no slot has a window")
	}
}
