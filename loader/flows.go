package loader

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A FlowKind says in which table a flow is kept, and so why.
type FlowKind string

// The kinds of flows, in the order in which Flows visits them.
const (
	FlowHandshake FlowKind = "handshake" // a SYN in a slot that is not clean
	FlowPinned    FlowKind = "pinned"    // one that has gone on from a handshake
	FlowStraggler FlowKind = "straggler" // one that is older than the window of its slot
	FlowUDP       FlowKind = "udp"       // of a service with affinity: flow
	FlowNAT       FlowKind = "nat"       // one that is translated
)

// FlowKinds are all of them.
var FlowKinds = []FlowKind{FlowHandshake, FlowPinned, FlowStraggler, FlowUDP, FlowNAT}

// A Flow is an entry of a flow table that holds: its backend stands, and its time
// is not over.
type Flow struct {
	Kind     FlowKind       `json:"kind"`
	State    string         `json:"state,omitempty"` // of pinned ones and stragglers open or ending; of udp new or lasting; of nat its state
	Number   uint16         `json:"-"`               // of its service
	Service  string         `json:"service"`         // its name, which the data plane does not know
	Protocol string         `json:"protocol"`
	Client   netip.AddrPort `json:"client"`
	VIP      netip.AddrPort `json:"vip"`
	Backend  netip.AddrPort `json:"backend"`
	Source   netip.AddrPort `json:"source,omitzero"` // nat: what the backend sees
	Idle     Seconds        `json:"idle_seconds"`    // since its last packet, to a tick
	Left     Seconds        `json:"left_seconds"`    // until it is forgotten, unless a packet comes
}

// Seconds are a duration that JSON has in seconds.
type Seconds time.Duration

// MarshalJSON writes seconds with three decimals.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Seconds(), 'f', 3, 64), nil
}

// String writes whole seconds.
func (s Seconds) String() string { return time.Duration(s).Round(time.Second).String() }

// natStates are the states of nat flows as users see them.
var natStates = map[lbNatState]string{
	lbNatStateNAT_SYN_SENT:     "syn_sent",
	lbNatStateNAT_SYN_RECEIVED: "syn_received",
	lbNatStateNAT_ESTABLISHED:  "established",
	lbNatStateNAT_CLOSING:      "closing",
	lbNatStateNAT_CLOSED:       "closed",
	lbNatStateNAT_UDP_REPLIED:  "replied",
}

// natStateName names a state; of UDP the first one is no SYN.
func natStateName(f *lbNatFlow) string {
	if f.Flags&uint32(lbNatFlagsNAT_UDP) != 0 && f.State == uint32(lbNatStateNAT_SYN_SENT) {
		return "sent"
	}
	return natStates[lbNatState(f.State)]
}

// Flows calls f for every flow of every table, a part of a table at a time. What
// comes and goes meanwhile may be seen or not. It ends with f's first error.
func (p *Pinned) Flows(f func(Flow) error) error {
	r := flowReader{state: p.state, now: ticks(), vips: p.state.vipsByIndex()}
	for _, t := range []struct {
		table *ebpf.Map
		kind  FlowKind
		read  func(*Flow, lbPin) time.Duration
	}{
		{p.maps.Handshakes, FlowHandshake, func(*Flow, lbPin) time.Duration { return handshakeIdle }},
		{p.maps.Pins, FlowPinned, readPinned},
		{p.maps.Stragglers, FlowStraggler, readPinned},
		{p.maps.UdpFlows, FlowUDP, func(flow *Flow, pin lbPin) time.Duration {
			flow.State = "lasting"
			return pinLife(lb.FlowDatagrams, &pin)
		}},
		{p.maps.UdpNew, FlowUDP, func(flow *Flow, _ lbPin) time.Duration {
			flow.State = "new"
			return udpIdle
		}},
	} {
		var failed error
		err := eachFlow(t.table, func(k lbFlowKey, pin lbPin) {
			flow := Flow{Kind: t.kind}
			life := t.read(&flow, pin)
			if failed != nil || !r.pinned(&flow, k, pin, life) {
				return
			}
			// A lasting flow leaves its first entry behind.
			if t.table == p.maps.UdpNew && p.maps.UdpFlows.Lookup(&k, &pin) == nil {
				return
			}
			failed = f(flow)
		})
		if err := errors.Join(failed, err); err != nil {
			return err
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.state.Pairs)) {
		if err := p.pairFlows(&r, n, f); err != nil {
			return err
		}
	}
	return nil
}

