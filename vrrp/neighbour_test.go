// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNeighbourFrames(t *testing.T) {
	link := Link{MAC: MAC{2, 0, 0, 0, 0, 1}, Source: addr("fe80::2")}
	vips := []netip.Addr{addr("2001:db8::100")}
	want := []byte{
		0x33, 0x33, 0, 0, 0, 1, // to all nodes
		2, 0, 0, 0, 0, 1, // from this node
		0x86, 0xdd, // IPv6
		0x60, 0, 0, 0, // version 6
		0, 32, // length of what follows the header
		58, 255, // ICMPv6, hop limit
		0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // source
		0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // ff02::1
		136, 0, // neighbour advertisement
		0x27, 0x63, // checksum
		0x20, 0, 0, 0, // Override; neither Router nor Solicited
		0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, // the VIP
		2, 1, 2, 0, 0, 0, 0, 1, // the MAC address that it is at
	}
	got, err := neighbourFrames(link, vips)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{want}, got); diff != "" {
		t.Errorf("frame of a host (-want +got):\n%s", diff)
	}
	want[58], want[56], want[57] = 0xa0, 0xa7, 0x62 // and Router
	link.Router = true
	if got, err = neighbourFrames(link, vips); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{want}, got); diff != "" {
		t.Errorf("frame of a router (-want +got):\n%s", diff)
	}
}

func TestNeighbourFramesNeedEthernet(t *testing.T) {
	if _, err := neighbourFrames(Link{Source: addr("fe80::2")}, []netip.Addr{addr("2001:db8::100")}); err == nil {
		t.Error("got no error for an interface without an Ethernet address")
	}
}
