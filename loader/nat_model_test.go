package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The idle times of the model test, and how long nothing comes in a wait: no sum
// of waits comes near an idle time, so that the time of the test itself does not
// count.
var (
	modelTimeouts = map[lbNatState]time.Duration{
		lbNatStateNAT_SYN_SENT: 100 * time.Second, lbNatStateNAT_SYN_RECEIVED: 100 * time.Second,
		lbNatStateNAT_ESTABLISHED: 1000 * time.Second, lbNatStateNAT_CLOSING: 400 * time.Second,
		lbNatStateNAT_CLOSED: 800 * time.Second,
	}
	modelWait = 150 * time.Second
)

// A modelFlow is what nat must know of a connection, written from its contract
// and not from the program.
type modelFlow struct {
	key        modelKey
	conn       *conn
	state      lbNatState
	finClient  bool
	finBackend bool
	opened     bool // the client has answered the backend's SYN
	answered   bool // the backend has sent its SYN
	idle       time.Duration
	backend    netip.AddrPort
}

func (f *modelFlow) over() bool {
	return f.state == lbNatStateNAT_CLOSED && (!f.opened || f.finClient && f.finBackend)
}

// follow is what a packet that is translated does to a connection.
func (f *modelFlow) follow(flags testenv.TCPFlags, data, client, right bool) {
	f.idle = 0
	if flags&testenv.RST != 0 {
		f.state = lbNatStateNAT_CLOSED
		return
	}
	bothFIN := f.finClient && f.finBackend
	closed := f.state == lbNatStateNAT_CLOSED
	switch {
	case !client && flags&(testenv.SYN|testenv.ACK) == testenv.SYN|testenv.ACK:
		if f.state != lbNatStateNAT_ESTABLISHED && f.state != lbNatStateNAT_CLOSING {
			f.answered = true
		}
		if f.state == lbNatStateNAT_SYN_SENT {
			f.state = lbNatStateNAT_SYN_RECEIVED
		}
	case client && right && flags&testenv.SYN == 0 && f.answered &&
		(f.state == lbNatStateNAT_SYN_RECEIVED || closed && !bothFIN):
		if closed {
			f.finClient, f.finBackend = false, false
		}
		f.opened, f.state = true, lbNatStateNAT_ESTABLISHED
	}
	mine := &f.finBackend
	if client {
		mine = &f.finClient
	}
	if flags&testenv.FIN != 0 {
		*mine = true
		switch {
		case f.finClient && f.finBackend:
			f.state = lbNatStateNAT_CLOSED
		case f.state == lbNatStateNAT_ESTABLISHED:
			f.state = lbNatStateNAT_CLOSING
		}
		return
	}
	if data && (f.state == lbNatStateNAT_CLOSING && *mine || f.state == lbNatStateNAT_CLOSED && !f.over()) {
		*mine = false
		f.state = lbNatStateNAT_ESTABLISHED
		if f.finClient || f.finBackend {
			f.state = lbNatStateNAT_CLOSING
		}
	}
}

type modelKey struct{ client, service netip.AddrPort }

type natModel struct {
	t      *testing.T
	d      *Datapath
	r      *rand.Rand
	bs     []lb.Backend
	flows  map[modelKey]*modelFlow
	stale  []*conn // how connections looked that are void
	pairs  map[uint32]pairView
	begun  map[uint32][]*modelFlow // by pair
	log    []string
	counts map[string]int
}

