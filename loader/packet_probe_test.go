package loader

import (
	"math"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Verdicts of a filter, of linux/pkt_cls.h.
const (
	tcGoOn = math.MaxUint32 // TC_ACT_UNSPEC
	tcDrop = 2              // TC_ACT_SHOT
)

var (
	node4  = netip.MustParseAddrPort("192.0.2.1:33000")
	node6  = netip.MustParseAddrPort("[2001:db8::1]:33000")
	probe4 = netip.MustParseAddr("198.18.0.1")
	probe6 = netip.MustParseAddr("2001:2::1")
)

// aim makes a probe address of a path.
func aim(t *testing.T, d *Datapath, address netip.Addr, path lb.ProbePath, link int) {
	t.Helper()
	target := lbProbeTarget{
		Vip: mapped(path.VIP), Backend: mapped(path.Server), Forward: uint32(path.Forward), Interface: uint32(link),
	}
	if err := d.objects.ProbeTargets.Put(lbProbeAddress{Word: mapped(address)}, target); err != nil {
		t.Fatal(err)
	}
	store(&d.tables.arrays.Probes, 1)
}

// leave runs a frame through the filter of what leaves.
func leave(t *testing.T, d *Datapath, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := d.probes.program.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, opts.DataOut
}

// dialled is a frame of this node's to a probe address.
func dialled(changes ...func(*testenv.Frame)) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(backendMAC(1)), SrcMAC: hardware(nicMAC), Src: node4, Dst: netip.AddrPortFrom(probe4, 80),
		Flags: testenv.SYN, Seq: 1000, Window: 512, Payload: []byte("hello"), DontFragment: true,
	}
	for _, change := range changes {
		change(&f)
	}
	return f
}

func dialled6(f *testenv.Frame) { f.Src, f.Dst = node6, netip.AddrPortFrom(probe6, 80) }

// probeAnswer is the frame of a backend that answers a probe.
func probeAnswer(changes ...func(*testenv.Frame)) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: vipPort, Dst: node4,
		Flags: testenv.SYN | testenv.ACK, Seq: 77, Ack: 1001, Window: 512, Payload: []byte("there"),
	}
	for _, change := range changes {
		change(&f)
	}
	return f
}

func answer6(f *testenv.Frame) { f.Src, f.Dst = v6VIP, node6 }

// A probe leaves as a client's packet does, in every mode and mix of families, and
// its answer comes back from the address that was dialled.
func TestProbeThereAndBack(t *testing.T) {
	tests := []struct {
		name    string
		forward lb.Forward
		backend netip.AddrPort
		in      testenv.Frame
		answer  testenv.Frame
		outer   testenv.Tunnel // of tunnel; addresses and lengths are checked apart
	}{
		{"dsr", lb.DSR, v4Backend, dialled(), probeAnswer(), testenv.Tunnel{}},
		{"dsr, no payload", lb.DSR, v4Backend, dialled(func(f *testenv.Frame) { f.Payload = nil }), probeAnswer(), testenv.Tunnel{}},
		{"dsr ipv6", lb.DSR, v6Backend, dialled(dialled6), probeAnswer(answer6), testenv.Tunnel{}},
		{"tunnel, ipv4 in ipv4", lb.Tunnel, v4Backend, dialled(), probeAnswer(), testenv.Tunnel{Protocol: 4, TTL: 64, DontFragment: true}},
		{"tunnel, may be fragmented", lb.Tunnel, v4Backend, dialled(func(f *testenv.Frame) { f.DontFragment = false }), probeAnswer(),
			testenv.Tunnel{Protocol: 4, TTL: 64}},
		{"tunnel, ipv6 in ipv4", lb.Tunnel, v4Backend, dialled(dialled6), probeAnswer(answer6), testenv.Tunnel{Protocol: 41, TTL: 64, DontFragment: true}},
		{"tunnel, ipv4 in ipv6", lb.Tunnel, v6Backend, dialled(func(f *testenv.Frame) { f.TOS = 0x28 }), probeAnswer(), testenv.Tunnel{Protocol: 4, TTL: 64, TOS: 0x28}},
		{"tunnel, ipv6 in ipv6", lb.Tunnel, v6Backend, dialled(dialled6), probeAnswer(answer6), testenv.Tunnel{Protocol: 41, TTL: 64}},
	}
	d := newDatapath(t, tunnelService(v4Backend, 0))
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			vip := tc.answer.Src.Addr()
			aim(t, d, tc.in.Dst.Addr(), lb.ProbePath{VIP: vip, Server: tc.backend.Addr(), Forward: tc.forward}, nicIndex)
			verdict, out := leave(t, d, tc.in.Bytes())
			if verdict != tcGoOn {
				t.Fatalf("verdict %d", verdict)
			}
			if tc.forward == lb.Tunnel {
				outer, inner, err := testenv.Decapsulate(out)
				if err != nil {
					t.Fatal(err)
				}
				source := DefaultTunnelSource4
				if tc.backend.Addr().Is6() {
					source = DefaultTunnelSource6
				}
				if !source.Contains(outer.Src) || outer.Dst != tc.backend.Addr() {
					t.Errorf("from %v to %v, want it from %v to %v", outer.Src, outer.Dst, source, tc.backend.Addr())
				}
				got := testenv.Tunnel{Protocol: outer.Protocol, TTL: outer.TTL, TOS: outer.TOS, DontFragment: outer.DontFragment}
				if diff := cmp.Diff(tc.outer, got, equateAddrs); diff != "" {
					t.Errorf("outer header (-want +got):\n%s", diff)
				}
				out = inner
			}
			if err := testenv.VerifyChecksums(out); err != nil {
				t.Error(err)
			}
			want := parse(t, tc.in.Bytes())
			want.Dst = netip.AddrPortFrom(vip, 80)
			if diff := cmp.Diff(want, parse(t, out), equateAddrs); diff != "" {
				t.Errorf("what left (-want +got):\n%s", diff)
			}

			before := outcomes(t, d)["probe"]
			verdict, out = send(t, d, tc.answer.Bytes())
			if counted := outcomes(t, d)["probe"] - before; verdict != xdpPass || counted != 1 {
				t.Fatalf("the answer has verdict %d, %d counted", verdict, counted)
			}
			if err := testenv.VerifyChecksums(out); err != nil {
				t.Error(err)
			}
			want = parse(t, tc.answer.Bytes())
			want.Src = netip.AddrPortFrom(tc.in.Dst.Addr(), 80)
			if diff := cmp.Diff(want, parse(t, out), equateAddrs); diff != "" {
				t.Errorf("the answer (-want +got):\n%s", diff)
			}
		})
	}
}

