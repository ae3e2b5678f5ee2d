package lb

import (
	"cmp"
	"net/netip"
	"time"
)

// A FlowKind says why a flow has an entry of its own.
type FlowKind uint8

// The kinds of flows that nodes tell each other of. Handshakes are not among them:
// a connection is told once it is open.
const (
	FlowTranslated FlowKind = 1 // of nat
	FlowPinned     FlowKind = 2 // TCP, in a slot that is not clean
	FlowStraggler  FlowKind = 3 // the same, without a handshake that was seen
	FlowDatagrams  FlowKind = 4 // UDP, of a service with affinity: flow
)

// A FlowPhase is how far a flow has come.
type FlowPhase uint8

// The phases of a flow.
const (
	FlowOver    FlowPhase = 0 // it has no entry any more
	FlowOpening FlowPhase = 1 // nat, UDP: no answer yet
	FlowOpen    FlowPhase = 2
	FlowClosing FlowPhase = 3 // one side has sent FIN; of a pinned one, FIN or RST has been seen
	FlowClosed  FlowPhase = 4 // nat: both have, or an RST has been seen; stragglers are translated still
)

// A FlowID is what makes a flow the same one on two nodes. Client, VIP and Protocol
// are as the client's packets have them.
type FlowID struct {
	Kind     FlowKind
	Protocol Protocol
	Client   netip.AddrPort
	VIP      netip.AddrPort
}

// A FlowState is what one node tells another of a flow.
type FlowState struct {
	FlowID
	Phase   FlowPhase
	Backend netip.AddrPort
	Source  netip.AddrPort // FlowTranslated: what the backend sees
	// Idle is how long ago its last packet was.
	Idle time.Duration

	// Of FlowTranslated:

	// Opened tells that the client has answered the backend's SYN.
	Opened bool
	// ClientFIN and BackendFIN tell who has sent FIN.
	ClientFIN, BackendFIN bool
	// Sequence is what the client acknowledges first, host byte order.
	Sequence uint32
	// LastHop is where the client's packets come from; the way of the replies.
	LastHop LastHop
}

// A LastHop is the neighbour that a client's packets come from. The zero value is
// none.
type LastHop struct {
	Interface string // the NIC
	MAC       [6]byte
	VLANs     [2]uint16
	Tags      int // how many of VLANs count, outer first
}

// A SlotPhase is the state of a slot of a service's table.
type SlotPhase uint8

// The phases of a slot. Their numbers are those of enum slot_state in bpf/types.h.
const (
	SlotClean    SlotPhase = 0 // its owner has every flow
	SlotTracked  SlotPhase = 1 // older flows are its previous owner's; its window is open
	SlotSettling SlotPhase = 2 // the window has closed, some pins are left
)

// A Slot is one slot of a service's table.
type Slot struct {
	Owner    uint16 // index into TableState.Backends, plus 1; 0: none
	Previous uint16 // likewise
	Phase    SlotPhase
	Left     time.Duration // SlotTracked: until its window closes, in whole seconds
}

// A TableBackend is a backend that a table knows.
type TableBackend struct {
	Address netip.AddrPort
	Failed  bool // what it served is void
	Leaving bool // the configuration has it no more; it keeps what it serves
}

// An Epoch numbers the tables of a service in the order in which they were in force.
type Epoch struct {
	Term   uint64 // of the node that made it: grows with each node that takes over
	Number uint64 // of the table, within the term
}

// Less tells whether e is older than o.
func (e Epoch) Less(o Epoch) bool {
	return e.Term < o.Term || e.Term == o.Term && e.Number < o.Number
}

// A TableState is a service's table, as one node tells another of it.
type TableState struct {
	Service  string
	Epoch    Epoch
	Backends []TableBackend
	Slots    []Slot
}

// An OperatorChange is what an operator has made of a server, as one node tells another
// of it. Of two changes of one server the later counts, whichever node it was made on.
type OperatorChange struct {
	Scope   string // name of a pool or a service
	Address string // of the server, with a port where two have one address
	State   string // drain, disable; "": neither
	Weight  int    // -1: the configured one
	// Time is when it was made, by the clock of Node, but after what was known of the
	// server then. At one time the node with the greater name counts.
	Time time.Time
	Node string
}

// None tells whether it undoes all that was changed before.
func (c OperatorChange) None() bool { return c.State == "" && c.Weight < 0 }

// After tells whether c counts, and not o, where both are about one server. Whoever is
// asked says the same, also of changes of which nobody knows when they were made.
func (c OperatorChange) After(o OperatorChange) bool {
	return cmp.Or(c.Time.Compare(o.Time), cmp.Compare(c.Node, o.Node), cmp.Compare(c.State, o.State), cmp.Compare(c.Weight, o.Weight)) > 0
}
