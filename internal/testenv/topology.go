package testenv

import (
	"fmt"
	"net"
	"net/netip"
)

// Names that a spec may leave out.
const (
	DefaultSegment   = "lan"
	DefaultInterface = "eth0"
)

// VIP is the address that the default topology leaves free for the virtual IP.
var VIP = netip.MustParseAddr("192.0.2.100")

// A Spec says which hosts a lab has and how they are joined. Interfaces that
// name the same segment are on one L2 switch.
type Spec struct {
	Hosts []HostSpec
	// IPv6 switches IPv6 on, without duplicate address detection. Off by
	// default, to keep router solicitations and MLD out of packet counts.
	IPv6 bool
}

// A HostSpec is one host.
type HostSpec struct {
	Name       string
	Interfaces []InterfaceSpec
	Routes     []RouteSpec
	// Forward makes it a router.
	Forward bool
	// Node gives it what a sluice node needs: a run directory and a bpffs
	// that no other host sees.
	Node bool
}

// An InterfaceSpec is a NIC.
type InterfaceSpec struct {
	Name      string // default: DefaultInterface
	Segment   string // default: DefaultSegment
	Addresses []netip.Prefix
}

// A RouteSpec is a static route. The zero To is the default route of Via's
// family.
type RouteSpec struct {
	To  netip.Prefix
	Via netip.Addr
}

// Default returns the topology of the demo: one segment 192.0.2.0/24 with the
// client (.200), the nodes lb1 and lb2 (.1, .2) and the backends b1, b2, ...
// (.11, .12, ...). VIP is free.
func Default(backends int) Spec {
	on := func(last int) []InterfaceSpec {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(last)})
		return []InterfaceSpec{{Addresses: []netip.Prefix{netip.PrefixFrom(addr, 24)}}}
	}
	spec := Spec{Hosts: []HostSpec{
		{Name: "client", Interfaces: on(200)},
		{Name: "lb1", Interfaces: on(1), Node: true},
		{Name: "lb2", Interfaces: on(2), Node: true},
	}}
	for i := 1; i <= backends; i++ {
		spec.Hosts = append(spec.Hosts, HostSpec{Name: fmt.Sprintf("b%d", i), Interfaces: on(10 + i)})
	}
	return spec
}

// Addresses returns so many consecutive addresses with the prefix length of the
// first.
func Addresses(first netip.Prefix, count int) []netip.Prefix {
	var all []netip.Prefix
	for a := first.Addr(); len(all) < count; a = a.Next() {
		all = append(all, netip.PrefixFrom(a, first.Bits()))
	}
	return all
}

// validate finds what would otherwise fail halfway through building, and fills
// in the default names.
func (s *Spec) validate() error {
	seen := make(map[string]bool)
	hosts := make([]HostSpec, len(s.Hosts))
	for i, h := range s.Hosts {
		if h.Name == "" || h.Name == "switch" || seen[h.Name] {
			return fmt.Errorf("host %d: name %q is empty, taken or reserved", i, h.Name)
		}
		seen[h.Name] = true
		interfaces := make([]InterfaceSpec, len(h.Interfaces))
		names := make(map[string]bool)
		for j, in := range h.Interfaces {
			if in.Name == "" {
				in.Name = DefaultInterface
			}
			if in.Segment == "" {
				in.Segment = DefaultSegment
			}
			if names[in.Name] {
				return fmt.Errorf("host %s: interface %s is given twice", h.Name, in.Name)
			}
			names[in.Name] = true
			for _, name := range []string{portName(h.Name, in.Name), bridgeName(in.Segment)} {
				if len(name) > maxInterfaceName {
					return fmt.Errorf("host %s: interface name %q is longer than %d bytes", h.Name, name, maxInterfaceName)
				}
			}
			interfaces[j] = in
		}
		h.Interfaces = interfaces
		hosts[i] = h
	}
	s.Hosts = hosts
	return nil
}

// maxInterfaceName is IFNAMSIZ without its terminating zero.
const maxInterfaceName = 15

func portName(host, iface string) string { return host + "-" + iface }
func bridgeName(segment string) string   { return "br-" + segment }

// hardwareAddr returns the MAC of a host's interface. They are the same in
// every run, so that captures of two runs can be compared.
func hardwareAddr(host, iface int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x53, 0x4c, byte(host >> 8), byte(host), byte(iface + 1)}
}

// bridgeAddr returns the MAC of a switch. Without one of its own a bridge takes
// the lowest of its ports and changes it as ports come and go.
func bridgeAddr(segment int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x53, 0x57, 0, 0, byte(segment + 1)}
}
