package main

import (
	"slices"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/vrrp"
)

// openMACs opens the virtual MAC addresses that interfaces take frames to, and clears
// away what earlier configurations have left. As long as any VIP is on this node they
// stay, also after the daemon: the data plane forwards what comes to them.
func (n *node) openMACs() (err error) {
	if n.macs, err = vrrp.OpenMACFilters(n.host, n.runDir, n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, func() error {
		if n.addresses.Holds() {
			return nil
		}
		return n.macs.Forget(noMAC)
	})
	n.forgetMACs(n.cfg)
	return nil
}

// forgetMACs takes the addresses that a configuration has not out of the filters.
func (n *node) forgetMACs(cfg *config.Config) {
	if err := n.macs.Forget(macsOf(cfg)); err != nil {
		n.log.Error("virtual MAC addresses that are not configured any more are left in the filters of interfaces", "error", err)
	}
}

// macsOf tells whether an instance of a configuration has a virtual MAC address.
func macsOf(cfg *config.Config) func(iface string, mac vrrp.MAC) bool {
	return func(iface string, mac vrrp.MAC) bool {
		return slices.ContainsFunc(cfg.VRRP, func(i config.Instance) bool {
			return i.VirtualMAC && i.Interface == iface && vrrp.VirtualMAC(i.VRID, i.V6()) == mac
		})
	}
}

func noMAC(string, vrrp.MAC) bool { return false }
