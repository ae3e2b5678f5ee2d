// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A segment is an Ethernet segment in memory: what one node sends, all others
// receive at once.
type segment struct {
	mu    sync.Mutex
	ports map[*fakeTransport]bool
}

func newSegment() *segment { return &segment{ports: make(map[*fakeTransport]bool)} }

func (s *segment) send(from *fakeTransport, p Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for port := range s.ports {
		if port == from || from != nil && from.node.cut.Load() {
			continue
		}
		select {
		case port.in <- p:
		default: // a full queue loses packets, as a socket's does
		}
	}
}

// open returns the transports that are open.
func (s *segment) open() []*fakeTransport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.ports))
}

// A node is a host in memory: a Network, an AddressStore and a journal of what
// its Router did, in order.
type node struct {
	t       *testing.T
	segment *segment
	log     *testLog
	router  *Router
	stop    context.CancelFunc
	ended   chan struct{}
	cut     atomic.Bool   // it is not heard any more
	setUp   func(*Router) // before it runs; may be nil
	group   *Group
	routes  RouteStore
	fence   Fence // nil: none

	heartbeats Heartbeats // nil: none
	macs       MACStore

	mu       sync.Mutex
	link     Link
	linkErr  error
	openErr  error
	addErr   error
	vips     []netip.Prefix // added
	foreign  []netip.Addr
	journal  []string
	changes  []Change
	watchers []chan struct{}

	prober    *fakeProber
	probes    int     // rounds
	probed    int     // VIPs, in all of them
	strangers []Claim // what answers them
}

// newNode makes a node with the address 192.0.2.last.
func newNode(t *testing.T, s *segment, last byte) *node {
	return &node{t: t, segment: s, log: &testLog{}, link: Link{Name: "eth0", Index: int(last), MAC: MAC{2, 0, 0, 0, 0, last}, Up: true,
		Source: netip.AddrFrom4([4]byte{192, 0, 2, last})}}
}

// run starts a Router on the node. It ends with the test.
func (n *node) run(change func(*Config)) {
	n.t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg, Deps{Network: n, Addresses: n, Log: slog.New(n.log), Group: n.group, Routes: n.routes, Fence: n.fence, Heartbeats: n.heartbeats, MACs: n.macs, OnChange: func(c Change) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changes = append(n.changes, c)
	}})
	if err != nil {
		n.t.Fatal(err)
	}
	if n.setUp != nil {
		n.setUp(r)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	n.router, n.stop, n.ended = r, stop, ended
	go func() {
		defer close(ended)
		if err := r.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.t.Cleanup(func() { stop(); <-ended })
	synctest.Wait()
}

// crash cuts the node off and ends its Router. What it held stays held.
func (n *node) crash() {
	n.cut.Store(true)
	held := slices.Clone(n.vips)
	n.stop()
	<-n.ended
	n.vips = held
}

func (n *node) wantState(want State) {
	n.t.Helper()
	synctest.Wait()
	if s := n.router.Status(); s.State != want {
		n.t.Fatalf("node %v: got state %v (%s), want %v", n.link.Source, s.State, s.Reason, want)
	}
}

func (n *node) holds() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.vips) > 0
}

// taken returns the journal and starts a new one.
func (n *node) taken() []string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	j := n.journal
	n.journal = nil
	return j
}

func (n *node) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.journal = append(n.journal, fmt.Sprintf(format, args...))
}

// change changes the host and tells its Router.
func (n *node) change(f func()) {
	n.mu.Lock()
	f()
	for _, w := range n.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
	n.mu.Unlock()
	synctest.Wait()
}

func (n *node) Watch() (<-chan struct{}, func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := make(chan struct{}, 1)
	n.watchers = append(n.watchers, w)
	return w, func() {}
}

func (n *node) Link(string, func(netip.Addr) bool) (Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link, n.linkErr
}

func (n *node) Transport(link Link, peers []netip.Addr) (Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.openErr != nil {
		return nil, n.openErr
	}
	t := &fakeTransport{node: n, source: link.Source, destinations: peers, in: make(chan Packet, 64), closed: make(chan struct{}), broken: make(chan error, 1)}
	if len(peers) == 0 {
		t.destinations = []netip.Addr{groupIPv4}
	}
	n.segment.mu.Lock()
	n.segment.ports[t] = true
	n.segment.mu.Unlock()
	return t, nil
}

func (n *node) Announcer(Link, []netip.Addr) (Announcer, error) { return fakeAnnouncer{n}, nil }

