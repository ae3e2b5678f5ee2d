package loader

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A flow of full nat goes on at the other node as if nothing had been: in every family
// and protocol, both ways, bit for bit.
func TestTakeoverOfNAT(t *testing.T) {
	var all []lb.ServiceState
	for _, c := range natCases {
		all = append(all, c.service(8080))
	}
	for _, way := range waysToTell {
		a, b := twoNodes(t, all...)
		for _, c := range natCases {
			t.Run(way.name+" of "+c.String(), func(t *testing.T) {
				in := c.fromClient(vlans(100))
				out := try(t, a.Datapath, in.Bytes())
				reply := testenv.Frame{
					DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: out.Frame.Dst, Dst: out.Frame.Src, Protocol: uint8(c.protocol),
					Flags: testenv.SYN | testenv.ACK, Seq: backendISN, Ack: in.Seq + 1, TTL: 64,
				}
				try(t, a.Datapath, reply.Bytes())
				ack := c.fromClient(vlans(100), flags(testenv.ACK), func(f *testenv.Frame) { f.Ack = backendISN + 1 })
				try(t, a.Datapath, ack.Bytes())
				way.tell(a, b)
				wantSame(t, a, b)
				reply.Flags, reply.Payload = testenv.ACK, []byte("answer")
				for range 2 {
					wantTwins(t, a, b, "data of the client", ack)
					wantTwins(t, a, b, "data of the backend", reply)
				}
				if got := outcomes(t, b.Datapath); len(got) > 0 {
					t.Errorf("outcomes %v", got)
				}
			})
		}
	}
}

// trackedService is a stateless one with a window.
func trackedService(forward lb.Forward, port uint16, ws ...int) lb.ServiceState {
	s := withWindow(weights(ws...))
	s.Name, s.Forward, s.SourceAddresses = forward.String(), forward, nil
	s.Addresses = []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(vipIP, port))}
	for i, b := range s.Backends {
		s.Backends[i].Address = netip.AddrPortFrom(b.Address.Addr(), port)
	}
	return s
}

// A connection of a slot that is tracked goes on where it was: one that began before
// the change, and one that began after it.
func TestTakeoverOfPins(t *testing.T) {
	modes := []lb.Forward{lb.DSR, lb.Tunnel, lb.DNAT}
	services := func(ws ...int) (all []lb.ServiceState) {
		for i, forward := range modes {
			all = append(all, trackedService(forward, uint16(80+i), ws...))
		}
		return all
	}
	for _, way := range waysToTell {
		a, b := twoNodes(t, services(1, 1)...)
		for _, n := range []*feedNode{a, b} {
			apply(t, n.Datapath, services(0, 1)...)
		}
		for i, forward := range modes {
			t.Run(way.name+" of "+forward.String(), func(t *testing.T) {
				frame := func(client int, flags testenv.TCPFlags, seq uint32, payload string) testenv.Frame {
					return toVIP(func(f *testenv.Frame) {
						f.Src, f.Flags, f.Seq, f.Payload = clientAddr(client), flags, seq, []byte(payload)
						f.Dst = netip.AddrPortFrom(vipIP, uint16(80+i))
					})
				}
				const n = 60
				pinned, old := entries(t, b.objects.Pins), entries(t, b.objects.Stragglers)
				for i := range n {
					if i%2 == 0 {
						sendEarnest(t, a.Datapath, frame(i, testenv.ACK, 777, "old").Bytes())
						continue
					}
					sendEarnest(t, a.Datapath, frame(i, testenv.SYN, 999, "").Bytes())
					sendEarnest(t, a.Datapath, frame(i, testenv.ACK, 1000, "").Bytes())
				}
				way.tell(a, b)
				wantSame(t, a, b)
				pinned, old = entries(t, b.objects.Pins)-pinned, entries(t, b.objects.Stragglers)-old
				if pinned < n/5 || old < n/5 {
					t.Errorf("%d pins and %d stragglers, of %d connections", pinned, old, n)
				}
				made := entries(t, b.objects.Pins) + entries(t, b.objects.Stragglers)
				for i := range n {
					wantTwins(t, a, b, "data", frame(i, testenv.ACK, 5000, "data"))
				}
				if made != entries(t, b.objects.Pins)+entries(t, b.objects.Stragglers) {
					t.Error("the other node has made entries of its own")
				}
			})
		}
	}
}

