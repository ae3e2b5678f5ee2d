// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Host is the network of this machine: the network namespace in which it was
// opened. Several Routers share one. It is safe for concurrent use.
type Host struct {
	nl     *netlink.Handle
	events *os.File // netlink multicast socket
	log    *slog.Logger
	done   chan struct{} // closed when the event reader has ended

	mu       sync.Mutex
	watchers map[chan struct{}]struct{}
}

// OpenHost opens the network namespace of the calling thread.
func OpenHost(log *slog.Logger) (*Host, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	events, err := subscribe()
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("follow links and addresses: %w", err)
	}
	h := &Host{nl: nl, events: events, log: log, done: make(chan struct{}), watchers: make(map[chan struct{}]struct{})}
	go h.follow()
	return h, nil
}

// Close stops following the host. Routers on it must have ended.
func (h *Host) Close() error {
	err := h.events.Close()
	<-h.done
	h.nl.Close()
	return err
}

// subscribe opens a socket that hears of every change of links and
// addresses. What is heard is not parsed: whoever is told looks again, so that
// a message that was lost in an overflow costs nothing.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil
}

func (h *Host) follow() {
	defer close(h.done)
	// A datagram that is longer is cut, which is fine: nothing reads it.
	buf := make([]byte, 4096)
	for {
		_, err := h.events.Read(buf)
		// ENOBUFS: messages were lost, so something has changed.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			if !errors.Is(err, os.ErrClosed) {
				h.log.Error("following links and addresses has ended; changes are seen with a delay", "error", err)
			}
			return
		}
		h.mu.Lock()
		for ch := range h.watchers {
			select {
			case ch <- struct{}{}:
			default: // told already and has not looked yet
			}
		}
		h.mu.Unlock()
	}
}

// Watch implements Network.
func (h *Host) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	h.watchers[ch] = struct{}{}
	h.mu.Unlock()
	return ch, func() {
		h.mu.Lock()
		delete(h.watchers, ch)
		h.mu.Unlock()
	}
}

// Link implements Network. The kernel lists primary addresses before secondary
// ones. An IPv6 address that may be somebody else's still, or that changes by
// itself, is not usable.
func (h *Host) Link(name string, usable func(netip.Addr) bool) (Link, error) {
	nlLink, err := h.nl.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return Link{}, fmt.Errorf("interface %s does not exist", name)
		}
		return Link{}, fmt.Errorf("look up interface %s: %w", name, err)
	}
	attrs := nlLink.Attrs()
	if attrs.Name != name {
		// The kernel takes an alternative name for the interface's, but lists
		// addresses by the latter only: a VIP would look like somebody else's.
		return Link{}, fmt.Errorf("interface %s is an alternative name of %s: write %s", name, attrs.Name, attrs.Name)
	}
	const running = unix.IFF_UP | unix.IFF_RUNNING
	link := Link{Name: name, Index: attrs.Index, Up: attrs.RawFlags&running == running}
	if len(attrs.HardwareAddr) == len(link.MAC) {
		link.MAC = MAC(attrs.HardwareAddr)
	}
	addrs, err := h.addrList(nlLink)
	if err != nil {
		return Link{}, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		p, ok := toPrefix(a.IPNet)
		if ok && (p.Addr().Is4() || a.Flags&unsettled == 0) && usable(p.Addr()) {
			link.Source = p.Addr()
			break
		}
	}
	link.Router = link.Source.Is6() && forwards(name)
	return link, nil
}

// unsettled are the flags of an IPv6 address that is not to be sent from:
// duplicate address detection goes on or has failed, or it is a temporary one.
const unsettled = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_TEMPORARY

// Transport implements Network.
func (h *Host) Transport(link Link, peers []netip.Addr) (Transport, error) {
	if link.Source.Is4() {
		return listenIPv4(link, peers)
	}
	return listenIPv6(link, peers)
}

// Announcer implements Network.
func (h *Host) Announcer(link Link, vips []netip.Addr) (Announcer, error) {
	return announce(link, vips)
}

// Prober implements Network.
func (h *Host) Prober(link Link, vips []netip.Addr) (Prober, error) { return probeVIPs(link, vips) }

// forwards reports whether the kernel calls itself a router when it is asked for
// an IPv6 address of an interface. Where it does not say, it is none.
func forwards(iface string) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + iface + "/forwarding")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// addrList lists addresses of both families, of all links if link is nil.
func (h *Host) addrList(link netlink.Link) ([]netlink.Addr, error) {
	return untorn(func() ([]netlink.Addr, error) { return h.nl.AddrList(link, netlink.FAMILY_ALL) })
}

// untorn reads a list again that changed while it was read: half a list would
// make an address look foreign or missing.
func untorn[T any](read func() ([]T, error)) (list []T, err error) {
	for range 10 {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// A hostAddress is an address as the host has it.
type hostAddress struct {
	owned
	secondary bool // removed with its primary, unless the kernel promotes it
}

// list implements addressTable.
func (h *Host) list() ([]hostAddress, error) {
	links, err := untorn(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := h.addrList(nil)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	all := make([]hostAddress, 0, len(addrs))
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok {
			all = append(all, hostAddress{
				owned: owned{Interface: names[a.LinkIndex], Address: p},
				// In IPv6 the flag means another thing.
				secondary: p.Addr().Is4() && a.Flags&unix.IFA_F_SECONDARY != 0,
			})
		}
	}
	return all, nil
}

// add implements addressTable.
func (h *Host) add(a owned) error {
	link, err := h.nl.LinkByName(a.Interface)
	if err != nil {
		return err
	}
	return h.nl.AddrAdd(link, toAddr(a.Address))
}

// remove implements addressTable.
func (h *Host) remove(a owned) error {
	link, err := h.nl.LinkByName(a.Interface)
	if err == nil {
		err = h.nl.AddrDel(link, toAddr(a.Address))
	}
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil // gone already
	}
	return err
}

// promote implements addressTable.
func (h *Host) promote(iface string) error {
	path := "/proc/sys/net/ipv4/conf/" + iface + "/promote_secondaries"
	return os.WriteFile(path, []byte("1\n"), 0o644)
}

func toAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is4() {
		// No broadcast address: a VIP answers for itself only.
		a.Broadcast = net.IPv4zero
		return a
	}
	// Duplicate address detection would keep a VIP useless for a second, and drop
	// it where the node before has not let go yet.
	a.Flags = unix.IFA_F_NODAD
	// Preferred for no time, valid for ever: the node answers at the VIP, and
	// takes it for no connection of its own, which would break when it moves.
	forever := uint32(math.MaxUint32)
	a.ValidLft, a.PreferedLft = int(forever), 0
	return a
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}
