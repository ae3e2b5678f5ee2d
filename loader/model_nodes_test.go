package loader

import (
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// fromNode tells whether a packet comes from another node's MAC address.
func (m *model) fromNode(p *modelPacket) bool {
	mac := macNumber([6]byte(p.frame[6:12]))
	return mac != 0 && slices.Contains(m.state.Nodes[:], mac)
}

// overNodes is a packet to a service that is spread over nodes.
func (m *model) overNodes(p *modelPacket, number uint16, s serviceEntry) string {
	owner := uint32(0)
	from := m.fromNode(p)
	if !from {
		owner = m.ownerOf(p, number, s)
	}
	if p.fragment.is() {
		m.rememberFragment(p, owner, uint32(p.hash>>32))
	}
	switch {
	case from:
		return "from_node"
	case owner == 0:
		m.reach("a packet that no node serves")
		return "here"
	}
	return m.sendTo(p, owner, s.Forward)
}

// towardsNode leaves a packet to this node's kernel, or sends it on to another node.
func (m *model) towardsNode(p *modelPacket, number uint32) string {
	hop := m.state.Backends[number].NextHop
	switch {
	case hop.Interface == lb.Here.Interface:
		return "here"
	case p.hops() <= 1:
		return "ttl"
	}
	m.reach("a packet to another node")
	packet := append([]byte(nil), p.ip()...)
	spendHop(packet)
	return m.emit(p, packet, hop)
}

// errorOverNodes is an ICMP error about a flow that some node serves.
func (m *model) errorOverNodes(p *modelPacket, f flowName, number uint16, s serviceEntry) string {
	if m.fromNode(p) {
		return "from_node"
	}
	owner := m.ownerOfQuoted(f, number, s)
	if owner == 0 {
		return "here"
	}
	m.reach("an error about a flow that a node serves")
	return m.towardsNode(p, owner)
}
