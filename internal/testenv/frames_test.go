package testenv

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	syn  = Frame{
		SrcMAC: macA, DstMAC: macB,
		Src: netip.MustParseAddrPort("192.0.2.200:40000"), Dst: netip.MustParseAddrPort("192.0.2.100:80"),
		Flags: SYN, Seq: 0x01020304, Window: 64240, ID: 7, DontFragment: true,
	}
	ignorePorts = cmpopts.EquateComparable(netip.AddrPort{})
)

// variant returns syn with a change.
func variant(change func(*Frame)) Frame {
	f := syn
	change(&f)
	return f
}

var frameCases = []struct {
	name  string
	frame Frame
	len   int
}{
	{"syn", syn, 14 + 20 + 20},
	{"data with an odd length", variant(func(f *Frame) { f.Flags, f.Payload = ACK|PSH, []byte("odd") }), 54 + 3},
	{"padded as by a NIC", variant(func(f *Frame) { f.PadTo = 60 }), 60},
	{"one VLAN tag", variant(func(f *Frame) { f.VLANs = []uint16{10} }), 58},
	{"two VLAN tags", variant(func(f *Frame) { f.VLANs = []uint16{10, 20} }), 62},
	{"IP options", variant(func(f *Frame) { f.IPOptions = []byte{1, 1, 1, 0} }), 58},
	{"TCP options", variant(func(f *Frame) { f.TCPOptions = []byte{2, 4, 5, 180} }), 58},
	{"udp", variant(func(f *Frame) {
		f.Protocol, f.Flags, f.Seq, f.Window, f.Payload = ProtocolUDP, 0, 0, 0, []byte("query")
	}), 14 + 20 + 8 + 5},
	{"first fragment", variant(func(f *Frame) { f.DontFragment, f.MoreFragments, f.Payload = false, true, make([]byte, 4) }), 58},
	{"later fragment", Frame{
		SrcMAC: macA, DstMAC: macB, Src: netip.MustParseAddrPort("192.0.2.200:0"), Dst: netip.MustParseAddrPort("192.0.2.100:0"),
		FragOffset: 1480, Payload: []byte("12345678"),
	}, 42},
	{"icmp", Frame{
		SrcMAC: macA, DstMAC: macB, Src: netip.MustParseAddrPort("192.0.2.200:0"), Dst: netip.MustParseAddrPort("192.0.2.100:0"),
		Protocol: ProtocolICMP, Payload: []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0},
	}, 42},
	{"arp", Frame{SrcMAC: macA, DstMAC: macB, EtherType: EtherTypeARP, Payload: make([]byte, 28)}, 42},
}

func TestFrameRoundTrip(t *testing.T) {
	for _, tc := range frameCases {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.frame.Bytes()
			if len(b) != tc.len {
				t.Errorf("frame has %d bytes, want %d", len(b), tc.len)
			}
			got, err := ParseFrame(b)
			if err != nil {
				t.Fatal(err)
			}
			// What is left zero comes back filled in.
			defaults := cmpopts.IgnoreFields(Frame{}, "EtherType", "TTL", "Protocol", "Version", "IHL", "TotalLength", "DataOffset")
			if diff := cmp.Diff(tc.frame, got, ignorePorts, defaults); diff != "" {
				t.Errorf("parsed frame differs (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(b, got.Bytes()); diff != "" {
				t.Errorf("bytes of the parsed frame differ (-want +got):\n%s", diff)
			}
			if err := VerifyChecksums(b); err != nil {
				t.Error(err)
			}
		})
	}
}

