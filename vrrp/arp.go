// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// arpName is the file in the state directory that names the settings.
const arpName = "arp.json"

// ARPSettings keep IPv4 VIPs from leaking. Left alone, the kernel answers ARP for
// any of a node's addresses on each of its interfaces, and names any of them as the
// sender of its own requests: a neighbour that hears a VIP from the wrong interface,
// or from a node that has lost it, sends there. So a VIP is answered for on its own
// interface alone (arp_ignore), and no request comes from it (arp_announce). What is
// changed is written down, and put back by Restore. IPv6 does so by itself.
//
// It is safe for concurrent use.
type ARPSettings struct {
	dir, boot string
	log       *slog.Logger

	mu      sync.Mutex
	changed []arpSetting
}

// An arpSetting is one that was changed. Path is below /proc/sys.
type arpSetting struct {
	Path   string `json:"path"`
	Before int    `json:"before"`
	Set    int    `json:"set"`
}

type arpFile struct {
	BootID   string       `json:"boot_id"`
	Settings []arpSetting `json:"settings"`
}

// OpenARPSettings reads what an earlier run has changed from dir. What cannot be read
// is reported, and stays changed.
func OpenARPSettings(dir string, log *slog.Logger) (*ARPSettings, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	a := &ARPSettings{dir: dir, boot: boot, log: log}
	var f arpFile
	if err := readRecord(dir, arpName, &f); err != nil {
		log.Warn("the record of changed settings cannot be read; they stay as they are", "error", err)
		return a, nil
	}
	if f.BootID == boot {
		a.changed = f.Settings
	}
	return a, nil
}

// Apply sets what VIPs on the given interfaces ask for, on all interfaces that there
// are now, and puts back what was changed and is not asked for any more. Settings that
// are strict enough stay as they are.
func (a *ARPSettings) Apply(vipsOn []string) error {
	links, err := untorn(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	want := map[string]int{}
	for _, l := range links {
		if !speaksARP(l, links) || len(vipsOn) == 0 {
			continue
		}
		name := l.Attrs().Name
		want[arpPath(name, "arp_announce")] = 2
		if slices.ContainsFunc(vipsOn, func(other string) bool { return other != name }) {
			want[arpPath(name, "arp_ignore")] = 1
		}
	}
	errs = append(errs, a.restore(func(s arpSetting) bool { return want[s.Path] > 0 }))
	for path, least := range want {
		errs = append(errs, a.raise(path, least))
	}
	return errors.Join(errs...)
}

// Restore puts everything back.
func (a *ARPSettings) Restore() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.restore(func(arpSetting) bool { return false })
}

// raise makes a setting what it must be at least. The record comes first.
func (a *ARPSettings) raise(path string, least int) error {
	own, err := readSysctl(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the interface has gone meanwhile
	}
	if err != nil {
		return err
	}
	// The kernel takes the larger of the interface's own setting and that of all.
	all, err := readSysctl(arpPath("all", filepath.Base(path)))
	if err != nil || max(own, all) >= least {
		return err
	}
	// One that is recorded is of an interface that was made anew, or somebody has put
	// it back.
	known := slices.IndexFunc(a.changed, func(s arpSetting) bool { return s.Path == path })
	if known < 0 {
		a.changed = append(a.changed, arpSetting{path, own, least})
		if err := a.save(); err != nil {
			a.changed = a.changed[:len(a.changed)-1]
			return err
		}
	}
	if err := changeSysctl(path, least); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.log.Info("changed a setting, so that no VIP leaks", "setting", sysctlName(path), "before", own, "now", least)
	return nil
}

// restore puts back all but what is to be kept. A setting that somebody else has
// changed since is his.
func (a *ARPSettings) restore(keep func(arpSetting) bool) error {
	var errs []error
	before := len(a.changed)
	a.changed = slices.DeleteFunc(a.changed, func(s arpSetting) bool {
		if keep(s) {
			return false
		}
		now, err := readSysctl(s.Path)
		if err == nil && now == s.Set {
			err = changeSysctl(s.Path, s.Before)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			return false
		}
		return true
	})
	if len(a.changed) < before {
		errs = append(errs, a.save())
	}
	return errors.Join(errs...)
}

func (a *ARPSettings) save() error {
	if len(a.changed) == 0 {
		if err := os.Remove(filepath.Join(a.dir, arpName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the changed settings: %w", err)
		}
		return nil
	}
	return writeRecord(a.dir, arpName, arpFile{a.boot, a.changed})
}

// speaksARP tells whether a link answers ARP itself: a port of a bridge or bond
// leaves that to it.
func speaksARP(l netlink.Link, all []netlink.Link) bool {
	at := l.Attrs()
	if len(at.HardwareAddr) != len(MAC{}) || at.RawFlags&unix.IFF_NOARP != 0 || at.Flags&net.FlagLoopback != 0 {
		return false
	}
	if at.MasterIndex == 0 {
		return true
	}
	return slices.ContainsFunc(all, func(m netlink.Link) bool { return m.Attrs().Index == at.MasterIndex && m.Type() == "vrf" })
}

func arpPath(iface, setting string) string {
	return filepath.Join("net/ipv4/conf", iface, setting)
}

// sysctlName is what an operator calls a setting: a dot of the interface is a slash.
func sysctlName(path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], ".", "/")
	}
	return strings.Join(parts, ".")
}

func readSysctl(path string) (int, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", path))
	if err != nil {
		return 0, fmt.Errorf("read setting: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read setting %s: %w", path, err)
	}
	return n, nil
}

func changeSysctl(path string, value int) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(strconv.Itoa(value)+"\n"), 0o644); err != nil {
		return fmt.Errorf("change setting: %w", err)
	}
	return nil
}
