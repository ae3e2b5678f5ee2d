// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A takeover sends what was built beforehand.
func TestAnnouncingDoesNotAllocate(t *testing.T) {
	a, _ := cable(t)
	a.addAddress("eth0", "2001:db8::1/64")
	host := a.host()
	for _, tc := range []struct {
		name, source string
		vips         []netip.Addr
	}{
		{"gratuitous arp", "192.0.2.1", []netip.Addr{addr("192.0.2.100"), addr("192.0.2.101")}},
		{"neighbour advertisements", "2001:db8::1", []netip.Addr{addr("2001:db8::100")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			link, err := host.Link("eth0", func(a netip.Addr) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			link.Source = addr(tc.source)
			var announcer Announcer
			a.do(func() (err error) {
				announcer, err = host.Announcer(link, tc.vips)
				return err
			})
			defer announcer.Close()
			if n := testing.AllocsPerRun(20, func() {
				if err := announcer.Announce(); err != nil {
					t.Error(err)
				}
			}); n > 0 {
				t.Errorf("a round of announcements allocates %v times", n)
			}
		})
	}
}

// allocRouter is a Router whose loop the test plays, and a transport that keeps
// nothing.
func allocRouter(t *testing.T, change func(*Config)) *Router {
	n := newNode(t, newSegment(), 2)
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg, Deps{Network: n, Addresses: n, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.link = n.link
	r.filter.Local = n.link.Source
	r.transport = &receiver{Transport: nowhere{}, free: make(chan *received, 1)}
	return r
}

// nowhere is a Transport that takes everything and brings nothing.
type nowhere struct{}

var nowhereDestinations = []netip.Addr{groupIPv4}

func (nowhere) Destinations() []netip.Addr     { return nowhereDestinations }
func (nowhere) Send([]byte, netip.Addr) error  { return nil }
func (nowhere) Receive([]byte) (Packet, error) { return Packet{}, nil }
func (nowhere) Close() error                   { return nil }

// The advertising path and the receiving path of a Router make no garbage: its
// collection would delay both.
func TestAdvertisingAndReceivingDoNotAllocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := allocRouter(t, nil)
		now := time.Now()
		r.machine.Startup(now, false)
		now = now.Add(r.machine.ActiveDown())
		r.machine.Expire(now)
		if r.machine.State() != Active {
			t.Fatal("it is not active")
		}
		if n := testing.AllocsPerRun(100, func() {
			now = now.Add(r.cfg.Interval)
			r.perform(now, r.machine.Expire(now))
			r.next(now)
		}); n > 0 {
			t.Errorf("an advertisement allocates %v times", n)
		}

		r = allocRouter(t, nil)
		r.machine.Startup(now, false)
		adv := r.out
		adv.Priority = 200
		msg, err := adv.Append(nil, addr("192.0.2.1"), groupIPv4)
		if err != nil {
			t.Fatal(err)
		}
		p := &received{from: r.transport, packet: Packet{Source: addr("192.0.2.1"), Destination: groupIPv4, TTL: 255, Payload: msg}}
		if n := testing.AllocsPerRun(100, func() {
			now = now.Add(r.cfg.Interval)
			r.take(now, p)
			<-r.transport.free
			r.next(now)
		}); n > 0 {
			t.Errorf("a received advertisement allocates %v times", n)
		}
		if got := r.Status().Received; got != 101 {
			t.Errorf("%d were accepted, want 101", got)
		}
		b := Beat{Node: NodeID{1}, Source: addr("192.0.2.1"), State: Active, Priority: 200}
		r.machine.beats.interval = 5 * time.Millisecond
		if n := testing.AllocsPerRun(100, func() {
			now = now.Add(5 * time.Millisecond)
			r.Hear(b)
			r.hear(now)
			r.next(now)
		}); n > 0 {
			t.Errorf("a heartbeat allocates %v times", n)
		}
	})
}
