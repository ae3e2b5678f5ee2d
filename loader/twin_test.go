package loader

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A twin is the program and a model of it, side by side over one world.
type twin struct {
	d       *Datapath
	dry     *Explainer
	host    *testenv.Host // where the program runs
	m       *model
	fences  []*Fence // those of m.fences
	base    *State   // what reset returns to
	pairs   map[uint32]pairView
	counted map[string]uint64  // outcomes so far
	traffic map[uint32]Traffic // when the script began
	touched map[flowName]bool  // flows that packets have named
	opened  []*translated      // nat flows of this script
	last    flowName           // that the script made a packet of
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
		d: d, dry: explainerOf(t, d), host: host, base: d.state, pairs: map[uint32]pairView{}, counted: outcomes(t, d), dirty: true,
		m: &model{
			state: d.state, nics: map[uint32][6]byte{nicIndex: nicMAC}, clients: clients, share: worldShare, timeouts: worldTimeouts,
			reached: map[string]int{},
			memory:  newMemory(),
		},
	}
	for n := range d.state.Pairs {
		w.pairs[n] = viewPair(t, d, n)
	}
	w.openFences(t)
	return w
}

// run sends a frame through the program, dry and then in earnest, which must come
// to the same, and says between which moments it ran.
func (w *twin) run(frame []byte) (verdict uint32, out []byte, first, last moment, err error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	var dry dryRun
	began := ticks()
	err = w.host.Do(func() (err error) {
		if dry.verdict, dry.out, dry.trace, err = w.dry.run(frame, lbTrace{}); err != nil {
			return err
		}
		first = moment{tick: ticks(), before: clock(unix.CLOCK_MONOTONIC)}
		verdict, err = w.d.program.Run(&opts)
		first.after = clock(unix.CLOCK_MONOTONIC)
		last = first
		last.tick = ticks()
		return err
	})
	// What one of them remembers may be void for the other.
	if err == nil && last.tick == began {
		err = dry.differs(verdict, opts.DataOut)
	}
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
	case verdict == xdpPass && !bytes.Equal(out, want.Frame):
		return want, fmt.Errorf("frame that passes (-want +got):\n%s", cmp.Diff(hex.Dump(want.Frame), hex.Dump(out)))
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
		sum, err := readTraffic(w.d.objects, number)
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
	w.d.show()
	return setSlots{service, s.Services[service].First, changes}.apply(w.d.tables)
}

// setBackend changes a backend.
func (w *twin) setBackend(n uint32, change func(*backendEntry)) error {
	s := w.m.state.clone()
	e := s.Backends[n]
	change(&e)
	s.Backends[n] = e
	w.d.state, w.m.state = s, s
	w.d.show()
	return setBackend{Number: n, Entry: e}.apply(w.d.tables)
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
