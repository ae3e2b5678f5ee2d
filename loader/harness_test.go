package loader

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The NIC that test packets come in by: lo, which BPF_PROG_TEST_RUN uses.
const nicIndex = 1

var (
	nicMAC     = [6]byte{2, 0, 0, 0, 0, 1}
	clientMAC  = [6]byte{2, 0, 0, 0, 0, 0xc1}
	clientIP   = netip.MustParseAddr("198.51.100.7")
	clientPort = netip.AddrPortFrom(clientIP, 40000)
	vipIP      = netip.MustParseAddr("192.0.2.100")
	vipPort    = netip.AddrPortFrom(vipIP, 80)
)

func backendMAC(i int) [6]byte { return [6]byte{2, 0, 0, 0, 1, byte(i)} }

func backendAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}) }

// backends returns n backends with the given port, numbered from 1, weight 1.
func backends(n int, port uint16) []lb.Backend {
	var bs []lb.Backend
	for i := 1; i <= n; i++ {
		bs = append(bs, lb.Backend{
			Address: netip.AddrPortFrom(backendAddr(i), port), Weight: 1,
			NextHop: lb.NextHop{Interface: nicIndex, Destination: backendMAC(i), Source: nicMAC},
		})
	}
	return bs
}

// service returns a service of the VIP.
func service(name string, forward lb.Forward, port uint16, bs []lb.Backend) lb.ServiceState {
	return lb.ServiceState{
		Service: lb.Service{
			Name: name, Addresses: []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(vipIP, port))}, Protocol: lb.TCP,
			Forward: forward, SourceAddresses: []netip.Addr{vipIP}, TableSize: lb.DefaultTableSize,
		},
		Backends: bs,
	}
}

// allPorts is the share of a node that is alone.
var allPorts = lb.PortRange{First: 1024, Last: 65535}

// newDatapath loads a data plane without pins and applies the services.
func newDatapath(t testing.TB, services ...lb.ServiceState) *Datapath {
	return newDatapathWith(t, Options{MaxFlows: 100000, Ports: allPorts}, natTimeouts, services...)
}

// patientTimeouts are natTimeouts, but that a handshake does not end by itself while a test
// runs: of thousands of packets in an emulated machine some may be older than a real one gets.
func patientTimeouts() map[lbNatState]time.Duration {
	patient := maps.Clone(natTimeouts)
	patient[lbNatStateNAT_SYN_SENT], patient[lbNatStateNAT_SYN_RECEIVED] = time.Hour, time.Hour
	return patient
}

func newDatapathWith(t testing.TB, o Options, timeouts map[lbNatState]time.Duration, services ...lb.ServiceState) *Datapath {
	t.Helper()
	testenv.RequireRoot(t)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d, err := open(o, timeouts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	store(d.tables.nic(nicIndex), lbInterface{Index: nicIndex, Mac: nicMAC})
	apply(t, d, services...)
	return d
}

func apply(t testing.TB, d *Datapath, services ...lb.ServiceState) {
	t.Helper()
	if err := d.Apply(lb.Snapshot{Services: services}); err != nil {
		t.Fatal(err)
	}
}

// letGo removes the backends that have left, whatever they hold.
func letGo(t testing.TB, d *Datapath) {
	t.Helper()
	drained := map[uint32]bool{}
	for n, b := range d.state.Backends {
		drained[n] = b.Leaving != 0
	}
	if err := d.apply(d.want, limits{drained: drained}); err != nil {
		t.Fatal(err)
	}
}

// XDP verdicts, of linux/bpf.h.
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4
)

// send runs one frame through the program. A dry run, before it, must have said
// what becomes of it.
func send(t testing.TB, d *Datapath, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	if d.objects == nil { // an earlier version's program, which knows no dry runs
		return sendEarnest(t, d, frame)
	}
	dry := runDry(t, d, frame)
	verdict, out = sendEarnest(t, d, frame)
	dry.agrees(t, verdict, out)
	return verdict, out
}

// sendEarnest runs one frame through the program that forwards.
func sendEarnest(t testing.TB, d *Datapath, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := d.program.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, opts.DataOut
}

// A result is what became of a frame. Of one that was forwarded the outcome is
// "sent", its checksums are right, and Frame is how it left.
type result struct {
	Verdict uint32
	Outcome string
	Frame   testenv.Frame
}

