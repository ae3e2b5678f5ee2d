// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// An addressTable is the host's addresses. Host implements it.
type addressTable interface {
	list() ([]hostAddress, error)
	add(owned) error    // syscall.EEXIST: it is there already
	remove(owned) error // nil: it is not there any more
	// promote makes the kernel keep an interface's secondary addresses when
	// their primary is removed.
	promote(iface string) error
}

// An owned address is one that this program added: interface name, address and
// prefix together identify it.
type owned struct {
	Interface string       `json:"interface"`
	Address   netip.Prefix `json:"address"`
}

func (o owned) String() string { return fmt.Sprintf("%v on %s", o.Address, o.Interface) }

// Addresses puts VIPs on interfaces and takes them off. It writes down what it
// added, so that a later run knows what an earlier one, killed, has left. What
// it did not add it neither removes nor takes for its own. It is safe for
// concurrent use by several Routers of one process.
type Addresses struct {
	table addressTable
	log   *slog.Logger
	file  record

	mu  sync.Mutex
	own []owned
}

// OpenAddresses reads the record in dir, which is made if it is absent. A
// record of an earlier boot is void, as are entries that are not on the host
// any more. A record that cannot be read is reported and counts as empty; what
// it would have named is then this node's own.
func OpenAddresses(host *Host, dir string, log *slog.Logger) (*Addresses, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return openAddresses(host, dir, boot, log)
}

func openAddresses(table addressTable, dir, boot string, log *slog.Logger) (*Addresses, error) {
	a := &Addresses{table: table, log: log, file: record{dir: dir, boot: boot}}
	before, err := a.file.read()
	if err != nil {
		log.Warn("the record of added addresses cannot be read; what is on the interfaces counts as this node's own", "error", err)
	}
	present, err := table.list()
	if err != nil {
		return nil, fmt.Errorf("open addresses: %w", err)
	}
	for _, o := range before {
		if isPresent(present, o) {
			a.own = append(a.own, o)
		}
	}
	// Written even if nothing changed: a state directory that cannot be written
	// is found at start, not at a takeover.
	if err := a.file.write(a.own); err != nil {
		return nil, fmt.Errorf("open addresses: %w", err)
	}
	return a, nil
}

// Forget removes every recorded address for which configured is false, and
// returns them. It is called at start and after a change of configuration.
func (a *Addresses) Forget(configured func(iface string, vip netip.Prefix) bool) ([]netip.Prefix, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var gone []netip.Prefix
	var errs []error
	for _, o := range slices.Clone(a.own) {
		if configured(o.Interface, o.Address) {
			continue
		}
		if err := a.drop(o); err != nil {
			errs = append(errs, err)
			continue
		}
		a.log.Info("removed an address that is no longer configured", "address", o.Address, "interface", o.Interface)
		gone = append(gone, o.Address)
	}
	if len(gone) > 0 {
		a.save()
	}
	return gone, errors.Join(errs...)
}

// Check implements AddressStore.
func (a *Addresses) Check(iface string, vips []netip.Prefix, owner bool) (AddressReport, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	host, err := a.table.list()
	if err != nil {
		return AddressReport{}, fmt.Errorf("check addresses of %s: %w", iface, err)
	}
	var r AddressReport
	for _, vip := range vips {
		o := owned{iface, vip}
		foreign := a.foreign(host, iface, vip.Addr())
		switch {
		case foreign != nil && !owner:
			r.Conflicts = append(r.Conflicts, foreign)
			if a.isOwn(o) && isPresent(host, o) {
				r.Present = append(r.Present, vip) // as well: to be removed
			}
		case foreign != nil:
		case a.isOwn(o) && isPresent(host, o):
			r.Present = append(r.Present, vip)
		default:
			r.Missing = append(r.Missing, vip)
		}
	}
	return r, nil
}

