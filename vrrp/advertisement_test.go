// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var cmpAddr = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// realV2 is an advertisement as another implementation sent it, IP header
// first: version 2, password 1111.
var realV2 = []byte{
	0x45,       // version 4, header of 5 words
	0xc0,       // DSCP CS6
	0x00, 0x28, // total length 40
	0x00, 0x01, // id
	0x00, 0x00, // no flags, no fragment
	0xff,       // TTL 255
	0x70,       // protocol 112
	0xd0, 0x88, // header checksum
	10, 9, 0, 1, // source
	224, 0, 0, 18, // destination
	0x21,       // version 2, type 1
	0x33,       // VRID 51
	0x64,       // priority 100
	0x01,       // one address
	0x01,       // authentication type 1, simple password
	0x01,       // 1 s
	0x0c, 0xfb, // checksum of all that follows the IP header
	10, 9, 0, 100, // the VIP
	'1', '1', '1', '1', 0, 0, 0, 0, // password, zero padded
}

// realV2Release is the same node's goodbye.
var realV2Release = []byte{
	0x45, 0xc0, 0x00, 0x28, 0x00, 0x03, 0x00, 0x00, 0xff, 0x70, 0xd0, 0x86, 10, 9, 0, 1, 224, 0, 0, 18, // IP header
	0x21,       // version 2, type 1
	0x33,       // VRID 51
	0x00,       // priority 0
	0x01,       // one address
	0x01,       // simple password
	0x01,       // 1 s
	0x70, 0xfb, // checksum
	10, 9, 0, 100, // the VIP
	'1', '1', '1', '1', 0, 0, 0, 0, // password
}

var goldenV3 = []byte{
	0x31,       // version 3, type 1
	0x33,       // VRID 51
	0x64,       // priority 100
	0x01,       // one address
	0x00, 0x64, // 100 centiseconds
	0xa8, 0x02, // checksum without pseudo-header
	192, 0, 2, 100, // the VIP
}

var goldenV3Pseudo = []byte{
	0x31,       // version 3, type 1
	0x33,       // VRID 51
	0x64,       // priority 100
	0x01,       // one address
	0x00, 0x64, // 100 centiseconds
	0x05, 0x72, // checksum with pseudo-header 192.0.2.1, 224.0.0.18, 112, 12
	192, 0, 2, 100, // the VIP
}

var goldenV3Reserved = []byte{
	0x31,       // version 3, type 1
	0x33,       // VRID 51
	0x64,       // priority 100
	0x01,       // one address
	0xf0, 0x64, // reserved bits set, 100 centiseconds
	0xb8, 0x01, // checksum without pseudo-header
	192, 0, 2, 100, // the VIP
}

var goldenV3IPv6 = []byte{
	0x31,       // version 3, type 1
	0x33,       // VRID 51
	0x64,       // priority 100
	0x02,       // two addresses
	0x00, 0x64, // 100 centiseconds
	0x3e, 0xfb, // checksum with pseudo-header fe80::2, ff02::12, 112, 40
	0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, // fe80::1
	0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00, // 2001:db8::100
}