func readPinned(flow *Flow, pin lbPin) time.Duration {
	flow.State = "open"
	if pin.Ending != 0 {
		flow.State = "ending"
	}
	return pinLife(lb.FlowPinned, &pin)
}

// pairFlows calls f for the nat flows of one pair.
func (p *Pinned) pairFlows(r *flowReader, number uint32, f func(Flow) error) error {
	q, err := p.tables.openQueue(number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // it is gone
	}
	if err != nil {
		return err
	}
	defer q.close()
	for port := range int(lbLimitsNAT_PORTS) {
		entry := *q.flow(uint16(port))
		if entry.State == uint32(lbNatStateNAT_FREE) {
			continue
		}
		flow, ok := r.translated(entry, number, uint16(port))
		if !ok {
			continue
		}
		if err := f(flow); err != nil {
			return err
		}
	}
	return nil
}

// A flowReader makes Flows of entries.
type flowReader struct {
	state *State
	now   uint32
	vips  map[uint32]netip.Addr
}

func (s *State) vipsByIndex() map[uint32]netip.Addr {
	all := map[uint32]netip.Addr{}
	for a, v := range s.VIPs {
		all[v.Index] = a
	}
	return all
}

// age fills in how old the flow is; false: its life is over.
func (r *flowReader) age(flow *Flow, seen uint32, life time.Duration) bool {
	// Another CPU may have stamped it a tick ahead.
	idle := time.Duration(max(0, int32(r.now-seen))) * tick
	flow.Idle, flow.Left = Seconds(idle), Seconds(life-idle)
	return flow.Left >= 0
}

// backend fills in the flow's backend; false: it has failed since, or is gone.
func (r *flowReader) backend(flow *Flow, number, generation uint32) bool {
	b, ok := r.state.Backends[number]
	flow.Backend, flow.Number = b.Address, b.Service
	return ok && b.Alive && b.Generation == generation
}

// pinned fills in a flow from an entry of a flow table; false: it is void.
func (r *flowReader) pinned(flow *Flow, k lbFlowKey, pin lbPin, life time.Duration) bool {
	vip, ok := r.vips[k.Vip]
	flow.Protocol = lb.Protocol(k.Protocol).String()
	flow.Client = netip.AddrPortFrom(unmapped(k.Client), bigEndian16(k.ClientPort))
	flow.VIP = netip.AddrPortFrom(vip, bigEndian16(k.VipPort))
	return ok && r.backend(flow, pin.Backend, pin.Generation) && r.age(flow, pin.Seen, life)
}

// translated reads an entry of nat; false: it is void.
func (r *flowReader) translated(e lbNatFlow, pair uint32, port uint16) (Flow, bool) {
	vip, ok := r.vips[uint32(e.Vip)]
	flow := Flow{
		Kind: FlowNAT, State: natStateName(&e), Protocol: r.state.Pairs[pair].Protocol.String(),
		Client: netip.AddrPortFrom(unmapped(e.Client), bigEndian16(e.ClientPort)),
		VIP:    netip.AddrPortFrom(vip, bigEndian16(e.VipPort)),
		Source: netip.AddrPortFrom(r.state.Pairs[pair].Source, port),
	}
	life, known := natTimeouts[lbNatState(e.State)]
	holds := ok && known && r.backend(&flow, uint32(e.Backend), e.Generation) && r.age(&flow, e.LastSeen, life)
	if r.state.Pairs[pair].Address.Port() == 0 {
		flow.Backend = netip.AddrPortFrom(flow.Backend.Addr(), flow.VIP.Port())
	}
	return flow, holds
}
