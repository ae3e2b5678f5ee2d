package loader

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// newTold returns a node with one nat service of this many ports.
func newTold(t *testing.T, ports int) *feedNode {
	t.Helper()
	return newFeedNode(t, freeShare(t, ports), service("web", lb.NAT, 80, backends(1, 8080)))
}

// told says what is told, in short.
func told(flows []lb.FlowState) []string {
	phase := map[lb.FlowPhase]string{
		lb.FlowOver: "over", lb.FlowOpening: "opening", lb.FlowOpen: "open", lb.FlowClosing: "closing", lb.FlowClosed: "closed",
	}
	var all []string
	for _, s := range flows {
		text := fmt.Sprintf("%v %s", s.Client, phase[s.Phase])
		if s.ClientFIN {
			text += " client"
		}
		if s.BackendFIN {
			text += " backend"
		}
		all = append(all, text)
	}
	return all
}

// wantTold compares what is to be told now, in any order.
func (n *feedNode) wantTold(what string, want ...string) {
	n.Helper()
	got := told(n.changes())
	slices.Sort(got)
	slices.Sort(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		n.Errorf("%s (-want +told):\n%s", what, diff)
	}
}

// tells is what a test wants of a connection.
func tells(c *conn, what string) string { return fmt.Sprintf("%v %s", c.client, what) }

func TestChangesOfNAT(t *testing.T) {
	n := newTold(t, 8)
	next := 0
	fresh := func() *conn { next++; return newConn(n.Datapath, clientAddr(next)) }
	t.Run("a connection's life", func(t *testing.T) {
		c := fresh()
		c.mustForward(t, testenv.SYN, "")
		n.wantTold("a SYN")
		c.mustReply(t, testenv.SYN|testenv.ACK, "")
		n.wantTold("the answer to it")
		c.mustForward(t, testenv.ACK, "")
		n.wantTold("its acknowledgement", tells(c, "open"))
		c.mustForward(t, testenv.ACK, "data")
		c.mustReply(t, testenv.ACK, "data")
		c.mustForward(t, testenv.SYN, "")
		n.wantTold("data, and a SYN that changes nothing")
		c.mustForward(t, testenv.FIN|testenv.ACK, "")
		n.wantTold("FIN of the client", tells(c, "closing client"))
		c.mustForward(t, testenv.FIN|testenv.ACK, "")
		n.wantTold("the same again")
		c.mustForward(t, testenv.ACK, "data")
		n.wantTold("data: it was no FIN", tells(c, "open"))
		c.mustReply(t, testenv.FIN|testenv.ACK, "")
		n.wantTold("FIN of the backend", tells(c, "closing backend"))
		c.mustForward(t, testenv.FIN|testenv.ACK, "")
		n.wantTold("of both", tells(c, "closed client backend"))
		c.mustReply(t, testenv.ACK, "")
		n.wantTold("a late segment")
		first := *c
		c.mustForward(t, testenv.SYN, "")
		n.wantTold("its port used again", tells(&first, "over"))
		c.mustReply(t, testenv.SYN|testenv.ACK, "")
		c.mustForward(t, testenv.ACK, "")
		n.wantTold("another connection of the same ports", tells(c, "open"))
	})
	t.Run("an RST, and data that shows it was none", func(t *testing.T) {
		c := fresh()
		c.open(t)
		n.changes()
		c.mustForward(t, testenv.RST, "")
		n.wantTold("RST", tells(c, "closed"))
		c.mustForward(t, testenv.RST, "")
		n.wantTold("another one")
		c.mustForward(t, testenv.ACK, "data")
		n.wantTold("data", tells(c, "open"))
	})
	t.Run("a handshake after an RST", func(t *testing.T) {
		c := fresh()
		c.open(t)
		c.mustForward(t, testenv.RST, "")
		n.changes()
		c.mustForward(t, testenv.SYN, "")
		n.wantTold("a SYN")
		c.mustReply(t, testenv.SYN|testenv.ACK, "")
		n.wantTold("what the client is to acknowledge", tells(c, "closed"))
		c.mustForward(t, testenv.ACK, "")
		n.wantTold("its acknowledgement", tells(c, "open"))
	})
	t.Run("a handshake that comes to nothing", func(t *testing.T) {
		c := fresh()
		c.mustForward(t, testenv.SYN, "")
		c.mustForward(t, testenv.RST, "")
		n.wantTold("an RST before it is open")
		c.mustForward(t, testenv.SYN, "")
		n.wantTold("a SYN again")
	})
	t.Run("another last hop", func(t *testing.T) {
		c := fresh()
		c.open(t)
		n.changes()
		c.changes = from([6]byte{2, 0, 0, 0, 2, 7}, 100, 200)
		c.mustForward(t, testenv.ACK, "")
		got := n.changes()
		if len(got) != 1 {
			t.Fatalf("told: %v", told(got))
		}
		want := lb.LastHop{Interface: "lo", MAC: [6]byte{2, 0, 0, 0, 2, 7}, VLANs: [2]uint16{100, 200}, Tags: 2}
		if diff := gocmp.Diff(want, got[0].LastHop); diff != "" {
			t.Errorf("last hop (-want +told):\n%s", diff)
		}
		c.mustForward(t, testenv.ACK, "data")
		n.wantTold("the same again")
	})
}

