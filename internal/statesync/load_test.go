// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A proxy passes connections on until it is told to cut them all.
type proxy struct {
	at, to netip.AddrPort
	mu     sync.Mutex
	conns  []net.Conn
	passed int
}

func newProxy(t *testing.T, to netip.AddrPort) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{at: l.Addr().(*net.TCPAddr).AddrPort(), to: to}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to.String())
			if err != nil {
				near.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, near, far)
			p.mu.Unlock()
			all.Go(func() { p.pass(far, near); far.Close() })
			all.Go(func() { p.pass(near, far); near.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); p.cut(); all.Wait() })
	return p
}

func (p *proxy) pass(to, from net.Conn) {
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		p.passed += n
		p.mu.Unlock()
		if n > 0 {
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// cut cuts all connections off, in the middle of whatever they carry.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

// churn changes a plane's flows until ctx ends, up to 20,000 times a second.
func churn(ctx context.Context, p *plane, flows []lb.FlowState) {
	r := rand.New(rand.NewPCG(1, 2))
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		if i%100 == 0 {
			<-pace.C
		}
		s := flows[r.IntN(len(flows))]
		if s.Sequence = uint32(i); r.IntN(3) == 0 {
			s.Phase = lb.FlowOver
		}
		p.set(s)
	}
}

// 200,000 flows reach a peer while thousands a second change; the connection is cut in
// the middle, several times, the peer starts again with nothing, and in the end the
// state is equal.
func TestManyFlowsWhileTheyChange(t *testing.T) {
	k, flows := key.New(), manyFlows(220_000)
	a, b := newPlane(flows[:200_000]...), newPlane()
	atA, placeA := onLoopback(t)
	atB, placeB := onLoopback(t)
	p := newProxy(t, atB)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { churn(ctx, a, flows) })
	defer all.Wait()
	defer cancel()
	one := start(t, Config{Name: "lb1", Keys: []key.Key{k}, Peers: []Peer{{"lb2", p.at}}}, a, placeA)
	two := start(t, Config{Name: "lb2", Keys: []key.Key{k}, Peers: []Peer{{"lb1", atA}}}, b, placeB)
	for range 3 {
		before := p.count()
		testenv.Eventually(t, soon, "a part of the snapshot", func() (bool, error) {
			return is(p.count() > before+500_000, "%d bytes", p.count()-before)
		})
		if two.Synced("lb1") {
			t.Error("a part of the snapshot counts as all of it")
		}
		p.cut()
	}
	testenv.Eventually(t, 2*soon, "all of the state", func() (bool, error) {
		return is(two.Synced("lb1") && one.peerStatus("lb2").Out.InSync, "%+v", one.peerStatus("lb2"))
	})
	two.stop()
	b = newPlane()
	two = start(t, Config{Name: "lb2", Keys: []key.Key{k}, Peers: []Peer{{"lb1", atA}}}, b, func(n *Node) {
		n.open = func(ctx context.Context) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", atB.String())
		}
	})
	testenv.Eventually(t, 2*soon, "all of the state after the restart", func() (bool, error) {
		return is(two.Synced("lb1") && one.peerStatus("lb2").Out.InSync, "%+v", one.peerStatus("lb2"))
	})
	cancel()
	all.Wait()
	testenv.Eventually(t, soon, "the same state on both nodes", func() (bool, error) {
		err := b.has("lb1", a)
		return err == nil, err
	})
	s := one.peerStatus("lb2")
	t.Logf("%d states, %d bytes sent in all, %d coalesced, %d stalls", s.Out.Records, s.Out.Sent, s.Out.Coalesced, s.Out.Stalls)
	if s.Out.Ended < 4 || s.Out.Snapshots != 1 {
		t.Errorf("got %+v", s)
	}
}
