package loader

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An Explanation is which way a packet would go at this moment, step by step.
// What the packet has not come to is nil.
type Explanation struct {
	Interface string            `json:"interface"` // it comes in by
	MAC       MAC               `json:"mac"`       // destination of its frame
	Packet    Headers           `json:"packet"`
	Flags     string            `json:"tcp_flags,omitempty"`
	VIP       bool              `json:"vip"` // whether its destination is one
	Service   *ExplainedService `json:"service,omitempty"`
	Rule      *ExplainedRule    `json:"rule,omitempty"`
	Slot      *ExplainedSlot    `json:"slot,omitempty"`
	Found     Found             `json:"found,omitempty"`
	Flow      *Flow             `json:"flow,omitempty"` // the entry that was found
	Backend   *ExplainedBackend `json:"backend,omitempty"`
	NewFlow   *ExplainedPort    `json:"new_flow,omitempty"` // of nat
	Sent      *Headers          `json:"sent,omitempty"`
	NextHop   *Link             `json:"next_hop,omitempty"`
	XDP       string            `json:"xdp"`               // XDP_TX and others
	Outcome   string            `json:"outcome"`           // sent, answered, or as Outcome.Name
	Dropped   bool              `json:"dropped"`           // else, with another outcome than sent and answered, the kernel has it
	Meaning   string            `json:"meaning,omitempty"` // of the outcome
	Advice    string            `json:"advice,omitempty"`
	Notes     []string          `json:"notes,omitempty"`
}

// An ExplainedService is the service that a packet is for, or comes back from.
type ExplainedService struct {
	Number    uint16        `json:"-"`
	Name      string        `json:"name"` // the data plane does not know it
	Protocol  string        `json:"protocol"`
	Addresses []lb.Frontend `json:"addresses"`
	Forward   string        `json:"forward"`
}

// An ExplainedRule says who may use the service, to the packet's source.
type ExplainedRule struct {
	Prefix netip.Prefix `json:"prefix"` // not valid: none holds the source
	Allow  bool         `json:"allow"`
}

// An ExplainedSlot is the slot of the packet's flow.
type ExplainedSlot struct {
	Number     uint32         `json:"number"`
	Of         uint32         `json:"of"`
	State      string         `json:"state"` // clean, tracked, settling
	Owner      netip.AddrPort `json:"owner"` // not valid: none
	Previous   netip.AddrPort `json:"previous_owner,omitzero"`
	WindowLeft Seconds        `json:"window_left_seconds,omitzero"` // of a tracked one
}

// An ExplainedBackend is where the packet goes.
type ExplainedBackend struct {
	Address netip.AddrPort `json:"address"`
	Leaving bool           `json:"leaving"` // the configuration has lost it
	Slots   int            `json:"slots"`   // of the service; 0: it gets nothing new
}

// An ExplainedPort is the source port that a new nat flow takes.
type ExplainedPort struct {
	Source  netip.Addr     `json:"source"`
	Port    uint16         `json:"port"` // 0: none is free
	First   uint16         `json:"first_port"`
	Last    uint16         `json:"last_port"`
	Towards netip.AddrPort `json:"towards"`
	// Ends tells that an older flow of the client's port ends first.
	Ends bool `json:"ends_an_older_flow"`
}

// Found says how the backend was found.
type Found string

// How a backend is found.
const (
	FoundSlot          Found = "slot"
	FoundHandshake     Found = "handshake"
	FoundHandshakeDone Found = "handshake_completed"
	FoundHandshakeData Found = "handshake_data"
	FoundPinned        Found = "pinned"
	FoundStraggler     Found = "straggler"
	FoundUDPNew        Found = "udp_new"
	FoundUDP           Found = "udp_lasting"
	FoundNAT           Found = "nat"
	FoundReply         Found = "nat_reply"
	FoundDNATReply     Found = "reply" // of nat without source NAT
	NewHandshake       Found = "new_handshake"
	NewHandshakeLost   Found = "new_handshake_lost"
	NewStraggler       Found = "new_straggler"
	NewUDP             Found = "new_udp"
	NewNAT             Found = "new_nat"
)