// What leaves and is no probe stays as it is; what is one and cannot go is dropped.
func TestProbeFilterLeavesOthersAlone(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	path := lb.ProbePath{VIP: vipIP, Server: backendAddr(1), Forward: lb.DSR}
	aim(t, d, probe4, path, nicIndex)
	aim(t, d, probe6, lb.ProbePath{VIP: v6VIP.Addr(), Server: v6Backend.Addr(), Forward: lb.DSR}, nicIndex)
	elsewhere := netip.MustParseAddr("198.18.0.2")
	aim(t, d, elsewhere, path, 7)
	dst := func(s string) func(*testenv.Frame) {
		return func(f *testenv.Frame) { f.Dst = netip.MustParseAddrPort(s) }
	}
	tests := []struct {
		name    string
		in      testenv.Frame
		verdict uint32
	}{
		{"another address", dialled(dst("192.0.2.11:80")), tcGoOn},
		{"the VIP", dialled(dst("192.0.2.100:80")), tcGoOn},
		{"an address of the prefix that is nobody's", dialled(dst("198.18.0.3:80")), tcGoOn},
		{"an address beside the prefix", dialled(dst("198.19.0.1:80")), tcGoOn},
		{"another IPv6 address", dialled(dialled6, dst("[2001:db8::11]:80")), tcGoOn},
		{"an IPv6 address of the prefix that is nobody's", dialled(dialled6, dst("[2001:2::2]:80")), tcGoOn},
		{"an IPv6 address beside the prefix", dialled(dialled6, dst("[2001:2:0:1::1]:80")), tcGoOn},
		{"arp", dialled(func(f *testenv.Frame) { f.EtherType, f.Payload = testenv.EtherTypeARP, make([]byte, 46) }), tcGoOn},
		{"udp", dialled(udp), tcDrop},
		{"udp, IPv6", dialled(dialled6, udp), tcDrop},
		{"icmp", dialled(func(f *testenv.Frame) { f.Protocol = testenv.ProtocolICMP }), tcDrop},
		{"ip options", dialled(func(f *testenv.Frame) { f.IPOptions = []byte{1, 1, 1, 0} }), tcDrop},
		{"a fragment", dialled(func(f *testenv.Frame) { f.DontFragment, f.MoreFragments = false, true }), tcDrop},
		{"by another interface than its path", dialled(func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(elsewhere, 80) }), tcDrop},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			in := tc.in.Bytes()
			verdict, out := leave(t, d, in)
			if verdict != tc.verdict {
				t.Errorf("verdict %d, want %d", verdict, tc.verdict)
			}
			if diff := cmp.Diff(in, out); diff != "" {
				t.Errorf("the frame was changed (-in +out):\n%s", diff)
			}
		})
	}
}