// So does a UDP flow with affinity.
func TestTakeoverOfDatagrams(t *testing.T) {
	for i := range 2 * len(waysToTell) {
		way, v6 := waysToTell[i/2], i%2 == 1
		t.Run(fmt.Sprintf("%s, ipv6 %v", way.name, v6), func(t *testing.T) {
			s := service("sip", lb.DSR, 80, weights(1, 1))
			s.Protocol, s.Affinity = lb.UDP, lb.AffinityFlow
			if v6 {
				s.Addresses = []lb.Frontend{lb.FrontendOf(v6VIP)}
				for i, b := range s.Backends {
					a := b.Address.Addr().As4()
					s.Backends[i].Address = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: a[3]}), 80)
				}
			}
			a, b := twoNodes(t, s)
			frame := func(i int) testenv.Frame {
				f := toVIP(udp, func(f *testenv.Frame) { f.Src = clientAddr(i) })
				if v6 {
					f.Src, f.Dst = netip.AddrPortFrom(v6Client.Addr(), uint16(10000+i)), v6VIP
				}
				return f
			}
			const n = 40
			for i := range n {
				sendEarnest(t, a.Datapath, frame(i).Bytes())
			}
			ageNew(t, a.Datapath)
			for i := range n {
				sendEarnest(t, a.Datapath, frame(i).Bytes())
			}
			way.tell(a, b)
			s.Backends = weights(0, 1)
			for _, n := range []*feedNode{a, b} {
				other := n.want.Services
				for i := range other {
					if other[i].Name == s.Name {
						other[i] = s
					}
				}
				apply(t, n.Datapath, other...)
			}
			wantSame(t, a, b)
			first := 0
			for i := range n {
				wantTwins(t, a, b, "a datagram", frame(i))
				if _, out := sendEarnest(t, b.Datapath, frame(i).Bytes()); out[5] == 1 {
					first++
				}
			}
			if first < n/5 {
				t.Errorf("%d of %d flows go to the backend that gets no new ones", first, n)
			}
		})
	}
}

// ageNew makes the UDP flows of one datagram a tick older.
func ageNew(t *testing.T, d *Datapath) {
	t.Helper()
	all := map[lbFlowKey]lbPin{}
	if err := eachFlow(d.objects.UdpNew, func(k lbFlowKey, p lbPin) { all[k] = p }); err != nil {
		t.Fatal(err)
	}
	for k, p := range all {
		p.Seen -= 2
		if err := d.objects.UdpNew.Put(&k, &p); err != nil {
			t.Fatal(err)
		}
	}
}

// What dnat sends back does not depend on flows; both ways are the same at both nodes.
func TestTakeoverOfDNATBothWays(t *testing.T) {
	onDNATNode(t, func(r *dnatRig) {
		a, b := twoNodes(r.T, trackedService(lb.DNAT, 80, 1, 1))
		for _, n := range []*feedNode{a, b} {
			store(n.tables.way(r.eth0), lbWay{Index: uint32(r.eth0), Nic: uint32(r.eth0)})
			apply(r.T, n.Datapath, trackedService(lb.DNAT, 80, 0, 1))
		}
		in := toVIP(func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(clientIP, 40001) })
		_, out := sendEarnest(r.T, a.Datapath, in.Bytes())
		a.tell(b)
		wantTwins(r.T, a, b, "data of the client", in)
		wantTwins(r.T, a, b, "data of the backend", reply(parse(r.T, out)))
	})
}
