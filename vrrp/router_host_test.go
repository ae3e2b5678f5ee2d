// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRouterHeldVIP(t *testing.T) {
	held := func(t *testing.T) (*segment, *node) {
		s := newSegment()
		n := newNode(t, s, 2)
		n.vips = prefixes("192.0.2.100/24")
		n.run(nil)
		n.wantState(Backup)
		if !n.holds() {
			t.Fatal("the held vip was removed at start")
		}
		return s, n
	}
	virtual(t, "kept until it becomes active", func(t *testing.T) {
		_, n := held(t)
		sleep(4 * time.Second)
		n.wantState(Active)
		wantActions(t, n.taken(), "send 100", "add", "announce", "announce")
	})
	virtual(t, "kept when something else changes on the host", func(t *testing.T) {
		_, n := held(t)
		n.change(func() {})
		if !n.holds() {
			t.Error("the held vip was removed")
		}
	})
	virtual(t, "removed at once when a peer is active", func(t *testing.T) {
		s, n := held(t)
		s.speak("192.0.2.1", priority(99))
		wantActions(t, n.taken(), "remove")
		n.wantState(Backup)
	})
}

func TestRouterLink(t *testing.T) {
	start := func(t *testing.T) *node {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.wantState(Active)
		n.taken()
		return n
	}
	wantFault := func(t *testing.T, n *node, part string) {
		t.Helper()
		n.wantState(Fault)
		if s := n.router.Status(); !strings.Contains(s.Reason, part) {
			t.Errorf("got reason %q, want one with %q", s.Reason, part)
		}
		if n.holds() {
			t.Error("the vip is still there")
		}
	}
	virtual(t, "down and up", func(t *testing.T) {
		n := start(t)
		n.change(func() { n.link.Up = false })
		wantFault(t, n, "interface eth0 is down")
		n.change(func() { n.link.Up = true })
		n.wantState(Backup)
		sleep(4 * time.Second)
		n.wantState(Active)
	})
	virtual(t, "gone and back under another index", func(t *testing.T) {
		n := start(t)
		n.change(func() { n.linkErr = errors.New("interface eth0 does not exist") })
		wantFault(t, n, "does not exist")
		n.change(func() { n.linkErr, n.link.Index = nil, 77 })
		n.wantState(Backup)
	})
	virtual(t, "no address of its own", func(t *testing.T) {
		n := start(t)
		source := n.link.Source
		n.change(func() { n.link.Source = netip.Addr{} })
		wantFault(t, n, "no IPv4 address of its own")
		wantActions(t, n.taken(), "send 0", "remove") // it could still say goodbye
		n.change(func() { n.link.Source = source })
		n.wantState(Backup)
	})
	virtual(t, "another address", func(t *testing.T) {
		n := start(t)
		n.change(func() { n.link.Source = addr("192.0.2.9") })
		n.wantState(Active)
		if got := n.router.Status().Source; got != addr("192.0.2.9") {
			t.Errorf("got source %v", got)
		}
		if got := len(n.segment.open()); got != 1 {
			t.Errorf("got %d open transports, want 1", got)
		}
	})
	virtual(t, "another MAC address is announced", func(t *testing.T) {
		n := start(t)
		sleep(100 * time.Millisecond)
		n.taken()
		n.change(func() { n.link.MAC = MAC{2, 0, 0, 0, 0, 99} })
		n.wantState(Active)
		wantActions(t, n.taken(), "announce")
	})
	virtual(t, "a change that nobody signals is seen", func(t *testing.T) {
		n := start(t)
		n.mu.Lock()
		n.link.Up = false
		n.mu.Unlock()
		sleep(recheckEvery)
		wantFault(t, n, "interface eth0 is down")
	})
	virtual(t, "socket cannot be opened", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.openErr = errBroken
		n.run(nil)
		wantFault(t, n, "socket is broken")
		n.mu.Lock()
		n.openErr = nil
		n.mu.Unlock()
		sleep(retryAfter)
		n.wantState(Backup)
	})
	virtual(t, "socket breaks", func(t *testing.T) {
		n := start(t)
		for _, port := range n.segment.open() {
			port.broken <- errBroken
		}
		wantFault(t, n, "socket is broken")
		sleep(retryAfter)
		n.wantState(Backup)
	})
}

func TestRouterAddresses(t *testing.T) {
	const text = "192.0.2.100 is already this node's own address on eth0: remove it from vrrp.addresses or from the interface"
	virtual(t, "the node's own address", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.foreign = []netip.Addr{addr("192.0.2.100")}
		n.run(nil)
		n.wantState(Fault)
		if r := n.router.Status().Reason; r != text {
			t.Errorf("got reason %q", r)
		}
		n.change(func() { n.foreign = nil })
		n.wantState(Backup)
	})
	virtual(t, "it becomes so while active", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.change(func() { n.vips, n.foreign = nil, []netip.Addr{addr("192.0.2.100")} })
		n.wantState(Fault)
	})
	virtual(t, "it becomes so in the moment of takeover", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.addErr = errors.Join(&ConflictError{addr("192.0.2.100"), "eth0"})
		n.run(nil)
		sleep(4 * time.Second)
		n.wantState(Fault)
		if r := n.router.Status().Reason; r != text {
			t.Errorf("got reason %q", r)
		}
		n.change(func() { n.addErr = nil }) // over when the address goes, not some time later
		n.wantState(Backup)
	})
	virtual(t, "the owner has it already", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.foreign = []netip.Addr{addr("192.0.2.100")}
		n.run(func(c *Config) { c.Priority = PriorityOwner })
		n.wantState(Active)
		if n.holds() {
			t.Error("the owner's address was added")
		}
		if err := n.router.SetPriority(100); err == nil {
			t.Error("the owner's priority was changed")
		}
	})
	virtual(t, "somebody removes it", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.taken()
		n.change(func() { n.vips = nil })
		if !n.holds() || n.log.count("WARN vip was removed by somebody else") != 1 {
			t.Errorf("vip is back: %v; log %q", n.holds(), n.log.lines)
		}
		wantActions(t, n.taken(), "add", "announce")
		n.wantAlarms("something else has taken 192.0.2.100 off eth0, and this node puts it back: find what removes addresses there, a network manager perhaps")
		if a := n.router.Status().Alarms; len(a) == 1 && a[0].Kind != AlarmRemoved {
			t.Errorf("alarm %v", a[0].Kind)
		}
		sleep(minAlarm)
		n.wantAlarms()
	})
	virtual(t, "it goes with the state", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.segment.speak("192.0.2.9", priority(200))
		n.wantState(Backup)
		n.change(func() {})
		n.wantAlarms()
	})
	virtual(t, "it cannot be added", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.addErr = syscall.EPERM
		n.run(nil)
		sleep(4 * time.Second)
		n.wantState(Fault)
		wantActions(t, n.taken(), "send 100", "add", "announce", "send 0")
		n.mu.Lock()
		n.addErr = nil
		n.mu.Unlock()
		sleep(retryAdd)
		n.wantState(Backup)
		sleep(4 * time.Second)
		n.wantState(Active)
	})
}
