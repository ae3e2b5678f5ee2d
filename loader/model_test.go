package loader

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A model is the data plane in Go, written from bpf/DATAPATH.md and the RFCs: it
// takes the tables as a State, and a frame, and says what becomes of it. A stage
// of the program is a file here: model_packet_test.go, model_balance_test.go and
// so on. A stage returns an outcome, or "" where the next one goes on.
type model struct {
	state    *State
	nics     map[uint32][6]byte
	clients  map[netip.Addr]lb.NextHop // that the node has routes to
	share    lb.PortRange
	fences   []*modelFence
	timeouts map[lbNatState]time.Duration
	reached  map[string]int // how often a test came to a place of the model
	memory

	// Of the packet in hand.
	now  moment
	seen []byte // the frame that the program sent: it says what the program was free to choose
	answer
}

// A memory is what the data plane has kept of packets that have come.
type memory struct {
	handshakes, pins, stragglers map[flowName]pinned
	udpNew, udpFlows             map[flowName]pinned
	fragments                    map[fragmentName]fragmented
	replyFragments               map[fragmentName]repliedTo
	dues                         map[visitorName]due
	flows                        map[flowName]*translated
	places                       map[natSpot]*translated
	traffic                      map[uint32]lbCounters // by backend
	others                       map[*modelFence]bool  // instances whose VIPs another node has said it has
}

func newMemory() memory {
	return memory{
		handshakes: map[flowName]pinned{}, pins: map[flowName]pinned{}, stragglers: map[flowName]pinned{},
		udpNew: map[flowName]pinned{}, udpFlows: map[flowName]pinned{},
		fragments: map[fragmentName]fragmented{}, replyFragments: map[fragmentName]repliedTo{}, dues: map[visitorName]due{},
		flows: map[flowName]*translated{}, places: map[natSpot]*translated{},
		traffic: map[uint32]lbCounters{}, others: map[*modelFence]bool{},
	}
}

// A flowName is a flow as its client names it.
type flowName struct {
	client, vip netip.AddrPort
	protocol    lb.Protocol
}

// A moment is when a packet was handled: in this tick, and between two readings
// of the monotonic clock.
type moment struct {
	tick          uint32
	before, after time.Duration
}

// An answer is what becomes of a frame.
type answer struct {
	Verdict uint32
	Outcome string      // as outcomeNames; "sent", "answered"
	Frame   []byte      // as it leaves, or passes; nil where it is dropped
	wrong   string      // what the program chose and may not choose
	opened  *translated // a new flow of nat
	claims  *modelFence // an instance whose VIPs the frame says another node has
	changes []func()
}

// step says what becomes of a frame that comes in by an interface. Nothing is
// remembered before the answer's changes are made, so that a step may be taken
// again for another moment.
func (m *model) step(nic uint32, frame []byte, now moment, seen []byte) answer {
	m.now, m.seen, m.answer = now, seen, answer{}
	p := &modelPacket{frame: frame, nic: nic}
	m.Outcome = m.decide(p)
	switch m.Outcome {
	case "not_vip", "protocol", "later_fragment", "no_service":
		m.Outcome = m.keepOut(p, m.Outcome)
	}
	switch {
	case m.Outcome == "sent" || m.Outcome == "answered" || m.Outcome == "who_has":
	case dropped[m.Outcome]:
		m.Verdict, m.Frame = xdpDrop, nil
	default:
		m.Verdict, m.Frame = xdpPass, m.toKernel(p)
	}
	m.reach(m.Outcome)
	return m.answer
}

// reach counts that an answer came by this place.
func (m *model) reach(place string) { m.later(func() { m.reached[place]++ }) }

// later has a change made once the answer is known to be right.
func (m *model) later(change func()) { m.changes = append(m.changes, change) }

// decide is a packet's walk.
func (m *model) decide(p *modelPacket) string {
	if out := p.readLink(); out != "" {
		return m.owner(p, out)
	}
	vip, ok := m.vip(p.dst)
	if !ok {
		if out := m.owner(p, "not_vip"); out != "not_vip" {
			return out
		}
		return m.fromBackend(p)
	}
	if !m.toNode(p) {
		return "other_mac"
	}
	if out := p.readIP(); out != "" {
		return out
	}
	if !p.mayHavePorts() {
		if out := m.icmp(p, vip); out != "protocol" {
			return out
		}
		return m.owner(p, "protocol")
	}
	if p.fragment.offset > 0 {
		return m.followFragment(p)
	}
	if out := p.readTransport(); out != "" {
		return out
	}
	number := m.state.service(vip.Tables[portTable(p.protocol)], p.ports[1])
	if number == 0 {
		return m.otherPort(p, vip)
	}
	return m.toService(p, number)
}

// vip returns a VIP or source address. That of IPv4 is nobody's in an IPv6
// header, however it is written (RFC 4291, section 2.5.5.2).
func (m *model) vip(a netip.Addr) (vipEntry, bool) {
	v, ok := m.state.VIPs[a]
	return v, ok && !a.Is4In6()
}

// otherPort is a packet to a port that is no service.
func (m *model) otherPort(p *modelPacket, vip vipEntry) string {
	if vip.Source {
		if out := m.natReply(p); out != "no_service" {
			return out
		}
	}
	if p.fragment.is() {
		m.rememberFragment(p, 0, 0)
	}
	return "no_service"
}

// toService is a packet to the port of a service.
func (m *model) toService(p *modelPacket, number uint16) string {
	s := m.state.Services[number]
	if out := m.guard(p, number, s); out != "" {
		return out
	}
	if s.Forward == lb.NAT {
		return m.natForward(p, number, s)
	}
	p.hash = hashOf(p.flow(), s)
	if s.Forward == lb.Proxy {
		return m.overNodes(p, number, s)
	}
	owner := m.ownerOf(p, number, s)
	if owner == 0 {
		return "no_backend"
	}
	if p.fragment.is() {
		m.rememberFragment(p, owner, uint32(p.hash>>32))
	}
	return m.sendTo(p, owner, s.Forward)
}

// sendTo sends a packet to a backend in a stateless mode, and counts it.
func (m *model) sendTo(p *modelPacket, number uint32, forward lb.Forward) string {
	out := m.emitTo(p, number, forward)
	if out == "sent" || out == "here" {
		m.count(number, lbCounters{Packets: 1, Bytes: uint64(p.length), Flows: p.opened()})
	}
	return out
}

// emitTo is sendTo without the counting.
func (m *model) emitTo(p *modelPacket, number uint32, forward lb.Forward) string {
	switch forward {
	case lb.Tunnel:
		return m.tunnel(p, number)
	case lb.DNAT:
		return m.toDNAT(p, number)
	case lb.Proxy:
		return m.towardsNode(p, number)
	}
	return m.emit(p, p.frame[p.l3:], m.state.Backends[number].NextHop)
}

func (m *model) count(number uint32, c lbCounters) {
	m.later(func() {
		sum := m.traffic[number]
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
		sum.Flows += c.Flows
		sum.ReplyPackets += c.ReplyPackets
		sum.ReplyBytes += c.ReplyBytes
		m.traffic[number] = sum
	})
}
