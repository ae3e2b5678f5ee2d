package loader

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	tunnelNode4 = netip.MustParseAddr("192.0.2.1")
	tunnelNode6 = netip.MustParseAddr("2001:db8::1")
	tunnelHost4 = netip.MustParseAddr("192.0.2.11") // this backend
	tunnelHost6 = netip.MustParseAddr("2001:db8::11")
	tunnelVIP6  = netip.MustParseAddr("2001:db8::100")
	client6     = netip.MustParseAddrPort("[2001:db8:1::7]:40000")
)

// decapProgram loads the program with this backend's addresses and VIPs, attached
// to nothing.
func decapProgram(t testing.TB) *Decap {
	t.Helper()
	testenv.RequireRoot(t)
	d := &Decap{log: slog.New(slog.DiscardHandler)}
	if err := d.load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	hosts := map[decapHost]bool{
		{Interface: nicIndex, Address: decapKey(tunnelHost4)}: true,
		{Interface: nicIndex, Address: decapKey(tunnelHost6)}: true,
		// Another interface's own.
		{Interface: nicIndex + 1, Address: decapKey(netip.MustParseAddr("192.0.2.12"))}: true,
	}
	if err := setKeys("hosts", d.objects.Hosts, hosts); err != nil {
		t.Fatal(err)
	}
	vips := map[decapAddress]bool{decapKey(vipIP): true, decapKey(tunnelVIP6): true}
	if err := setKeys("VIPs", d.objects.Vips, vips); err != nil {
		t.Fatal(err)
	}
	return d
}

// decapTotals returns how often each outcome was counted, but for those that never were.
func decapTotals(t testing.TB, d *Decap) map[string]uint64 {
	t.Helper()
	all, err := d.Stats()
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

// tryDecap runs one frame through the program and checks what holds for every
// frame: one outcome is counted, verdict and outcome agree, and what was not
// decapsulated is untouched.
func tryDecap(t testing.TB, d *Decap, frame []byte) (outcome string, out []byte) {
	t.Helper()
	before := decapTotals(t, d)
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := d.program.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	counted := uint64(0)
	for name, n := range decapTotals(t, d) {
		if n > before[name] {
			counted += n - before[name]
			outcome = name
		}
	}
	if counted != 1 {
		t.Fatalf("%d outcomes were counted, want 1", counted)
	}
	all, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if o.Name == outcome && o.Dropped != (verdict == xdpDrop) {
			t.Errorf("outcome %s has verdict %d", outcome, verdict)
		}
	}
	switch verdict {
	case xdpDrop:
		return outcome, nil
	case xdpPass:
	default:
		t.Fatalf("verdict %d", verdict)
	}
	if diff := cmp.Diff(frame, opts.DataOut); outcome != "decapsulated" && diff != "" {
		t.Errorf("a frame that passes was changed (-in +out):\n%s", diff)
	}
	return outcome, opts.DataOut
}

// A tunnelMix is a pair of families, outer and inner.
type tunnelMix struct {
	name         string
	tunnel       testenv.Tunnel
	inner        func(tags []uint16, trafficClass uint8) []byte
	outer, start int // lengths: of the outer header, of the least inner header
}

func inner4(tags []uint16, tos uint8) []byte {
	return toVIP(vlans(tags...), func(f *testenv.Frame) { f.TOS = tos }).Bytes()
}

func inner6(tags []uint16, trafficClass uint8) []byte {
	return testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(clientMAC), VLANs: tags,
		Src: client6, Dst: netip.AddrPortFrom(tunnelVIP6, 80), TOS: trafficClass, FlowLabel: 0x54321,
		Flags: testenv.ACK, Seq: 1001, Ack: 5001, Window: 512, Payload: []byte("hello"),
	}.Bytes()
}

var (
	over4       = testenv.Tunnel{Src: tunnelNode4, Dst: tunnelHost4, DontFragment: true, ID: 4711, TTL: 63}
	over6       = testenv.Tunnel{Src: tunnelNode6, Dst: tunnelHost6, FlowLabel: 0x12345, TTL: 63}
	tunnelMixes = []tunnelMix{
		{"ipv4 in ipv4", over4, inner4, 20, 20},
		{"ipv6 in ipv4", over4, inner6, 20, 40},
		{"ipv4 in ipv6", over6, inner4, 40, 20},
		{"ipv6 in ipv6", over6, inner6, 40, 40},
	}
)

