package loader

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A change makes one packet differ from the plain one.
type change = func(*testenv.Frame)

func vlans(ids ...uint16) change      { return func(f *testenv.Frame) { f.VLANs = ids } }
func flags(s testenv.TCPFlags) change { return func(f *testenv.Frame) { f.Flags = s } }
func to(a netip.AddrPort) change      { return func(f *testenv.Frame) { f.Dst = a } }
func port(p uint16) change {
	return func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(f.Dst.Addr(), p) }
}
func ttl(n uint8) change { return func(f *testenv.Frame) { f.TTL = n } }
func toMAC(mac string) change {
	return func(f *testenv.Frame) {
		m, err := net.ParseMAC(mac)
		if err != nil {
			panic(err)
		}
		f.DstMAC = m
	}
}

func TestDSR(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	options := []byte{7, 7, 4, 0, 0, 0, 0, 1} // record route, empty
	tests := []struct {
		name    string
		in      testenv.Frame
		verdict uint32
		outcome string
	}{
		{"data", toVIP(), xdpTX, "sent"},
		{"syn", toVIP(flags(testenv.SYN)), xdpTX, "sent"},
		{"reset", toVIP(flags(testenv.RST)), xdpTX, "sent"},
		{"no flags at all", toVIP(flags(0)), xdpTX, "sent"},
		{"no payload", toVIP(func(f *testenv.Frame) { f.Payload = nil }), xdpTX, "sent"},
		{"padded to the least frame", toVIP(func(f *testenv.Frame) { f.Payload, f.PadTo = nil, 60 }), xdpTX, "sent"},
		{"ip options", toVIP(func(f *testenv.Frame) { f.IPOptions = options }), xdpTX, "sent"},
		{"tcp options", toVIP(func(f *testenv.Frame) { f.TCPOptions = []byte{2, 4, 5, 180} }), xdpTX, "sent"},
		{"the longest headers", toVIP(func(f *testenv.Frame) {
			f.IPOptions, f.TCPOptions = make([]byte, 40), make([]byte, 40)
		}), xdpTX, "sent"},
		{"full frame", toVIP(func(f *testenv.Frame) { f.Payload = make([]byte, 1460) }), xdpTX, "sent"},
		{"time to live 1", toVIP(ttl(1)), xdpTX, "sent"},
		{"type of service and id", toVIP(func(f *testenv.Frame) { f.TOS, f.ID, f.DontFragment = 0xb8, 77, true }), xdpTX, "sent"},

		{"another nic", toVIP(toMAC("02:00:00:00:00:02")), xdpPass, "other_mac"},
		{"another nic, first byte", toVIP(toMAC("06:00:00:00:00:01")), xdpPass, "other_mac"},
		{"another nic, malformed", toVIP(toMAC("02:00:00:00:00:02"), func(f *testenv.Frame) { f.IHL = 4 }), xdpPass, "other_mac"},
		{"broadcast", toVIP(toMAC("ff:ff:ff:ff:ff:ff")), xdpPass, "other_mac"},
		{"multicast", toVIP(toMAC("01:00:5e:00:00:12")), xdpPass, "other_mac"},
		{"another address", toVIP(to(netip.MustParseAddrPort("192.0.2.101:80"))), xdpPass, "not_vip"},
		{"a multicast address", toVIP(to(netip.MustParseAddrPort("224.0.0.18:80"))), xdpPass, "not_vip"},
		{"arp", toVIP(func(f *testenv.Frame) { f.EtherType, f.Payload = testenv.EtherTypeARP, make([]byte, 46) }), xdpPass, "not_ip"},
		{"ipv6", toVIP(func(f *testenv.Frame) { f.EtherType, f.Payload = 0x86dd, make([]byte, 60) }), xdpPass, "not_vip"},
		{"three tags", toVIP(func(f *testenv.Frame) {
			f.VLANs, f.EtherType, f.Payload = []uint16{1, 2}, testenv.EtherTypeVLAN, make([]byte, 60)
		}), xdpPass, "not_ip"},
		{"icmp", toVIP(func(f *testenv.Frame) { f.Protocol = testenv.ProtocolICMP }), xdpPass, "protocol"},
		{"udp", toVIP(func(f *testenv.Frame) { f.Protocol = testenv.ProtocolUDP }), xdpPass, "no_service"},
		{"a port that is no service", toVIP(port(81)), xdpPass, "no_service"},
		{"port 0", toVIP(port(0)), xdpPass, "no_service"},
		{"port 65535", toVIP(port(65535)), xdpPass, "no_service"},
		{"first fragment", toVIP(func(f *testenv.Frame) { f.ID, f.MoreFragments = 9, true }), xdpTX, "sent"},
		{"first fragment to no service", toVIP(port(81), func(f *testenv.Frame) { f.MoreFragments = true }), xdpPass, "no_service"},
		{"later fragment", toVIP(func(f *testenv.Frame) { f.FragOffset = 1480; f.MoreFragments = true }), xdpPass, "later_fragment"},
		{"last fragment", toVIP(func(f *testenv.Frame) { f.FragOffset = 2960 }), xdpPass, "later_fragment"},
		{"fragment that hides the flags", toVIP(func(f *testenv.Frame) { f.FragOffset = 8 }), xdpDrop, "fragment"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := try(t, d, tc.in.Bytes())
			if got.Verdict != tc.verdict || got.Outcome != tc.outcome {
				t.Fatalf("verdict %d, outcome %s; want %d, %s", got.Verdict, got.Outcome, tc.verdict, tc.outcome)
			}
			if tc.outcome != "sent" {
				return
			}
			want := parse(t, tc.in.Bytes())
			want.DstMAC, want.SrcMAC = hardware(backendMAC(1)), hardware(nicMAC)
			if diff := cmp.Diff(want, got.Frame, equateAddrs); diff != "" {
				t.Errorf("frame (-want +got):\n%s", diff)
			}
		})
	}
}

