// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// A wire carries the heartbeats of one instance between nodes, by addresses that are
// not those of advertisements.
type wire struct {
	mu   sync.Mutex
	ends []*wireEnd
}

// A wireEnd is a node's part in a wire.
type wireEnd struct {
	wire     *wire
	node     *node
	hear     func(Beat)
	id       NodeID
	source   netip.Addr
	state    State
	priority uint8
	told     bool
	cut      bool
}

func newWire(t *testing.T) *wire {
	w := &wire{}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(beatInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
			w.mu.Lock()
			for _, e := range w.ends {
				w.beat(e)
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(stop); <-ended })
	return w
}

// connect gives a node a part in the wire, before it runs.
func (w *wire) connect(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := n.link.Source.As4()[3]
	e := &wireEnd{wire: w, node: n, hear: func(Beat) {}, id: NodeID{last}, source: netip.AddrFrom4([4]byte{198, 51, 100, last})}
	w.ends = append(w.ends, e)
	n.heartbeats = e
	n.setUp = func(r *Router) {
		w.mu.Lock()
		defer w.mu.Unlock()
		e.hear = r.Hear
	}
}

func (w *wire) beat(e *wireEnd) {
	if e.told && !e.cut {
		w.deliver(e, Beat{Node: e.id, Source: e.source, State: e.state, Priority: e.priority, Interval: beatInterval})
	}
}

func (w *wire) deliver(from *wireEnd, b Beat) {
	for _, to := range w.ends {
		if to != from {
			to.hear(b)
		}
	}
}

// end is the end of a node's daemon: its advertisements stop, too.
func (e *wireEnd) end() {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	e.cut = true
	e.node.cut.Store(true)
	e.wire.deliver(e, Beat{Node: e.id, Gone: true})
}

func (e *wireEnd) ID() NodeID  { return e.id }
func (e *wireEnd) Quiet() bool { return true }

func (e *wireEnd) Tell(s State, priority uint8) {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	e.state, e.priority, e.told = s, priority, true
	e.wire.beat(e)
}

// fastGateways are two nodes with heartbeats, a group of two instances each; the
// first one is Active.
func fastGateways(t *testing.T) (lb1, lb2 gateway) {
	wires, segments := []*wire{newWire(t), newWire(t)}, []*segment{newSegment(), newSegment()}
	start := func(last byte, priority uint8) gateway {
		group := NewGroup("pair")
		g := gateway{newNode(t, segments[0], last), newNode(t, segments[1], last)}
		for i, n := range []*node{g.front, g.back} {
			n.group = group
			wires[i].connect(n)
			n.run(func(c *Config) {
				c.Priority, c.Name, c.Heartbeat = priority, []string{"front", "back"}[i], beatInterval
			})
		}
		return g
	}
	lb1, lb2 = start(1, 100), start(2, 99)
	sleep(5 * time.Second)
	lb1.wantBoth(t, Active)
	lb2.wantBoth(t, Backup)
	return lb1, lb2
}

func (g gateway) routers() []*Router { return []*Router{g.front.router, g.back.router} }

func (g gateway) end() {
	for _, n := range []*node{g.front, g.back} {
		n.heartbeats.(*wireEnd).end()
	}
}

// handOver hands both over, as an order does.
func (g gateway) handOver(t *testing.T) {
	t.Helper()
	var all sync.WaitGroup
	for _, r := range g.routers() {
		all.Go(func() {
			if h, err := r.HandOver(t.Context()); err != nil || !h.TookOver() {
				t.Errorf("%s: %+v, %v", r.Status().Name, h, err)
			}
		})
	}
	all.Wait()
}

const fastEnough = 10 * beatInterval

func TestFastModeWithAllElse(t *testing.T) {
	virtual(t, "the end of a daemon moves a group", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		lb1.end()
		sleep(fastEnough)
		lb2.wantBoth(t, Active)
	})
	virtual(t, "silence moves a group", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		for _, n := range []*node{lb1.front, lb1.back} {
			n.cut.Store(true)
			w := n.heartbeats.(*wireEnd)
			w.wire.mu.Lock()
			w.cut = true
			w.wire.mu.Unlock()
		}
		sleep(fastEnough)
		lb2.wantBoth(t, Active)
	})
	virtual(t, "while one side is heard, the group stays", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		lb1.front.heartbeats.(*wireEnd).end()
		sleep(time.Minute)
		lb2.wantBoth(t, Backup)
	})
	virtual(t, "a handover is quick, and lasts", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		began := time.Now()
		lb1.handOver(t)
		if took := time.Since(began); took > fastEnough {
			t.Errorf("it took %v", took)
		}
		sleep(time.Minute)
		lb1.wantBoth(t, Backup)
		lb2.wantBoth(t, Active)
		lb2.end()
		sleep(fastEnough)
		lb1.wantBoth(t, Active)
	})
	virtual(t, "who is held back takes over for no reason", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		for _, r := range lb2.routers() {
			r.Hold(true)
		}
		lb1.end()
		sleep(time.Minute)
		lb2.wantBoth(t, Backup)
		for _, r := range lb2.routers() {
			if !r.Status().Silent {
				t.Errorf("%s does not say that nobody is active", r.Status().Name)
			}
			r.Hold(false)
		}
		sleep(time.Second)
		lb2.wantBoth(t, Active)
	})
	virtual(t, "an unfit node gives way at once, and does not come back", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		lb1.front.router.Fault("check gate fails")
		sleep(fastEnough)
		lb1.wantBoth(t, Fault)
		lb2.wantBoth(t, Active)
		sleep(time.Minute)
		lb2.wantBoth(t, Active)
		for _, n := range []*node{lb1.front, lb1.back} {
			if got := len(n.changes); got != 3 {
				t.Errorf("changes %v", n.changes)
			}
		}
	})
	virtual(t, "all are unfit: the last resort, until one is fit", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		lb1.front.router.Fault("check gate fails")
		lb2.front.router.Fault("check gate fails")
		sleep(time.Minute)
		last, fit := lb1, lb2
		if lb2.front.router.Status().State == Active {
			last, fit = lb2, lb1
		}
		last.wantBoth(t, Active)
		fit.front.router.ClearFault()
		sleep(time.Second)
		fit.wantBoth(t, Active)
		last.wantBoth(t, Fault)
	})
	virtual(t, "a planned stop, and a start", func(t *testing.T) {
		lb1, lb2 := fastGateways(t)
		var all sync.WaitGroup
		for _, r := range lb1.routers() {
			all.Go(func() {
				if h, err := r.Release(t.Context()); err != nil || !h.TookOver() {
					t.Errorf("%s: %+v, %v", r.Status().Name, h, err)
				}
			})
		}
		all.Wait()
		lb1.end()
		sleep(time.Minute)
		lb2.wantBoth(t, Active)
		for _, n := range []*node{lb2.front, lb2.back} {
			if got := slices.DeleteFunc(n.changes, func(c Change) bool { return c.To != Active }); len(got) != 1 {
				t.Errorf("changes %v", n.changes)
			}
		}
	})
}