// What is told of a flow is all there is to know of it.
func TestChangeIsComplete(t *testing.T) {
	n := newTold(t, 8)
	c := openConn(t, n.Datapath, clientPort)
	c.mustReply(t, testenv.FIN|testenv.ACK, "")
	view := n.pairAt(c)
	view.age(c.source.Port(), time.Minute)
	want := []lb.FlowState{{
		FlowID: lb.FlowID{Kind: lb.FlowTranslated, Protocol: lb.TCP, Client: clientPort, VIP: vipPort},
		Phase:  lb.FlowClosing, Backend: netip.AddrPortFrom(backendAddr(1), 8080), Source: c.source,
		Opened: true, BackendFIN: true, Sequence: backendISN + 1, LastHop: lb.LastHop{Interface: "lo", MAC: clientMAC},
	}}
	got := n.changes()
	if diff := gocmp.Diff(want, ageless(got), equateAddrs); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if idle := got[0].Idle; idle < time.Minute-tick || idle > time.Minute+10*time.Second {
		t.Errorf("idle for %v", idle)
	}
}

// A datagram that nobody answers is told of to nobody.
func TestChangesOfUDP(t *testing.T) {
	c := natCase{false, lb.UDP}
	n := newFeedNode(t, freeShare(t, 8), c.service(53))
	in := c.fromClient()
	out := try(t, n.Datapath, in.Bytes())
	n.wantTold("a datagram")
	answer := reply(out.Frame)
	try(t, n.Datapath, answer.Bytes())
	n.wantTold("the answer", fmt.Sprintf("%v open", in.Src))
	try(t, n.Datapath, answer.Bytes())
	try(t, n.Datapath, in.Bytes())
	n.wantTold("more of both")
}

// A flood of SYNs is told of to nobody, nor are the ends of its handshakes; what it
// ends of others is.
func TestChangesOfAFlood(t *testing.T) {
	n := newTold(t, 64)
	c := openConn(t, n.Datapath, clientAddr(0))
	n.changes()
	frame := c.fromClient(testenv.SYN, "")
	flood := func(from, count int) {
		for i := range count {
			frame.Src = clientAddr(from + i)
			sendEarnest(t, n.Datapath, frame.Bytes())
		}
	}
	flood(1, 500)
	n.wantTold("a flood")
	if mark := *n.pairAt(c).word(newsOffset); mark != 0 {
		t.Errorf("it has left marks: %#x", mark)
	}
	n.pairAt(c).age(c.source.Port(), 125*time.Minute)
	n.pairAt(c).words().Hand = uint32(c.source.Port())
	flood(501, 500)
	n.wantTold("a connection that it has found idle", tells(c, "over"))
}

// However many flows change at once, none is missed, and nobody has to hold them all.
func TestChangesOfMany(t *testing.T) {
	n := newFeedNode(t, allPorts, service("web", lb.NAT, 80, backends(2, 8080)))
	want := map[string]bool{}
	for i := range 2*MaxChanges + 100 {
		c := newConn(n.Datapath, clientAddr(i))
		c.tryOpenEarnest(t)
		want[tells(c, "open")] = true
	}
	for calls := 1; ; calls++ {
		got, lost, err := n.feed.Changes(nil)
		if err != nil || lost {
			t.Fatalf("lost %v, %v", lost, err)
		}
		if len(got) > MaxChanges+portsPerWord {
			t.Errorf("%d changes in one call", len(got))
		}
		for _, s := range told(got) {
			if !want[s] {
				t.Fatalf("told twice, or never seen: %s", s)
			}
			delete(want, s)
		}
		if len(got) == 0 {
			break
		}
	}
	if len(want) > 0 {
		t.Errorf("%d connections are not told", len(want))
	}
}

