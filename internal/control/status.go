package control

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/l7"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// A Status is the answer to `sluice status --json`. Addresses are text, times
// RFC 3339.
type Status struct {
	Node    string    `json:"node,omitempty"`
	Version string    `json:"version"`
	Config  string    `json:"config,omitempty"`
	Time    time.Time `json:"time"`
	// Running is false where no daemon answered and the rest was read from what
	// it left in the kernel.
	Running    bool       `json:"running"`
	PID        int        `json:"pid,omitempty"`
	Started    *time.Time `json:"started,omitempty"`
	Forwarding bool       `json:"forwarding"` // the XDP program is on some interface
	Problems   []string   `json:"problems"`
	// Alarms are those of Problems that have a kind.
	Alarms     []Alarm       `json:"alarms"`
	Interfaces []Interface   `json:"interfaces"`
	VRRP       []Instance    `json:"vrrp"`
	Checks     []CheckStatus `json:"checks"`
	// Heartbeats are the paths to other nodes, where there are any.
	Heartbeats []HeartbeatPath `json:"heartbeats,omitempty"`
	// Sync is there where nodes share the state of connections.
	Sync     *SyncStatus     `json:"sync,omitempty"`
	Services []ServiceStatus `json:"services"`
	// HTTP is layer 7, where anything is served there.
	HTTP *l7.Status `json:"http,omitempty"`
	// DNS is there where anything is answered.
	DNS *dns.Status `json:"dns,omitempty"`
	// Outcomes counts packets that were not forwarded.
	Outcomes []loader.Outcome `json:"outcomes"`
	// Tables are those of single flows.
	Tables []loader.FlowTable `json:"tables"`
	// Upgrade tells what this daemon has taken over from an earlier version's data
	// plane.
	Upgrade *loader.Upgrade `json:"upgrade,omitempty"`
	// Left is what there is to know of VRRP where no daemon runs.
	Left *Left `json:"left,omitempty"`
}

// An Interface is a NIC that the XDP program is on.
type Interface struct {
	Name    string      `json:"name"`
	Mode    loader.Mode `json:"mode"`
	Warning string      `json:"warning,omitempty"`
}

// An Instance is a VRRP instance.
type Instance struct {
	Name            string    `json:"name"`
	Interface       string    `json:"interface"`
	VirtualRouterID uint8     `json:"virtual_router_id"`
	Version         uint8     `json:"version"`
	State           string    `json:"state"` // initialize, backup, active, fault
	Since           time.Time `json:"since"`
	Reason          string    `json:"reason"`
	Releasing       bool      `json:"releasing"`
	Group           string    `json:"group,omitempty"` // what it moves together with
	// HeldBack says why it leaves the VIPs to others, whatever its priority.
	HeldBack string `json:"held_back,omitempty"`
	// Silent: it is held back by an operator, and no Active node is heard.
	Silent bool `json:"silent,omitempty"`
	// RouteProblem says which routes or rules are not as configured.
	RouteProblem string `json:"route_problem,omitempty"`
	// LastResort: it is Active though what it tracks is a fault, since no other
	// node is.
	LastResort bool  `json:"last_resort,omitempty"`
	Priority   uint8 `json:"priority"`
	// VirtualMAC is the MAC address that the VIPs are at, where it moves with them.
	VirtualMAC string `json:"virtual_mac,omitempty"`
	// Closed: accept is false. What is no service's is dropped by the Active node.
	Closed    bool           `json:"closed,omitempty"`
	Addresses []netip.Prefix `json:"addresses"`
	// Present are those of Addresses that sluice has put on the interface.
	Present  []netip.Prefix    `json:"present"`
	Source   string            `json:"source,omitempty"`
	Peer     *Peer             `json:"peer,omitempty"`
	Sent     uint64            `json:"sent"`
	Received uint64            `json:"received"`
	Failed   uint64            `json:"failed"`
	Dropped  map[string]uint64 `json:"dropped"`
	// Alarms are mistakes of configuration that show in what other nodes send, in
	// words that say what to change.
	Alarms []string `json:"alarms"`
	// Unfenced says why the kernel would go on answering for the addresses beside
	// another node if this daemon died.
	Unfenced string `json:"unfenced,omitempty"`
	// Tracking is there where the instance tracks anything.
	Tracking *Tracking `json:"tracking,omitempty"`
}