// Every length that a frame may be cut to.
func TestProbeFramesThatAreCut(t *testing.T) {
	d := newDatapath(t, tunnelService(v4Backend, 0))
	for _, pair := range []struct{ out, back testenv.Frame }{{dialled(), probeAnswer()}, {dialled(dialled6), probeAnswer(answer6)}} {
		aim(t, d, pair.out.Dst.Addr(), lb.ProbePath{VIP: pair.back.Src.Addr(), Server: v4Backend.Addr(), Forward: lb.DSR}, nicIndex)
		out, back := pair.out.Bytes(), pair.back.Bytes()
		leave(t, d, out)
		// BPF_PROG_TEST_RUN takes no less than an Ethernet header.
		for n := 14; n < len(back); n++ {
			if got := try(t, d, back[:n]); got.Outcome == "probe" {
				t.Errorf("an answer that is cut to %d bytes was taken for one", n)
			}
		}
		ip := 20
		if pair.out.Dst.Addr().Is6() {
			ip = 40
		}
		// A filter is run by the kernel with whole IP headers only.
		for n := 14 + ip; n < 14+ip+18; n++ {
			if verdict, _ := leave(t, d, out[:n]); verdict != tcDrop {
				t.Errorf("a probe that is cut to %d bytes has verdict %d", n, verdict)
			}
		}
	}
}

// An answer is one to a probe that was noted, of this node's, from a VIP.
func TestWhatIsNoAnswerToAProbe(t *testing.T) {
	d := newDatapath(t, tunnelService(v4Backend, 0))
	aim(t, d, probe4, lb.ProbePath{VIP: vipIP, Server: backendAddr(1), Forward: lb.DSR}, nicIndex)
	aim(t, d, probe6, lb.ProbePath{VIP: v6VIP.Addr(), Server: v6Backend.Addr(), Forward: lb.DSR}, nicIndex)
	leave(t, d, dialled().Bytes())
	leave(t, d, dialled(dialled6).Bytes())
	src := func(s string) func(*testenv.Frame) {
		return func(f *testenv.Frame) { f.Src = netip.MustParseAddrPort(s) }
	}
	dst := func(s string) func(*testenv.Frame) {
		return func(f *testenv.Frame) { f.Dst = netip.MustParseAddrPort(s) }
	}
	tests := []struct {
		name    string
		in      testenv.Frame
		outcome string
	}{
		{"from the backend's own address", probeAnswer(src("192.0.2.11:80")), "not_vip"},
		{"from another port", probeAnswer(src("192.0.2.100:81")), "not_vip"},
		{"to another port", probeAnswer(dst("192.0.2.1:33001")), "not_vip"},
		{"to another address", probeAnswer(dst("192.0.2.2:33000")), "not_vip"},
		{"to another port, IPv6", probeAnswer(answer6, dst("[2001:db8::1]:33001")), "not_vip"},
		{"from another address, IPv6", probeAnswer(answer6, src("[2001:db8::11]:80")), "not_vip"},
		{"for another NIC", probeAnswer(toMAC("02:00:00:00:00:02")), "not_vip"},
		{"udp", probeAnswer(udp), "not_vip"},
		{"a first fragment", probeAnswer(func(f *testenv.Frame) { f.MoreFragments = true }), "not_vip"},
		{"a later fragment", probeAnswer(func(f *testenv.Frame) { f.FragOffset = 1480 }), "not_vip"},
		{"malformed", probeAnswer(func(f *testenv.Frame) { f.IHL = 4 }), "not_vip"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := try(t, d, tc.in.Bytes()); got.Verdict != xdpPass || got.Outcome != tc.outcome {
				t.Errorf("verdict %d, outcome %s, want %s", got.Verdict, got.Outcome, tc.outcome)
			}
		})
	}
	t.Run("while nothing is probed", func(t *testing.T) {
		store(&d.tables.arrays.Probes, 0)
		if got := try(t, d, probeAnswer().Bytes()); got.Outcome != "not_vip" {
			t.Errorf("outcome %s", got.Outcome)
		}
	})
}

// Two probes of one VIP have ports of their own, and a port that is used again
// names the path of the last probe. A source address of nat may be the node's own.
func TestProbesAreToldApart(t *testing.T) {
	web := service("web", lb.NAT, 80, backends(1, 80))
	web.SourceAddresses = []netip.Addr{node4.Addr()}
	d := newDatapath(t, web)
	second := netip.MustParseAddr("198.18.0.2")
	aim(t, d, probe4, lb.ProbePath{VIP: vipIP, Server: backendAddr(1), Forward: lb.DSR}, nicIndex)
	aim(t, d, second, lb.ProbePath{VIP: vipIP, Server: backendAddr(2), Forward: lb.DSR}, nicIndex)
	for _, step := range []struct {
		name string
		port uint16
		dial netip.Addr
	}{{"the first", 33000, probe4}, {"the second", 33001, second}, {"the second by the first one's port", 33000, second}} {
		node := netip.AddrPortFrom(node4.Addr(), step.port)
		leave(t, d, dialled(func(f *testenv.Frame) { f.Src, f.Dst = node, netip.AddrPortFrom(step.dial, 80) }).Bytes())
		_, out := send(t, d, probeAnswer(func(f *testenv.Frame) { f.Dst = node }).Bytes())
		if got := parse(t, out).Src.Addr(); got != step.dial {
			t.Errorf("%s: the answer is from %v, want %v", step.name, got, step.dial)
		}
	}
}
