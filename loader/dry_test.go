package loader

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// dryRuns are the explainers of the data planes that tests have made.
var dryRuns sync.Map // *Datapath to *Explainer

// explainerOf returns the explainer of a data plane: one for all of its life, which
// sees whatever the maps hold.
func explainerOf(t testing.TB, d *Datapath) *Explainer {
	t.Helper()
	if e, ok := dryRuns.Load(d); ok {
		e := e.(*Explainer)
		e.pinned.state = d.state
		return e
	}
	e := &Explainer{
		pinned: &Pinned{maps: *d.objects, tables: d.tables, state: d.state},
		nic:    lbInterface{Index: nicIndex, Mac: nicMAC}, name: "lo",
	}
	if err := e.load(d.program); err != nil {
		t.Fatal(err)
	}
	if e.note != "" {
		t.Errorf("the explainer says of its own program: %s", e.note)
	}
	dryRuns.Store(d, e)
	t.Cleanup(func() {
		dryRuns.Delete(d)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// A dryRun is what a dry run says of a frame.
type dryRun struct {
	verdict uint32
	out     []byte
	trace   lbTrace
}

// runDry runs a frame dry, where there is room for handshakes.
func runDry(t testing.TB, d *Datapath, frame []byte) dryRun {
	t.Helper()
	verdict, out, trace, err := explainerOf(t, d).run(frame, lbTrace{})
	if err != nil {
		t.Fatal(err)
	}
	return dryRun{verdict, out, trace}
}

// sendForeseen is send where there may be no room for handshakes. It counts them
// for each SYN.
func sendForeseen(t testing.TB, d *Datapath, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	var dry dryRun
	var err error
	if dry.verdict, dry.out, dry.trace, err = explainerOf(t, d).foresee(frame); err != nil {
		t.Fatal(err)
	}
	verdict, out = sendEarnest(t, d, frame)
	dry.agrees(t, verdict, out)
	return verdict, out
}

// agrees compares a dry run with what the program has then done with the frame.
func (r dryRun) agrees(t testing.TB, verdict uint32, out []byte) {
	t.Helper()
	if err := r.differs(verdict, out); err != nil {
		t.Error(err)
	}
}

// differs says in what a dry run was wrong.
func (r dryRun) differs(verdict uint32, out []byte) error {
	switch lbOutcome(r.trace.Outcome) {
	case lbOutcomeDROP_SOURCE_LIMIT, lbOutcomeDROP_TOO_BIG, lbOutcomeANSWERED:
		// A limit may be over, or another CPU's, by the time that it counts.
		if r.verdict != verdict {
			return nil
		}
	}
	if r.verdict != verdict {
		return fmt.Errorf("verdict %d, a dry run said %d: %s", verdict, r.verdict, r)
	}
	// What a frame to a virtual MAC address says of its owner a dry run does not note.
	if verdict == xdpPass && (isVirtual(out) || isVirtual(r.out)) && bytes.Equal(out[6:], r.out[6:]) {
		return nil
	}
	if verdict != xdpDrop && !bytes.Equal(maskID(out), maskID(r.out)) {
		return fmt.Errorf("the frame left as\n%x\na dry run said\n%x\n%s", out, r.out, r)
	}
	return nil
}

func (r dryRun) String() string {
	return fmt.Sprintf("outcome %s, %+v", outcomeNames[lbOutcome(r.trace.Outcome)], r.trace)
}

// isVirtual tells whether a frame is to a virtual router's MAC address.
func isVirtual(frame []byte) bool { return bytes.HasPrefix(frame, []byte{0, 0, 0x5e, 0}) }

// maskID takes out what is random in a frame: the identification of an outer IPv4
// header that may be fragmented, and the checksum over it.
func maskID(frame []byte) []byte {
	b := bytes.Clone(frame)
	at := 12
	for at+4 < len(b) && (b[at] == 0x81 || b[at] == 0x88) {
		at += 4
	}
	if ip := b[min(len(b), at+2):]; len(ip) >= ip4Len && binary.BigEndian.Uint16(b[at:]) == testenv.EtherTypeIPv4 && (ip[9] == 4 || ip[9] == 41) && ip[6]&0x40 == 0 {
		clear(ip[4:6])
		clear(ip[10:12])
	}
	return b
}

// The kernel's verifier finds no way by which a dry run writes to a map: all of them
// but the trace are made so that a program may not. It does find some of the
// program that forwards, so it looks.
func TestDryRunsWriteNothing(t *testing.T) {
	testenv.RequireRoot(t)
	for _, tc := range []struct {
		name  string
		dry   uint32
		loads bool
	}{
		{"dry", 1, true},
		{"forwarding", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec, err := loadLb()
			if err != nil {
				t.Fatal(err)
			}
			if err := setVariables(spec, Options{LogTranslations: true, TellFlows: true}, lbMeta{BucketMask: 4095}, natTimeouts); err != nil {
				t.Fatal(err)
			}
			if err := spec.Variables["dry"].Set(tc.dry); err != nil {
				t.Fatal(err)
			}
			onlyMain(spec)
			for name, m := range spec.Maps {
				switch {
				case m.InnerMap != nil: // a program can't write to one of maps at all
					m.InnerMap.Flags |= unix.BPF_F_RDONLY_PROG
				case m.Type == ebpf.PerfEventArray: // it takes no such flag: see TestTranslationsOfDryRuns
				case m.Type == ebpf.RingBuf: // nor does this: see TestChangesOfDryRuns
				case name != traceMap:
					m.Flags |= unix.BPF_F_RDONLY_PROG
				}
			}
			c, err := ebpf.NewCollection(spec)
			if err == nil {
				c.Close()
			}
			if tc.loads && err != nil {
				t.Errorf("the program is refused: %+v", loadError(err))
			}
			if !tc.loads && (err == nil || !strings.Contains(fmt.Sprintf("%+v", err), "write into map")) {
				t.Errorf("the program that forwards is not refused for its writes: %v", err)
			}
		})
	}
}

// fingerprint returns a sum of what each map holds, and of each pair's.
func fingerprint(t testing.TB, d *Datapath) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for name, m := range d.objects.byName() {
		if (*m).Type() == ebpf.PerfEventArray {
			continue // it holds nothing but who reads
		}
		if (*m).Type() == ebpf.RingBuf {
			continue // it has no entries to look up
		}
		if (*m).Type() != ebpf.ArrayOfMaps {
			sums[name] = sumOf(t, *m)
			continue
		}
		for pair := range d.state.Pairs {
			var inner *ebpf.Map
			if err := (*m).Lookup(pair, &inner); err != nil {
				t.Fatal(err)
			}
			sums[fmt.Sprintf("%s of pair %d", name, pair)] = sumOf(t, inner)
			inner.Close()
		}
	}
	return sums
}

func sumOf(t testing.TB, m *ebpf.Map) string {
	t.Helper()
	if m.Flags()&unix.BPF_F_MMAPABLE != 0 {
		w, err := mapWords(m)
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		return fmt.Sprintf("%x", sha256.Sum256(w.memory))
	}
	var all []string
	var last any
	for {
		key, err := m.NextKeyBytes(last)
		if err != nil {
			t.Fatal(err)
		}
		if key == nil {
			break
		}
		last = key
		if m.Type() == ebpf.PerCPUArray {
			var values [][]byte
			err = m.Lookup(key, &values)
			all = append(all, fmt.Sprintf("%x %x", key, values))
		} else {
			var value []byte
			value, err = m.LookupBytes(key)
			all = append(all, fmt.Sprintf("%x %x", key, value))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	return fmt.Sprintf("%d entries, %x", len(all), sha256.Sum256([]byte(strings.Join(all, "\n"))))
}
