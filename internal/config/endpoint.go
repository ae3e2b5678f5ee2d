package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A hostParser reads the address of a host: parseAddr, or parseOwnAddr where the node itself
// is as good as another one.
type hostParser func(string) (a netip.Addr, problem string)

// endpoint decodes a server's "ip:port", or "ip" (port 0).
func (d *decoder) endpoint(n *node, what string, host hostParser) (netip.AddrPort, bool) {
	s, ok := d.addressText(n, what, "\"192.0.2.1:80\"")
	if !ok {
		return netip.AddrPort{}, false
	}
	ap, problem := parseEndpoint(s, host)
	if problem != "" {
		d.errorf(n, "%s", problem)
		return netip.AddrPort{}, false
	}
	return ap, true
}

func parseEndpoint(s string, host hostParser) (netip.AddrPort, string) {
	a, port, problem := splitEndpoint(s, host)
	switch {
	case problem != "":
		return netip.AddrPort{}, problem
	case port == "" && s[0] == '[':
		return netip.AddrPort{}, fmt.Sprintf("bad address %q: without a port it needs no brackets, write %v", s, a)
	case port == "":
		return netip.AddrPortFrom(a, 0), ""
	case !isPort(port):
		return netip.AddrPort{}, fmt.Sprintf("bad address %q: the port must be a number from 1 to 65535", s)
	}
	p, _ := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(p)), ""
}

// frontend decodes a service's "ip:port", "ip:first-last" or "ip:*".
func (d *decoder) frontend(n *node, what string) (lb.Frontend, bool) {
	s, ok := d.addressText(n, what, "\"192.0.2.1:80\"")
	if !ok {
		return lb.Frontend{}, false
	}
	f, problem := parseFrontend(s)
	if problem != "" {
		d.errorf(n, "%s", problem)
		return lb.Frontend{}, false
	}
	return f, true
}

func parseFrontend(s string) (lb.Frontend, string) {
	a, port, problem := splitEndpoint(s, parseAddr)
	switch {
	case problem != "":
		return lb.Frontend{}, problem
	case port == "":
		return lb.Frontend{}, fmt.Sprintf("address %s has no port: write \"%v\" (with the port that is meant)", s, netip.AddrPortFrom(a, 80))
	case port == "*":
		return lb.Frontend{VIP: a, Ports: lb.EveryPort}, ""
	}
	first, last, two := strings.Cut(port, "-")
	if !two {
		last = first
	}
	if !isPort(first) || !isPort(last) {
		return lb.Frontend{}, fmt.Sprintf("bad address %q: the port must be a number from 1 to 65535, a range such as 8000-8100, or * for every port", s)
	}
	f, _ := strconv.ParseUint(first, 10, 16)
	l, _ := strconv.ParseUint(last, 10, 16)
	if f > l {
		return lb.Frontend{}, fmt.Sprintf("bad address %q: the first port is above the last one", s)
	}
	return lb.Frontend{VIP: a, Ports: lb.PortRange{First: uint16(f), Last: uint16(l)}}, ""
}

// splitEndpoint takes "ip:port", "[ip]:port" and both without the port apart.
// The port is "" where there is none; it is not looked at.
func splitEndpoint(s string, read hostParser) (a netip.Addr, port, problem string) {
	if _, err := netip.ParseAddr(s); err == nil {
		a, problem = read(s)
		return a, "", problem
	}
	host, colon := s, false
	inBrackets, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		inner, rest, closed := strings.Cut(inBrackets, "]")
		if !closed {
			return a, "", fmt.Sprintf("bad address %q: the closing ] is missing", s)
		}
		host = inner
		if port, colon = strings.CutPrefix(rest, ":"); !colon && rest != "" {
			return a, "", fmt.Sprintf("bad address %q: a colon and the port must follow the bracket", s)
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port, colon = s[:i], s[i+1:], true
	}
	switch {
	case host == "":
		return a, "", fmt.Sprintf("bad address %q: there is no address before the port", s)
	case colon && port == "":
		return a, "", fmt.Sprintf("bad address %q: there is no port after the colon", s)
	}
	if a, problem = read(host); problem != "" {
		return a, "", problem
	}
	with := port
	if with != "" {
		with = ":" + with
	}
	switch {
	case bracketed && a.Is4():
		return a, "", fmt.Sprintf("bad address %q: brackets are for IPv6, write \"%v%s\"", s, a, with)
	case !bracketed && a.Is6():
		return a, "", fmt.Sprintf("bad address %q: write the IPv6 address in brackets, \"[%v]%s\"", s, a, with)
	}
	return a, port, ""
}

func isPort(s string) bool {
	p, err := strconv.ParseUint(s, 10, 16)
	return err == nil && p > 0 && s[0] != '0'
}
