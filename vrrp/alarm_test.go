// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// alarmTexts are the alarms that an instance's status has, by kind.
func (n *node) alarmTexts() map[string]string {
	synctest.Wait()
	texts := map[string]string{}
	for _, a := range n.router.Status().Alarms {
		texts[a.Kind.String()] = a.Text
	}
	return texts
}

func TestAlarms(t *testing.T) {
	v3 := func(c *Config) { c.Version, c.Password = V3, "" }
	speakV3 := func(a *Advertisement) { a.Version, a.AuthType, a.Auth = V3, 0, [authLen]byte{} }
	addrs := func(ss ...string) (all []netip.Addr) {
		for _, s := range ss {
			all = append(all, addr(s))
		}
		return all
	}
	for _, tt := range []struct {
		name  string
		ours  func(*Config)
		heard func(*Advertisement)
		want  map[string]string
	}{
		{name: "none", heard: priority(99), want: map[string]string{}},
		{name: "another virtual router with other addresses", heard: func(a *Advertisement) {
			a.VRID, a.Addresses = 61, addrs("192.0.2.61")
		}, want: map[string]string{}},
		{name: "the VIP under another id", heard: func(a *Advertisement) {
			a.VRID, a.Addresses = 61, addrs("192.0.2.61", "192.0.2.100")
		}, want: map[string]string{
			"virtual_router_id": "192.0.2.1 advertises 192.0.2.100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes",
		}},
		{name: "the VIP under another id in another version", heard: func(a *Advertisement) {
			speakV3(a)
			a.VRID = 61
		}, want: map[string]string{
			"virtual_router_id": "192.0.2.1 advertises 192.0.2.100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes",
		}},
		{name: "other addresses under this id", heard: func(a *Advertisement) {
			a.Addresses, a.Auth[0] = addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"), 'x'
		}, want: map[string]string{
			"stranger": "192.0.2.1 uses virtual router 51 for other addresses (192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, and 1 more): " +
				"give one of the two another virtual_router_id",
		}},
		{name: "version", heard: speakV3, want: map[string]string{
			"version": "192.0.2.1 sends version 3 for virtual router 51, this node 2: set one version on all nodes",
		}},
		{name: "another version for other addresses", heard: func(a *Advertisement) {
			speakV3(a)
			a.Addresses = addrs("192.0.2.61")
		}, want: map[string]string{
			"stranger": "192.0.2.1 uses virtual router 51 for other addresses (192.0.2.61): give one of the two another virtual_router_id",
		}},
		{name: "no password there", heard: func(a *Advertisement) { a.AuthType = 0 }, want: map[string]string{
			"auth_type": "192.0.2.1 sends no password, this node a password: set one password on all nodes, or none",
		}},
		{name: "no password here", ours: func(c *Config) { c.Password = "" }, heard: func(a *Advertisement) {}, want: map[string]string{
			"auth_type": "192.0.2.1 sends a password, this node no password: set one password on all nodes, or none",
		}},
		{name: "authentication of another kind", heard: func(a *Advertisement) { a.AuthType = 2 }, want: map[string]string{
			"auth_type": "192.0.2.1 sends authentication of type 2, this node a password: set one password on all nodes, or none",
		}},
		{name: "several at once", heard: func(a *Advertisement) {
			a.Auth[0], a.Interval, a.Addresses = 'x', 3*time.Second, addrs("192.0.2.100", "192.0.2.7")
		}, want: map[string]string{
			"password":  "192.0.2.1 has another password: set one password on all nodes",
			"interval":  "192.0.2.1 advertises every 3s, this node every 1s: set one advertisement_interval on all nodes",
			"addresses": "192.0.2.1 advertises another list of addresses (with 192.0.2.7): set the same addresses on all nodes",
		}},
		{name: "one address less", ours: func(c *Config) { c.Addresses = prefixes("192.0.2.100/24", "192.0.2.101/24") },
			heard: priority(50), want: map[string]string{
				"addresses": "192.0.2.1 advertises another list of addresses (without 192.0.2.101): set the same addresses on all nodes",
			}},
		{name: "one address twice", heard: func(a *Advertisement) { a.Addresses = addrs("192.0.2.100", "192.0.2.100") },
			want: map[string]string{
				"addresses": "192.0.2.1 advertises another list of addresses (one of them twice): set the same addresses on all nodes",
			}},
		{name: "version 3 learns the interval", ours: v3, heard: func(a *Advertisement) {
			speakV3(a)
			a.Interval, a.Priority = 200*time.Millisecond, 200
		}, want: map[string]string{
			"interval": "192.0.2.1 advertises every 200ms, this node every 1s: set one advertisement_interval on all nodes",
		}},
		{name: "equal priorities", heard: priority(100), want: map[string]string{
			"priority": "192.0.2.1 has priority 100, as this node has, and only the addresses decide between them: " +
				"give each node a priority of its own",
		}},
		{name: "the owner's list", heard: func(a *Advertisement) {
			a.Priority, a.Addresses = 255, addrs("192.0.2.100", "192.0.2.7")
		}, want: map[string]string{
			"addresses": "192.0.2.1 advertises another list of addresses (with 192.0.2.7): set the same addresses on all nodes",
		}},
	} {
		virtual(t, tt.name, func(t *testing.T) {
			s := newSegment()
			n := newNode(t, s, 2)
			n.run(tt.ours)
			s.speak("192.0.2.1", tt.heard)
			if diff := cmp.Diff(tt.want, n.alarmTexts()); diff != "" {
				t.Errorf("alarms at the first packet (-want +got):\n%s", diff)
			}
			for range 5 {
				s.speak("192.0.2.1", tt.heard)
			}
			if got := n.log.count("configuration mistake"); got != len(tt.want) {
				t.Errorf("got %d log lines, want %d: %q", got, len(tt.want), n.log.lines)
			}
			if n.log.count("1111") != 0 {
				t.Error("the password is in the log")
			}
		})
	}
}

