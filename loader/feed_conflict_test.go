package loader

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// counts are the refusals of a result, without their examples.
func counts(r ApplyResult) map[Refusal]int {
	all := map[Refusal]int{}
	for why, n := range r.Refused {
		all[why] = n.Flows
		if n.Example == "" {
			all[why] = -1 // an operator would not know what is meant
		}
	}
	return all
}

// Where two nodes were Active, a flow of this one's own that is established stays;
// anything else gives way to what the other one tells.
func TestApplyFlowsThatContradict(t *testing.T) {
	client, other := clientAddr(1), clientAddr(2)
	established := func(n *feedNode, c netip.AddrPort) *conn { return openConn(n, n.Datapath, c) }
	embryonic := func(n *feedNode, c netip.AddrPort) *conn {
		conn := newConn(n.Datapath, c)
		conn.mustForward(n, testenv.SYN, "")
		return conn
	}
	tests := []struct {
		name string
		// ours makes this node's connection; theirs what the other node tells.
		ours   func(n *feedNode) *conn
		theirs func(c *conn) lb.FlowState
		want   ApplyResult // without examples
		stays  bool        // ours does
	}{
		{"the client's, with another source", func(n *feedNode) *conn { return established(n, client) },
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()^1); return s },
			ApplyResult{Refused: map[Refusal]Refused{RefusedOther: {Flows: 1}}}, true},
		{"the client's, at another backend", func(n *feedNode) *conn { return established(n, client) },
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port())
				s.Backend = backends(2, 80)[2-int(c.backend.Addr().As4()[3]-10)].Address
				return s
			},
			ApplyResult{Refused: map[Refusal]Refused{RefusedOther: {Flows: 1}}}, true},
		{"another client with the port", func(n *feedNode) *conn { return established(n, other) },
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()); s.Backend = c.backend; return s },
			ApplyResult{Refused: map[Refusal]Refused{RefusedPort: {Flows: 1}}}, true},
		{"one that is closing has the port", func(n *feedNode) *conn {
			c := established(n, other)
			c.mustForward(n, testenv.FIN|testenv.ACK, "")
			return c
		},
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()); s.Backend = c.backend; return s },
			ApplyResult{Refused: map[Refusal]Refused{RefusedPort: {Flows: 1}}}, true},
		{"a handshake of the client", func(n *feedNode) *conn { return embryonic(n, client) },
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port()^1)
				s.Backend = c.backend
				return s
			},
			ApplyResult{Applied: 1}, false},
		{"a handshake of another client with the port", func(n *feedNode) *conn { return embryonic(n, other) },
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()); s.Backend = c.backend; return s },
			ApplyResult{Applied: 1}, false},
		{"a closed one has the port", func(n *feedNode) *conn { c := established(n, other); c.close(n); return c },
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()); s.Backend = c.backend; return s },
			ApplyResult{Applied: 1}, false},
		{"one that has been idle too long", func(n *feedNode) *conn {
			c := established(n, other)
			n.pairAt(c).age(c.source.Port(), 125*time.Minute)
			return c
		},
			func(c *conn) lb.FlowState { s := translatedState(1, c.source.Port()); s.Backend = c.backend; return s },
			ApplyResult{Applied: 1}, false},
		{"the client's, which has gone on there", func(n *feedNode) *conn {
			c := established(n, client)
			n.pairAt(c).age(c.source.Port(), time.Minute)
			return c
		},
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port()^1)
				s.Backend = c.backend
				return s
			},
			ApplyResult{Applied: 1}, false},
		{"one that the other node has told of, and ended", func(n *feedNode) *conn {
			s := translatedState(2, n.share.First)
			n.take([]lb.FlowState{s})
			return &conn{d: n.Datapath, client: other, service: vipPort, source: s.Source, backend: s.Backend}
		},
			func(c *conn) lb.FlowState { return translatedState(1, c.source.Port()) },
			ApplyResult{Applied: 1}, false},
		{"the same, but a packet of its has come here", func(n *feedNode) *conn {
			s := translatedState(2, n.share.First)
			s.Idle = time.Minute
			n.take([]lb.FlowState{s})
			c := &conn{d: n.Datapath, client: other, service: vipPort, source: s.Source, backend: s.Backend}
			c.mustForward(n, testenv.ACK, "data")
			return c
		},
			func(c *conn) lb.FlowState { return translatedState(1, c.source.Port()) },
			ApplyResult{Refused: map[Refusal]Refused{RefusedPort: {Flows: 1}}}, true},
		{"the same flow, as it was before this node's last packet", func(n *feedNode) *conn {
			c := established(n, client)
			c.mustForward(n, testenv.FIN|testenv.ACK, "")
			return c
		},
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port())
				s.Backend, s.Idle = c.backend, time.Minute
				return s
			},
			ApplyResult{Kept: 1}, true},
		{"the same flow, and the other node has seen more", func(n *feedNode) *conn {
			c := established(n, client)
			n.pairAt(c).age(c.source.Port(), time.Minute)
			return c
		},
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port())
				s.Backend, s.Phase, s.BackendFIN = c.backend, lb.FlowClosing, true
				return s
			},
			ApplyResult{Applied: 1}, false},
		{"the end of it, but it goes on here", func(n *feedNode) *conn { return established(n, client) },
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port())
				s.Backend, s.Phase, s.Idle = c.backend, lb.FlowOver, time.Minute
				return s
			},
			ApplyResult{Kept: 1}, true},
		{"the end of it, of which this node has seen nothing since", func(n *feedNode) *conn {
			c := established(n, client)
			n.pairAt(c).age(c.source.Port(), time.Minute)
			return c
		},
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port())
				s.Backend, s.Phase, s.Idle = c.backend, lb.FlowOver, time.Minute
				return s
			},
			ApplyResult{Ended: 1}, false},
		{"the end of one whose client has another by now", func(n *feedNode) *conn { return established(n, client) },
			func(c *conn) lb.FlowState {
				s := translatedState(1, c.source.Port()^1)
				s.Backend, s.Phase = c.backend, lb.FlowOver
				return s
			},
			ApplyResult{Ended: 1}, true},
	}
	share := freeShare(t, 64)
	share.First += share.First & 1 // so that a port and its neighbour are in it
	n := newFeedNode(t, share)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			defer func() { apply(t, n.Datapath); letGo(t, n.Datapath) }()
			apply(t, n.Datapath, service("web", lb.NAT, 80, backends(2, 80)))
			if strings.Contains(tc.name, "told of") || strings.HasPrefix(tc.name, "the same, but") {
				apply(t, n.Datapath, service("web", lb.NAT, 80, backends(1, 80)))
			}
			ours := tc.ours(n)
			before := *n.flowAt(ours)
			theirs := tc.theirs(ours)
			got := n.try([]lb.FlowState{theirs})
			if diff := gocmp.Diff(tc.want, got, cmpopts.IgnoreFields(Refused{}, "Example"), cmpopts.IgnoreFields(ApplyResult{}, "Without")); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if without := slices.Equal(got.Without, []lb.FlowID{theirs.FlowID}); without != (tc.want.Refused != nil) {
				t.Errorf("without %v", got.Without)
			}
			for why, r := range got.Refused {
				if !strings.Contains(r.Example, theirs.Client.String()) || !strings.Contains(r.Example, "here "+ours.client.String()) {
					t.Errorf("%s, as an operator sees it: %s", why, r.Example)
				}
			}
			if after := *n.flowAt(ours); tc.stays && after != before {
				t.Errorf("this node's was\n%+v\nand is\n%+v", before, after)
			}
			has := slices.ContainsFunc(n.held(), func(s lb.FlowState) bool {
				theirs.Idle, s.Idle = 0, 0
				return s == theirs
			})
			if has != (tc.want.Applied == 1) {
				t.Errorf("the other node's flow is here: %v", has)
			}
			for pair, e := range n.state.Pairs {
				checkRing(t, viewPair(t, n.Datapath, pair), e.Share)
			}
		})
	}
}