var foundNames = map[lbTraceFound]Found{
	lbTraceFoundFOUND_BY_SLOT:        FoundSlot,
	lbTraceFoundFOUND_HANDSHAKE:      FoundHandshake,
	lbTraceFoundFOUND_HANDSHAKE_DONE: FoundHandshakeDone,
	lbTraceFoundFOUND_HANDSHAKE_DATA: FoundHandshakeData,
	lbTraceFoundFOUND_PIN:            FoundPinned,
	lbTraceFoundFOUND_STRAGGLER:      FoundStraggler,
	lbTraceFoundFOUND_UDP_NEW:        FoundUDPNew,
	lbTraceFoundFOUND_UDP:            FoundUDP,
	lbTraceFoundFOUND_NAT:            FoundNAT,
	lbTraceFoundFOUND_REPLY:          FoundReply,
	lbTraceFoundNEW_HANDSHAKE:        NewHandshake,
	lbTraceFoundNEW_HANDSHAKE_LOST:   NewHandshakeLost,
	lbTraceFoundNEW_STRAGGLER:        NewStraggler,
	lbTraceFoundNEW_UDP:              NewUDP,
	lbTraceFoundNEW_NAT:              NewNAT,
}

var slotStates = map[lbSlotState]string{
	lbSlotStateSLOT_CLEAN: "clean", lbSlotStateSLOT_TRACKED: "tracked", lbSlotStateSLOT_SETTLING: "settling",
}

var xdpVerdicts = []string{"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"}

// Explain runs a packet. The error is one of the packet, or of the kernel.
func (e *Explainer) Explain(p Packet) (Explanation, error) {
	if err := p.Check(); err != nil {
		return Explanation{}, fmt.Errorf("explain a packet: %w", err)
	}
	x := Explanation{Interface: e.name, MAC: e.nic.Mac}
	if p.MAC != nil {
		x.MAC = *p.MAC
	}
	frame := p.frame(x.MAC, e.sequence(p))
	verdict, out, t, err := e.foresee(frame)
	if err != nil {
		return x, fmt.Errorf("explain a packet: %w", err)
	}
	if _, x.Packet, err = readFrame(frame); err != nil {
		return x, fmt.Errorf("explain a packet: %w", err)
	}
	if p.Protocol == lb.TCP {
		x.Flags = p.Flags.String()
	}
	s := e.pinned.state
	_, x.VIP = s.VIPs[p.Destination.Addr()]
	e.outcome(&x, verdict, t)
	e.service(&x, p, t)
	if err := e.decision(&x, p, t); err != nil {
		return x, err
	}
	e.reply(&x, p)
	if x.Outcome == OutcomeSent || x.Outcome == OutcomeAnswered {
		link, sent, err := readFrame(out)
		if err != nil {
			return x, fmt.Errorf("explain a packet: read how it leaves: %w", err)
		}
		link.Interface = interfaceName(t.Interface)
		if x.Outcome == OutcomeAnswered {
			link.Interface = x.Interface
		}
		x.NextHop, x.Sent = &link, &sent
	}
	if e.note != "" {
		x.Notes = append(x.Notes, e.note)
	}
	return x, nil
}

// The outcomes that are counted elsewhere.
const (
	OutcomeSent     = "sent"
	OutcomeAnswered = "answered"
)

// sequence is a packet's sequence number.
func (e *Explainer) sequence(p Packet) uint32 {
	if p.Sequence != nil {
		return *p.Sequence
	}
	key, ok := e.flowKey(p)
	var shake lbPin
	if p.Protocol != lb.TCP || !ok || e.pinned.maps.Handshakes.Lookup(&key, &shake) != nil {
		return 1
	}
	if p.Flags&TCPSyn != 0 {
		return shake.Sequence
	}
	return shake.Sequence + 1
}

