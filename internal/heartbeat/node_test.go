// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/vrrp"
)

// actAsEngine in the environment makes this test binary a process that sends on
// time.
const actAsEngine = "TEST_BINARY_IS_ENGINE"

func TestMain(m *testing.M) {
	if os.Getenv(actAsEngine) != "" {
		if err := pace.Main(); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

const (
	soon     = 15 * time.Second
	interval = 10 * time.Millisecond
)

var (
	one     = netip.MustParseAddr("127.0.0.1")
	two     = netip.MustParseAddr("127.0.0.2")
	virtual = Instance{VRID: 51, Digest: 7}
)

// freePort is a port that nobody has on loopback.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// A member is a Node on loopback.
type member struct {
	*Node
	handle *Handle
	stop   func()
	log    *lines

	mu    sync.Mutex
	beats []vrrp.Beat
}

type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), s)
}

// nameAt is the name of the node at an address.
func nameAt(a netip.Addr) string { return "n" + a.String() }

// join starts a Node at one address, with a peer at the other.
func join(t *testing.T, port uint16, at, peer netip.Addr, keys ...key.Key) *member {
	t.Helper()
	return joinAs(t, Epoch{}, port, at, peer, keys...)
}

// joinAs is join for a run with an epoch of the test's, unless that is zero.
func joinAs(t *testing.T, epoch Epoch, port uint16, at, peer netip.Addr, keys ...key.Key) *member {
	t.Helper()
	return joinWith(t, nil, nameAt(at), epoch, port, at, peer, keys...)
}

// joinFrom is join for a node of another name.
func joinFrom(t *testing.T, name string, port uint16, at, peer netip.Addr, keys ...key.Key) *member {
	t.Helper()
	return joinWith(t, nil, name, Epoch{}, port, at, peer, keys...)
}

// joinWith has a listener of the test's, unless open is nil.
func joinWith(t *testing.T, open func(context.Context) (net.Listener, error), name string, epoch Epoch, port uint16, at, peer netip.Addr, keys ...key.Key) *member {
	t.Helper()
	m := &member{log: &lines{}}
	log := slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	pacer := pace.New(pace.Thread, log)
	m.Node = New(Config{Name: name, Local: at, Roster: []Peer{{nameAt(peer), peer}}, Port: port, Keys: keys, Pacer: pacer, Log: log, Open: open})
	if !epoch.isZero() {
		m.own.epoch = epoch
	}
	m.listenOn = netip.AddrPortFrom(at, port).String()
	m.handle = m.Add(virtual, []netip.Addr{peer}, interval)
	m.handle.Deliver(func(b vrrp.Beat) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.beats = append(m.beats, b)
	}, time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	m.stop = func() { cancel(); <-done; pacer.Close() }
	t.Cleanup(m.stop)
	return m
}

// is is what a condition returns: whether it is met, and what is the case if not.
func is(met bool, format string, args ...any) (bool, error) {
	if met {
		return true, nil
	}
	return false, fmt.Errorf(format, args...)
}

// last is what was heard last.
func (m *member) last() (b vrrp.Beat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.beats) > 0 {
		b = m.beats[len(m.beats)-1]
	}
	return b
}

func (m *member) waitBeat(t *testing.T, what string, want vrrp.Beat) {
	t.Helper()
	testenv.Eventually(t, soon, what, func() (bool, error) {
		got := m.last()
		return is(got == want, "last heard %+v, status %+v", got, m.Status())
	})
}

func (m *member) waitConnected(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, soon, "a connection", func() (bool, error) {
		s := m.Status()[0]
		return is(s.Connected, "status %+v", s)
	})
}

func (m *member) says(peer netip.Addr, s vrrp.State, priority uint8) vrrp.Beat {
	return vrrp.Beat{Node: m.handle.ID(), Source: peer, State: s, Priority: priority, Interval: interval}
}

func (m *member) gone() vrrp.Beat { return vrrp.Beat{Node: m.handle.ID(), Gone: true} }

