// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// An arpHost is a namespace with two NICs and a bridge with a port.
type arpHost struct {
	*namespace
	dir string
}

func newARPHost(t *testing.T) *arpHost {
	t.Helper()
	needRoot(t)
	h := &arpHost{newNamespace(t), t.TempDir()}
	for _, name := range []string{"eth0", "eth1.7", "port"} {
		h.link(name)
	}
	h.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		port, err := netlink.LinkByName("port")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, bridge)
	})
	return h
}

func (h *arpHost) link(name string) {
	h.t.Helper()
	h.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "x" + name[len(name)-1:]})
	})
}

// settings returns a run's, as it finds the record.
func (h *arpHost) settings() *ARPSettings {
	h.t.Helper()
	a, err := OpenARPSettings(h.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *arpHost) apply(a *ARPSettings, on ...string) {
	h.t.Helper()
	h.do(func() error { return a.Apply(on) })
}

// want compares arp_ignore and arp_announce of the interfaces.
func (h *arpHost) want(want map[string][2]int) {
	h.t.Helper()
	got := map[string][2]int{}
	h.do(func() error {
		for name := range want {
			ignore, err := readSysctl(arpPath(name, "arp_ignore"))
			if err != nil {
				return err
			}
			announce, err := readSysctl(arpPath(name, "arp_announce"))
			if err != nil {
				return err
			}
			got[name] = [2]int{ignore, announce}
		}
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" {
		h.t.Errorf("arp_ignore, arp_announce (-want +got):\n%s", diff)
	}
}

func (h *arpHost) set(iface, setting string, value int) {
	h.t.Helper()
	h.do(func() error { return changeSysctl(arpPath(iface, setting), value) })
}

func TestARPSettings(t *testing.T) {
	untouched := [2]int{0, 0}
	t.Run("made, and put back by a later run", func(t *testing.T) {
		h := newARPHost(t)
		h.apply(h.settings(), "eth0")
		// The VIP's own interface answers for other addresses as it did.
		h.want(map[string][2]int{"eth0": {0, 2}, "eth1.7": {1, 2}, "br0": {1, 2}, "port": untouched, "lo": untouched})
		h.do(h.settings().Restore)
		h.want(map[string][2]int{"eth0": untouched, "eth1.7": untouched, "br0": untouched})
		if _, err := os.Stat(filepath.Join(h.dir, arpName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the record is left: %v", err)
		}
	})
	t.Run("VIPs on two interfaces", func(t *testing.T) {
		h := newARPHost(t)
		a := h.settings()
		h.apply(a, "eth0", "eth1.7")
		h.want(map[string][2]int{"eth0": {1, 2}, "eth1.7": {1, 2}, "br0": {1, 2}})
		// One of them is not configured any more.
		h.apply(a, "eth0")
		h.want(map[string][2]int{"eth0": {0, 2}, "eth1.7": {1, 2}, "br0": {1, 2}})
		h.apply(a)
		h.want(map[string][2]int{"eth0": untouched, "eth1.7": untouched, "br0": untouched})
	})
	t.Run("what is strict already stays, and what somebody changes since is his", func(t *testing.T) {
		h := newARPHost(t)
		h.set("eth1.7", "arp_ignore", 2)
		h.set("br0", "arp_announce", 1)
		a := h.settings()
		h.apply(a, "eth0")
		h.want(map[string][2]int{"eth1.7": {2, 2}, "br0": {1, 2}})
		h.set("eth1.7", "arp_announce", 1)
		h.do(a.Restore)
		h.want(map[string][2]int{"eth1.7": {2, 1}, "br0": {0, 1}})
	})
	t.Run("all interfaces are strict", func(t *testing.T) {
		h := newARPHost(t)
		h.set("all", "arp_ignore", 1)
		h.set("all", "arp_announce", 2)
		h.apply(h.settings(), "eth0")
		h.want(map[string][2]int{"eth0": untouched, "eth1.7": untouched, "br0": untouched})
	})
	t.Run("an interface comes later, another one goes", func(t *testing.T) {
		h := newARPHost(t)
		a := h.settings()
		h.apply(a, "eth0")
		h.link("eth2")
		h.do(func() error {
			l, err := netlink.LinkByName("eth1.7")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		h.apply(a, "eth0")
		h.want(map[string][2]int{"eth2": {1, 2}})
		h.do(a.Restore)
		h.want(map[string][2]int{"eth2": untouched, "eth0": untouched})
	})
	t.Run("a record that cannot be read", func(t *testing.T) {
		h := newARPHost(t)
		if err := os.WriteFile(filepath.Join(h.dir, arpName), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.apply(h.settings(), "eth0")
		h.want(map[string][2]int{"eth1.7": {1, 2}})
		h.do(h.settings().Restore)
		h.want(map[string][2]int{"eth1.7": untouched})
	})
}

func TestSysctlName(t *testing.T) {
	if got, want := sysctlName(arpPath("eth0.7", "arp_ignore")), "net.ipv4.conf.eth0/7.arp_ignore"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
