package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// What a node takes for a VIP of an instance that accepts nothing, and of one that does.
func TestClosed(t *testing.T) {
	r := newFenceRig(t)
	nat := service("nat", lb.NAT, 81, backends(1, 8081))
	apply(t, r.Datapath, service("web", lb.DSR, 80, backends(1, 80)), nat)
	link6 := netip.MustParseAddr("fe80::100")
	six := r.fences.Fence(52, []netip.Addr{link6})
	place := func(closed bool, vlan uint16) {
		t.Helper()
		for f, source := range map[*Fence]netip.Addr{r.v4: thisNode, r.v6: thisNode6, six: thisNode6} {
			if err := f.Place(FencePlace{Interface: nicIndex, MAC: nicMAC, Source: source, Patience: time.Hour, Closed: closed}); err != nil {
				t.Fatal(err)
			}
			if vlan == 0 {
				continue
			}
			// As if the instance's interface were in a VLAN.
			have, err := r.fences.addresses()
			if err != nil {
				t.Fatal(err)
			}
			keys := map[lbFenceKey]bool{}
			for key, n := range have {
				if key.Interface != 0 {
					key.Vlan[0] = bigEndian16(vlan)
				}
				if n == f.number {
					keys[key] = true
				}
			}
			if err := r.fences.setAddresses(f.number, keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	to := func(port uint16, changes ...func(*testenv.Frame)) []byte {
		f := toVIP(changes...)
		f.Dst = netip.AddrPortFrom(vipIP, port)
		return f.Bytes()
	}
	icmp := func(from, at netip.Addr, body ...byte) []byte {
		f := toVIP()
		f.Src, f.Dst, f.Protocol = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(at, 0), testenv.ProtocolICMP
		if at.Is6() {
			f.Protocol = testenv.ProtocolICMPv6
		}
		f.Payload = checksummed(append(body, make([]byte, 24)...), from, at)
		return f.Bytes()
	}
	client6 := netip.MustParseAddr("2001:db8:1::7")
	unicast := func(b []byte) []byte { return slices.Concat(nicMAC[:], b[6:]) }
	for _, tc := range []struct {
		name  string
		frame []byte
		open  string // outcome with accept: true
		want  string // with accept: false
		vlan  string // and where the instance's interface is in a VLAN, and the frame not
	}{
		{"a service", to(80), "sent", "sent", "sent"},
		{"ssh", to(22), "no_service", "not_accepted", "not_accepted"},
		{"ssh, to another machine", to(22, toMAC("02:00:00:00:00:02")), "other_mac", "other_mac", "other_mac"},
		{"UDP", to(53, func(f *testenv.Frame) { f.Protocol = testenv.ProtocolUDP }), "no_service", "not_accepted", "not_accepted"},
		{"a ping", icmp(clientIP, vipIP, 8, 0, 0, 0), "protocol", "not_accepted", "not_accepted"},
		{"another protocol", to(0, func(f *testenv.Frame) { f.Protocol = 47 }), "protocol", "not_accepted", "not_accepted"},
		{"an error about a flow", quote(answerTo(clientPort, vipPort, testenv.ProtocolTCP), 28).Bytes(), "sent", "sent", "sent"},
		{"an error about none", quote(answerTo(clientPort, netip.AddrPortFrom(vipIP, 22), testenv.ProtocolTCP), 28).Bytes(), "no_flow", "no_flow", "no_flow"},
		{"nat, a segment of no flow", to(81), "no_flow", "no_flow", "no_flow"},
		{"to the node itself", toVIP(func(f *testenv.Frame) { f.Dst = netip.AddrPortFrom(thisNode, 22) }).Bytes(), "not_vip", "not_vip", "not_vip"},
		{"ARP", arpFrame(2, clientMAC, clientIP, vipIP), "not_ip", "not_ip", "not_ip"},
		{"a malformed one", to(22, func(f *testenv.Frame) { f.IHL = 3 }), "malformed_ip", "malformed_ip", "malformed_ip"},

		{"IPv6, a VIP without a service", icmp(client6, fencedVIP6, 128, 0, 0, 0), "not_vip", "not_accepted", "not_accepted"},
		{"IPv6, a solicitation", unicast(solicited(func(q *solicit) { q.at = fencedVIP6 })), "not_vip", "not_vip", "not_vip"},
		{"IPv6, an advertisement", icmp(otherNode6, fencedVIP6, 136, 0, 0, 0), "not_vip", "not_vip", "not_vip"},
		{"IPv6, a redirect", icmp(otherNode6, fencedVIP6, 137, 0, 0, 0), "not_vip", "not_accepted", "not_accepted"},
		{"IPv6, the node itself", icmp(client6, netip.MustParseAddr("2001:db8::1"), 128, 0, 0, 0), "not_vip", "not_vip", "not_vip"},
		{"IPv6, link-local", icmp(otherNode6, link6, 128, 0, 0, 0), "not_vip", "not_accepted", "not_vip"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := map[string]string{}
			want := map[string]string{
				"open": tc.open, "closed": tc.want, "dead and fenced": tc.want, "not held": tc.open, "in a VLAN": tc.vlan,
			}
			all := []*Fence{r.v4, r.v6, six}
			each := func(do func(*Fence)) {
				for _, f := range all {
					do(f)
				}
			}
			place(false, 0)
			each((*Fence).Adopt)
			got["open"] = try(t, r.Datapath, tc.frame).Outcome
			place(true, 0)
			got["closed"] = try(t, r.Datapath, tc.frame).Outcome
			if tc.name != "IPv6, a solicitation" { // that is what the fence is for
				each(func(f *Fence) { dead(f, true); f.at().Claimed = 2 })
				got["dead and fenced"] = try(t, r.Datapath, tc.frame).Outcome
				each(func(f *Fence) { f.at().Claimed = 0 })
			} else {
				delete(want, "dead and fenced")
			}
			place(true, 7)
			got["in a VLAN"] = try(t, r.Datapath, tc.frame).Outcome
			each((*Fence).Drop)
			got["not held"] = try(t, r.Datapath, tc.frame).Outcome
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
		})
	}
	// A later fragment goes where its first one did.
	place(true, 0)
	r.v4.Adopt()
	for i, frame := range [][]byte{
		to(22, func(f *testenv.Frame) { f.MoreFragments, f.ID, f.Payload = true, 9, make([]byte, 20) }),
		to(22, func(f *testenv.Frame) { f.FragOffset, f.ID = 40, 9 }),
	} {
		if got := try(t, r.Datapath, frame).Outcome; got != "not_accepted" {
			t.Errorf("fragment %d: outcome %s, want not_accepted", i, got)
		}
	}
	// The next daemon lists each VIP once, and when all is open nobody looks.
	_, states, err := readFences(r.tables)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if len(s.Addresses) != 1 {
			t.Errorf("VIPs %v", s.Addresses)
		}
	}
	place(false, 0)
	if r.tables.arrays.Closed != 0 {
		t.Error("closed instances are looked for, and there are none")
	}
}
