package loader

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// attachNew attaches what Open has returned, so that an upgrade ends, and makes the
// program take test packets.
func (l *layout1) attachNew(d *Datapath, interfaces ...string) {
	l.Helper()
	l.mustAttach(d, Auto, interfaces...)
	store(d.tables.nic(nicIndex), lbInterface{Index: nicIndex, Mac: nicMAC})
}

// openNew opens the data plane as a daemon of this version does.
func (l *layout1) openNew(change func(*Options)) (*Datapath, error) {
	l.Helper()
	o := Options{PinDir: l.host.PinDir, MaxFlows: 16384, Ports: allPorts, Log: slog.New(slog.NewTextHandler(l.logs, nil))}
	if change != nil {
		change(&o)
	}
	var d *Datapath
	err := l.host.Do(func() error {
		var err error
		d, err = open(o, patience)
		return err
	})
	return d, err
}

// upgrade opens and attaches the data plane.
func (l *layout1) upgrade(change func(*Options), interfaces ...string) *Datapath {
	l.Helper()
	d, err := l.openNew(change)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { l.close(d) })
	l.attachNew(d, interfaces...)
	return d
}

// begin makes a connection in a state, through the program of layout 1.
func (l *layout1) begin(i int, state lbNatState) *conn {
	l.Helper()
	c := newConn(l.run, clientAddr(i))
	f := toBackend(l, l.run, c.fromClient(testenv.SYN, ""))
	if f.Src.Addr() == (netip.Addr{}) {
		l.Fatalf("the SYN of %v was not forwarded", c.client)
	}
	c.source, c.backend = f.Src, f.Dst
	for _, s := range []struct {
		until lbNatState
		send  testenv.Frame
	}{
		{lbNatStateNAT_SYN_RECEIVED, c.fromBackend(testenv.SYN|testenv.ACK, "")},
		{lbNatStateNAT_ESTABLISHED, c.fromClient(testenv.ACK, "")},
		{lbNatStateNAT_CLOSING, c.fromClient(testenv.FIN|testenv.ACK, "")},
		{lbNatStateNAT_CLOSED, c.fromBackend(testenv.FIN|testenv.ACK, "")},
	} {
		if s.until > state {
			break
		}
		if out := toBackend(l, l.run, s.send); !out.Src.IsValid() {
			l.Fatalf("%v of %v was not forwarded", s.send.Flags, c.client)
		}
	}
	return c
}

// pairOf finds the pair of a connection.
func pairOf(t testing.TB, d *Datapath, c *conn) uint32 {
	t.Helper()
	for n, p := range d.state.Pairs {
		if p.Address == c.backend && p.Source == c.source.Addr() {
			return n
		}
	}
	t.Fatalf("no pair from %v to %v", c.source, c.backend)
	return 0
}

func (c *conn) wantState(t testing.TB, want lbNatState) {
	t.Helper()
	f := viewPair(t, c.d, pairOf(t, c.d, c)).flow(c.source.Port())
	if f.State != uint32(want) {
		t.Errorf("the flow of %v is in state %d, want %d", c.client, f.State, want)
	}
}

// goesOn checks that a connection in a state goes on under the new program, on the
// same port and backend.
func (c *conn) goesOn(t testing.TB, state lbNatState) {
	t.Helper()
	source, backend := c.source, c.backend
	c.wantState(t, state)
	switch state {
	case lbNatStateNAT_SYN_SENT:
		c.mustForward(t, testenv.SYN, "")
		c.mustReply(t, testenv.SYN|testenv.ACK, "")
		c.mustForward(t, testenv.ACK, "")
		c.wantState(t, lbNatStateNAT_ESTABLISHED)
	case lbNatStateNAT_SYN_RECEIVED:
		c.mustReply(t, testenv.SYN|testenv.ACK, "")
		c.mustForward(t, testenv.ACK, "data")
		c.wantState(t, lbNatStateNAT_ESTABLISHED)
	case lbNatStateNAT_ESTABLISHED:
		c.mustForward(t, testenv.ACK, "data")
		c.mustReply(t, testenv.ACK, "data")
		c.wantState(t, lbNatStateNAT_ESTABLISHED)
	case lbNatStateNAT_CLOSING:
		c.mustReply(t, testenv.ACK, "data")
		c.wantState(t, lbNatStateNAT_CLOSING)
		c.mustReply(t, testenv.FIN|testenv.ACK, "")
		c.wantState(t, lbNatStateNAT_CLOSED)
	case lbNatStateNAT_CLOSED:
		c.mustForward(t, testenv.ACK, "")
		c.mustReply(t, testenv.FIN|testenv.ACK, "")
		c.wantState(t, lbNatStateNAT_CLOSED)
	}
	if c.source != source || c.backend != backend {
		t.Errorf("the connection of %v was from %v to %v, and is from %v to %v", c.client, source, backend, c.source, c.backend)
	}
}

