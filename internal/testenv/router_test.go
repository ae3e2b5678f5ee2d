package testenv

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		first string
		count int
		want  []string
	}{
		{"192.0.2.200/24", 3, []string{"192.0.2.200/24", "192.0.2.201/24", "192.0.2.202/24"}},
		{"2001:db8::ff/64", 2, []string{"2001:db8::ff/64", "2001:db8::100/64"}},
		{"192.0.2.1/24", 0, nil},
	} {
		var got []string
		for _, p := range Addresses(netip.MustParsePrefix(tc.first), tc.count) {
			got = append(got, p.String())
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%d from %s (-want +got):\n%s", tc.count, tc.first, diff)
		}
	}
}

// A host has many addresses and chooses from which one it connects; a router with
// a smaller MTU says so of both families.
func TestManyAddressesBehindARouterWithASmallMTU(t *testing.T) {
	const small = 1300
	on := func(name, segment string, addresses ...netip.Prefix) InterfaceSpec {
		return InterfaceSpec{Name: name, Segment: segment, Addresses: addresses}
	}
	p := netip.MustParsePrefix
	far := append(Addresses(p("198.51.100.11/24"), 3), Addresses(p("2001:db8:1::11/64"), 3)...)
	lab := New(t, Spec{IPv6: true, Hosts: []HostSpec{
		{Name: "c", Interfaces: []InterfaceSpec{on("eth0", "far", far...)}, Routes: []RouteSpec{
			{Via: netip.MustParseAddr("198.51.100.1")}, {Via: netip.MustParseAddr("2001:db8:1::1")}}},
		{Name: "r", Forward: true, Interfaces: []InterfaceSpec{
			on("eth0", "lan", p("192.0.2.254/24"), p("2001:db8::fe/64")), on("eth1", "far", p("198.51.100.1/24"), p("2001:db8:1::1/64"))}},
		{Name: "b", Interfaces: []InterfaceSpec{on("eth0", "lan", p("192.0.2.11/24"), p("2001:db8::11/64"))}, Routes: []RouteSpec{
			{Via: netip.MustParseAddr("192.0.2.254")}, {Via: netip.MustParseAddr("2001:db8::fe")}}},
	}})
	if err := lab.Host("r").SetMTU("eth1", small); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"192.0.2.11:7", "[2001:db8::11]:7"} {
		segments := make(chan int, 1)
		server, err := lab.Host("b").StartTCP(netip.MustParseAddrPort(address), func(c net.Conn) {
			before, err := SegmentSize(c)
			if err != nil || before <= small {
				t.Errorf("segments of %d bytes before the router has said anything, %v", before, err)
			}
			_, _ = c.Write(make([]byte, 100000)) // the client sees what goes wrong
			_, _ = io.Copy(io.Discard, c)
			after, err := SegmentSize(c)
			if err != nil {
				t.Error(err)
			}
			segments <- after
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range far {
			if from.Addr().Is4() != server.Addr().Addr().Is4() {
				continue
			}
			local := netip.AddrPortFrom(from.Addr(), 20000)
			conn, err := lab.Host("c").DialFrom(within(t, 10*time.Second), local, server.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.LocalAddr().String(); got != local.String() {
				t.Errorf("connected from %s, want %v", got, local)
			}
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, conn, 100000); err != nil {
				t.Fatalf("%v: %v", local, err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if after := <-segments; after >= small || after < small-100 {
				t.Errorf("%v: segments of %d bytes for packets of %d", local, after, small)
			}
		}
	}
	if err := lab.Host("r").SetMTU("eth9", small); err == nil {
		t.Error("an interface that does not exist gets an MTU")
	}
}