func (m *natModel) fail(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.log[max(0, len(m.log)-40):] {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

func (m *natModel) services() []lb.ServiceState {
	a, b := service("a", lb.NAT, 80, m.bs), service("b", lb.NAT, 81, m.bs[:2])
	a.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	a.TableSize, b.TableSize = 1009, 1009
	return []lb.ServiceState{a, b}
}

// owner returns the backend that a new connection must go to.
func (m *natModel) owner(k modelKey) (netip.AddrPort, bool) {
	number := m.d.state.service(m.d.state.VIPs[vipIP].Tables[tcpTable], k.service.Port())
	slot := Slot(FlowHash(k.client, k.service, lb.TCP), 1009)
	b, ok := m.d.state.Backends[m.d.state.Slots[number][slot].owner()]
	return b.Address, ok
}

// drop makes a connection void in the model.
func (m *natModel) drop(k modelKey) {
	m.stale = append(m.stale, m.flows[k].conn)
	delete(m.flows, k)
}

// fromClient sends a packet of a client and checks where it goes.
func (m *natModel) fromClient(k modelKey, flags testenv.TCPFlags, data string, right bool) {
	f := m.flows[k]
	if f != nil && flags == testenv.SYN && f.over() {
		m.drop(k)
		f = nil
	}
	c := newConn(m.d, k.client)
	c.service = k.service
	if f != nil {
		c = f.conn
	}
	before := *c
	c.changes = nil
	if !right {
		c.changes = []change{func(f *testenv.Frame) { f.Ack += 7 }}
	}
	want := "sent"
	owner, ok := m.owner(k)
	switch {
	case f == nil && flags != testenv.SYN:
		want = "no_flow"
	case f == nil && !ok:
		want = "no_backend"
	}
	got := c.forward(m.t, flags, data)
	m.log = append(m.log, fmt.Sprintf("%v to %v: %v %q right %v: %s %v to %v", k.client, k.service, flags, data, right, got.Outcome, c.source, c.backend))
	m.counts[want]++
	if got.Outcome != want {
		m.fail("outcome %s, want %s", got.Outcome, want)
	}
	if want != "sent" {
		return
	}
	if f == nil {
		f = m.opens(k, c, owner)
	} else if c.source != before.source || c.backend != before.backend {
		m.fail("an open connection moved from %v-%v to %v-%v", before.source, before.backend, c.source, c.backend)
	}
	f.follow(flags, data != "", true, right && flags&testenv.ACK != 0)
	m.compare(f)
}

// opens checks the translation of a new connection.
func (m *natModel) opens(k modelKey, c *conn, owner netip.AddrPort) *modelFlow {
	if c.backend != owner {
		m.fail("a new connection goes to %v, want %v", c.backend, owner)
	}
	if p := c.source.Port(); p < m.d.share.First || p > m.d.share.Last {
		m.fail("port %d is not of the share %v", p, m.d.share)
	}
	for other, f := range m.flows {
		if f.conn.source != c.source || f.backend != c.backend {
			continue
		}
		if f.state != lbNatStateNAT_CLOSED {
			m.fail("%v gets the port of %v, which is open", k, other)
		}
		delete(m.flows, other)
		m.counts["taken over"]++
	}
	f := &modelFlow{key: k, conn: c, state: lbNatStateNAT_SYN_SENT, backend: c.backend}
	m.flows[k] = f
	m.counts["opened"]++

	// The handshake begun a ring's length ago makes way, if nothing came of it.
	pair := m.pairOf(f)
	m.begun[pair] = append(m.begun[pair], f)
	if n := len(m.begun[pair]) - 1 - int(handshakes(m.d.share)); n >= 0 {
		old := m.begun[pair][n]
		embryonic := old.state == lbNatStateNAT_SYN_SENT || old.state == lbNatStateNAT_SYN_RECEIVED
		if m.flows[old.key] == old && embryonic {
			m.drop(old.key)
			m.counts["given up"]++
		}
	}
	return f
}

// fromBackend sends a packet of a backend and checks that it reaches its client.
func (m *natModel) fromBackend(k modelKey, flags testenv.TCPFlags, data string) {
	f := m.flows[k]
	if f == nil {
		return
	}
	got := f.conn.reply(m.t, flags, data)
	m.log = append(m.log, fmt.Sprintf("%v for %v: %v %q: %s", f.backend, k.client, flags, data, got.Outcome))
	if got.Outcome != "sent" || got.Frame.Src != k.service || got.Frame.Dst != k.client {
		m.fail("a reply went from %v to %v, outcome %s", got.Frame.Src, got.Frame.Dst, got.Outcome)
	}
	f.follow(flags, data != "", false, false)
	m.compare(f)
}

// pair returns the memory of a pair; the walk removes none.
func (m *natModel) pair(n uint32) pairView {
	v, ok := m.pairs[n]
	if !ok {
		v = viewPair(m.t, m.d, n)
		m.pairs[n] = v
	}
	return v
}

func (m *natModel) pairOf(f *modelFlow) uint32 {
	for n, p := range m.d.state.Pairs {
		if p.Address == f.backend && p.Source == f.conn.source.Addr() {
			return n
		}
	}
	m.fail("no pair from %v to %v", f.conn.source.Addr(), f.backend)
	return 0
}

// compare checks the program's state of a flow.
func (m *natModel) compare(f *modelFlow) {
	if got := lbNatState(m.pair(m.pairOf(f)).flow(f.conn.source.Port()).State); got != f.state {
		m.fail("the flow is in state %d, want %d", got, f.state)
	}
}

// wait lets time pass.
func (m *natModel) wait() {
	m.log = append(m.log, "wait")
	for n := range m.d.state.Pairs {
		for port := m.d.share.First; port <= m.d.share.Last; port++ {
			m.pair(n).age(port, modelWait)
		}
	}
	for k, f := range m.flows {
		f.idle += modelWait
		if f.idle > modelTimeouts[f.state] {
			m.drop(k)
			m.counts["expired"]++
		}
	}
}

// change changes a backend: fails it, brings it back, or gives it another weight.
func (m *natModel) change() {
	i := m.r.IntN(len(m.bs))
	b := &m.bs[i]
	switch m.r.IntN(3) {
	case 0:
		b.Failed = !b.Failed
		if b.Failed {
			for k, f := range m.flows {
				if f.backend == b.Address {
					m.drop(k)
					m.counts["failed"]++
				}
			}
		}
	default:
		b.Weight = m.r.IntN(3)
	}
	m.log = append(m.log, fmt.Sprintf("backend %v failed %v", *b, b.Failed))
	apply(m.t, m.d, m.services()...)
}

// strays sends replies of connections that are void.
func (m *natModel) strays() {
	used := map[[2]netip.AddrPort]bool{}
	for _, f := range m.flows {
		used[[2]netip.AddrPort{f.conn.source, f.backend}] = true
	}
	for _, c := range m.stale {
		if used[[2]netip.AddrPort{c.source, c.backend}] {
			continue
		}
		if got := c.reply(m.t, testenv.ACK, "stray"); got.Outcome != "no_service" {
			m.fail("a reply of a void connection from %v: %s", c.source, got.Outcome)
		}
	}
	m.stale = nil
}

// Thousands of events at random: every packet must go where the model says.
func TestNATModel(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			// No more connections than ports, so that none is refused.
			o := Options{MaxFlows: 5000, Ports: freeShare(t, 24)}
			m := &natModel{
				t: t, r: rand.New(rand.NewPCG(seed, 1)), bs: backends(3, 8080),
				flows: map[modelKey]*modelFlow{}, pairs: map[uint32]pairView{}, begun: map[uint32][]*modelFlow{}, counts: seen,
			}
			m.d = newDatapathWith(t, o, modelTimeouts, m.services()...)
			for range 4000 {
				m.step()
			}
		})
	}
	for _, what := range []string{"opened", "taken over", "expired", "failed", "given up", "no_flow", "no_backend", "sent"} {
		if seen[what] < 10 {
			t.Errorf("the walks have seen %d connections %s, want 10 at least", seen[what], what)
		}
	}
}

