package loader

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A twin is the program and a model of it, side by side over one world.
type twin struct {
	d       *Datapath
	host    *testenv.Host // where the program runs
	m       *model
	base    *State // what reset returns to
	pairs   map[uint32]pairView
	counted map[string]uint64     // outcomes so far
	traffic map[uint32]lbCounters // when the script began
	touched map[flowName]bool     // flows that packets have named
	opened  []*translated         // nat flows of this script
	last    flowName              // that the script made a packet of
	log     []string
	dirty   bool // the two may differ: nothing of the program's memory is known
}

func newTwin(t testing.TB) *twin {
	t.Helper()
	host, clients, ways := twinNode(t)
	d := newDatapathWith(t, Options{MaxFlows: 4096, Ports: worldShare}, worldTimeouts, world()...)
	for n, way := range ways {
		store(d.tables.way(n), way)
	}
	w := &twin{
		d: d, host: host, base: d.state, pairs: map[uint32]pairView{}, counted: outcomes(t, d), dirty: true,
		m: &model{
			state: d.state, nics: map[uint32][6]byte{nicIndex: nicMAC}, clients: clients, share: worldShare, timeouts: worldTimeouts,
			reached: map[string]int{},
			memory:  newMemory(),
		},
	}
	for n := range d.state.Pairs {
		w.pairs[n] = viewPair(t, d, n)
	}
	return w
}

// run sends a frame through the program, and says between which moments.
func (w *twin) run(frame []byte) (verdict uint32, out []byte, first, last moment, err error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	err = w.host.Do(func() (err error) {
		first = moment{tick: ticks(), before: clock(unix.CLOCK_MONOTONIC)}
		verdict, err = w.d.program.Run(&opts)
		first.after = clock(unix.CLOCK_MONOTONIC)
		last = first
		last.tick = ticks()
		return err
	})
	return verdict, opts.DataOut, first, last, err
}

// step sends a frame through the program and the model, and compares what becomes
// of it: verdict, outcome, and every byte of a frame that leaves.
func (w *twin) step(frame []byte) (answer, error) {
	w.dirty = true
	verdict, out, first, last, err := w.run(frame)
	if err != nil {
		return answer{}, fmt.Errorf("run the program: %w", err)
	}
	var seen []byte
	if verdict == xdpTX || verdict == xdpRedirect {
		seen = out
	}
	want, err := w.judge(frame, first, verdict, out, seen)
	if err != nil && last.tick != first.tick {
		want, err = w.judge(frame, last, verdict, out, seen)
	}
	if err != nil {
		return want, err
	}
	for _, change := range want.changes {
		change()
	}
	if want.opened != nil {
		w.opened = append(w.opened, want.opened)
	}
	if last.tick != first.tick {
		w.readTicks(frame)
	}
	w.dirty = false
	return want, w.checkOutcome(want)
}

// judge compares what the program did with what the model says.
func (w *twin) judge(frame []byte, now moment, verdict uint32, out, seen []byte) (answer, error) {
	want := w.m.step(nicIndex, frame, now, seen)
	switch {
	case want.wrong != "":
		return want, errors.New(want.wrong)
	case verdict != want.Verdict:
		return want, fmt.Errorf("verdict %d, want %d (%s)", verdict, want.Verdict, want.Outcome)
	case seen != nil && !bytes.Equal(out, want.Frame):
		return want, fmt.Errorf("frame that left (-want +got):\n%s", cmp.Diff(hex.Dump(want.Frame), hex.Dump(out)))
	case verdict == xdpPass && !bytes.Equal(out, frame):
		return want, fmt.Errorf("a frame that passes was changed (-in +out):\n%s", cmp.Diff(hex.Dump(frame), hex.Dump(out)))
	}
	// What came with right checksums leaves with right ones, all added up anew.
	if seen == nil || testenv.VerifyChecksums(frame) != nil {
		return want, nil
	}
	if err := testenv.VerifyChecksums(out); err != nil {
		return want, fmt.Errorf("checksum of the frame that left: %w", err)
	}
	if _, inner, err := testenv.Decapsulate(out); err == nil {
		if err := testenv.VerifyChecksums(inner); err != nil {
			return want, fmt.Errorf("checksum inside of the tunnel: %w", err)
		}
	}
	return want, nil
}

