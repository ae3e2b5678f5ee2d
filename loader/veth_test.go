package loader

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// What is logged of an interface tells whether the peer of a veth can take what
// native XDP sends.
func TestAttachToVeth(t *testing.T) {
	const elsewhere, lost = "arrives only if the peer has an XDP program, too", "is lost, since the peer has no XDP program"
	n := newNode(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "near"
	if err := n.host.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	n.addMacvlan("eth0", "upper")
	d := n.open()
	defer n.close(d)
	for _, tc := range []struct {
		name       string
		mode       Mode
		interfaces []string
		want       []string
	}{
		{"the peer is a switch's", Auto, []string{"eth0"}, []string{elsewhere + `" interface=eth0`}},
		{"the peer has no program", Native, []string{"near"}, []string{lost + `" interface=near peer=far`}},
		{"the peer has one", Native, []string{"near", "far"}, nil},
		{"generic mode", Generic, []string{"near"}, nil},
		{"the peer has a generic one", Native, []string{"near"}, []string{lost + `" interface=near peer=far`}},
		{"no veth", Auto, []string{"upper"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "the peer has a generic one" {
				err := n.host.Do(func() error {
					l, err := link.AttachXDP(link.XDPOptions{Program: d.program, Interface: n.link("far").Attrs().Index, Flags: link.XDPGenericMode})
					if err == nil {
						t.Cleanup(func() { l.Close() })
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			before := len(n.logs.String())
			n.mustAttach(d, tc.mode, tc.interfaces...)
			var got []string
			for line := range strings.Lines(n.logs.String()[before:]) {
				if strings.Contains(line, "one end of a veth pair") {
					got = append(got, line)
				}
			}
			if !slices.EqualFunc(tc.want, got, func(want, line string) bool { return strings.Contains(line, want) }) {
				t.Errorf("logged %q, want %q", got, tc.want)
			}
		})
	}
}
