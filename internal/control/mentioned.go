package control

import (
	"hash/maphash"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A mentions is which flows a peer has told of since its snapshot began. Of a translated
// flow it keeps its place, a source port of a pair: both nodes go through these in
// order, so what is looked for next is near what was looked for last, which it is not
// among the hashes of a million flows. Where a place was mentioned, what is
// there now is what the peer has there, or goes on against it.
type mentions struct {
	seed   maphash.Seed
	places map[portBlock]*[portBlockWords]uint64
	others map[uint64]struct{} // hashes of flows that have no place

	full bool // too many to be kept in mind: every flow counts as noted

	last  portBlock // the one that was looked for last
	ports *[portBlockWords]uint64
}

// A portBlock is some of the source ports of a pair.
type portBlock struct {
	source   netip.Addr
	backend  netip.AddrPort
	protocol lb.Protocol
	first    uint16
}

// portBlockWords have a bit for each port of a block.
const (
	portBlockWords = 32
	portBlockSize  = 64 * portBlockWords

	// A peer that mentions more than a node can hold has run wild.
	maxMentioned  = 1 << 22
	maxPortBlocks = 1 << 18
)

func newMentions(seed maphash.Seed) *mentions {
	return &mentions{seed: seed, places: map[portBlock]*[portBlockWords]uint64{}, others: map[uint64]struct{}{}}
}

// add notes a flow.
func (m *mentions) add(s *lb.FlowState) {
	if len(m.others) >= maxMentioned || len(m.places) >= maxPortBlocks {
		m.full = true
	}
	if m.full {
		return
	}
	if !placed(s) {
		m.others[maphash.Comparable(m.seed, s.FlowID)] = struct{}{}
		return
	}
	ports := m.block(s)
	if ports == nil {
		ports = new([portBlockWords]uint64)
		m.places[m.last], m.ports = ports, ports
	}
	word, bit := placeOf(s)
	ports[word] |= bit
}

// has tells whether a flow was noted.
func (m *mentions) has(s *lb.FlowState) bool {
	if m.full {
		return true
	}
	if !placed(s) {
		_, ok := m.others[maphash.Comparable(m.seed, s.FlowID)]
		return ok
	}
	ports := m.block(s)
	word, bit := placeOf(s)
	return ports != nil && ports[word]&bit != 0
}

func placed(s *lb.FlowState) bool { return s.Kind == lb.FlowTranslated && s.Source.IsValid() }

func placeOf(s *lb.FlowState) (word int, bit uint64) {
	port := int(s.Source.Port()) % portBlockSize
	return port / 64, 1 << (port % 64)
}

// block returns that of a flow's place; nil: there is none.
func (m *mentions) block(s *lb.FlowState) *[portBlockWords]uint64 {
	b := portBlock{s.Source.Addr(), s.Backend, s.Protocol, s.Source.Port() / portBlockSize * portBlockSize}
	if b != m.last {
		m.last, m.ports = b, m.places[b]
	}
	return m.ports
}
