package loader

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// The NIC that test packets come in by: lo, which BPF_PROG_TEST_RUN uses.
const nicIndex = 1

var (
	nicMAC    = [6]byte{2, 0, 0, 0, 0, 1}
	clientMAC = [6]byte{2, 0, 0, 0, 0, 0xc1}
	clientIP  = netip.MustParseAddr("198.51.100.7")
	vipIP     = netip.MustParseAddr("192.0.2.100")
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
			Name: name, Addresses: []netip.AddrPort{netip.AddrPortFrom(vipIP, port)}, Protocol: lb.TCP,
			Forward: forward, SourceAddresses: []netip.Addr{vipIP}, TableSize: lb.DefaultTableSize,
		},
		Backends: bs,
	}
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("SLUICE_REQUIRE_ROOT") != "" {
		t.Fatal("this test needs root, and SLUICE_REQUIRE_ROOT is set")
	}
	t.Skip("this test needs root")
}

// newDatapath loads a data plane without pins and applies the services.
func newDatapath(t testing.TB, services ...lb.ServiceState) *Datapath {
	return newDatapathWith(t, Options{MaxFlows: 100000, Ports: PortRange{1024, 65535}}, natTimeouts, services...)
}

func newDatapathWith(t testing.TB, o Options, timeouts map[lbNatState]time.Duration, services ...lb.ServiceState) *Datapath {
	t.Helper()
	requireRoot(t)
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
	if err := put(d.objects.Interfaces, nicIndex, &lbInterface{Index: nicIndex, Mac: nicMAC}); err != nil {
		t.Fatal(err)
	}
	apply(t, d, services...)
	return d
}

func apply(t testing.TB, d *Datapath, services ...lb.ServiceState) {
	t.Helper()
	if err := d.Apply(lb.Snapshot{Services: services}); err != nil {
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

// send runs one frame through the program.
func send(t testing.TB, d *Datapath, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := d.program.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, opts.DataOut
}

// outcomes returns how often each outcome was counted.
func outcomes(t testing.TB, d *Datapath) map[string]uint64 {
	t.Helper()
	s, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]uint64{}
	for _, o := range s.Outcomes {
		if o.Packets > 0 {
			m[o.Name] = o.Packets
		}
	}
	return m
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
