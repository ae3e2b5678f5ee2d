// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

// Of flows that were over while there was no connection the peer hears all the same, and
// what it holds from others stays.
func TestAPeerComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(3000)
		a, b, c := newPlane(flows[:2000]...), newPlane(), newPlane(flows[2000:]...)
		one := w.member(t, a, config("lb1", "lb2", "lb3"))
		two := w.member(t, b, config("lb2", "lb1", "lb3"))
		three := w.member(t, c, config("lb3", "lb1", "lb2"))
		defer closed(two, three)
		later(settled)
		one.stop()
		later(settled)
		if two.Synced("lb1") || two.peerStatus("lb1").Problem == "" || three.peerStatus("lb1").Out.Connected {
			t.Errorf("lb2 says %+v", two.peerStatus("lb1"))
		}
		if in := two.peerStatus("lb1").In; in.LastReason != ReasonStopped || !strings.Contains(in.LastError, "this node stops") {
			t.Errorf("lb1 is gone because: %s: %s", in.LastReason, in.LastError)
		}
		a = newPlane(flows[500:2000]...)
		one = w.member(t, a, config("lb1", "lb2", "lb3"))
		defer closed(one)
		later(3 * time.Second)
		mustHave(t, b, "lb1", a)
		mustHave(t, b, "lb3", c)
		mustHave(t, a, "lb2", b)
		mustHave(t, a, "lb3", c)
		if s := one.Status(); len(s.Problems) > 0 {
			t.Errorf("problems: %q", s.Problems)
		}
	})
}

// A cable that is pulled is seen within 3 s, and what has changed meanwhile is there soon
// after it is back.
func TestACutLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(1000)
		a, b := newPlane(flows[:900]...), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		w.cut.Store(true)
		later(3 * time.Second)
		for _, s := range []PeerStatus{one.peerStatus("lb2"), two.peerStatus("lb1")} {
			if s.Out.Connected || s.In.Connected || s.Out.LastReason != ReasonSilent || s.In.LastReason != ReasonSilent || s.Problem == "" {
				t.Errorf("3 s after the cut: %+v", s)
			}
		}
		a.set(flows[900:]...)
		a.set(lb.FlowState{FlowID: flows[5].FlowID})
		later(27 * time.Second)
		w.cut.Store(false)
		later(5 * time.Second)
		mustHave(t, b, "lb1", a)
		if s := one.peerStatus("lb2"); s.Problem != "" || s.Out.Retries == 0 {
			t.Errorf("after the cut: %+v", s)
		}
	})
}

// While nobody answers, it is tried again and again, but not too often.
func TestRetriesArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		one := w.member(t, newPlane(), config("lb1", "lb2"))
		defer closed(one)
		later(time.Minute)
		if w.dials < 30 || w.dials > 70 {
			t.Errorf("%d attempts in a minute", w.dials)
		}
		s := one.peerStatus("lb2")
		if !strings.Contains(s.Problem, "lb2 (192.0.2.2:3780) has not this node's state: connection refused") || !strings.Contains(s.Problem, "let TCP port 3780 pass") {
			t.Errorf("the problem is: %s", s.Problem)
		}
		if n := strings.Count(one.log.String(), "no connection to a peer"); n != 1 && n != 2 {
			t.Errorf("it was logged %d times", n)
		}
	})
}

// Whoever waits for the state of a peer is told when it is complete, and when it is not any
// more.
func TestWhoWaitsIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		var mu sync.Mutex
		var told []string
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf(format, args...))
		}
		cfg := config("lb1", "lb2")
		cfg.Told = Told{
			Connected: func(peer string, connected bool, why error) { note("connected %s %v %v", peer, connected, why != nil) },
			Synced:    func(peer string, synced bool) { note("synced %s %v", peer, synced) },
		}
		one := w.member(t, newPlane(), cfg)
		two := w.member(t, newPlane(natFlow), config("lb2", "lb1"))
		defer closed(one)
		later(settled)
		two.stop()
		later(10 * time.Millisecond)
		slices.Sort(told)
		want := []string{"connected lb2 false true", "connected lb2 true false", "synced lb2 false", "synced lb2 true"}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// A peer that takes no connection and has none is gone: one that has died, at once, and one
