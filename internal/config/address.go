package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// addrReason is why a text is no address, in netip's words without its frame.
func addrReason(err error) string {
	if _, why, ok := strings.Cut(err.Error(), "): "); ok {
		return why
	}
	return err.Error()
}

// parseAddr returns the address of one host, or what is wrong with s.
func parseAddr(s string) (netip.Addr, string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Sprintf("bad address %q: an address without a prefix is wanted here", s)
	case err != nil && !strings.ContainsAny(s, ":") && strings.ContainsFunc(s, isLetter):
		return a, fmt.Sprintf("bad address %q: names are not looked up, write the IP address", s)
	case err != nil:
		return a, fmt.Sprintf("bad address %q: %s", s, addrReason(err))
	case a.Zone() != "":
		return a, fmt.Sprintf("bad address %q: a zone (%%%s) has no place here", s, a.Zone())
	case a.Is4In6():
		return a, fmt.Sprintf("bad address %q: write %v", s, a.Unmap())
	}
	return a, hostProblem(a)
}

// parseVIP is parseAddr for a VIP, which may be link-local: its instance says on
// which link.
func parseVIP(s string) (netip.Addr, string) {
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" {
		return a, ""
	}
	return parseAddr(s)
}

// parseOwnAddr is parseAddr for what nobody but this node needs to reach: it may be on the
// node's loopback.
func parseOwnAddr(s string) (netip.Addr, string) {
	if a, err := netip.ParseAddr(s); err == nil && a.IsLoopback() && !a.Is4In6() && a.Zone() == "" {
		return a, ""
	}
	return parseAddr(s)
}

func isLetter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

// hostProblem says why an address cannot be the one of a host on a network, or
// "".
func hostProblem(a netip.Addr) string {
	switch {
	case a.Is4() && a.As4()[0] == 0:
		return fmt.Sprintf("address %v is not the address of a host (0.0.0.0/8 is unspecified)", a)
	case a.IsUnspecified():
		return fmt.Sprintf("address %v is not the address of a host (it is the unspecified one)", a)
	case a.IsLoopback():
		return fmt.Sprintf("address %v is a loopback address: no other machine can reach it", a)
	case a.IsMulticast():
		return fmt.Sprintf("address %v is a multicast address", a)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("address %v is the broadcast address", a)
	case a.Is6() && a.IsLinkLocalUnicast():
		return fmt.Sprintf("address %v is a link-local address: it is known on one link only", a)
	}
	return ""
}

// familyOf names the family of an address.
func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// address decodes the address of a host.
func (d *decoder) address(n *node, what string) (netip.Addr, bool) {
	s, ok := d.addressText(n, what, "192.0.2.1")
	if !ok {
		return netip.Addr{}, false
	}
	a, problem := parseAddr(s)
	if problem != "" {
		d.errorf(n, "%s", problem)
		return netip.Addr{}, false
	}
	return a, true
}

// addressText is text with a hint for IPv6 in brackets without quotes: then
// the value is a list.
func (d *decoder) addressText(n *node, what, example string) (string, bool) {
	if n.kind == list && len(n.items) == 1 && n.items[0].kind == scalar && strings.Contains(n.items[0].text, "::") {
		d.errorf(n, "%s must be one address: a text in [] is a list unless it stands in quotes", what)
		return "", false
	}
	if n.kind != scalar {
		d.mismatch(n, what, "an address such as "+example)
		return "", false
	}
	return d.text(n, what)
}

// prefix decodes the "ip/bits" of a VIP, or "ip", which means one address.
func (d *decoder) prefix(n *node, what string) (netip.Prefix, bool) {
	s, ok := d.addressText(n, what, "192.0.2.1/24")
	if !ok {
		return netip.Prefix{}, false
	}
	host, bits, has := strings.Cut(s, "/")
	a, problem := parseVIP(host)
	if problem != "" {
		d.errorf(n, "%s", problem)
		return netip.Prefix{}, false
	}
	if !has {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	b, err := strconv.Atoi(bits)
	if err != nil || b < 1 || b > a.BitLen() || strconv.Itoa(b) != bits {
		d.errorf(n, "bad address %q: the prefix after / must be a number from 1 to %d", s, a.BitLen())
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a, b)
	if b >= a.BitLen()-1 {
		return p, true // of one host, or of a point-to-point link
	}
	switch {
	case a.Is4() && p.Masked().Addr() == a:
		d.errorf(n, "address %s is the address of the network, not of a host in it", s)
		return netip.Prefix{}, false
	case p.Masked().Addr() == a:
		d.errorf(n, "address %s is the anycast address of the network's routers, not of a host in it", s)
		return netip.Prefix{}, false
	case a.Is4() && broadcast(p) == a:
		d.errorf(n, "address %s is the broadcast address of its network", s)
		return netip.Prefix{}, false
	}
	return p, true
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// interfaceName decodes the name of a network interface, in the form that the
// kernel takes (15 bytes, no '/', no ':', no space).
func (d *decoder) interfaceName(n *node, what string) (string, bool) {
	s, ok := d.text(n, what)
	switch {
	case !ok:
		return "", false
	case len(s) > 15:
		d.errorf(n, "%s %q is longer than the 15 bytes that an interface name may have", what, s)
		return "", false
	case s == "." || s == ".." || strings.ContainsAny(s, "/: \t"):
		d.errorf(n, "%s %q is no name of an interface", what, s)
		return "", false
	}
	return s, true
}

// interfaceNames decodes a list of interfaces, each of them once.
func (d *decoder) interfaceNames(n *node, what string) ([]string, bool) {
	items, ok := d.list(n, what)
	if !ok {
		return nil, false
	}
	if len(items) == 0 {
		d.errorf(n, "%s is empty: name at least one", what)
		return nil, false
	}
	var names []string
	seen := map[string]bool{}
	for _, item := range items {
		name, good := d.interfaceName(item, "interface")
		if !good {
			ok = false
			continue
		}
		if seen[name] {
			d.errorf(item, "duplicate interface %q", name)
			ok = false
			continue
		}
		seen[name] = true
		names = append(names, name)
	}
	return names, ok
}
