package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Figures tells whether to measure: for the tests that are outside of this package,
// since they need what imports it.
func Figures() bool { return *figures }

const (
	syncBackends = 40
	// OpenPackets and ClosePackets are how many packets open a connection, and open and
	// close it.
	OpenPackets  = int(benchBenchPacketBENCH_OPENED)
	ClosePackets = int(benchBenchPacketBENCH_CLOSED)
	// paceStep is how often a paced generator looks at the clock.
	paceStep = time.Millisecond
)

// SyncVIP is the VIP of the service of a SyncBench, SyncFlows how many connections Establish
// opens.
var (
	SyncVIP   = vipIP
	SyncFlows = maxFlows
)

// A SyncBench is a data plane with a nat service that has room for three million flows, and
// the programs that open and close connections to it, each of which has a number.
// One goroutine at a time may send packets.
type SyncBench struct {
	*Datapath
	t                  *testing.T
	pipeline, mixed    *ebpf.Program
	state, connections *ebpf.Map
	flows              *ebpf.Map
	frame              []byte
}

// NewSyncBench makes one whose node hands out these ports.
func NewSyncBench(t *testing.T, share lb.PortRange, tell bool) *SyncBench {
	t.Helper()
	s := service("web", lb.NAT, 80, backends(syncBackends, 80))
	s.SourceAddresses = []netip.Addr{vipIP, netip.MustParseAddr("192.0.2.101")}
	o := Options{MaxFlows: 3 * maxFlows, Ports: share, TellFlows: tell}
	b := &SyncBench{t: t, Datapath: newDatapathWith(t, o, natTimeouts, s), frame: (&bench{}).frame(t, 0x10)}
	c := loadBenchPrograms(t, b.Datapath, o, "bench_pipeline", "bench_mixed")
	b.pipeline, b.mixed = c.Programs["bench_pipeline"], c.Programs["bench_mixed"]
	b.state, b.connections, b.flows = c.Maps["bench_state"], c.Maps["bench_connections"], c.Maps["bench_flows"]
	return b
}

// loadBenchPrograms loads the programs of bench.c over the maps of a data plane: those
// of these names, or all but the one that has stages.
func loadBenchPrograms(t *testing.T, d *Datapath, o Options, names ...string) *ebpf.Collection {
	t.Helper()
	spec := benchSpec(t, d, o)
	for name := range spec.Programs {
		if len(names) > 0 && !slices.Contains(names, name) || len(names) == 0 && name == stageProgram {
			delete(spec.Programs, name)
		}
	}
	return newBenchCollection(t, spec, d, nil)
}

// benchSpec is bench.c with the constants and the sizes of a data plane.
func benchSpec(t *testing.T, d *Datapath, o Options) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := loadBench()
	if err != nil {
		t.Fatal(err)
	}
	var meta lbMeta
	if err := d.objects.Meta.Lookup(uint32(0), &meta); err != nil {
		t.Fatal(err)
	}
	if err := setVariables(spec, o, meta, natTimeouts); err != nil {
		t.Fatal(err)
	}
	for _, m := range d.mapsByName() {
		spec.Maps[m.name].MaxEntries, spec.Maps[m.name].Flags = m.m.MaxEntries(), m.m.Flags()
	}
	return spec
}

// newBenchCollection loads it over the data plane's maps and these of its own.
func newBenchCollection(t *testing.T, spec *ebpf.CollectionSpec, d *Datapath, own map[string]*ebpf.Map) *ebpf.Collection {
	t.Helper()
	replace := maps.Clone(own)
	if replace == nil {
		replace = map[string]*ebpf.Map{}
	}
	for _, m := range d.mapsByName() {
		replace[m.name] = m.m
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// SyncNumber returns the number of a connection by its client.
func SyncNumber(client netip.AddrPort) int {
	a := client.Addr().As4()
	low := int(a[1]&1)<<16 | int(a[2])<<8 | int(a[3])
	return (int(client.Port())-int(benchBenchPacketBENCH_FIRST_PORT))<<benchBenchPacketBENCH_CLIENT_BITS | low
}

// syncClient is the reverse.
func syncClient(number int) netip.AddrPort {
	const bits = int(benchBenchPacketBENCH_CLIENT_BITS)
	low := number & (1<<bits - 1)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 + byte(low>>16), byte(low >> 8), byte(low)}),
		uint16(int(benchBenchPacketBENCH_FIRST_PORT)+number>>bits))
}

// begin has the connection of a number come next, and so many packets of established
// flows between two of connections.
func (b *SyncBench) begin(first, packets, between int) error {
	vip := vipIP.As4()
	c := benchBenchConnections{
		Next: uint64(first), Packets: uint32(packets), Between: uint32(between), Left: uint32(between),
		Vip: binary.LittleEndian.Uint32(vip[:]), VipPort: bigEndian16(80),
	}
	s := benchBenchState{Flows: uint32(maxFlows), Expect: xdpTX}
	copy(s.Frame[:], b.frame)
	return errors.Join(put(b.connections, 0, &c), put(b.state, 0, &s))
}

