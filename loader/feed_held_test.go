package loader

import (
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// toldPort is what the feed knows of a connection's port.
func (n *feedNode) toldPort(c *conn) *toldFlow {
	n.Helper()
	return n.feed.pairs[pairOf(n, n.Datapath, c)].of(c.source.Port())
}

// ageTold makes a connection look as if its last packet had come so long ago, and as
// if that had been told.
func (n *feedNode) ageTold(c *conn, by time.Duration) {
	n.Helper()
	n.pairAt(c).age(c.source.Port(), by)
	n.toldPort(c).seen -= uint32(by / tick)
}

// A flow that goes on without a change is told again in time, at the pace of the walk, so
// that it never looks idle at the other node.
func TestFlowThatGoesOnIsToldAgain(t *testing.T) {
	a, b := newTold(t, 8), newTold(t, 8)
	c := openConn(t, a.Datapath, clientPort)
	a.tell(b)
	there := onNode(b, []*conn{c})[0]
	for _, age := range []struct {
		by   time.Duration
		told bool
	}{{30 * time.Minute, false}, {32 * time.Minute, true}, {time.Minute, false}, {123 * time.Minute, true}} {
		a.ageTold(c, age.by)
		b.ageTold(there, age.by)
		before := b.flowAt(there).LastSeen
		a.walkAll()
		a.wantTold("while it is idle")
		c.mustForward(t, testenv.ACK, "data")
		a.wantTold("before the walk comes by")
		a.walkAll()
		if got := a.tell(b).Applied; got != int(boolWord(age.told)) {
			t.Errorf("data after %v: %d told", age.by, got)
		}
		if moved := b.flowAt(there).LastSeen != before; moved != age.told {
			t.Errorf("data after %v: the other node knows of it: %v", age.by, moved)
		}
		if !age.told {
			a.ageTold(c, time.Hour) // on with the next
			a.walkAll()
			c.mustForward(t, testenv.ACK, "data")
			a.walkAll()
			a.tell(b)
		}
	}
	a.walkAll()
	a.wantTold("nothing new")
}

// The walk takes its time: a part of all flows at each call.
func TestWalkIsPaced(t *testing.T) {
	n := newFeedNode(t, allPorts, service("web", lb.NAT, 80, backends(1, 80)))
	var flows []lb.FlowState
	for i := range 32000 {
		s := translatedState(i, uint16(2000+i))
		s.Idle = time.Hour
		flows = append(flows, s)
	}
	n.take(flows)
	view := viewPair(t, n.Datapath, 1)
	for i := range flows {
		view.flow(uint16(2000 + i)).LastSeen = ticks()
	}
	seen := map[string]bool{}
	count := func(got []lb.FlowState) {
		for _, s := range told(got) {
			if seen[s] {
				t.Fatalf("%s is told twice", s)
			}
			seen[s] = true
		}
	}
	for _, owed := range []time.Duration{walkTime / 16, walkTime / 4, walkTime} {
		n.feed.walk.last, n.feed.walk.owed = time.Now(), owed
		got, _, err := n.feed.Changes(nil)
		if err != nil {
			t.Fatal(err)
		}
		// All ports are walked over, of which half have flows.
		most := min(MaxChanges+portsPerWord, int(float64(lbLimitsNAT_PORTS)*owed.Seconds()/walkTime.Seconds()*1.5)+portsPerWord)
		if len(got) > most {
			t.Errorf("%d flows after %v, want no more than %d", len(got), owed, most)
		}
		count(got)
	}
	for range 5 {
		n.feed.walk.last, n.feed.walk.owed = time.Now(), walkTime
		got, _, err := n.feed.Changes(nil)
		if err != nil {
			t.Fatal(err)
		}
		count(got)
	}
	if len(seen) != len(flows) {
		t.Errorf("%d of %d flows were told in the end", len(seen), len(flows))
	}
}

// What another node has told of is not told back, also when time ends it here. It is
// this node's own once a packet of its has come.
func TestHeldFlowIsNotToldBack(t *testing.T) {
	a, b := halves(t, 16)
	c := openConn(t, a.Datapath, clientPort)
	a.tell(b)
	there := onNode(b, []*conn{c})[0]
	b.walkAll()
	b.wantTold("after it was taken in")

	sweep := func(n *feedNode, c *conn) {
		t.Helper()
		n.pairAt(c).words().Hand = uint32(c.source.Port())
		other := newConn(n.Datapath, clientAddr(500))
		other.mustForward(t, testenv.SYN, "")
		other.mustForward(t, testenv.RST, "")
		if state := n.flowAt(c).State; state != uint32(lbNatStateNAT_FREE) {
			t.Fatalf("its state is %d still", state)
		}
	}
	b.ageTold(there, 125*time.Minute)
	sweep(b, there)
	b.wantTold("its time is over here")
	if b.toldPort(there) != nil {
		t.Error("it is remembered still")
	}

	c.mustForward(t, testenv.FIN|testenv.ACK, "")
	a.tell(b)
	wantSame(t, a, b)
	there.mustReply(t, testenv.FIN|testenv.ACK, "")
	b.wantTold("FIN at the other node", tells(c, "closed client backend"))
	there.mustForward(t, testenv.ACK, "") // late: it has closed
	b.walkAll()
	b.wantTold("a late segment")
	b.pairAt(there).age(there.source.Port(), 2*time.Minute)
	sweep(b, there)
	b.wantTold("its end", tells(c, "over"))
}

// The mark that an earlier flow has left is not taken for one of a flow that came to
// its port since.
func TestMarkOfAnEarlierFlow(t *testing.T) {
	n := newFeedNode(t, freeShare(t, 8), service("web", lb.NAT, 80, backends(1, 80)))
	c := openConn(t, n.Datapath, clientAddr(1))
	n.changes()
	c.close(t)
	n.take([]lb.FlowState{translatedState(2, c.source.Port())})
	n.wantTold("it has made way", tells(c, "over"))
	if f := n.flowAt(c); f.Flags&heldFlag == 0 {
		t.Errorf("the one that came is not held: %+v", f)
	}
}

// A packet that changes nothing makes a flow this node's own, too; it takes the walk
// to see that.
func TestHeldFlowThatMovesIsOwn(t *testing.T) {
	a, b := halves(t, 16)
	c := openConn(t, a.Datapath, clientPort)
	a.pairAt(c).age(c.source.Port(), time.Hour)
	a.tell(b)
	there := onNode(b, []*conn{c})[0]
	if f := b.flowAt(there); f.Flags&heldFlag == 0 {
		t.Fatalf("it is not held: %+v", f)
	}
	there.mustForward(t, testenv.ACK, "data")
	b.wantTold("before the walk")
	b.walkAll()
	b.wantTold("a flow that others count as idle for an hour", tells(c, "open"))
	if f := b.flowAt(there); f.Flags&heldFlag != 0 {
		t.Errorf("it is held still: %+v", f)
	}
	// The one that has lost it to the other does not end it there.
	a.pairAt(c).age(c.source.Port(), 125*time.Minute)
	p := a.feed.pairs[pairOf(t, a.Datapath, c)]
	a.feed.endFlow(p, c.source.Port(), p.flow(c.source.Port()).State, ticks())
	if r := a.tell(b); r.Kept != 1 {
		t.Errorf("the end that the other one tells: %+v", r)
	}
	there.translates(t, testenv.ACK)
}

// What the other node ends is gone here at once: all that it ended.
func TestEndsAreTold(t *testing.T) {
	a, b := newTold(t, 16), newTold(t, 16)
	conns := a.openMany(0, 4)
	a.tell(b)
	wantSame(t, a, b)
	// One is ended by its client, one by time, one with its pair.
	conns[0].close(t)
	conns[0].mustForward(t, testenv.SYN, "")
	a.pairAt(conns[1]).age(conns[1].source.Port(), 125*time.Minute)
	a.pairAt(conns[1]).words().Hand = uint32(conns[1].source.Port())
	newConn(a.Datapath, clientAddr(100)).mustForward(t, testenv.SYN, "")
	if r := a.tell(b); r.Ended != 2 {
		t.Errorf("%+v", r)
	}
	wantSame(t, a, b)
	if got := len(b.held()); got != 2 {
		t.Errorf("%d flows are left, want 2", got)
	}
	apply(t, a.Datapath)
	letGo(t, a.Datapath)
	if r := a.tell(b); r.Ended != 2 {
		t.Errorf("its pair is gone: %+v", r)
	}
	if got := b.held(); len(got) > 0 {
		t.Errorf("left: %v", told(got))
	}
	if got := names(b.Datapath); got != 0 {
		t.Errorf("%d names are left", got)
	}
}

// Pins that another node has told of outlive the time until it must tell of them
// again, and their end here is not told back.
func TestHeldPinsOutliveTheirTime(t *testing.T) {
	n := newFeedNode(t, allPorts, trackedService(lb.DSR, 80, 1, 1))
	apply(t, n.Datapath, trackedService(lb.DSR, 80, 0, 1))
	flows := []lb.FlowState{pinnedState(lb.FlowPinned, 9), pinnedState(lb.FlowStraggler, 8)}
	// In slots that are tracked, or they would be dropped for that.
	var c dsrClient
	for i := 100; entries(t, n.objects.Pins) == 0; i++ {
		c = clients(n.Datapath, i, 1)[0]
		c.open(t)
	}
	own := n.changes()
	if len(own) != 1 {
		t.Fatalf("told: %v", told(own))
	}
	for i := range flows {
		flows[i].Client = c.addr // at the backend that owned the slot before
	}
	if err := n.objects.Pins.Delete(new(keyOfPin(t, n.objects.Pins))); err != nil {
		t.Fatal(err)
	}
	n.take(flows)
	later(t, n.Datapath, pinIdle+pinIdle/8)
	if got := len(n.held()); got != 2 {
		t.Errorf("%d pins are left after what would be the end of this node's own, want 2", got)
	}
	later(t, n.Datapath, pinIdle+pinIdle/4+time.Minute)
	if pins, old := entries(t, n.objects.Pins), entries(t, n.objects.Stragglers); pins+old != 0 {
		t.Errorf("%d pins and %d stragglers are left", pins, old)
	}
	n.wantTold("their end")
}

// keyOfPin returns the key of a table's only entry.
func keyOfPin(t *testing.T, m interface {
	NextKey(key, next any) error
}) lbFlowKey {
	t.Helper()
	var k lbFlowKey
	if err := m.NextKey(nil, &k); err != nil {
		t.Fatal(err)
	}
	return k
}

// A UDP flow that another node has told of goes on a little longer than one of this
// node's own would; after a packet of its it is one.
func TestHeldDatagrams(t *testing.T) {
	s := service("sip", lb.DSR, 80, weights(1, 1))
	s.Protocol, s.Affinity = lb.UDP, lb.AffinityFlow
	n := newFeedNode(t, allPorts, s)
	owner := flowsOwner(t, n.Datapath, clientPort)
	flow := lb.FlowState{
		FlowID: lb.FlowID{Kind: lb.FlowDatagrams, Protocol: lb.UDP, Client: clientPort, VIP: vipPort},
		Phase:  lb.FlowOpen, Backend: backends(3-owner, 80)[2-owner].Address, Idle: udpIdle + 10*time.Second,
	}
	n.take([]lb.FlowState{flow})
	to := func() int {
		_, out := send(t, n.Datapath, toVIP(udp).Bytes())
		return int(out[5])
	}
	if got := to(); got != 3-owner {
		t.Errorf("a datagram goes to %d, want %d", got, 3-owner)
	}
	n.wantTold("a datagram of one that others count as idle", clientPort.String()+" open")
	agePin(t, n.objects.UdpFlows, udpIdle+10*time.Second)
	if got := to(); got != owner {
		t.Errorf("after its time is over as this node's own it goes to %d, want %d", got, owner)
	}
}

// A daemon that starts again knows which flows are this node's own.
func TestFeedAfterARestart(t *testing.T) {
	a, b := halves(t, 32)
	theirs := a.openMany(0, 2)
	a.tell(b)
	ours := b.openMany(100, 2)
	b.closeFeed()
	ours = append(ours, b.openMany(200, 1)...)
	ours[1].close(t)
	b.openFeed()
	wantHeld := len(theirs) + len(ours)
	if got := len(b.held()); got != wantHeld {
		t.Errorf("%d flows, want %d", got, wantHeld)
	}
	for _, c := range append(onNode(b, theirs), ours...) {
		if known := b.toldPort(c); known == nil || known.held != (c.client.Port() < clientAddr(100).Port()) {
			t.Errorf("of %v it knows %+v", c.client, known)
		}
	}
	b.changes()
	for _, c := range append(onNode(b, theirs), ours...) {
		b.ageTold(c, 125*time.Minute)
	}
	for port := range int(lbLimitsNAT_PORTS) {
		if b.feed.pairs[1].of(uint16(port)) != nil {
			b.pairAt(ours[0]).words().Hand = uint32(port)
			sendEarnest(t, b.Datapath, newConn(b.Datapath, clientAddr(1000+port)).fromClient(testenv.SYN, "").Bytes())
		}
	}
	b.wantTold("all have been idle too long", tells(ours[0], "over"), tells(ours[1], "over"), tells(ours[2], "over"))
}

// What a daemon that was killed while it wrote an entry has left is no obstacle.
func TestFeedAfterAKill(t *testing.T) {
	n := newTold(t, 4)
	c := n.openMany(0, 1)[0]
	n.closeFeed()
	view := n.pairAt(c)
	for port := range int(lbLimitsNAT_PORTS) {
		view.flow(uint16(port)).Flags |= claimedFlag
	}
	if got := len(n.openMany(100, 4)); got != 0 {
		t.Fatalf("%d connections got ports that are claimed", got)
	}
	n.openFeed()
	if got := len(n.openMany(200, 4)); got != 3 {
		t.Errorf("%d connections, want 3", got)
	}
	checkRing(t, view, n.share)
}

// A ring buffer that was full is said, once.
func TestNotesThatAreLost(t *testing.T) {
	n := newFeedNode(t, allPorts, trackedService(lb.DSR, 80, 1, 1))
	apply(t, n.Datapath, trackedService(lb.DSR, 80, 0, 1))
	var c dsrClient
	for i := 100; entries(t, n.objects.Pins) == 0; i++ {
		c = clients(n.Datapath, i, 1)[0]
		c.open(t)
	}
	n.changes()
	fin := toVIP(func(f *testenv.Frame) { f.Src, f.Flags, f.Payload = c.addr, testenv.FIN|testenv.ACK, nil }).Bytes()
	data := toVIP(func(f *testenv.Frame) { f.Src = c.addr }).Bytes()
	const pairs = 11000 // more than fit
	for range pairs {
		sendEarnest(t, n.Datapath, fin)
		sendEarnest(t, n.Datapath, data)
	}
	told, times := 0, 0
	for {
		got, lost, err := n.feed.Changes(nil)
		if err != nil {
			t.Fatal(err)
		}
		if lost {
			times++
		}
		told += len(got)
		if len(got) == 0 {
			break
		}
	}
	if times != 1 || told == 0 || told >= 2*pairs {
		t.Errorf("%d notes of %d were read, and that some were lost was said %d times", told, 2*pairs, times)
	}
}

// An upgraded data plane, whose pairs an earlier version has made, can be told of.
func TestFeedAfterAnUpgrade(t *testing.T) {
	n := newNode(t)
	l := newLayout1(n, upgradeServices(), "eth0")
	conns := l.beginAll(0, 2)
	d := l.upgrade(func(o *Options) { o.TellFlows = true }, "eth0")
	f := &feedNode{T: t, Datapath: d}
	f.openFeed()
	if got := len(f.held()); got != 6 { // established, closing and closed ones
		t.Errorf("%d flows, want 6", got)
	}
	c := onNode(f, conns[lbNatStateNAT_ESTABLISHED])[0]
	c.mustForward(t, testenv.FIN|testenv.ACK, "")
	f.wantTold("FIN", tells(c, "closing client"))
}
