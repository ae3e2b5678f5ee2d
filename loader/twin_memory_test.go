package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// What program and model remember, and how a test makes both forget.

// A flowTable is one of the program's, and the model's.
type flowTable struct {
	kernel *ebpf.Map
	model  map[flowName]pinned
}

func (w *twin) flowTables() map[string]flowTable {
	o, m := w.d.objects, w.m
	return map[string]flowTable{
		"handshakes": {o.Handshakes, m.handshakes}, "pins": {o.Pins, m.pins}, "stragglers": {o.Stragglers, m.stragglers},
		"udp_new": {o.UdpNew, m.udpNew}, "udp_flows": {o.UdpFlows, m.udpFlows},
	}
}

func (w *twin) key(f flowName) *lbFlowKey {
	return &lbFlowKey{
		Client: mappedAs(f.client.Addr()), Vip: w.m.state.VIPs[f.vip.Addr()].Index,
		ClientPort: bigEndian16(f.client.Port()), VipPort: bigEndian16(f.vip.Port()), Protocol: uint32(f.protocol),
	}
}

// mappedAs is mapped for an address that may be IPv4-mapped already.
func mappedAs(a netip.Addr) [2]uint64 { return mapped(netip.AddrFrom16(a.As16())) }

func (w *twin) fragmentKey(f fragmentName) *lbFragmentKey {
	return &lbFragmentKey{
		Source: mappedAs(f.src), Vip: w.m.state.VIPs[f.dst].Index, Id: fragmentID(f.id, f.src.Is6()), Protocol: uint32(f.protocol), V6: boolWord(f.src.Is6()),
	}
}

func replyKey(f fragmentName) *lbReplyFragmentKey {
	return &lbReplyFragmentKey{
		Source: mappedAs(f.src), Destination: mappedAs(f.dst), Id: fragmentID(f.id, f.src.Is6()),
		Protocol: uint16(f.protocol), V6: uint16(boolWord(f.src.Is6())),
	}
}

// fragmentID is an identification as the program holds it: as it is on the wire.
func fragmentID(id uint32, v6 bool) uint32 {
	if !v6 {
		return uint32(bigEndian16(uint16(id)))
	}
	return uint32(bigEndian16(uint16(id>>16))) | uint32(bigEndian16(uint16(id)))<<16
}

// flowAt is the program's entry of a nat flow.
func (w *twin) flowAt(f *translated) *lbNatFlow {
	for n, p := range w.m.state.Pairs {
		if f.isOf(p) {
			return w.pairs[n].flow(f.source.Port())
		}
	}
	return &lbNatFlow{}
}

// readTicks takes the program's stamps where a tick has passed while a packet was
// handled: which one it saw is not known. Nor whether this datagram came in the tick
// of the flow's first one.
func (w *twin) readTicks(frame []byte) {
	if f, ok := w.flowOf(frame); ok {
		var got lbPin
		e, begun := w.m.udpNew[f]
		if _, lasts := w.m.udpFlows[f]; begun && !lasts && w.d.objects.UdpFlows.Lookup(w.key(f), &got) == nil {
			w.m.udpFlows[f] = w.m.pin(e.backend, 0)
		}
	}
	for _, t := range w.flowTables() {
		for f, e := range t.model {
			var got lbPin
			if t.kernel.Lookup(w.key(f), &got) == nil {
				e.seen = got.Seen
				t.model[f] = e
			}
		}
	}
	for f, e := range w.m.fragments {
		var got lbFragmented
		if w.d.objects.Fragments.Lookup(w.fragmentKey(f), &got) == nil {
			e.seen = got.Pin.Seen
			w.m.fragments[f] = e
		}
	}
	for f, e := range w.m.replyFragments {
		var got lbReplyFragment
		if w.d.objects.ReplyFragments.Lookup(replyKey(f), &got) == nil {
			e.seen = got.Seen
			w.m.replyFragments[f] = e
		}
	}
	for _, f := range w.m.flows {
		f.seen = w.flowAt(f).LastSeen
	}
}

// age makes all that is remembered look as if nothing had come for so long.
func (w *twin) age(by time.Duration) error {
	ago := uint32(by / tick)
	w.note("%v pass", by)
	older := func(m *ebpf.Map, key any) error {
		var p lbPin
		if err := m.Lookup(key, &p); err != nil {
			return fmt.Errorf("%v has lost %+v: %w", m, key, err)
		}
		p.Seen -= ago
		return m.Put(key, &p)
	}
	for _, t := range w.flowTables() {
		for f, e := range t.model {
			if err := older(t.kernel, w.key(f)); err != nil {
				return err
			}
			e.seen -= ago
			t.model[f] = e
		}
	}
	for f, e := range w.m.fragments {
		var v lbFragmented
		if err := w.d.objects.Fragments.Lookup(w.fragmentKey(f), &v); err != nil {
			return fmt.Errorf("the fragments of %v are forgotten: %w", f, err)
		}
		v.Pin.Seen -= ago
		if err := w.d.objects.Fragments.Put(w.fragmentKey(f), &v); err != nil {
			return err
		}
		e.seen -= ago
		w.m.fragments[f] = e
	}
	for f, e := range w.m.replyFragments {
		var v lbReplyFragment
		if err := w.d.objects.ReplyFragments.Lookup(replyKey(f), &v); err != nil {
			return fmt.Errorf("the fragments of the reply %v are forgotten: %w", f, err)
		}
		v.Seen -= ago
		if err := w.d.objects.ReplyFragments.Put(replyKey(f), &v); err != nil {
			return err
		}
		e.seen -= ago
		w.m.replyFragments[f] = e
	}
	for _, f := range w.m.flows {
		f.seen -= ago
		w.flowAt(f).LastSeen -= ago
	}
	return nil
}

