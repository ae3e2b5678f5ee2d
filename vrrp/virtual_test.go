// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A fakeMACs takes MAC addresses, or does not.
type fakeMACs struct {
	node *node
	err  error
}

func (m *fakeMACs) Add(iface string, mac MAC) error {
	if m.err == nil {
		m.node.note("filter %v on %s", mac, iface)
	}
	return m.err
}

func virtualNode(t *testing.T, s *segment) (*node, *fakeFence, *fakeMACs) {
	n, f := fenced(t, s, 2)
	f.answers = true
	m := &fakeMACs{node: n}
	n.macs = m
	return n, f, m
}

func withVirtualMAC(c *Config) { c.VirtualMAC = true }

// What comes from a virtual MAC address, and what does not.
func TestVirtualMACSpeaksForWhoHasTheVIPs(t *testing.T) {
	virtual(t, "the Active node, goodbye and all", func(t *testing.T) {
		n, _, _ := virtualNode(t, newSegment())
		n.run(withVirtualMAC)
		sleep(time.Second)
		wantActions(t, n.taken(), "filter 00:00:5e:00:01:33 on eth0", "drop") // as Backup already
		sleep(2700 * time.Millisecond)
		wantActions(t, n.taken(), "send virtual 100", "hold", "announce", "add", "present")
		if got := n.router.Status().VirtualMAC; got != (MAC{0, 0, 0x5e, 0, 1, 51}) {
			t.Errorf("status has the MAC address %v", got)
		}
		n.stop()
		<-n.ended
		wantActions(t, n.taken(), "send virtual 0", "remove", "drop")
	})
	virtual(t, "a release is heard from there", func(t *testing.T) {
		n, _, _ := virtualNode(t, newSegment())
		n.run(withVirtualMAC)
		sleep(4100 * time.Millisecond)
		n.taken()
		if _, err := n.router.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := n.taken(); len(got) != 1 || got[0] != "send virtual 0" {
			t.Errorf("a release did %q", got)
		}
	})
	virtual(t, "a goodbye that comes too late is the node's own", func(t *testing.T) {
		n, f, _ := virtualNode(t, newSegment())
		n.heartbeats = &fakeBeats{}
		n.run(func(c *Config) { c.VirtualMAC, c.Heartbeat = true, beatInterval })
		sleep(4 * time.Second)
		n.wantState(Active)
		n.taken()
		f.do(func() { f.overtaken = true })
		sleep(100 * time.Millisecond)
		wantActions(t, n.taken(), "remove", "drop", "send 0")
	})
	virtual(t, "without one nothing does", func(t *testing.T) {
		n, _, _ := virtualNode(t, newSegment())
		n.run(nil)
		sleep(4 * time.Second)
		if got := n.taken(); !slices.Contains(got, "send 100") || strings.Contains(strings.Join(got, " "), "virtual") {
			t.Errorf("it did %q", got)
		}
	})
}

// Where nobody would answer for the MAC address, or no frame to it come in, the
// instance is at fault.
func TestVirtualMACThatCannotBe(t *testing.T) {
	virtual(t, "no program on the interface", func(t *testing.T) {
		n, f, _ := virtualNode(t, newSegment())
		f.refuses = errors.New("the XDP program is not on eth0")
		n.run(withVirtualMAC)
		sleep(5 * time.Second)
		n.wantState(Fault)
		if got := n.router.Status().Reason; got != "nobody answers for the virtual MAC address: the XDP program is not on eth0" {
			t.Errorf("reason %q", got)
		}
		f.do(func() { f.refuses = nil })
		sleep(15 * time.Second) // it looks again
		n.wantState(Active)
	})
	virtual(t, "the filter takes none", func(t *testing.T) {
		n, _, m := virtualNode(t, newSegment())
		m.err = errors.New("not supported")
		n.run(withVirtualMAC)
		sleep(5 * time.Second)
		n.wantState(Fault)
		if got := n.router.Status().Reason; got != "not supported" {
			t.Errorf("reason %q", got)
		}
	})
	n, _, m := virtualNode(t, newSegment())
	for _, tc := range []struct {
		name   string
		change func(*Config, *Deps)
		err    string
	}{
		{"the owner", func(c *Config, _ *Deps) { c.Priority = PriorityOwner }, "virtual mac address: those of the owner of the addresses are at its own"},
		{"no fence", func(_ *Config, d *Deps) { d.Fence = nil }, "takes a data plane that answers for it"},
		{"no filters", func(_ *Config, d *Deps) { d.MACs = nil }, "takes a data plane that answers for it"},
	} {
		cfg, deps := testConfig(), Deps{Network: n, Addresses: n, Log: slog.New(n.log), Fence: &fakeFence{node: n}, MACs: m}
		cfg.VirtualMAC = true
		tc.change(&cfg, &deps)
		if _, err := New(cfg, deps); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.err)
		}
	}
}

