package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Host is one machine of a lab.
type Host struct {
	Name string
	// RunDir and PinDir are what a sluice node gets as --run-dir and --pin-dir.
	// PinDir lies on a bpffs of this host alone, which `ip netns exec` does not
	// hide as it hides /sys/fs/bpf. Both are empty unless the host is a node.
	RunDir string
	PinDir string

	lab  *Lab
	spec HostSpec
	ns   *namespace
	dir  string
}

func newHost(l *Lab, spec HostSpec, ns *namespace) *Host {
	h := &Host{Name: spec.Name, lab: l, spec: spec, ns: ns, dir: filepath.Join(l.dir, spec.Name)}
	if spec.Node {
		h.RunDir = filepath.Join(h.dir, "run")
		h.PinDir = filepath.Join(h.dir, "bpf", "sluice")
	}
	return h
}

// prepare makes the host's directories and bpffs.
func (h *Host) prepare() error {
	if err := os.MkdirAll(filepath.Join(h.dir, "log"), 0o755); err != nil {
		return fmt.Errorf("create log directory: %w", err)
	}
	if !h.spec.Node {
		return nil
	}
	if err := os.Mkdir(h.RunDir, 0o755); err != nil {
		return fmt.Errorf("create run directory: %w", err)
	}
	return mountBPFFS(filepath.Dir(h.PinDir))
}

// mountBPFFS makes a directory and mounts a bpffs on it.
func mountBPFFS(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create mount point: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}

// Dir returns the host's directory, for files of its programs.
func (h *Host) Dir() string { return h.dir }

// Namespace returns the name for `ip netns exec`.
func (h *Host) Namespace() string { return h.ns.name }

// Address returns the first address of the spec, or the zero Addr.
func (h *Host) Address() netip.Addr {
	for _, in := range h.spec.Interfaces {
		for _, p := range in.Addresses {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// MAC returns the hardware address of an interface of the spec, or nil.
func (h *Host) MAC(iface string) net.HardwareAddr {
	for i, other := range h.lab.hosts {
		if other != h {
			continue
		}
		for j, in := range h.spec.Interfaces {
			if in.Name == iface {
				return hardwareAddr(i, j)
			}
		}
	}
	return nil
}

// Netlink returns a handle whose sockets are in the host's namespace. It may be
// used on any goroutine until the lab is closed.
func (h *Host) Netlink() *netlink.Handle { return h.ns.nl }

// Do runs f on this goroutine with its thread inside the host's namespace:
// sockets that f makes stay in it, and so do children that it starts. Goroutines
// that f starts run outside.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// Sysctl writes a setting of the host, for example net/ipv4/ip_forward.
func (h *Host) Sysctl(path, value string) error { return h.ns.sysctl(path, value) }

// Dial connects from the host. The address must be an IP address and port: a
// look-up of a name would leave the namespace.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.Name, err)
	}
	var conn net.Conn
	err := h.Do(func() error {
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.Name, err)
	}
	return conn, nil
}

// DialFrom connects from one of the host's addresses, and from a port of it unless
// that is 0.
func (h *Host) DialFrom(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() error {
		var err error
		conn, err = (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from)}).DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.Name, err)
	}
	return conn, nil
}

// Listen listens on the host. The address must be an IP address and port.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.Name, err)
	}
	var l net.Listener
	err := h.Do(func() error {
		var err error
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.Name, err)
	}
	return l, nil
}

// HTTPClient returns a client that runs on the host. Each request opens a
// connection of its own, and none stays open after its body is closed.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
}

// AddrOn tells whether one of the host's interfaces, lo too, has the address.
func (h *Host) AddrOn(addr netip.Addr) (bool, error) {
	addrs, err := h.ns.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", h.Name, err)
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		ip, ok := netip.AddrFromSlice(a.IP)
		return ok && ip.Unmap() == addr.Unmap()
	}), nil
}

// AddVIPOnLoopback makes the host a DSR backend of a VIP: it takes packets to
// it, but neither answers ARP for it nor names it in ARP requests of its own.
func (h *Host) AddVIPOnLoopback(vip netip.Addr) error {
	for _, s := range [][2]string{{"arp_ignore", "1"}, {"arp_announce", "2"}} {
		if err := h.Sysctl("net/ipv4/conf/all/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return h.AddAddress("lo", netip.PrefixFrom(vip, vip.BitLen()))
}

// AddAddress adds an address to an interface.
func (h *Host) AddAddress(iface string, prefix netip.Prefix) error {
	link, err := h.ns.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", iface, h.Name, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.ns.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %v to %s on %s: %w", prefix, iface, h.Name, err)
	}
	return nil
}

// AddRoute adds a static route.
func (h *Host) AddRoute(r RouteSpec) error {
	to := r.To
	if !to.IsValid() {
		to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Via.Is6() {
			to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	route := &netlink.Route{Dst: ipNet(to.Masked()), Gw: r.Via.AsSlice()}
	if err := h.ns.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("add route to %v via %v on %s: %w", to, r.Via, h.Name, err)
	}
	return nil
}

// SetMTU sets the MTU of an interface, as for a link that takes no longer packets.
// The other end takes what it took before.
func (h *Host) SetMTU(iface string, mtu int) error {
	link, err := h.ns.nl.LinkByName(iface)
	if err == nil {
		err = h.ns.nl.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set mtu of %s on %s to %d: %w", iface, h.Name, mtu, err)
	}
	return nil
}

// LinkDown cuts the named interfaces, all without names, at the switch: the
// host sees its carrier go, as with a pulled cable.
func (h *Host) LinkDown(ifaces ...string) error {
	return h.eachPort(ifaces, h.lab.sw.nl.LinkSetDown)
}

// LinkUp undoes LinkDown.
func (h *Host) LinkUp(ifaces ...string) error {
	return h.eachPort(ifaces, h.lab.sw.nl.LinkSetUp)
}

func (h *Host) eachPort(ifaces []string, change func(netlink.Link) error) error {
	if len(ifaces) == 0 {
		for _, in := range h.spec.Interfaces {
			ifaces = append(ifaces, in.Name)
		}
	}
	var errs []error
	for _, iface := range ifaces {
		link, err := h.lab.sw.nl.LinkByName(portName(h.Name, iface))
		if err == nil {
			err = change(link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("change switch port of %s %s: %w", h.Name, iface, err))
		}
	}
	return errors.Join(errs...)
}

// Env returns the environment of the host's programs: this process's own, with
// the node's directories.
func (h *Host) Env() []string {
	// A directory that the caller has set would lead to another node.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SLUICE_") })
	if h.spec.Node {
		env = append(env, "SLUICE_RUN_DIR="+h.RunDir, "SLUICE_PIN_DIR="+h.PinDir)
	}
	return env
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