// A Peer is who was heard last.
type Peer struct {
	Address  netip.Addr `json:"address"`
	Priority uint8      `json:"priority"`
	Heard    time.Time  `json:"heard"`
}

// The states of a service.
const (
	ServiceUp      = "up"
	ServiceQuorum  = "below_quorum" // serves, with fewer healthy servers than its quorum
	ServiceDown    = "down"         // no server can serve
	ServiceUnknown = "unknown"      // the daemon is not running
)

// A ServiceStatus is a service with its servers and counters.
type ServiceStatus struct {
	Name      string        `json:"name"`
	Addresses []lb.Frontend `json:"addresses"`
	// Pool is the service\'s own name where it has backends of its own.
	Pool     string        `json:"pool,omitempty"`
	Protocol string        `json:"protocol"`
	Forward  string        `json:"forward"`
	State    string        `json:"state"`
	Healthy  int           `json:"healthy"`
	Quorum   int           `json:"quorum"`
	Losses   loader.Losses `json:"losses"`
	// Rate is that of all backends together; nil where no daemon runs.
	Rate *Rate `json:"rate,omitempty"`
	// Moves is what the last change of backends has done to slots.
	Moves *loader.Moves `json:"last_change,omitempty"`
	// Table tells how its table stands between the nodes, where they have it in common.
	Table    *TableStatus    `json:"table,omitempty"`
	Backends []BackendStatus `json:"backends"`
}

// A BackendStatus is a server of a service. Counters are those since the data
// plane was loaded; bytes are those of IP packets; replies are seen in nat only.
type BackendStatus struct {
	Address      netip.AddrPort `json:"address"`
	State        ServerState    `json:"state,omitempty"`
	Why          string         `json:"why,omitempty"`
	Serving      bool           `json:"serving"`
	Weight       int            `json:"weight"`
	Backup       bool           `json:"backup"`
	Slots        int            `json:"slots"`
	NextHop      string         `json:"next_hop,omitempty"` // MAC address; of one that is this node: "here"
	Packets      uint64         `json:"packets"`
	Bytes        uint64         `json:"bytes"`
	Flows        uint64         `json:"flows"`
	ReplyPackets uint64         `json:"reply_packets"`
	ReplyBytes   uint64         `json:"reply_bytes"`
	Rate         *Rate          `json:"rate,omitempty"` // nil where no daemon runs
	// Override is what an operator has changed, in words; Configured the weight of
	// the configuration.
	Override   string `json:"override,omitempty"`
	Configured int    `json:"configured_weight"`
	// Share is the part of the service's slots that it has, 0 to 1.
	Share float64 `json:"share"`
	// SlowStart is there while it has less than its weight.
	SlowStart *SlowStartStatus `json:"slow_start,omitempty"`
	// Previous are the slots that it owned until a change whose window is open
	// still; Pinned the connections that are kept with it whoever owns their slots,
	// in nat all of its connections while it has no slots; -1: not counted yet.
	Previous int `json:"previous_slots"`
	Pinned   int `json:"pinned"`
	// Of the source ports towards it that this node may use, those in use; 0 of 0
	// without source NAT.
	PortsUsed int `json:"ports_used"`
	Ports     int `json:"ports"`
}

// Source is the use of its source ports.
func (b BackendStatus) Source() loader.PortUse {
	return loader.PortUse{Used: b.PortsUsed, Ports: b.Ports}
}

// A SlowStartStatus tells how far a server is that came back a short while ago.
type SlowStartStatus struct {
	Percent int       `json:"percent"` // of its weight
	Ends    time.Time `json:"ends"`    // when it has all of it
}

