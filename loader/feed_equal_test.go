package loader

import (
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// allKinds are services whose flows are of every kind.
func allKinds(ws ...int) []lb.ServiceState {
	sip := trackedService(lb.DSR, 5060, ws...)
	sip.Name, sip.Protocol, sip.Affinity = "sip", lb.UDP, lb.AffinityFlow
	services := []lb.ServiceState{trackedService(lb.DSR, 443, ws...), sip}
	for _, c := range natCases {
		services = append(services, c.service(8080))
	}
	return services
}

// What a flow is to other nodes is the same at each of them but for its age, whatever
// its kind and phase, and however they were told.
func TestFlowsAreTheSameAtAllNodes(t *testing.T) {
	a, b := twoNodes(t, allKinds(1, 1)...)
	c := newFeedNode(t, allPorts, allKinds(1, 1)...)
	for _, n := range []*feedNode{a, b, c} {
		apply(t, n.Datapath, allKinds(0, 1)...)
	}
	// In the order of their phases, so that closed ones have been told of as open.
	conns := a.openMany(0, 6)
	conns[1].changes = from([6]byte{2, 0, 0, 0, 2, 7}, 100, 200)
	conns[1].mustForward(t, testenv.ACK, "data")
	a.tell(b)
	wantSame(t, a, b)
	conns[2].mustForward(t, testenv.FIN|testenv.ACK, "")
	conns[3].mustReply(t, testenv.FIN|testenv.ACK, "")
	conns[4].close(t)
	conns[5].mustForward(t, testenv.RST, "")
	for _, nat := range natCases {
		if nat.protocol == lb.TCP && !nat.v6 {
			continue
		}
		in := nat.fromClient()
		out := try(t, a.Datapath, in.Bytes())
		try(t, a.Datapath, reply(out.Frame, flags(testenv.SYN|testenv.ACK), func(f *testenv.Frame) { f.Seq = backendISN }).Bytes())
		try(t, a.Datapath, nat.fromClient(flags(testenv.ACK), func(f *testenv.Frame) { f.Ack = backendISN + 1 }).Bytes())
	}
	through := func(f testenv.Frame) { sendEarnest(t, a.Datapath, f.Bytes()) }
	for i := range 30 {
		to := func(flags testenv.TCPFlags, seq uint32) testenv.Frame {
			return toVIP(func(f *testenv.Frame) {
				f.Src, f.Dst, f.Flags, f.Seq, f.Payload = clientAddr(i), netip.AddrPortFrom(vipIP, 443), flags, seq, nil
			})
		}
		if i%2 == 0 {
			through(to(testenv.SYN, 99))
		}
		through(to(testenv.ACK, 100))
		if i%3 == 0 {
			through(to(testenv.FIN|testenv.ACK, 101))
		}
		through(toVIP(udp, func(f *testenv.Frame) { f.Src, f.Dst = clientAddr(i), netip.AddrPortFrom(vipIP, 5060) }))
	}
	ageNew(t, a.Datapath)
	for i := range 30 {
		through(toVIP(udp, func(f *testenv.Frame) { f.Src, f.Dst = clientAddr(i), netip.AddrPortFrom(vipIP, 5060) }))
	}
	a.tell(b)
	c.take(a.held())
	wantSame(t, a, b)
	wantSame(t, a, c)
	type sort struct {
		kind  lb.FlowKind
		phase lb.FlowPhase
	}
	there := map[sort]bool{}
	for _, s := range b.held() {
		there[sort{s.Kind, s.Phase}] = true
	}
	want := map[sort]bool{
		{lb.FlowTranslated, lb.FlowOpen}: true, {lb.FlowTranslated, lb.FlowClosing}: true, {lb.FlowTranslated, lb.FlowClosed}: true,
		{lb.FlowPinned, lb.FlowOpen}: true, {lb.FlowPinned, lb.FlowClosing}: true,
		{lb.FlowStraggler, lb.FlowOpen}: true, {lb.FlowStraggler, lb.FlowClosing}: true, {lb.FlowDatagrams, lb.FlowOpen}: true,
	}
	if diff := gocmp.Diff(want, there); diff != "" {
		t.Errorf("kinds and phases (-want +got):\n%s", diff)
	}
	// Once more changes nothing, and nothing is told back.
	before := b.held()
	b.take(a.held())
	wantSame(t, a, b)
	if len(before) != len(b.held()) {
		t.Error("a second time made others")
	}
	b.walkAll()
	b.wantTold("what was taken in")
}

// A NIC that is called otherwise is taken for this node's only one; with several
// nobody knows.
func TestLastHopOfAnotherName(t *testing.T) {
	n := newFeedNode(t, freeShare(t, 8), service("web", lb.NAT, 80, backends(1, 80)))
	hop := lb.LastHop{Interface: "eth7", MAC: clientMAC, VLANs: [2]uint16{100}, Tags: 1}
	for _, tc := range []struct {
		name string
		hop  lb.LastHop
		nics int
		want lb.LastHop
	}{
		{"the only NIC", hop, 1, lb.LastHop{Interface: "lo", MAC: clientMAC, VLANs: [2]uint16{100}, Tags: 1}},
		{"two NICs", hop, 2, lb.LastHop{}},
		{"its name among two", lb.LastHop{Interface: "lo", MAC: clientMAC}, 2, lb.LastHop{Interface: "lo", MAC: clientMAC}},
		{"none", lb.LastHop{}, 1, lb.LastHop{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store(n.tables.nic(77), lbInterface{})
			if tc.nics == 2 {
				store(n.tables.nic(77), lbInterface{Index: 77, Mac: nicMAC})
			}
			s := translatedState(1, 5000)
			s.LastHop = tc.hop
			n.take([]lb.FlowState{s})
			if diff := gocmp.Diff(tc.want, n.held()[0].LastHop); diff != "" {
				t.Errorf("last hop (-want +got):\n%s", diff)
			}
			c := newConn(n.Datapath, s.Client)
			c.source, c.backend = s.Source, s.Backend
			want := "sent"
			if tc.want.Interface == "" {
				want = "no_next_hop"
			}
			if r := c.reply(t, testenv.ACK, "data"); r.Outcome != want {
				t.Errorf("a reply: %s, want %s", r.Outcome, want)
			}
		})
	}
}

// A snapshot that is under way while flows come and go: in the order in which both are
// told, the other node ends up with what there is.
func TestSnapshotWhileFlowsChange(t *testing.T) {
	a, b := twoNodes(t, allKinds(1, 1)...)
	for _, n := range []*feedNode{a, b} {
		apply(t, n.Datapath, allKinds(0, 1)...)
	}
	conns := a.openMany(0, 200)
	var cs []dsrClient
	for i := range 200 {
		c := clients(a.Datapath, 1000+i, 1)[0]
		sendEarnest(t, a.Datapath, c.frame(443, testenv.SYN, c.isn))
		sendEarnest(t, a.Datapath, c.frame(443, testenv.ACK, c.isn+1))
		cs = append(cs, c)
	}
	a.changes()
	i := 0
	for s, err := range a.feed.Snapshot() {
		if err != nil {
			t.Fatal(err)
		}
		b.take([]lb.FlowState{s})
		i++
		switch c := conns[i%len(conns)]; i % 4 {
		case 0:
			c.close(t)
		case 1:
			c.mustForward(t, testenv.FIN|testenv.ACK, "")
		case 2:
			newConn(a.Datapath, clientAddr(5000+i)).tryOpenEarnest(t)
		case 3:
			c := cs[i/4%len(cs)]
			sendEarnest(t, a.Datapath, c.frame(443, testenv.FIN|testenv.ACK, c.isn+2))
		}
		a.tell(b)
	}
	a.tell(b)
	wantSame(t, a, b)
	if i < 250 {
		t.Errorf("%d flows in the snapshot", i)
	}
	if runs := len(a.feed.runs); runs != 0 {
		t.Errorf("%d snapshots are under way still", runs)
	}
}

// The end of a flow is told that nobody was told of but by a snapshot.
func TestEndOfAFlowOfASnapshot(t *testing.T) {
	a, b := newTold(t, 8), newTold(t, 8)
	c := openConn(t, a.Datapath, clientPort)
	b.take(a.held())
	wantSame(t, a, b)
	c.close(t)
	c.mustForward(t, testenv.SYN, "") // of the flow nothing is left
	if r := a.tell(b); r.Ended != 1 || len(b.held()) != 0 {
		t.Errorf("%+v, and there is %v", r, told(b.held()))
	}
}

// frame is a packet of the client to another port.
func (c dsrClient) frame(port uint16, flags testenv.TCPFlags, seq uint32) []byte {
	return toVIP(func(f *testenv.Frame) {
		f.Src, f.Dst, f.Flags, f.Seq, f.Payload = c.addr, netip.AddrPortFrom(vipIP, port), flags, seq, nil
	}).Bytes()
}
