package loader

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A flowIndex finds what the fields of an lb.FlowState are called in the tables of
// this node, and the other way round.
type flowIndex struct {
	state    *State // that the rest was made of
	vips     map[uint32]netip.Addr
	backends map[serverKey]uint32
	pairs    map[sideKey]uint32

	nics   []uint32 // indexes of those that the program is on
	names  map[uint32]string
	byName map[string]uint32
}

type serverKey struct {
	service uint16
	address netip.AddrPort
}

type sideKey struct {
	source   netip.Addr
	backend  netip.AddrPort
	protocol lb.Protocol
}

// refresh makes it that of the state and of the NICs of this moment.
func (x *flowIndex) refresh(s *State, t *tables) {
	if x.state != s {
		x.state, x.vips = s, s.vipsByIndex()
		x.backends, x.pairs = map[serverKey]uint32{}, map[sideKey]uint32{}
		for n, b := range s.Backends {
			if b.Alive {
				x.backends[serverKey{b.Service, b.Address}] = n
			}
		}
		for n, p := range s.Pairs {
			x.pairs[sideKey{p.Source, p.Address, p.Protocol}] = n
		}
		for _, b := range s.Backends {
			for _, n := range b.Pairs {
				if p := s.Pairs[n]; p.Address.Port() == 0 {
					x.pairs[sideKey{p.Source, b.Address, p.Protocol}] = n
				}
			}
		}
	}
	var nics []uint32
	for i := range int(lbLimitsMAX_INTERFACES) {
		if index := t.nic(i).Index; index != 0 {
			nics = append(nics, index)
		}
	}
	if x.names != nil && slices.Equal(nics, x.nics) {
		return
	}
	x.nics, x.names, x.byName = nics, map[uint32]string{}, map[string]uint32{}
	for _, index := range nics {
		if nic, err := net.InterfaceByIndex(int(index)); err == nil {
			x.names[index], x.byName[nic.Name] = nic.Name, index
		}
	}
}

// service returns the number of the service that a VIP's port is, and the VIP's index; 0: none.
func (x *flowIndex) service(vip netip.AddrPort, p lb.Protocol) (service uint16, index uint32) {
	v, ok := x.state.VIPs[vip.Addr()]
	if !ok {
		return 0, 0
	}
	return x.state.service(v.Tables[portTable(p)], vip.Port()), v.Index
}

// holds tells whether a backend is of the generation still.
func (x *flowIndex) holds(number, generation uint32) bool {
	b, ok := x.state.Backends[number]
	return ok && b.Alive && b.Generation == generation
}

// lastHop names the way of a flow's replies.
func (x *flowIndex) lastHop(e *lbNatFlow) lb.LastHop {
	name, ok := x.names[e.Interface]
	if !ok {
		return lb.LastHop{}
	}
	return lb.LastHop{
		Interface: name, MAC: e.Mac, Tags: int(e.Vlans),
		VLANs: [2]uint16{bigEndian16(e.Vlan[0]), bigEndian16(e.Vlan[1])},
	}
}

// setLastHop writes it into an entry. A NIC of another name is taken for this node's
// only one.
func (x *flowIndex) setLastHop(e *lbNatFlow, h lb.LastHop) {
	e.Interface, e.Mac, e.Vlans, e.Vlan = 0, [6]uint8{}, 0, [2]uint16{}
	index, ok := x.byName[h.Interface]
	if !ok && len(x.nics) == 1 && h.Interface != "" {
		index, ok = x.nics[0], true
	}
	if !ok {
		return
	}
	e.Interface, e.Mac, e.Vlans = index, h.MAC, uint8(h.Tags)
	e.Vlan = [2]uint16{bigEndian16(h.VLANs[0]), bigEndian16(h.VLANs[1])}
}

// idleFor is how long ago something was seen. Another CPU may have stamped it a tick
// ahead.
func idleFor(now, seen uint32) time.Duration { return time.Duration(max(0, int32(now-seen))) * tick }

