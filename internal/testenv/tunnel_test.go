package testenv

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	tunnelSrc4, tunnelDst4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.11")
	tunnelSrc6, tunnelDst6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::11")
)

func tunnelled4(vlans ...uint16) []byte {
	return Frame{VLANs: vlans, Src: netip.MustParseAddrPort("198.51.100.7:40000"), Dst: netip.MustParseAddrPort("192.0.2.100:80"),
		Flags: SYN, Payload: []byte("x")}.Bytes()
}

func tunnelled6(vlans ...uint16) []byte {
	return Frame{VLANs: vlans, Src: netip.MustParseAddrPort("[2001:db8:1::7]:40000"), Dst: netip.MustParseAddrPort("[2001:db8::100]:80"),
		Flags: SYN, Payload: []byte("x")}.Bytes()
}

// What Encapsulate writes, Decapsulate reads, field by field.
func TestTunnelRoundTrip(t *testing.T) {
	options := []byte{0, 0, 4, 1, 4, 1, 1, 0}
	tests := []struct {
		name   string
		tunnel Tunnel
		want   Tunnel // what is filled in for an inner IPv4 packet of 41 bytes
	}{
		{"ipv4", Tunnel{Src: tunnelSrc4, Dst: tunnelDst4},
			Tunnel{TTL: 64, Version: 4, IHL: 5, Length: 61}},
		{"ipv4 with everything", Tunnel{Src: tunnelSrc4, Dst: tunnelDst4, TOS: 0xb9, TTL: 3, ID: 77, DontFragment: true, MoreFragments: true, FragmentOffset: 1480, IPOptions: []byte{1, 1, 1, 0}},
			Tunnel{Version: 4, IHL: 6, Length: 65}},
		{"ipv6", Tunnel{Src: tunnelSrc6, Dst: tunnelDst6},
			Tunnel{TTL: 64, Version: 6, Length: 41}},
		{"ipv6 with everything", Tunnel{Src: tunnelSrc6, Dst: tunnelDst6, TOS: 0xb9, TTL: 3, FlowLabel: 0xfffff,
			NextHeaders: []uint8{ProtocolDestination, ProtocolFragment}, Extensions: [][]byte{options, {0, 0, 0, 1, 0, 0, 0, 9}}},
			Tunnel{Version: 6, Length: 57}},
	}
	for _, tc := range tests {
		for _, tags := range [][]uint16{nil, {100}, {100, 200}} {
			for protocol, inner := range map[uint8][]byte{ProtocolIPv4: tunnelled4(tags...), ProtocolIPv6: tunnelled6(tags...)} {
				frame, err := tc.tunnel.Encapsulate(inner)
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				got, out, err := Decapsulate(frame)
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if diff := cmp.Diff(inner, out); diff != "" {
					t.Errorf("%s, protocol %d: frame (-want +got):\n%s", tc.name, protocol, diff)
				}
				want := tc.tunnel
				want.Version, want.IHL, want.Length, want.Protocol = tc.want.Version, tc.want.IHL, tc.want.Length, protocol
				if want.TTL == 0 {
					want.TTL = tc.want.TTL
				}
				if protocol == ProtocolIPv6 {
					want.Length += 20 // the inner header is longer
				}
				want.Extensions = nil
				for i, e := range tc.tunnel.Extensions {
					next := append(append([]uint8{}, tc.tunnel.NextHeaders...), protocol)[i+1]
					want.Extensions = append(want.Extensions, append([]byte{next}, e[1:]...))
				}
				if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
					t.Errorf("%s, protocol %d: tunnel (-want +got):\n%s", tc.name, protocol, diff)
				}
			}
		}
	}
}

// The headers as they are on the wire, so that two mistakes can't agree.
func TestTunnelBytes(t *testing.T) {
	inner := Frame{EtherType: EtherTypeIPv6, Payload: []byte{0x60}}.Bytes()
	for want, tunnel := range map[string]Tunnel{
		// version and length 45, tos b9, total 21, id 4d2, DF, ttl 3, protocol 41, checksum, addresses
		"080045b9001504d240000329ee28c0000201c000020b60": {
			Src: tunnelSrc4, Dst: tunnelDst4, TOS: 0xb9, TTL: 3, ID: 1234, DontFragment: true},
		// version 6, class b9, label 12345, payload 9, destination options, limit 3, addresses, options
		"86dd6b912345" + "00093c03" + "20010db8000000000000000000000001" + "20010db8000000000000000000000011" + "2900040104010100" + "60": {
			Src: tunnelSrc6, Dst: tunnelDst6, TOS: 0xb9, TTL: 3, FlowLabel: 0x12345,
			NextHeaders: []uint8{ProtocolDestination}, Extensions: [][]byte{{0, 0, 4, 1, 4, 1, 1, 0}}},
	} {
		frame, err := tunnel.Encapsulate(inner)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, fmt.Sprintf("%x", frame[12:])); diff != "" {
			t.Errorf("frame (-want +got):\n%s", diff)
		}
	}
}

func TestTunnelRefuses(t *testing.T) {
	if _, err := (Tunnel{Src: tunnelSrc4, Dst: tunnelDst4}).Encapsulate(Frame{EtherType: EtherTypeARP, Payload: make([]byte, 46)}.Bytes()); err == nil {
		t.Error("ARP was encapsulated")
	}
	frame, err := Tunnel{Src: tunnelSrc4, Dst: tunnelDst4}.Encapsulate(tunnelled4())
	if err != nil {
		t.Fatal(err)
	}
	frame[24]++
	for name, tc := range map[string]struct {
		frame []byte
		want  string
	}{
		"checksum":      {frame, "outer IPv4 header checksum"},
		"no tunnel":     {tunnelled4(), "protocol 6 is no tunnel"},
		"no tunnel v6":  {tunnelled6(), "protocol 6 is no tunnel"},
		"cut off":       {frame[:30], "are no IPv4 header"},
		"shorter":       {frame[:60], "total length 61 in 46 bytes"},
		"empty":         {nil, "are no Ethernet header"},
		"cut off tag":   {tunnelled4(1)[:17], "VLAN tag is cut off"},
		"v6 cut off":    {tunnelled6()[:50], "are no IPv6 header"},
		"v6 is shorter": {tunnelled6()[:60], "payload length 21 in 46 bytes"},
	} {
		if _, _, err := Decapsulate(tc.frame); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
}

// The checksum of TCP over IPv6 holds over its pseudo header (RFC 8200, section 8.1).
func TestIPv6FrameChecksum(t *testing.T) {
	ip := tunnelled6()[14:]
	sum := sumBytes(uint32(ProtocolTCP+len(ip)-40), ip[8:40])
	if got := foldChecksum(sumBytes(sum, ip[40:])); got != 0 {
		t.Errorf("the checksum is off by %#x", got)
	}
}
