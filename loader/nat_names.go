package loader

import (
	"sync/atomic"

	"github.com/sluice-lb/sluice/internal/lb"
)

// natNames is the table of the names of nat flows as the XDP program uses it, at the
// same time: bpf/nat_table.h.
type natNames struct {
	words words
	seed  uint64
	mask  uint32
}

// natKey is what a client's packets are found by, as an entry has it.
type natKey struct {
	client              [2]uint64
	clientPort, vipPort uint16
	vip                 uint16
	udp                 bool
}

func keyOf(e *lbNatFlow) natKey {
	return natKey{e.Client, e.ClientPort, e.VipPort, e.Vip, e.Flags&uint32(lbNatFlagsNAT_UDP) != 0}
}

// natKeyOf is the key of a flow of a VIP with this index.
func natKeyOf(id *lb.FlowID, vip uint32) natKey {
	return natKey{
		client: mapped(id.Client.Addr()), clientPort: bigEndian16(id.Client.Port()),
		vipPort: bigEndian16(id.VIP.Port()), vip: uint16(vip), udp: id.Protocol == lb.UDP,
	}
}

// hash is nat_hash.
func (n *natNames) hash(k natKey) uint64 {
	udp := uint64(0)
	if k.udp {
		udp = 1
	}
	rest := udp<<48 | uint64(k.vip)<<32 | uint64(k.clientPort)<<16 | uint64(k.vipPort)
	low := k.client[1]<<32 | k.client[1]>>32
	return mix(mix((low^k.client[0]*golden)+n.seed) + rest)
}

// buckets are the two that a name may stand in: first_bucket, second_bucket.
func (n *natNames) buckets(hash uint64) [2]uint32 {
	return [2]uint32{uint32(hash) & n.mask, (uint32(hash) ^ (uint32(hash>>32)|1)*0x5bd1e995) & n.mask}
}

// nameOf is the word that names a flow: its pair << 16 | port.
func nameOf(hash uint64, id uint32) uint64 { return hash>>32<<32 | uint64(id) }

const natWays = int(lbLimitsNAT_WAYS)

// findNat returns the flow of a key, whatever its age, or 0: pair << 16 | port.
func (f *FlowFeed) findNat(k natKey, hash uint64) uint32 {
	for _, b := range f.names.buckets(hash) {
		for i := int(b) * natWays; i < (int(b)+1)*natWays; i++ {
			w := f.names.words.load(i)
			if id := uint32(w); id != 0 && w>>32 == hash>>32 {
				if e := f.entry(id); e != nil && atomic.LoadUint32(&e.State) != uint32(lbNatStateNAT_FREE) && keyOf(e) == k {
					return id
				}
			}
		}
	}
	return 0
}

// entry returns that of a flow; nil: its pair is gone.
func (f *FlowFeed) entry(id uint32) *lbNatFlow {
	if n := id >> 16; n < uint32(len(f.pairs)) && f.pairs[n] != nil {
		return f.pairs[n].flow(uint16(id))
	}
	return nil
}

// link puts the name of a flow into one of its buckets; false: both are full.
func (f *FlowFeed) link(e *lbNatFlow, hash uint64, id uint32, now uint32) bool {
	for _, makeRoom := range []bool{false, true} {
		for _, b := range f.names.buckets(hash) {
			for i := int(b) * natWays; i < (int(b)+1)*natWays; i++ {
				empty := f.names.words.load(i) == 0 || makeRoom && f.endName(i, now)
				if !empty {
					continue
				}
				atomic.StoreUint32(&e.Bucket, uint32(i))
				if f.names.words.swap(i, 0, nameOf(hash, id)) {
					return true
				}
			}
		}
	}
	return false
}

// unlink takes a flow's name out of the table, if it still stands there.
func (f *FlowFeed) unlink(e *lbNatFlow, id uint32) {
	i := int(atomic.LoadUint32(&e.Bucket))
	if i >= len(f.names.words.memory)/8 {
		return
	}
	if w := f.names.words.load(i); uint32(w) == id {
		f.names.words.swap(i, w, 0)
	}
}

// endName empties a word that names a flow which is over, or nothing: whether it is
// empty.
func (f *FlowFeed) endName(where int, now uint32) bool {
	w := f.names.words.load(where)
	id := uint32(w)
	e := f.entry(id)
	switch {
	case w == 0:
		return true
	case e == nil:
		return f.names.words.swap(where, w, 0)
	}
	state, here := atomic.LoadUint32(&e.State), atomic.LoadUint32(&e.Bucket) == uint32(where)
	if state == uint32(lbNatStateNAT_FREE) {
		// A flow that begins has its name here already; of others it is forgotten.
		return !here && f.names.words.swap(where, w, 0)
	}
	if !here || !f.void(e, now) && !natOver(e) {
		return false
	}
	return f.endFlow(f.pairs[id>>16], uint16(id), state, now)
}

// natOver is nat_over: whether the client may use its port for another connection.
func natOver(e *lbNatFlow) bool {
	both := uint32(lbNatFlagsNAT_FIN_CLIENT | lbNatFlagsNAT_FIN_BACKEND)
	return e.State == uint32(lbNatStateNAT_CLOSED) && (e.Flags&uint32(lbNatFlagsNAT_OPENED) == 0 || e.Flags&both == both)
}

// endFlow ends a flow as void_flow does, unless its state is another by now than the one
// for which that was decided.
func (f *FlowFeed) endFlow(p *toldPair, port uint16, state, now uint32) bool {
	e, id := p.flow(port), p.number<<16|uint32(port)
	if state == uint32(lbNatStateNAT_FREE) {
		return false
	}
	// Its name is read now: once the state is swapped, the entry may be another's.
	where, name := int(atomic.LoadUint32(&e.Bucket)), uint64(0)
	if where < len(f.names.words.memory)/8 {
		name = f.names.words.load(where)
	}
	if !atomic.CompareAndSwapUint32(&e.State, state, uint32(lbNatStateNAT_FREE)) {
		return false
	}
	if uint32(name) == id {
		f.names.words.swap(where, name, 0)
	}
	if t := p.of(port); t != nil {
		if !t.held {
			f.end(p, port, t, now)
		}
		p.forget(port)
	}
	p.requeue(port)
	return true
}

// requeue has a port of this node handed out again, if nobody uses it.
func (p *toldPair) requeue(port uint16) {
	if p.inShare(port) {
		p.add(port)
	}
}