// checkOutcome checks that the outcome, and nothing else, was counted once.
func (w *twin) checkOutcome(want answer) error {
	if want.Outcome == "sent" || want.Outcome == "answered" {
		return nil // finish looks at all of them
	}
	w.counted[want.Outcome]++
	for o, name := range outcomeNames {
		if name != want.Outcome {
			continue
		}
		var counts []uint64
		if err := w.d.objects.Outcomes.Lookup(uint32(o), &counts); err != nil {
			return err
		}
		sum := uint64(0)
		for _, n := range counts {
			sum += n
		}
		if sum != w.counted[name] {
			return w.outcomesDiffer()
		}
	}
	return nil
}

func (w *twin) outcomesDiffer() error {
	all, err := readOutcomes(w.d.objects)
	if err != nil {
		return err
	}
	got := map[string]uint64{}
	for _, o := range all {
		if o.Packets > 0 {
			got[o.Name] = o.Packets
		}
	}
	want := maps.Clone(w.counted)
	w.counted = got
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("outcomes (-want +got):\n%s", diff)
	}
	return nil
}

// finish compares what both remember of a script.
func (w *twin) finish() error {
	if err := w.outcomesDiffer(); err != nil {
		return err
	}
	for name, t := range w.flowTables() {
		for f := range w.touched {
			var got lbPin
			err := t.kernel.Lookup(w.key(f), &got)
			want, ok := t.model[f]
			if ok != (err == nil) {
				return fmt.Errorf("%s has %v: %v, want %v (%w)", name, f, !ok, ok, err)
			}
			if ok && (got.Backend != want.backend || got.Generation != want.generation || got.Sequence != want.sequence || (got.Ending != 0) != want.ending) {
				return fmt.Errorf("%s says of %v %+v, want %+v", name, f, got, want)
			}
		}
	}
	if err := w.fragmentsDiffer(); err != nil {
		return err
	}
	for number, want := range w.m.traffic {
		sum, err := w.trafficOf(number)
		if err != nil {
			return err
		}
		before := w.traffic[number]
		got := lbCounters{
			Packets: sum.Packets - before.Packets, Bytes: sum.Bytes - before.Bytes, Flows: sum.Flows - before.Flows,
			ReplyPackets: sum.ReplyPackets - before.ReplyPackets, ReplyBytes: sum.ReplyBytes - before.ReplyBytes,
		}
		w.traffic[number] = sum
		if got != want {
			return fmt.Errorf("counters of backend %d: %+v, want %+v", number, got, want)
		}
	}
	for _, f := range w.m.flows {
		got := w.flowAt(f)
		if lbNatState(got.State) != f.state || got.Generation != f.generation {
			return fmt.Errorf("%v is in state %d, want %d", f.name, got.State, f.state)
		}
	}
	return nil
}

// fragmentsDiffer compares what both know of packets in fragments.
func (w *twin) fragmentsDiffer() error {
	for f, want := range w.m.fragments {
		var got lbFragmented
		if err := w.d.objects.Fragments.Lookup(w.fragmentKey(f), &got); err != nil {
			return fmt.Errorf("the fragments of %v are forgotten: %w", f, err)
		}
		if got.Pin.Backend != want.backend || got.Pin.Generation != want.generation || got.Pin.Sequence != want.sequence || lbFragmentsWay(got.Way) != want.way {
			return fmt.Errorf("the fragments of %v: %+v, want %+v", f, got, want)
		}
		if want.way == lbFragmentsWayFRAGMENTS_UNCHANGED {
			continue
		}
		if got.Source != mappedAs(want.src) || got.Dest != mappedAs(want.dst) || got.Id != fragmentID(want.id, f.src.Is6()) {
			return fmt.Errorf("the fragments of %v: %+v, want %+v", f, got, want)
		}
	}
	return nil
}

