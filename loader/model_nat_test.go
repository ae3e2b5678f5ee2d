package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A translated flow is one of nat. How it lives is modelFlow's.
type translated struct {
	modelFlow
	name       flowName
	number     uint32 // of the backend
	generation uint32
	source     netip.AddrPort // that the backend sees
	sequence   uint32         // what the client acknowledges first
	lastHop    lb.NextHop
	seen       uint32 // tick
}

// A natSpot is a source port towards a backend: at most one flow has it.
type natSpot struct {
	source, backend netip.AddrPort
	protocol        lb.Protocol
}

// isOf tells whether the flow is one of a pair.
func (f *translated) isOf(p pairEntry) bool {
	return p.Source == f.source.Addr() && p.Protocol == f.name.protocol &&
		(p.Address == f.backend || p.Address == netip.AddrPortFrom(f.backend.Addr(), 0))
}

func (f *translated) spot() natSpot { return natSpot{f.source, f.backend, f.name.protocol} }

// lives tells whether a flow still stands.
func (m *model) lives(f *translated) bool {
	b, ok := m.state.Backends[f.number]
	idle := time.Duration(m.now.tick-f.seen) * tick
	return ok && b.Alive && b.Generation == f.generation && idle <= m.timeouts[f.state]
}

func (m *model) dropFlow(f *translated) {
	m.later(func() {
		if m.flows[f.name] == f {
			delete(m.flows, f.name)
		}
		if m.places[f.spot()] == f {
			delete(m.places, f.spot())
		}
	})
}

// natForward translates a packet of a client.
func (m *model) natForward(p *modelPacket, number uint16, s serviceEntry) string {
	if p.hops() <= 1 {
		return "ttl"
	}
	if p.opensInFragment() {
		return "fragment"
	}
	f := m.flows[p.flow()]
	if f != nil && (!m.lives(f) || p.opens && f.over()) {
		m.dropFlow(f)
		f = nil
	}
	if f == nil {
		if p.protocol == lb.TCP && !p.opens {
			if p.fragment.is() {
				m.rememberFragment(p, 0, 0)
			}
			return "no_flow"
		}
		p.opens = true
		var out string
		if f, out = m.newFlow(p, number, s); f == nil {
			return out
		}
	} else {
		f = m.track(f, p, true)
		m.reach("a nat flow that goes on")
	}
	f.lastHop = m.wayBack(p)
	packet := append([]byte(nil), p.ip()...)
	rewrite(packet, p.l4-p.l3, p.protocol, f.source, f.backend)
	m.beginFragments(p, packet, f, lbFragmentsWayFRAGMENTS_TO_BACKEND)
	spendHop(packet)
	out := m.emit(p, packet, m.state.Backends[f.number].NextHop)
	if out == "sent" {
		m.count(f.number, lbCounters{Packets: 1, Bytes: uint64(p.length), Flows: p.opened()})
	}
	return out
}

// newFlow makes a flow with the source that the program has chosen, which must be
// free.
func (m *model) newFlow(p *modelPacket, number uint16, s serviceEntry) (*translated, string) {
	owner := m.slotOf(p.flow(), number, s).owner()
	b, ok := m.state.Backends[owner]
	if !ok || !b.Alive {
		return nil, "no_backend"
	}
	f := &translated{name: p.flow(), number: owner, generation: b.Generation, seen: m.now.tick}
	f.state, f.backend = lbNatStateNAT_SYN_SENT, b.Address
	if s.Flags&lbServiceFlagsSERVICE_KEEPS_PORT != 0 {
		f.backend = netip.AddrPortFrom(b.Address.Addr(), p.ports[1])
		m.reach("a new nat flow that keeps its port")
	}
	if at := 14 + 4*m.tagsOut(); len(m.seen) >= len(p.frame)-p.l3+at {
		src, _ := endsOf(m.seen[at:], p.v6)
		f.source = netip.AddrPortFrom(src, be16(m.seen, at+p.l4-p.l3))
	}
	m.judgeSource(f, b)
	m.reach("a new nat flow")
	m.opened = f
	m.later(func() {
		m.flows[f.name], m.places[f.spot()] = f, f
	})
	return f, ""
}