func (m *natModel) step() {
	// Some clients are busy, and go through the ports while others rest.
	clients := 3
	if m.r.IntN(4) == 0 {
		clients = 11
	}
	k := modelKey{
		client:  netip.AddrPortFrom(clientIP, uint16(40000+m.r.IntN(clients))),
		service: netip.AddrPortFrom(vipIP, uint16(80+m.r.IntN(2))),
	}
	const syn, ack, fin, rst = testenv.SYN, testenv.ACK, testenv.FIN, testenv.RST
	switch n := m.r.IntN(1000); {
	case n < 100:
		m.fromClient(k, syn, "", true)
	case n < 250: // all of a handshake, as far as there is a backend
		m.fromClient(k, syn, "", true)
		m.fromBackend(k, syn|ack, "")
		m.fromClient(k, ack, "", true)
	case n < 380: // all of a life
		m.fromClient(k, syn, "", true)
		m.fromBackend(k, syn|ack, "")
		m.fromClient(k, ack, "", true)
		m.fromBackend(k, fin|ack, "")
		m.fromClient(k, fin|ack, "", true)
	case n < 450:
		m.fromBackend(k, syn|ack, "")
	case n < 550:
		m.fromClient(k, ack, "", true)
	case n < 580:
		m.fromClient(k, ack, "", false)
	case n < 660:
		m.fromClient(k, ack, "data", true)
	case n < 740:
		m.fromBackend(k, ack, "data")
	case n < 820:
		m.fromClient(k, fin|ack, "", true)
	case n < 890:
		m.fromBackend(k, fin|ack, "")
	case n < 930:
		m.fromClient(k, rst, "", true)
	case n < 950:
		m.fromBackend(k, rst|ack, "")
	case n < 970:
		m.strays()
	case n < 977:
		m.change()
	case n < 992:
		m.fromClient(k, ack, "data", true)
	default:
		m.wait()
	}
}
