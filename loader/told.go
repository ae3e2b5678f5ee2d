package loader

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// toldFlags are the flags of a nat flow that other nodes are told of.
const toldFlags = uint32(lbNatFlagsNAT_FIN_CLIENT | lbNatFlagsNAT_FIN_BACKEND | lbNatFlagsNAT_OPENED | lbNatFlagsNAT_UDP)

const (
	claimedFlag = uint32(lbNatFlagsNAT_CLAIMED)
	heldFlag    = uint32(lbNatFlagsNAT_HELD)
	queuedFlag  = uint32(lbNatFlagsNAT_QUEUED)
)

// A toldFlow is what other nodes know of the flow of a port. The entry itself may be
// another flow's by the time that this one's end is to be told. The zero value is none.
type toldFlow struct {
	client              [2]uint64 // these four as in the entry
	seen                uint32    // when its last packet came, as they know it
	clientPort, vipPort uint16
	vip                 uint16
	state, flags        uint8
	held                bool // as NAT_HELD
}

func (t *toldFlow) known() bool { return t.state != 0 }

// is tells whether an entry is this flow's.
func (t *toldFlow) is(e *lbNatFlow) bool {
	return t.known() && t.client == e.Client && t.clientPort == e.ClientPort && t.vipPort == e.VipPort && t.vip == e.Vip
}

// moved tells whether its entry has changed by packets of its own.
func (t *toldFlow) moved(e *lbNatFlow) bool {
	return t.seen != e.LastSeen || uint32(t.state) != e.State || uint32(t.flags) != e.Flags&toldFlags
}

// learn makes it what an entry says.
func (t *toldFlow) learn(e *lbNatFlow) {
	*t = toldFlow{
		client: e.Client, clientPort: e.ClientPort, vipPort: e.VipPort, vip: e.Vip, seen: e.LastSeen,
		state: uint8(e.State), flags: uint8(e.Flags & toldFlags), held: e.Flags&heldFlag != 0,
	}
}

// worthTelling tells whether other nodes are to know of a flow.
func worthTelling(e *lbNatFlow) bool {
	switch lbNatState(e.State) {
	case lbNatStateNAT_ESTABLISHED, lbNatStateNAT_CLOSING, lbNatStateNAT_UDP_REPLIED:
		return true
	case lbNatStateNAT_CLOSED:
		return e.Flags&uint32(lbNatFlagsNAT_OPENED) != 0
	}
	return false
}

// portsPerWord is how many ports have their news in one word.
const portsPerWord = int(lbLimitsNAT_PORTS) / int(lbLimitsNAT_NEWS_WORDS)

// A toldPair is a pair and what other nodes know of its flows.
type toldPair struct {
	number uint32
	entry  pairEntry
	*portQueue
	news words
	told [lbLimitsNAT_NEWS_WORDS]*[portsPerWord]toldFlow // nil: of none
	// open is how many flows told has that are not closed, by VIP.
	open map[uint16]int
}

// of returns what other nodes know of a port's flow; nil: nothing.
func (p *toldPair) of(port uint16) *toldFlow {
	if w := p.told[int(port)/portsPerWord]; w != nil && w[int(port)%portsPerWord].known() {
		return &w[int(port)%portsPerWord]
	}
	return nil
}

// know remembers that other nodes know what an entry says.
func (p *toldPair) know(port uint16, e *lbNatFlow) {
	w := &p.told[int(port)/portsPerWord]
	if *w == nil {
		*w = new([portsPerWord]toldFlow)
	}
	t := &(*w)[int(port)%portsPerWord]
	before := *t
	t.learn(e)
	if before.vip != t.vip || before.goesOn() != t.goesOn() {
		p.count(&before, -1)
		p.count(t, 1)
	}
}

// goesOn tells whether there is one, and it is not closed.
func (t *toldFlow) goesOn() bool { return t.known() && t.state != uint8(lbNatStateNAT_CLOSED) }

// count counts a flow that goes on in, or out.
func (p *toldPair) count(t *toldFlow, by int) {
	if !t.goesOn() {
		return
	}
	if p.open[t.vip] += by; p.open[t.vip] == 0 {
		delete(p.open, t.vip)
	}
}

// forget remembers that they know of none.
func (p *toldPair) forget(port uint16) {
	if t := p.of(port); t != nil {
		p.count(t, -1)
		*t = toldFlow{}
	}
}