// What this node has no place for is refused, each for its reason; the rest is taken.
func TestApplyFlowsRefuses(t *testing.T) {
	dns := trackedService(lb.DSR, 53, 1)
	dns.Name, dns.Protocol = "dns", lb.UDP
	n := newFeedNode(t, freeShare(t, 8), web(), trackedService(lb.DSR, 443, 1), dns)
	good := func(change func(*lb.FlowState)) lb.FlowState {
		s := translatedState(1, 5000)
		s.Backend = netip.AddrPortFrom(backendAddr(1), 8080)
		change(&s)
		return s
	}
	pinned := func(change func(*lb.FlowState)) lb.FlowState {
		s := lb.FlowState{
			FlowID: lb.FlowID{Kind: lb.FlowPinned, Protocol: lb.TCP, Client: clientPort, VIP: netip.AddrPortFrom(vipIP, 443)},
			Phase:  lb.FlowOpen, Backend: netip.AddrPortFrom(backendAddr(1), 443),
		}
		change(&s)
		return s
	}
	tests := []struct {
		name string
		flow lb.FlowState
		want Refusal
	}{
		{"nat", good(func(*lb.FlowState) {}), ""},
		{"pinned", pinned(func(*lb.FlowState) {}), ""},
		{"another VIP", good(func(s *lb.FlowState) { s.VIP = netip.MustParseAddrPort("192.0.2.101:80") }), RefusedVIP},
		{"another port", good(func(s *lb.FlowState) { s.VIP = netip.AddrPortFrom(vipIP, 81) }), RefusedVIP},
		{"another protocol", good(func(s *lb.FlowState) { s.Protocol = lb.UDP }), RefusedVIP},
		{"nat of a service that is dsr", good(func(s *lb.FlowState) { s.VIP = netip.AddrPortFrom(vipIP, 443) }), RefusedVIP},
		{"pinned of a service that is nat", pinned(func(s *lb.FlowState) { s.VIP = vipPort }), RefusedVIP},
		{"another backend", good(func(s *lb.FlowState) { s.Backend = netip.AddrPortFrom(backendAddr(2), 8080) }), RefusedBackend},
		{"another backend, pinned", pinned(func(s *lb.FlowState) { s.Backend = netip.AddrPortFrom(backendAddr(2), 443) }), RefusedBackend},
		{"another source address", good(func(s *lb.FlowState) { s.Source = netip.MustParseAddrPort("192.0.2.99:5000") }), RefusedPair},
		{"no source", good(func(s *lb.FlowState) { s.Source = netip.AddrPort{} }), RefusedMalformed},
		{"source port 0", good(func(s *lb.FlowState) { s.Source = lbSource(0) }), RefusedMalformed},
		{"no client", good(func(s *lb.FlowState) { s.Client = netip.AddrPort{} }), RefusedMalformed},
		{"a client of the other family", good(func(s *lb.FlowState) { s.Client = v6Client }), RefusedMalformed},
		{"a handshake, pinned", pinned(func(s *lb.FlowState) { s.Phase = lb.FlowOpening }), RefusedMalformed},
		{"no phase", good(func(s *lb.FlowState) { s.Phase = 9 }), RefusedMalformed},
		{"no kind", good(func(s *lb.FlowState) { s.Kind = 0 }), RefusedMalformed},
		{"pinned and closed", pinned(func(s *lb.FlowState) { s.Phase = lb.FlowClosed }), RefusedMalformed},
		{"datagrams of TCP", pinned(func(s *lb.FlowState) { s.Kind = lb.FlowDatagrams }), RefusedMalformed},
		{"neither TCP nor UDP", pinned(func(s *lb.FlowState) { s.Protocol = 1 }), RefusedMalformed},
		{"three VLAN tags", good(func(s *lb.FlowState) { s.LastHop.Tags = 3 }), RefusedMalformed},
		{"datagrams of a service without affinity", pinned(func(s *lb.FlowState) {
			s.Kind, s.Protocol, s.VIP, s.Backend = lb.FlowDatagrams, lb.UDP, netip.AddrPortFrom(vipIP, 53), netip.AddrPortFrom(backendAddr(1), 53)
		}), RefusedVIP},
		{"it has been idle for a negative time", good(func(s *lb.FlowState) { s.Idle = -time.Second }), RefusedMalformed},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := n.try([]lb.FlowState{tc.flow})
			want := map[Refusal]int{}
			if tc.want != "" {
				want[tc.want] = 1
			}
			if diff := gocmp.Diff(want, counts(got)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if len(got.Without) != len(want) {
				t.Errorf("without %v", got.Without)
			}
			if applied := got.Applied == 1; applied != (tc.want == "") {
				t.Errorf("applied: %v", applied)
			}
		})
	}
	var sum ApplyResult
	for _, tc := range tests {
		sum.Add(n.try([]lb.FlowState{tc.flow}))
	}
	var flows []lb.FlowState
	for _, tc := range tests {
		flows = append(flows, tc.flow)
	}
	if diff := gocmp.Diff(sum, n.try(flows), cmpopts.IgnoreFields(ApplyResult{}, "Without")); diff != "" {
		t.Errorf("one by one, and together (-sum +got):\n%s", diff)
	}
	failed := web()
	failed.Backends[0].Failed = true
	apply(t, n.Datapath, failed, trackedService(lb.DSR, 443, 1))
	if diff := gocmp.Diff(map[Refusal]int{RefusedBackend: 1}, counts(n.try(flows[:1]))); diff != "" {
		t.Errorf("of a backend that has failed (-want +got):\n%s", diff)
	}
}

