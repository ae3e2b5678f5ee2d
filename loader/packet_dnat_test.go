package loader

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Towards the backend the destination changes, and on the way back the source.
func TestDNATPackets(t *testing.T) {
	tests := []struct {
		name    string
		changes []change
		reply   bool
		outcome string
		only4   bool
	}{
		{"data", nil, false, "sent", false},
		{"odd payload", []change{payload("x")}, false, "sent", false},
		{"no payload", []change{payload("")}, false, "sent", false},
		{"ip options", []change{func(f *testenv.Frame) { f.IPOptions = []byte{7, 7, 4, 0, 0, 0, 0, 1} }}, false, "sent", true},
		{"full frame", []change{func(f *testenv.Frame) { f.Payload = zeros(1400) }}, false, "sent", false},
		{"time to live 2", []change{ttl(2)}, false, "sent", false},
		{"time to live 1", []change{ttl(1)}, false, "ttl", false},
		{"one tag", []change{vlans(100)}, false, "sent", false},
		{"two tags", []change{vlans(100, 200)}, false, "sent", false},
		{"a port that is no service", []change{port(82)}, false, "no_service", false},
		{"another nic's", []change{toMAC("02:00:00:00:00:09")}, false, "other_mac", false},

		{"reply", nil, true, "sent", false},
		{"reply, odd payload", []change{payload("x")}, true, "sent", false},
		{"reply, full frame", []change{func(f *testenv.Frame) { f.Payload = zeros(1400) }}, true, "sent", false},
		{"reply, ip options", []change{func(f *testenv.Frame) { f.IPOptions = []byte{7, 7, 4, 0, 0, 0, 0, 1} }}, true, "sent", true},
		{"reply, time to live 2", []change{ttl(2)}, true, "sent", false},
		{"reply, time to live 1", []change{ttl(1)}, true, "ttl", false},
		{"reply, tagged", []change{vlans(7)}, true, "sent", false},
		{"reply, two tags", []change{vlans(7, 8)}, true, "sent", false},
		{"reply from another port", []change{func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(f.Src.Addr(), 8081) }}, true, "not_vip", false},
		{"reply from another address", []change{func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(f.Src.Addr().Next(), 8080) }}, true, "not_vip", false},
		{"reply of another protocol", []change{func(f *testenv.Frame) { f.Protocol = 23 - f.Protocol }}, true, "not_vip", false},
		{"reply to another nic", []change{toMAC("02:00:00:00:00:09")}, true, "not_vip", false},
		{"reply, neither TCP nor UDP", []change{func(f *testenv.Frame) { f.Protocol = 132 }}, true, "not_vip", false},
		{"reply to the node itself", []change{func(f *testenv.Frame) {
			f.Dst = netip.AddrPortFrom(clientNet4.Addr(), f.Dst.Port())
			if f.Src.Addr().Is6() {
				f.Dst = netip.AddrPortFrom(clientNet6.Addr(), f.Dst.Port())
			}
		}}, true, "not_vip", false},
		{"reply that is cut short", []change{func(f *testenv.Frame) { f.TotalLength = 2000 }}, true, "malformed_ip", false},
	}
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				forwarded := try(t, r.Datapath, c.fromClient().Bytes()).Frame
				for _, tc := range tests {
					if tc.only4 && c.v6 {
						continue
					}
					in := c.fromClient(tc.changes...)
					if tc.reply {
						in = reply(forwarded, tc.changes...)
					}
					got := try(t, r.Datapath, in.Bytes())
					if got.Outcome != tc.outcome {
						t.Errorf("%s: outcome %s, want %s", tc.name, got.Outcome, tc.outcome)
						continue
					}
					if tc.outcome != "sent" {
						continue
					}
					want := parse(t, in.Bytes())
					want.TTL--
					want.VLANs = nil
					if tc.reply {
						want.SrcMAC, want.DstMAC = wayMAC, hardware(clientMAC)
						want.Src = c.fromClient().Dst
					} else {
						want.SrcMAC, want.DstMAC = hardware(nicMAC), hardware(backendMAC(1))
						want.Dst = netip.AddrPortFrom(c.backend(), 8080)
					}
					if diff := cmp.Diff(want, got.Frame, equateAddrs); diff != "" {
						t.Errorf("%s: frame (-want +got):\n%s", tc.name, diff)
					}
				}
			}, c.dnat(8080))
		})
	}
}