// reset returns to the world as it was made, with nothing remembered.
func (w *twin) reset() error {
	if w.dirty {
		if err := w.clearAll(); err != nil {
			return err
		}
	} else if err := w.clearKnown(); err != nil {
		return err
	}
	for n, e := range w.base.Backends {
		if !e.equal(w.m.state.Backends[n]) {
			if err := (setBackend{Number: n, Entry: e}).apply(w.d.tables); err != nil {
				return err
			}
		}
	}
	for n, words := range w.base.Slots {
		for i, word := range words {
			w.d.tables.slots.store(int(w.base.Services[n].First)+i, uint64(word))
		}
	}
	w.d.state, w.m.state = w.base, w.base
	w.traffic = map[uint32]Traffic{}
	for n := range w.base.Backends {
		var err error
		if w.traffic[n], err = readTraffic(w.d.objects, n); err != nil {
			return err
		}
	}
	w.m.memory, w.touched, w.opened, w.log, w.dirty = newMemory(), map[flowName]bool{}, nil, nil, false
	w.last = flowName{}
	w.resetFences()
	return w.clearAllowances()
}

// clearAllowances lets this tick's answers and stragglers be counted anew.
func (w *twin) clearAllowances() error {
	none := make([]lbAllowance, ebpf.MustPossibleCPU())
	return errors.Join(w.d.objects.AnswerAllowance.Put(uint32(0), none), w.d.objects.StragglerAllowance.Put(uint32(0), none),
		w.d.objects.StrayAllowance.Put(uint32(0), none))
}

// clearKnown removes what the model knows of.
func (w *twin) clearKnown() error {
	gone := func(m *ebpf.Map, key any) error {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	}
	for _, t := range w.flowTables() {
		for f := range t.model {
			if err := gone(t.kernel, w.key(f)); err != nil {
				return err
			}
		}
	}
	for f := range w.m.fragments {
		if err := gone(w.d.objects.Fragments, w.fragmentKey(f)); err != nil {
			return err
		}
	}
	for f := range w.m.replyFragments {
		if err := gone(w.d.objects.ReplyFragments, replyKey(f)); err != nil {
			return err
		}
	}
	for v := range w.m.dues {
		k := lbSourceKey{Service: uint64(v.service)<<1 | uint64(boolWord(v.prefix.Addr().Is6()))}
		a := mappedAs(v.prefix.Addr())
		k.Address = a[0]
		if v.prefix.Addr().Is4() {
			k.Address = a[1]
		}
		if err := gone(w.d.objects.SourceBuckets, &k); err != nil {
			return err
		}
	}
	used := map[uint32]bool{}
	for _, f := range w.opened {
		for n, p := range w.base.Pairs {
			used[n] = used[n] || f.isOf(p)
		}
	}
	for n, on := range used {
		if on {
			w.clearPair(n)
		}
	}
	return nil
}

// clearAll removes whatever the program remembers.
func (w *twin) clearAll() error {
	for _, t := range w.flowTables() {
		if err := clearMap[lbFlowKey, lbPin](t.kernel); err != nil {
			return err
		}
	}
	if err := clearMap[lbFragmentKey, lbFragmented](w.d.objects.Fragments); err != nil {
		return err
	}
	if err := clearMap[lbReplyFragmentKey, lbReplyFragment](w.d.objects.ReplyFragments); err != nil {
		return err
	}
	if err := clearMap[lbSourceKey, uint64](w.d.objects.SourceBuckets); err != nil {
		return err
	}
	for n := range w.pairs {
		w.clearPair(n)
	}
	all, err := readOutcomes(w.d.objects)
	if err != nil {
		return err
	}
	w.counted = map[string]uint64{}
	for _, o := range all {
		if o.Packets > 0 {
			w.counted[o.Name] = o.Packets
		}
	}
	return nil
}

func clearMap[K, V any](m *ebpf.Map) error {
	var keys []K
	var k K
	var v V
	all := m.Iterate()
	for all.Next(&k, &v) {
		keys = append(keys, k)
	}
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return all.Err()
}

// clearPair ends all flows of a pair, and queues the ports of the share in order.
func (w *twin) clearPair(n uint32) {
	q := w.pairs[n]
	buckets := w.d.tables.buckets
	for port := worldShare.First; port <= worldShare.Last; port++ {
		f := q.flow(port)
		if buckets.load(int(f.Bucket))&0xffffffff == uint64(n)<<16|uint64(port) {
			buckets.store(int(f.Bucket), 0)
		}
		*f = lbNatFlow{}
	}
	*q.head(), *q.tail() = 0, 0
	words := q.words()
	words.Embryonic, words.GivenUp, words.Hand, words.ShareHand = 0, 0, 0, 0
	for i := range q.ring.memory {
		q.ring.memory[i] = 0
	}
	for port := worldShare.First; port <= worldShare.Last; port++ {
		q.add(port)
	}
}
