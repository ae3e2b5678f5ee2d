// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol is who has made a route or a rule, for `ip route show proto 116`:
// no number that anybody is known to use.
const routeProtocol = 116

// addRoute implements routeTable.
func (h *Host) addRoute(r Route) error {
	n, err := h.kernelRoute(r)
	if err != nil {
		return err
	}
	return h.nl.RouteAdd(n)
}

// removeRoute implements routeTable. A route goes with its interface, and in IPv4
// with its source.
func (h *Host) removeRoute(r Route) error {
	n, err := h.kernelRoute(r)
	if err == nil {
		err = h.nl.RouteDel(n)
	}
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (h *Host) kernelRoute(r Route) (*netlink.Route, error) {
	n := &netlink.Route{Dst: kernelPrefix(r.To), Table: int(r.Table), Priority: int(r.Metric), Protocol: routeProtocol}
	switch {
	case r.Local:
		n.Type, n.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
	case r.Via.IsValid():
		n.Gw = r.Via.AsSlice()
	case r.To.Addr().Is4():
		n.Scope = netlink.SCOPE_LINK
	}
	if r.Source.IsValid() {
		n.Src = r.Source.AsSlice()
	}
	if r.Interface != "" {
		link, err := h.nl.LinkByName(r.Interface)
		if err != nil {
			return nil, err
		}
		n.LinkIndex = link.Attrs().Index
	}
	return n, nil
}

// addRule implements routeTable.
func (h *Host) addRule(r Rule) error { return h.nl.RuleAdd(kernelRule(r)) }

// removeRule implements routeTable.
func (h *Host) removeRule(r Rule) error {
	err := h.nl.RuleDel(kernelRule(r))
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

func kernelRule(r Rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family = unix.AF_INET
	if r.V6 {
		n.Family = unix.AF_INET6
	}
	if r.From.IsValid() {
		n.Src = kernelPrefix(r.From)
	}
	if r.To.IsValid() {
		n.Dst = kernelPrefix(r.To)
	}
	n.IifName, n.Table, n.Priority, n.Protocol = r.Interface, int(r.Table), int(r.Priority), routeProtocol
	return n
}

func kernelPrefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