// ended returns how many connections came to their end since begin. That a packet was
// not forwarded is an error.
func (b *SyncBench) ended(first int) (int, error) {
	var c benchBenchConnections
	var s benchBenchState
	if err := errors.Join(b.connections.Lookup(uint32(0), &c), b.state.Lookup(uint32(0), &s)); err != nil {
		return 0, err
	}
	if c.Wrong+s.Wrong != 0 {
		return 0, fmt.Errorf("%d packets of connections and %d of established flows were not forwarded", c.Wrong, s.Wrong)
	}
	return int(c.Next) - first, nil
}

// Connections sends the packets of count connections, the first of which has a number,
// as fast as it can. The result is the processor's time.
func (b *SyncBench) Connections(first, count, packets int) time.Duration {
	b.t.Helper()
	took, n := b.mix(first, packets, 0, count*packets)
	if n < count {
		b.t.Fatalf("%d connections have ended, want %d", n, count)
	}
	return took
}

// Mixed sends count packets, one in between+1 of which belongs to a connection of a number
// from first on that is opened and closed, and the others to established flows. Ended
// is how many of these connections there were.
func (b *SyncBench) Mixed(first, between, count int) (took time.Duration, ended int) {
	b.t.Helper()
	return b.mix(first, ClosePackets, between, count)
}

func (b *SyncBench) mix(first, packets, between, count int) (took time.Duration, ended int) {
	b.t.Helper()
	err := b.begin(first, packets, between)
	if err == nil {
		took, err = cpuTime(func() error {
			_, _, err := b.mixed.Benchmark(b.frame, count, nil)
			return err
		})
	}
	if err == nil {
		ended, err = b.ended(first)
	}
	if err != nil {
		b.t.Fatalf("connections from number %d on: %v: %v", first, err, outcomes(b.t, b.Datapath))
	}
	return took, ended
}

// Established sends count packets to the first million connections, in random order.
func (b *SyncBench) Established(count int) (took time.Duration) {
	b.t.Helper()
	took, err := cpuTime(func() error {
		runBench(b.t, b.Datapath, b.pipeline, b.state, maxFlows, b.frame, xdpTX, count, 0)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return took
}

// Establish opens the first million connections.
func (b *SyncBench) Establish() {
	b.t.Helper()
	b.Connections(0, maxFlows, OpenPackets)
	vip := vipIP.As4()
	keys, flows := make([]uint32, maxFlows), make([]benchBenchFlow, maxFlows)
	for i, number := range rand.New(rand.NewPCG(1, 2)).Perm(maxFlows) {
		c := syncClient(number)
		address := c.Addr().As4()
		keys[i] = uint32(i)
		flows[i] = benchBenchFlow{
			Saddr: binary.LittleEndian.Uint32(address[:]), Daddr: binary.LittleEndian.Uint32(vip[:]),
			Source: bigEndian16(c.Port()), Dest: bigEndian16(80),
		}
	}
	if _, err := b.flows.BatchUpdate(keys, flows, nil); err != nil {
		b.t.Fatal(err)
	}
}

// A Pace is what became of connections that were opened at a rate.
type Pace struct {
	Opened int
	Took   time.Duration
	CPU    time.Duration // what it took of the processor to send the packets
}

// OpenPaced opens so many connections a second, until ctx ends or there are count, each
// packet by itself. Opens is told of each, before the packet that opens it.
func (b *SyncBench) OpenPaced(ctx context.Context, first, count, rate int, opens func(number int)) (p Pace, err error) {
	if err := b.begin(first, OpenPackets, 0); err != nil {
		return p, err
	}
	start := time.Now()
	p.CPU, err = cpuTime(func() error {
		step := time.NewTicker(paceStep)
		defer step.Stop()
		for p.Opened < count {
			select {
			case <-ctx.Done():
				return nil
			case <-step.C:
			}
			for due := int(time.Since(start) * time.Duration(rate) / time.Second); p.Opened < min(due, count); p.Opened++ {
				if err := b.open(first+p.Opened, opens); err != nil {
					return err
				}
			}
		}
		return nil
	})
	p.Took = time.Since(start)
	if err != nil {
		return p, err
	}
	n, err := b.ended(first)
	if err == nil && n != p.Opened {
		err = fmt.Errorf("%d connections are open, want %d", n, p.Opened)
	}
	return p, err
}

// open sends the packets of the next connection.
func (b *SyncBench) open(number int, opens func(int)) error {
	for i := range OpenPackets {
		if i == int(benchBenchPacketBENCH_OPEN) {
			opens(number)
		}
		if _, err := b.mixed.Run(&ebpf.RunOptions{Data: b.frame, Repeat: 1}); err != nil {
			return err
		}
	}
	return nil
}

// cpuTime measures the processor's time for what f does.
func cpuTime(f func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := clock(unix.CLOCK_THREAD_CPUTIME_ID)
	err := f()
	return clock(unix.CLOCK_THREAD_CPUTIME_ID) - before, err
}

// ProcessTime is what this process has taken of all processors so far.
func ProcessTime() time.Duration { return clock(unix.CLOCK_PROCESS_CPUTIME_ID) }

// Typical is the time of a packet where each round has so many.
func Typical(rounds []time.Duration, packets int) float64 {
	return typical(rounds) * benchRuns / float64(packets)
}
