package loader

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Stats is what the data plane has counted since it was loaded, over all CPUs.
type Stats struct {
	Services []ServiceStats
	Outcomes []Outcome // what was not forwarded, in the order of enum outcome
	Tables   []FlowTable
}

// ServiceStats are the counters of one service. A dsr backend answers its
// clients itself, so replies are counted for nat alone.
type ServiceStats struct {
	Name      string
	Addresses []lb.Frontend
	Protocol  lb.Protocol
	Forward   lb.Forward
	Losses    Losses
	Moves     *Moves // nil: no change since the daemon started
	Backends  []BackendStats
}

// Losses counts what a service could not do.
type Losses struct {
	NoBackend  uint64 `json:"no_backend"`  // packets dropped: no healthy backend
	NoPort     uint64 `json:"no_port"`     // connections refused: no source port is free
	FlowsFull  uint64 `json:"flows_full"`  // connections refused: the flow table is full
	EarlyReuse uint64 `json:"early_reuse"` // source ports reused within 60 s of their close
	Evicted    uint64 `json:"evicted"`     // handshakes given up for newer ones
	// SYNs in slots with an open window that found no room to be remembered, and
	// flows that found none to be pinned: the next change of backends may move them.
	HandshakesFull uint64 `json:"handshakes_full"`
	PinsFull       uint64 `json:"pins_full"`
	TooBig         uint64 `json:"too_big"` // packets too long for the tunnel to their backend, or for the way to their client
}

// BackendStats are the counters of one backend of one service. Bytes are those
// of IP packets.
type BackendStats struct {
	Address      netip.AddrPort
	Slots        int // of the service's table
	Previous     int // slots that it owned until a change whose window is open still
	Pinned       int // connections that are kept with it whoever owns their slots; nat: all of its connections; -1: not counted yet
	Alive        bool
	NextHop      lb.NextHop
	Packets      uint64
	Bytes        uint64
	Flows        uint64 // SYNs forwarded
	ReplyPackets uint64
	ReplyBytes   uint64
	Source       PortUse
}

// An Outcome counts packets that were not forwarded.
type Outcome struct {
	Name    string `json:"name"`
	Dropped bool   `json:"dropped"` // else passed to the kernel, or answered
	Packets uint64 `json:"packets"`
	// Answered: sent back as an answer.
	Answered bool `json:"answered,omitempty"`
}

// Stats reads the counters. It waits for nobody: while a change is being written, they are
// those of the services and backends of before.
func (d *Datapath) Stats() (s Stats, err error) {
	err = d.look(func(v *view) (err error) {
		s, err = readStats(d.tables, v.state, v.names, v.scan.pinned, v.idle)
		for i, n := range slices.Sorted(maps.Keys(v.state.Services)) {
			if m, ok := v.moves[n]; ok && i < len(s.Services) {
				s.Services[i].Moves = &m
			}
		}
		s.Tables = d.tables.flowTables(v.state, v.scan.used, v.idle)
		return err
	})
	return s, err
}

// readStats reads the counters. Pinned and idle are counts of flows by backend, and of
// ports by pair; nil: not known.
func readStats(t *tables, state *State, names map[uint16]string, pinned, idle map[uint32]int) (Stats, error) {
	var s Stats
	m := &t.objects
	by := state.byService()
	// Maps would take seconds for hundreds of services.
	slots, previous := make([]int, lbLimitsMAX_BACKENDS), make([]int, lbLimitsMAX_BACKENDS)
	addresses := state.addresses()
	for _, number := range slices.Sorted(maps.Keys(state.Services)) {
		service := ServiceStats{
			Name: names[number], Addresses: addresses[number],
			Protocol: state.Services[number].protocol(), Forward: state.Services[number].Forward,
		}
		var err error
		if service.Losses, err = readLosses(m, number); err != nil {
			return s, err
		}
		clear(slots)
		clear(previous)
		for _, s := range state.Slots[number] {
			slots[s.owner()]++
			previous[s.previous()]++
		}
		for _, n := range by[number] {
			b, err := backendStats(m, n, state.Backends[n])
			if err != nil {
				return s, err
			}
			b.Slots, b.Previous, b.Pinned = slots[n], previous[n], pinned[n]
			b.Source = t.sourcePorts(state, state.Backends[n], idle)
			if pinned == nil {
				b.Pinned = -1
			}
			service.Backends = append(service.Backends, b)
		}
		slices.SortFunc(service.Backends, func(a, b BackendStats) int { return a.Address.Compare(b.Address) })
		s.Services = append(s.Services, service)
	}
	var err error
	s.Outcomes, err = readOutcomes(m)
	return s, err
}