// try runs one frame through the program and checks what must hold for every
// frame: one outcome is counted unless it was sent on, verdict and outcome agree,
// and what does not leave is untouched.
func try(t testing.TB, d *Datapath, frame []byte) result {
	t.Helper()
	before := outcomes(t, d)
	verdict, out := send(t, d, frame)
	r := result{Verdict: verdict, Outcome: "sent"}
	counted := uint64(0)
	for name, n := range outcomes(t, d) {
		if n > before[name] {
			counted += n - before[name]
			r.Outcome = name
		}
	}
	forwarded := verdict == xdpTX || verdict == xdpRedirect
	want := uint64(1)
	if forwarded && r.Outcome != "who_has" {
		want = 0
	}
	if counted != want {
		t.Errorf("a frame with verdict %d counted %d outcomes, want %d", verdict, counted, want)
	}
	if verdict == xdpPass || verdict == xdpDrop {
		if dropped[r.Outcome] != (verdict == xdpDrop) {
			t.Errorf("outcome %s has verdict %d", r.Outcome, verdict)
		}
		if diff := cmp.Diff(frame, out); verdict == xdpPass && diff != "" {
			t.Errorf("a frame that passes was changed (-in +out):\n%s", diff)
		}
		return r
	}
	if !forwarded {
		t.Fatalf("verdict %d", verdict)
	}
	if err := testenv.VerifyChecksums(out); err != nil {
		t.Errorf("checksum of the frame that left: %v", err)
	}
	r.Frame = parse(t, out)
	return r
}

// dropped tells the outcomes that drop.
var dropped = func() map[string]bool {
	m := map[string]bool{}
	for o, name := range outcomeNames {
		m[name] = o >= lbOutcomeDROP_MALFORMED_IP
	}
	return m
}()

func parse(t testing.TB, frame []byte) testenv.Frame {
	t.Helper()
	f, err := testenv.ParseFrame(frame)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// outcomes returns how often each outcome was counted.
func outcomes(t testing.TB, d *Datapath) map[string]uint64 {
	t.Helper()
	all, err := readOutcomes(d.objects)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]uint64{}
	for _, o := range all {
		if o.Packets > 0 {
			m[o.Name] = o.Packets
		}
	}
	return m
}

func stats(t testing.TB, d *Datapath) Stats {
	t.Helper()
	s, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// losses returns those of the first service.
func losses(t testing.TB, d *Datapath) Losses {
	t.Helper()
	return stats(t, d).Services[0].Losses
}

// traffic sums up the counters of the first service's backends.
func traffic(t testing.TB, d *Datapath) BackendStats {
	t.Helper()
	var sum BackendStats
	for _, b := range stats(t, d).Services[0].Backends {
		sum.Packets += b.Packets
		sum.Bytes += b.Bytes
		sum.Flows += b.Flows
		sum.ReplyPackets += b.ReplyPackets
		sum.ReplyBytes += b.ReplyBytes
	}
	return sum
}

// equateAddrs lets cmp compare what holds addresses.
var equateAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func hardware(mac [6]byte) net.HardwareAddr { return net.HardwareAddr(mac[:]) }

// toVIP returns a data packet of the client, with the changes.
func toVIP(changes ...func(*testenv.Frame)) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(clientMAC), Src: clientPort, Dst: vipPort,
		Flags: testenv.ACK, Seq: 1001, Ack: 5001, Window: 512, Payload: []byte("hello"),
	}
	for _, change := range changes {
		change(&f)
	}
	return f
}

var errNoPair = errors.New("no pair")

// pairFlows returns the flow table of a pair.
func pairFlows(d *Datapath, pair uint32) (*ebpf.Map, error) {
	var inner *ebpf.Map
	if err := d.objects.NatFlows.Lookup(pair, &inner); err != nil {
		return nil, errors.Join(errNoPair, err)
	}
	return inner, nil
}

// used counts the entries of a part of the program's variable that are not zero.
func used[T comparable](entries []T) int {
	var zero T
	n := 0
	for _, e := range entries {
		if e != zero {
			n++
		}
	}
	return n
}

// rest counts the entries of an array that are not zero.
func rest[T comparable](t testing.TB, m *ebpf.Map) int {
	t.Helper()
	all, err := readAll[T](m)
	if err != nil {
		t.Fatal(err)
	}
	var zero T
	n := 0
	for _, v := range all {
		if v != zero {
			n++
		}
	}
	return n
}