// tryOpenEarnest opens a connection without dry runs.
func (c *conn) tryOpenEarnest(t testing.TB) bool {
	t.Helper()
	verdict, out := sendEarnest(t, c.d, c.fromClient(testenv.SYN, "").Bytes())
	if verdict != xdpTX {
		return false
	}
	f := parse(t, out)
	c.source, c.backend = f.Src, f.Dst
	for _, in := range []testenv.Frame{c.fromBackend(testenv.SYN|testenv.ACK, ""), c.fromClient(testenv.ACK, "")} {
		if verdict, _ := sendEarnest(t, c.d, in.Bytes()); verdict != xdpTX {
			t.Fatalf("%v has verdict %d", in.Flags, verdict)
		}
	}
	return true
}

// How many connections there are to a VIP, and how many changes nobody has asked for.
func TestCountsOfFlows(t *testing.T) {
	other := netip.MustParseAddr("192.0.2.107")
	second := service("second", lb.NAT, 80, backends(1, 8081))
	second.Addresses, second.SourceAddresses = []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(other, 80))}, []netip.Addr{other}
	n := newFeedNode(t, freeShare(t, 16), web(), second)
	want := func(what string, unread, here, there int) {
		t.Helper()
		got := [...]int{n.feed.Unread(), n.feed.Translated(map[netip.Addr]bool{vipIP: true}), n.feed.Translated(map[netip.Addr]bool{vipIP: false, other: true})}
		if got != [...]int{unread, here, there} {
			t.Errorf("%s: %v, want %v", what, got, [...]int{unread, here, there})
		}
	}
	want("at first", 0, 0, 0)
	var conns []*conn
	for i := range 5 {
		c := newConn(n.Datapath, clientAddr(i))
		if i > 2 {
			c.service = netip.AddrPortFrom(other, 80)
		}
		c.open(t)
		conns = append(conns, c)
	}
	want("not read yet", 5, 0, 0)
	n.changes()
	want("open", 0, 3, 2)
	if got := n.feed.Translated(map[netip.Addr]bool{vipIP: true, other: true}); got != 5 {
		t.Errorf("%d to both", got)
	}
	conns[0].close(t)
	conns[3].mustForward(t, testenv.RST, "")
	conns[1].mustForward(t, testenv.FIN|testenv.ACK, "") // half of it goes on
	want("not read", 3, 3, 2)
	n.changes()
	want("closed", 0, 2, 1)
	late := translatedState(9, 5000)
	late.Backend = netip.AddrPortFrom(backendAddr(1), 8080)
	n.take([]lb.FlowState{late})
	want("told by another node", 0, 3, 1)
	n.take([]lb.FlowState{{FlowID: late.FlowID}})
	want("told of its end", 0, 2, 1)
}

// Without TellFlows the program leaves no marks, and there is no feed.
func TestChangesOff(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 8080)))
	c := openConn(t, d, clientPort)
	if mark := *viewPair(t, d, pairOf(t, d, c)).word(newsOffset); mark != 0 {
		t.Errorf("marks: %#x", mark)
	}
	if _, err := d.OpenFlowFeed(); err == nil {
		t.Error("there is a feed")
	}
}

// A dry run leaves none either.
func TestChangesOfDryRuns(t *testing.T) {
	n := newTold(t, 4)
	c := openConn(t, n.Datapath, clientPort)
	n.changes()
	runDry(t, n.Datapath, c.fromClient(testenv.FIN|testenv.ACK, "").Bytes())
	runDry(t, n.Datapath, newConn(n.Datapath, clientAddr(1)).fromClient(testenv.SYN, "").Bytes())
	n.wantTold("dry runs")

	p := newFeedNode(t, allPorts, withWindow(weights(1)))
	apply(t, p.Datapath, withWindow(weights(0, 1)))
	cs := clients(p.Datapath, 0, 2)
	cs[0].open(t)
	p.changes()
	for _, f := range []testenv.Frame{
		toVIP(func(f *testenv.Frame) { f.Src, f.Flags, f.Seq = cs[0].addr, testenv.FIN|testenv.ACK, 1 }),
		toVIP(func(f *testenv.Frame) { f.Src = cs[1].addr }),
	} {
		runDry(t, p.Datapath, f.Bytes())
	}
	p.wantTold("dry runs in a tracked slot")
}