func forEachTunnelMix(t *testing.T, f func(t *testing.T, d *Decap, m tunnelMix)) {
	d := decapProgram(t)
	for _, m := range tunnelMixes {
		t.Run(m.name, func(t *testing.T) { f(t, d, m) })
	}
}

func encapsulate(t testing.TB, tunnel testenv.Tunnel, frame []byte) []byte {
	t.Helper()
	out, err := tunnel.Encapsulate(frame)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// extended returns the tunnel with extension headers.
func extended(t testenv.Tunnel, next uint8, headers ...[]byte) testenv.Tunnel {
	for _, h := range headers {
		t.NextHeaders, t.Extensions = append(t.NextHeaders, next), append(t.Extensions, h)
	}
	return t
}

// The options that RFC 2473, section 4.1.1, and Linux put before the inner packet.
var encapsulationLimit = []byte{0, 0, 4, 1, 4, 1, 1, 0}

func TestDecap(t *testing.T) {
	padded := func(n int) func([]byte) []byte {
		return func(frame []byte) []byte { return append(frame, make([]byte, n)...) }
	}
	same := func(frame []byte) []byte { return frame }
	with := func(t testenv.Tunnel, change func(*testenv.Tunnel)) testenv.Tunnel {
		change(&t)
		return t
	}
	options := func(n int) testenv.Tunnel {
		return with(over4, func(t *testenv.Tunnel) {
			t.IPOptions = make([]byte, n)
			for i := range t.IPOptions {
				t.IPOptions[i] = 1 // no operation
			}
		})
	}
	tests := []struct {
		name   string
		tunnel testenv.Tunnel
		change func([]byte) []byte // of the whole frame; what it appends stays behind the inner packet
	}{
		{"plain over ipv4", over4, same},
		{"plain over ipv6", over6, same},
		{"padding over ipv4", over4, padded(6)},
		{"padding over ipv6", over6, padded(1)},
		{"4 bytes of options", options(4), same},
		{"40 bytes of options", options(40), same},
		{"may be fragmented", with(over4, func(t *testenv.Tunnel) { t.DontFragment = false }), same},
		{"ttl 1 over ipv4", with(over4, func(t *testenv.Tunnel) { t.TTL = 1 }), same},
		{"ttl 1 over ipv6", with(over6, func(t *testenv.Tunnel) { t.TTL = 1 }), same},
		{"dscp over ipv4", with(over4, func(t *testenv.Tunnel) { t.TOS = 0xb8 }), same},
		{"dscp over ipv6", with(over6, func(t *testenv.Tunnel) { t.TOS = 0xb8 }), same},
		{"another source", with(over4, func(t *testenv.Tunnel) { t.Src = netip.MustParseAddr("198.51.100.99") }), same},
		{"encapsulation limit", extended(over6, testenv.ProtocolDestination, encapsulationLimit), same},
		{"only padding in options", extended(over6, testenv.ProtocolDestination, []byte{0, 0, 1, 4, 0, 0, 0, 0}), same},
		{"single bytes of padding", extended(over6, testenv.ProtocolDestination, []byte{0, 0, 0, 0, 0, 0, 0, 0}), same},
		{"16 bytes of options", extended(over6, testenv.ProtocolDestination, append([]byte{0, 1, 4, 1, 4, 1, 9}, make([]byte, 9)...)), same},
		{"264 bytes of options", extended(over6, testenv.ProtocolDestination, append([]byte{0, 32, 1, 252}, append(make([]byte, 252), 1, 6, 0, 0, 0, 0, 0, 0)...)), same},
		{"an unknown option that may be skipped", extended(over6, testenv.ProtocolDestination, []byte{0, 0, 0x1e, 4, 1, 2, 3, 4}), same},
		{"two headers of options", extended(over6, testenv.ProtocolDestination, encapsulationLimit, encapsulationLimit), same},
	}
	d := decapProgram(t)
	for _, tc := range tests {
		for _, inner := range tunnelMixes[:2] {
			for _, tags := range [][]uint16{nil, {100}, {0xe000 | 200, 300}} {
				t.Run(fmt.Sprintf("%s, %s, %d tags", tc.name, inner.name[:4], len(tags)), func(t *testing.T) {
					want := inner.inner(tags, 0)
					frame := encapsulate(t, tc.tunnel, want)
					outcome, out := tryDecap(t, d, tc.change(frame))
					if outcome != "decapsulated" {
						t.Fatalf("outcome %s", outcome)
					}
					if diff := cmp.Diff(tc.change(want), out); diff != "" {
						t.Errorf("frame (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// What is not for a VIP through this host passes untouched.
func TestDecapPasses(t *testing.T) {
	d := decapProgram(t)
	tunnel := func(base testenv.Tunnel, change func(*testenv.Tunnel)) func(inner []byte) []byte {
		change(&base)
		return func(inner []byte) []byte { return encapsulate(t, base, inner) }
	}
	plain := func(base testenv.Tunnel) func([]byte) []byte {
		return tunnel(base, func(*testenv.Tunnel) {})
	}
	bare := func(inner []byte) []byte { return inner }
	other4 := toVIP(to(netip.MustParseAddrPort("192.0.2.101:80"))).Bytes()
	other6 := testenv.Frame{Src: client6, Dst: netip.MustParseAddrPort("[2001:db8::101]:80")}.Bytes()
	data := inner4(nil, 0)
	tests := []struct {
		name  string
		inner []byte
		outer func([]byte) []byte
		want  string
	}{
		{"tcp to the vip", data, bare, "not_tunnel"},
		{"tcp to the vip over ipv6", inner6(nil, 0), bare, "not_tunnel"},
		{"arp", testenv.Frame{EtherType: testenv.EtherTypeARP, Payload: make([]byte, 46)}.Bytes(), bare, "not_tunnel"},
		{"udp to this host", data, tunnel(over4, func(t *testenv.Tunnel) { t.Protocol = testenv.ProtocolUDP }), "not_tunnel"},
		{"gre over ipv6", data, tunnel(over6, func(t *testenv.Tunnel) { t.Protocol = 47 }), "not_tunnel"},
		{"udp behind options", data, tunnel(extended(over6, testenv.ProtocolDestination, encapsulationLimit),
			func(t *testenv.Tunnel) { t.Protocol = testenv.ProtocolUDP }), "not_tunnel"},
		{"three headers of options", data, plain(extended(over6, testenv.ProtocolDestination,
			encapsulationLimit, encapsulationLimit, encapsulationLimit)), "not_tunnel"},
		{"hop-by-hop options", data, plain(extended(over6, 0, []byte{0, 0, 1, 4, 0, 0, 0, 0})), "not_tunnel"},
		{"three tags", data, func(inner []byte) []byte {
			frame := encapsulate(t, over4, toVIP(vlans(1, 2)).Bytes())
			return append(append(append([]byte{}, frame[:12]...), 0x88, 0xa8, 0, 9), frame[12:]...)
		}, "not_tunnel"},

		{"to another host", data, tunnel(over4, func(t *testenv.Tunnel) { t.Dst = netip.MustParseAddr("192.0.2.13") }), "not_host"},
		{"to another host over ipv6", data, tunnel(over6, func(t *testenv.Tunnel) { t.Dst = netip.MustParseAddr("2001:db8::13") }), "not_host"},
		{"to another interface's address", data, tunnel(over4, func(t *testenv.Tunnel) { t.Dst = netip.MustParseAddr("192.0.2.12") }), "not_host"},
		{"to the vip itself", data, tunnel(over4, func(t *testenv.Tunnel) { t.Dst = vipIP }), "not_host"},
		{"to a mapped address", data, func(inner []byte) []byte {
			frame := encapsulate(t, over6, inner)
			mapped := tunnelHost4.As16()
			copy(frame[14+24:], mapped[:])
			return frame
		}, "not_host"},
		{"to a mapped vip", inner6(nil, 0), func(inner []byte) []byte {
			mapped := vipIP.As16()
			copy(inner[14+24:], mapped[:])
			return encapsulate(t, over4, inner)
		}, "not_vip"},
		{"malformed to another host", data, tunnel(over4, func(t *testenv.Tunnel) { t.Dst, t.IHL = netip.MustParseAddr("192.0.2.13"), 4 }), "not_host"},

		{"another vip", other4, plain(over4), "not_vip"},
		{"another vip over ipv6", other4, plain(over6), "not_vip"},
		{"another ipv6 vip", other6, plain(over4), "not_vip"},
		{"another ipv6 vip over ipv6", other6, plain(over6), "not_vip"},
		{"another vip, malformed", toVIP(to(netip.MustParseAddrPort("192.0.2.101:80")), func(f *testenv.Frame) { f.IHL = 3 }).Bytes(), plain(over4), "not_vip"},

		{"first fragment", data, tunnel(over4, func(t *testenv.Tunnel) { t.DontFragment, t.MoreFragments = false, true }), "fragment"},
		{"middle fragment", data, tunnel(over4, func(t *testenv.Tunnel) { t.MoreFragments, t.FragmentOffset = true, 1480 }), "fragment"},
		{"last fragment", data, tunnel(over4, func(t *testenv.Tunnel) { t.FragmentOffset = 8 }), "fragment"},
		{"fragment over ipv6", data, plain(extended(over6, testenv.ProtocolFragment, []byte{0, 0, 0, 1, 0, 0, 0, 9})), "fragment"},
		{"fragment of a whole over ipv6", data, plain(extended(over6, testenv.ProtocolFragment, []byte{0, 0, 0, 0, 0, 0, 0, 9})), "fragment"},
		{"fragment to another host", data, tunnel(over4, func(t *testenv.Tunnel) {
			t.Dst, t.FragmentOffset = netip.MustParseAddr("192.0.2.13"), 8
		}), "not_host"},
		{"fragment of udp over ipv6", data, tunnel(extended(over6, testenv.ProtocolFragment, []byte{0, 0, 0, 1, 0, 0, 0, 9}),
			func(t *testenv.Tunnel) { t.Protocol = testenv.ProtocolUDP }), "not_tunnel"},

		{"an option that may not be skipped", data, plain(extended(over6, testenv.ProtocolDestination, []byte{0, 0, 0xc9, 4, 1, 2, 3, 4})), "options"},
		{"an option that reaches past its header", data, plain(extended(over6, testenv.ProtocolDestination, []byte{0, 0, 1, 5, 0, 0, 0, 0})), "options"},
		{"too many options", data, plain(extended(over6, testenv.ProtocolDestination, append([]byte{0, 2}, make([]byte, 22)...))), "options"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			outcome, _ := tryDecap(t, d, tc.outer(tc.inner))
			if outcome != tc.want {
				t.Errorf("outcome %s, want %s", outcome, tc.want)
			}
		})
	}
}

// The table of RFC 6040, section 4.2, figure 4. The other bits of the inner
// header stay, and its checksum is right.
func TestDecapCongestion(t *testing.T) {
	const notECT, ect1, ect0, ce, drop = 0, 1, 2, 3, -1
	names := map[int]string{notECT: "incapable", ect1: "capable1", ect0: "capable0", ce: "marked"}
	table := map[int]map[int]int{ // inner, outer, result
		notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: drop},
		ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
		ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
		ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
	}
	forEachTunnelMix(t, func(t *testing.T, d *Decap, m tunnelMix) {
		for inner, row := range table {
			for outer, result := range row {
				for _, dscp := range []int{0, 0xb8, 0xfc} {
					t.Run(fmt.Sprintf("inner %s, outer %s, dscp %#x", names[inner], names[outer], dscp), func(t *testing.T) {
						tunnel := m.tunnel
						tunnel.TOS = uint8(0x28 | outer)
						got, out := tryDecap(t, d, encapsulate(t, tunnel, m.inner(nil, uint8(dscp|inner))))
						if result == drop {
							if got != "congestion" {
								t.Errorf("outcome %s, want congestion", got)
							}
							return
						}
						if got != "decapsulated" {
							t.Fatalf("outcome %s", got)
						}
						if diff := cmp.Diff(m.inner(nil, uint8(dscp|result)), out); diff != "" {
							t.Errorf("frame (-want +got):\n%s", diff)
						}
					})
				}
			}
		}
	})
}

// The incremental checksum must be right for every header: here for all
// identifications, which move the checksum through all of its values.
func TestDecapChecksum(t *testing.T) {
	d := decapProgram(t)
	tunnel := over4
	tunnel.TOS = 3
	step := 1
	if testing.Short() {
		step = 257
	}
	for id := 0; id < 1<<16; id += step {
		frame := toVIP(func(f *testenv.Frame) { f.ID, f.TOS = uint16(id), 2 })
		opts := ebpf.RunOptions{Data: encapsulate(t, tunnel, frame.Bytes()), DataOut: make([]byte, 256)}
		if _, err := d.program.Run(&opts); err != nil {
			t.Fatal(err)
		}
		if err := testenv.VerifyChecksums(opts.DataOut); err != nil {
			t.Fatalf("id %d: %v", id, err)
		}
		if got := parse(t, opts.DataOut).TOS; got != 3 {
			t.Fatalf("id %d: type of service %d, want 3", id, got)
		}
	}
}

func TestDecapOutcomesHaveNames(t *testing.T) {
	seen := map[string]bool{"": true}
	for o, name := range maps.All(decapOutcomeNames) {
		if seen[name] {
			t.Errorf("outcome %d is named %q, like another", o, name)
		}
		seen[name] = true
	}
}
