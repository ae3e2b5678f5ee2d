// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// v2Filter accepts realV2.
func v2Filter() Filter {
	return Filter{Version: V2, VRID: 51, Interval: time.Second, Password: "1111",
		VIPs: []netip.Addr{addr("10.9.0.100")}, Local: addr("10.9.0.2")}
}

// v3Filter accepts goldenV3 and goldenV3Pseudo.
func v3Filter() Filter {
	return Filter{Version: V3, VRID: 51, Interval: time.Second,
		VIPs: []netip.Addr{addr("192.0.2.100")}, Local: addr("192.0.2.2")}
}

// mutate applies f to a copy of msg and, unless f changed it, corrects the
// checksum, so that only the mistake under test is left.
func mutate(msg []byte, f func(b []byte) []byte) []byte {
	b := f(slices.Clone(msg))
	if len(b) >= headerLen && slices.Equal(b[6:8], msg[6:8]) {
		sum := checksumWithout(0, b)
		b[6], b[7] = byte(sum>>8), byte(sum)
	}
	return b
}

func TestFilter(t *testing.T) {
	set := func(i int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[i] = v; return b }
	}
	cut := func(n int) func([]byte) []byte {
		return func(b []byte) []byte { return b[:n] }
	}
	same := func(b []byte) []byte { return b }
	v2, v3 := realV2[20:], goldenV3
	for _, tt := range []struct {
		name   string
		msg    []byte
		packet func(*Packet)
		filter func(*Filter)
		want   error
	}{
		{name: "v2", msg: v2},
		{name: "v2 priority 0", msg: realV2Release[20:]},
		{name: "v2 ethernet padding", msg: append(slices.Clone(v2), 0, 0, 0, 0)},
		{name: "v2 ttl 254", msg: v2, packet: func(p *Packet) { p.TTL = 254 }, want: ReasonTTL},
		{name: "v2 from a peer", msg: v2, filter: func(f *Filter) { f.Peers = []netip.Addr{addr("10.9.0.9"), addr("10.9.0.1")} }},
		{name: "v2 from a peer behind a router", msg: v2, packet: func(p *Packet) { p.TTL = 250 },
			filter: func(f *Filter) { f.Peers = []netip.Addr{addr("10.9.0.1")} }},
		{name: "v2 from no peer", msg: v2, filter: func(f *Filter) { f.Peers = []netip.Addr{addr("10.9.0.9")} }, want: ReasonPeer},
		{name: "v2 shorter than a header", msg: v2[:7], want: ReasonLength},
		{name: "v2 shorter than its addresses", msg: mutate(v2, set(3, 2)), want: ReasonLength},
		{name: "v2 without authentication data", msg: mutate(v2, cut(12)), want: ReasonLength},
		{name: "v2 another vrid", msg: mutate(v2, set(1, 61)), want: ReasonVRID},
		{name: "v2 another vrid in another version", msg: mutate(v2, func(b []byte) []byte { b[0], b[1] = 0x31, 61; return b }), want: ReasonVRID},
		{name: "v2 hears version 3", msg: mutate(v2, set(0, 0x31)), want: ReasonVersion},
		{name: "v2 hears version 0", msg: mutate(v2, set(0, 0x01)), want: ReasonVersion},
		{name: "v2 type 2", msg: mutate(v2, set(0, 0x22)), want: ReasonType},
		{name: "v2 checksum", msg: mutate(v2, set(7, 0xfa)), want: ReasonChecksum},
		{name: "v2 checksum with pseudo-header", msg: func() []byte {
			b := slices.Clone(v2)
			sum := checksumWithout(pseudoHeaderSum(addr("10.9.0.1"), groupIPv4, len(b)), b)
			b[6], b[7] = byte(sum>>8), byte(sum)
			return b
		}(), want: ReasonChecksum},
		{name: "v2 own source", msg: v2, filter: func(f *Filter) { f.Local = addr("10.9.0.1") }, want: ReasonOwnSource},
		{name: "v2 no authentication where there should be", msg: mutate(v2, set(4, 0)), want: ReasonAuthType},
		{name: "v2 authentication where there should be none", msg: v2, filter: func(f *Filter) { f.Password = "" }, want: ReasonAuthType},
		{name: "v2 authentication header", msg: mutate(v2, set(4, 2)), want: ReasonAuthType},
		{name: "v2 no authentication, with data", msg: mutate(v2, set(4, 0)), filter: func(f *Filter) { f.Password = "" }},
		{name: "v2 another password", msg: mutate(v2, set(12, '2')), want: ReasonPassword},
		{name: "v2 longer password", msg: mutate(v2, set(16, '1')), want: ReasonPassword},
		{name: "v2 password of 8 bytes", msg: mutate(v2, func(b []byte) []byte { copy(b[12:], "12345678"); return b }), filter: func(f *Filter) { f.Password = "12345678" }},
		{name: "v2 interval 3 s", msg: mutate(v2, set(5, 3)), want: ReasonInterval},
		{name: "v2 interval 0", msg: mutate(v2, set(5, 0)), want: ReasonInterval},
		{name: "v2 no address", msg: mutate(v2, func(b []byte) []byte { b[3] = 0; return append(b[:8], b[12:]...) }), want: ReasonAddresses},
		{name: "v2 another address", msg: mutate(v2, set(11, 101)), want: ReasonAddresses},
		{name: "v2 one address of two", msg: v2, filter: func(f *Filter) { f.VIPs = append(f.VIPs, addr("10.9.0.101")) }, want: ReasonAddresses},

		{name: "v3", msg: v3},
		{name: "v3 with pseudo-header", msg: goldenV3Pseudo},
		{name: "v3 pseudo-header of another source", msg: goldenV3Pseudo, packet: func(p *Packet) { p.Source = addr("192.0.2.3") }, want: ReasonChecksum},
		{name: "v3 ttl 1", msg: v3, packet: func(p *Packet) { p.TTL = 1 }, want: ReasonTTL},
		{name: "v3 hears version 2", msg: mutate(v3, set(0, 0x21)), want: ReasonVersion},
		{name: "v3 type 0", msg: mutate(v3, set(0, 0x30)), want: ReasonType},
		{name: "v3 shorter than its addresses", msg: mutate(v3, cut(11)), want: ReasonLength},
		{name: "v3 checksum", msg: mutate(v3, set(6, 0)), want: ReasonChecksum},
		{name: "v3 another interval is learnt", msg: mutate(v3, set(5, 10))},
		{name: "v3 interval 0", msg: mutate(v3, set(5, 0)), want: ReasonInterval},
		{name: "v3 reserved bits are ignored", msg: mutate(v3, set(4, 0xf0))},
		{name: "v3 no address", msg: mutate(v3, func(b []byte) []byte { b[3] = 0; return b[:8] }), want: ReasonAddresses},
		{name: "v3 another address", msg: mutate(v3, set(11, 1)), want: ReasonAddresses},
		{name: "v3 unchanged by mutate", msg: mutate(v3, same)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, src := v2Filter(), addr("10.9.0.1")
			if tt.name[:2] == "v3" {
				f, src = v3Filter(), addr("192.0.2.1")
			}
			if tt.filter != nil {
				tt.filter(&f)
			}
			p := Packet{Source: src, Destination: groupIPv4, TTL: 255, Payload: tt.msg}
			if tt.packet != nil {
				tt.packet(&p)
			}
			var a Advertisement
			if err := f.Accept(p, &a); err != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFilterAddressOrder(t *testing.T) {
	adv := Advertisement{Version: V3, VRID: 51, Priority: 100, Interval: time.Second,
		Addresses: []netip.Addr{addr("192.0.2.101"), addr("192.0.2.100")}}
	msg, err := adv.Append(nil, addr("192.0.2.1"), groupIPv4)
	if err != nil {
		t.Fatal(err)
	}
	p := Packet{Source: addr("192.0.2.1"), Destination: groupIPv4, TTL: 255, Payload: msg}
	for _, tt := range []struct {
		name string
		vips []netip.Addr
		want error
	}{
		{"same order", []netip.Addr{addr("192.0.2.101"), addr("192.0.2.100")}, nil},
		{"other order", []netip.Addr{addr("192.0.2.100"), addr("192.0.2.101")}, nil},
		{"one differs", []netip.Addr{addr("192.0.2.100"), addr("192.0.2.102")}, ReasonAddresses},
		{"one more", []netip.Addr{addr("192.0.2.100"), addr("192.0.2.101"), addr("192.0.2.102")}, ReasonAddresses},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := v3Filter()
			f.VIPs = tt.vips
			var a Advertisement
			if err := f.Accept(p, &a); err != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestReasonsHaveNames(t *testing.T) {
	names, texts := make(map[string]bool), make(map[string]bool)
	for _, r := range Reasons() {
		names[r.String()], texts[r.Error()] = true, true
		if r.Error() == r.String() {
			t.Errorf("reason %v has no text", r)
		}
	}
	if len(names) != len(Reasons()) || len(texts) != len(Reasons()) {
		t.Errorf("got %d names and %d texts for %d reasons", len(names), len(texts), len(Reasons()))
	}
}

func TestReceivingDoesNotAllocate(t *testing.T) {
	f := v2Filter()
	a := Advertisement{Addresses: make([]netip.Addr, 0, 4)}
	bad := slices.Clone(realV2)
	bad[26]++
	out := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		for _, raw := range [][]byte{realV2, bad} {
			p, err := parseIPv4(raw)
			if err == nil {
				err = f.Accept(p, &a)
			}
			if err != nil && err != ReasonChecksum {
				t.Error(err)
			}
		}
		if _, err := a.Append(out, f.Local, groupIPv4); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}
