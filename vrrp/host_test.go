// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// transports opens one on each end of a cable, over IPv4 multicast.
func transports(t *testing.T) (a, b *namespace, ta, tb Transport) {
	t.Helper()
	a, b = cable(t)
	return a, b, a.transport(nil), b.transport(nil)
}

// transport opens one to peers, or over multicast: IPv6 where groupIPv6 is the
// only peer, else IPv4.
func (ns *namespace) transport(peers []netip.Addr) (t Transport) {
	ns.t.Helper()
	host := ns.host()
	v6 := len(peers) > 0 && peers[0].Is6()
	if v6 && peers[0] == groupIPv6 {
		peers = nil
	}
	usable := func(a netip.Addr) bool {
		return a.Is6() == v6 && (!v6 || a.IsLinkLocalUnicast() == (len(peers) == 0))
	}
	link := ns.linkBy(host, usable)
	ns.do(func() (err error) {
		t, err = host.Transport(link, peers)
		return err
	})
	ns.t.Cleanup(func() { t.Close() })
	return t
}

func isVRRP(frame []byte) bool { return len(frame) > 34 && frame[12] == 8 && frame[23] == Protocol }

func TestTransportOnTheWire(t *testing.T) {
	_, b, ta, tb := transports(t)
	wire := b.capture()
	msg := realV2[20:]
	if err := ta.Send(msg, groupIPv4); err != nil {
		t.Fatal(err)
	}
	frame := nextFrame(t, wire, isVRRP)
	if want := []byte{0x01, 0x00, 0x5e, 0, 0, 0x12}; !bytes.Equal(frame[:6], want) {
		t.Errorf("got destination mac %x, want %x", frame[:6], want)
	}
	ip := frame[14:]
	want := []byte{0x45, 0xc0, 0, 40, ip[4], ip[5], 0, 0, 255, 112, ip[10], ip[11], 192, 0, 2, 1, 224, 0, 0, 18}
	if diff := cmp.Diff(want, ip[:20]); diff != "" {
		t.Errorf("ip header (-want +got):\n%s", diff)
	}

	buf := make([]byte, maxPacket)
	p, err := tb.Receive(buf)
	if err != nil {
		t.Fatal(err)
	}
	wantPacket := Packet{Source: addr("192.0.2.1"), Destination: groupIPv4, TTL: 255, Payload: msg}
	if diff := cmp.Diff(wantPacket, p, cmpAddr); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}

	// What a hears first is b, not itself.
	if err := tb.Send(msg, groupIPv4); err != nil {
		t.Fatal(err)
	}
	if p, err := ta.Receive(buf); err != nil || p.Source != addr("192.0.2.2") {
		t.Errorf("got a packet from %v, error %v", p.Source, err)
	}

	// A packet whose TTL says that it was routed.
	b.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, Protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 254),
			unix.BindToDevice(fd, "eth0"),
			unix.Sendto(fd, msg, 0, &unix.SockaddrInet4{Addr: groupIPv4.As4()}))
	})
	p, err = ta.Receive(buf)
	if err != nil || p.TTL != 254 {
		t.Fatalf("got ttl %d, error %v", p.TTL, err)
	}
	f, adv := v2Filter(), Advertisement{}
	if err := f.Accept(p, &adv); err != ReasonTTL {
		t.Errorf("got %v, want %v", err, ReasonTTL)
	}
}

func TestTransportClose(t *testing.T) {
	_, _, ta, _ := transports(t)
	done := make(chan error)
	go func() {
		_, err := ta.Receive(make([]byte, maxPacket))
		done <- err
	}()
	if err := ta.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("receiving on a closed transport: got no error")
	}
	if err := ta.Send(realV2[20:], groupIPv4); err == nil {
		t.Error("sending on a closed transport: got no error")
	}
}

