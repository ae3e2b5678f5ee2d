package loader

import (
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A pinned flow goes to its backend as long as that is the one it was.
type pinned struct {
	backend    uint32
	generation uint32
	seen       uint32 // tick
	sequence   uint32
	ending     bool
}

// How far a segment may be from its SYN and belong to its handshake, and after
// how many ticks a UDP flow is forgotten.
const (
	modelReach   = 1 << 20
	modelUDPIdle = 2235
)

func (m *model) pin(number, sequence uint32) pinned {
	return pinned{number, m.state.Backends[number].Generation, m.now.tick, sequence, false}
}

func (m *model) stands(e pinned) bool {
	b, ok := m.state.Backends[e.backend]
	return ok && b.Alive && b.Generation == e.generation
}

func (m *model) standsUDP(e pinned) bool {
	return m.stands(e) && int32(m.now.tick-e.seen) <= modelUDPIdle
}

// put remembers a flow in a table.
func (m *model) put(table map[flowName]pinned, f flowName, e pinned) {
	m.later(func() { table[f] = e })
}

func (m *model) forget(table map[flowName]pinned, f flowName) { m.later(func() { delete(table, f) }) }

// touch notes a packet of a flow that is known: FIN and RST end it, data shows
// that it has not ended.
func (m *model) touch(table map[flowName]pinned, p *modelPacket) uint32 {
	e := table[p.flow()]
	e.seen = m.now.tick
	switch {
	case p.flags&(testenv.FIN|testenv.RST) != 0:
		e.ending = true
	case p.payload > 0:
		e.ending = false
	}
	m.put(table, p.flow(), e)
	return e.backend
}

// ownerOfSegment returns the backend of a TCP segment in a slot that is tracked
// or settling.
func (m *model) ownerOfSegment(p *modelPacket, word slot) uint32 {
	if p.opens {
		return m.ownerOfSYN(p, word)
	}
	f := p.flow()
	if number := m.ownerOfHandshake(p, f); number != 0 {
		return number
	}
	for _, table := range []map[flowName]pinned{m.pins, m.stragglers} {
		if e, ok := table[f]; ok && m.stands(e) {
			return m.touch(table, p)
		}
	}
	if word.state() != lbSlotStateSLOT_TRACKED || word.previous() == 0 {
		return word.owner()
	}
	// It is older than the window.
	if p.flags&(testenv.FIN|testenv.RST) == 0 {
		m.reach("a straggler")
		m.put(m.stragglers, f, m.pin(word.previous(), 0))
	}
	return word.previous()
}

// ownerOfSYN sends a new connection to the owner, and remembers it where a later
// packet would go elsewhere.
func (m *model) ownerOfSYN(p *modelPacket, word slot) uint32 {
	f := p.flow()
	if word.owner() == 0 {
		return word.previous()
	}
	if e, ok := m.handshakes[f]; ok && m.stands(e) && e.sequence == p.seq {
		return m.touch(m.handshakes, p) // sent again
	}
	_, pin := m.pins[f]
	_, straggler := m.stragglers[f]
	if word.previous() != 0 || pin || straggler {
		m.reach("a handshake")
		m.put(m.handshakes, f, m.pin(word.owner(), p.seq))
	}
	return word.owner()
}

// ownerOfHandshake returns where the SYN of a segment went, or 0. The next
// sequence number, and only that, makes a pin of it.
func (m *model) ownerOfHandshake(p *modelPacket, f flowName) uint32 {
	e, ok := m.handshakes[f]
	distance := p.seq - e.sequence
	if !ok || !m.stands(e) || distance == 0 || distance > modelReach {
		return 0
	}
	if distance == 1 && p.flags&(testenv.FIN|testenv.RST) == 0 {
		m.reach("a pin")
		m.put(m.pins, f, m.pin(e.backend, 0))
		m.forget(m.stragglers, f)
		m.forget(m.handshakes, f)
	}
	return e.backend
}

// ownerOfDatagram returns the backend of a datagram of a service with affinity:
// flow. A second datagram in a later tick makes a flow a lasting one.
func (m *model) ownerOfDatagram(p *modelPacket, owner uint32) uint32 {
	f := p.flow()
	if e, ok := m.udpFlows[f]; ok && m.standsUDP(e) {
		return m.touch(m.udpFlows, p)
	}
	if e, ok := m.udpNew[f]; ok && m.standsUDP(e) {
		if e.seen != m.now.tick {
			m.reach("a lasting UDP flow")
			m.put(m.udpFlows, f, m.pin(e.backend, 0))
		}
		return e.backend
	}
	if owner != 0 {
		m.put(m.udpNew, f, m.pin(owner, 0))
	}
	return owner
}

// ownerOfQuoted returns the backend of a flow that an ICMP error is about, which
// changes nothing.
func (m *model) ownerOfQuoted(f flowName, number uint16, s serviceEntry) uint32 {
	word := m.slotOf(f, number, s)
	if s.Flags&lbServiceFlagsSERVICE_UDP_FLOWS != 0 {
		for _, table := range []map[flowName]pinned{m.udpFlows, m.udpNew} {
			if e, ok := table[f]; ok && m.standsUDP(e) {
				return e.backend
			}
		}
		return word.owner()
	}
	if word.state() == lbSlotStateSLOT_CLEAN || f.protocol != lb.TCP {
		return word.owner()
	}
	for _, table := range []map[flowName]pinned{m.pins, m.stragglers, m.handshakes} {
		if e, ok := table[f]; ok && m.stands(e) {
			m.reach("an error about a pinned flow")
			return e.backend
		}
	}
	if word.previous() != 0 {
		return word.previous()
	}
	return word.owner()
}
