package web

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/l7"
	"github.com/sluice-lb/sluice/loader"
)

// fullStatus has something in every field.
func fullStatus() control.Status {
	started, run := now.Add(-time.Hour), now.Add(-time.Second)
	return control.Status{
		Node: "lb1", Version: "1.0", Config: "/etc/sluice/sluice.yaml", Time: now, Running: true, PID: 7, Started: &started, Forwarding: true,
		Problems:   []string{"service web is <below> its quorum"},
		Alarms:     []control.Alarm{{Kind: control.AlarmNoPort, Instance: "VI_1", Service: "web", Server: "192.0.2.11:80", Interface: "eth0", Peer: "192.0.2.2", Text: "short", Since: run}},
		Interfaces: []control.Interface{{Name: "eth0", Mode: loader.Native}},
		VRRP: []control.Instance{{
			Name: "VI_1", Interface: "eth0", VirtualRouterID: 51, Version: 3, State: "active", Since: run, Reason: "192.0.2.2 gave up", Priority: 100,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")}, Present: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")},
			VirtualMAC: "00:00:5e:00:01:33", Closed: true, Source: "192.0.2.1", Peer: &control.Peer{Address: netip.MustParseAddr("192.0.2.2"), Priority: 99, Heard: run},
			Sent: 5, Received: 6, Failed: 1, Dropped: map[string]uint64{"ttl": 3}, Alarms: []string{"another version"},
			Tracking: &control.Tracking{Base: 102, Priority: 100, Sum: "100 = 102 - 2 (ok)", Fault: "f", Items: []control.TrackedItem{
				{Kind: "check", Name: "ok", Weight: -2, State: "failing", Why: "refused", Effect: -2},
			}},
		}},
		Checks: []control.CheckStatus{{
			Name: "ok", Type: "http", Verdict: "down", Since: &run, Why: "refused", Recovering: true, Attempts: 2, Exhausted: true,
			LastRun: &run, Took: 1500 * time.Millisecond, LastError: "refused",
		}},
		Heartbeats: []control.HeartbeatPath{{
			Address: netip.MustParseAddr("192.0.2.2"), Node: "lb2", Heard: &run, Connected: true, Mistake: "m", Received: 31, Forged: 32, Replayed: 33, Malformed: 34,
		}},
		Sync: &control.SyncStatus{
			AtRisk: 41, Unread: 59, Lost: 42, Refused: map[string]uint64{"another key": 43},
			Peers: []control.SyncPeer{{
				Node: "lb2", Address: netip.MustParseAddrPort("192.0.2.2:3780"), Connected: true, InSync: true, Synced: true, Waiting: 44, Age: 0.045,
				RecordsSent: 46, RecordsReceived: 47, BytesSent: 48, BytesReceived: 49, Refused: 50, Refusing: 60, Snapshots: 51, Mends: 52, Stalls: 53,
				Differs: []string{"web"}, Problem: "p",
			}},
			Strangers: []control.SyncStranger{{Address: netip.MustParseAddr("192.0.2.3"), Why: "another key", Error: "e", Count: 54, Last: run}},
			Taken:     control.SyncTaken{Applied: 55, Ended: 56, Kept: 57, Refused: map[loader.Refusal]loader.Refused{loader.RefusedPort: {Flows: 58, Example: "x"}}},
		},
		HTTP: &l7.Status{
			Listeners: []l7.ListenerStatus{{Address: netip.MustParseAddrPort("192.0.2.100:80"), Accepted: 7, Refused: 1, Malformed: 2}},
			Servers: []l7.ServerStatus{{
				Name: "a.example", Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.100:80")}, InFlight: 1, Requests: 5, Answers: map[string]uint64{"1xx": 0, "2xx": 3, "3xx": 0, "4xx": 1, "5xx": 0}, Received: 10, Sent: 2000,
			}},
			Upstreams: []l7.UpstreamStatus{{
				Name: "app", Pool: "pool", Policy: "least_conn", Requests: 4, Failures: 1, Sticky: &l7.StickyStatus{Cookie: "srv", Moved: 6},
				Servers: []l7.UpstreamServer{{Address: netip.MustParseAddrPort("192.0.2.11:8080"), State: l7.StateFailing, Why: "requests have failed", Since: run, Weight: 1, Requests: 4, Failures: 2, SlowStart: &l7.SlowStart{Percent: 40, Ends: now.Add(time.Minute)}}},
			}},
			Connections: l7.ConnectionsStatus{Open: 3, Max: 8, Waiting: 1, Waited: 4, Closed: 5, Servers: 2, MaxServers: 9},
			LogDropped:  3,
		},
		DNS: &dns.Status{
			Listeners: []dns.ListenerStatus{{Address: netip.MustParseAddrPort("192.0.2.100:53"), UDP: 61, TCP: 62, Accepted: 63}},
			Zones:     []dns.ZoneStatus{{Name: "example.com.", Serial: 64}},
			Records:   []dns.RecordStatus{{Name: "www.example.com.", Policy: "source_hash", TTL: 65, Pool: "pool", Queries: 66}},
			Pools: []dns.PoolStatus{{
				Name: "pool", Port: 80, Healthy: true,
				Servers: []dns.PoolServer{{Address: "192.0.2.11:80", State: dns.StateDrained, Why: "by an operator", Since: run, Weight: 67, Backup: true, Given: true, Answers: 68}},
			}},
			Answers: map[string]uint64{"NOERROR": 69}, Dropped: map[string]uint64{"malformed": 70},
			Truncated: 71, Slipped: 72, Connections: 73, Evicted: 74,
		},
		Services: []control.ServiceStatus{{
			Name: "web", Addresses: []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.100:80"))}, Pool: "pool", Protocol: "tcp",
			Forward: "nat", State: control.ServiceQuorum, Healthy: 1, Quorum: 2,
			Losses: loader.Losses{NoBackend: 1, NoPort: 2, FlowsFull: 3, EarlyReuse: 4, Evicted: 5, HandshakesFull: 6, PinsFull: 7, TooBig: 8},
			Rate:   &control.Rate{Over: 10 * time.Second, Connections: 12.5, Packets: 1234, Bytes: 1e6},
			Moves:  &loader.Moves{At: run, Changed: 20, Least: 10},
			Backends: []control.BackendStatus{{
				Address: netip.MustParseAddrPort("192.0.2.11:80"), State: control.ServerUp, Why: "w", Serving: true, Weight: 2, Configured: 1, Backup: true,
				Slots: 65537, NextHop: "02:00:00:00:00:01", Packets: 11, Bytes: 1200, Flows: 13, ReplyPackets: 14, ReplyBytes: 15,
				Override: "enabled, weight 2", Share: 0.5, SlowStart: &control.SlowStartStatus{Percent: 30, Ends: now.Add(time.Minute)},
				Previous: 16, Pinned: 17, PortsUsed: 18, Ports: 19,
			}},
		}},
		Outcomes: []loader.Outcome{{Name: "who_has", Answered: true, Packets: 22}, {Name: "ttl", Dropped: true, Packets: 21}, {Name: "not_vip", Packets: 23}},
		Tables:   []loader.FlowTable{{Name: "pins", Used: 22, Size: 23}},
		Upgrade:  &loader.Upgrade{At: run, From: 1, To: 2, VIPs: 1, Services: 2, Backends: 3, Flows: 4, NotKept: []string{"a"}},
	}
}

func fullReport() Report {
	return Report{
		Status: fullStatus(), Ready: true,
		Probes: []health.Status{{
			Target:  health.Target{Address: netip.MustParseAddrPort("192.0.2.11:80"), Probe: lb.Probe{Type: lb.ProbeTCP}},
			Verdict: health.Up, Checks: 9, LastRun: now, LastDuration: 250 * time.Millisecond,
		}},
		Transitions: map[Transition]uint64{{"VI_1", "active"}: 2},
		Events:      map[events.Type]uint64{events.VRRPState: 3},
	}
}