// judgeSource says what is wrong with the source of a new flow.
func (m *model) judgeSource(f *translated, b backendEntry) {
	free := true
	for _, other := range m.places {
		// Where ports are kept, whichever of them it goes to.
		if other.number == f.number && other.source == f.source && other.state != lbNatStateNAT_CLOSED && m.lives(other) {
			free = false
		}
	}
	if other := m.places[f.spot()]; other != nil && other.state != lbNatStateNAT_CLOSED && m.lives(other) {
		free = false
	}
	own := false
	for _, n := range b.Pairs {
		own = own || m.state.Pairs[n].Source == f.source.Addr()
	}
	table := m.state.VIPs[f.source.Addr()].Tables[portTable(f.name.protocol)]
	if !own || !free || !m.share.Contains(f.source.Port()) || m.state.service(table, f.source.Port()) != 0 {
		m.wrong = fmt.Sprintf("a new flow towards %v has source %v: own address %v, free %v, share %v",
			f.backend, f.source, own, free, m.share)
	}
}

// track returns the flow as it is after a packet, which it becomes later.
func (m *model) track(f *translated, p *modelPacket, client bool) *translated {
	next := *f
	next.seen = m.now.tick
	data := p.payload > 0
	switch p.protocol {
	case lb.UDP:
		if !client {
			next.state = lbNatStateNAT_UDP_REPLIED
		}
	case lb.TCP:
		open := f.state == lbNatStateNAT_ESTABLISHED || f.state == lbNatStateNAT_CLOSING
		const synAck = testenv.SYN | testenv.ACK
		if !client && !open && p.flags&(synAck|testenv.RST) == synAck {
			next.sequence = p.seq + 1
		}
		next.follow(p.flags, data, client, p.flags&testenv.ACK != 0 && p.ack == f.sequence)
	}
	m.later(func() { *f = next })
	return &next
}

// wayBack is where a packet came from.
func (m *model) wayBack(p *modelPacket) lb.NextHop {
	hop := lb.NextHop{Interface: int(p.nic), Destination: [6]byte(p.frame[6:]), Source: m.nics[p.nic], Tags: len(p.tags)}
	for i, t := range p.tags {
		hop.VLANs[i] = t & 0xfff
	}
	return hop
}

// natReply translates a packet of a backend to a source address, if it is a reply.
func (m *model) natReply(p *modelPacket) string {
	f := m.places[natSpot{netip.AddrPortFrom(p.dst, p.ports[1]), netip.AddrPortFrom(p.src, p.ports[0]), p.protocol}]
	if f == nil || !m.lives(f) {
		return "no_service"
	}
	if _, ok := m.vip(f.name.vip.Addr()); !ok {
		return "no_service"
	}
	if p.opensInFragment() {
		return "fragment"
	}
	if p.hops() <= 1 {
		return "ttl"
	}
	m.track(f, p, false)
	m.reach("a nat reply")
	if m.state.Services[m.state.Backends[f.number].Service].Flags&lbServiceFlagsSERVICE_KEEPS_PORT != 0 {
		m.reach("a nat reply from a port that was kept")
	}
	packet := append([]byte(nil), p.ip()...)
	rewrite(packet, p.l4-p.l3, p.protocol, f.name.vip, f.name.client)
	m.beginFragments(p, packet, f, lbFragmentsWayFRAGMENTS_TO_CLIENT)
	spendHop(packet)
	out := m.emit(p, packet, f.lastHop)
	if out == "sent" {
		m.count(f.number, lbCounters{ReplyPackets: 1, ReplyBytes: uint64(p.length)})
	}
	return out
}

// rewrite gives a packet other ends.
func rewrite(packet []byte, l4 int, protocol lb.Protocol, src, dst netip.AddrPort) {
	check := l4 + 16
	if protocol == lb.UDP {
		check = l4 + 6
	}
	none := protocol == lb.UDP && be16(packet, check) == 0
	kept := be16(packet, check)
	setEnds(packet, src.Addr(), dst.Addr(), check)
	write(packet, l4, binary.BigEndian.AppendUint16(nil, src.Port()), check)
	write(packet, l4+2, binary.BigEndian.AppendUint16(nil, dst.Port()), check)
	switch {
	case none: // and it stays so (RFC 768, RFC 6935)
		binary.BigEndian.PutUint16(packet[check:], kept)
	case protocol == lb.UDP && be16(packet, check) == 0:
		binary.BigEndian.PutUint16(packet[check:], 0xffff)
	}
}

// setEnds writes addresses into an IP header, and what they change in checksums.
func setEnds(packet []byte, src, dst netip.Addr, checksums ...int) {
	at := 8
	if packet[0]>>4 == 4 {
		at = 12
		checksums = append(checksums[:len(checksums):len(checksums)], 10)
	}
	b := append(addressBytes(src, at), addressBytes(dst, at)...)
	write(packet, at, b, checksums...)
}

// addressBytes returns an address as the header in which addresses begin at the
// offset has them.
func addressBytes(a netip.Addr, at int) []byte {
	if at == 8 {
		b := a.As16()
		return b[:]
	}
	b := a.Unmap().As4()
	return b[:]
}