// A flow table without room refuses what does not fit and takes the rest.
func TestApplyFlowsWithoutRoom(t *testing.T) {
	t.Run("nat", func(t *testing.T) {
		d := newDatapathWith(t, Options{MaxFlows: 1, Ports: allPorts, TellFlows: true}, natTimeouts, service("web", lb.NAT, 80, backends(1, 80)))
		n := &feedNode{T: t, Datapath: d}
		n.openFeed()
		var flows []lb.FlowState
		for i := range 6000 {
			flows = append(flows, translatedState(i, uint16(10000+i)))
		}
		got := n.try(flows)
		if full := got.Refused[RefusedBucket].Flows; full == 0 || got.Applied+full != len(flows) || len(got.Refused) != 1 {
			t.Fatalf("%+v", got)
		}
		if held := len(n.held()); held != got.Applied || names(d) != got.Applied {
			t.Errorf("%d flows and %d names are here, of %d that were applied", held, names(d), got.Applied)
		}
		// What ends makes room, by its name that stands there still.
		viewPair(t, d, 1).ageAll(125 * time.Minute)
		more := []lb.FlowState{translatedState(9000, 9000), translatedState(9001, 9001)}
		n.take(more)
	})
	t.Run("pins", func(t *testing.T) {
		n := &feedNode{T: t, Datapath: newDatapathWith(t, Options{MaxFlows: 1024, Ports: allPorts, TellFlows: true}, natTimeouts, trackedService(lb.DSR, 80, 1))}
		n.openFeed()
		var flows []lb.FlowState
		for i := range 1100 {
			flows = append(flows, pinnedState(lb.FlowPinned, i))
		}
		got := n.try(flows)
		if got.Applied != 1024 || got.Refused[RefusedRoom].Flows != 76 {
			t.Errorf("%+v", got)
		}
		// Those that are here may be told of again.
		if again := n.try(flows); again.Applied != 1024 || again.Refused[RefusedRoom].Flows != 76 {
			t.Errorf("again: %+v", again)
		}
	})
}

