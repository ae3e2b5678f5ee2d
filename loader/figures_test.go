package loader

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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
	bench   *bench
	program *ebpf.Program
	flows   int
	frame   []byte
	expect  uint32
	times   []time.Duration // of the thread, by round
	wall    []time.Duration // by the clock on the wall
}

// TestFigures measures what one packet costs, as `make bench` prints it. All
// cases take turns in each round, so that whatever slows the machine down slows
// them all.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures only with -figures")
	}
	testenv.RequireRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dsr, dsr6, tunnel := newBench(t, lb.DSR, false), newBench(t, lb.DSR, true), newBench(t, lb.Tunnel, false)
	nat, reply := newBench(t, lb.NAT, false), newBench(t, lb.NAT, false)
	flood := newBench(t, lb.NAT, false)
	nat.establish(t)
	reply.establish(t)
	answers := reply.answers(t)

	ack, syn := dsr.frame(t, 0x10), dsr.frame(t, 0x02)
	stray := slices.Clone(ack)
	stray[0] ^= 2 // another NIC's MAC address
	for _, b := range []*bench{dsr, dsr6, tunnel, nat} {
		b.fill(t, b.random)
	}
	reply.fill(t, answers)
	empty := &benchCase{name: "empty", bench: dsr, program: dsr.programs["bench_empty"], flows: maxFlows, frame: ack, expect: xdpPass}
	empty6 := &benchCase{name: "empty6", bench: dsr6, program: dsr6.programs["bench_empty6"], flows: maxFlows, frame: dsr6.frame6(t), expect: xdpPass}
	cases := slices.Concat(
		[]*benchCase{empty, empty6, {name: "pass", bench: dsr, program: dsr.pipeline, flows: maxFlows, frame: stray, expect: xdpPass}},
		byFlows("dsr", dsr, dsr.pipeline, ack, xdpTX),
		byFlows("dsr6", dsr6, dsr6.programs["bench_pipeline6"], dsr6.frame6(t), xdpTX),
		byFlows("tunnel", tunnel, tunnel.programs["bench_tunnel"], ack, xdpTX),
		byFlows("nat", nat, nat.pipeline, ack, xdpTX),
		byFlows("nat_reply", reply, reply.pipeline, ack, xdpTX),
		byFlows("lru", dsr, dsr.programs["bench_lru"], ack, xdpTX),
		[]*benchCase{
			{name: "syn_flood.dsr", bench: dsr, program: dsr.pipeline, flows: maxFlows, frame: syn, expect: xdpTX},
			// A million clients are more than there are handshakes: each is forgotten before
			// its turn comes again.
			{name: "syn_flood.nat", bench: flood, program: flood.pipeline, flows: maxFlows, frame: syn, expect: xdpTX},
		},
	)
	runBench(t, flood.d, flood.pipeline, flood.state, maxFlows, syn, xdpTX, maxFlows, 0)
	for range benchRounds {
		for _, c := range cases {
			c.run(t)
		}
	}
	for _, c := range cases {
		floor := empty
		if c.bench == dsr6 {
			floor = empty6
		}
		fmt.Printf("figure: xdp.%s.ns %.1f ns\n", c.name, c.least())
		if c != floor {
			fmt.Printf("figure: xdp.%s.above_empty.ns %.1f ns\n", c.name, c.least()-floor.least())
		}
		fmt.Printf("# xdp.%s: least of %d rounds, processor time; middle ones %.1f ns, by the wall clock %.1f ns\n",
			c.name, benchRounds, typical(c.times), typical(c.wall))
	}
	fmt.Printf("figure: mem.random_load.ns %.1f ns\n", randomLoad())
}

// randomLoad measures one load that depends on the one before it, over as much
// memory as the entries of a million flows take.
func randomLoad() float64 {
	const entry = 64
	lines := make([]uint64, maxFlows*entry/8)
	order := rand.New(rand.NewPCG(5, 6)).Perm(maxFlows)
	for i, at := range order {
		lines[at*entry/8] = uint64(order[(i+1)%maxFlows] * entry / 8)
	}
	at := uint64(0)
	start := time.Now()
	for range maxFlows {
		at = lines[at]
	}
	took := time.Since(start)
	runtime.KeepAlive(at)
	return float64(took.Nanoseconds()) / float64(maxFlows)
}

// least is the time of a run, in ns: in the round with the least, since whatever else goes
// on in a machine only adds, by the processor's time for the thread, which leaves out when
// the thread had to wait for it.
func (c *benchCase) least() float64 { return float64(slices.Min(c.times).Nanoseconds()) / benchRuns }

// typical is the mean of the middle half of the rounds: a virtual machine's clock
// may go in steps, which a median would show.
func typical(times []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(times))
	middle := sorted[len(sorted)/4 : len(sorted)-len(sorted)/4]
	var sum time.Duration
	for _, d := range middle {
		sum += d
	}
	return float64(sum.Nanoseconds()) / float64(len(middle)) / benchRuns
}

