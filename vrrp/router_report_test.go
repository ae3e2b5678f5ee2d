// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRouterDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSegment()
		n := newNode(t, s, 2)
		n.run(nil)
		for range 3 {
			s.speak("192.0.2.1", func(a *Advertisement) { a.VRID, a.Addresses = 61, []netip.Addr{addr("192.0.2.61")} })
			s.speak("192.0.2.1", func(a *Advertisement) { a.Auth[0] = 'x' })
			s.speak("192.0.2.1", func(a *Advertisement) { a.Interval = 3 * time.Second })
			s.speak("192.0.2.2", func(a *Advertisement) {})
		}
		s.speak("192.0.2.1", func(a *Advertisement) { a.Addresses = []netip.Addr{addr("192.0.2.99")} })
		st := n.router.Status()
		want := map[Reason]uint64{ReasonVRID: 3, ReasonPassword: 3, ReasonInterval: 3, ReasonOwnSource: 3, ReasonAddresses: 1}
		if diff := cmp.Diff(want, st.Dropped); diff != "" || st.Received != 0 {
			t.Errorf("received %d, dropped (-want +got):\n%s", st.Received, diff)
		}
		// Each kind once, mistakes of configuration as such, and another virtual
		// router with other addresses is none.
		if dropped, mistakes := n.log.count("advertisement dropped"), n.log.count("configuration mistake"); dropped != 1 || mistakes != 3 {
			t.Errorf("got %d and %d log lines, want 1 and 3: %q", dropped, mistakes, n.log.lines)
		}
		if n.log.count("1111") != 0 {
			t.Error("the password is in the log")
		}
		time.Sleep(logEvery)
		s.speak("192.0.2.2", func(a *Advertisement) {})
		if got := n.log.count("advertisement dropped"); got != 2 {
			t.Errorf("got %d log lines a minute later, want 2", got)
		}
		// The owner of the addresses counts, whatever its list.
		s.speak("192.0.2.1", func(a *Advertisement) {
			a.Priority, a.Addresses = 255, []netip.Addr{addr("192.0.2.99")}
		})
		if got := n.router.Status().Received; got != 1 {
			t.Errorf("received %d, want 1", got)
		}
	})
}

func TestRouterChecksumForm(t *testing.T) {
	for _, tt := range []struct {
		name    string
		form    ChecksumForm
		heard   []bool // pseudo-header in what a peer sends
		want    bool
		version Version
	}{
		{name: "as keepalived wants it", want: true},
		{name: "learnt from the peer", heard: []bool{false}, want: false},
		{name: "unlearnt again", heard: []bool{false, true}, want: true},
		{name: "always with", form: ChecksumPseudo, heard: []bool{false}, want: true},
		{name: "always without", form: ChecksumPlain, heard: []bool{true}, want: false},
	} {
		virtual(t, tt.name, func(t *testing.T) {
			s := newSegment()
			n := newNode(t, s, 2)
			n.run(func(c *Config) { c.Version, c.Password, c.Checksum = V3, "", tt.form })
			for _, pseudo := range tt.heard {
				s.speak("192.0.2.1", func(a *Advertisement) {
					a.Version, a.AuthType, a.PseudoHeader = V3, 0, pseudo
				})
			}
			probe := &fakeTransport{node: n, in: make(chan Packet, 1)}
			s.mu.Lock()
			s.ports[probe] = true
			s.mu.Unlock()
			p := <-probe.in
			var a Advertisement
			if _, err := a.Decode(p.Payload, p.Source, p.Destination); err != nil {
				t.Fatal(err)
			}
			if a.PseudoHeader != tt.want {
				t.Errorf("sent with pseudo-header: %v, want %v", a.PseudoHeader, tt.want)
			}
		})
	}
}

func TestRouterSetPriorityRefuses(t *testing.T) {
	n := newNode(t, newSegment(), 2)
	r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []uint8{0, 255} {
		if err := r.SetPriority(p); err == nil {
			t.Errorf("priority %d: got no error", p)
		}
	}
	if _, err := New(Config{}, Deps{Network: n, Addresses: n, Log: discard}); err == nil {
		t.Error("empty configuration: got no error")
	}
}

func TestRouterChanges(t *testing.T) {
	virtual(t, "all in order", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(5 * time.Second)
		n.change(func() { n.link.Up = false })
		n.stop()
		<-n.ended
		var got []string
		for _, c := range n.changes {
			if c.Instance != "VI_1" || c.Reason == "" || c.At.IsZero() {
				t.Errorf("got change %+v", c)
			}
			got = append(got, c.From.String()+" to "+c.To.String())
		}
		wantActions(t, got, "initialize to backup", "backup to active", "active to fault", "fault to initialize")
	})
	virtual(t, "a callback that hangs delays nothing", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		hang := make(chan struct{})
		var got int
		r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: discard, OnChange: func(Change) { <-hang; got++ }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		sleep(5 * time.Second)
		if s := r.Status().State; s != Active {
			t.Errorf("got state %v, want active", s)
		}
		for range 200 {
			n.change(func() { n.link.Up = false })
			n.change(func() { n.link.Up = true })
		}
		close(hang)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got < maxChanges || got > maxChanges+2 {
			t.Errorf("got %d changes, want those that fit", got)
		}
	})
}

func TestRouterDoesNotAllocate(t *testing.T) {
	n := newNode(t, newSegment(), 2)
	r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: discard, Group: NewGroup("alone")})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r.link = n.link
	r.transport = &receiver{Transport: silent{}, free: make(chan *received, 1)}
	r.perform(now, r.machine.Startup(now, false))
	adv := Advertisement{Version: V2, VRID: 51, Priority: 200, Interval: time.Second, Addresses: r.filter.VIPs}
	adv.AuthType, adv.Auth = authData("1111")
	msg, err := adv.Append(nil, lower, groupIPv4)
	if err != nil {
		t.Fatal(err)
	}
	p := &received{from: r.transport, packet: Packet{Source: lower, Destination: groupIPv4, TTL: 255, Payload: msg}}
	if n := testing.AllocsPerRun(100, func() {
		r.take(now, p)
		<-r.transport.free
		r.send(now, 100)
		r.settle(now)
		r.noteGroup()
		r.noteStanding()
		r.next(now)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
	if s := r.Status(); s.Received == 0 || s.Sent == 0 {
		t.Errorf("got %d received and %d sent", s.Received, s.Sent)
	}
}

// silent is a Transport that sends into the void.
type silent struct{ Transport }

func (silent) Send([]byte, netip.Addr) error { return nil }
func (silent) Destinations() []netip.Addr    { return toGroup }

var toGroup = []netip.Addr{groupIPv4}