// pinnedState is an open flow of a client in a tracked slot.
func pinnedState(kind lb.FlowKind, client int) lb.FlowState {
	return lb.FlowState{
		FlowID: lb.FlowID{Kind: kind, Protocol: lb.TCP, Client: clientAddr(client), VIP: vipPort},
		Phase:  lb.FlowOpen, Backend: backends(1, 80)[0].Address,
	}
}

// A handshake that was found to give way, and is a connection by the time that it would
// end, stays.
func TestObstacleThatOpensMeanwhile(t *testing.T) {
	n := newFeedNode(t, freeShare(t, 4), service("web", lb.NAT, 80, backends(1, 80)))
	c := newConn(n.Datapath, clientAddr(1))
	c.mustForward(n, testenv.SYN, "")
	p := n.feed.pairs[pairOf(t, n.Datapath, c)]
	a := applying{FlowFeed: n.feed, now: ticks()}
	o := obstacle{id: p.number<<16 | uint32(c.source.Port()), why: RefusedPort}
	if !a.givesWay(&o, ticks()) {
		t.Fatal("a handshake does not give way")
	}
	// The program may have the client's answer to the second in hand.
	for _, state := range []lbNatState{lbNatStateNAT_SYN_RECEIVED, lbNatStateNAT_ESTABLISHED} {
		p.flow(c.source.Port()).State = uint32(state)
		if a.remove(&o) {
			t.Errorf("a connection was ended in state %d", state)
		}
		later := o
		if a.givesWay(&later, ticks()) {
			t.Errorf("a connection gives way in state %d", state)
		}
	}
	p.flow(c.source.Port()).State = uint32(lbNatStateNAT_SYN_SENT)
	if !a.givesWay(&o, ticks()) || !a.remove(&o) || !a.remove(&o) {
		t.Error("a handshake stays")
	}
}