// Advertisements and announcements as they are on the wire.
func TestVirtualMACOnTheWire(t *testing.T) {
	a, b := cable6(t)
	host := a.host()
	for _, tc := range []struct {
		name   string
		usable func(netip.Addr) bool
		vip    netip.Addr
		mac    MAC
		group  netip.Addr
		to     MAC // the group's
	}{
		{"IPv4", netip.Addr.Is4, addr("192.0.2.100"), MAC{0, 0, 0x5e, 0, 1, 51}, groupIPv4, MAC{1, 0, 0x5e, 0, 0, 18}},
		{"IPv6", netip.Addr.IsLinkLocalUnicast, addr("2001:db8::100"), MAC{0, 0, 0x5e, 0, 2, 51}, groupIPv6, MAC{0x33, 0x33, 0, 0, 0, 0x12}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			link := a.linkBy(host, tc.usable)
			link.Virtual = VirtualMAC(51, tc.vip.Is6())
			adv := Advertisement{Version: V3, VRID: 51, Priority: 100, Interval: time.Second, Addresses: []netip.Addr{tc.vip}}
			msg, err := adv.Append(nil, link.Source, tc.group)
			if err != nil {
				t.Fatal(err)
			}
			var sender Transport
			var announcer Announcer
			a.do(func() (err error) {
				if sender, err = host.Transport(link, nil); err == nil {
					announcer, err = host.Announcer(link, []netip.Addr{tc.vip})
				}
				return err
			})
			defer announcer.Close()
			there := b.linkBy(b.host(), tc.usable)
			var receiver Transport
			b.do(func() (err error) {
				receiver, err = b.host().Transport(there, nil)
				return err
			})
			defer receiver.Close()
			wire := b.capture()
			// from returns the next advertisement that one MAC address sends: the kernel
			// reports groups by the node's own.
			from := func(mac MAC) []byte {
				return nextFrame(t, wire, func(f []byte) bool { return MAC(f[6:]) == mac && isAdvertisement(f) })
			}
			virtual := sender.(virtualSending)
			if err := virtual.sendVirtual(msg, tc.group); err != nil {
				t.Fatal(err)
			}
			frame := from(tc.mac)
			if MAC(frame) != tc.to {
				t.Errorf("to %v, want %v", MAC(frame), tc.to)
			}
			if tc.vip.Is4() {
				if p, err := parseIPv4(frame[14:]); err != nil || checksum(0, frame[14:34]) != 0 || frame[15] != dscpCS6 || p.Source != link.Source {
					t.Errorf("packet %+v, error %v: %x", p, err, frame)
				}
			} else if class := frame[14]<<4 | frame[15]>>4; class != dscpCS6 {
				t.Errorf("traffic class %#x", class)
			}
			buf := make([]byte, maxPacket)
			got, err := receiver.Receive(buf)
			if err != nil {
				t.Fatal(err)
			}
			want := Packet{Source: link.Source, Destination: tc.group, TTL: 255, Payload: msg}
			if diff := cmp.Diff(want, got, cmpAddr); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			if n := testing.AllocsPerRun(20, func() {
				if err := virtual.sendVirtual(msg, tc.group); err != nil {
					t.Error(err)
				}
			}); n > 0 {
				t.Errorf("an advertisement allocates %v times", n)
			}

			// The node's own address speaks when it is asked to.
			if err := sender.Send(msg, tc.group); err != nil {
				t.Fatal(err)
			}
			if frame := from(link.MAC); MAC(frame) != tc.to {
				t.Errorf("to %v, want %v", MAC(frame), tc.to)
			}

			if err := announcer.Announce(); err != nil {
				t.Fatal(err)
			}
			frame = nextFrame(t, wire, func(f []byte) bool { c, ok := parseClaim(f); return ok && c.VIP == tc.vip })
			if c, _ := parseClaim(frame); c.MAC != tc.mac || MAC(frame[6:]) != tc.mac {
				t.Errorf("announced at %v, by %v", c.MAC, MAC(frame[6:]))
			}

			// A Pacer sends the same frame on the same socket.
			r := sender.(repeatable)
			parcel := r.parcel(msg, tc.group)
			if MAC(parcel.Payload[6:]) != tc.mac || len(parcel.Address) > 0 {
				t.Errorf("parcel %+v", parcel)
			}
			if err := r.conn().Control(func(fd uintptr) { _, err = unix.Write(int(fd), parcel.Payload) }); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := receiver.Receive(buf); err != nil || !slices.Equal(got.Payload, msg) {
				t.Errorf("received %+v, error %v", got, err)
			}
			if err := sender.Close(); err != nil {
				t.Error(err)
			}
			if err := virtual.sendVirtual(msg, tc.group); err == nil {
				t.Error("sending on a closed transport: got no error")
			}
		})
	}
}