func TestGoldenAdvertisements(t *testing.T) {
	password := [8]byte{'1', '1', '1', '1'}
	for _, tt := range []struct {
		name     string
		raw      []byte
		src, dst string
		want     Advertisement
	}{
		{"v2 with password", realV2[20:], "10.9.0.1", "224.0.0.18", Advertisement{
			Version: V2, VRID: 51, Priority: 100, Interval: time.Second,
			Addresses: []netip.Addr{addr("10.9.0.100")}, AuthType: 1, Auth: password}},
		{"v2 priority 0", realV2Release[20:], "10.9.0.1", "224.0.0.18", Advertisement{
			Version: V2, VRID: 51, Interval: time.Second,
			Addresses: []netip.Addr{addr("10.9.0.100")}, AuthType: 1, Auth: password}},
		{"v3", goldenV3, "192.0.2.1", "224.0.0.18", Advertisement{
			Version: V3, VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{addr("192.0.2.100")}}},
		{"v3 with pseudo-header", goldenV3Pseudo, "192.0.2.1", "224.0.0.18", Advertisement{
			Version: V3, VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{addr("192.0.2.100")},
			PseudoHeader: true}},
		{"v3 with reserved bits", goldenV3Reserved, "192.0.2.1", "224.0.0.18", Advertisement{
			Version: V3, VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{addr("192.0.2.100")},
			Reserved: 0xf}},
		{"v3 ipv6", goldenV3IPv6, "fe80::2", "ff02::12", Advertisement{
			Version: V3, VRID: 51, Priority: 100, Interval: time.Second,
			Addresses: []netip.Addr{addr("fe80::1"), addr("2001:db8::100")}, PseudoHeader: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got Advertisement
			// Ethernet padding follows.
			n, err := got.Decode(append(slices.Clone(tt.raw), 0, 0, 0xff), addr(tt.src), addr(tt.dst))
			if err != nil || n != len(tt.raw) {
				t.Fatalf("decode: got length %d, error %v; want %d", n, err, len(tt.raw))
			}
			if diff := cmp.Diff(tt.want, got, cmpAddr); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			raw, err := tt.want.Append([]byte{7}, addr(tt.src), addr(tt.dst))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]byte{7}, tt.raw...), raw); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseIPv4(t *testing.T) {
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(realV2)) }
	for _, tt := range []struct {
		name string
		raw  []byte
		want error
	}{
		{"real", realV2, nil},
		{"ethernet padding", edit(func(b []byte) []byte { return append(b, 0, 0, 0, 0, 0, 0) }), nil},
		{"empty", nil, ReasonHeader},
		{"header cut short", realV2[:19], ReasonHeader},
		{"not ipv4", edit(func(b []byte) []byte { b[0] = 0x65; return b }), ReasonHeader},
		{"header length under 5 words", edit(func(b []byte) []byte { b[0] = 0x44; return b }), ReasonHeader},
		{"total length under header length", edit(func(b []byte) []byte { b[3] = 19; return b }), ReasonHeader},
		{"total length over what came", edit(func(b []byte) []byte { b[3] = 41; return b }), ReasonHeader},
		{"another protocol", edit(func(b []byte) []byte { b[9] = 17; return b }), ReasonHeader},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := parseIPv4(tt.raw)
			if err != tt.want {
				t.Fatalf("got error %v, want %v", err, tt.want)
			}
			if err != nil {
				return
			}
			want := Packet{Source: addr("10.9.0.1"), Destination: groupIPv4, TTL: 255, Payload: realV2[20:]}
			if diff := cmp.Diff(want, p, cmpAddr); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

// A message with an IP header that has options: the payload starts behind them.
func TestParseIPv4Options(t *testing.T) {
	raw := slices.Concat(realV2[:20], []byte{0x94, 4, 0, 0}, realV2[20:])
	raw[0], raw[3] = 0x46, 44
	p, err := parseIPv4(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(realV2[20:], p.Payload); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
}

func TestAppendRefuses(t *testing.T) {
	vip := []netip.Addr{addr("192.0.2.100")}
	for _, tt := range []struct {
		name string
		adv  Advertisement
	}{
		{"no address", Advertisement{Version: V3, Interval: time.Second}},
		{"256 addresses", Advertisement{Version: V3, Interval: time.Second, Addresses: slices.Repeat(vip, 256)}},
		{"v2 with 1.5 s", Advertisement{Version: V2, Interval: 1500 * time.Millisecond, Addresses: vip}},
		{"v2 with 256 s", Advertisement{Version: V2, Interval: 256 * time.Second, Addresses: vip}},
		{"v3 with 5 ms", Advertisement{Version: V3, Interval: 5 * time.Millisecond, Addresses: vip}},
		{"v3 with 40.96 s", Advertisement{Version: V3, Interval: 40960 * time.Millisecond, Addresses: vip}},
		{"version 4", Advertisement{Version: 4, Interval: time.Second, Addresses: vip}},
		{"v2 with ipv6", Advertisement{Version: V2, Interval: time.Second, Addresses: []netip.Addr{addr("2001:db8::1")}}},
		{"two families", Advertisement{Version: V3, Interval: time.Second, Addresses: []netip.Addr{vip[0], addr("2001:db8::1")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := tt.adv.Append([]byte{1, 2}, addr("192.0.2.1"), groupIPv4)
			if err == nil || len(b) != 2 {
				t.Errorf("got %d bytes, error %v; want an error and nothing appended", len(b), err)
			}
		})
	}
}

func FuzzAdvertisement(f *testing.F) {
	f.Add(realV2[20:], false)
	f.Add(realV2Release[20:], false)
	f.Add(goldenV3, false)
	f.Add(goldenV3Pseudo, false)
	f.Add(goldenV3Reserved, false)
	f.Add(goldenV3IPv6, true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		src, dst := addr("192.0.2.1"), groupIPv4
		if v6 {
			src, dst = addr("fe80::2"), addr("ff02::12")
		}
		var a Advertisement
		n, err := a.Decode(b, src, dst)
		if err != nil {
			if _, ok := err.(Reason); !ok {
				t.Fatalf("error %v is not a Reason", err)
			}
			// What is refused for its checksum alone decodes with the right one.
			if err != ReasonChecksum {
				return
			}
			n = headerLen + len(a.Addresses)*len(a.Addresses[0].AsSlice())
			if a.Version == V2 {
				n += authLen
			}
			b = slices.Clone(b)
			var sum uint32
			if v6 {
				sum = pseudoHeaderSum(src, dst, n)
			}
			right := checksumWithout(sum, b[:n])
			b[6], b[7] = byte(right>>8), byte(right)
			if _, err := a.Decode(b, src, dst); err != nil {
				t.Fatalf("decode with the right checksum: %v", err)
			}
		}
		got, err := a.Append(nil, src, dst)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		if diff := cmp.Diff(b[:n], got); diff != "" {
			t.Errorf("decoded and encoded (-want +got):\n%s", diff)
		}
	})
}
