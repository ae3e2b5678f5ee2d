// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// macsName is the file in the state directory that names the MAC addresses.
const macsName = "macs.json"

// MACFilters are the virtual MAC addresses that interfaces take frames to, beside their
// own. They belong to the interface and not to a process: what the data plane forwards
// must go on coming in when the daemon is gone. What was added is written down, and only
// that is removed. It is safe for concurrent use.
type MACFilters struct {
	table     macTable
	dir, boot string
	log       *slog.Logger

	mu  sync.Mutex
	own []filteredMAC
}

// A macTable is the host's filters. Host implements it.
type macTable interface {
	addMAC(iface string, mac MAC) error    // syscall.EEXIST: it is there already
	removeMAC(iface string, mac MAC) error // nil: it is not there any more
}

type filteredMAC struct {
	Interface string `json:"interface"`
	MAC       MAC    `json:"mac"`
}

type macFile struct {
	BootID string        `json:"boot_id"`
	MACs   []filteredMAC `json:"macs"`
}

// OpenMACFilters reads what an earlier run has added from dir. What cannot be read is
// reported, and stays.
func OpenMACFilters(host *Host, dir string, log *slog.Logger) (*MACFilters, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return openMACFilters(host, dir, boot, log), nil
}

func openMACFilters(table macTable, dir, boot string, log *slog.Logger) *MACFilters {
	f := &MACFilters{table: table, dir: dir, boot: boot, log: log}
	var content macFile
	if err := readRecord(dir, macsName, &content); err != nil {
		log.Warn("the record of added MAC addresses cannot be read; they stay in the filters of their interfaces", "error", err)
	} else if content.BootID == boot {
		f.own = content.MACs
	}
	return f
}

// Add implements MACStore. The record comes first, as with addresses.
func (f *MACFilters) Add(iface string, mac MAC) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := filteredMAC{iface, mac}
	known := slices.Contains(f.own, m)
	if !known {
		f.own = append(f.own, m)
		f.save()
	}
	err := f.table.addMAC(iface, mac)
	if err != nil && !known {
		f.own = f.own[:len(f.own)-1]
		f.save()
	}
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("have %s take frames to the virtual MAC address %v: %w", iface, mac, err)
	}
	return nil
}

// Forget removes every recorded address for which wanted is false.
func (f *MACFilters) Forget(wanted func(iface string, mac MAC) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	before := len(f.own)
	f.own = slices.DeleteFunc(f.own, func(m filteredMAC) bool {
		if wanted(m.Interface, m.MAC) {
			return false
		}
		if err := f.table.removeMAC(m.Interface, m.MAC); err != nil {
			errs = append(errs, fmt.Errorf("have %s take no frames to %v any more: %w", m.Interface, m.MAC, err))
			return false
		}
		return true
	})
	if len(f.own) < before {
		f.save()
	}
	return errors.Join(errs...)
}

func (f *MACFilters) save() {
	all := f.own
	if all == nil {
		all = []filteredMAC{}
	}
	if err := writeRecord(f.dir, macsName, macFile{f.boot, all}); err != nil {
		f.log.Error("added MAC addresses cannot be recorded; after a crash they would stay in the filters of their interfaces", "error", err)
	}
}

// macEntry is an address in a device's own filter.
func (h *Host) macEntry(iface string, mac MAC) (*netlink.Neigh, error) {
	link, err := h.nl.LinkByName(iface)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		HardwareAddr: net.HardwareAddr(mac[:]),
	}, nil
}

// addMAC implements macTable.
func (h *Host) addMAC(iface string, mac MAC) error {
	entry, err := h.macEntry(iface, mac)
	if err != nil {
		return err
	}
	return h.nl.NeighAdd(entry)
}

// removeMAC implements macTable.
func (h *Host) removeMAC(iface string, mac MAC) error {
	entry, err := h.macEntry(iface, mac)
	if err == nil {
		err = h.nl.NeighDel(entry)
	}
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, syscall.ENOENT) {
		return nil // gone already
	}
	return err
}
