package loader

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/sluice-lb/sluice/internal/lb"
)

// translated takes in a flow of full nat.
func (a *applying) translated(s *lb.FlowState) {
	if s.Phase == lb.FlowOver {
		a.overTranslated(s)
		return
	}
	state, ok := natStateOf(s)
	if !ok || !s.Source.IsValid() || s.Source.Port() == 0 {
		a.result.refuse(s, RefusedMalformed, "")
		return
	}
	backend, vip := a.backendOf(s, func(e serviceEntry) bool { return e.Forward == lb.NAT })
	if backend == 0 {
		return
	}
	number, ok := a.index.pairs[sideKey{s.Source.Addr(), s.Backend, s.Protocol}]
	if !ok {
		a.result.refuse(s, RefusedPair, "")
		return
	}
	want := a.entryOf(s, state, vip, backend)
	key := keyOf(&want)
	hash := a.names.hash(key)
	p, port := a.pairs[number], s.Source.Port()
	id := number<<16 | uint32(port)
	is := p.flow(port)
	if atomic.LoadUint32(&is.State) != uint32(lbNatStateNAT_FREE) && keyOf(is) == key && a.index.holds(uint32(is.Backend), is.Generation) {
		a.update(s, p, port, &want)
		return
	}
	// Whoever is in the way must go before the flow comes; so none of them may stay.
	other := a.findNat(key, hash)
	inTheWay := []obstacle{{id: id, why: RefusedPort}, {id: other, why: RefusedOther}}
	for i := range inTheWay {
		if o := &inTheWay[i]; o.id != 0 && !a.givesWay(o, want.LastSeen) {
			a.result.refuse(s, o.why, a.describe(o.id))
			return
		}
	}
	for i := range inTheWay {
		if o := &inTheWay[i]; o.id != 0 && !a.remove(o) {
			a.result.refuse(s, o.why, a.describe(o.id))
			return
		}
	}
	if why := a.write(p, port, &want, hash, id); why != "" {
		a.result.refuse(s, why, a.describe(id))
		return
	}
	a.result.Applied++
}

// entryOf is what the flow's entry is to be.
func (a *applying) entryOf(s *lb.FlowState, state lbNatState, vip, backend uint32) lbNatFlow {
	k := natKeyOf(&s.FlowID, vip)
	e := lbNatFlow{
		Client: k.client, ClientPort: k.clientPort, VipPort: k.vipPort, Vip: k.vip, Backend: uint16(backend),
		State: uint32(state), Flags: heldFlag, LastSeen: a.seen(s), BackendSequence: s.Sequence,
		Generation: a.index.state.Backends[backend].Generation,
	}
	for _, f := range []struct {
		set  bool
		flag lbNatFlags
	}{
		{k.udp, lbNatFlagsNAT_UDP}, {s.Opened, lbNatFlagsNAT_OPENED},
		{s.ClientFIN, lbNatFlagsNAT_FIN_CLIENT}, {s.BackendFIN, lbNatFlagsNAT_FIN_BACKEND},
	} {
		if f.set {
			e.Flags |= uint32(f.flag)
		}
	}
	a.index.setLastHop(&e, s.LastHop)
	return e
}

// ours tells whether a flow is this node's own: of what other nodes have told no
// packet has come here since.
func (p *toldPair) ours(port uint16, e *lbNatFlow) bool {
	t := p.of(port)
	return e.Flags&heldFlag == 0 || t == nil || !t.is(e) || !t.held || t.moved(e)
}

// An obstacle is a flow in whose place another node's would be.
type obstacle struct {
	id    uint32
	why   Refusal // of the other node's, if this one stays
	state uint32  // in which it was found to give way
}

// flowOutlived is by how many ticks a flow of another node must have outlived this node's
// own of the same client for that to give way, since the client has gone on there: 5 s.
const flowOutlived = 37

// givesWay tells whether an obstacle may end for a flow whose last packet came at seen: all
// but this node's own that are established, unless the client itself has gone on there. A
// handshake that the backend has answered stays, too: the program may have the client's
// answer in hand, and send it on, when the entry is ended.
func (f *FlowFeed) givesWay(o *obstacle, seen uint32) bool {
	p, port := f.pairs[o.id>>16], uint16(o.id)
	e, ok := p.read(port)
	if !ok {
		return false
	}
	o.state = e.State
	switch lbNatState(e.State) {
	case lbNatStateNAT_SYN_RECEIVED, lbNatStateNAT_ESTABLISHED, lbNatStateNAT_CLOSING, lbNatStateNAT_UDP_REPLIED:
		return f.void(&e, ticks()) || !p.ours(port, &e) || o.why == RefusedOther && int32(seen-e.LastSeen) > flowOutlived
	}
	return true
}

// remove ends an obstacle; false: it is another flow by now, or has got as far as one
// that stays.
func (a *applying) remove(o *obstacle) bool {
	return a.endFlow(a.pairs[o.id>>16], uint16(o.id), o.state, a.now) ||
		atomic.LoadUint32(&a.entry(o.id).State) == uint32(lbNatStateNAT_FREE)
}