// What comes from somebody who is none of the unicast peers.
func TestAlarmsOfUnicast(t *testing.T) {
	other := func(a *Advertisement) { a.Addresses = []netip.Addr{addr("192.0.2.61")} }
	for _, tt := range []struct {
		name  string
		peer  netip.Addr // this node's
		ttl   uint8
		heard func(*Advertisement)
		want  map[string]string
	}{
		{name: "a peer", peer: lower, heard: priority(99), want: map[string]string{}},
		{name: "a peer that this node does not know", peer: upper, heard: priority(99), want: map[string]string{
			"peer": "192.0.2.1 advertises 192.0.2.100 as virtual router 51, too, and is none of this node's unicast peers: " +
				"give each node all the others as peers",
		}},
		{name: "and another id", peer: upper, heard: func(a *Advertisement) { a.VRID = 61 }, want: map[string]string{
			"virtual_router_id": "192.0.2.1 advertises 192.0.2.100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes",
		}},
		{name: "a stranger", peer: upper, heard: other, want: map[string]string{
			"stranger": "192.0.2.1 uses virtual router 51 for other addresses (192.0.2.61): give one of the two another virtual_router_id",
		}},
		{name: "another virtual router", peer: upper, heard: func(a *Advertisement) {
			other(a)
			a.VRID = 61
		}, want: map[string]string{}},
		{name: "from behind a router", peer: upper, ttl: 250, heard: priority(99), want: map[string]string{}},
	} {
		virtual(t, tt.name, func(t *testing.T) {
			s := newSegment()
			n := newNode(t, s, 2)
			n.run(func(c *Config) { c.Peers = []netip.Addr{tt.peer} })
			if tt.ttl == 0 {
				tt.ttl = ttl
			}
			for range 3 {
				s.speakTo("192.0.2.1", "192.0.2.2", tt.ttl, tt.heard)
			}
			if diff := cmp.Diff(tt.want, n.alarmTexts()); diff != "" {
				t.Errorf("alarms (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAlarmsEnd(t *testing.T) {
	for _, tt := range []struct {
		name  string
		heard func(*Advertisement)
		want  time.Duration
	}{
		{"ten seconds at least", func(a *Advertisement) { a.Auth[0] = 'x' }, 10 * time.Second},
		{"three of the peer's intervals", func(a *Advertisement) { a.Interval = 20 * time.Second }, time.Minute},
	} {
		virtual(t, tt.name, func(t *testing.T) {
			s := newSegment()
			n := newNode(t, s, 2)
			n.run(nil)
			s.speak("192.0.2.1", tt.heard)
			sleep(tt.want / 2)
			s.speak("192.0.2.1", tt.heard) // begins the time anew
			sleep(tt.want - time.Millisecond)
			if len(n.alarmTexts()) != 1 {
				t.Fatalf("alarms %v before %v have passed, want one", n.alarmTexts(), tt.want)
			}
			sleep(2 * time.Millisecond)
			if got := n.alarmTexts(); len(got) != 0 {
				t.Errorf("alarms %v after %v, want none", got, tt.want)
			}
			if got := n.log.count("not seen any more"); got != 1 {
				t.Errorf("got %d log lines about its end, want 1", got)
			}
			s.speak("192.0.2.1", tt.heard)
			if got := n.log.count("configuration mistake alarm"); len(n.alarmTexts()) != 1 || got != 2 {
				t.Errorf("got %d log lines and alarms %v when it came back", got, n.alarmTexts())
			}
		})
	}
}

// A text follows what the peer sends, and made-up senders cost no more than so
// much, and hide nothing else.
func TestAlarmsChange(t *testing.T) {
	virtual(t, "", func(t *testing.T) {
		s := newSegment()
		n := newNode(t, s, 2)
		n.run(nil)
		for _, list := range []string{"192.0.2.7", "192.0.2.8"} {
			s.speak("192.0.2.1", func(a *Advertisement) { a.Addresses = []netip.Addr{addr(list)} })
			want := "192.0.2.1 uses virtual router 51 for other addresses (" + list + "): give one of the two another virtual_router_id"
			if got := n.alarmTexts()["stranger"]; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		for i := range 100 {
			source := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
			s.speak(source.String(), func(a *Advertisement) { a.Auth[0] = 'x' })
		}
		count := func(kind AlarmKind) (found int) {
			synctest.Wait()
			for _, a := range n.router.Status().Alarms {
				if a.Kind == kind {
					found++
				}
			}
			return found
		}
		if got := count(AlarmPassword); got != maxAlarms {
			t.Errorf("got %d alarms, want %d", got, maxAlarms)
		}
		s.speak("192.0.2.1", func(a *Advertisement) { a.VRID = 61 })
		if count(AlarmVRID) != 1 {
			t.Error("a flood of one kind hides an alarm of another")
		}
	})
}

// However what shows mistakes changes from packet to packet, the log has a line for each kind
// every ten seconds, with the number of others, and the status has every alarm.
func TestAlarmsInTurn(t *testing.T) {
	vrid := func(id uint8) func(*Advertisement) { return func(a *Advertisement) { a.VRID = id } }
	password := func(a *Advertisement) { a.Auth[0] = 'x' }
	type packet struct {
		source string
		change func(*Advertisement)
	}
	madeUp := func(count int) (all []packet) {
		for i := range count {
			all = append(all, packet{netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}).String(), password})
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		packets []packet // one every 10 ms, in turn
		alarms  int
		lines   int // in 30 s
		ends    int // and afterwards
		want    string
	}{
		{"one mistake", []packet{{"192.0.2.1", password}}, 1, 1, 1, ""},
		{"two kinds of one sender", []packet{{"192.0.2.1", password}, {"192.0.2.1", vrid(61)}}, 2, 2, 2, ""},
		{"two ids of one sender", []packet{{"192.0.2.1", vrid(61)}, {"192.0.2.1", vrid(62)}}, 1, 3, 1, "not logged"},
		{"two senders", []packet{{"192.0.2.1", vrid(61)}, {"192.0.2.3", vrid(62)}}, 2, 2, 2, ""},
		{"more senders than alarms", madeUp(100), maxAlarms, 3, 3, "not logged"},
	} {
		virtual(t, tt.name, func(t *testing.T) {
			s := newSegment()
			n := newNode(t, s, 2)
			n.run(nil)
			most := 0
			for i := range 2990 {
				p := tt.packets[i%len(tt.packets)]
				s.speak(p.source, p.change)
				sleep(10 * time.Millisecond)
				if i >= 2*len(tt.packets) {
					most = max(most, len(n.router.Status().Alarms))
				}
			}
			if most != tt.alarms {
				t.Errorf("%d alarms, want %d", most, tt.alarms)
			}
			if got := n.log.count("configuration mistake alarm"); got != tt.lines {
				t.Errorf("%d lines, want %d: %q", got, tt.lines, n.log.lines)
			}
			if tt.want != "" && n.log.count(tt.want) == 0 {
				t.Errorf("no line says %q: %q", tt.want, n.log.lines)
			}
			sleep(time.Minute)
			if got := n.log.count("not seen any more"); len(n.alarmTexts()) != 0 || got != tt.ends {
				t.Errorf("%d lines about ends, want %d; left are %v", got, tt.ends, n.alarmTexts())
			}
		})
	}
}

// A text follows what is seen a few times, and then waits: making one for every packet
// would cost whoever is to advertise on time.
func TestTextsOfAlarmsAreFew(t *testing.T) {
	var s alarms
	now, texts := time.Unix(1, 0), 0
	see := func(vrid uint8) {
		s.see(now, AlarmVRID, lower, evidence{vrid: vrid}, time.Second, func() string { texts++; return "" })
	}
	for i := range 1000 {
		see(uint8(i % 2))
	}
	if texts != textsPerLine {
		t.Errorf("%d texts for 1,000 packets, want %d", texts, textsPerLine)
	}
	now = now.Add(lineEvery)
	see(7)
	if texts != textsPerLine+1 || s.all[0].evidence.vrid != 7 {
		t.Errorf("%d texts, the last of id %d, want one more, of 7", texts, s.all[0].evidence.vrid)
	}
}

func TestAlarmsDoNotAllocate(t *testing.T) {
	n := newNode(t, newSegment(), 2)
	r, err := New(testConfig(), Deps{Network: n, Addresses: n, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r.transport = &receiver{Transport: silent{}, free: make(chan *received, 1)}
	r.perform(now, r.machine.Startup(now, false))
	var all []*received
	for _, change := range []func(*Advertisement){
		func(a *Advertisement) { a.VRID = 61 },
		func(a *Advertisement) { a.VRID, a.Addresses = 62, []netip.Addr{addr("192.0.2.62")} },
		func(a *Advertisement) { a.Auth[0] = 'x' },
		priority(100),
	} {
		adv := Advertisement{Version: V2, VRID: 51, Priority: 200, Interval: time.Second, Addresses: r.filter.VIPs}
		adv.AuthType, adv.Auth = authData("1111")
		change(&adv)
		msg, err := adv.Append(nil, lower, groupIPv4)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &received{from: r.transport, packet: Packet{Source: lower, Destination: groupIPv4, TTL: 255, Payload: msg}})
	}
	take := func() {
		for _, p := range all {
			r.take(now, p)
			<-r.transport.free
		}
		r.expireAlarms(now)
	}
	take()
	if got := len(r.Status().Alarms); got != 3 {
		t.Errorf("got %d alarms, want 3", got)
	}
	if n := testing.AllocsPerRun(100, take); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}
