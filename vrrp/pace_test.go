// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fakePacer notes what it is asked for.
type fakePacer struct {
	refuse bool
	note   func(format string, args ...any)
	on     bool
}

func (p *fakePacer) Repeat(_ syscall.RawConn, interval time.Duration, messages []Parcel) bool {
	p.note("repeat %d to %d every %v", messages[0].Payload[2], len(messages), interval)
	p.on = !p.refuse
	return p.on
}

func (p *fakePacer) Renew() bool { return p.on }
func (p *fakePacer) Stop()       { p.note("stop"); p.on = false }

// A repeatedTransport is one whose messages another process can send.
type repeatedTransport struct{ *fakeTransport }

func (repeatedTransport) conn() syscall.RawConn                  { return nil }
func (repeatedTransport) parcel(msg []byte, _ netip.Addr) Parcel { return Parcel{Payload: msg} }

// A repeatedNode is a node with such transports.
type repeatedNode struct{ *node }

func (n repeatedNode) Transport(link Link, peers []netip.Addr) (Transport, error) {
	t, err := n.node.Transport(link, peers)
	if err != nil {
		return nil, err
	}
	return repeatedTransport{t.(*fakeTransport)}, nil
}

// runPaced runs a Router with a Pacer.
func (n *node) runPaced(t *testing.T, p *fakePacer) {
	t.Helper()
	p.note = n.note
	r, err := New(testConfig(), Deps{Network: repeatedNode{n}, Addresses: n, Log: slog.New(n.log), Pacer: p})
	if err != nil {
		t.Fatal(err)
	}
	n.router = r
	ended := make(chan error, 1)
	ctx := t.Context()
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
}

// wantGoodbye demands that the Pacer was stopped before the goodbye was sent.
func wantGoodbye(t *testing.T, got []string) {
	t.Helper()
	if len(got) < 2 || got[0] != "stop" || got[1] != "send 0" {
		t.Errorf("it did %v, want to stop the Pacer, then to say goodbye", got)
	}
}

// What is due the Pacer sends, and the Router what cannot wait; after a goodbye
// nothing more is sent.
func TestRouterWithAPacer(t *testing.T) {
	const down = 3700 * time.Millisecond
	virtual(t, "while it is active", func(t *testing.T) {
		s := newSegment()
		n := newNode(t, s, 2)
		n.runPaced(t, &fakePacer{})
		sleep(down)
		wantActions(t, n.taken(), "send 100", "repeat 100 to 1 every 1s", "add", "announce")
		sleep(10 * time.Second)
		for _, did := range n.taken() {
			if did != "announce" {
				t.Errorf("it did %q beside the Pacer", did)
			}
		}
		if sent := n.router.Status().Sent; sent < 10 {
			t.Errorf("%d advertisements are counted", sent)
		}
		if err := n.router.SetPriority(90); err != nil {
			t.Fatal(err)
		}
		sleep(time.Second)
		wantActions(t, n.taken(), "send 90", "repeat 90 to 1 every 1s")
		s.speak("192.0.2.1", priority(50))
		wantActions(t, n.taken(), "send 90", "announce")
		n.router.Fault("broken")
		sleep(0)
		wantGoodbye(t, n.taken())
	})
	virtual(t, "that gives way", func(t *testing.T) {
		s := newSegment()
		n := newNode(t, s, 2)
		n.runPaced(t, &fakePacer{})
		sleep(down)
		n.taken()
		s.speak("192.0.2.1", priority(200))
		wantActions(t, n.taken(), "remove", "stop")
	})
	virtual(t, "where the Pacer refuses", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.runPaced(t, &fakePacer{refuse: true})
		sleep(down)
		n.taken()
		sleep(time.Second)
		got := fmt.Sprint(n.taken())
		if want := "send 100 repeat 100 to 1 every 1s"; !strings.Contains(got, want) {
			t.Errorf("it did %v, want %q", got, want)
		}
		n.router.Fault("broken")
		sleep(0)
		// What was refused may be taken up later, but for this.
		wantGoodbye(t, n.taken())
	})
}
