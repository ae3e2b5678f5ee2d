// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var stranger = MAC{2, 0, 0, 0, 0, 9}

// asked returns how many rounds of probes there were since the last call.
func (n *node) asked() int {
	sleep(0)
	n.mu.Lock()
	defer n.mu.Unlock()
	rounds := n.probes
	n.probes = 0
	return rounds
}

// answer makes strangers answer, or stop to.
func (n *node) answer(claims ...Claim) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.strangers = claims
}

// wantAlarms compares the texts of a node's alarms.
func (n *node) wantAlarms(want ...string) {
	n.t.Helper()
	var got []string
	for _, a := range n.router.Status().Alarms {
		got = append(got, a.Text)
	}
	if !slices.Equal(got, want) {
		n.t.Errorf("alarms %q, want %q", got, want)
	}
}

func TestSurvivorAsks(t *testing.T) {
	const text = "192.0.2.100 is answered by 02:00:00:00:00:09, too: find the host with that MAC address, and take 192.0.2.100 off it"
	claims := Claim{addr("192.0.2.100"), stranger}
	active := func(t *testing.T) *node {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(3600 * time.Millisecond)
		if got := n.asked(); got > 0 {
			t.Errorf("a backup asked %d times", got)
		}
		sleep(10 * time.Millisecond)
		n.wantState(Active)
		return n
	}
	virtual(t, "nobody else answers", func(t *testing.T) {
		n := active(t)
		sleep(500 * time.Millisecond) // who was relieved may answer
		if got := n.asked(); got > 0 {
			t.Errorf("asked %d times right after the takeover", got)
		}
		sleep(5 * time.Second)
		if got := n.asked(); got != 5 {
			t.Errorf("asked %d times in five seconds, want 5", got)
		}
		n.wantAlarms()
	})
	for _, tc := range []struct {
		name     string
		interval time.Duration
		most     time.Duration
	}{
		{"a stranger comes without a word", time.Second, 3 * time.Second},
		{"a stranger comes without a word, and advertisements are rare", 10 * time.Second, 30 * time.Second},
	} {
		virtual(t, tc.name, func(t *testing.T) {
			n := newNode(t, newSegment(), 2)
			n.run(func(c *Config) { c.Interval = tc.interval })
			sleep(5*time.Minute + tc.interval/3) // the takeover is long ago
			n.wantState(Active)
			n.wantAlarms()
			n.answer(claims)
			sleep(tc.most)
			n.wantAlarms(text) // within three intervals
		})
	}
	virtual(t, "many VIPs", func(t *testing.T) {
		const vips, rounds = 20, 10
		n := newNode(t, newSegment(), 2)
		n.run(func(c *Config) {
			c.Addresses = nil
			for i := range vips {
				c.Addresses = append(c.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}), 24))
			}
		})
		sleep(5 * time.Second)
		n.wantState(Active)
		probed := func() int {
			n.mu.Lock()
			defer n.mu.Unlock()
			all := n.probed
			n.probed = 0
			return all
		}
		n.asked()
		sleep(10 * time.Second)
		probed()
		n.asked()
		sleep(rounds * time.Second)
		if got := probed(); n.asked() != rounds || got != rounds*perRound {
			t.Errorf("asked for %d VIPs in %d rounds of peace, want %d in each", got, rounds, perRound)
		}
		n.answer(claims) // to each question, whatever it is about
		sleep(10 * time.Second)
		probed()
		n.asked()
		sleep(rounds * time.Second)
		if got := probed(); n.asked() != rounds || got != rounds*vips {
			t.Errorf("asked for %d VIPs in %d rounds while somebody answers, want for all in each", got, rounds)
		}
	})
	virtual(t, "a stranger answers, until he does not", func(t *testing.T) {
		n := active(t)
		n.answer(claims)
		sleep(2 * time.Second)
		n.wantAlarms(text) // within three intervals
		if a := n.router.Status().Alarms; len(a) == 1 && a[0].Kind != AlarmAnswered {
			t.Errorf("alarm %v", a[0].Kind)
		}
		n.taken()
		n.asked()
		sleep(20 * time.Second)
		announced := 0
		for _, did := range n.taken() {
			if did == "announce" {
				announced++
			}
		}
		if got := n.asked(); got < 19 || got > 21 || announced < 20 {
			t.Errorf("asked %d times in 20 s, announced %d times", got, announced)
		}
		n.wantAlarms(text)
		if got := n.log.count("alarm=answered"); got != 1 {
			t.Errorf("said %d times, want once", got)
		}
		n.answer()
		sleep(15 * time.Second)
		n.wantAlarms()
		n.taken()
		sleep(40 * time.Second)
		if got := n.taken(); slices.Contains(got, "announce") {
			t.Errorf("still announced in peace: %q", got)
		}
	})
	virtual(t, "who was relieved answers once", func(t *testing.T) {
		n := active(t)
		n.answer(claims)
		sleep(time.Second)
		n.answer()
		sleep(10 * time.Second)
		n.wantAlarms()
	})
	virtual(t, "an announcement makes it ask, and is no answer", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(func(c *Config) { c.Interval = 10 * time.Second })
		sleep(60 * time.Second)
		n.asked()
		n.prober.claim(claims)
		sleep(2 * time.Second)
		if got := n.asked(); got != 1 {
			t.Errorf("asked %d times, want once", got)
		}
		n.wantAlarms()
	})
	virtual(t, "a backup hears claims and does nothing", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		n.answer(claims)
		for range 20 {
			n.prober.claim(claims)
			n.segment.speak("192.0.2.9", priority(200))
			sleep(500 * time.Millisecond)
		}
		n.wantState(Backup)
		n.wantAlarms()
		if got := n.taken(); n.asked() > 0 || len(got) > 0 {
			t.Errorf("a backup did %v", got)
		}
	})
	virtual(t, "it stops when the node is Active no more", func(t *testing.T) {
		n := active(t)
		n.answer(claims)
		sleep(2 * time.Second)
		n.change(func() { n.link.Up = false })
		sleep(time.Millisecond)
		n.asked()
		n.taken()
		sleep(30 * time.Second)
		if got := n.taken(); n.asked() > 0 || slices.ContainsFunc(got, func(did string) bool { return strings.HasPrefix(did, "announce") }) {
			t.Errorf("a faulty instance did %v", got)
		}
	})
}

// A flood of forged claims does not keep the node from its advertisements.
func TestFloodOfClaims(t *testing.T) {
	virtual(t, "ten thousand at once", func(t *testing.T) {
		n := newNode(t, newSegment(), 2)
		n.run(nil)
		sleep(4 * time.Second)
		n.wantState(Active)
		for i := range 10000 {
			go n.prober.claim(Claim{addr("192.0.2.100"), MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}})
		}
		n.taken()
		sleep(10 * time.Second)
		sent := 0
		for _, did := range n.taken() {
			if strings.HasPrefix(did, "send") {
				sent++
			}
		}
		if sent < 9 {
			t.Errorf("%d advertisements in 10 s", sent)
		}
	})
}