func TestTransportDoesNotAllocate(t *testing.T) {
	_, _, ta, tb := transports(t)
	buf := make([]byte, maxPacket)
	if n := testing.AllocsPerRun(50, func() {
		if err := ta.Send(realV2[20:], groupIPv4); err != nil {
			t.Error(err)
		}
		if _, err := tb.Receive(buf); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestAnnouncerOnTheWire(t *testing.T) {
	a, b := cable(t)
	host := a.host()
	link := a.link(host)
	wire := b.capture()
	vips := []netip.Addr{addr("192.0.2.100"), addr("192.0.2.101")}
	var announcer Announcer
	a.do(func() (err error) {
		announcer, err = host.Announcer(link, vips)
		return err
	})
	defer announcer.Close()
	if err := announcer.Announce(); err != nil {
		t.Fatal(err)
	}
	want, err := gratuitousFrames(link.MAC, vips)
	if err != nil {
		t.Fatal(err)
	}
	for i, frame := range want {
		got := nextFrame(t, wire, func(f []byte) bool { return f[12] == 8 && f[13] == 6 })
		if diff := cmp.Diff(frame, got); diff != "" {
			t.Errorf("frame %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestHostLink(t *testing.T) {
	a, b := cable(t)
	host := a.host()
	all := netip.Addr.Is4
	link := a.link(host)
	if link.Source != addr("192.0.2.1") || link.MAC == (MAC{}) || link.Index == 0 {
		t.Errorf("got %+v", link)
	}
	changed, stop := host.Watch()
	defer stop()
	next := func() {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("no change was signalled")
		}
	}
	up := func() bool {
		l, err := host.Link("eth0", all)
		return err == nil && l.Up
	}

	a.addAddress("eth0", "192.0.2.7/24")
	next()
	if l, _ := host.Link("eth0", func(v netip.Addr) bool { return v.Is4() && v != addr("192.0.2.1") }); l.Source != addr("192.0.2.7") {
		t.Errorf("got source %v though that of old is a vip", l.Source)
	}
	if l, _ := host.Link("eth0", func(netip.Addr) bool { return false }); l.Source.IsValid() {
		t.Errorf("got source %v though all are vips", l.Source)
	}

	b.setUp("eth0", false) // the cable is pulled at the other end
	next()
	eventually(t, "carrier is lost", func() bool { return !up() })
	b.setUp("eth0", true)
	next()
	eventually(t, "carrier is back", up)
	a.setUp("eth0", false)
	next()
	eventually(t, "eth0 is down", func() bool { return !up() })

	if _, err := host.Link("eth9", all); err == nil || !strings.Contains(err.Error(), "interface eth9 does not exist") {
		t.Errorf("got error %v", err)
	}
}

func TestAddressesOnTheHost(t *testing.T) {
	a, _ := cable(t)
	host, dir := a.host(), t.TempDir()
	a.link(host)
	vips := prefixes("192.0.2.100/24", "198.51.100.100/24", "203.0.113.1/32")
	openReal := func() *Addresses {
		t.Helper()
		s, err := OpenAddresses(host, dir, discard)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := openReal()
	if err := s.Add("eth0", vips, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(prefixes("192.0.2.1/24"), vips...), sorted(a.addresses("eth0")), cmpAddr); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}

	// A second run knows them, and the node's own is not one of them.
	s = openReal()
	report, err := s.Check("eth0", append(vips, prefixes("192.0.2.1/24")...), false)
	if err != nil {
		t.Fatal(err)
	}
	want := AddressReport{Present: vips, Conflicts: []*ConflictError{{addr("192.0.2.1"), "eth0"}}}
	if diff := cmp.Diff(want, report, cmpAddr); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}

	// The operator's address hangs on the vip of its subnet, and survives it.
	a.addAddress("eth0", "198.51.100.7/24")
	a.do(func() error { // from the namespace: /proc/sys/net is the caller's
		return s.Remove("eth0", append(vips, prefixes("192.0.2.1/24")...))
	})
	if diff := cmp.Diff(prefixes("192.0.2.1/24", "198.51.100.7/24"), sorted(a.addresses("eth0")), cmpAddr); diff != "" {
		t.Errorf("addresses left (-want +got):\n%s", diff)
	}

	// Removing what is gone, from an interface that is gone, is no error.
	if err := s.Add("eth0", vips, false); err != nil {
		t.Fatal(err)
	}
	a.deleteAddress("eth0", "192.0.2.100/24")
	if err := s.Remove("eth0", vips[:1]); err != nil {
		t.Error(err)
	}
	a.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err := s.Remove("eth0", vips); err != nil {
		t.Error(err)
	}
	if err := s.Add("eth0", vips, false); err == nil || s.Added(vips[0].Addr()) {
		t.Errorf("adding to an interface that is gone: got error %v", err)
	}
}

func sorted(ps []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(ps), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
}

// fast is a version 3 configuration at 50 ms.
func fast(p uint8) Config {
	return Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V3, Priority: p, Interval: 50 * time.Millisecond,
		Addresses: prefixes("192.0.2.100/24"), Preempt: true}
}

func TestRoutersOnTheHost(t *testing.T) {
	const vip = "192.0.2.100/24"
	a, b := cable(t)
	dirA := t.TempDir()
	ra, stopA := a.start(fast(100), dirA)
	b.start(fast(99), t.TempDir())
	onA := func() bool { return a.has(vip) && !b.has(vip) }
	onB := func() bool { return b.has(vip) && !a.has(vip) }
	eventually(t, "the vip is on a", onA)
	always(t, "the vip is on a", 300*time.Millisecond, onA)

	a.deleteAddress("eth0", vip)
	eventually(t, "the vip is put back", onA)

	b.setUp("eth0", false) // neither has a carrier
	eventually(t, "a is in fault", func() bool {
		s := ra.Status()
		return s.State == Fault && s.Reason == "interface eth0 is down" && !a.has(vip)
	})
	b.setUp("eth0", true)
	eventually(t, "the vip is on a again", onA)

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h, err := ra.Release(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !h.TookOver() || h.Peer != addr("192.0.2.2") {
		t.Errorf("got handover %+v", h)
	}
	stopA()
	eventually(t, "the vip is on b", onB)

	// a comes back and takes over; then its interface is made anew.
	ra, _ = a.start(fast(100), dirA)
	eventually(t, "the vip is on a", onA)
	a.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	eventually(t, "a is in fault", func() bool {
		return strings.Contains(ra.Status().Reason, "interface eth0 does not exist")
	})
	a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.handle)})
	})
	a.addAddress("eth0", "192.0.2.1/24")
	b.addAddress("eth0", "192.0.2.2/24")
	a.setUp("eth0", true)
	b.setUp("eth0", true)
	eventually(t, "the vip is on a new interface", onA)
}

