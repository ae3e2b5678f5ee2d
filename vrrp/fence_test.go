// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeFence notes in its node's journal what it is told, but for beats, which it
// counts.
type fakeFence struct {
	node *node

	mu        sync.Mutex
	refuses   error
	answers   bool // the data plane does, where a VIP is held
	held      bool
	left      *time.Duration // since an earlier run was at work
	overtaken bool
	beats     int
	last      time.Time
}

func (f *fakeFence) do(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeFence) Place(Link, time.Duration) (err error) {
	f.do(func() { err = f.refuses })
	return err
}
func (f *fakeFence) Left() (age time.Duration, ok bool) {
	f.do(func() {
		if ok = f.left != nil; ok {
			age = *f.left
		}
	})
	return age, ok
}
func (f *fakeFence) Hold() (answers bool) {
	f.node.note("hold")
	f.do(func() { f.held, answers = true, f.answers })
	return answers
}
func (f *fakeFence) Present() { f.node.note("present") }
func (f *fakeFence) Adopt()   { f.node.note("adopt"); f.do(func() { f.held = true }) }
func (f *fakeFence) Drop()    { f.node.note("drop"); f.do(func() { f.held = false }) }
func (f *fakeFence) Beat() {
	f.do(func() { f.beats, f.last, f.overtaken = f.beats+1, time.Now(), false })
}
func (f *fakeFence) Overtaken() (is bool) {
	f.do(func() { is = f.overtaken && f.held })
	return is
}

// A fakeBeats are Heartbeats that reach nobody.
type fakeBeats struct {
	mu   sync.Mutex
	told State
}

func (b *fakeBeats) ID() NodeID  { return NodeID{1} }
func (b *fakeBeats) Quiet() bool { return true }
func (b *fakeBeats) Tell(s State, _ uint8) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = s
}

func (b *fakeBeats) last() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.told
}

// count returns how many beats there were since the last call.
func (f *fakeFence) count() (n int) {
	synctest.Wait()
	f.do(func() { n, f.beats = f.beats, 0 })
	return n
}

func fenced(t *testing.T, s *segment, last byte) (*node, *fakeFence) {
	n := newNode(t, s, last)
	f := &fakeFence{node: n}
	n.fence = f
	return n, f
}

func TestFenceFollowsTheVIPs(t *testing.T) {
	virtual(t, "held before they are there, dropped when they are gone", func(t *testing.T) {
		n, f := fenced(t, newSegment(), 2)
		n.run(nil)
		sleep(3600 * time.Millisecond)
		if got := f.count(); got > 0 {
			t.Errorf("a backup beat %d times", got)
		}
		n.taken()
		sleep(10 * time.Millisecond)
		wantActions(t, n.taken(), "send 100", "hold", "add", "present", "announce")
		n.change(func() { n.link.Up = false })
		sleep(time.Millisecond)
		wantActions(t, n.taken(), "send 0", "remove", "drop")
		f.count()
		sleep(time.Minute)
		if got := f.count(); got > 0 {
			t.Errorf("a faulty instance beat %d times", got)
		}
	})
	virtual(t, "nobody takes over: they stay", func(t *testing.T) {
		n, f := fenced(t, newSegment(), 2)
		n.run(nil)
		sleep(4 * time.Second)
		n.taken()
		f.count()
		if _, err := n.router.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
		// Until the end: it is at work, and answers.
		if got := f.count(); got < 40 {
			t.Errorf("%d beats in a release of more than four seconds", got)
		}
		if got := n.taken(); slices.Contains(got, "drop") || !f.held {
			t.Errorf("a release without a peer did %v", got)
		}
	})
	virtual(t, "those of an earlier run are adopted, and nothing beats", func(t *testing.T) {
		n, f := fenced(t, newSegment(), 2)
		n.vips = testConfig().Addresses
		n.run(nil)
		wantActions(t, n.taken(), "adopt")
		n.segment.speak("192.0.2.9", priority(200))
		wantActions(t, n.taken(), "remove", "drop")
		sleep(time.Second)
		if got := f.count(); got > 0 {
			t.Errorf("a backup beat %d times", got)
		}
	})
}

