package control

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// up is a view in which both servers of webService can serve.
func up() View {
	s := webService()
	return View{Service: s, Servers: []Server{
		{Server: s.Pool.Servers[0], Address: netip.MustParseAddrPort("192.0.2.12:80"), State: ServerUp, Serving: true, NextHop: hopTo(12), Configured: 3},
		{Server: s.Pool.Servers[1], Address: netip.MustParseAddrPort("192.0.2.11:80"), State: ServerUp, Configured: 1},
	}}
}

// counted is what the data plane says about that service.
func counted() loader.Stats {
	return loader.Stats{Services: []loader.ServiceStats{{
		Name: "as the data plane calls it", Addresses: webService().Addresses, Protocol: lb.TCP, Forward: lb.DSR,
		Losses: loader.Losses{NoBackend: 3},
		Backends: []loader.BackendStats{{
			Address: netip.MustParseAddrPort("192.0.2.12:80"), Slots: lb.DefaultTableSize, NextHop: hopTo(12),
			Packets: 10, Bytes: 1000, Flows: 2, ReplyPackets: 9, ReplyBytes: 900,
		}},
	}}}
}

func TestServicesOfARunningDaemon(t *testing.T) {
	got := Services([]View{up()}, counted())
	want := []ServiceStatus{{
		Name: "web", Addresses: webService().Addresses, Pool: "web", Protocol: "tcp", Forward: "dsr", State: ServiceUp,
		Healthy: 2, Quorum: 1, Losses: loader.Losses{NoBackend: 3},
		Backends: []BackendStatus{
			{
				Address: netip.MustParseAddrPort("192.0.2.12:80"), State: ServerUp, Serving: true, Weight: 3, Configured: 3,
				Slots: lb.DefaultTableSize, Share: 1, NextHop: "02:00:00:00:00:0c",
				Packets: 10, Bytes: 1000, Flows: 2, ReplyPackets: 9, ReplyBytes: 900,
			},
			{Address: netip.MustParseAddrPort("192.0.2.11:80"), State: ServerUp, Weight: 1, Configured: 1, Backup: true},
		},
	}}
	if diff := cmp.Diff(want, got, cmpAddresses); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

func TestServicesThatADeadDaemonLeft(t *testing.T) {
	got := Services(nil, counted())
	want := []ServiceStatus{{
		Name: "as the data plane calls it", Addresses: webService().Addresses, Protocol: "tcp", Forward: "dsr",
		State: ServiceUnknown, Losses: loader.Losses{NoBackend: 3},
		Backends: []BackendStatus{{
			Address: netip.MustParseAddrPort("192.0.2.12:80"), Serving: true, Slots: lb.DefaultTableSize, Share: 1,
			NextHop: "02:00:00:00:00:0c", Packets: 10, Bytes: 1000, Flows: 2, ReplyPackets: 9, ReplyBytes: 900,
		}},
	}}
	if diff := cmp.Diff(want, got, cmpAddresses); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

func TestStateOfAService(t *testing.T) {
	for _, tc := range []struct {
		name   string
		quorum int
		states []ServerState // of the primary and of the backup
		want   string
	}{
		{"both are up", 1, []ServerState{ServerUp, ServerUp}, ServiceUp},
		{"the backup serves", 1, []ServerState{ServerDown, ServerUp}, ServiceUp},
		{"fewer are healthy than the quorum", 2, []ServerState{ServerUp, ServerDown}, ServiceQuorum},
		{"as many are healthy as the quorum", 2, []ServerState{ServerUp, ServerUp}, ServiceUp},
		{"none can serve", 1, []ServerState{ServerDown, ServerNoRoute}, ServiceDown},
		{"none can serve, and no quorum is asked for", 0, []ServerState{ServerDown, ServerUnknown}, ServiceDown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := up()
			v.Service.Quorum = tc.quorum
			serving := false
			for i := range v.Servers {
				v.Servers[i].State = tc.states[i]
				v.Servers[i].Serving = !serving && tc.states[i] == ServerUp
				serving = serving || v.Servers[i].Serving
			}
			if got := Services([]View{v}, loader.Stats{})[0].State; got != tc.want {
				t.Errorf("state %q, want %q", got, tc.want)
			}
		})
	}
}

func TestInstanceOfAVirtualRouter(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	vip := netip.MustParsePrefix("192.0.2.100/24")
	for _, tc := range []struct {
		name   string
		status vrrp.Status
		want   Instance
	}{
		{
			"active, with a peer",
			vrrp.Status{
				Name: "VI_1", Interface: "eth0", VRID: 51, Version: vrrp.V2, State: vrrp.Active, Since: since,
				Reason: "why", Priority: 100, Source: netip.MustParseAddr("192.0.2.1"), Addresses: []netip.Prefix{vip},
				Peer: vrrp.Peer{Address: netip.MustParseAddr("192.0.2.2"), Priority: 99, Heard: since},
				Sent: 5, Received: 4, Failed: 1,
				Dropped: map[vrrp.Reason]uint64{vrrp.ReasonPassword: 2, vrrp.ReasonTTL: 0},
				Alarms:  []vrrp.Alarm{{Kind: vrrp.AlarmPassword, Text: "192.0.2.2 has another password"}},
			},
			Instance{
				Name: "VI_1", Interface: "eth0", VirtualRouterID: 51, Version: 2, State: "active", Since: since,
				Reason: "why", Priority: 100, Addresses: []netip.Prefix{vip}, Present: []netip.Prefix{vip},
				Source: "192.0.2.1", Peer: &Peer{netip.MustParseAddr("192.0.2.2"), 99, since},
				Sent: 5, Received: 4, Failed: 1, Dropped: map[string]uint64{"password": 2},
				Alarms: []string{"192.0.2.2 has another password"},
			},
		},
		{
			"not started",
			vrrp.Status{Name: "VI_1", Interface: "eth0", VRID: 51, Version: vrrp.V3, Since: since, Reason: "not started", Priority: 1},
			Instance{
				Name: "VI_1", Interface: "eth0", VirtualRouterID: 51, Version: 3, State: "initialize", Since: since,
				Reason: "not started", Priority: 1, Addresses: []netip.Prefix{vip}, Present: []netip.Prefix{},
				Dropped: map[string]uint64{}, Alarms: []string{},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, NewInstance(tc.status, []netip.Prefix{vip}), cmpAddresses); diff != "" {
				t.Errorf("instance (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	service := func(state string, healthy, quorum int) Status {
		return Status{Services: []ServiceStatus{{
			Name: "web", State: state, Healthy: healthy, Quorum: quorum, Backends: make([]BackendStatus, 3),
		}}}
	}
	for _, tc := range []struct {
		name   string
		status Status
		want   []string
	}{
		{"none", service(ServiceUp, 3, 1), []string{}},
		{"what was known before stays", Status{Problems: []string{"write the data plane: no room"}}, []string{"write the data plane: no room"}},
		{"a service is down", service(ServiceDown, 0, 1),
			[]string{"service web is down: no server can serve (3 configured), its packets are dropped"}},
		{"a service is below its quorum", service(ServiceQuorum, 1, 2),
			[]string{"service web is below its quorum: 1 healthy, 2 wanted"}},
		{"an instance has a fault", Status{VRRP: []Instance{
			{Name: "VI_1", State: "backup"}, {Name: "VI_2", State: "fault", Reason: "eth1 is down"},
		}}, []string{"vrrp instance VI_2 cannot run: eth1 is down"}},
		{"another node is configured differently", Status{VRRP: []Instance{
			{Name: "VI_1", State: "active", Alarms: []string{"192.0.2.2 has another password"}},
		}}, []string{"vrrp instance VI_1: 192.0.2.2 has another password"}},
		{"a check fails", Status{Checks: []CheckStatus{
			{Name: "a", Verdict: "up"}, {Name: "b", Verdict: "down", Why: "refused", LastError: "timeout"},
			{Name: "c", Verdict: "up", Recovering: true, LastError: "timeout"}, {Name: "d", Verdict: "unknown"},
		}}, []string{"check b fails: refused", "check c fails and is being recovered: timeout"}},
		{"pools of dns", Status{DNS: &dns.Status{Pools: []dns.PoolStatus{
			{Name: "well", Healthy: true, Servers: []dns.PoolServer{{Given: true}, {}}}, {Name: "out", Servers: []dns.PoolServer{{}, {}}},
			{Name: "down", Servers: []dns.PoolServer{{Given: true}, {Given: true}}}, {Name: "some", Servers: []dns.PoolServer{{Given: true}, {}}},
		}}}, []string{
			"dns pool out: all servers are drained, disabled or of weight 0: its names have no address",
			"dns pool down: no server is healthy (2 configured): all are given",
			"dns pool some: no server is healthy (2 configured): all that nobody has taken out are given",
		}},
		{"an interface is slow", Status{Interfaces: []Interface{{Name: "eth0"}, {Name: "eth1", Warning: "eth1: generic"}}},
			[]string{"eth1: generic"}},
		{"an upgrade has kept everything", Status{Upgrade: &loader.Upgrade{From: 1, NotKept: []string{}}}, []string{}},
		{"an instance where the program is not", Status{Forwarding: true, VRRP: []Instance{NewInstance(vrrp.Status{
			Name: "VI_1", Unfenced: "the XDP program is not on eth1: name it in datapath.interfaces",
		}, nil)}}, []string{"vrrp instance VI_1: if this daemon dies, the kernel goes on answering for its addresses beside the node that takes over: the XDP program is not on eth1: name it in datapath.interfaces"}},
		{"an instance where there is no program at all", Status{VRRP: []Instance{NewInstance(vrrp.Status{Name: "VI_1", Unfenced: "there is no XDP program"}, nil)}}, []string{}},
		{"a closed instance where there is no program", Status{VRRP: []Instance{{Name: "VI_1", Unfenced: "there is no XDP program", Closed: true}}}, []string{
			"vrrp instance VI_1: accept: false has no effect, its addresses accept everything: there is no XDP program",
		}},
		{"a closed instance", Status{Forwarding: true, VRRP: []Instance{{Name: "VI_1", Closed: true}}}, []string{}},
		{"an upgrade has not kept everything", Status{Upgrade: &loader.Upgrade{
			From: 1, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), NotKept: []string{"3 entries of vips", "7 packets"},
		}}, []string{"the upgrade at 2026-01-02T03:04:05Z did not keep: 3 entries of vips; 7 packets"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.status.FindProblems()
			if diff := cmp.Diff(tc.want, tc.status.Problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever reads the JSON need not tell an absent list from an empty one.
func TestStatusHasNoNullLists(t *testing.T) {
	s := Status{Interfaces: []Interface{}, VRRP: []Instance{NewInstance(vrrp.Status{}, []netip.Prefix{})},
		Checks: Checks(nil), Services: Services([]View{{Service: webService()}}, loader.Stats{}), Outcomes: []loader.Outcome{}}
	s.FindProblems()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case nil:
			t.Errorf("%s is null in %s", path, text)
		case map[string]any:
			for k, e := range v {
				walk(path+"."+k, e)
			}
		case []any:
			for _, e := range v {
				walk(path+"[]", e)
			}
		}
	}
	walk("", tree)
}
