package loader

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// openMany opens connections of clients from first on, while they get ports.
func (n *feedNode) openMany(first, most int) (all []*conn) {
	n.Helper()
	for i := range most {
		c := newConn(n.Datapath, clientAddr(first+i))
		if !c.tryOpenEarnest(n) {
			break
		}
		all = append(all, c)
	}
	return all
}

// onNode returns connections as they go on at a node.
func onNode(n *feedNode, conns []*conn) (all []*conn) {
	for _, c := range conns {
		moved := *c
		moved.d = n.Datapath
		all = append(all, &moved)
	}
	return all
}

// ports returns the source ports of connections, in order.
func ports(conns []*conn) (all []uint16) {
	for _, c := range conns {
		all = append(all, c.source.Port())
	}
	slices.Sort(all)
	return all
}

func wantDisjoint(t *testing.T, what string, a, b []uint16) {
	t.Helper()
	for _, p := range a {
		if slices.Contains(b, p) {
			t.Errorf("%s: port %d is handed out twice", what, p)
		}
	}
}

// web is a nat service of one backend.
func web() lb.ServiceState { return service("web", lb.NAT, 80, backends(1, 8080)) }

// A flow that came from another node with a port of this one's share takes it out of
// circulation, though it stands in the ring, until the flow ends.
func TestAppliedFlowTakesItsPort(t *testing.T) {
	share := freeShare(t, 8)
	for _, tc := range []struct {
		name string
		end  func(a, b *feedNode, c *conn) // of a connection that is there at both
	}{
		{"told that it is over", func(a, b *feedNode, c *conn) {
			a.pairAt(c).age(c.source.Port(), 125*time.Minute)
			p := a.feed.pairs[pairOf(a, a.Datapath, c)]
			if !a.feed.endFlow(p, c.source.Port(), p.flow(c.source.Port()).State, ticks()) {
				a.Error("it did not end")
			}
			a.tell(b)
		}},
		{"told that it has closed", func(a, b *feedNode, c *conn) { c.close(a); a.tell(b) }},
		{"closed here", func(_, b *feedNode, c *conn) { onNode(b, []*conn{c})[0].close(b) }},
		{"idle here", func(_, b *feedNode, c *conn) { b.pairAt(c).age(c.source.Port(), 125*time.Minute) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newFeedNode(t, share, web()), newFeedNode(t, share, web())
			theirs := a.openMany(0, 3)
			a.tell(b)
			view := viewPair(t, b.Datapath, 1)
			if queued := view.queued(); len(queued) != 8 {
				t.Errorf("%d ports stand in the ring, want all 8: nobody has passed over those in use", len(queued))
			}
			ours := b.openMany(100, 10)
			if len(ours) != 5 {
				t.Errorf("%d connections got ports, want 5", len(ours))
			}
			wantDisjoint(t, "while they live", ports(theirs), ports(ours))
			checkRing(t, view, share)
			for _, c := range onNode(b, theirs[1:]) {
				c.translates(t, testenv.ACK)
			}
			tc.end(a, b, theirs[0])
			again := b.openMany(200, 10)
			if len(again) != 1 || again[0].source != theirs[0].source {
				t.Errorf("after the end of the one with port %d: %v got ports", theirs[0].source.Port(), ports(again))
			}
			checkRing(t, view, share)
			for _, c := range onNode(b, theirs[1:]) {
				c.translates(t, testenv.ACK)
			}
		})
	}
}

// halves returns two nodes that have half of the ports each.
func halves(t *testing.T, ports int) (a, b *feedNode) {
	t.Helper()
	all := freeShare(t, ports)
	middle := all.First + uint16(ports/2)
	return newFeedNode(t, lb.PortRange{First: all.First, Last: middle - 1}, web()),
		newFeedNode(t, lb.PortRange{First: middle, Last: all.Last}, web())
}

// A port of the other node's share never joins this node's ring, however its flow ends.
func TestAppliedFlowOfTheOtherShare(t *testing.T) {
	a, b := halves(t, 16)
	upper := b.share
	conns := a.openMany(0, 8)
	if len(conns) != 8 {
		t.Fatalf("%d connections", len(conns))
	}
	a.tell(b)
	here := onNode(b, conns)
	view := viewPair(t, b.Datapath, 1)
	here[0].close(t)
	here[1].mustForward(t, testenv.RST, "")
	here[2].close(t)
	here[2].mustForward(t, testenv.SYN, "") // its client uses its port again
	view.age(here[3].source.Port(), 125*time.Minute)
	here[3].mustForward(t, testenv.SYN, "")
	conns[4].close(t)
	a.tell(b)
	checkRing(t, view, upper)
	conns[4].mustForward(t, testenv.SYN, "") // its end is told
	if r := a.tell(b); r.Ended != 1 {
		t.Errorf("%+v", r)
	}
	checkRing(t, view, upper)
	view.age(here[5].source.Port(), 125*time.Minute)
	view.words().Hand = uint32(here[5].source.Port())
	b.openMany(100, 20)
	checkRing(t, view, upper)
	for _, c := range here[6:] {
		c.translates(t, testenv.ACK)
	}
}

