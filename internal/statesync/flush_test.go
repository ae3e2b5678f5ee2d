// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// flush is Flush within a time.
func (m *member) flush(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return m.Flush(ctx)
}

// mustFlush is flush, which must succeed.
func (m *member) mustFlush(t *testing.T, when string, within time.Duration) {
	t.Helper()
	if err := m.flush(within); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

// Before a planned stop a node waits until its peers have everything.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, flows := newNetwork(), manyFlows(3000)
		a, b := newPlane(flows[:1000]...), newPlane()
		one := w.member(t, a, config("lb1", "lb2"))
		defer closed(one)
		later(settled)
		began := time.Now()
		if err := one.flush(time.Minute); err == nil || !strings.Contains(err.Error(), "lb2 (192.0.2.2:3780) has not this node's state: connection refused") || time.Since(began) > 5*time.Second {
			t.Errorf("with no peer: %v, after %v", err, time.Since(began))
		}
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(two)
		// The peer is about to connect.
		one.mustFlush(t, "a peer that has just begun", 10*time.Second)
		mustHave(t, b, "lb1", a)
		a.set(flows[1000:]...)
		one.mustFlush(t, "2,000 more", time.Second)
		mustHave(t, b, "lb1", a)
		hold := make(chan struct{})
		b.do(func() { b.hold = hold })
		a.set(lb.FlowState{FlowID: flows[0].FlowID})
		err := one.flush(time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lb2 (192.0.2.2:3780) has not acknowledged everything") {
			t.Errorf("while it stands still: %v", err)
		}
		close(hold)
		b.do(func() { b.hold = nil })
		one.mustFlush(t, "it goes on", time.Second)
		mustHave(t, b, "lb1", a)
		w.cut.Store(true)
		a.set(lb.FlowState{FlowID: flows[1].FlowID})
		began = time.Now()
		if err := one.flush(time.Minute); err == nil || errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
			t.Errorf("after the cut: %v, after %v", err, time.Since(began))
		}
	})
}

// It waits for a snapshot that takes its time, however long that is, and for a second
// one that follows a connection that has broken meanwhile.
func TestFlushOfAFirstSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStalledPair(t)
		defer closed(p.one, p.two)
		later(settled)
		if err := p.one.flush(2 * time.Second); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not all of this node's state yet") {
			t.Errorf("while the snapshot is under way: %v", err)
		}
		go func() {
			time.Sleep(8 * time.Second)
			p.goOn()
			p.cut.Store(true)
			time.Sleep(4 * time.Second)
			p.cut.Store(false)
		}()
		p.one.mustFlush(t, "until all is there", 30*time.Second)
		mustHave(t, p.b, "lb1", p.a)
	})
}

// Of three nodes each of the others may be the next one: the one that is dead is not
// waited for, the one that fills up still is.
func TestFlushOfThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hold := newNetwork(), make(chan struct{})
		a, b, c := newPlane(manyFlows(2000)...), newPlane(), newPlane()
		b.hold = hold
		one := w.member(t, a, config("lb1", "lb2", "lb3"))
		two := w.member(t, b, config("lb2", "lb1", "lb3"))
		three := w.member(t, c, config("lb3", "lb1", "lb2"))
		defer closed(one, two, three)
		later(settled)
		three.stop()
		later(settled)
		if err := one.flush(3 * time.Second); err == nil || !strings.Contains(err.Error(), "lb2") || strings.Contains(err.Error(), "lb3") {
			t.Errorf("while lb2 fills up: %v", err)
		}
		b.do(func() { b.hold = nil })
		close(hold)
		one.mustFlush(t, "lb2 has everything, lb3 is dead", 3*time.Second)
		mustHave(t, b, "lb1", a)
	})
}

// A peer that has everything and dies, while another one is waited for, is none that has it.
func TestFlushOfAPeerThatDies(t *testing.T) {
	for _, tc := range []struct {
		name string
		dies func(w *network, two *member, goOn func()) // lb3 stands still until it goes on
		want string                                     // in the error; "": none
	}{
		{"with the other one", func(w *network, _ *member, _ func()) { w.cut.Store(true) }, "lb2 (192.0.2.2:3780) has not this node's state"},
		{"before the other one has everything", func(_ *network, two *member, goOn func()) {
			two.stop()
			later(settled)
			goOn()
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, hold := newNetwork(), make(chan struct{})
				a, c := newPlane(manyFlows(2000)...), newPlane()
				one := w.member(t, a, config("lb1", "lb2", "lb3"))
				two := w.member(t, newPlane(), config("lb2", "lb1", "lb3"))
				three := w.member(t, c, config("lb3", "lb1", "lb2"))
				defer closed(one, two, three)
				later(settled)
				one.mustFlush(t, "both are there", time.Second)
				c.do(func() { c.hold = hold })
				goOn := sync.OnceFunc(func() {
					c.do(func() { c.hold = nil })
					close(hold)
				})
				defer goOn()
				a.set(lb.FlowState{FlowID: manyFlows(1)[0].FlowID})
				done := make(chan error)
				go func() { done <- one.flush(time.Minute) }()
				later(settled) // lb2 has it
				tc.dies(w, two, goOn)
				err := <-done
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					t.Error("it waits for the dead")
				}
			})
		})
	}
}
