// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A pausedNode is a node that can stand still, as a stopped process or a virtual
// machine that moves does: its Router sleeps, and what arrives meanwhile is read
// a moment after it has woken up.
type pausedNode struct {
	*node
	until time.Time
}

func (p *pausedNode) Link(name string, usable func(netip.Addr) bool) (Link, error) {
	time.Sleep(time.Until(p.until))
	return p.node.Link(name, usable)
}

func (p *pausedNode) Transport(link Link, peers []netip.Addr) (Transport, error) {
	t, err := p.node.Transport(link, peers)
	return &pausedTransport{t, p}, err
}

type pausedTransport struct {
	Transport
	node *pausedNode
}

func (t *pausedTransport) Receive(b []byte) (Packet, error) {
	packet, err := t.Transport.Receive(b)
	if wait := time.Until(t.node.until); wait > 0 {
		time.Sleep(wait + time.Millisecond)
	}
	return packet, err
}

func TestRouterThatStoodStill(t *testing.T) {
	for _, tc := range []struct {
		name string
		talk bool // the peer goes on advertising
		want State
	}{
		{"while the active node went on", true, Backup},
		{"while the active node died", false, Active},
	} {
		virtual(t, tc.name, func(t *testing.T) {
			s := newSegment()
			p := &pausedNode{node: newNode(t, s, 2)}
			r, err := New(testConfig(), Deps{Network: p, Addresses: p, Log: slog.New(p.log)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			p.router = r
			go func() { ended <- r.Run(ctx) }()
			sleep(0)
			speak := func() { s.speak("192.0.2.1", priority(200)) }
			speak()
			p.until = time.Now().Add(30 * time.Second)
			p.change(func() {}) // the Router looks at its link, and sleeps
			for range 29 {
				sleep(time.Second)
				if tc.talk {
					speak()
				}
			}
			sleep(time.Second + 10*time.Millisecond)
			p.wantState(tc.want)
			if sent := slices.Contains(p.taken(), "send 100"); sent != (tc.want == Active) {
				t.Errorf("an advertisement was sent: %v", sent)
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// The whole machine stood still, and the Active node with it: that one speaks within one
// of its intervals, before anybody takes over.
func TestGraceOfABackupThatWasLate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		interval time.Duration
		beat     time.Duration
		want     time.Duration
	}{
		{"a second", time.Second, 0, leastGrace},
		{"ten milliseconds", 10 * time.Millisecond, 0, 11 * time.Millisecond},
		{"just within the bound", 19 * time.Millisecond, 0, mostGrace},
		{"just beyond", 20 * time.Millisecond, 0, leastGrace},
		{"heartbeats", 100 * time.Millisecond, 5 * time.Millisecond, 6 * time.Millisecond},
		{"faster ones", 100 * time.Millisecond, 3 * time.Millisecond, leastGrace},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &Router{cfg: Config{Heartbeat: tc.beat}}
			r.machine = NewMachine(MachineConfig{Version: V3, Priority: 100, Interval: tc.interval})
			if got := r.graceTime(); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	virtual(t, "it hears it then", func(t *testing.T) {
		s := newSegment()
		p := &pausedNode{node: newNode(t, s, 2)}
		cfg := testConfig()
		cfg.Version, cfg.Interval, cfg.Password = V3, 10*time.Millisecond, ""
		r, err := New(cfg, Deps{Network: p, Addresses: p, Log: slog.New(p.log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		p.router = r
		go func() { ended <- r.Run(ctx) }()
		sleep(0)
		speak := func() {
			s.speak("192.0.2.1", func(a *Advertisement) {
				*a = Advertisement{Version: V3, VRID: a.VRID, Priority: 200, Interval: cfg.Interval, Addresses: a.Addresses}
			})
		}
		speak()
		p.until = time.Now().Add(300 * time.Millisecond)
		p.change(func() {}) // the Router looks at its link, and sleeps
		sleep(308 * time.Millisecond)
		speak()
		sleep(3 * time.Millisecond)
		p.wantState(Backup)
		sleep(50 * time.Millisecond)
		p.wantState(Active)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestRouterReleasedBeforeRun(t *testing.T) {
	virtual(t, "it never begins", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.vips = testConfig().Addresses // of an earlier run
		r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: slog.New(n.log)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := r.Release(context.Background()); !errors.Is(err, ErrNotRunning) {
				t.Errorf("release: got error %v, want %v", err, ErrNotRunning)
			}
		}
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		if err := r.Run(ctx); !errors.Is(err, ErrNotRunning) {
			t.Errorf("run: got error %v, want %v", err, ErrNotRunning)
		}
		if ctx.Err() != nil || !n.holds() {
			t.Errorf("it ran until %v; the vip that was to stay is held: %v", ctx.Err(), n.holds())
		}
	})
}

func TestHostLinkByAlternativeName(t *testing.T) {
	a, _ := cable(t)
	host := a.host()
	a.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkAddAltName(link, "enp1s0")
	})
	_, err := host.Link("enp1s0", func(netip.Addr) bool { return false })
	if err == nil || !strings.Contains(err.Error(), "write eth0") {
		t.Errorf("got error %v, want one that says to write eth0", err)
	}
}