// translated returns what other nodes are told of a pair's flow; false: of a VIP
// that there is no more.
func (x *flowIndex) translated(p *toldPair, port uint16, e *lbNatFlow, now uint32) (lb.FlowState, bool) {
	s, ok := x.translatedID(p, port, e.Vip, e.VipPort, e.Client, e.ClientPort)
	if b, is := x.state.Backends[uint32(e.Backend)]; is && s.Backend.Port() == 0 {
		s.Backend = b.Address // several may have a pair of all ports
	}
	s.Phase, s.Idle = phases[e.State%uint32(lbNatStateNAT_STATES)], idleFor(now, e.LastSeen)
	s.Opened = e.Flags&uint32(lbNatFlagsNAT_OPENED) != 0
	s.ClientFIN = e.Flags&uint32(lbNatFlagsNAT_FIN_CLIENT) != 0
	s.BackendFIN = e.Flags&uint32(lbNatFlagsNAT_FIN_BACKEND) != 0
	s.Sequence, s.LastHop = e.BackendSequence, x.lastHop(e)
	return s, ok
}

// over returns what they are told of the end of one.
func (x *flowIndex) over(p *toldPair, port uint16, t *toldFlow, now uint32) (lb.FlowState, bool) {
	s, ok := x.translatedID(p, port, t.vip, t.vipPort, t.client, t.clientPort)
	s.Phase, s.Idle = lb.FlowOver, idleFor(now, t.seen)
	return s, ok
}

func (x *flowIndex) translatedID(p *toldPair, port uint16, vip, vipPort uint16, client [2]uint64, clientPort uint16) (lb.FlowState, bool) {
	address, ok := x.vips[uint32(vip)]
	s := lb.FlowState{
		FlowID: lb.FlowID{
			Kind: lb.FlowTranslated, Protocol: p.entry.Protocol,
			Client: netip.AddrPortFrom(unmapped(client), bigEndian16(clientPort)),
			VIP:    netip.AddrPortFrom(address, bigEndian16(vipPort)),
		},
		Backend: p.entry.Address, Source: netip.AddrPortFrom(p.entry.Source, port),
	}
	return s, ok
}

// A pinTable is a table of single flows that other nodes are told of.
type pinTable struct {
	number uint32 // enum told_table
	kind   lb.FlowKind
}

var pinTables = []pinTable{
	{uint32(lbToldTableTOLD_PINS), lb.FlowPinned},
	{uint32(lbToldTableTOLD_STRAGGLERS), lb.FlowStraggler},
	{uint32(lbToldTableTOLD_UDP), lb.FlowDatagrams},
}

// pinID names the flow of a key; false: of a VIP that there is no more.
func (x *flowIndex) pinID(kind lb.FlowKind, k *lbFlowKey) (lb.FlowID, bool) {
	address, ok := x.vips[k.Vip]
	return lb.FlowID{
		Kind: kind, Protocol: lb.Protocol(k.Protocol),
		Client: netip.AddrPortFrom(unmapped(k.Client), bigEndian16(k.ClientPort)),
		VIP:    netip.AddrPortFrom(address, bigEndian16(k.VipPort)),
	}, ok
}

// pinned returns what other nodes are told of an entry; false: it is void.
func (x *flowIndex) pinned(kind lb.FlowKind, k *lbFlowKey, p *lbPin, now uint32) (lb.FlowState, bool) {
	id, ok := x.pinID(kind, k)
	if !ok || !x.holds(p.Backend, p.Generation) {
		return lb.FlowState{}, false
	}
	s := lb.FlowState{FlowID: id, Phase: lb.FlowOpen, Backend: x.state.Backends[p.Backend].Address, Idle: idleFor(now, p.Seen)}
	if p.Ending != 0 {
		s.Phase = lb.FlowClosing
	}
	return s, true
}