// A node dies; the other one goes on with the flows of both ranges. When the dead one
// returns it takes them in and hands out no port that one of them has.
func TestPortsAfterACrash(t *testing.T) {
	a, b := halves(t, 32)
	lower, upper := a.share, b.share
	ofA, ofB := a.openMany(0, 10), b.openMany(100, 10)
	a.tell(b)
	// a is gone.
	alive := append(onNode(b, ofA), ofB...)
	for _, c := range alive {
		c.translates(t, testenv.ACK)
	}
	later := b.openMany(200, 20)
	wantDisjoint(t, "at the survivor", ports(alive), ports(later))
	if len(later) != 6 {
		t.Errorf("%d more connections at the survivor, want the 6 of its ports that were left", len(later))
	}
	alive[0].close(t)
	alive = append(alive[1:], later...)

	a = newFeedNode(t, lower, web())
	a.take(b.held())
	wantSame(t, b, a)
	fresh := a.openMany(300, 30)
	// Those of the closed one may be had again, at last.
	if len(fresh) != 16-9 {
		t.Errorf("%d new connections at the node that is back, want 7", len(fresh))
	}
	wantDisjoint(t, "at the node that is back", ports(alive), ports(fresh))
	for _, c := range onNode(a, alive) {
		c.translates(t, testenv.ACK)
	}
	checkRing(t, viewPair(t, a.Datapath, 1), lower)
	// What it hands out the survivor takes in, too, and both have the same.
	a.tell(b)
	wantSame(t, a, b)
	checkRing(t, viewPair(t, b.Datapath, 1), upper)
}

// While the program makes a flow of a port, the daemon leaves it alone, and the other way round.
func TestClaims(t *testing.T) {
	n := newFeedNode(t, freeShare(t, 4), service("web", lb.NAT, 80, backends(1, 80)))
	view := viewPair(t, n.Datapath, 1)
	port := view.queued()[0]
	view.flow(port).Flags |= claimedFlag
	before := *view.flow(port)
	got := n.try([]lb.FlowState{translatedState(1, port)})
	if got.Refused[RefusedPort].Flows != 1 || *view.flow(port) != before {
		t.Errorf("%+v, and the entry was\n%+v\nand is\n%+v", got, before, *view.flow(port))
	}
	c := n.openMany(10, 1)[0]
	if c.source.Port() == port {
		t.Errorf("port %d, which is claimed, was handed out", port)
	}
	view.flow(port).Flags &^= claimedFlag
	n.take([]lb.FlowState{translatedState(1, port)})
	if conns := n.openMany(100, 5); len(conns) != 2 {
		t.Errorf("%d connections got ports, want 2", len(conns))
	}
	checkRing(t, view, n.share)
}

// CPUs that hand out a few ports, and a daemon that takes in flows with the same ports
// meanwhile, lose no port, and no port is two flows'.
func TestApplyFlowsConcurrent(t *testing.T) {
	share := freeShare(t, 48)
	n := newFeedNode(t, share, service("web", lb.NAT, 80, backends(1, 80)))
	view := viewPair(t, n.Datapath, 1)
	const workers = 3
	var wg sync.WaitGroup
	failures := make([]error, workers)
	done := make(chan struct{})
	for w := range workers {
		wg.Go(func() { failures[w] = hammer(n.Datapath, w) })
	}
	go func() { wg.Wait(); close(done) }()
	r := rand.New(rand.NewPCG(1, 9))
	theirs := map[uint16]*conn{}
	applied, kept := 0, 0
	for i, applying := 0, true; applying; i++ {
		port := share.First + uint16(r.IntN(share.Count()))
		s := translatedState(1000000+i, port)
		if c := theirs[port]; c != nil {
			s.Client = c.client
			for range 3 {
				if err := c.lives(); err != nil {
					t.Fatal(err)
				}
			}
			s.Phase = lb.FlowOver
			delete(theirs, port)
		}
		result := n.try([]lb.FlowState{s})
		switch {
		case result.Applied == 1:
			c := newConn(n.Datapath, s.Client)
			c.source, c.backend = s.Source, s.Backend
			theirs[port] = c
			applied++
		case result.Refused[RefusedPort].Flows == 1:
			kept++
		case s.Phase != lb.FlowOver:
			t.Fatalf("%v: %+v", s, result)
		}
		if _, _, err := n.feed.Changes(nil); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			applying = false
		default:
		}
	}
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	if applied == 0 || kept == 0 {
		t.Errorf("%d flows were applied, %d found their port in use: they never met", applied, kept)
	}
	checkRing(t, view, share)
	for port, c := range theirs {
		if err := c.lives(); err != nil {
			t.Errorf("port %d: %v", port, err)
		}
	}
	for port := range int(lbLimitsNAT_PORTS) {
		if view.flow(uint16(port)).Flags&claimedFlag != 0 {
			t.Errorf("port %d is claimed still", port)
		}
	}
}

// translatedState is an open flow of a client with a source port.
func translatedState(client int, port uint16) lb.FlowState {
	return lb.FlowState{
		FlowID: lb.FlowID{Kind: lb.FlowTranslated, Protocol: lb.TCP, Client: clientAddr(client), VIP: vipPort},
		Phase:  lb.FlowOpen, Backend: backends(1, 80)[0].Address, Source: lbSource(port), Opened: true,
		Sequence: backendISN + 1, LastHop: lb.LastHop{Interface: "lo", MAC: clientMAC},
	}
}

// lives tells whether a connection is translated both ways, without a test's help.
func (c *conn) lives() error {
	for _, in := range []testenv.Frame{c.fromBackend(testenv.ACK, "data"), c.fromClient(testenv.ACK, "data")} {
		opts := ebpf.RunOptions{Data: in.Bytes(), DataOut: make([]byte, 256)}
		verdict, err := c.d.program.Run(&opts)
		if err != nil {
			return err
		}
		if verdict != xdpTX {
			return errors.New("a packet of " + c.client.String() + " is not forwarded")
		}
		out, err := testenv.ParseFrame(opts.DataOut)
		if err != nil {
			return err
		}
		if out.Dst != c.client && out.Src != c.source {
			return errors.New("a packet of " + c.client.String() + " went astray")
		}
	}
	return nil
}