func readLosses(m *kernelMaps, service uint16) (Losses, error) {
	var sum Losses
	var lost []lbServiceLosses
	if err := m.Losses.Lookup(uint32(service), &lost); err != nil {
		return sum, fmt.Errorf("read the counters of service %d: %w", service, err)
	}
	for _, l := range lost {
		sum.NoBackend += l.NoBackend
		sum.NoPort += l.NoPort
		sum.FlowsFull += l.FlowsFull
		sum.EarlyReuse += l.EarlyReuse
		sum.Evicted += l.Evicted
		sum.HandshakesFull += l.HandshakesFull
		sum.PinsFull += l.PinsFull
		sum.TooBig += l.TooBig
	}
	return sum, nil
}

func readOutcomes(m *kernelMaps) ([]Outcome, error) {
	var outcomes []Outcome
	for o := lbOutcomeANSWERED_WHO_HAS; o < lbOutcomeOUTCOMES; o++ {
		var counts []uint64
		if err := m.Outcomes.Lookup(uint32(o), &counts); err != nil {
			return nil, fmt.Errorf("read the outcome counters: %w", err)
		}
		out := Outcome{Name: outcomeNames[o], Dropped: o >= lbOutcomeDROP_MALFORMED_IP, Answered: o == lbOutcomeANSWERED_WHO_HAS}
		for _, c := range counts {
			out.Packets += c
		}
		outcomes = append(outcomes, out)
	}
	return outcomes, nil
}

func backendStats(m *kernelMaps, n uint32, e backendEntry) (BackendStats, error) {
	t, err := readTraffic(m, n)
	return BackendStats{
		Address: e.Address, Alive: e.Alive, NextHop: e.NextHop,
		Packets: t.Packets, Bytes: t.Bytes, Flows: t.Flows, ReplyPackets: t.ReplyPackets, ReplyBytes: t.ReplyBytes,
	}, err
}

// outcomeNames are the outcomes as users see them.
var outcomeNames = map[lbOutcome]string{
	lbOutcomeANSWERED_WHO_HAS:    "who_has",
	lbOutcomePASS_NOT_IP:         "not_ip",
	lbOutcomePASS_NOT_VIP:        "not_vip",
	lbOutcomePASS_OTHER_MAC:      "other_mac",
	lbOutcomePASS_PROTOCOL:       "protocol",
	lbOutcomePASS_FRAGMENT:       "later_fragment",
	lbOutcomePASS_NO_SERVICE:     "no_service",
	lbOutcomePASS_NO_FLOW:        "no_flow",
	lbOutcomePASS_NOT_FORWARDING: "not_forwarding",
	lbOutcomePASS_PROBE:          "probe",
	lbOutcomePASS_HERE:           "here",
	lbOutcomePASS_FROM_NODE:      "from_node",
	lbOutcomeDROP_MALFORMED_IP:   "malformed_ip",
	lbOutcomeDROP_MALFORMED_TCP:  "malformed_tcp",
	lbOutcomeDROP_MALFORMED_UDP:  "malformed_udp",
	lbOutcomeDROP_FRAGMENT:       "fragment",
	lbOutcomeDROP_DENIED:         "denied",
	lbOutcomeDROP_SOURCE_LIMIT:   "source_limit",
	lbOutcomeDROP_EARLY_FRAGMENT: "early_fragment",
	lbOutcomeDROP_TTL:            "ttl",
	lbOutcomeDROP_NO_BACKEND:     "no_backend",
	lbOutcomeDROP_NO_PORT:        "no_port",
	lbOutcomeDROP_FLOWS_FULL:     "flows_full",
	lbOutcomeDROP_NO_NEXT_HOP:    "no_next_hop",
	lbOutcomeDROP_NO_ROUTE:       "no_route",
	lbOutcomeDROP_TOO_BIG:        "too_big",
	lbOutcomeDROP_HEADROOM:       "headroom",
	lbOutcomeDROP_STRAY:          "stray",
	lbOutcomeDROP_FENCED:         "fenced",
	lbOutcomeDROP_NOT_ACCEPTED:   "not_accepted",
	lbOutcomeDROP_INTERNAL:       "internal",
}

func (o Outcome) String() string {
	return strings.ReplaceAll(o.Name, "_", " ")
}