var oldStates = []lbNatState{
	lbNatStateNAT_SYN_SENT, lbNatStateNAT_SYN_RECEIVED, lbNatStateNAT_ESTABLISHED, lbNatStateNAT_CLOSING, lbNatStateNAT_CLOSED,
}

// beginAll makes n connections in each state, of clients from first on.
func (l *layout1) beginAll(first, n int) map[lbNatState][]*conn {
	l.Helper()
	conns := map[lbNatState][]*conn{}
	for _, s := range oldStates {
		for range n {
			conns[s] = append(conns[s], l.begin(first, s))
			first++
		}
	}
	return conns
}

// goOn checks that connections go on under the new program.
func goOn(t testing.TB, d *Datapath, conns map[lbNatState][]*conn) {
	t.Helper()
	for state, all := range conns {
		for _, c := range all {
			c.d = d
			c.goesOn(t, state)
		}
	}
}

// dsrBackends returns where a program sends data packets of clients of the dsr
// service.
func dsrBackends(t testing.TB, d *Datapath) []string {
	t.Helper()
	var to []string
	for i := range 500 {
		f := toBackend(t, d, toVIP(func(f *testenv.Frame) {
			f.Src, f.Dst = clientAddr(i), netip.AddrPortFrom(vipIP, 443)
		}))
		to = append(to, f.DstMAC.String())
	}
	return to
}

// counted sums up the first word of an entry of a map of counters, on all CPUs.
func (l *layout1) counted(name string, index uint32) uint64 {
	l.Helper()
	raw, err := l.maps[name].LookupBytes(index)
	if err != nil {
		l.Fatal(err)
	}
	sum := uint64(0)
	for at := 0; at < len(raw); at += int(l.maps[name].ValueSize()) {
		sum += binary.NativeEndian.Uint64(raw[at:])
	}
	return sum
}

// What layout 1 held goes on under this version: tables and their numbers, flows in
// every state, the order of ports, counters. So does what its program does until it
// is replaced.
func TestUpgrade(t *testing.T) {
	n := newNode(t)
	services := upgradeServices()
	l := newLayout1(n, services, "eth0")
	conns := l.beginAll(0, 20)
	dsr := dsrBackends(t, l.run)
	cpus := uint64(ebpf.MustPossibleCPU())
	for o := uint32(notIP1); o <= internal1; o++ {
		count1(l, "outcomes", o, uint64(o))
	}
	for number := range l.state.Services {
		count1(l, "losses", uint32(number), losses1{1, 2, 3, 4, uint64(number)})
	}
	program := n.program("eth0")

	var late map[lbNatState][]*conn
	queued := map[uint32][]uint16{}
	sent := uint64(0)
	betweenCopyAndSwitch := func(step string) error {
		if step != "pinned program" {
			return nil
		}
		late = l.beginAll(10000, 20)
		send(t, l.run, toVIP(func(f *testenv.Frame) { f.Dst = netip.MustParseAddrPort("203.0.113.1:80") }).Bytes())
		count1(l, "losses", 1, losses1{1, 2, 3, 4, 11})
		for pair := range l.state.Pairs {
			queued[pair] = l.queued(pair)
		}
		for n := range l.state.Backends {
			sent += l.counted("traffic", n)
		}
		return nil
	}
	d := l.upgrade(func(o *Options) { o.reached = betweenCopyAndSwitch }, "eth0")
	if n.program("eth0") == program {
		t.Fatal("the program is the old one still")
	}
	if diff := diffStates(l.state, d.state); diff != "" {
		t.Errorf("state (-layout 1 +now):\n%s", diff)
	}
	for pair, want := range queued {
		if got := viewPair(t, d, pair).queued(); !slices.Equal(got, want) {
			t.Errorf("pair %d: %d ports stand in the ring, or in another order than the %d before", pair, len(got), len(want))
		}
	}
	want := map[string]uint64{}
	for o := uint32(notIP1); o <= internal1; o++ {
		want[earlierLayouts[1].outcomes[o]] = uint64(o) * cpus
	}
	want["not_vip"]++
	if diff := cmp.Diff(want, outcomes(t, d)); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	st := stats(t, d)
	got := uint64(0)
	for i, s := range st.Services {
		number := uint64(i + 1)
		want := Losses{NoBackend: cpus, NoPort: 2 * cpus, FlowsFull: 3 * cpus, EarlyReuse: 4 * cpus, Evicted: number * cpus}
		if number == 1 {
			want.Evicted = 11 * cpus
		}
		if diff := cmp.Diff(want, s.Losses); diff != "" {
			t.Errorf("losses of service %d (-want +got):\n%s", number, diff)
		}
		for _, b := range s.Backends {
			got += b.Packets
		}
	}
	if got == 0 || got != sent {
		t.Errorf("%d packets were forwarded, and the counters say %d", sent, got)
	}

	if diff := cmp.Diff(dsr, dsrBackends(t, d)); diff != "" {
		t.Errorf("backends of dsr connections (-layout 1 +now):\n%s", diff)
	}
	goOn(t, d, conns)
	goOn(t, d, late)
	if steps, _, err := plan(d.state, lb.Snapshot{Services: services}, limits{slots: d.objects.Slots.MaxEntries(), share: allPorts}, d.cache.table); err != nil || len(steps) > 0 {
		t.Errorf("the same services take steps %v, %v", steps, err)
	}
	apply(t, d, services...)
	for _, c := range append(conns[lbNatStateNAT_ESTABLISHED], late[lbNatStateNAT_ESTABLISHED]...) {
		c.goesOn(t, lbNatStateNAT_ESTABLISHED)
	}

	// The next connection takes the oldest free port.
	fresh := openConn(t, d, clientAddr(20000))
	if pair := pairOf(t, d, fresh); !slices.Contains(queued[pair], fresh.source.Port()) {
		t.Errorf("port %d was handed out, which was not free", fresh.source.Port())
	}
	l.wantPins()
	r := d.Upgraded()
	if r == nil {
		t.Fatal("no report")
	}
	wantReport := &Upgrade{From: 1, To: 2, VIPs: 2, Services: 3, Backends: 8, Slots: 3 * lb.DefaultTableSize, Pairs: 8, Flows: 200, NotKept: []string{}}
	if diff := cmp.Diff(wantReport, r, cmpopts.IgnoreFields(Upgrade{}, "At")); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if log := n.logs.String(); !strings.Contains(log, "was taken over") || !strings.Contains(log, "nat flows\"=200") {
		t.Errorf("log:\n%s", log)
	}

	before := d.state
	again := n.open() // a restart, from now on
	defer n.close(again)
	if diff := diffStates(before, again.state); diff != "" || again.Upgraded() != nil {
		t.Errorf("state after a restart (-before +after):\n%s", diff)
	}
}