// A daemon that was killed and is back before anybody can have missed it goes on.
func TestRunThatFollowsAnEarlierOne(t *testing.T) {
	age := func(d time.Duration) *time.Duration { return &d }
	for _, tc := range []struct {
		name  string
		left  *time.Duration
		setUp func(n *node, f *fakeFence)
		want  State
	}{
		{"a moment ago", age(500 * time.Millisecond), nil, Active},
		{"just in time", age(2*time.Second - 1), nil, Active},
		{"too late: somebody may be taking over", age(2 * time.Second), nil, Backup},
		{"another owner was seen, or there was no earlier run", nil, nil, Backup},
		{"it has left no VIPs", age(0), func(n *node, _ *fakeFence) { n.vips = nil }, Backup},
		{"what the fence says is of another interface", age(0), func(_ *node, f *fakeFence) { f.refuses = errors.New("not there") }, Backup},
		{"an operator holds it back", age(0), func(n *node, _ *fakeFence) { n.setUp = func(r *Router) { r.Hold(true) } }, Backup},
		{"it is unfit", age(0), func(n *node, _ *fakeFence) { n.setUp = func(r *Router) { r.Fault("a check fails") } }, Fault},
	} {
		virtual(t, tc.name, func(t *testing.T) {
			n, f := fenced(t, newSegment(), 2)
			n.vips, f.left = testConfig().Addresses, tc.left
			if tc.setUp != nil {
				tc.setUp(n, f)
			}
			n.run(nil)
			n.wantState(tc.want)
			if tc.want == Active {
				wantActions(t, n.taken(), "adopt", "send 100", "hold", "add", "present", "announce")
			} else if !n.holds() && tc.left != nil && tc.setUp == nil {
				t.Error("the VIPs are gone")
			}
		})
	}
	virtual(t, "somebody better has taken over all the same", func(t *testing.T) {
		s := newSegment()
		n, f := fenced(t, s, 2)
		n.vips, f.left = testConfig().Addresses, age(0)
		n.run(nil)
		n.wantState(Active)
		s.speak("192.0.2.9", priority(200))
		n.wantState(Backup)
		if n.holds() {
			t.Error("it has the VIPs still")
		}
	})
	virtual(t, "after a fault it begins as Backup", func(t *testing.T) {
		n, f := fenced(t, newSegment(), 2)
		f.left = age(0)
		n.run(nil)
		sleep(4 * time.Second)
		n.wantState(Active)
		n.router.Fault("a check fails")
		sleep(10 * time.Second) // nobody else is there: the last resort
		n.router.ClearFault()
		sleep(time.Millisecond)
		n.wantState(Active)
		n.change(func() { n.link.Up = false })
		n.wantState(Fault)
		n.change(func() { n.link.Up = true })
		n.wantState(Backup)
	})
}

func TestFenceIsBeatenOftenEnough(t *testing.T) {
	for _, tc := range []struct {
		name     string
		interval time.Duration
		least    int // in an interval
	}{
		{"ten milliseconds", 10 * time.Millisecond, 2},
		{"a hundred", 100 * time.Millisecond, 4},
		{"a second", time.Second, 10},
		{"40 seconds", 40 * time.Second, 400},
	} {
		virtual(t, tc.name, func(t *testing.T) {
			n, f := fenced(t, newSegment(), 2)
			n.run(func(c *Config) { c.Interval, c.Version, c.Password = tc.interval, V3, "" })
			sleep(4 * tc.interval)
			n.wantState(Active)
			f.count()
			sleep(tc.interval)
			if got := f.count(); got < tc.least || got > 2*tc.least+1 {
				t.Errorf("%d beats in an interval, want some %d", got, tc.least)
			}
			// A Backup can take over after three intervals of silence at the earliest,
			// and a beat may be late.
			c := Config{Interval: tc.interval}
			if p := c.fencePatience(); p >= 3*tc.interval || p < 4*c.beatEvery() {
				t.Errorf("patience %v", p)
			}
		})
	}
}

// Where a Backup takes over within a few heartbeats, so soon is a beat late, too.
func TestFencePatienceWithHeartbeats(t *testing.T) {
	c := Config{Interval: time.Second, Heartbeat: 10 * time.Millisecond}
	if got, want := c.fencePatience(), 40*time.Millisecond; got != want {
		t.Errorf("patience %v, want %v", got, want)
	}
}

