package main

import (
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/vrrp"
)

// settleARP keeps IPv4 VIPs from leaking by other interfaces, as long as there are
// any on this node: also after the daemon, where nobody has taken them.
func (n *node) settleARP() (err error) {
	if n.settings, err = vrrp.OpenARPSettings(n.runDir, n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, func() error {
		if n.addresses.Holds() {
			return nil
		}
		return n.settings.Restore()
	})
	n.applyARP()
	return nil
}

// applyARP makes the settings that the interfaces of the moment ask for.
func (n *node) applyARP() {
	if err := n.settings.Apply(n.vipInterfaces()); err != nil {
		n.log.Warn("VIPs may leak: their settings cannot be made", "error", err)
	}
}

// vipInterfaces are the interfaces that IPv4 VIPs may come to.
func (n *node) vipInterfaces() []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var names []string
	for _, i := range n.cfg.VRRP {
		if !i.V6() {
			names = append(names, i.Interface)
		}
	}
	if slices.ContainsFunc(spreadVIPs(n.cfg), netip.Addr.Is4) {
		names = append(names, loopback) // also while this node has not the VIP
	}
	slices.Sort(names)
	return slices.Compact(names)
}