func (c natCase) backend() netip.Addr { return c.service(80).Backends[0].Address.Addr() }

// A service of several ports leaves them as they are, and takes no other
// connection of its backends for a reply.
func TestDNATPorts(t *testing.T) {
	ports := func(name string, vip netip.Addr, ranges ...lb.PortRange) lb.ServiceState {
		s := service(name, lb.DNAT, 80, backends(1, 80))
		s.Addresses = nil
		for _, r := range ranges {
			s.Addresses = append(s.Addresses, lb.Frontend{VIP: vip, Ports: r})
		}
		return s
	}
	tests := []struct {
		name    string
		service lb.ServiceState
		to      uint16
		backend uint16 // 0: no service's
		from    uint16 // of another connection of the backend
		taken   bool
	}{
		{"one port", ports("s", vipIP, lb.PortRange{First: 8000, Last: 8000}), 8000, 80, 8000, false},
		{"two ports", ports("s", vipIP, lb.PortRange{First: 80, Last: 80}, lb.PortRange{First: 443, Last: 443}), 443, 443, 444, false},
		{"a range", ports("s", vipIP, lb.PortRange{First: 8000, Last: 8100}), 8050, 8050, 8101, false},
		{"outside of it", ports("s", vipIP, lb.PortRange{First: 8000, Last: 8100}), 8101, 0, 80, false},
		{"every port", ports("s", vipIP, lb.EveryPort), 12345, 12345, 50000, true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				there := try(t, r.Datapath, toVIP(port(tc.to)).Bytes())
				if tc.backend == 0 {
					if there.Outcome != "no_service" {
						t.Errorf("outcome %s", there.Outcome)
					}
					return
				}
				if there.Outcome != "sent" || there.Frame.Dst != netip.AddrPortFrom(backendAddr(1), tc.backend) {
					t.Fatalf("%s to %v, want port %d", there.Outcome, there.Frame.Dst, tc.backend)
				}
				back := try(t, r.Datapath, reply(there.Frame).Bytes())
				if want := netip.AddrPortFrom(vipIP, tc.to); back.Outcome != "sent" || back.Frame.Src != want {
					t.Errorf("the reply: %s from %v, want %v", back.Outcome, back.Frame.Src, want)
				}
				own := reply(there.Frame, func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(backendAddr(1), tc.from) })
				if got := try(t, r.Datapath, own.Bytes()); (got.Outcome == "sent") != tc.taken {
					t.Errorf("a packet from port %d of the backend: %s", tc.from, got.Outcome)
				}
			}, tc.service)
		})
	}
}

// Each of many backends is known by its address, and no other's, also after half
// of them have gone.
func TestDNATManyBackends(t *testing.T) {
	for _, c := range []natCase{natCases[0], natCases[3]} {
		t.Run(c.String(), func(t *testing.T) {
			web := c.dnat(8080)
			one := web.Backends[0]
			web.Backends = nil
			for i := range 600 {
				b := one
				b.Address = netip.AddrPortFrom(b.Address.Addr(), uint16(1000+i))
				web.Backends = append(web.Backends, b)
			}
			onDNATNode(t, func(r *dnatRig) {
				check := func(there func(i int) bool) {
					t.Helper()
					for i, b := range web.Backends {
						in := reply(testenv.Frame{Src: c.fromClient().Src, Dst: b.Address, Protocol: uint8(c.protocol)})
						verdict, out := send(t, r.Datapath, in.Bytes())
						if got := verdict == xdpRedirect && parse(t, out).Src == c.fromClient().Dst; got != there(i) {
							t.Fatalf("a reply of %v: verdict %d", b.Address, verdict)
						}
					}
				}
				check(func(int) bool { return true })
				half := web
				half.Backends = nil
				for i, b := range web.Backends {
					if i%2 == 0 {
						half.Backends = append(half.Backends, b)
					}
				}
				apply(t, r.Datapath, half)
				check(func(int) bool { return true })
				letGo(t, r.Datapath)
				check(func(i int) bool { return i%2 == 0 })
			}, web)
		})
	}
}