// The same of pinned flows: what has had packets here stays.
func TestApplyPinsThatContradict(t *testing.T) {
	n := newFeedNode(t, allPorts, trackedService(lb.DSR, 80, 1, 1))
	apply(t, n.Datapath, trackedService(lb.DSR, 80, 0, 1))
	// One whose slot has moved.
	var c dsrClient
	number := 9
	for ; entries(t, n.objects.Pins) == 0; number++ {
		c = clients(n.Datapath, number+1, 1)[0]
		c.open(t)
	}
	n.changes()
	to := func(i int) lb.FlowState {
		s := pinnedState(lb.FlowPinned, number)
		s.Backend = netip.AddrPortFrom(backendAddr(i), 80)
		return s
	}
	first := n.try([]lb.FlowState{to(1)})
	if diff := gocmp.Diff(map[Refusal]int{RefusedOther: 1}, counts(first)); diff != "" {
		t.Errorf("another backend (-want +got):\n%s", diff)
	}
	if example := first.Refused[RefusedOther].Example; !strings.HasSuffix(example, "here to 192.0.2.12:80") {
		t.Errorf("as an operator sees it: %s", example)
	}
	older := to(2)
	older.Idle = time.Minute
	if got := n.try([]lb.FlowState{older}); got.Kept != 1 {
		t.Errorf("an older word of the same: %+v", got)
	}
	over := to(2)
	over.Phase = lb.FlowOver
	if got := n.try([]lb.FlowState{over}); got.Kept != 1 || c.data(t) != 2 {
		t.Errorf("the end of it: %+v", got)
	}
	// Its last packet came here long before its last one there.
	stale := func() {
		key := lbFlowKey{}
		var pin lbPin
		if err := eachFlow(n.objects.Pins, func(k lbFlowKey, p lbPin) { key, pin = k, p }); err != nil {
			t.Fatal(err)
		}
		pin.Seen -= uint32(10 * time.Minute / tick)
		if err := n.objects.Pins.Put(&key, &pin); err != nil {
			t.Fatal(err)
		}
	}
	stale()
	over.Idle = time.Second // what has come here since then counts
	if got := n.try([]lb.FlowState{over}); got.Ended != 1 || entries(t, n.objects.Pins) != 0 {
		t.Errorf("the end of one that is stale here: %+v", got)
	}
	// One that nobody has used here follows what is told.
	for i := range 50 {
		for _, backend := range []int{2, 1} {
			s := pinnedState(lb.FlowPinned, 1000+i)
			s.Backend = netip.AddrPortFrom(backendAddr(backend), 80)
			n.take([]lb.FlowState{s})
		}
	}
	moved := 0
	for _, other := range clients(n.Datapath, 1000, 50) {
		if other.data(t) == 1 {
			moved++
		}
	}
	if moved < 10 {
		t.Errorf("%d of 50 go to where they were told of last", moved)
	}
	n.take([]lb.FlowState{pinnedState(lb.FlowStraggler, 3)})
	gone := pinnedState(lb.FlowStraggler, 3)
	gone.Phase = lb.FlowOver
	if got := n.take([]lb.FlowState{gone, gone}); got.Ended != 2 || entries(t, n.objects.Stragglers) != 0 {
		t.Errorf("the end of one that nobody has used: %+v", got)
	}
}
