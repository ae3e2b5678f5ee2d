package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	v6Client  = netip.MustParseAddrPort("[2001:db8:1::7]:40000")
	v6VIP     = netip.MustParseAddrPort("[2001:db8::100]:80")
	v6Backend = netip.MustParseAddrPort("[2001:db8::11]:80")
	v4Backend = netip.AddrPortFrom(backendAddr(1), 80)
)

// from6 makes a packet to the VIP an IPv6 one.
func from6(f *testenv.Frame) { f.Src, f.Dst = v6Client, v6VIP }

func udp(f *testenv.Frame) { f.Protocol = testenv.ProtocolUDP }

// tunnelService returns a tunnel service of both families with one backend.
func tunnelService(backend netip.AddrPort, mtu int, tags ...uint16) lb.ServiceState {
	b := backends(1, 80)[0]
	b.Address, b.NextHop.MTU = backend, mtu
	b.NextHop.Tags = copy(b.NextHop.VLANs[:], tags)
	s := service("web", lb.Tunnel, 80, []lb.Backend{b})
	s.Addresses = append(s.Addresses, lb.FrontendOf(v6VIP))
	return s
}

func TestTunnel(t *testing.T) {
	const df = true
	tests := []struct {
		name    string
		backend netip.AddrPort
		tags    []uint16 // of the way out
		in      testenv.Frame
		outer   testenv.Tunnel // addresses and lengths are checked apart
	}{
		{"ipv4 in ipv4", v4Backend, nil, toVIP(), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"ipv4 in ipv4, not to be fragmented", v4Backend, nil, toVIP(func(f *testenv.Frame) { f.DontFragment = df }),
			testenv.Tunnel{Protocol: 4, TTL: 63, DontFragment: df}},
		{"ipv6 in ipv4", v4Backend, nil, toVIP(from6), testenv.Tunnel{Protocol: 41, TTL: 63, DontFragment: df}},
		{"ipv4 in ipv6", v6Backend, nil, toVIP(), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"ipv6 in ipv6", v6Backend, nil, toVIP(from6), testenv.Tunnel{Protocol: 41, TTL: 63}},
		{"a hop limit of 2", v4Backend, nil, toVIP(ttl(2)), testenv.Tunnel{Protocol: 4, TTL: 1}},
		{"a hop limit of 255", v6Backend, nil, toVIP(from6, ttl(255)), testenv.Tunnel{Protocol: 41, TTL: 254}},
		{"DSCP and ECN, ipv4 in ipv6", v6Backend, nil, toVIP(func(f *testenv.Frame) { f.TOS = 0xb9 }), testenv.Tunnel{Protocol: 4, TTL: 63, TOS: 0xb9}},
		{"DSCP and ECN, ipv6 in ipv4", v4Backend, nil, toVIP(from6, func(f *testenv.Frame) { f.TOS = 0x2b }),
			testenv.Tunnel{Protocol: 41, TTL: 63, TOS: 0x2b, DontFragment: df}},
		{"ip options", v4Backend, nil, toVIP(func(f *testenv.Frame) { f.IPOptions = []byte{1, 1, 1, 0} }), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"padding goes along", v4Backend, nil, toVIP(func(f *testenv.Frame) { f.PadTo = 80 }), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"a tag is taken off", v4Backend, nil, toVIP(vlans(100)), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"two tags are put on", v6Backend, []uint16{200, 300}, toVIP(), testenv.Tunnel{Protocol: 4, TTL: 63}},
		{"one tag for two", v4Backend, []uint16{200}, toVIP(vlans(1, 2), from6), testenv.Tunnel{Protocol: 41, TTL: 63, DontFragment: df}},
	}
	d := newDatapath(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			apply(t, d, tunnelService(tc.backend, 0, tc.tags...))
			letGo(t, d)
			verdict, out := send(t, d, tc.in.Bytes())
			if verdict != xdpTX {
				t.Fatalf("verdict %d, outcomes %v", verdict, outcomes(t, d))
			}
			outer, inner, err := testenv.Decapsulate(out)
			if err != nil {
				t.Fatal(err)
			}
			if err := testenv.VerifyChecksums(inner); err != nil {
				t.Error(err)
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
			want := parse(t, tc.in.Bytes())
			want.DstMAC, want.SrcMAC, want.VLANs = hardware(backendMAC(1)), hardware(nicMAC), tc.tags
			want.TTL--
			want.PadTo = 0
			if diff := cmp.Diff(want, parse(t, inner), equateAddrs); diff != "" {
				t.Errorf("inner frame (-want +got):\n%s", diff)
			}
		})
	}
}