// A second opinion on the headers, from a decoder that is not ours.
func TestFrameDecodesElsewhere(t *testing.T) {
	f := variant(func(f *Frame) {
		f.VLANs, f.Flags, f.Ack, f.TOS, f.TTL = []uint16{10, 20}, ACK|PSH, 99, 0x10, 3
		f.TCPOptions, f.Payload = []byte{2, 4, 5, 180}, []byte("hello")
	})
	packet := gopacket.NewPacket(f.Bytes(), layers.LayerTypeEthernet, gopacket.Default)
	if e := packet.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	ip := packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp := packet.Layer(layers.LayerTypeTCP).(*layers.TCP)
	type seen struct {
		Src, Dst         string
		SPort, DPort     uint16
		TOS, TTL         uint8
		ID, Length       uint16
		Seq, Ack         uint32
		SYN, ACK, PSH    bool
		Options, VLANTag int
		Payload          string
	}
	vlans := 0
	for _, l := range packet.Layers() {
		if l.LayerType() == layers.LayerTypeDot1Q {
			vlans++
		}
	}
	got := seen{
		ip.SrcIP.String(), ip.DstIP.String(), uint16(tcp.SrcPort), uint16(tcp.DstPort), ip.TOS, ip.TTL, ip.Id, ip.Length,
		tcp.Seq, tcp.Ack, tcp.SYN, tcp.ACK, tcp.PSH, len(tcp.Options), vlans, string(tcp.Payload),
	}
	want := seen{"192.0.2.200", "192.0.2.100", 40000, 80, 0x10, 3, 7, 49, 0x01020304, 99, false, true, true, 1, 2, "hello"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoded frame differs (-want +got):\n%s", diff)
	}
}

// VerifyChecksums agrees with checksums that another encoder has computed, and
// every flipped byte that a checksum covers is found.
func TestVerifyChecksums(t *testing.T) {
	buf := gopacket.NewSerializeBuffer()
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, Id: 4711,
		SrcIP: net.IP{192, 0, 2, 200}, DstIP: net.IP{192, 0, 2, 100},
	}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: 5, ACK: true, Window: 1000}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: layers.EthernetTypeIPv4}, ip, tcp, gopacket.Payload("twenty bytes at last"))
	if err != nil {
		t.Fatal(err)
	}
	frame := buf.Bytes()
	if err := VerifyChecksums(frame); err != nil {
		t.Errorf("frame of another encoder: %v", err)
	}
	for i := etherHeaderLen; i < len(frame); i++ {
		broken := append([]byte(nil), frame...)
		broken[i] ^= 0x20
		if VerifyChecksums(broken) == nil {
			t.Errorf("byte %d changed from %#02x to %#02x: no error", i, frame[i], broken[i])
		}
	}
}

func TestVerifyChecksumsNamesWhatItWants(t *testing.T) {
	b := syn.Bytes()
	right := uint16(b[14+20+16])<<8 | uint16(b[14+20+17])
	b[14+20+16] ^= 0xff
	err := VerifyChecksums(b)
	b[14+20+16] ^= 0xff
	if err == nil || !strings.Contains(err.Error(), "TCP checksum") || !strings.HasSuffix(err.Error(), "want "+hex(right)) {
		t.Errorf("error %v does not want %s", err, hex(right))
	}
}

func hex(v uint16) string {
	const digits = "0123456789abcdef"
	return "0x" + string([]byte{digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15]})
}

func TestParseFrameRefuses(t *testing.T) {
	whole := syn.Bytes()
	for n := range len(whole) {
		if _, err := ParseFrame(whole[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are taken for a whole frame", n, len(whole))
		}
	}
	for _, tc := range []struct {
		name  string
		frame Frame
	}{
		{"ihl under 5", variant(func(f *Frame) { f.IHL = 4 })},
		{"ihl beyond the packet", variant(func(f *Frame) { f.IHL = 15 })},
		{"version 6", variant(func(f *Frame) { f.Version = 6 })},
		{"total length beyond the frame", variant(func(f *Frame) { f.TotalLength = 41 })},
		{"total length without TCP", variant(func(f *Frame) { f.TotalLength = 20 })},
		{"data offset under 5", variant(func(f *Frame) { f.DataOffset = 4 })},
		{"data offset beyond the packet", variant(func(f *Frame) { f.DataOffset = 6 })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if f, err := ParseFrame(tc.frame.Bytes()); err == nil {
				t.Errorf("parsed as %+v, want an error", f)
			}
		})
	}
}
