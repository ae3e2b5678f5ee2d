package testenv

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire makes the switches, plugs every interface into its own, and gives it its
// addresses and routes.
func (l *Lab) wire() (err error) {
	pass, err := loadPass()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pass.Close()) }()

	bridges := make(map[string]int)
	for i, h := range l.hosts {
		for j, in := range h.spec.Interfaces {
			bridge, ok := bridges[in.Segment]
			if !ok {
				if bridge, err = l.addBridge(in.Segment, len(bridges)); err != nil {
					return err
				}
				bridges[in.Segment] = bridge
			}
			if err := l.plug(h, in, bridge, i, j, pass); err != nil {
				return fmt.Errorf("plug %s of %s in: %w", in.Name, h.Name, err)
			}
		}
	}
	for _, h := range l.hosts {
		if h.spec.Forward {
			if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
			if l.spec.IPv6 {
				if err := h.Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
					return err
				}
			}
		}
		for _, r := range h.spec.Routes {
			if err := h.AddRoute(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// addBridge makes the switch of a segment and returns its interface index.
func (l *Lab) addBridge(segment string, n int) (int, error) {
	snooping := false // flood multicast, as a plain switch does
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName(segment)
	attrs.HardwareAddr = bridgeAddr(n)
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := l.sw.nl.LinkAdd(bridge); err != nil {
		return 0, fmt.Errorf("add switch %s: %w", attrs.Name, err)
	}
	if err := l.sw.nl.LinkSetUp(bridge); err != nil {
		return 0, fmt.Errorf("set switch %s up: %w", attrs.Name, err)
	}
	link, err := l.sw.nl.LinkByName(attrs.Name)
	if err != nil {
		return 0, fmt.Errorf("find switch %s: %w", attrs.Name, err)
	}
	return link.Attrs().Index, nil
}

// plug makes a veth pair: one end is the host's interface, the other a port of
// the bridge, with an XDP program that passes everything. Without a program on
// its peer, a veth drops what XDP_TX and XDP_REDIRECT send.
func (l *Lab) plug(h *Host, in InterfaceSpec, bridge, hostIndex, ifaceIndex int, pass *ebpf.Program) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portName(h.Name, in.Name)
	attrs.MasterIndex = bridge
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         in.Name,
		PeerHardwareAddr: hardwareAddr(hostIndex, ifaceIndex),
		PeerNamespace:    netlink.NsFd(h.ns.handle),
	}
	if err := l.sw.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	port, err := l.sw.nl.LinkByName(attrs.Name)
	if err != nil {
		return fmt.Errorf("find switch port: %w", err)
	}
	// Before the program is attached: it takes segmentation from the features
	// of the other end, and then that cannot be set any more.
	if err := h.Do(func() error { return offloadsOff(in.Name) }); err != nil {
		return err
	}
	err = l.sw.do(func() error {
		if err := offloadsOff(attrs.Name); err != nil {
			return err
		}
		// Attached by netlink, the program lives as long as the link: a lab
		// that is left up needs no process that holds it.
		if err := netlink.LinkSetXdpFd(port, pass.FD()); err != nil {
			return fmt.Errorf("attach xdp pass program to %s: %w", attrs.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.sw.nl.LinkSetUp(port); err != nil {
		return fmt.Errorf("set switch port up: %w", err)
	}
	nic, err := h.ns.nl.LinkByName(in.Name)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	if err := h.ns.nl.LinkSetUp(nic); err != nil {
		return fmt.Errorf("set interface up: %w", err)
	}
	for _, p := range in.Addresses {
		if err := h.AddAddress(in.Name, p); err != nil {
			return err
		}
	}
	return nil
}

// loadPass loads an XDP program that passes every packet.
func loadPass() (*ebpf.Program, error) {
	const xdpPass = 2
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "lab_pass",
		Type:         ebpf.XDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return nil, fmt.Errorf("load xdp pass program: %w", err)
	}
	return prog, nil
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// ifreqData is struct ifreq of linux/if.h with ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// offloadsOff makes an interface of the calling thread's namespace send what is
// on the wire of a real network: complete checksums, one frame per packet. A
// local stack would leave checksums to a NIC that a veth does not have, and XDP
// rewrites would keep them wrong.
func offloadsOff(iface string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	for _, o := range []struct {
		name string
		cmd  uint32
	}{
		{"tso", unix.ETHTOOL_STSO},
		{"gso", unix.ETHTOOL_SGSO},
		{"gro", unix.ETHTOOL_SGRO},
		{"tx", unix.ETHTOOL_STXCSUM},
		{"lro", unix.ETHTOOL_SFLAGS}, // all legacy flags to 0
	} {
		value := &ethtoolValue{cmd: o.cmd}
		req := ifreqData{data: unsafe.Pointer(value)}
		copy(req.name[:unix.IFNAMSIZ-1], iface)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return fmt.Errorf("switch %s of %s off: %w", o.name, iface, errno)
		}
	}
	return nil
}

// LearntAt returns the hosts to whose interfaces the switches send frames for a MAC
// address. Where they know none they flood.
func (l *Lab) LearntAt(mac net.HardwareAddr) ([]string, error) {
	ports, err := l.sw.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("look at the switches: %w", err)
	}
	known, err := l.sw.nl.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("look at the switches: %w", err)
	}
	var hosts []string
	for _, h := range l.spec.Hosts {
		for _, in := range h.Interfaces {
			at := slices.IndexFunc(ports, func(p netlink.Link) bool { return p.Attrs().Name == portName(h.Name, in.Name) })
			if at >= 0 && slices.ContainsFunc(known, func(n netlink.Neigh) bool {
				return n.LinkIndex == ports[at].Attrs().Index && slices.Equal(n.HardwareAddr, mac)
			}) {
				hosts = append(hosts, h.Name)
			}
		}
	}
	return hosts, nil
}
