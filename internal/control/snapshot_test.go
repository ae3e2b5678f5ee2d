package control

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// cmpAddresses compares addresses and ports as values.
var cmpAddresses = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestViewOfAService(t *testing.T) {
	type is struct {
		State   ServerState
		Why     string
		Serving bool
	}
	const noHop = "does not answer"
	for _, tc := range []struct {
		name    string
		servers []lb.Server // at .1, .2, ... by place
		noProbe bool
		verdict []health.Verdict // by place; Unknown: in no set
		hops    []bool           // by place
		want    []is
		healthy int
		serving int
	}{
		{
			"primaries serve, the backup waits",
			[]lb.Server{{Weight: 1}, {Weight: 2}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Up, health.Up, health.Up}, []bool{true, true, true},
			[]is{{ServerUp, "", true}, {ServerUp, "", true}, {ServerUp, "", false}}, 3, 2,
		},
		{
			"one primary is enough to keep the backup out",
			[]lb.Server{{Weight: 1}, {Weight: 2}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Down, health.Up, health.Up}, []bool{true, true, true},
			[]is{{ServerDown, "refused", false}, {ServerUp, "", true}, {ServerUp, "", false}}, 2, 1,
		},
		{
			"the backup serves when every primary is down",
			[]lb.Server{{Weight: 1}, {Weight: 2}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Down, health.Down, health.Up}, []bool{true, true, true},
			[]is{{ServerDown, "refused", false}, {ServerDown, "refused", false}, {ServerUp, "", true}}, 1, 1,
		},
		{
			"a primary of weight 0 serves nobody, so the backup does",
			[]lb.Server{{Weight: 0}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Up, health.Up}, []bool{true, true},
			[]is{{ServerUp, "", false}, {ServerUp, "", true}}, 2, 1,
		},
		{
			"a primary without a verdict serves nobody, so the backup does",
			[]lb.Server{{Weight: 1}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Unknown, health.Up}, []bool{true, true},
			[]is{{ServerUnknown, "not probed yet", false}, {ServerUp, "", true}}, 1, 1,
		},
		{
			"a primary that cannot be reached serves nobody, so the backup does",
			[]lb.Server{{Weight: 1}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Up, health.Up}, []bool{false, true},
			[]is{{ServerNoRoute, "192.0.2.1 " + noHop, false}, {ServerUp, "", true}}, 1, 1,
		},
		{
			"a failed probe says more than a missing route",
			[]lb.Server{{Weight: 1}}, false,
			[]health.Verdict{health.Down}, []bool{false},
			[]is{{ServerDown, "refused", false}}, 0, 0,
		},
		{
			"without a probe every server that can be reached serves",
			[]lb.Server{{Weight: 1}, {Weight: 1}}, true,
			[]health.Verdict{health.Unknown, health.Unknown}, []bool{true, false},
			[]is{{ServerUp, "", true}, {ServerNoRoute, "192.0.2.2 " + noHop, false}}, 1, 1,
		},
		{
			"all down",
			[]lb.Server{{Weight: 1}, {Weight: 1, Backup: true}}, false,
			[]health.Verdict{health.Down, health.Down}, []bool{true, true},
			[]is{{ServerDown, "refused", false}, {ServerDown, "refused", false}}, 0, 0,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFakeWorld()
			s := webService()
			s.Pool.Servers = tc.servers
			if tc.noProbe {
				s.Pool.Probe = nil
			}
			for i := range s.Pool.Servers {
				a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
				s.Pool.Servers[i].Address = a
				if tc.verdict[i] != health.Unknown {
					w.know(netip.AddrPortFrom(a, 80).String(), tc.verdict[i])
				}
				if tc.hops[i] {
					w.lead(a.String(), byte(i+1))
				}
			}
			v := view(s, w)
			var got []is
			for i, server := range v.Servers {
				got = append(got, is{server.State, server.Why, server.Serving})
				if want := netip.AddrPortFrom(s.Pool.Servers[i].Address, 80); server.Address != want {
					t.Errorf("server %d has the address %v, want %v", i, server.Address, want)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
			if v.Healthy() != tc.healthy || v.Serving() != tc.serving {
				t.Errorf("%d healthy, %d serving, want %d and %d", v.Healthy(), v.Serving(), tc.healthy, tc.serving)
			}
		})
	}
}

func TestSnapshotOfViews(t *testing.T) {
	at := netip.MustParseAddrPort
	zebra := webService()
	zebra.Name = "zebra"
	server := func(address string, weight int, state ServerState, serving bool, hop lb.NextHop) Server {
		return Server{Server: lb.Server{Weight: weight}, Address: at(address), State: state, Serving: serving, NextHop: hop}
	}
	got := snapshot([]View{
		{zebra, nil},
		{webService(), []Server{
			server("192.0.2.15:80", 5, ServerUp, true, hopTo(15)),
			server("192.0.2.14:80", 4, ServerUp, false, hopTo(14)), // a backup that is not needed
			server("192.0.2.13:80", 3, ServerDown, false, hopTo(13)),
			server("192.0.2.12:80", 2, ServerUnknown, false, hopTo(12)),
			server("192.0.2.11:80", 1, ServerNoRoute, false, lb.NextHop{}),
			server("192.0.2.11:79", 0, ServerUp, false, hopTo(11)),
		}},
	})
	want := lb.Snapshot{Services: []lb.ServiceState{
		{Service: webService(), Backends: []lb.Backend{
			{Address: at("192.0.2.11:79"), Weight: 0, NextHop: hopTo(11)},
			{Address: at("192.0.2.11:80"), Weight: 0}, // its last next hop stays in use
			{Address: at("192.0.2.12:80"), Weight: 0, NextHop: hopTo(12)},
			{Address: at("192.0.2.13:80"), Weight: 0, Failed: true, NextHop: hopTo(13)},
			{Address: at("192.0.2.14:80"), Weight: 0, NextHop: hopTo(14)},
			{Address: at("192.0.2.15:80"), Weight: 5, NextHop: hopTo(15)},
		}},
		{Service: zebra},
	}}
	if diff := cmp.Diff(want, got, cmpAddresses); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

func TestServerPortComesBeforeThatOfTheService(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.11")
	for _, tc := range []struct {
		name string
		port uint16
		want string
	}{
		{"its own", 8080, "192.0.2.11:8080"},
		{"that of the service", 0, "192.0.2.11:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := endpoint(webService(), lb.Server{Address: a, Port: tc.port}); got.String() != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}
