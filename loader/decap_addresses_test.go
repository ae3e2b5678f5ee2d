package loader

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestTakenBy(t *testing.T) {
	attrs := func(index int, change func(*netlink.LinkAttrs)) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Index = index
		if change != nil {
			change(&a)
		}
		return a
	}
	in := func(master int) func(*netlink.LinkAttrs) {
		return func(a *netlink.LinkAttrs) { a.MasterIndex = master }
	}
	on := func(parent int) func(*netlink.LinkAttrs) {
		return func(a *netlink.LinkAttrs) { a.ParentIndex = parent }
	}
	links := []netlink.Link{
		// A VLAN in a VLAN comes before what it is on.
		&netlink.Vlan{LinkAttrs: attrs(9, on(8))},
		&netlink.Device{LinkAttrs: attrs(1, nil)},
		&netlink.Device{LinkAttrs: attrs(2, nil)}, // alone, with VLANs 8 and 9
		&netlink.Device{LinkAttrs: attrs(3, in(5))},
		&netlink.Device{LinkAttrs: attrs(4, in(5))},
		&netlink.Bond{LinkAttrs: attrs(5, in(6))}, // of 3 and 4
		&netlink.Bridge{LinkAttrs: attrs(6, nil)}, // of 5
		&netlink.Vlan{LinkAttrs: attrs(7, on(6))},
		&netlink.Vlan{LinkAttrs: attrs(8, on(2))},
		&netlink.Veth{LinkAttrs: attrs(10, on(2))}, // the parent is its other end
		&netlink.Macvlan{LinkAttrs: attrs(11, on(2))},
		// On number 2 of another namespace.
		&netlink.Vlan{LinkAttrs: attrs(12, func(a *netlink.LinkAttrs) { a.ParentIndex, a.NetNsID = 2, 0 })},
	}
	for index, want := range map[int][]int{
		1:  {1},
		2:  {2, 8, 9},
		3:  {3, 5, 6, 7},
		5:  {5, 6, 7},
		9:  {9},
		99: {99},
	} {
		got := slices.Sorted(maps.Keys(takenBy(index, links)))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("link %d (-want +got):\n%s", index, diff)
		}
	}
}