// NewInstance describes a virtual router.
func NewInstance(s vrrp.Status, addresses []netip.Prefix) Instance {
	i := Instance{
		Name: s.Name, Interface: s.Interface, VirtualRouterID: s.VRID, Version: uint8(s.Version),
		State: s.State.String(), Since: s.Since, Reason: s.Reason, Releasing: s.Releasing,
		Priority: s.Priority, Addresses: addresses, Present: orEmpty(s.Addresses),
		Sent: s.Sent, Received: s.Received, Failed: s.Failed, Dropped: map[string]uint64{},
		Alarms: []string{}, HeldBack: heldBack(s), Silent: s.Silent, LastResort: s.LastResort, RouteProblem: s.RouteProblem, Unfenced: s.Unfenced,
	}
	for _, a := range s.Alarms {
		i.Alarms = append(i.Alarms, a.Text)
	}
	if s.VirtualMAC != (vrrp.MAC{}) {
		i.VirtualMAC = s.VirtualMAC.String()
	}
	if s.Source.IsValid() {
		i.Source = s.Source.String()
	}
	if s.Peer.Address.IsValid() {
		i.Peer = &Peer{s.Peer.Address, s.Peer.Priority, s.Peer.Heard}
	}
	for reason, n := range s.Dropped {
		if n > 0 {
			i.Dropped[reason.String()] = n
		}
	}
	return i
}

// Services joins what the loop knows of services with what the data plane has
// counted. Views of nil mean that no daemon runs.
func Services(views []View, stats loader.Stats) []ServiceStatus {
	out := []ServiceStatus{}
	for _, v := range views {
		c := countsOf(v.Service, stats)
		s := ServiceStatus{
			Name: v.Service.Name, Addresses: v.Service.Addresses, Pool: v.Service.Pool.Name,
			Protocol: v.Service.Protocol.String(),
			Forward:  v.Service.Forward.String(), State: v.state(), Healthy: v.Healthy(),
			Quorum: v.Service.Quorum, Losses: c.Losses, Moves: c.Moves, Backends: []BackendStatus{},
		}
		backends := map[netip.AddrPort]loader.BackendStats{}
		for _, b := range c.Backends {
			backends[b.Address] = b
		}
		for _, server := range v.Servers {
			b := backendStatus(backends[server.Address], c)
			b.Address, b.State, b.Why, b.Serving = server.Address, server.State, server.Why, server.Serving
			b.Weight, b.Backup, b.NextHop = server.Weight, server.Backup, mac(server.NextHop)
			b.Configured = server.Configured
			if server.SlowStart != (SlowStart{}) {
				b.SlowStart = &SlowStartStatus{server.SlowStart.Percent, server.SlowStart.Ends}
			}
			if !server.Override.none() {
				b.Override = server.Override.String()
			}
			s.Backends = append(s.Backends, b)
		}
		out = append(out, s)
	}
	if views != nil {
		return out
	}
	for _, c := range stats.Services {
		s := ServiceStatus{
			Name: c.Name, Addresses: c.Addresses, Protocol: c.Protocol.String(), Forward: c.Forward.String(),
			State: ServiceUnknown, Losses: c.Losses, Moves: c.Moves, Backends: []BackendStatus{},
		}
		for _, b := range c.Backends {
			s.Backends = append(s.Backends, backendStatus(b, c))
		}
		out = append(out, s)
	}
	return out
}

// countsOf finds the counters of a service: those of who has its first port.
func countsOf(service lb.Service, stats loader.Stats) loader.ServiceStats {
	first := service.Addresses[0]
	for _, s := range stats.Services {
		if s.Protocol == service.Protocol && slices.ContainsFunc(s.Addresses, func(f lb.Frontend) bool {
			return f.VIP == first.VIP && f.Ports.Contains(first.Port())
		}) {
			return s
		}
	}
	return loader.ServiceStats{}
}