// What a tunnel does not take.
func TestTunnelRefuses(t *testing.T) {
	d := newDatapath(t, tunnelService(v4Backend, 0))
	for _, tc := range []struct {
		name    string
		in      testenv.Frame
		outcome string
	}{
		{"no hop left, ipv4", toVIP(ttl(1)), "ttl"},
		{"no hop left, ipv6", toVIP(from6, ttl(1)), "ttl"},
		{"another port, ipv6", toVIP(from6, port(81)), "no_service"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := try(t, d, tc.in.Bytes()); got.Outcome != tc.outcome {
				t.Errorf("outcome %s, want %s", got.Outcome, tc.outcome)
			}
		})
	}
}

// Outer sources differ between flows, and not within one.
func TestTunnelSources(t *testing.T) {
	for _, backend := range []netip.AddrPort{v4Backend, v6Backend} {
		d := newDatapathWith(t, Options{
			MaxFlows: 1024, Ports: allPorts,
			TunnelSource4: netip.MustParsePrefix("198.18.4.0/22"), TunnelSource6: netip.MustParsePrefix("2001:db8:5:4000::/50"),
		}, natTimeouts, tunnelService(backend, 0))
		seen := map[netip.Addr]int{}
		for i := range 400 {
			var first netip.Addr
			for range 2 {
				_, out := send(t, d, toVIP(func(f *testenv.Frame) { f.Src = clientAddr(i) }).Bytes())
				outer, _, err := testenv.Decapsulate(out)
				if err != nil {
					t.Fatal(err)
				}
				if !netip.MustParsePrefix("198.18.4.0/22").Contains(outer.Src) && !netip.MustParsePrefix("2001:db8:5:4000::/50").Contains(outer.Src) {
					t.Fatalf("the outer source is %v", outer.Src)
				}
				if first.IsValid() && outer.Src != first {
					t.Fatalf("one flow has sources %v and %v", first, outer.Src)
				}
				first = outer.Src
			}
			seen[first]++
		}
		if len(seen) < 250 {
			t.Errorf("400 flows have %d sources", len(seen))
		}
	}
}