func (n *node) Prober(Link, []netip.Addr) (Prober, error) {
	p := &fakeProber{node: n, claims: make(chan Claim), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.prober = p
	return p, nil
}

// A fakeProber is answered by the node's strangers at once, and counts rounds.
type fakeProber struct {
	node   *node
	claims chan Claim
	closed chan struct{}
}

func (p *fakeProber) Probe(most int) error {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	p.node.probes++
	p.node.probed += most
	for _, c := range p.node.strangers {
		go p.claim(c)
	}
	return nil
}

func (p *fakeProber) claim(c Claim) {
	select {
	case p.claims <- c:
	case <-p.closed:
	}
}

func (p *fakeProber) Receive() (Claim, error) {
	select {
	case c := <-p.claims:
		return c, nil
	case <-p.closed:
		return Claim{}, net.ErrClosed
	}
}

func (p *fakeProber) Close() error { close(p.closed); return nil }

func (n *node) Check(_ string, vips []netip.Prefix, owner bool) (AddressReport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var r AddressReport
	for _, vip := range vips {
		switch {
		case slices.Contains(n.foreign, vip.Addr()):
			if !owner {
				r.Conflicts = append(r.Conflicts, &ConflictError{vip.Addr(), "eth0"})
			}
		case slices.Contains(n.vips, vip):
			r.Present = append(r.Present, vip)
		default:
			r.Missing = append(r.Missing, vip)
		}
	}
	return r, nil
}

func (n *node) Add(_ string, vips []netip.Prefix, owner bool) error {
	n.note("add")
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, vip := range vips {
		if n.addErr == nil && !slices.Contains(n.vips, vip) && !slices.Contains(n.foreign, vip.Addr()) {
			n.vips = append(n.vips, vip)
		}
	}
	return n.addErr
}

func (n *node) Remove(_ string, vips []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := len(n.vips)
	n.vips = slices.DeleteFunc(n.vips, func(p netip.Prefix) bool { return slices.Contains(vips, p) })
	if len(n.vips) < before {
		n.journal = append(n.journal, "remove")
	}
	return nil
}

func (n *node) Added(a netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.vips, func(p netip.Prefix) bool { return p.Addr() == a })
}

type fakeAnnouncer struct{ node *node }

func (a fakeAnnouncer) Announce() error { a.node.note("announce"); return nil }
func (a fakeAnnouncer) Close() error    { return nil }

type fakeTransport struct {
	node         *node
	source       netip.Addr
	destinations []netip.Addr
	in           chan Packet
	closed       chan struct{}
	broken       chan error
}

func (f *fakeTransport) Send(msg []byte, to netip.Addr) error {
	f.node.note("send %d", msg[2])
	f.node.segment.send(f, Packet{Source: f.source, Destination: to, TTL: 255, Payload: slices.Clone(msg)})
	return nil
}

// sendVirtual is Send; only the journal knows the difference.
func (f *fakeTransport) sendVirtual(msg []byte, to netip.Addr) error {
	err := f.Send(msg, to)
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	last := &f.node.journal[len(f.node.journal)-1]
	*last = strings.Replace(*last, "send", "send virtual", 1)
	return err
}

func (f *fakeTransport) Receive(b []byte) (Packet, error) {
	select {
	case p := <-f.in:
		p.Payload = b[:copy(b, p.Payload)]
		return p, nil
	case err := <-f.broken:
		return Packet{}, err
	case <-f.closed:
		return Packet{}, net.ErrClosed
	}
}

func (f *fakeTransport) Close() error {
	f.node.segment.mu.Lock()
	defer f.node.segment.mu.Unlock()
	delete(f.node.segment.ports, f)
	close(f.closed)
	return nil
}

func (f *fakeTransport) Destinations() []netip.Addr { return f.destinations }

// speak sends an advertisement of a peer that the test plays.
func (s *segment) speak(source string, change func(*Advertisement)) {
	s.speakTo(source, groupIPv4.String(), ttl, change)
}

// speakTo is speak to an address of the test's.
func (s *segment) speakTo(source, to string, hops uint8, change func(*Advertisement)) {
	cfg := testConfig()
	adv := Advertisement{Version: cfg.Version, VRID: cfg.VRID, Priority: cfg.Priority, Interval: cfg.Interval, Addresses: cfg.vips()}
	adv.AuthType, adv.Auth = authData(cfg.Password)
	change(&adv)
	msg, err := adv.Append(nil, addr(source), addr(to))
	if err != nil {
		panic(err) // in a test only: the advertisement above is wrong
	}
	s.send(nil, Packet{Source: addr(source), Destination: addr(to), TTL: hops, Payload: msg})
	synctest.Wait()
}

func priority(p uint8) func(*Advertisement) { return func(a *Advertisement) { a.Priority = p } }

// A testLog keeps the messages of a Router.
type testLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *testLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *testLog) WithGroup(string) slog.Handler            { return l }
func (l *testLog) Handle(_ context.Context, r slog.Record) error {
	line := fmt.Sprint(r.Level, " ", r.Message)
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

func (l *testLog) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

var errBroken = errors.New("socket is broken")

// sleep lets virtual time pass until everything due in it has happened.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