// flowKey names the packet's flow in the flow tables; false: its destination is no
// VIP.
func (e *Explainer) flowKey(p Packet) (lbFlowKey, bool) {
	vip, ok := e.pinned.state.VIPs[p.Destination.Addr()]
	return lbFlowKey{
		Client: mapped(p.Source.Addr()), ClientPort: bigEndian16(p.Source.Port()),
		Vip: vip.Index, VipPort: bigEndian16(p.Destination.Port()), Protocol: uint32(p.Protocol),
	}, ok
}

func (e *Explainer) outcome(x *Explanation, verdict uint32, t lbTrace) {
	x.XDP = fmt.Sprint(verdict)
	if int(verdict) < len(xdpVerdicts) {
		x.XDP = xdpVerdicts[verdict]
	}
	switch o := lbOutcome(t.Outcome); o {
	case lbOutcomeSENT:
		x.Outcome = OutcomeSent
	case lbOutcomeANSWERED:
		x.Outcome = OutcomeAnswered
		x.Meaning, x.Advice = "too long for the tunnel: the client is told the length that fits", OutcomeMeanings["too_big"].Advice
	default:
		x.Outcome, x.Dropped = outcomeNames[o], o >= lbOutcomeDROP_MALFORMED_IP
		x.Meaning, x.Advice = OutcomeMeanings[x.Outcome].Text, OutcomeMeanings[x.Outcome].Advice
	}
}

// service fills in the service and its rule.
func (e *Explainer) service(x *Explanation, p Packet, t lbTrace) {
	s := e.pinned.state
	number := uint16(t.Service)
	if number == 0 && t.Backend != 0 {
		number = s.Backends[t.Backend].Service // of a reply
	}
	if number == 0 {
		return
	}
	x.Service = e.explainedService(number)
	flags := s.Services[number].Flags
	if t.Service == 0 || flags&(lbServiceFlagsSERVICE_RULES|lbServiceFlagsSERVICE_ALLOW_ONLY) == 0 {
		return
	}
	rule := ExplainedRule{Allow: flags&lbServiceFlagsSERVICE_ALLOW_ONLY == 0}
	for id, allow := range s.Rules {
		if id.Service == number && id.Prefix.Contains(p.Source.Addr()) && (!rule.Prefix.IsValid() || id.Prefix.Bits() > rule.Prefix.Bits()) {
			rule = ExplainedRule{id.Prefix, allow}
		}
	}
	x.Rule = &rule
}

func (e *Explainer) explainedService(number uint16) *ExplainedService {
	s := e.pinned.state
	v := s.view(number, s.addresses())
	return &ExplainedService{Number: number, Protocol: v.Protocol.String(), Addresses: v.Addresses, Forward: v.Forward.String()}
}

func (e *Explainer) backend(number uint32) *ExplainedBackend {
	b := e.pinned.state.Backends[number]
	x := &ExplainedBackend{Address: b.Address, Leaving: b.Leaving != 0}
	for _, w := range e.pinned.state.Slots[b.Service] {
		if w.owner() == number {
			x.Slots++
		}
	}
	return x
}

// decision fills in how the backend was found.
func (e *Explainer) decision(x *Explanation, p Packet, t lbTrace) error {
	s := e.pinned.state
	found := lbTraceFound(t.Found)
	if t.Backend == 0 && t.Outcome != uint32(lbOutcomeDROP_NO_BACKEND) {
		return nil
	}
	x.Found = foundNames[found]
	if service := s.Services[uint16(t.Service)]; t.Hash != 0 && service.Count != 0 {
		w := slot(t.Slot)
		x.Slot = &ExplainedSlot{
			Number: Slot(t.Hash, service.Count), Of: service.Count, State: slotStates[w.state()],
			Owner: s.Backends[w.owner()].Address, Previous: s.Backends[w.previous()].Address,
		}
		if w.state() == lbSlotStateSLOT_TRACKED {
			x.Slot.WindowLeft = Seconds(w.left(sinceBoot()))
		}
	}
	if t.Backend != 0 {
		x.Backend = e.backend(t.Backend)
	}
	switch found {
	case lbTraceFoundFOUND_NAT, lbTraceFoundFOUND_REPLY:
		return e.natFlow(x, t)
	case lbTraceFoundNEW_NAT:
		if pair, ok := s.Pairs[t.Pair]; ok && t.Backend != 0 && slices.Contains(s.Backends[t.Backend].Pairs, t.Pair) {
			x.NewFlow = &ExplainedPort{
				Source: pair.Source, Port: uint16(t.Port), First: pair.Share.First, Last: pair.Share.Last,
				Towards: netip.AddrPortFrom(pair.Address.Addr(), cmp.Or(pair.Address.Port(), p.Destination.Port())), Ends: t.VoidFlow != 0,
			}
		}
	default:
		e.pinnedFlow(x, p, found)
	}
	return nil
}