// A Backup answers no ARP for the VIP, an Active node does.
func TestARPForTheVIP(t *testing.T) {
	a, b := cable(t)
	host := b.host()
	link := b.link(host)
	wire := b.capture()
	// answers asks for the VIP and then for a's own address, and reports whether
	// the VIP was answered by the time the other was.
	answers := func() bool {
		t.Helper()
		for _, target := range []string{"192.0.2.100", "192.0.2.1"} {
			p, err := arp.NewPacket(arp.OperationRequest, link.MAC[:], addr("192.0.2.2"), make(net.HardwareAddr, 6), addr(target))
			if err != nil {
				t.Fatal(err)
			}
			body, err := p.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			frame, err := (&ethernet.Frame{Destination: ethernet.Broadcast, Source: link.MAC[:], EtherType: ethernet.EtherTypeARP, Payload: body}).MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := wire.WriteTo(frame, &packet.Addr{HardwareAddr: ethernet.Broadcast}); err != nil {
				t.Fatal(err)
			}
		}
		vip := false
		nextFrame(t, wire, func(f []byte) bool {
			// A reply, to this node and no announcement.
			if f[12] != 8 || f[13] != 6 || f[21] != 2 || !bytes.Equal(f[:6], link.MAC[:]) {
				return false
			}
			vip = vip || bytes.Equal(f[28:32], []byte{192, 0, 2, 100})
			return bytes.Equal(f[28:32], []byte{192, 0, 2, 1})
		})
		return vip
	}
	cfg := fast(100)
	cfg.Interval = 2 * time.Second
	r, _ := a.start(cfg, t.TempDir())
	eventually(t, "a is backup", func() bool { return r.Status().State == Backup })
	if answers() {
		t.Error("a backup answered arp for the vip")
	}
	eventually(t, "a is active", func() bool { return r.Status().State == Active && a.has("192.0.2.100/24") })
	if !answers() {
		t.Error("an active node did not answer arp for the vip")
	}
}

func TestRouterOnTheHostOwnAddress(t *testing.T) {
	a, _ := cable(t)
	cfg := fast(100)
	cfg.Addresses = prefixes("192.0.2.1/24", "192.0.2.100/24")
	r, _ := a.start(cfg, t.TempDir())
	const want = "192.0.2.1 is already this node's own address on eth0: remove it from vrrp.addresses or from the interface"
	eventually(t, "the instance is in fault", func() bool {
		s := r.Status()
		return s.State == Fault && strings.Contains(s.Reason, want)
	})
	if !a.has("192.0.2.1/24") || a.has("192.0.2.100/24") {
		t.Errorf("got addresses %v", a.addresses("eth0"))
	}

	// The owner may have it, and no other.
	b, _ := cable(t)
	cfg.Priority = PriorityOwner
	cfg.Addresses = prefixes("192.0.2.1/24")
	r, stop := b.start(cfg, t.TempDir())
	eventually(t, "the owner is active", func() bool { return r.Status().State == Active })
	if got := r.Status().Source; got != addr("192.0.2.1") {
		t.Errorf("got source %v", got)
	}
	stop()
	if !b.has("192.0.2.1/24") {
		t.Error("the owner's address was removed")
	}
}
