package loader

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var figures = flag.Bool("figures", false, "measure, and print a line for each figure")

const (
	benchRounds = 15
	benchRuns   = 1 << 21
	maxFlows    = int(benchBenchLimitsBENCH_FLOWS)
)

// A benchCase is a program on a number of flows.
type benchCase struct {
	name    string
	d       *Datapath
	program *ebpf.Program
	state   *ebpf.Map
	flows   int
	frame   []byte
	expect  uint32
	times   []time.Duration // per run, by round
}

// TestFigures measures what one packet costs, as `make bench` prints it. All
// cases take turns in each round, so that whatever slows the machine down slows
// them all; the figure is the median.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures only with -figures")
	}
	testenv.RequireRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dsr := newBench(t, lb.DSR)
	nat := newBench(t, lb.NAT)
	nat.establish(t)

	ack := dsr.frame(t, 0x10)
	stray := slices.Clone(ack)
	stray[0] ^= 2 // another NIC's MAC address
	cases := []*benchCase{
		{name: "empty", d: dsr.d, program: dsr.empty, state: dsr.state, flows: maxFlows, frame: ack, expect: xdpPass},
		{name: "pass", d: dsr.d, program: dsr.pipeline, state: dsr.state, flows: maxFlows, frame: stray, expect: xdpPass},
	}
	for _, flows := range []int{1, 65536, 1048576} {
		cases = append(cases,
			&benchCase{name: fmt.Sprintf("dsr.%d", flows), d: dsr.d, program: dsr.pipeline, state: dsr.state, flows: flows, frame: ack, expect: xdpTX},
			&benchCase{name: fmt.Sprintf("nat.%d", flows), d: nat.d, program: nat.pipeline, state: nat.state, flows: flows, frame: ack, expect: xdpTX})
	}
	for range benchRounds {
		for _, c := range cases {
			c.run(t)
		}
	}
	slices.SortFunc(cases[2:], func(a, b *benchCase) int { return slices.Compare([]string{a.name[:3]}, []string{b.name[:3]}) })
	floor := median(cases[0].times)
	for _, c := range cases {
		m := median(c.times)
		fmt.Printf("figure: xdp.%s.ns %.1f ns\n", c.name, m)
		if c != cases[0] {
			fmt.Printf("figure: xdp.%s.above_empty.ns %.1f ns\n", c.name, m-floor)
		}
	}
}

func median(times []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(times))
	return float64(sorted[len(sorted)/2].Nanoseconds()) / benchRuns
}

func (c *benchCase) run(t *testing.T) {
	t.Helper()
	c.times = append(c.times, runBench(t, c.d, c.program, c.state, c.flows, c.frame, c.expect, benchRuns, 0))
}

// runBench runs a program over flows, and fails unless every verdict was as
// expected. The result is the time of all runs.
func runBench(t *testing.T, d *Datapath, p *ebpf.Program, state *ebpf.Map, flows int, frame []byte, expect uint32, runs, first int) time.Duration {
	t.Helper()
	s := benchBenchState{Flows: uint32(flows), Expect: expect, Next: uint64(first)}
	copy(s.Frame[:], frame)
	if err := put(state, 0, &s); err != nil {
		t.Fatal(err)
	}
	start := time.Now() // the kernel's own figure is in whole nanoseconds a run
	_, _, err := p.Benchmark(frame, runs, nil)
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	if err := state.Lookup(uint32(0), &s); err != nil {
		t.Fatal(err)
	}
	if s.Wrong != 0 {
		t.Fatalf("%d of %d packets had another verdict than %d: %v", s.Wrong, runs, expect, outcomes(t, d))
	}
	if got := int(s.Next) - first; got < runs {
		t.Fatalf("%d packets were run, want %d", got, runs)
	}
	return took
}

type bench struct {
	d               *Datapath
	empty, pipeline *ebpf.Program
	state           *ebpf.Map
	pairs           int
}

