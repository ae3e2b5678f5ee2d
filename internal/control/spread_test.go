package control

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// nodeFacts are facts about two nodes, one of which is this one.
type nodeFacts struct {
	verdict health.Verdict
	hop     lb.NextHop
	err     error
	change  Override // of this node
	stops   string   // name of a node
	gone    bool     // it is not heard any more
}

func (f nodeFacts) status(t health.Target) (health.Status, bool) {
	return health.Status{Target: t, Verdict: f.verdict, LastError: "connection refused"}, true
}
func (f nodeFacts) check(string) (health.Verdict, string)  { return health.Unknown, "" }
func (f nodeFacts) nextHop(netip.Addr) (lb.NextHop, error) { return f.hop, f.err }
func (f nodeFacts) stopping(node string) (stops, gone bool) {
	return node != "" && node == f.stops, f.gone
}
func (f nodeFacts) override(_ lb.Service, s lb.Server) Override {
	if s.Here {
		return f.change
	}
	return Override{}
}

// spreadService is one that two nodes serve.
func spreadService() lb.Service {
	s := viaService(lb.Proxy, "192.0.2.100:80")
	s.Pool.Servers = []lb.Server{
		{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1, Node: "lb1", Here: true},
		{Address: netip.MustParseAddr("192.0.2.2"), Weight: 1, Node: "lb2"},
	}
	return s
}

func TestSpreadOverNodes(t *testing.T) {
	here, other := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")
	routed := hopTo(2)
	routed.Routed = true
	for _, tt := range []struct {
		name  string
		facts nodeFacts
		state ServerState // of the other one
		why   string
		want  []lb.Backend
	}{
		{"both serve", nodeFacts{verdict: health.Up, hop: hopTo(2)}, ServerUp, "",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, Weight: 1, NextHop: hopTo(2)}}},
		{"the other one fails", nodeFacts{verdict: health.Down, hop: hopTo(2)}, ServerDown, "connection refused",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, NextHop: hopTo(2), Failed: true}}},
		{"nothing is known of the other one", nodeFacts{hop: hopTo(2)}, ServerUnknown, "not probed yet",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, NextHop: hopTo(2)}}},
		{"no way to the other one", nodeFacts{verdict: health.Up, err: errors.New("no route")}, ServerNoRoute, "no route",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other}}},
		{"the other one is on another link", nodeFacts{verdict: health.Up, hop: routed}, ServerNoRoute,
			"192.0.2.2 is behind a gateway: nodes that serve together must be on one link",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other}}},
		{"this one is drained", nodeFacts{verdict: health.Up, hop: hopTo(2), change: Override{State: Drain}}, ServerUp, "",
			[]lb.Backend{{Address: here, NextHop: lb.Here}, {Address: other, Weight: 1, NextHop: hopTo(2)}}},
		{"the other one is about to stop", nodeFacts{verdict: health.Up, hop: hopTo(2), stops: "lb2"}, ServerDrained, "the node is about to stop",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, NextHop: hopTo(2)}}},
		{"the other one is about to stop, and takes no connections any more", nodeFacts{verdict: health.Down, hop: hopTo(2), stops: "lb2"}, ServerDrained,
			"the node is about to stop", []lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, NextHop: hopTo(2)}}},
		{"the other one was about to stop, and is gone", nodeFacts{verdict: health.Up, hop: hopTo(2), stops: "lb2", gone: true}, ServerDown,
			"the node was about to stop, and is not heard any more",
			[]lb.Backend{{Address: here, Weight: 1, NextHop: lb.Here}, {Address: other, NextHop: hopTo(2), Failed: true}}},
		{"this one is about to stop", nodeFacts{verdict: health.Up, hop: hopTo(2), stops: "lb1"}, ServerUp, "",
			[]lb.Backend{{Address: here, NextHop: lb.Here}, {Address: other, Weight: 1, NextHop: hopTo(2)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := view(spreadService(), tt.facts)
			if got := v.Servers[1]; got.State != tt.state || got.Why != tt.why {
				t.Errorf("the other one is %s: %q, want %s: %q", got.State, got.Why, tt.state, tt.why)
			}
			if diff := cmp.Diff(tt.want, snapshot([]View{v}).Services[0].Backends, cmpAddresses); diff != "" {
				t.Errorf("backends (-want +got):\n%s", diff)
			}
		})
	}
}

// A gateway on the way to a server of another mode changes nothing, and the data plane
// is not told of it.
func TestRoutedServer(t *testing.T) {
	hop := hopTo(2)
	hop.Routed = true
	v := view(viaService(lb.DSR, "192.0.2.100:80"), nodeFacts{verdict: health.Up, hop: hop})
	if got := v.Servers[0]; got.State != ServerUp || got.NextHop != hopTo(2) {
		t.Errorf("%s by %+v", got.State, got.NextHop)
	}
}

// The other node is probed through the VIP, as a server of dsr is; this one is not
// probed, and no way to it is looked for.
func TestSpreadIsProbed(t *testing.T) {
	services := []lb.Service{spreadService()}
	var got []lb.ProbePath
	for _, target := range targetsOfAll(services) {
		got = append(got, target.Path)
	}
	other := netip.MustParseAddr("192.0.2.2")
	want := []lb.ProbePath{{VIP: netip.MustParseAddr("192.0.2.100"), Server: other, Forward: lb.DSR}}
	if diff := cmp.Diff(want, got, cmpAddresses); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]netip.Addr{other}, addressesOf(services), cmpAddresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}