// natFlow fills in the flow that a packet is translated by.
func (e *Explainer) natFlow(x *Explanation, t lbTrace) error {
	q, err := e.pinned.tables.openQueue(t.Pair)
	if err != nil {
		return err
	}
	defer q.close()
	r := flowReader{state: e.pinned.state, now: ticks(), vips: e.pinned.state.vipsByIndex()}
	if flow, ok := r.translated(*q.flow(uint16(t.Port)), t.Pair, uint16(t.Port)); ok {
		x.Flow = &flow
	}
	return nil
}

// pinnedFlow fills in the entry of a flow table that the program has found.
func (e *Explainer) pinnedFlow(x *Explanation, p Packet, found lbTraceFound) {
	m := &e.pinned.maps
	flow := Flow{Kind: FlowUDP, State: "lasting"}
	table, life := m.UdpFlows, udpIdle
	switch found {
	case lbTraceFoundFOUND_HANDSHAKE, lbTraceFoundFOUND_HANDSHAKE_DONE, lbTraceFoundFOUND_HANDSHAKE_DATA:
		flow.Kind, flow.State, table, life = FlowHandshake, "", m.Handshakes, handshakeIdle
	case lbTraceFoundFOUND_PIN:
		flow.Kind, table, life = FlowPinned, m.Pins, pinIdle
	case lbTraceFoundFOUND_STRAGGLER:
		flow.Kind, table, life = FlowStraggler, m.Stragglers, pinIdle
	case lbTraceFoundFOUND_UDP_NEW:
		flow.State, table = "new", m.UdpNew
	case lbTraceFoundFOUND_UDP:
	default:
		return
	}
	key, ok := e.flowKey(p)
	var pin lbPin
	if !ok || table.Lookup(&key, &pin) != nil {
		return // it went this very moment
	}
	if flow.Kind == FlowPinned || flow.Kind == FlowStraggler {
		life = readPinned(&flow, pin)
	}
	r := flowReader{state: e.pinned.state, now: ticks(), vips: e.pinned.state.vipsByIndex()}
	// The program goes by it until Maintain drops it, also when its life is over.
	r.pinned(&flow, key, pin, life)
	flow.Left = max(flow.Left, 0)
	x.Flow = &flow
}

func interfaceName(index uint32) string {
	nic, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return fmt.Sprintf("interface %d", index)
	}
	return nic.Name
}

// String writes the names of the flags.
func (f TCPFlags) String() string {
	var names []string
	for i, name := range tcpFlagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

var tcpFlagNames = []string{"fin", "syn", "rst", "psh", "ack"}

// ParseTCPFlags reads names of flags with commas between them; "none": no flag.
func ParseTCPFlags(text string) (TCPFlags, error) {
	var f TCPFlags
	if text == "none" {
		return 0, nil
	}
	for _, name := range strings.Split(strings.ToLower(text), ",") {
		i := slices.Index(tcpFlagNames, strings.TrimSpace(name))
		if i < 0 {
			return 0, fmt.Errorf("tcp flag %q is none of %s", name, strings.Join(tcpFlagNames, ", "))
		}
		f |= 1 << i
	}
	return f, nil
}
