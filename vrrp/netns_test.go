// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A namespace is a network namespace of a test's own. It is gone when the test
// and what it started in it have ended.
type namespace struct {
	t      testing.TB
	handle netns.NsHandle
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	ns := &namespace{t: t, handle: netns.None()}
	err := onThread(func() (err error) {
		ns.handle, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { ns.handle.Close() })
	ns.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// onThread runs f on a thread of its own, which ends with f and with it
// whatever namespace f entered.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// run runs f in the namespace. What f starts with os/exec is in it too.
func (ns *namespace) run(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return err
		}
		return f()
	})
}

func (ns *namespace) do(f func() error) {
	ns.t.Helper()
	if err := ns.run(f); err != nil {
		ns.t.Fatal(err)
	}
}

// cable joins two new namespaces by a veth pair, eth0 on both sides, and gives
// them 192.0.2.1/24 and 192.0.2.2/24.
func cable(t testing.TB) (a, b *namespace) {
	t.Helper()
	needRoot(t)
	a, b = newNamespace(t), newNamespace(t)
	a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.handle)})
	})
	for i, ns := range []*namespace{a, b} {
		ns.addAddress("eth0", []string{"192.0.2.1/24", "192.0.2.2/24"}[i])
		ns.setUp("eth0", true)
	}
	return a, b
}

func (ns *namespace) addAddress(iface, prefix string) {
	ns.t.Helper()
	ns.do(func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		a := toAddr(netip.MustParsePrefix(prefix))
		a.PreferedLft = a.ValidLft // a node's own, unlike a VIP
		return netlink.AddrAdd(link, a)
	})
}

func (ns *namespace) deleteAddress(iface, prefix string) {
	ns.t.Helper()
	ns.do(func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		return netlink.AddrDel(link, toAddr(netip.MustParsePrefix(prefix)))
	})
}

func (ns *namespace) setUp(iface string, up bool) {
	ns.t.Helper()
	ns.do(func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// addresses are the addresses of an interface, as the kernel has them, but for
// the link-local one that it has given itself.
func (ns *namespace) addresses(iface string) []netip.Prefix {
	ns.t.Helper()
	var all []netip.Prefix
	ns.do(func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if p, ok := toPrefix(a.IPNet); ok && !selfMade(p.Addr()) {
				all = append(all, p)
			}
		}
		return err
	})
	return all
}

// selfMade reports whether a link-local address is made of a MAC address.
func selfMade(a netip.Addr) bool {
	b := a.As16()
	return a.Is6() && a.IsLinkLocalUnicast() && b[11] == 0xff && b[12] == 0xfe
}

func (ns *namespace) has(prefix string) bool {
	ns.t.Helper()
	return slices.Contains(ns.addresses("eth0"), netip.MustParsePrefix(prefix))
}

// writeSysctl writes a setting of the namespace that the thread is in.
func writeSysctl(path, value string) error {
	return os.WriteFile("/proc/sys/"+path, []byte(value), 0o644)
}

// host opens the namespace as a Host.
func (ns *namespace) host() *Host {
	ns.t.Helper()
	var h *Host
	ns.do(func() (err error) {
		h, err = OpenHost(slog.New(testWriter{ns.t}))
		return err
	})
	ns.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			ns.t.Error(err)
		}
	})
	return h
}

// start runs a Router in the namespace until the test or stop ends it.
func (ns *namespace) start(cfg Config, dir string) (r *Router, stop func()) {
	ns.t.Helper()
	return ns.startPaced(cfg, dir, nil)
}

// startPaced is start, with a Pacer.
func (ns *namespace) startPaced(cfg Config, dir string, pacer Pacer) (r *Router, stop func()) {
	ns.t.Helper()
	host := ns.host()
	log := slog.New(testWriter{ns.t})
	addresses, err := OpenAddresses(host, dir, log)
	if err != nil {
		ns.t.Fatal(err)
	}
	routes, err := OpenRoutes(host, dir, log)
	if err != nil {
		ns.t.Fatal(err)
	}
	r, err = New(cfg, Deps{Network: host, Addresses: addresses, Routes: routes, Log: log, Pacer: pacer})
	if err != nil {
		ns.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// On a thread in the namespace: Run opens its sockets itself.
	go func() { done <- ns.run(func() error { return r.Run(ctx) }) }()
	ended := false
	stop = func() {
		cancel()
		if !ended {
			ended = true
			if err := <-done; err != nil {
				ns.t.Error(err)
			}
		}
	}
	ns.t.Cleanup(stop)
	return r, stop
}

// link waits until eth0 is usable in IPv4.
func (ns *namespace) link(h *Host) Link { return ns.linkBy(h, netip.Addr.Is4) }

// linkBy waits until eth0 is usable with such an address as its source.
func (ns *namespace) linkBy(h *Host, usable func(netip.Addr) bool) Link {
	ns.t.Helper()
	var link Link
	eventually(ns.t, "eth0 is up", func() bool {
		var err error
		link, err = h.Link("eth0", usable)
		return err == nil && link.Up && link.Source.IsValid()
	})
	return link
}

// capture opens a socket that sees every frame on eth0.
func (ns *namespace) capture() *packet.Conn {
	ns.t.Helper()
	var conn *packet.Conn
	ns.do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	ns.t.Cleanup(func() { conn.Close() })
	return conn
}

// nextFrame returns the next frame that match accepts.
func nextFrame(t testing.TB, conn *packet.Conn, match func([]byte) bool) []byte {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			t.Fatalf("wait for a frame: %v", err)
		}
		if match(b[:n]) {
			return b[:n]
		}
	}
}

// patience is how long a test waits for something that has to happen.
const patience = 20 * time.Second

// eventually polls until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// always checks that cond stays true for a while.
func always(t testing.TB, what string, d time.Duration, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if !cond() {
			t.Fatalf("%s: no longer", what)
		}
	}
}

// testWriter is a log handler that writes to the test's own log.
type testWriter struct{ t testing.TB }

func (w testWriter) Enabled(context.Context, slog.Level) bool { return true }
func (w testWriter) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w testWriter) WithGroup(string) slog.Handler            { return w }
func (w testWriter) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	w.t.Log(line)
	return nil
}