// Add implements AddressStore. The record comes first: an address that is added
// and not recorded could never be removed by a later run. But a record that
// cannot be written must not keep a VIP down; that is logged.
func (a *Addresses) Add(iface string, vips []netip.Prefix, owner bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	host, err := a.table.list()
	if err != nil {
		return fmt.Errorf("add addresses to %s: %w", iface, err)
	}
	var errs []error
	var todo []owned
	known := len(a.own)
	for _, vip := range vips {
		o := owned{iface, vip}
		if foreign := a.foreign(host, iface, vip.Addr()); foreign != nil {
			if !owner {
				errs = append(errs, foreign)
			}
			continue
		}
		if a.isOwn(o) && isPresent(host, o) {
			continue
		}
		todo = append(todo, o)
		if !a.isOwn(o) {
			a.own = append(a.own, o)
		}
	}
	if len(a.own) > known {
		a.save()
	}
	for _, o := range todo {
		err := a.table.add(o)
		if err == nil {
			continue
		}
		a.forget(o)
		a.save()
		if !errors.Is(err, syscall.EEXIST) {
			errs = append(errs, fmt.Errorf("add %v: %w", o, err))
		} else if !owner {
			// Somebody was faster, between the look and the request.
			errs = append(errs, &ConflictError{Address: o.Address.Addr(), Interface: iface})
		}
	}
	return errors.Join(errs...)
}

// Remove implements AddressStore.
func (a *Addresses) Remove(iface string, vips []netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	known := len(a.own)
	for _, vip := range vips {
		errs = append(errs, a.drop(owned{iface, vip}))
	}
	if len(a.own) < known {
		a.save()
	}
	return errors.Join(errs...)
}

// Added implements AddressStore.
func (a *Addresses) Added(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.own, func(o owned) bool { return o.Address.Addr() == addr })
}

// Holds reports whether any address that was added is there still.
func (a *Addresses) Holds() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.own) > 0
}

// drop removes an address that was added. The record is saved last, by the
// caller: if the program dies in between, the entry names an address that is
// absent, which is void.
func (a *Addresses) drop(o owned) error {
	if !a.isOwn(o) {
		return nil
	}
	if err := a.protectSecondaries(o); err != nil {
		return fmt.Errorf("remove %v: %w", o, err)
	}
	if err := a.table.remove(o); err != nil {
		return fmt.Errorf("remove %v: %w", o, err)
	}
	a.forget(o)
	return nil
}

// protectSecondaries sees to it that removing o removes nothing else. Linux
// removes, with the first address of a subnet, all others of that subnet,
// unless it is told to promote one of them.
func (a *Addresses) protectSecondaries(o owned) error {
	host, err := a.table.list()
	if err != nil {
		return err
	}
	self := slices.IndexFunc(host, func(h hostAddress) bool { return h.owned == o })
	if self < 0 || host[self].secondary {
		return nil
	}
	for _, h := range host {
		if h.secondary && h.Interface == o.Interface && h.Address.Masked() == o.Address.Masked() {
			if err := a.table.promote(o.Interface); err != nil {
				return fmt.Errorf("keep %v: set promote_secondaries: %w", h.owned, err)
			}
			return nil
		}
	}
	return nil
}

// foreign finds addr on the host where this program did not put it. A link-local
// address is another one on each interface.
func (a *Addresses) foreign(host []hostAddress, iface string, addr netip.Addr) *ConflictError {
	linkLocal := addr.Is6() && addr.IsLinkLocalUnicast()
	for _, h := range host {
		if h.Address.Addr() == addr && !a.isOwn(h.owned) && (!linkLocal || h.Interface == iface) {
			return &ConflictError{Address: addr, Interface: h.Interface}
		}
	}
	return nil
}

func (a *Addresses) isOwn(o owned) bool { return slices.Contains(a.own, o) }

func (a *Addresses) forget(o owned) {
	a.own = slices.DeleteFunc(a.own, func(other owned) bool { return other == o })
}

func (a *Addresses) save() {
	if err := a.file.write(a.own); err != nil {
		a.log.Error("added addresses cannot be recorded; after a crash they would count as this node's own", "error", err)
	}
}

func isPresent(host []hostAddress, o owned) bool {
	return slices.ContainsFunc(host, func(h hostAddress) bool { return h.owned == o })
}
