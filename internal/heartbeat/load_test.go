// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/vrrp"
)

// A deafHost is a host without a network: its Router's advertisements reach
// nobody, so that only heartbeats keep a Backup from taking over.
type deafHost struct {
	source netip.Addr
	mu     sync.Mutex
	held   []netip.Prefix
}

func (h *deafHost) Watch() (<-chan struct{}, func()) { return make(chan struct{}), func() {} }
func (h *deafHost) Link(name string, _ func(netip.Addr) bool) (vrrp.Link, error) {
	return vrrp.Link{Name: name, Index: 1, Up: true, Source: h.source}, nil
}
func (h *deafHost) Transport(vrrp.Link, []netip.Addr) (vrrp.Transport, error) {
	return &deafTransport{closed: make(chan struct{})}, nil
}
func (h *deafHost) Announcer(vrrp.Link, []netip.Addr) (vrrp.Announcer, error) { return silence{}, nil }
func (h *deafHost) Prober(vrrp.Link, []netip.Addr) (vrrp.Prober, error) {
	return &deafProber{make(chan struct{})}, nil
}

func (h *deafHost) Check(_ string, vips []netip.Prefix, _ bool) (r vrrp.AddressReport, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Present = h.held
	if h.held == nil {
		r.Missing = vips
	}
	return r, nil
}

func (h *deafHost) Add(_ string, vips []netip.Prefix, _ bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = vips
	return nil
}

func (h *deafHost) Remove(string, []netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = nil
	return nil
}

func (h *deafHost) Added(netip.Addr) bool { return false }

type deafTransport struct{ closed chan struct{} }

func (t *deafTransport) Destinations() []netip.Addr    { return []netip.Addr{two} }
func (t *deafTransport) Send([]byte, netip.Addr) error { return nil }
func (t *deafTransport) Receive([]byte) (vrrp.Packet, error) {
	<-t.closed
	return vrrp.Packet{}, net.ErrClosed
}
func (t *deafTransport) Close() error { close(t.closed); return nil }

type deafProber struct{ closed chan struct{} }

func (p *deafProber) Probe(int) error              { return nil }
func (p *deafProber) Receive() (vrrp.Claim, error) { <-p.closed; return vrrp.Claim{}, net.ErrClosed }
func (p *deafProber) Close() error                 { close(p.closed); return nil }

type silence struct{}

func (silence) Announce() error { return nil }
func (silence) Close() error    { return nil }

// route runs a Router in fast mode beside a member.
func route(t *testing.T, m *Node, peer, source netip.Addr, priority uint8, beat time.Duration, log *lines) *vrrp.Router {
	t.Helper()
	vips := []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")}
	h := m.Add(Instance{VRID: 51, Digest: Digest(vips)}, []netip.Addr{peer}, beat)
	host := &deafHost{source: source}
	r, err := vrrp.New(vrrp.Config{
		Name: "VI_1", Interface: "lo", VRID: 51, Version: vrrp.V3, Priority: priority, Interval: 200 * time.Millisecond,
		Addresses: vips, Preempt: true, Heartbeat: beat,
	}, vrrp.Deps{Network: host, Addresses: host, Log: slog.New(slog.NewTextHandler(log, nil)), Heartbeats: h})
	if err != nil {
		t.Fatal(err)
	}
	h.Deliver(r.Hear, time.Minute)
	return r
}

// In fast mode nobody takes over from a node that is at work, while 40 processes
// never rest and the daemons' heap is full of garbage.
func TestNoFalseTakeoverUnderLoad(t *testing.T) {
	testenv.RequireRoot(t) // real-time priority
	const beat, length = 5 * time.Millisecond, 4 * time.Second
	port, k := freePort(t), key.New()
	t.Setenv(actAsEngine, "1")
	logs := &lines{}
	var routers []*vrrp.Router
	var nodes []*Node
	for i, at := range []netip.Addr{one, two} {
		peer := []netip.Addr{two, one}[i]
		pacer := pace.New(pace.Process("/proc/self/exe"), slog.New(slog.DiscardHandler))
		t.Cleanup(pacer.Close)
		n := New(Config{
			Name: nameAt(at), Local: at, Roster: []Peer{{nameAt(peer), peer}}, Port: port, Keys: []key.Key{k},
			Pacer: pacer, Log: slog.New(slog.NewTextHandler(logs, nil)),
		})
		n.listenOn = netip.AddrPortFrom(at, port).String()
		nodes, routers = append(nodes, n), append(routers, route(t, n, peer, at, uint8(100-i), beat, logs))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	for i := range nodes {
		all.Go(func() { nodes[i].Run(ctx) })
		all.Go(func() { _ = routers[i].Run(ctx) })
	}
	testenv.Eventually(t, soon, "one is active, and heard", func() (bool, error) {
		a, b := routers[0].Status(), routers[1].Status()
		return is(a.State == vrrp.Active && b.State == vrrp.Backup && nodes[1].Status()[0].Connected, "states %v and %v", a.State, b.State)
	})
	since, before := routers[1].Status().Since, nodes[1].Status()[0].Beats
	testenv.Busy(t, 40)
	testenv.Churn(t)
	time.Sleep(length) // what is tested is that nothing happens meanwhile
	s := routers[1].Status()
	if s.State != vrrp.Backup || s.Since != since {
		t.Errorf("the second node is %v since %v: %s\n%s", s.State, s.Since.Sub(since), s.Reason, logs.all.String())
	}
	got := nodes[1].Status()[0].Beats - before
	t.Log(fmt.Sprint(got), "heartbeats were read in", length)
	if got == 0 {
		t.Error("it has read no heartbeat: nothing is shown here")
	}
}
