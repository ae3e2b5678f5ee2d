package loader

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// pieces are the two fragments of a packet to the VIP.
func pieces(id uint16, changes ...change) (first, later testenv.Frame) {
	piece := func(own change) testenv.Frame {
		return toVIP(append([]change{func(f *testenv.Frame) { f.ID = id }, own}, changes...)...)
	}
	first = piece(func(f *testenv.Frame) { f.MoreFragments, f.Payload = true, zeros(1400) })
	later = piece(func(f *testenv.Frame) { f.FragOffset, f.Payload = 1424, zeros(600) })
	return first, later
}

func zeros(n int) []byte { return make([]byte, n) }

func TestFragmentsFollowTheFirst(t *testing.T) {
	web := withWindow(weights(1, 1, 1))
	web.Addresses = append(web.Addresses, lb.FrontendOf(v6VIP))
	dns := service("dns", lb.DSR, 53, backends(3, 53))
	dns.Protocol = lb.UDP
	d := newDatapath(t, web, dns)
	for n, tc := range []struct {
		name    string
		changes []change
	}{
		{"tcp over ipv4", nil},
		{"tcp over ipv6", []change{from6}},
		{"udp over ipv4", []change{udp, port(53)}},
		{"tagged", []change{vlans(7)}},
		{"ipv6 with options before", []change{from6, func(f *testenv.Frame) {
			f.Extensions, f.NextHeaders = [][]byte{{0, 0, 1, 4, 0, 0, 0, 0}}, []uint8{60}
		}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range 50 {
				// Another client with the same identification is another packet's.
				client := func(f *testenv.Frame) {
					if f.Dst.Addr().Is4() {
						f.Src = clientAddr(i)
					} else {
						a := v6Client.Addr().As16()
						a[15] = byte(i)
						f.Src = netip.AddrPortFrom(netip.AddrFrom16(a), uint16(2000+i))
					}
				}
				first, later := pieces(uint16(100+n), append(tc.changes, client)...)
				if got := try(t, d, later.Bytes()); got.Outcome != "early_fragment" {
					t.Fatalf("a later one before the first: %s", got.Outcome)
				}
				one := try(t, d, first.Bytes())
				if one.Outcome != "sent" {
					t.Fatalf("the first one: %s", one.Outcome)
				}
				two := try(t, d, later.Bytes())
				if two.Outcome != "sent" {
					t.Fatalf("the later one: %s", two.Outcome)
				}
				want := parse(t, later.Bytes())
				want.DstMAC, want.SrcMAC, want.VLANs = one.Frame.DstMAC, hardware(nicMAC), nil
				if diff := cmp.Diff(want, two.Frame, equateAddrs); diff != "" {
					t.Fatalf("the later one (-want +got):\n%s", diff)
				}
				if got := try(t, d, func() []byte { later.ID += 50; return later.Bytes() }()); got.Outcome != "early_fragment" {
					t.Fatalf("one of another packet: %s", got.Outcome)
				}
			}
		})
	}
}

func TestFragmentsElsewhere(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	step := func(name string, f testenv.Frame, want string) {
		t.Helper()
		if got := try(t, d, f.Bytes()); got.Outcome != want {
			t.Errorf("%s: %s, want %s", name, got.Outcome, want)
		}
	}
	first, later := pieces(1, port(22))
	step("the first one, to no service", first, "no_service")
	step("a later one follows it to the kernel", later, "later_fragment")
	overwrite := toVIP(func(f *testenv.Frame) { f.ID, f.FragOffset = 3, 8 })
	step("one that would overwrite TCP flags", overwrite, "fragment")
	step("the same of UDP is another matter", toVIP(udp, func(f *testenv.Frame) { f.ID, f.FragOffset = 3, 8 }), "early_fragment")
	tiny := toVIP(func(f *testenv.Frame) { f.ID, f.MoreFragments, f.TotalLength = 4, true, 36 })
	step("a first one without the whole TCP header", tiny, "malformed_tcp")
	tiny = toVIP(udp, func(f *testenv.Frame) { f.ID, f.MoreFragments, f.TotalLength = 4, true, 26 })
	step("a first one without the whole UDP header, and padding in its place", tiny, "malformed_udp")

	// They are remembered for 30 s.
	first, later = pieces(5)
	step("the first one", first, "sent")
	ageFragments(t, d, 28*time.Second)
	step("a later one after 28 s", later, "sent")
	ageFragments(t, d, 4*time.Second)
	step("a later one after 32 s", later, "early_fragment")

	// One whose backend has failed since goes nowhere.
	first, later = pieces(6)
	step("the first one", first, "sent")
	failed := backends(2, 80)
	failed[0].Failed = true
	apply(t, d, service("web", lb.DSR, 80, failed))
	step("a later one after the backend's failure", later, "early_fragment")
}

func TestFragmentsThroughATunnel(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []change
	}{
		{"ipv4", nil}, {"ipv6", []change{from6}},
		{"a last one of a byte", []change{func(f *testenv.Frame) {
			if f.FragOffset > 0 {
				f.Payload = zeros(1)
			}
		}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDatapath(t, tunnelService(v4Backend, 0))
			first, later := pieces(9, c.changes...)
			var sources []netip.Addr
			for i, f := range []testenv.Frame{first, later} {
				verdict, out := send(t, d, f.Bytes())
				if verdict != xdpTX {
					t.Fatalf("fragment %d: verdict %d: %v", i+1, verdict, outcomes(t, d))
				}
				outer, inner, err := testenv.Decapsulate(out)
				if err != nil {
					t.Fatal(err)
				}
				sources = append(sources, outer.Src)
				want := parse(t, f.Bytes())
				want.DstMAC, want.SrcMAC, want.TTL = hardware(backendMAC(1)), hardware(nicMAC), 63
				if diff := cmp.Diff(want, parse(t, inner), equateAddrs); diff != "" || outer.Dst != v4Backend.Addr() {
					t.Errorf("fragment %d to %v (-want +got):\n%s", i+1, outer.Dst, diff)
				}
			}
			if sources[0] != sources[1] {
				t.Errorf("the outer sources of one packet's fragments are %v: they may overtake each other", sources)
			}
		})
	}
}

// ageFragments makes what is remembered of fragments look older.
func ageFragments(t *testing.T, d *Datapath, by time.Duration) {
	t.Helper()
	all := map[lbFragmentKey]lbFragmented{}
	var k lbFragmentKey
	var v lbFragmented
	for it := d.objects.Fragments.Iterate(); it.Next(&k, &v); {
		v.Pin.Seen -= uint32(by / tick)
		all[k] = v
	}
	for k, v := range all {
		if err := d.objects.Fragments.Put(&k, &v); err != nil {
			t.Fatal(err)
		}
	}
}