// that is cut off, when that is noticed. One whose connection breaks and comes anew is not.
func TestAPeerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		var gone atomic.Int32
		cfg := config("lb1", "lb2")
		cfg.Told.Gone = func(peer string) {
			if peer == "lb2" {
				gone.Add(1)
			}
		}
		one := w.member(t, newPlane(), cfg)
		two := w.member(t, newPlane(), config("lb2", "lb1"))
		defer closed(one)
		later(settled)
		gone.Store(0) // before it has begun
		for range 3 {
			one.mu.Lock()
			p := one.peers[0]
			p.sending.cancel(errMalformed)
			p.receiving.cancel(errMalformed)
			one.mu.Unlock()
			later(settled)
		}
		if n := gone.Load(); n != 0 || !one.peerStatus("lb2").Out.Connected {
			t.Errorf("it was gone %d times when its connections broke", n)
		}
		w.cut.Store(true)
		later(2 * time.Second)
		if gone.Load() != 0 {
			t.Error("it was gone before its silence meant anything")
		}
		later(8 * time.Second)
		if gone.Load() == 0 {
			t.Error("it is cut off, and not gone")
		}
		w.cut.Store(false)
		later(settled)
		gone.Store(0)
		two.stop()
		later(time.Second)
		if gone.Load() == 0 {
			t.Error("it has ended, and is not gone a second later")
		}
	})
}

// One that was gone and is connected again does not tell again what it has told before: that
// it is connected is all there is to hear of it, and comes last.
func TestAPeerThatWasGoneIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		var mu sync.Mutex
		var told []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, what)
		}
		cfg, plane := config("lb1", "lb2"), newPlane()
		cfg.Told.Gone = func(string) { note("gone") }
		cfg.Told.Connected = func(_ string, connected bool, _ error) { note(fmt.Sprint("connected ", connected)) }
		one := w.member(t, plane, cfg)
		two := w.member(t, newPlane(), config("lb2", "lb1"))
		defer closed(one)
		defer closed(two)
		later(settled)
		if _, err := two.PublishOverrides([]Override{{Key: "lb2", Value: []byte("it stops")}}); err != nil {
			t.Fatal(err)
		}
		later(settled)
		plane.mu.Lock()
		if len(plane.overrides) != 1 {
			t.Errorf("its word has not come: %v", plane.overrides)
		}
		clear(plane.overrides)
		plane.mu.Unlock()
		for _, step := range []struct {
			cut  bool
			last string
		}{{true, "gone"}, {false, "connected true"}, {true, "gone"}, {false, "connected true"}} {
			w.cut.Store(step.cut)
			later(30 * time.Second)
			mu.Lock()
			if last := told[len(told)-1]; last != step.last {
				t.Errorf("cut off %v: told %q, the last is not %q", step.cut, told, step.last)
			}
			mu.Unlock()
		}
		plane.mu.Lock()
		defer plane.mu.Unlock()
		if len(plane.overrides) != 0 {
			t.Errorf("its word has come again: %v", plane.overrides)
		}
	})
}

// A second daemon of a node's name, or one that hangs: the newer connection counts,
// and calls for one peer never overlap.
func TestANewerConnectionReplacesTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		a, b := newPlane(natFlow), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		defer closed(one)
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(two)
		later(settled)
		// The old connection hangs: nothing that lb1 sends arrives, its end neither.
		w.mu.Lock()
		for _, l := range w.links {
			if l.remote == atTwo {
				l.lost.Store(true)
			}
		}
		w.mu.Unlock()
		one.mu.Lock()
		one.peers[0].sending.cancel(errors.New("a test has ended it"))
		one.mu.Unlock()
		later(time.Second) // less than it takes to see the silence
		if s := two.peerStatus("lb1"); !s.In.Connected || !s.In.Synced || s.In.LastReason != ReasonReplaced {
			t.Errorf("got %+v", s)
		}
		mustHave(t, b, "lb1", a)
	})
}

func TestWrongPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		// lb1 has the addresses of lb2 and lb3 mixed up, and its own for lb4.
		cfg := Config{Name: "lb1", Keys: []key.Key{aKey}, Peers: []Peer{{"lb2", atThree}, {"lb4", atOne}}}
		one := w.member(t, newPlane(natFlow), cfg)
		three := w.member(t, newPlane(), config("lb3", "lb2"))
		defer closed(one, three)
		later(settled)
		if s := one.peerStatus("lb2"); s.Out.LastReason != ReasonUnknown && s.Out.Connected || !strings.Contains(s.Problem, "no peer of this name is configured") {
			t.Errorf("got %+v", s)
		}
		if s := one.peerStatus("lb4"); s.Out.Connected || !strings.Contains(s.Out.LastError, errItself.Error()) {
			t.Errorf("got %+v", s)
		}
		if s := three.Status(); s.Refused[ReasonUnknown] == 0 {
			t.Errorf("lb3 has refused %v", s.Refused)
		}
		// And lb5 calls itself lb1, too.
		cfg = config("lb1", "lb2")
		five := start(t, cfg, newPlane(), w.join(netip.MustParseAddrPort("192.0.2.5:3780")))
		defer closed(five)
		three.stop()
		three = w.member(t, newPlane(), Config{Name: "lb1", Keys: []key.Key{aKey}, Peers: []Peer{{"lb5", netip.MustParseAddrPort("192.0.2.5:3780")}}})
		defer closed(three)
		later(settled)
		if s := three.peerStatus("lb5"); !strings.Contains(s.Problem, `or another one of the same name, "lb1": compare the nodes' names`) {
			t.Errorf("got %+v", s)
		}
	})
}