func TestChangesOfPins(t *testing.T) {
	n := newFeedNode(t, allPorts, withWindow(weights(1)))
	apply(t, n.Datapath, withWindow(weights(0, 1)))
	cs := clients(n.Datapath, 0, 3)
	name := func(i int, what string) string { return fmt.Sprintf("%v %s", cs[i].addr, what) }
	cs[0].syn(t)
	n.wantTold("a SYN")
	cs[0].ack(t)
	n.wantTold("its handshake", name(0, "open"))
	cs[0].data(t)
	cs[0].data(t)
	n.wantTold("data")
	cs[0].send(t, testenv.FIN|testenv.ACK, 1, "")
	n.wantTold("FIN", name(0, "closing"))
	cs[0].data(t)
	n.wantTold("data after it", name(0, "open"))
	cs[1].data(t)
	n.wantTold("a straggler", name(1, "open"))
	cs[1].data(t)
	n.wantTold("more of it")
	cs[1].open(t)
	got := n.changes()
	slices.SortFunc(got, func(a, b lb.FlowState) int { return cmp.Compare(a.Kind, b.Kind) })
	if len(got) != 2 || got[0].Kind != lb.FlowPinned || got[0].Phase != lb.FlowOpen || got[1].Kind != lb.FlowStraggler || got[1].Phase != lb.FlowOver {
		t.Errorf("a straggler's ports used again: %+v", got)
	}
	// What goes on is told again, now and then.
	agePin(t, n.objects.Pins, 31*time.Minute+2*tick)
	cs[0].data(t)
	n.wantTold("data after a quarter of its time", name(0, "open"))
	cs[0].data(t)
	n.wantTold("and once only")
	// The daemon ends what is idle.
	later(t, n.Datapath, pinIdle+time.Minute)
	n.wantTold("idle ones", name(0, "over"), name(1, "over"))
}

func TestChangesOfDatagrams(t *testing.T) {
	s := service("sip", lb.DSR, 80, weights(1, 1))
	s.Protocol, s.Affinity = lb.UDP, lb.AffinityFlow
	n := newFeedNode(t, allPorts, s)
	in := toVIP(udp)
	open, over := fmt.Sprintf("%v open", in.Src), fmt.Sprintf("%v over", in.Src)
	send(t, n.Datapath, in.Bytes())
	n.wantTold("a datagram")
	ageNew(t, n.Datapath)
	send(t, n.Datapath, in.Bytes())
	n.wantTold("one that is later", open)
	send(t, n.Datapath, in.Bytes())
	n.wantTold("more")
	agePin(t, n.objects.UdpFlows, 76*time.Second)
	send(t, n.Datapath, in.Bytes())
	n.wantTold("after a quarter of its time", open)
	later(t, n.Datapath, udpIdle+time.Minute)
	n.wantTold("idle", over)
}

// How often what goes on is told agrees with how long it may be idle.
func TestToldBeforeItIsIdle(t *testing.T) {
	for _, tc := range []struct {
		name  string
		told  lbLimits
		limit time.Duration
	}{
		{"pins", lbLimitsPIN_TOLD_TICKS, pinIdle}, {"ending", lbLimitsENDING_TOLD_TICKS, pinEnding}, {"udp", lbLimitsUDP_TOLD_TICKS, udpIdle},
	} {
		if got := time.Duration(tc.told) * tick; got > tc.limit/4 || got < tc.limit/4-time.Second {
			t.Errorf("%s is told after %v, a quarter of %v is %v", tc.name, got, tc.limit, tc.limit/4)
		}
	}
	for state, limit := range natTimeouts {
		if worthTelling(&lbNatFlow{State: uint32(state), Flags: uint32(lbNatFlagsNAT_OPENED)}) && limit/4+walkTime > limit*3/4 {
			t.Errorf("state %d is void after %v: a walk takes %v", state, limit, walkTime)
		}
	}
}