func (w *twin) trafficOf(number uint32) (lbCounters, error) {
	var all []lbCounters
	if err := w.d.objects.Traffic.Lookup(number, &all); err != nil {
		return lbCounters{}, err
	}
	var sum lbCounters
	for _, c := range all {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
		sum.Flows += c.Flows
		sum.ReplyPackets += c.ReplyPackets
		sum.ReplyBytes += c.ReplyBytes
	}
	return sum, nil
}

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

func replyKey(f replyName) *lbReplyFragmentKey {
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
		if p.Source == f.source.Addr() && p.Address == f.backend && p.Protocol == f.name.protocol {
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

// setSlots gives all slots of a service a word.
func (w *twin) setSlots(service uint16, word slot) error {
	s := w.m.state.clone()
	words := make([]slot, s.Services[service].Count)
	var changes []slotChange
	for i := range words {
		words[i] = word
		changes = append(changes, slotChange{uint32(i), word})
	}
	s.Slots[service] = words
	w.d.state, w.m.state = s, s
	return setSlots{service, s.Services[service].First, changes}.apply(w.d.tables)
}

// setBackend changes a backend.
func (w *twin) setBackend(n uint32, change func(*backendEntry)) error {
	s := w.m.state.clone()
	e := s.Backends[n]
	change(&e)
	s.Backends[n] = e
	w.d.state, w.m.state = s, s
	return setBackend{n, e}.apply(w.d.tables)
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
			if err := (setBackend{n, e}).apply(w.d.tables); err != nil {
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
	w.traffic = map[uint32]lbCounters{}
	for n := range w.base.Backends {
		var err error
		if w.traffic[n], err = w.trafficOf(n); err != nil {
			return err
		}
	}
	w.m.memory, w.touched, w.opened, w.log, w.dirty = newMemory(), map[flowName]bool{}, nil, nil, false
	w.last = flowName{}
	return w.clearAllowances()
}

// clearAllowances lets this tick's answers and stragglers be counted anew.
func (w *twin) clearAllowances() error {
	none := make([]lbAllowance, ebpf.MustPossibleCPU())
	return errors.Join(w.d.objects.AnswerAllowance.Put(uint32(0), none), w.d.objects.StragglerAllowance.Put(uint32(0), none))
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
			used[n] = used[n] || p.Source == f.source.Addr() && p.Address == f.backend && p.Protocol == f.name.protocol
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

func (w *twin) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// feed is step for a script: it notes the frame, and what became of it.
func (w *twin) feed(frame []byte) error {
	if len(frame) < 14 {
		return nil // no frame: the kernel hands none to XDP
	}
	w.note("%x", frame)
	if f, ok := w.flowOf(frame); ok {
		w.touched[f] = true
	}
	got, err := w.step(frame)
	if err != nil {
		return fmt.Errorf("%w\nframe %x\n%s", err, frame, decoded(frame))
	}
	w.note("  %s", got.Outcome)
	return nil
}

// flowOf is the flow that a frame to a VIP is of, if it is of any.
func (w *twin) flowOf(frame []byte) (flowName, bool) {
	p := &modelPacket{frame: frame}
	if p.readLink() != "" || p.readIP() != "" || p.protocol != lb.TCP && p.protocol != lb.UDP || p.readTransport() != "" {
		return flowName{}, false
	}
	_, ok := w.m.vip(p.dst)
	return p.flow(), ok
}

// decoded is a frame for people.
func decoded(frame []byte) string {
	f, err := testenv.ParseFrame(frame)
	if err != nil {
		return err.Error()
	}
	payload := f.Payload
	f.Payload = nil
	return strings.TrimSpace(fmt.Sprintf("%+v\npayload of %d bytes % x", f, len(payload), payload[:min(64, len(payload))]))
}