// A port that somebody else has is a problem, and is tried again.
func TestThePortIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		l, err := w.listen(atOne)
		if err != nil {
			t.Fatal(err)
		}
		a, b := newPlane(natFlow), newPlane(pinned6)
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		if s := one.Status(); len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "address already in use") {
			t.Errorf("got %q", s.Problems)
		}
		mustHave(t, b, "lb1", a) // the other direction goes on
		l.Close()
		later(4 * time.Second)
		if s := one.Status(); len(s.Problems) != 0 {
			t.Errorf("got %q", s.Problems)
		}
		mustHave(t, a, "lb2", b)
	})
}

func TestConfigurationsThatCannotBe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Config)
	}{
		{"no name", func(c *Config) { c.Name = "" }},
		{"a long name", func(c *Config) { c.Name = strings.Repeat("x", maxName+1) }},
		{"a peer of this name", func(c *Config) { c.Peers[0].Name = "lb1" }},
		{"two peers of one name", func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) }},
		{"no address", func(c *Config) { c.Peers[0].Address = netip.AddrPort{} }},
		{"no key", func(c *Config) { c.Keys = nil }},
		{"an override without a key", func(c *Config) { c.Overrides = []Override{{}} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config("lb1", "lb2")
			tc.change(&cfg)
			if _, err := New(cfg, newPlane(), newPlane()); err == nil {
				t.Error("it is accepted")
			}
		})
	}
}

// While a Sink hangs, a peer that connects anew is told so, and nothing piles up.
func TestAPeerConnectsWhileTheSinkHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hold := newNetwork(), make(chan struct{})
		a, b := newPlane(natFlow), newPlane()
		b.hold = hold
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		one.mu.Lock()
		one.peers[0].sending.cancel(errors.New("a test has ended it"))
		one.mu.Unlock()
		later(time.Minute)
		before := runtime.NumGoroutine()
		later(10 * time.Minute)
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("%d goroutines, and ten minutes later %d", before, after)
		}
		if s := one.peerStatus("lb2"); !strings.Contains(s.Problem, "the connection before it has not ended yet") {
			t.Errorf("got %+v", s)
		}
		b.do(func() { b.hold = nil })
		close(hold)
		later(5 * time.Second)
		mustHave(t, b, "lb1", a)
	})
}

// Nodes speak the highest version that both know; where there is none, both say so, and
// what to do.
func TestNodesOfTwoVersions(t *testing.T) {
	speaks := func(oldest, newest uint8) func(*Node) {
		return func(n *Node) { n.tuning.oldest, n.tuning.newest = oldest, newest }
	}
	for _, tc := range []struct {
		name     string
		one, two func(*Node)
		want     uint8 // 0: none
	}{
		{"one upgraded", speaks(1, 2), speaks(2, 3), 2},
		{"the other one upgraded", speaks(2, 3), speaks(1, 2), 2},
		{"both", speaks(2, 3), speaks(2, 3), 3},
		{"one left out", speaks(1, 2), speaks(3, 4), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newNetwork()
				one := w.member(t, newPlane(natFlow), config("lb1", "lb2"), tc.one)
				two := w.member(t, newPlane(), config("lb2", "lb1"), tc.two)
				defer closed(one, two)
				later(settled)
				for _, s := range []PeerStatus{one.peerStatus("lb2"), two.peerStatus("lb1")} {
					if s.Out.Version != tc.want || s.In.Version != tc.want || s.Out.InSync != (tc.want != 0) {
						t.Errorf("got %+v", s)
					}
					if tc.want == 0 && (s.Out.LastReason != ReasonVersions || !strings.Contains(s.Problem, "upgrade the older node")) {
						t.Errorf("the problem is %q", s.Problem)
					}
				}
			})
		})
	}
}
