package loader

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// nat without source NAT is explained both ways, though nothing of a flow is kept: the
// service, the backend, what is rewritten, and why something does not leave.
func TestExplainDNAT(t *testing.T) {
	ports := service("ports", lb.DNAT, 6000, backends(1, 6000))
	ports.Addresses = []lb.Frontend{{VIP: vipIP, Ports: lb.PortRange{First: 6000, Last: 6010}}}
	ports.Backends[0].Address = netip.AddrPortFrom(backendAddr(2), 6000)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprint("ipv6 ", v6), func(t *testing.T) {
			c := natCase{v6, lb.TCP}
			onDNATNode(t, func(r *dnatRig) {
				client, vip := c.fromClient().Src, c.fromClient().Dst
				backend := netip.AddrPortFrom(c.backend(), 8080)
				elsewhere := client.Addr().Next().Next() // no neighbour
				tcp := func(from, to netip.AddrPort) Packet {
					return Packet{Source: from, Destination: to, Protocol: lb.TCP, Flags: TCPAck}
				}
				none := netip.Addr{}
				tests := []struct {
					name   string
					packet Packet
					want   said
					source string // the source of what leaves
				}{
					{"a client's", tcp(client, vip), said{"sent", "XDP_TX", "80", "clean", FoundSlot, "", backend.Addr(), "tcp to " + backend.String(), "", false}, client.String()},
					{"an answer", tcp(backend, client), said{"sent", "XDP_REDIRECT", "80", "", FoundDNATReply, "", backend.Addr(), "tcp to " + client.String(), "", false}, vip.String()},
					{"an answer to nobody that is known", tcp(backend, netip.AddrPortFrom(elsewhere, 9)), said{"no_next_hop", "XDP_DROP", "80", "", FoundDNATReply, "", backend.Addr(), "", "", false}, ""},
					{"an answer to the node itself", tcp(backend, netip.AddrPortFrom(map[bool]netip.Addr{false: clientNet4.Addr(), true: clientNet6.Addr()}[v6], 9)), said{"not_vip", "XDP_PASS", "", "", "", "", none, "", "", false}, ""},
					{"from another port", tcp(netip.AddrPortFrom(backend.Addr(), 8081), client), said{"not_vip", "XDP_PASS", "", "", "", "", none, "", "", false}, ""},
				}
				if !v6 {
					several := backendAddr(2)
					tests = append(tests, []struct {
						name   string
						packet Packet
						want   said
						source string
					}{
						{"an answer of one of several ports", tcp(netip.AddrPortFrom(several, 6003), client), said{"sent", "XDP_REDIRECT", "6000", "", FoundDNATReply, "", several, "tcp to " + client.String(), "", false}, netip.AddrPortFrom(vipIP, 6003).String()},
						{"from none of the ports", tcp(netip.AddrPortFrom(several, 6011), client), said{"not_vip", "XDP_PASS", "", "", "", "", none, "", "", false}, ""},
					}...)
				}
				e := explainerOf(t, r.Datapath)
				before := fingerprint(t, r.Datapath)
				for _, tc := range tests {
					x, err := e.Explain(tc.packet)
					if err != nil {
						t.Fatalf("%s: %v", tc.name, err)
					}
					if diff := cmp.Diff(tc.want, saidOf(x), equateAddrs); diff != "" {
						t.Errorf("%s: explanation (-want +got):\n%s", tc.name, diff)
					}
					if x.Sent != nil && x.Sent.Source != tc.source {
						t.Errorf("%s: it leaves from %s, want %s", tc.name, x.Sent.Source, tc.source)
					}
				}
				if diff := cmp.Diff(before, fingerprint(t, r.Datapath)); diff != "" {
					t.Errorf("explaining has left a trace (-before +after):\n%s", diff)
				}
			}, c.dnat(8080), ports)
		})
	}
}