// backendStatus describes a backend of a service by what the data plane says.
func backendStatus(b loader.BackendStats, of loader.ServiceStats) BackendStatus {
	s := BackendStatus{
		Address: b.Address, Serving: b.Slots > 0, Slots: b.Slots, NextHop: mac(b.NextHop),
		Packets: b.Packets, Bytes: b.Bytes, Flows: b.Flows,
		ReplyPackets: b.ReplyPackets, ReplyBytes: b.ReplyBytes, Previous: b.Previous, Pinned: b.Pinned,
		PortsUsed: b.Source.Used, Ports: b.Source.Ports,
	}
	all := 0
	for _, other := range of.Backends {
		all += other.Slots
	}
	if all > 0 {
		s.Share = float64(b.Slots) / float64(all)
	}
	return s
}

func mac(h lb.NextHop) string {
	switch {
	case !h.Known():
		return ""
	case h == lb.Here:
		return "here"
	}
	return net.HardwareAddr(h.Destination[:]).String()
}

// FindProblems lists what an operator should look at, in words.
func (s *Status) FindProblems() {
	s.Problems, s.Alarms, s.Tables = orEmpty(s.Problems), orEmpty(s.Alarms), orEmpty(s.Tables)
	for _, i := range s.VRRP {
		if i.State == vrrp.Fault.String() {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s cannot run: %s", i.Name, i.Reason))
		}
		if i.RouteProblem != "" {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s: routes are not as configured: %s", i.Name, i.RouteProblem))
		}
		if i.LastResort {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s is active as the %s", i.Name, i.Reason))
		}
		if i.Silent {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s is held back by an operator, and no active node is heard: its addresses are nowhere: `sluice handover %s --release`", i.Name, i.Name))
		}
		if i.Unfenced != "" && s.Forwarding {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s: if this daemon dies, the kernel goes on answering for its addresses beside the node that takes over: %s", i.Name, i.Unfenced))
		}
		if i.Unfenced != "" && i.Closed {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s: accept: false has no effect, its addresses accept everything: %s", i.Name, i.Unfenced))
		}
		for _, a := range i.Alarms {
			s.Problems = append(s.Problems, fmt.Sprintf("vrrp instance %s: %s", i.Name, a))
		}
	}
	if s.Sync != nil {
		for _, p := range s.Sync.Peers {
			if p.Problem != "" {
				s.Problems = append(s.Problems, "sync: "+p.Problem)
			}
		}
	}
	for _, h := range s.Heartbeats {
		if h.Mistake != "" {
			s.Problems = append(s.Problems, "heartbeats: "+h.Mistake)
		}
	}
	for _, c := range s.Checks {
		switch {
		case c.Recovering:
			s.Problems = append(s.Problems, fmt.Sprintf("check %s fails and is being recovered: %s", c.Name, c.LastError))
		case c.Verdict == health.Down.String():
			s.Problems = append(s.Problems, fmt.Sprintf("check %s fails: %s", c.Name, c.Why))
		}
	}
	if s.HTTP != nil {
		s.Problems = append(s.Problems, httpProblems(s.HTTP)...)
	}
	if s.DNS != nil {
		s.Problems = append(s.Problems, dnsProblems(s.DNS)...)
	}
	for _, v := range s.Services {
		switch v.State {
		case ServiceDown:
			s.Problems = append(s.Problems, fmt.Sprintf("service %s is down: no server can serve (%d configured), its packets are dropped", v.Name, len(v.Backends)))
		case ServiceQuorum:
			s.Problems = append(s.Problems, fmt.Sprintf("service %s is below its quorum: %d healthy, %d wanted", v.Name, v.Healthy, v.Quorum))
		}
	}
	for _, i := range s.Interfaces {
		if i.Warning != "" {
			s.Problems = append(s.Problems, i.Warning)
		}
	}
	if s.Upgrade != nil && len(s.Upgrade.NotKept) > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("the upgrade at %s did not keep: %s",
			s.Upgrade.At.Format(time.RFC3339), strings.Join(s.Upgrade.NotKept, "; ")))
	}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
