// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
)

// An ARP probe byte by byte (RFC 5227, 2.1.1), and a solicitation (RFC 4862, 5.4.2).
func TestProbeFrames(t *testing.T) {
	mac := MAC{2, 0, 0, 0, 0, 1}
	for _, tc := range []struct {
		vip  string
		want []byte
	}{
		{"192.0.2.100", slices.Concat(
			[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6},
			[]byte{0, 1, 8, 0, 6, 4, 0, 1},                                                                     // request
			[]byte{2, 0, 0, 0, 0, 1, 0, 0, 0, 0}, []byte{0, 0, 0, 0, 0, 0, 192, 0, 2, 100}, make([]byte, 18))}, // padded to 60
		{"2001:db8::1:203", slices.Concat(
			[]byte{0x33, 0x33, 0xff, 1, 2, 3, 2, 0, 0, 0, 0, 1, 0x86, 0xdd},
			[]byte{0x60, 0, 0, 0, 0, 24, 58, 255}, make([]byte, 16),
			[]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 1, 2, 3},
			[]byte{135, 0, 0x48, 0xe7, 0, 0, 0, 0},
			[]byte{0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3})},
	} {
		got, err := probeFrame(mac, addr(tc.vip))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("probe of %s (-want +got):\n%s", tc.vip, diff)
		}
	}
}

// The filters pass what is a claim, and nothing else.
func TestClaimFilters(t *testing.T) {
	own := Link{MAC: MAC{2, 0, 0, 0, 0, 1}, Source: addr("fe80::1")}
	other := Link{MAC: stranger, Source: addr("fe80::9")}
	vips := []netip.Addr{addr("192.0.2.99"), addr("192.0.2.100")}
	vips6 := []netip.Addr{addr("fe80::100"), addr("2001:db8::100")}
	gratuitous := func(mac MAC, vip string) []byte {
		frames, err := gratuitousFrames(mac, []netip.Addr{addr(vip)})
		if err != nil {
			t.Fatal(err)
		}
		return frames[0]
	}
	spoil := func(frame []byte, at int, to byte) []byte {
		f := slices.Clone(frame)
		f[at] = to
		return f
	}
	claim4, claim6 := gratuitous(stranger, "192.0.2.100"), neighbourFrame(other, vips6[1])
	probe, err := probeFrame(stranger, vips[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		frame []byte
		want  *Claim
	}{
		{"gratuitous ARP", claim4, &Claim{vips[1], stranger}},
		{"of the first VIP", gratuitous(stranger, "192.0.2.99"), &Claim{vips[0], stranger}},
		{"this node's own", gratuitous(own.MAC, "192.0.2.100"), nil},
		{"half of this node's address", gratuitous(MAC{2, 0, 0, 0, 0, 2}, "192.0.2.100"), &Claim{vips[1], MAC{2, 0, 0, 0, 0, 2}}},
		{"another address", gratuitous(stranger, "192.0.2.101"), nil},
		{"a probe claims nothing", probe, nil},
		{"another hardware", spoil(claim4, 15, 6), nil},
		{"another protocol", spoil(claim4, 16, 0x86), nil},
		{"cut", claim4[:30], nil},
		{"neighbour advertisement", claim6, &Claim{vips6[1], stranger}},
		{"of the first VIP, IPv6", neighbourFrame(other, vips6[0]), &Claim{vips6[0], stranger}},
		{"this node's own, IPv6", neighbourFrame(own, vips6[0]), nil},
		{"another address, IPv6", neighbourFrame(other, addr("2001:db8::101")), nil},
		{"routed", spoil(claim6, 21, 254), nil},
		{"solicitation", spoil(claim6, 54, 135), nil},
		{"another option", spoil(claim6, 78, 1), nil},
		{"cut, IPv6", claim6[:70], nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			filter, of := claimFilter4, vips
			if tc.frame[12] == 0x86 {
				filter, of = claimFilter6, vips6
			}
			vm, err := bpf.NewVM(filter(own.MAC, of))
			if err != nil {
				t.Fatal(err)
			}
			n, err := vm.Run(tc.frame)
			if err != nil {
				t.Fatal(err)
			}
			var got *Claim
			if c, ok := parseClaim(tc.frame[:min(n, len(tc.frame))]); ok {
				got = &c
			}
			if diff := cmp.Diff(tc.want, got, cmpAddr); diff != "" {
				t.Errorf("claim (-want +got):\n%s", diff)
			}
		})
	}
	for n := range claim6 {
		parseClaim(claim6[:n]) // does not panic
	}
}

// As many VIPs as an instance may have still make a filter.
func TestClaimFilterOfManyVIPs(t *testing.T) {
	var vips, vips6 []netip.Addr
	for i := range maxAddresses {
		vips = append(vips, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		vips6 = append(vips6, netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 15: byte(i)}))
	}
	for _, f := range [][]bpf.Instruction{claimFilter4(stranger, vips), claimFilter6(stranger, vips6)} {
		if _, err := bpf.Assemble(f); err != nil || len(f) > 4096 {
			t.Errorf("%d instructions: %v", len(f), err)
		}
	}
}

// A kernel that has the VIP answers a probe, and is heard; one that has not is silent.
func TestProbeIsAnswered(t *testing.T) {
	for _, tc := range []struct {
		name, vip, silent string
		source            func(netip.Addr) bool
	}{
		{"IPv4", "192.0.2.100/24", "192.0.2.101", netip.Addr.Is4},
		{"IPv6", "2001:db8::100/64", "2001:db8::101", netip.Addr.IsLinkLocalUnicast},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := cable(t)
			host := a.host()
			link := a.linkBy(host, tc.source)
			b.addAddress("eth0", tc.vip)
			vip := netip.MustParsePrefix(tc.vip).Addr()
			var p Prober
			a.do(func() (err error) {
				p, err = host.Prober(link, []netip.Addr{addr(tc.silent), vip})
				return err
			})
			heard := make(chan Claim, 16)
			go func() {
				defer close(heard)
				for {
					c, err := p.Receive()
					if err != nil {
						return // closed
					}
					heard <- c
				}
			}()
			var got Claim
			eventually(t, "an answer", func() bool {
				if err := p.Probe(1); err != nil { // in turn, so the second one comes, too
					t.Fatal(err)
				}
				select {
				case got = <-heard:
					return true
				default:
					return false
				}
			})
			var mac MAC
			b.do(func() error {
				nic, err := net.InterfaceByName("eth0")
				if err == nil {
					mac = MAC(nic.HardwareAddr)
				}
				return err
			})
			if want := (Claim{vip, mac}); got != want {
				t.Errorf("claim %v, want %v", got, want)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			for c := range heard { // until Receive has returned
				if c != got {
					t.Errorf("claim %v, too", c)
				}
			}
		})
	}
}