func TestOvertakenNodeIsBackupBeforeItSpeaks(t *testing.T) {
	const peer = "192.0.2.9"
	stands := func(t *testing.T, change func(*Config)) (*node, *fakeFence) {
		n, f := fenced(t, newSegment(), 2)
		n.run(change)
		sleep(4 * time.Second)
		n.wantState(Active)
		n.taken()
		// What a process that was stopped finds: the kernel has seen another one.
		f.do(func() { f.overtaken = true })
		return n, f
	}
	virtual(t, "it takes the VIPs back by its priority", func(t *testing.T) {
		n, _ := stands(t, nil)
		n.segment.speak(peer, priority(99))
		n.wantState(Backup)
		wantActions(t, n.taken(), "remove", "drop")
		if s := n.router.Status(); s.Reason != "this node stood still, and another one has taken over" {
			t.Errorf("reason %q", s.Reason)
		}
		for range 4 {
			sleep(900 * time.Millisecond)
			n.segment.speak(peer, priority(99))
		}
		sleep(100 * time.Millisecond)
		n.wantState(Active)
	})
	virtual(t, "without preemption it does not", func(t *testing.T) {
		n, _ := stands(t, func(c *Config) { c.Preempt = false })
		for range 10 {
			n.segment.speak(peer, priority(99))
			sleep(time.Second)
		}
		n.wantState(Backup)
	})
	virtual(t, "whatever wakes it first", func(t *testing.T) {
		n, f := stands(t, nil)
		f.count()
		if err := n.router.SetPriority(101); err != nil {
			t.Fatal(err)
		}
		n.wantState(Backup)
		if got := f.count(); got > 0 {
			t.Errorf("it has said %d times that it is at work", got)
		}
	})
	// What goes on without this process has called it Active until now, and the other one
	// may have made way for that.
	virtual(t, "where others speak for it, it says goodbye", func(t *testing.T) {
		beats := &fakeBeats{}
		n, f := fenced(t, newSegment(), 2)
		n.heartbeats = beats
		n.run(func(c *Config) { c.Heartbeat = beatInterval })
		sleep(4 * time.Second)
		n.wantState(Active)
		n.taken()
		f.do(func() { f.overtaken = true })
		sleep(100 * time.Millisecond)
		n.wantState(Backup)
		wantActions(t, n.taken(), "remove", "drop", "send 0")
		if got := beats.last(); got != Backup {
			t.Errorf("heartbeats say %v", got)
		}
	})
	virtual(t, "the other one is gone again", func(t *testing.T) {
		n, _ := stands(t, nil)
		sleep(time.Second)
		n.wantState(Backup)
		sleep(4 * time.Second)
		n.wantState(Active)
	})
	virtual(t, "in a release the other one is who took over", func(t *testing.T) {
		n, f := stands(t, nil)
		f.do(func() { f.overtaken = false })
		done := make(chan Handover)
		go func() {
			h, err := n.router.Release(context.Background())
			if err != nil {
				t.Error(err)
			}
			done <- h
		}()
		sleep(10 * time.Millisecond)
		f.do(func() { f.overtaken = true })
		f.count()
		sleep(500 * time.Millisecond)
		if got := f.count(); got > 0 {
			t.Errorf("%d beats after another one has taken over", got)
		}
		n.segment.speak(peer, priority(99))
		if h := <-done; h.Peer != addr(peer) {
			t.Errorf("%v took over, want %s", h.Peer, peer)
		}
	})
}

func TestWhereNothingCanBeFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, f := fenced(t, newSegment(), 2)
		f.refuses = errors.New("the program is not there")
		n.run(nil)
		sleep(time.Minute)
		if s := n.router.Status(); s.Unfenced != "the program is not there" || s.State != Active {
			t.Errorf("status says %q, %v", s.Unfenced, s.State)
		}
		if got := f.count(); got > 0 {
			t.Errorf("it has beaten %d times for nothing", got)
		}
		if got := n.log.count("the kernel goes on answering"); got != 1 {
			t.Errorf("said %d times, want once:\n%s", got, strings.Join(n.log.lines, "\n"))
		}
		// The data plane has come to the interface.
		f.do(func() { f.refuses = nil })
		sleep(time.Minute)
		if s := n.router.Status(); s.Unfenced != "" || f.count() == 0 {
			t.Errorf("status says %q, and nothing has beaten", s.Unfenced)
		}
	})
}

// Where the data plane answers at once, a takeover does not wait for the kernel to have
// the VIPs.
func TestTakeoverThatIsAnsweredAtOnce(t *testing.T) {
	answered := func(t *testing.T, s *segment, last byte) *node {
		n, f := fenced(t, s, last)
		f.answers = true
		return n
	}
	virtual(t, "announced before the VIPs are added, once", func(t *testing.T) {
		n := answered(t, newSegment(), 2)
		n.run(nil)
		sleep(3600 * time.Millisecond)
		n.taken()
		sleep(100 * time.Millisecond)
		wantActions(t, n.taken(), "send 100", "hold", "announce", "add", "present")
		sleep(200 * time.Millisecond)
		wantActions(t, n.taken(), "announce")
	})
	virtual(t, "from a node that lives they are added first", func(t *testing.T) {
		s := newSegment()
		n := answered(t, s, 2)
		n.run(nil)
		sleep(time.Second)
		n.taken()
		s.speak("192.0.2.9", priority(50))
		s.speak("192.0.2.9", priority(0))
		sleep(time.Second)
		wantActions(t, n.taken(), "hold", "add", "present", "send 100", "announce", "announce")
	})
	virtual(t, "what cannot be added is answered no more", func(t *testing.T) {
		n := answered(t, newSegment(), 2)
		n.addErr = errors.New("no room")
		n.run(nil)
		sleep(3600 * time.Millisecond)
		n.taken()
		sleep(100 * time.Millisecond)
		wantActions(t, n.taken(), "send 100", "hold", "announce", "add", "send 0", "drop")
	})
	virtual(t, "what somebody has taken away is answered until it is back", func(t *testing.T) {
		n := answered(t, newSegment(), 2)
		n.run(nil)
		sleep(4 * time.Second)
		n.taken()
		n.change(func() { n.vips = nil })
		sleep(time.Millisecond)
		wantActions(t, n.taken(), "hold", "add", "present")
	})
}