func TestNodesHearEachOther(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := join(t, port, one, two, k), join(t, port, two, one, k)
	a.handle.Tell(vrrp.Active, 100)
	b.handle.Tell(vrrp.Backup, 99)
	b.waitBeat(t, "the active node", a.says(one, vrrp.Active, 100))
	a.waitBeat(t, "the backup", b.says(two, vrrp.Backup, 99))
	a.handle.Tell(vrrp.Active, vrrp.PriorityRelease)
	b.waitBeat(t, "the change", a.says(one, vrrp.Active, vrrp.PriorityRelease))
	a.waitConnected(t)
	b.waitConnected(t)
	if s := b.Status()[0]; s.Node != "n127.0.0.1" || s.Beats == 0 || s.Forged+s.Malformed > 0 || s.Mistake != "" {
		t.Errorf("got status %+v", s)
	}
}

// Two daemons whose port is another protocol's as well are connected, whichever of them
// connects.
func TestNodesOnASharedPort(t *testing.T) {
	port, k := freePort(t), key.New()
	shared := func(at netip.Addr) *statesync.Port {
		return &statesync.Port{Address: netip.AddrPortFrom(at, port).String()}
	}
	a := joinWith(t, shared(one).Other, nameAt(one), Epoch{1}, port, one, two, k)
	b := joinWith(t, shared(two).Other, nameAt(two), Epoch{2}, port, two, one, k)
	a.waitConnected(t)
	b.waitConnected(t)
}

// end ends a member as SIGKILL does: its heartbeats, and its connections without a
// goodbye. With goOn its heartbeats are back.
func (m *member) end() (goOn func()) {
	m.Node.mu.Lock()
	defer m.Node.mu.Unlock()
	for _, w := range m.paths {
		w.slot.Stop()
	}
	for _, k := range m.links.all {
		k.conn.(*net.TCPConn).CloseWrite()
	}
	return func() {
		m.Node.mu.Lock()
		defer m.Node.mu.Unlock()
		for _, w := range m.paths {
			m.point(w)
		}
	}
}

func TestTheEndOfADaemonIsSeen(t *testing.T) {
	for _, order := range []struct {
		name     string
		of, by   netip.Addr
		goodbye  bool
		wantGone bool
	}{
		{"without a goodbye", one, two, false, true},
		{"without a goodbye, the other one", two, one, false, true},
		{"with a goodbye", one, two, true, false},
	} {
		t.Run(order.name, func(t *testing.T) {
			port, k := freePort(t), key.New()
			a, b := join(t, port, order.of, order.by, k), join(t, port, order.by, order.of, k)
			a.handle.Tell(vrrp.Active, 100)
			a.waitConnected(t)
			b.waitConnected(t)
			goOn := func() {}
			if order.goodbye {
				a.stop()
				testenv.Eventually(t, soon, "the goodbye", func() (bool, error) { return b.log.has("goodbye"), nil })
			} else {
				goOn = a.end()
			}
			gone := func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				for _, beat := range b.beats {
					if beat == a.gone() {
						return true
					}
				}
				return false
			}
			if order.wantGone {
				testenv.Eventually(t, soon, "the end", func() (bool, error) { return gone(), nil })
				goOn() // it lives after all
				b.waitBeat(t, "the active node again", a.says(order.of, vrrp.Active, 100))
			} else if gone() {
				t.Error("an end with a goodbye counts as the daemon's death")
			}
		})
	}
}

// Also while one of two nodes has a new key they are connected, whichever of them
// connects, and a goodbye is understood.
func TestConnectionsWhileKeysChange(t *testing.T) {
	for _, tc := range []struct {
		name string
		of   Epoch // of who has the new key as well; the one with the lesser epoch connects
	}{{"who has it connects", Epoch{1}}, {"who has it is connected to", Epoch{3}}} {
		t.Run(tc.name, func(t *testing.T) {
			port, k := freePort(t), key.New()
			a, b := joinAs(t, tc.of, port, one, two, key.New(), k), joinAs(t, Epoch{2}, port, two, one, k)
			a.waitConnected(t)
			b.waitConnected(t)
			a.stop()
			testenv.Eventually(t, soon, "the goodbye", func() (bool, error) { return b.log.has("goodbye"), nil })
		})
	}
}