// isAdvertisement tells whether a frame has VRRP behind its IP header.
func isAdvertisement(f []byte) bool {
	const ipv4, ipv6 = 0x0800, 0x86dd
	switch binary.BigEndian.Uint16(f[12:]) {
	case ipv4:
		return f[14+9] == Protocol
	case ipv6:
		return f[14+6] == Protocol
	}
	return false
}

// hasMAC tells whether an interface's filter has a MAC address.
func (ns *namespace) hasMAC(iface string, mac MAC) bool {
	ns.t.Helper()
	found := false
	ns.do(func() error {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		all, err := netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
		for _, n := range all {
			found = found || slices.Equal(n.HardwareAddr, net.HardwareAddr(mac[:]))
		}
		return err
	})
	return found
}

// Filters outlive the process, and what it has not added stays.
func TestMACFiltersOnTheHost(t *testing.T) {
	a, _ := cable(t)
	host, dir, log := a.host(), t.TempDir(), slog.New(testWriter{t})
	ours, theirs := VirtualMAC(51, false), VirtualMAC(52, false)
	if err := host.addMAC("eth0", theirs); err != nil {
		t.Fatal(err)
	}
	open := func() *MACFilters {
		t.Helper()
		f, err := OpenMACFilters(host, dir, log)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	want := func(what string, has bool) {
		t.Helper()
		if got := a.hasMAC("eth0", ours); got != has {
			t.Errorf("%s: it has the MAC address: %v, want %v", what, got, has)
		}
		if !a.hasMAC("eth0", theirs) {
			t.Errorf("%s: somebody else's is gone", what)
		}
	}
	f := open()
	for range 2 { // again changes nothing
		for _, mac := range []MAC{ours, theirs} {
			if err := f.Add("eth0", mac); err != nil {
				t.Fatal(err)
			}
		}
	}
	want("added", true)
	if err := f.Add("eth9", ours); err == nil || !strings.Contains(err.Error(), "have eth9 take frames to the virtual MAC address 00:00:5e:00:01:33") {
		t.Errorf("error %v", err)
	}

	f = open() // another run
	if err := f.Forget(func(iface string, mac MAC) bool { return iface == "eth0" && mac == ours }); err != nil {
		t.Fatal(err)
	}
	want("configured still", true)
	none := func(string, MAC) bool { return false }
	if err := f.Forget(none); err != nil {
		t.Fatal(err)
	}
	want("configured no more", false)
	// What is gone already is forgotten, too.
	if err := f.Add("eth0", ours); err != nil {
		t.Fatal(err)
	}
	if err := host.removeMAC("eth0", ours); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(open().Forget(none), open().Forget(none)); err != nil {
		t.Fatal(err)
	}
	want("removed by somebody else", false)
}

// A failure to add leaves no record of what is not there.
func TestMACFiltersRecord(t *testing.T) {
	dir, log := t.TempDir(), slog.New(testWriter{t})
	table := &fakeMACTable{err: syscall.EOPNOTSUPP}
	f := openMACFilters(table, dir, "this", log)
	if err := f.Add("eth0", MAC{1}); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("error %v", err)
	}
	table.err = nil
	if err := f.Add("eth0", MAC{2}); err != nil {
		t.Fatal(err)
	}
	if err := openMACFilters(table, dir, "this", log).Forget(func(string, MAC) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]MAC{{2}}, table.removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if err := f.Add("eth0", MAC{3}); err != nil {
		t.Fatal(err)
	}
	if err := openMACFilters(table, dir, "another", log).Forget(func(string, MAC) bool { return false }); err != nil || len(table.removed) != 1 {
		t.Errorf("after a reboot it removes %v, error %v", table.removed, err)
	}
}

type fakeMACTable struct {
	err     error
	removed []MAC
}

func (t *fakeMACTable) addMAC(string, MAC) error { return t.err }
func (t *fakeMACTable) removeMAC(_ string, mac MAC) error {
	t.removed = append(t.removed, mac)
	return nil
}