// newsMark is the word of the pair's entry that says where to look.
func (p *toldPair) newsMark() *uint64 { return p.word(unsafe.Offsetof(lbNatPair{}.News)) }

// inShare tells whether this node may hand the port out.
func (p *toldPair) inShare(port uint16) bool {
	w := atomic.LoadUint64(p.word(unsafe.Offsetof(lbNatPair{}.FirstPort)))
	return port >= uint16(w) && port <= uint16(w>>16)
}

// openTold opens a pair. What it has already other nodes count as told of: who
// connects gets all of it first.
func (t *tables) openTold(n uint32, e pairEntry) (*toldPair, error) {
	q, err := t.openQueue(n)
	if err != nil {
		return nil, err
	}
	p := &toldPair{number: n, entry: e, portQueue: q, open: map[uint16]int{}}
	var inner *ebpf.Map
	if err := t.objects.NatNews.Lookup(n, &inner); err != nil {
		q.close()
		return nil, fmt.Errorf("open the news of pair %d: %w", n, err)
	}
	defer inner.Close()
	if p.news, err = mapWords(inner); err != nil {
		q.close()
		return nil, err
	}
	for port := range int(lbLimitsNAT_PORTS) {
		if q.flow(uint16(port)).State == uint32(lbNatStateNAT_FREE) {
			continue
		}
		if e, ok := p.read(uint16(port)); ok && worthTelling(&e) {
			p.know(uint16(port), &e)
		}
	}
	return p, nil
}

func (p *toldPair) close() {
	p.portQueue.close()
	// Unmapping what mapWords has mapped can't fail.
	_ = p.news.close()
}

// read returns a flow's entry as it was at one moment; false: it changes all the time.
// The program writes an entry while its state says that it is free.
func (q *portQueue) read(port uint16) (lbNatFlow, bool) {
	f := q.flow(port)
	for range 4 {
		first := *f
		state := atomic.LoadUint32(&f.State)
		again := *f
		if first == again && state == first.State {
			return first, true
		}
	}
	return lbNatFlow{}, false
}

// makeNews makes the map of what is to be told of a pair.
func makeNews() (*ebpf.Map, error) {
	specs, err := natSpecs()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	return ebpf.NewMap(specs.news)
}

// ensureNews makes those of pairs that an earlier version has made.
func (t *tables) ensureNews(s *State) error {
	return forAll(slices.Collect(maps.Keys(s.Pairs)), func(n uint32) error {
		var id uint32
		if t.objects.NatNews.Lookup(n, &id) == nil {
			return nil
		}
		m, err := makeNews()
		if err == nil {
			err = t.objects.NatNews.Put(n, uint32(m.FD()))
			m.Close() // the table of tables holds it
		}
		if err != nil {
			return fmt.Errorf("make the table of news of pair %d: %w", n, err)
		}
		return nil
	})
}

// phases are those of nat flows by their state.
var phases = [lbNatStateNAT_STATES]lb.FlowPhase{
	lbNatStateNAT_SYN_SENT:     lb.FlowOpening,
	lbNatStateNAT_SYN_RECEIVED: lb.FlowOpening,
	lbNatStateNAT_ESTABLISHED:  lb.FlowOpen,
	lbNatStateNAT_UDP_REPLIED:  lb.FlowOpen,
	lbNatStateNAT_CLOSING:      lb.FlowClosing,
	lbNatStateNAT_CLOSED:       lb.FlowClosed,
}

// natStateOf is the reverse; false: no flow that nodes tell of is so.
func natStateOf(s *lb.FlowState) (lbNatState, bool) {
	udp := s.Protocol == lb.UDP
	switch {
	case s.Phase == lb.FlowOpening && (udp || s.Sequence == 0):
		return lbNatStateNAT_SYN_SENT, true
	case s.Phase == lb.FlowOpening:
		return lbNatStateNAT_SYN_RECEIVED, true
	case s.Phase == lb.FlowOpen && udp:
		return lbNatStateNAT_UDP_REPLIED, true
	case s.Phase == lb.FlowOpen:
		return lbNatStateNAT_ESTABLISHED, true
	case s.Phase == lb.FlowClosing && !udp:
		return lbNatStateNAT_CLOSING, true
	case s.Phase == lb.FlowClosed && !udp:
		return lbNatStateNAT_CLOSED, true
	}
	return 0, false
}
