package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A fragmentName is what the fragments of a packet have in common: in IPv6 the
// protocol is none of it (RFC 8200, section 4.5).
type fragmentName struct {
	src, dst netip.Addr
	id       uint32
	protocol lb.Protocol
}

// A fragmented packet is known by its first fragment: where that went, and what
// nat has made of it.
type fragmented struct {
	pinned
	way      lbFragmentsWay
	spot     natSpot    // nat: the flow's
	src, dst netip.Addr // nat: as it leaves
	id       uint32     // likewise
}

// After how many ticks the fragments of a packet are forgotten, and within how
// many a first one that comes again is a copy.
const (
	modelFragmentTicks = 224
	modelCopyTicks     = 2
)

func (p *modelPacket) fragmentName() fragmentName {
	name := fragmentName{p.src, p.dst, p.fragment.id, p.protocol}
	if p.v6 {
		name.protocol = 0
	}
	return name
}

// mayHavePorts tells a packet of TCP or UDP. Of a later fragment in IPv6 it is not
// known where its header names another one.
func (p *modelPacket) mayHavePorts() bool {
	return p.protocol == lb.TCP || p.protocol == lb.UDP || p.v6 && p.fragment.offset > 0 && isExtension(uint8(p.protocol))
}

// rememberFragment notes where the first fragment of a packet goes; backend 0: to
// the kernel.
func (m *model) rememberFragment(p *modelPacket, number, spread uint32) {
	name, e := p.fragmentName(), fragmented{pinned: m.pin(number, spread)}
	m.later(func() { m.fragments[name] = e })
}

// opensInFragment tells a fragment that holds a SYN (RFC 1858, section 4).
func (p *modelPacket) opensInFragment() bool {
	return p.fragment.is() && p.protocol == lb.TCP && p.flags&testenv.SYN != 0
}

// beginFragments gives a first fragment of a flow of nat its identification, and
// remembers what the later ones are to be. The packet is p's, translated.
func (m *model) beginFragments(p *modelPacket, packet []byte, f *translated, way lbFragmentsWay) {
	if !p.fragment.is() {
		return
	}
	e := fragmented{pinned: m.pin(f.number, 0), way: way, spot: f.spot()}
	e.src, e.dst = endsOf(packet, p.v6)
	e.id = m.chosenID(p)
	name := p.fragmentName()
	before, known := m.fragments[name]
	if known && before.way == way && before.spot == e.spot && before.dst == e.dst && e.seen-before.seen < modelCopyTicks {
		m.reach("a copy of a first fragment")
		if e.id != before.id {
			m.wrong = fmt.Sprintf("a copy of a first fragment has identification %#x, and the first one %#x", e.id, before.id)
		}
	} else {
		m.judgeID(e)
	}
	m.reach(map[lbFragmentsWay]string{
		lbFragmentsWayFRAGMENTS_TO_BACKEND: "a first fragment to a nat backend", lbFragmentsWayFRAGMENTS_TO_CLIENT: "a first fragment to a nat client",
	}[way])
	p.identify(packet, e.id)
	m.later(func() { m.fragments[name] = e })
}

// chosenID is the identification that the program has given to a first fragment.
func (m *model) chosenID(p *modelPacket) uint32 {
	at := 14 + 4*m.tagsOut() + p.fragment.at - p.l3
	switch {
	case len(m.seen) < at+4:
		return 0
	case p.v6:
		return be32(m.seen, at)
	}
	return uint32(be16(m.seen, at))
}

// judgeID says what is wrong with the identification of a new packet: between two
// addresses no two packets have the same, as long as either may be put together.
func (m *model) judgeID(e fragmented) {
	for _, other := range m.fragments {
		if other.way != lbFragmentsWayFRAGMENTS_UNCHANGED && other.src == e.src && other.dst == e.dst && other.id == e.id &&
			(e.src.Is6() || other.spot.protocol == e.spot.protocol) {
			m.wrong = fmt.Sprintf("identification %#x is another packet's, from %v to %v", e.id, e.src, e.dst)
		}
	}
}

// identify writes an identification into a fragment, which is p's, translated.
func (p *modelPacket) identify(packet []byte, id uint32) {
	at := p.fragment.at - p.l3
	if p.v6 {
		binary.BigEndian.PutUint32(packet[at:], id) // no checksum covers it
		return
	}
	write(packet, at, binary.BigEndian.AppendUint16(nil, uint16(id)), 10)
}

// followFragment sends a later fragment where the first one went, changed as it
// was.
func (m *model) followFragment(p *modelPacket) string {
	if p.protocol == lb.TCP && p.fragment.offset == 8 {
		return "fragment" // RFC 1858, section 3
	}
	e, ok := m.fragments[p.fragmentName()]
	switch {
	case (!ok || int32(m.now.tick-e.seen) > modelFragmentTicks) && isExtension(uint8(p.protocol)):
		return "protocol" // it may be ICMPv6
	case !ok || int32(m.now.tick-e.seen) > modelFragmentTicks:
		return "early_fragment"
	case e.backend == 0:
		return "later_fragment"
	case !m.stands(e.pinned):
		m.reach("a fragment whose backend has gone")
		return "early_fragment"
	}
	m.reach("a fragment that follows")
	if isExtension(uint8(p.protocol)) {
		m.reach("a fragment that begins with another header")
	}
	switch e.way {
	case lbFragmentsWayFRAGMENTS_TO_BACKEND:
		return m.followToBackend(p, e)
	case lbFragmentsWayFRAGMENTS_TO_CLIENT:
		return m.followToClient(p, e)
	}
	p.hash = uint64(e.sequence) << 32
	return m.sendTo(p, e.backend, m.state.Services[m.state.Backends[e.backend].Service].Forward)
}

// followToBackend is a later fragment of a client of nat.
func (m *model) followToBackend(p *modelPacket, e fragmented) string {
	if p.hops() <= 1 {
		return "ttl"
	}
	m.reach("a later fragment to a nat backend")
	out := m.emit(p, p.translated(e), m.state.Backends[e.backend].NextHop)
	if out == "sent" {
		m.count(e.backend, lbCounters{Packets: 1, Bytes: uint64(p.length)})
	}
	return out
}

// followToClient is one of a backend of nat. The port may be another client's by
// now, or nobody's.
func (m *model) followToClient(p *modelPacket, e fragmented) string {
	f := m.places[e.spot]
	if f == nil || f.name.client.Addr() != e.dst {
		m.reach("a fragment whose flow is over")
		return "early_fragment"
	}
	if p.hops() <= 1 {
		return "ttl"
	}
	m.reach("a later fragment to a nat client")
	out := m.emit(p, p.translated(e), f.lastHop)
	if out == "sent" {
		m.count(e.backend, lbCounters{ReplyPackets: 1, ReplyBytes: uint64(p.length)})
	}
	return out
}

// translated is a later fragment as nat sends it on.
func (p *modelPacket) translated(e fragmented) []byte {
	packet := append([]byte(nil), p.ip()...)
	setEnds(packet, e.src, e.dst)
	p.identify(packet, e.id)
	spendHop(packet)
	return packet
}