func (c *benchCase) run(t *testing.T) {
	t.Helper()
	before := clock(unix.CLOCK_THREAD_CPUTIME_ID)
	wall := runBench(t, c.bench.d, c.program, c.bench.state, c.flows, c.frame, c.expect, benchRuns, 0)
	c.times = append(c.times, clock(unix.CLOCK_THREAD_CPUTIME_ID)-before)
	c.wall = append(c.wall, wall)
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
	d        *Datapath
	options  Options
	programs map[string]*ebpf.Program
	maps     map[string]*ebpf.Map // of bench.c
	pipeline *ebpf.Program
	state    *ebpf.Map
	table    *ebpf.Map // of flows
	flows    int       // that the table holds
	random   []benchBenchFlow
	pairs    int
}

// newBench makes a data plane with one service, the benchmark programs on its
// maps, and a million random flows.
func newBench(t *testing.T, forward lb.Forward, v6 bool) *bench {
	t.Helper()
	const backendCount = 16
	s := service("web", forward, 80, backends(backendCount, 80))
	// A million nat flows need more ports than one source address has.
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	if v6 {
		s.Addresses = []lb.Frontend{lb.FrontendOf(v6VIP)}
	}
	o := Options{MaxFlows: maxFlows, Ports: lb.PortRange{First: 1024, Last: 65535}}
	b := &bench{d: newDatapathWith(t, o, natTimeouts, s), options: o, pairs: backendCount * len(s.SourceAddresses)}

	b.load(t)
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
		flows[i] = benchBenchFlow{
			Saddr: uint32(client), Daddr: binary.LittleEndian.Uint32(vip[:]),
			Source: uint16(client >> 32), Dest: bigEndian16(80),
		}
	}
	b.random = flows
	b.fill(t, flows)
	return b
}

// load loads the benchmark programs on the data plane's maps, with flows of their own.
func (b *bench) load(t *testing.T) {
	t.Helper()
	c := loadBenchPrograms(t, b.d, b.options)
	b.programs, b.pipeline, b.state, b.table = c.Programs, c.Programs["bench_pipeline"], c.Maps["bench_state"], c.Maps["bench_flows"]
	b.maps = map[string]*ebpf.Map{}
	for name, m := range c.Maps {
		if strings.HasPrefix(name, "bench_") {
			b.maps[name] = m
		}
	}
}

// fill writes the flows that the programs go through. Their number is a power of
// two.
func (b *bench) fill(t *testing.T, flows []benchBenchFlow) {
	t.Helper()
	keys := make([]uint32, len(flows))
	for i := range keys {
		keys[i] = uint32(i)
	}
	if _, err := b.table.BatchUpdate(keys, flows, nil); err != nil {
		t.Fatal(err)
	}
	b.flows = len(flows)
}

// answers returns the backends' side of all nat flows, in random order.
func (b *bench) answers(t *testing.T) []benchBenchFlow {
	t.Helper()
	var all []benchBenchFlow
	for number, pair := range b.d.state.Pairs {
		view := viewPair(t, b.d, number)
		backend, source := pair.Address.Addr().As4(), pair.Source.As4()
		for port := range int(lbLimitsNAT_PORTS) {
			if view.flow(uint16(port)).State != uint32(lbNatStateNAT_ESTABLISHED) {
				continue
			}
			all = append(all, benchBenchFlow{
				Saddr: binary.LittleEndian.Uint32(backend[:]), Daddr: binary.LittleEndian.Uint32(source[:]),
				Source: bigEndian16(pair.Address.Port()), Dest: bigEndian16(uint16(port)),
			})
		}
	}
	if len(all) != maxFlows {
		t.Fatalf("%d flows are open, want %d", len(all), maxFlows)
	}
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// frame6 is frame of an IPv6 packet.
func (b *bench) frame6(t *testing.T) []byte {
	t.Helper()
	return toVIP(from6).Bytes()
}

// establish opens all nat flows, a part at a time: a pair remembers only so many
// handshakes.
func (b *bench) establish(t *testing.T) {
	t.Helper()
	const part = maxFlows / 4
	syn := b.frame(t, 0x02)
	for first := 0; first < maxFlows; first += part {
		runBench(t, b.d, b.pipeline, b.state, maxFlows, syn, xdpTX, part, first)
		open := openFlows(t, b.d, b.pairs)
		if open != first+part {
			t.Fatalf("%d flows are open, want %d", open, first+part)
		}
	}
}

// openFlows has the flows of the first pairs established, all that there are, and
// counts them.
func openFlows(t *testing.T, d *Datapath, pairs int) (open int) {
	t.Helper()
	keys := make([]uint32, lbLimitsNAT_PORTS)
	flows := make([]lbNatFlow, lbLimitsNAT_PORTS)
	for pair := 1; pair <= pairs; pair++ {
		inner, err := pairFlows(d, uint32(pair))
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
	return open
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
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, 6 // not to be fragmented, as TCP sends it
	binary.BigEndian.PutUint16(ip[2:], 50)
	ip[32], ip[33] = 0x50, flags
	return f
}