// A node that gives a connection up, for what has come by it, goes on.
func TestAConnectionGivenUpIsNoEnd(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := join(t, port, one, two, k), join(t, port, two, one, k)
	a.handle.Tell(vrrp.Active, 100)
	a.waitConnected(t)
	b.waitConnected(t)
	b.Node.mu.Lock()
	_, err := b.links.all[0].conn.Write([]byte{0, 1, 0})
	b.Node.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, soon, "the end of the connection", func() (bool, error) {
		return a.log.has("a connection has ended") && (b.log.has("has said goodbye") || b.log.has("the daemon of a peer has ended")), nil
	})
	if b.log.has("the daemon of a peer has ended") {
		t.Error("it counts as the end of the daemon")
	}
	a.waitConnected(t)
	b.waitConnected(t)
}

// A connection that the network cuts off, or that somebody has forged an end for, is no
// daemon's end.
func TestAForgedEndIsNoEndWhileHeartbeatsGoOn(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  error
	}{{"FIN", io.EOF}, {"RST", syscall.ECONNRESET}} {
		t.Run(tc.name, func(t *testing.T) {
			port, k := freePort(t), key.New()
			a, b := join(t, port, one, two, k), join(t, port, two, one, k)
			a.handle.Tell(vrrp.Active, 100)
			a.waitConnected(t)
			b.waitConnected(t)
			b.waitBeat(t, "the active node", a.says(one, vrrp.Active, 100))
			b.Node.mu.Lock()
			l := b.links.all[0]
			b.Node.mu.Unlock()
			// What b takes for the end of the connection is all that it sees: a goes on.
			b.ended(l, tc.end)
			testenv.Eventually(t, soon, "that the peer goes on", func() (bool, error) { return b.log.has("its peer goes on"), nil })
			b.mu.Lock()
			defer b.mu.Unlock()
			if slices.Contains(b.beats, a.gone()) {
				t.Error("the daemon counts as ended")
			}
		})
	}
}

// When the next heartbeat is overdue tells whether an end is that of the daemon.
func TestNextHeartbeatAfterAnEnd(t *testing.T) {
	end := time.Now()
	peer := Epoch{1}
	at := func(d time.Duration) time.Time { return end.Add(d) }
	for _, tc := range []struct {
		name  string
		heard []time.Duration // by each path, since the end
		due   time.Duration
		alive bool
	}{
		{"one has just come", []time.Duration{0}, interval + grace, false},
		{"one came a while ago", []time.Duration{-interval / 2}, interval/2 + grace, false},
		{"one is overdue already", []time.Duration{-3 * interval}, grace, false},
		{"of two paths one has just come", []time.Duration{-interval, -time.Millisecond}, interval - time.Millisecond + grace, false},
		{"one has come since, within an interval", []time.Duration{interval / 2}, interval/2 + interval + grace, false},
		{"one has come after that", []time.Duration{interval}, 2*interval + grace, true},
		{"one has come after that, by the other path", []time.Duration{-interval, interval}, 2*interval + grace, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &Node{paths: []*way{{path: path{peer: Epoch{9}, heard: at(time.Hour)}}}}
			for _, d := range tc.heard {
				n.paths = append(n.paths, &way{path: path{peer: peer, heard: at(d)}, interval: interval})
			}
			due, alive := n.nextOf(peer, end)
			if due != at(tc.due) || alive != tc.alive {
				t.Errorf("due %v after the end, goes on %v; want %v, %v", due.Sub(end), alive, tc.due, tc.alive)
			}
		})
	}
}