func TestTunnelTooBig(t *testing.T) {
	big := func(size int) change { return func(f *testenv.Frame) { f.Payload = make([]byte, size) } }
	whole := func(f *testenv.Frame) { f.DontFragment = true }
	answered, answered6 := answerTo(clientPort, vipPort, testenv.ProtocolTCP), answerTo(v6Client, v6VIP, testenv.ProtocolTCP)
	answered.Payload, answered6.Payload = make([]byte, 1500), make([]byte, 1500)
	tests := []struct {
		name    string
		backend netip.AddrPort
		mtu     int
		in      testenv.Frame
		outcome string // "sent", "answered" or that of a drop
		wantMTU int
	}{
		{"it just fits, ipv4 in ipv4", v4Backend, 1500, toVIP(whole, big(1440)), "sent", 0},
		{"a byte more, ipv4 in ipv4", v4Backend, 1500, toVIP(whole, big(1441)), "answered", 1480},
		{"it just fits, ipv4 in ipv6", v6Backend, 1500, toVIP(whole, big(1420)), "sent", 0},
		{"a byte more, ipv4 in ipv6", v6Backend, 1500, toVIP(whole, big(1421)), "answered", 1460},
		{"it just fits, ipv6 in ipv4", v4Backend, 1500, toVIP(from6, big(1420)), "sent", 0},
		{"a byte more, ipv6 in ipv4", v4Backend, 1500, toVIP(from6, big(1421)), "answered", 1480},
		{"a byte more, ipv6 in ipv6", v6Backend, 1500, toVIP(from6, big(1401)), "answered", 1460},
		{"ipv6 is never told less than 1280", v4Backend, 1200, toVIP(from6, big(1300)), "answered", 1280},
		{"with tags", v4Backend, 1500, toVIP(whole, big(1460), vlans(100, 200)), "answered", 1480},
		{"with ip options", v4Backend, 1500, toVIP(whole, big(1460), func(f *testenv.Frame) { f.IPOptions = make([]byte, 40) }), "answered", 1480},
		{"it may be fragmented", v4Backend, 1500, toVIP(big(1460)), "too_big", 0},
		{"the way is not known", v4Backend, 0, toVIP(whole, big(1460)), "sent", 0},
		{"an ICMP error", v4Backend, 1500, quote(answered, 1460), "too_big", 0},
		{"an ICMPv6 error", v4Backend, 1400, quote(answered6, 1400), "too_big", 0},
		{"a later fragment", v4Backend, 1500, toVIP(whole, big(1464), func(f *testenv.Frame) { f.FragOffset = 1480 }), "too_big", 0},
	}
	d := newDatapath(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			apply(t, d, tunnelService(tc.backend, tc.mtu))
			letGo(t, d)
			if tc.in.FragOffset > 0 {
				try(t, d, toVIP(func(f *testenv.Frame) { f.MoreFragments = true }).Bytes())
			}
			lost := losses(t, d).TooBig
			frame := tc.in.Bytes()
			if tc.outcome == "too_big" {
				if got := try(t, d, frame); got.Outcome != tc.outcome || losses(t, d).TooBig != lost+1 {
					t.Errorf("outcome %s, counted %d times", got.Outcome, losses(t, d).TooBig-lost)
				}
				return
			}
			verdict, out := send(t, d, frame)
			if verdict != xdpTX {
				t.Fatalf("verdict %d", verdict)
			}
			if tc.outcome == "sent" {
				if _, _, err := testenv.Decapsulate(out); err != nil {
					t.Error(err)
				}
				return
			}
			if err := testenv.VerifyChecksums(out); err != nil {
				t.Error(err)
			}
			got := parse(t, out)
			v6 := tc.in.Dst.Addr().Is6()
			wantType, wantCode, protocol := byte(3), byte(4), uint8(testenv.ProtocolICMP)
			if v6 {
				wantType, wantCode, protocol = 2, 0, testenv.ProtocolICMPv6
			}
			if got.Protocol != protocol || len(got.Payload) != 8+512 || got.Payload[0] != wantType || got.Payload[1] != wantCode ||
				int(binary.BigEndian.Uint32(got.Payload[4:])) != tc.wantMTU {
				t.Fatalf("protocol %d, %d bytes: % x", got.Protocol, len(got.Payload), got.Payload[:min(8, len(got.Payload))])
			}
			ends := []any{got.Src.Addr(), got.Dst.Addr(), got.DstMAC.String(), got.SrcMAC.String(), fmt.Sprint(got.VLANs)}
			want := []any{tc.in.Dst.Addr(), tc.in.Src.Addr(), hardware(clientMAC).String(), hardware(nicMAC).String(), fmt.Sprint(parse(t, frame).VLANs)}
			if diff := cmp.Diff(want, ends, equateAddrs); diff != "" {
				t.Errorf("source, destination, MACs, tags (-want +got):\n%s", diff)
			}
			packet := frame[14+4*len(tc.in.VLANs):]
			if diff := cmp.Diff(packet[:512], got.Payload[8:]); diff != "" {
				t.Errorf("what is quoted (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("not without end", func(t *testing.T) {
		apply(t, d, tunnelService(v4Backend, 1500))
		frame := toVIP(whole, big(1460)).Bytes()
		answered := 0
		for range 2000 {
			if verdict, _ := send(t, d, frame); verdict == xdpTX {
				answered++
			}
		}
		if answered == 0 || outcomes(t, d)["too_big"] == 0 {
			t.Errorf("%d answers, outcomes %v", answered, outcomes(t, d))
		}
	})
}

// What dsr does with both families and protocols.
func TestDSRFamilies(t *testing.T) {
	s := service("web", lb.DSR, 80, backends(1, 80))
	s.Addresses = append(s.Addresses, lb.FrontendOf(v6VIP))
	dns := service("dns", lb.DSR, 53, backends(1, 53))
	dns.Protocol = lb.UDP
	dns.Addresses = append(dns.Addresses, lb.FrontendOf(netip.AddrPortFrom(v6VIP.Addr(), 53)))
	d := newDatapath(t, s, dns)
	extensions := func(f *testenv.Frame) {
		f.Extensions = [][]byte{{0, 0, 1, 4, 0, 0, 0, 0}, {0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
		f.NextHeaders = []uint8{0, 60}
	}
	many := func(n int) change {
		return func(f *testenv.Frame) {
			for range n {
				f.Extensions = append(f.Extensions, []byte{0, 0, 1, 4, 0, 0, 0, 0})
				f.NextHeaders = append(f.NextHeaders, 60)
			}
		}
	}
	length := func(n uint16) change { return func(f *testenv.Frame) { f.TotalLength = n } }
	udpLength := func(by int) func([]byte) {
		return func(b []byte) {
			at := len(b) - 5 - 4
			binary.BigEndian.PutUint16(b[at:], uint16(int(binary.BigEndian.Uint16(b[at:]))+by))
		}
	}
	tests := []struct {
		name    string
		in      testenv.Frame
		spoil   func([]byte)
		outcome string
	}{
		{"ipv6 tcp", toVIP(from6), nil, "sent"},
		{"ipv6 tcp, tagged", toVIP(from6, vlans(5)), nil, "sent"},
		{"ipv6 udp", toVIP(from6, udp, port(53)), nil, "sent"},
		{"ipv4 udp", toVIP(udp, port(53)), nil, "sent"},
		{"ipv4 udp without payload", toVIP(udp, port(53), func(f *testenv.Frame) { f.Payload = nil }), nil, "sent"},
		{"extension headers", toVIP(from6, extensions), nil, "sent"},
		{"extension headers before udp", toVIP(from6, udp, port(53), extensions), nil, "sent"},
		{"as many as are skipped", toVIP(from6, many(8)), nil, "sent"},
		{"more than are skipped", toVIP(from6, many(9)), nil, "malformed_ip"},
		{"one more", toVIP(from6, many(9)), nil, "malformed_ip"},
		{"one more, which is a later fragment's", toVIP(from6, many(8), func(f *testenv.Frame) { f.FragOffset = 16 }), nil, "malformed_ip"},
		{"ipv6 hop limit 1", toVIP(from6, ttl(1)), nil, "sent"},
		{"ipv6 padded", toVIP(from6, func(f *testenv.Frame) { f.PadTo = 100 }), nil, "sent"},

		{"udp to the tcp service's port", toVIP(udp), nil, "no_service"},
		{"tcp to the udp service's port", toVIP(port(53)), nil, "no_service"},
		{"ipv6, another address", toVIP(from6, to(netip.MustParseAddrPort("[2001:db8::101]:80"))), nil, "not_vip"},
		{"ipv6, the mapped VIP", toVIP(func(f *testenv.Frame) {
			f.EtherType = testenv.EtherTypeIPv6
			f.Src, f.Dst = v6Client, netip.AddrPortFrom(netip.AddrFrom16(vipIP.As16()), 80)
		}), nil, "not_vip"},
		{"ipv6, another nic", toVIP(from6, toMAC("02:00:00:00:00:02")), nil, "other_mac"},
		{"icmpv6", toVIP(from6, func(f *testenv.Frame) { f.Protocol = testenv.ProtocolICMPv6 }), nil, "protocol"},
		{"no next header", toVIP(from6, func(f *testenv.Frame) { f.Protocol = 59 }), nil, "protocol"},
		{"ipv6 of another version", toVIP(from6, func(f *testenv.Frame) { f.Version = 5 }), nil, "malformed_ip"},
		{"ipv6 longer than the frame", toVIP(from6, length(200)), nil, "malformed_ip"},
		{"ipv6 shorter than its tcp header", toVIP(from6, length(50)), nil, "malformed_tcp"},
		{"ipv6 of payload length 0", toVIP(from6, length(40)), func(b []byte) { b[18], b[19] = 0, 0 }, "malformed_tcp"},
		{"udp longer than the packet", toVIP(udp, port(53)), udpLength(1), "malformed_udp"},
		{"udp shorter than the packet", toVIP(udp, port(53)), udpLength(-1), "sent"},
		{"udp shorter than its header", toVIP(udp, port(53)), udpLength(-6), "malformed_udp"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			frame := tc.in.Bytes()
			if tc.spoil != nil {
				tc.spoil(frame)
			}
			if tc.outcome == "sent" && tc.spoil != nil { // its checksum is wrong
				if verdict, _ := send(t, d, frame); verdict != xdpTX {
					t.Errorf("verdict %d", verdict)
				}
				return
			}
			got := try(t, d, frame)
			if got.Outcome != tc.outcome {
				t.Fatalf("outcome %s, want %s", got.Outcome, tc.outcome)
			}
			if got.Outcome != "sent" {
				return
			}
			want := parse(t, frame)
			want.DstMAC, want.SrcMAC, want.VLANs = hardware(backendMAC(1)), hardware(nicMAC), nil
			if diff := cmp.Diff(want, got.Frame, equateAddrs); diff != "" {
				t.Errorf("frame (-want +got):\n%s", diff)
			}
		})
	}
}

// With affinity: flow a UDP flow stays where it is; without, it follows its slot.
func TestUDPAffinity(t *testing.T) {
	for _, affinity := range []lb.Affinity{lb.AffinityNone, lb.AffinityFlow} {
		t.Run(fmt.Sprint(affinity), func(t *testing.T) {
			dns := func(ws ...int) lb.ServiceState {
				bs := backends(len(ws), 53)
				for i, w := range ws {
					bs[i].Weight = w
				}
				s := service("dns", lb.DSR, 53, bs)
				s.Protocol, s.Affinity, s.DrainTimeout = lb.UDP, affinity, time.Hour
				return s
			}
			d := newDatapath(t, dns(1))
			at := func(i int) int {
				_, out := send(t, d, toVIP(udp, port(53), func(f *testenv.Frame) { f.Src = clientAddr(i) }).Bytes())
				return int(out[5])
			}
			for i := range 50 {
				at(i)
			}
			apply(t, d, dns(0, 1))
			want := 2
			if affinity == lb.AffinityFlow {
				want = 1
			}
			for i := 100; i < 110; i++ {
				if got := at(i); got != 2 {
					t.Fatalf("a new flow goes to backend %d", got)
				}
			}
			// A second datagram, a tick later, makes a flow a lasting one. Each of these
			// sends its second one only now, whatever the time that has passed.
			now := ticks()
			testenv.Eventually(t, time.Second, "a tick to pass", func() (bool, error) { return ticks() > now+1, nil })
			for i := range 20 {
				if got := at(i); got != want {
					t.Fatalf("flow %d goes to backend %d, want %d", i, got, want)
				}
			}
			if affinity == lb.AffinityNone {
				return
			}
			if n := entries(t, d.objects.UdpFlows); n != 20 {
				t.Errorf("%d lasting flows, want 20", n)
			}
			later(t, d, time.Minute)
			if got := stats(t, d).Services[0].Backends[0].Pinned; got != 20 {
				t.Errorf("the drained backend holds %d flows, want 20", got)
			}
			later(t, d, udpIdle+time.Minute)
			if n := entries(t, d.objects.UdpFlows); n != 0 {
				t.Errorf("%d lasting flows after they were idle", n)
			}
		})
	}
}

// All that a client does goes to one backend, whatever the ports.
func TestSourceHash(t *testing.T) {
	ftp := service("ftp", lb.DSR, 1, backends(5, 1))
	ftp.Scheduler = lb.SourceHash
	ftp.Addresses = []lb.Frontend{{VIP: vipIP, Ports: lb.EveryPort}, {VIP: v6VIP.Addr(), Ports: lb.EveryPort}}
	d := newDatapath(t, ftp)
	used := map[int]bool{}
	for i := range 100 {
		for _, v6 := range []bool{false, true} {
			at := map[int]bool{}
			for _, p := range []uint16{1, 20, 21, 1024, 50000, 65535} {
				_, out := send(t, d, toVIP(func(f *testenv.Frame) {
					f.Src, f.Dst = netip.AddrPortFrom(clientAddr(i).Addr(), p+7), netip.AddrPortFrom(vipIP, p)
					if v6 {
						a := v6Client.Addr().As16()
						a[15] = byte(i)
						f.Src, f.Dst = netip.AddrPortFrom(netip.AddrFrom16(a), p+7), netip.AddrPortFrom(v6VIP.Addr(), p)
					}
				}).Bytes())
				at[int(out[5])] = true
			}
			if len(at) != 1 {
				t.Fatalf("client %d is sent to %d backends", i, len(at))
			}
			for b := range at {
				used[b] = true
			}
		}
	}
	if len(used) != 5 {
		t.Errorf("%d of 5 backends are used", len(used))
	}
}