// describe names the flow that is in the way.
func (a *applying) describe(id uint32) string {
	p, port := a.pairs[id>>16], uint16(id)
	e, _ := p.read(port)
	s, ok := a.index.translated(p, port, &e, a.now)
	if !ok || e.State == uint32(lbNatStateNAT_FREE) {
		return ""
	}
	return fmt.Sprintf("%v of %v to %v from %v", s.Client, s.VIP, s.Backend, netip.AddrPortFrom(p.entry.Source, port))
}

// claim has nobody else write the entry of a port; false: somebody does.
func (p *toldPair) claim(port uint16) bool {
	return atomic.OrUint32(&p.flow(port).Flags, claimedFlag)&claimedFlag == 0
}

// release lets go of an entry. A flow that is closed has its port in the ring; the
// program queues one that it has passed over meanwhile.
func (p *toldPair) release(port uint16) {
	f := p.flow(port)
	atomic.AndUint32(&f.Flags, ^claimedFlag)
	if atomic.LoadUint32(&f.State) == uint32(lbNatStateNAT_CLOSED) {
		p.requeue(port)
	}
}

// write makes a flow in the entry of a port, which is free: "", or why not. Until it has a
// state nobody goes by the entry; its name is there before.
func (a *applying) write(p *toldPair, port uint16, want *lbNatFlow, hash uint64, id uint32) Refusal {
	if !p.claim(port) {
		return RefusedPort // the program makes a flow of it
	}
	defer p.release(port)
	is := p.flow(port)
	if atomic.LoadUint32(&is.State) != uint32(lbNatStateNAT_FREE) {
		return RefusedPort // it has made one
	}
	a.unlink(is, id)
	is.Client, is.ClientPort, is.VipPort, is.Vip = want.Client, want.ClientPort, want.VipPort, want.Vip
	is.Backend, is.Generation = want.Backend, want.Generation
	setEntry(is, want)
	if !a.link(is, hash, id, a.now) {
		atomic.StoreUint32(&is.LastSeen, 0) // the port was not used
		return RefusedBucket
	}
	atomic.StoreUint32(&is.State, want.State)
	p.know(port, want)
	return ""
}

// setEntry writes what changes in a flow's life, but for its state.
func setEntry(is, want *lbNatFlow) {
	const all = toldFlags | heldFlag
	atomic.AndUint32(&is.Flags, want.Flags|^all)
	atomic.OrUint32(&is.Flags, want.Flags&all)
	atomic.StoreUint32(&is.LastSeen, want.LastSeen)
	is.BackendSequence = want.BackendSequence
	is.Interface, is.Mac, is.Vlans, is.Vlan = want.Interface, want.Mac, want.Vlans, want.Vlan
}

// update brings a flow up to date that is here already. The claim keeps the program
// from making another flow of its entry meanwhile.
func (a *applying) update(s *lb.FlowState, p *toldPair, port uint16, want *lbNatFlow) {
	if !p.claim(port) {
		a.result.Kept++
		return
	}
	defer p.release(port)
	is := p.flow(port)
	e, ok := p.read(port)
	if !ok || keyOf(&e) != keyOf(want) || e.State == uint32(lbNatStateNAT_FREE) ||
		p.ours(port, &e) && newer(e.LastSeen, want.LastSeen) || s.Phase == lb.FlowOpening && e.State > want.State {
		a.result.Kept++
		return
	}
	if e.State != want.State && !atomic.CompareAndSwapUint32(&is.State, e.State, want.State) {
		a.result.Kept++
		return
	}
	if int32(e.LastSeen-want.LastSeen) > 0 && p.ours(port, &e) {
		want.LastSeen = e.LastSeen
	}
	setEntry(is, want)
	p.know(port, want)
	a.result.Applied++
}

// overTranslated ends a flow that another node has ended.
func (a *applying) overTranslated(s *lb.FlowState) {
	service, vip := a.index.service(s.VIP, s.Protocol)
	if service == 0 {
		a.result.refuse(s, RefusedVIP, "")
		return
	}
	k := natKeyOf(&s.FlowID, vip)
	id := a.findNat(k, a.names.hash(k))
	if id == 0 {
		a.result.Ended++ // it is gone here, too
		return
	}
	p, port := a.pairs[id>>16], uint16(id)
	if s.Source.IsValid() && s.Source != netip.AddrPortFrom(p.entry.Source, port) {
		a.result.Ended++ // the client has another one by now
		return
	}
	// Who has ended it may know less of it than this node.
	e, _ := p.read(port)
	if worthTelling(&e) && !a.void(&e, a.now) && p.ours(port, &e) && newer(e.LastSeen, a.seen(s)) {
		a.result.Kept++
		return
	}
	p.forget(port) // who tells of the end need not be told
	if !a.endFlow(p, port, e.State, a.now) {
		a.result.Kept++
		return
	}
	a.result.Ended++
}
