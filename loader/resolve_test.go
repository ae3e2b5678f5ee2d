package loader

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// The way out by an interface on top of others, tagged where these are VLANs.
func TestWayOut(t *testing.T) {
	mac := net.HardwareAddr(nicMAC[:])
	attrs := func(index int, name string, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: index, Name: name, ParentIndex: parent, HardwareAddr: mac, Flags: net.FlagUp}
	}
	vlan := func(index int, name string, parent, id int) netlink.Link {
		return &netlink.Vlan{LinkAttrs: attrs(index, name, parent), VlanId: id}
	}
	down := attrs(9, "eth0.9", 1)
	down.Flags = 0
	bare := attrs(10, "tun0", 0)
	bare.HardwareAddr = nil
	links := map[int]netlink.Link{
		1:  &netlink.Device{LinkAttrs: attrs(1, "eth0", 0)},
		2:  vlan(2, "eth0.100", 1, 100),
		3:  vlan(3, "eth0.100.200", 2, 200),
		4:  vlan(4, "eth0.100.200.300", 3, 300),
		5:  &netlink.Device{LinkAttrs: attrs(5, "eth5", 0)},
		6:  vlan(6, "eth5.7", 5, 7),
		7:  &netlink.Bridge{LinkAttrs: attrs(7, "br0", 0)},
		8:  vlan(8, "eth0.8", 1, 8), // it has the program itself
		9:  &netlink.Vlan{LinkAttrs: down, VlanId: 9},
		10: &netlink.Tuntap{LinkAttrs: bare},
	}
	tests := []struct {
		name  string
		by    int
		want  lb.NextHop
		error string
	}{
		{"the nic", 1, lb.NextHop{Interface: 1, Source: nicMAC}, ""},
		{"a vlan on it", 2, lb.NextHop{Interface: 1, Source: nicMAC, VLANs: [2]uint16{100}, Tags: 1}, ""},
		{"a vlan in a vlan", 3, lb.NextHop{Interface: 1, Source: nicMAC, VLANs: [2]uint16{100, 200}, Tags: 2}, ""},
		{"a vlan that has the program", 8, lb.NextHop{Interface: 8, Source: nicMAC}, ""},
		{"three tags", 4, lb.NextHop{}, "eth0.100.200.300 has more than 2 VLAN tags"},
		{"another nic", 5, lb.NextHop{}, "eth5, where sluice is not"},
		{"a vlan on another nic", 6, lb.NextHop{}, "eth5.7, where sluice is not"},
		{"a bridge", 7, lb.NextHop{}, "br0, where sluice is not"},
		{"down", 9, lb.NextHop{}, "eth0.9 is down"},
		{"no ethernet", 10, lb.NextHop{}, "tun0 has no Ethernet address"},
	}
	p := &resolution{r: &Resolver{datapath: map[string]bool{"eth0": true, "eth0.8": true}}, links: links}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := p.out(links[tc.by])
			if tc.error != "" {
				if err == nil || !strings.Contains(err.Error(), tc.error) {
					t.Errorf("error %v, want one with %q", err, tc.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("next hop (-want +got):\n%s", diff)
			}
		})
	}
}

// Only news of a neighbour that is followed has all of them looked up again.
func TestResolverConcerns(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 1, 1}
	r := &Resolver{kept: map[neighbourKey]neighbour{
		{1, onLink}: {mac: [6]byte(mac), valid: true, managed: true},
	}}
	event := func(change func(*netlink.NeighUpdate)) netlink.NeighUpdate {
		u := netlink.NeighUpdate{Type: unix.RTM_NEWNEIGH, Neigh: netlink.Neigh{
			LinkIndex: 1, IP: onLink.AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE,
		}}
		change(&u)
		return u
	}
	tests := []struct {
		name  string
		event netlink.NeighUpdate
		want  bool
	}{
		{"confirmed", event(func(*netlink.NeighUpdate) {}), false},
		{"stale", event(func(u *netlink.NeighUpdate) { u.State = netlink.NUD_STALE }), false},
		{"probed", event(func(u *netlink.NeighUpdate) { u.State = netlink.NUD_PROBE }), false},
		{"another address", event(func(u *netlink.NeighUpdate) { u.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 1, 2} }), true},
		{"failed", event(func(u *netlink.NeighUpdate) { u.State = netlink.NUD_FAILED }), true},
		{"incomplete", event(func(u *netlink.NeighUpdate) { u.State, u.HardwareAddr = netlink.NUD_INCOMPLETE, nil }), true},
		{"gone", event(func(u *netlink.NeighUpdate) { u.Type = unix.RTM_DELNEIGH }), true},
		{"another neighbour", event(func(u *netlink.NeighUpdate) { u.IP = net.IPv4(192, 0, 2, 12) }), false},
		{"another neighbour goes", event(func(u *netlink.NeighUpdate) { u.IP, u.Type = net.IPv4(192, 0, 2, 12), unix.RTM_DELNEIGH }), false},
		{"the same on another link", event(func(u *netlink.NeighUpdate) { u.LinkIndex, u.State = 2, netlink.NUD_FAILED }), false},
		{"a bridge's entry", event(func(u *netlink.NeighUpdate) { u.IP = nil }), false},
	}
	for _, tc := range tests {
		if got := r.concerns(tc.event); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