// wantPins checks that what is pinned is of this version, and complete.
func (l *layout1) wantPins() {
	l.Helper()
	entries, err := os.ReadDir(l.host.PinDir)
	if err != nil {
		l.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), linkPrefix) {
			got = append(got, e.Name())
		}
	}
	spec, err := loadLb()
	if err != nil {
		l.Fatal(err)
	}
	want := []string{programPin}
	for name := range spec.Maps {
		if pinnable(name) {
			want = append(want, filepath.Base(pinPath("", name)))
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		l.Errorf("pins (-want +got):\n%s", diff)
	}
}

// A share of ports that changes with the version: connections keep theirs.
func TestUpgradeWithAnotherShare(t *testing.T) {
	n := newNode(t)
	services := upgradeServices()
	l := newLayout1(n, services, "eth0")
	conns := l.beginAll(0, 20)
	share := lb.PortRange{First: 40000, Last: 49999}
	d := l.upgrade(func(o *Options) { o.Ports = share }, "eth0")
	if err := n.host.Do(func() error { return d.Apply(lb.Snapshot{Services: services}) }); err != nil {
		t.Fatal(err)
	}
	for pair := range d.state.Pairs {
		checkRing(t, viewPair(t, d, pair), share)
	}
	goOn(t, d, conns)
	for i := range 50 {
		if c := openConn(t, d, clientAddr(5000+i)); c.source.Port() < share.First || c.source.Port() > share.Last {
			t.Errorf("port %d is handed out, which is not of %v", c.source.Port(), share)
		}
	}
}

// A backend that had failed is no backend, and what it had is void.
func TestUpgradeFailedBackend(t *testing.T) {
	n := newNode(t)
	services := upgradeServices()
	services[0].Backends[0].Failed = true
	l := newLayout1(n, services, "eth0")
	c := l.begin(1, lbNatStateNAT_ESTABLISHED)
	var number uint32
	for i, b := range l.state.Backends {
		if b.Address == c.backend && b.Service == 1 {
			number = i
		}
	}
	// It fails now, the way the daemon of layout 1 wrote it: another generation.
	raw, err := l.maps["backends"].LookupBytes(number)
	if err != nil {
		t.Fatal(err)
	}
	binary.NativeEndian.PutUint32(raw[44:], 99)
	l.put("backends", number, raw)
	d := l.upgrade(nil, "eth0")
	if got := d.state.Backends[number].Generation; got != 99 {
		t.Errorf("generation %d, want 99", got)
	}
	c.d = d
	if r := c.forward(t, testenv.ACK, "data"); r.Outcome != "no_flow" {
		t.Errorf("a connection of an earlier generation: %s", r.Outcome)
	}
	dead := 0
	for _, b := range d.state.Backends {
		if !b.Alive {
			dead++
		}
	}
	if dead != 1 {
		t.Errorf("%d backends are not alive, want 1", dead)
	}
	services[0].Backends[0].Failed = false
	apply(t, d, services...)
	if got := d.state.generation; got < 99 {
		t.Errorf("generations go on at %d", got)
	}
}