// Nothing that is cut off is translated, wherever the cut is.
func TestDNATCutOff(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				there := try(t, r.Datapath, c.fromClient().Bytes()).Frame
				answer := reply(there, func(f *testenv.Frame) { f.Payload = noise(300) })
				later := answer
				later.ID, later.FragOffset = 7, 64
				first := answer
				first.ID, first.MoreFragments = 7, true
				try(t, r.Datapath, first.Bytes())
				about := quote(answerTo(there.Dst, there.Src, uint8(c.protocol)), 200)
				about.Dst = netip.AddrPortFrom(there.Src.Addr(), 0)
				for name, f := range map[string]testenv.Frame{"a reply": answer, "a later fragment": later, "an error": about} {
					whole := f.Bytes()
					if verdict, _ := send(t, r.Datapath, whole); verdict != xdpRedirect {
						t.Fatalf("%s: verdict %d", name, verdict)
					}
					for n := 14; n < len(whole); n++ { // a shorter frame cannot be run
						verdict, _ := send(t, r.Datapath, whole[:n])
						if verdict != xdpPass && verdict != xdpDrop {
							t.Errorf("%s, the first %d of %d bytes: verdict %d", name, n, len(whole), verdict)
						}
					}
				}
			}, c.dnat(8080))
		})
	}
}

// Clients that the kernel knows a way to are not remembered.
func TestDNATKeepsNoFlows(t *testing.T) {
	c := natCases[0]
	onDNATNode(t, func(r *dnatRig) {
		for i := range 100 {
			f := try(t, r.Datapath, c.fromClient(func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(clientIP, uint16(1000+i)) }).Bytes()).Frame
			if got := try(t, r.Datapath, reply(f).Bytes()); got.Outcome != "sent" {
				t.Fatal(got.Outcome)
			}
		}
		var k lbAddress
		var v lbLastHop
		if r.objects.LastHops.Iterate().Next(&k, &v) {
			t.Errorf("%v is remembered", unmapped(k.Word))
		}
		if n := entries(t, r.objects.Pins) + entries(t, r.objects.Stragglers) + names(r.Datapath); n != 0 {
			t.Errorf("%d flows are remembered", n)
		}
		got := stats(t, r.Datapath).Services[0].Backends[0]
		if got.Packets != 100 || got.ReplyPackets != 100 || got.Flows != 100 || got.ReplyBytes != 4600 {
			t.Errorf("counters %+v", got)
		}
	}, c.dnat(8080))
}

// A planned change of backends moves no connection, and those of a backend that
// leaves have their replies.
func TestDNATKeepsConnections(t *testing.T) {
	web := func(ws ...int) lb.ServiceState {
		s := withWindow(weights(ws...))
		s.Forward, s.SourceAddresses = lb.DNAT, nil
		return s
	}
	onDNATNode(t, func(r *dnatRig) {
		all := clients(r.Datapath, 0, 300)
		for _, c := range all {
			c.open(t)
		}
		before := where(t, all)
		apply(t, r.Datapath, web(1, 2, 1))
		apply(t, r.Datapath, web(1)) // the second one leaves
		if n := movedBetween(before, where(t, all)); n != 0 {
			t.Errorf("%d connections have moved", n)
		}
		replies := func(want string) {
			t.Helper()
			f := testenv.Frame{Src: netip.AddrPortFrom(clientIP, 1), Dst: netip.AddrPortFrom(backendAddr(2), 80), Protocol: testenv.ProtocolTCP}
			if got := try(t, r.Datapath, reply(f).Bytes()); got.Outcome != want {
				t.Errorf("a reply of the one that left: %s, want %s", got.Outcome, want)
			}
		}
		replies("sent")
		letGo(t, r.Datapath)
		replies("not_vip")
		got, err := r.tables.readState()
		if err != nil {
			t.Fatal(err)
		}
		if diff := diffStates(r.state, got); diff != "" {
			t.Errorf("state (-planned +read):\n%s", diff)
		}
		apply(t, r.Datapath)
		if r.tables.arrays.ExpectsReplies != 0 || rest[lbReply](t, r.objects.Replies) != 0 {
			t.Error("replies are looked for, and there are none")
		}
	}, web(1, 1))
}