// The tags that a frame has when it leaves are those of the way out, whatever it
// came with; the rest of it stays.
func TestVLAN(t *testing.T) {
	d := newDatapath(t)
	both := []struct {
		name string
		tags []uint16
	}{
		{"none", nil}, {"one", []uint16{100}}, {"another", []uint16{4094}}, {"two", []uint16{200, 300}}, {"another two", []uint16{1, 4095}},
	}
	for _, out := range both {
		bs := backends(1, 80)
		bs[0].NextHop.Tags = copy(bs[0].NextHop.VLANs[:], out.tags)
		apply(t, d, service("web", lb.DSR, 80, bs))
		for _, in := range both {
			t.Run("in "+in.name+" out "+out.name, func(t *testing.T) {
				frame := toVIP(vlans(in.tags...), func(f *testenv.Frame) { f.Payload = []byte("0123456789abcdef") })
				got := try(t, d, frame.Bytes())
				if got.Outcome != "sent" {
					t.Fatalf("outcome %s", got.Outcome)
				}
				want := parse(t, frame.Bytes())
				want.DstMAC, want.SrcMAC, want.VLANs = hardware(backendMAC(1)), hardware(nicMAC), out.tags
				if diff := cmp.Diff(want, got.Frame, equateAddrs); diff != "" {
					t.Errorf("frame (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// The priority of a tag travels on (IEEE 802.1Q, clause 9.6), and the tag types
// are those of one tag or two.
func TestVLANPriorityAndType(t *testing.T) {
	const high = 0xe000
	tests := []struct {
		name      string
		in        []uint16
		out       []uint16 // identifiers
		wantTypes []uint16
		wantTags  []uint16
	}{
		{"retag", []uint16{100 | high}, []uint16{200}, []uint16{0x8100}, []uint16{200 | high}},
		{"retag both", []uint16{1 | high, 2 | 0x5000}, []uint16{3, 4}, []uint16{0x88a8, 0x8100}, []uint16{3 | high, 4 | 0x5000}},
		{"push one", nil, []uint16{200}, []uint16{0x8100}, []uint16{200}},
		{"push two", nil, []uint16{200, 300}, []uint16{0x88a8, 0x8100}, []uint16{200, 300}},
		{"push a second", []uint16{100 | high}, []uint16{200, 300}, []uint16{0x88a8, 0x8100}, []uint16{200 | high, 300}},
		{"pop one of two", []uint16{100 | high, 200}, []uint16{300}, []uint16{0x8100}, []uint16{300 | high}},
	}
	d := newDatapath(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			bs := backends(1, 80)
			bs[0].NextHop.Tags = copy(bs[0].NextHop.VLANs[:], tc.out)
			apply(t, d, service("web", lb.DSR, 80, bs))
			verdict, out := send(t, d, toVIP(vlans(tc.in...)).Bytes())
			if verdict != xdpTX {
				t.Fatalf("verdict %d", verdict)
			}
			var types, tags []uint16
			for i := range tc.out {
				types = append(types, binary.BigEndian.Uint16(out[12+4*i:]))
				tags = append(tags, binary.BigEndian.Uint16(out[14+4*i:]))
			}
			if diff := cmp.Diff(tc.wantTypes, types); diff != "" {
				t.Errorf("types (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantTags, tags); diff != "" {
				t.Errorf("tags (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWaysOut(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*lb.Backend)
		verdict uint32
		outcome string
		want    BackendStats
		losses  Losses
	}{
		{"by the same nic", func(*lb.Backend) {}, xdpTX, "sent", BackendStats{Packets: 1, Bytes: 45}, Losses{}},
		{"by another nic", func(b *lb.Backend) { b.NextHop.Interface = 7 }, xdpRedirect, "sent", BackendStats{Packets: 1, Bytes: 45}, Losses{}},
		{"no next hop", func(b *lb.Backend) { b.NextHop = lb.NextHop{} }, xdpDrop, "no_next_hop", BackendStats{}, Losses{}},
		{"weight 0", func(b *lb.Backend) { b.Weight = 0 }, xdpDrop, "no_backend", BackendStats{}, Losses{NoBackend: 1}},
		{"failed", func(b *lb.Backend) { b.Failed = true }, xdpDrop, "no_backend", BackendStats{}, Losses{NoBackend: 1}},
	}
	for _, forward := range []lb.Forward{lb.DSR, lb.NAT} {
		for _, tc := range tests {
			t.Run(forward.String()+" "+tc.name, func(t *testing.T) {
				bs := backends(1, 80)
				tc.change(&bs[0])
				d := newDatapath(t, service("web", forward, 80, bs))
				want := tc.want
				want.Flows = want.Packets
				got := try(t, d, toVIP(flags(testenv.SYN)).Bytes())
				if got.Verdict != tc.verdict || got.Outcome != tc.outcome {
					t.Fatalf("verdict %d, outcome %s; want %d, %s", got.Verdict, got.Outcome, tc.verdict, tc.outcome)
				}
				if diff := cmp.Diff(want, traffic(t, d), equateAddrs); diff != "" {
					t.Errorf("traffic (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tc.losses, losses(t, d)); diff != "" {
					t.Errorf("losses (-want +got):\n%s", diff)
				}
			})
		}
	}
}