func TestAnotherKeyIsNamed(t *testing.T) {
	port := freePort(t)
	a, b := join(t, port, one, two, key.New()), join(t, port, two, one, key.New())
	a.handle.Tell(vrrp.Active, 100)
	testenv.Eventually(t, soon, "the mistake", func() (bool, error) {
		s := b.Status()[0]
		return is(strings.Contains(s.Mistake, "what 127.0.0.1 sends is signed with another key: give all nodes the same sync key_file") &&
			s.Forged > 0 && b.log.has("signed with another key"), "status %+v", s)
	})
	if got := b.last(); got != (vrrp.Beat{}) {
		t.Errorf("it hears %+v", got)
	}
}

// A run that follows another one has another name.
func TestARestartIsAnotherRun(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := join(t, port, one, two, k), join(t, port, two, one, k)
	a.handle.Tell(vrrp.Active, 100)
	b.waitBeat(t, "the active node", a.says(one, vrrp.Active, 100))
	a.stop()
	again := join(t, port, one, two, k)
	again.handle.Tell(vrrp.Backup, 100)
	b.waitBeat(t, "the new run", again.says(one, vrrp.Backup, 100))
	if again.handle.ID() == a.handle.ID() {
		t.Error("two runs have one name")
	}
}

// Of an instance that hangs heartbeats do not go on to say that it is Active.
func TestAnInstanceThatHangs(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := join(t, port, one, two, k), join(t, port, two, one, k)
	a.Node.mu.Lock()
	a.handle.patience = 300 * time.Millisecond
	a.Node.mu.Unlock()
	a.handle.Tell(vrrp.Active, 100)
	b.waitBeat(t, "the active node", a.says(one, vrrp.Active, 100))
	b.waitBeat(t, "the fault", a.says(one, vrrp.Fault, 100))
	a.handle.Tell(vrrp.Active, 100)
	b.waitBeat(t, "the active node again", a.says(one, vrrp.Active, 100))
}

func TestStrangersCannotConnect(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := join(t, port, one, two, k), join(t, port, two, one, k)
	a.waitConnected(t)
	for _, from := range []string{"127.0.0.3", "127.0.0.1"} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", b.listenOn)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFrame(conn, newSigner(key.New()).appendMessage(nil, message{
			kind: kindHello, from: a.own.epoch, to: b.own.epoch, body: newNonce(),
		})); err != nil && from == "127.0.0.1" {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s gets an answer", from)
		}
		conn.Close()
	}
	if b.log.has("has ended") {
		t.Error("a stranger's connection counts as the daemon's")
	}
}

func TestTakingAHeartbeatDoesNotAllocate(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	pacer := pace.New(pace.Thread, log)
	defer pacer.Close()
	k := key.New()
	n := New(Config{Name: "b", Port: 1, Keys: []key.Key{k}, Pacer: pacer, Log: log})
	heard := 0
	n.Add(virtual, []netip.Addr{one}, interval).Deliver(func(vrrp.Beat) { heard++ }, time.Minute)
	w := n.paths[0]
	w.peer, w.theirs = Epoch{1}, interval
	s := newSigner(k)
	var all [][]byte
	for i := range 102 {
		all = append(all, s.appendMessage(nil, message{
			kind: kindBeat, from: w.peer, to: Epoch(w.ticket), counter: uint64(i + 1), body: appendBeat(nil, 10000, []entry{{virtual, 2, 100}}),
		}))
	}
	i := 0
	now := time.Now()
	if allocs := testing.AllocsPerRun(100, func() { n.take(now, w, nil, all[i]); i++ }); allocs > 0 {
		t.Errorf("a heartbeat allocates %v times", allocs)
	}
	if heard != 101 {
		t.Errorf("%d heartbeats were handed on, want 101", heard)
	}
}

func TestDigest(t *testing.T) {
	a, b := netip.MustParsePrefix("192.0.2.100/24"), netip.MustParsePrefix("192.0.2.101/32")
	if Digest([]netip.Prefix{a, b}) != Digest([]netip.Prefix{b, a}) {
		t.Error("the order counts")
	}
	if Digest([]netip.Prefix{a}) == Digest([]netip.Prefix{b}) || Digest([]netip.Prefix{a}) == Digest([]netip.Prefix{a, b}) {
		t.Error("other addresses have the same digest")
	}
}