// newBench makes a data plane with one service, the benchmark programs on its
// maps, and a million random flows.
func newBench(t *testing.T, forward lb.Forward) *bench {
	t.Helper()
	const backendCount = 16
	s := service("web", forward, 80, backends(backendCount, 80))
	// A million nat flows need more ports than one source address has.
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	o := Options{MaxFlows: maxFlows, Ports: lb.PortRange{First: 1024, Last: 65535}}
	b := &bench{d: newDatapathWith(t, o, natTimeouts, s), pairs: backendCount * len(s.SourceAddresses)}

	spec, err := loadBench()
	if err != nil {
		t.Fatal(err)
	}
	var meta lbMeta
	if err := b.d.objects.Meta.Lookup(uint32(0), &meta); err != nil {
		t.Fatal(err)
	}
	if err := setVariables(spec, o, meta, natTimeouts); err != nil {
		t.Fatal(err)
	}
	replace := map[string]*ebpf.Map{}
	for _, m := range b.d.mapsByName() {
		spec.Maps[m.name].MaxEntries, spec.Maps[m.name].Flags = m.m.MaxEntries(), m.m.Flags()
		replace[m.name] = m.m
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	b.empty, b.pipeline, b.state = c.Programs["bench_empty"], c.Programs["bench_pipeline"], c.Maps["bench_state"]

	keys := make([]uint32, maxFlows)
	flows := make([]benchBenchFlow, maxFlows)
	seen := map[uint64]bool{}
	random := rand.New(rand.NewPCG(1, 2))
	vip := vipIP.As4()
	for i := range flows {
		client := random.Uint64()
		for seen[client&0xffffffffffff] {
			client = random.Uint64()
		}
		seen[client&0xffffffffffff] = true
		keys[i] = uint32(i)
		flows[i] = benchBenchFlow{
			Saddr: uint32(client), Daddr: binary.LittleEndian.Uint32(vip[:]),
			Source: uint16(client >> 32), Dest: bigEndian16(80),
		}
	}
	if _, err := c.Maps["bench_flows"].BatchUpdate(keys, flows, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// establish opens all nat flows, a part at a time: a pair remembers only so many
// handshakes.
func (b *bench) establish(t *testing.T) {
	t.Helper()
	const part = maxFlows / 4
	syn := b.frame(t, 0x02)
	keys := make([]uint32, lbLimitsNAT_PORTS)
	flows := make([]lbNatFlow, lbLimitsNAT_PORTS)
	for first := 0; first < maxFlows; first += part {
		runBench(t, b.d, b.pipeline, b.state, maxFlows, syn, xdpTX, part, first)
		open := 0
		for pair := 1; pair <= b.pairs; pair++ {
			inner, err := pairFlows(b.d, uint32(pair))
			if err != nil {
				t.Fatal(err)
			}
			var cursor ebpf.MapBatchCursor
			n, err := inner.BatchLookup(&cursor, keys, flows, nil)
			if err != nil && n != len(keys) {
				t.Fatal(err)
			}
			for i := range flows {
				if flows[i].State != 0 {
					flows[i].State = uint32(lbNatStateNAT_ESTABLISHED)
					open++
				}
			}
			if _, err := inner.BatchUpdate(keys, flows, nil); err != nil {
				t.Fatal(err)
			}
			inner.Close()
		}
		if open != first+part {
			t.Fatalf("%d flows are open, want %d", open, first+part)
		}
	}
}

// frame builds the headers of a TCP packet to the service; the benchmark fills
// in addresses and ports, so checksums are not right.
func (b *bench) frame(t *testing.T, flags byte) []byte {
	t.Helper()
	f := make([]byte, 64)
	copy(f, nicMAC[:])
	copy(f[6:], clientMAC[:])
	f[12] = 8
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], 50)
	ip[32], ip[33] = 0x50, flags
	return f
}
