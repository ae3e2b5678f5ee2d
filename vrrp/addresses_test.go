// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A fakeTable is a host's addresses in memory.
type fakeTable struct {
	mu       sync.Mutex
	addrs    []hostAddress
	promoted []string
	before   func(owned) error // runs ahead of an add
}

func (f *fakeTable) list() ([]hostAddress, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.addrs), nil
}

func (f *fakeTable) add(o owned) error {
	if f.before != nil {
		if err := f.before(o); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if isPresent(f.addrs, o) {
		return syscall.EEXIST
	}
	f.addrs = append(f.addrs, hostAddress{owned: o})
	return nil
}

func (f *fakeTable) remove(o owned) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs = slices.DeleteFunc(f.addrs, func(h hostAddress) bool { return h.owned == o })
	return nil
}

func (f *fakeTable) promote(iface string) error {
	f.promoted = append(f.promoted, iface)
	return nil
}

func (f *fakeTable) put(iface, prefix string, secondary bool) {
	f.addrs = append(f.addrs, hostAddress{owned{iface, netip.MustParsePrefix(prefix)}, secondary})
}

func (f *fakeTable) has(iface, prefix string) bool {
	all, _ := f.list()
	return isPresent(all, owned{iface, netip.MustParsePrefix(prefix)})
}

var discard = slog.New(slog.DiscardHandler)

func open(t *testing.T, table addressTable, dir string) *Addresses {
	t.Helper()
	a, err := openAddresses(table, dir, "boot 1", discard)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAddressesAddAndRemove(t *testing.T) {
	table, dir := &fakeTable{}, t.TempDir()
	table.put("eth0", "192.0.2.1/24", false)
	a := open(t, table, dir)
	vips := prefixes("192.0.2.100/24", "192.0.2.101/32")
	if err := a.Add("eth0", vips, false); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("eth0", vips, false); err != nil {
		t.Errorf("add again: %v", err)
	}
	report, err := a.Check("eth0", vips, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(AddressReport{Present: vips}, report, cmpAddr); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if !a.Added(addr("192.0.2.100")) || a.Added(addr("192.0.2.1")) {
		t.Error("Added is wrong about what was added")
	}
	if err := a.Remove("eth0", append(vips, netip.MustParsePrefix("192.0.2.1/24"))); err != nil {
		t.Fatal(err)
	}
	if table.has("eth0", "192.0.2.100/24") || table.has("eth0", "192.0.2.101/32") {
		t.Error("vips are still there")
	}
	if !table.has("eth0", "192.0.2.1/24") {
		t.Error("an address that was not added was removed")
	}
	report, err = a.Check("eth0", vips, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(AddressReport{Missing: vips}, report, cmpAddr); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestAddressesOfTheNodesOwn(t *testing.T) {
	vip := prefixes("192.0.2.1/24")
	const text = "192.0.2.1 is already this node's own address on eth1: remove it from vrrp.addresses or from the interface"
	for _, tt := range []struct {
		name, prefix string
	}{{"same prefix", "192.0.2.1/24"}, {"another prefix", "192.0.2.1/32"}} {
		t.Run(tt.name, func(t *testing.T) {
			table := &fakeTable{}
			table.put("eth1", tt.prefix, false)
			a := open(t, table, t.TempDir())
			err := a.Add("eth0", vip, false)
			var conflict *ConflictError
			if !errors.As(err, &conflict) || conflict.Error() != text {
				t.Errorf("got error %v, want a conflict", err)
			}
			report, err := a.Check("eth0", vip, false)
			if err != nil {
				t.Fatal(err)
			}
			want := AddressReport{Conflicts: []*ConflictError{{addr("192.0.2.1"), "eth1"}}}
			if diff := cmp.Diff(want, report, cmpAddr); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if err := a.Remove("eth1", vip); err != nil {
				t.Error(err)
			}
			if len(table.addrs) != 1 {
				t.Errorf("got addresses %v, want the node's own only", table.addrs)
			}
		})
	}
	t.Run("owner", func(t *testing.T) {
		table := &fakeTable{}
		table.put("eth0", "192.0.2.1/24", false)
		a := open(t, table, t.TempDir())
		if err := a.Add("eth0", vip, true); err != nil {
			t.Error(err)
		}
		if err := a.Remove("eth0", vip); err != nil {
			t.Error(err)
		}
		if !table.has("eth0", "192.0.2.1/24") {
			t.Error("the owner's address was removed")
		}
	})
	t.Run("somebody is faster", func(t *testing.T) {
		table := &fakeTable{}
		table.before = func(o owned) error { table.put("eth0", o.Address.String(), false); return nil }
		a := open(t, table, t.TempDir())
		var conflict *ConflictError
		if err := a.Add("eth0", vip, false); !errors.As(err, &conflict) {
			t.Errorf("got error %v, want a conflict", err)
		}
		if err := a.Remove("eth0", vip); err != nil || !table.has("eth0", "192.0.2.1/24") {
			t.Errorf("the other's address was removed (error %v)", err)
		}
	})
	t.Run("one of two", func(t *testing.T) {
		table := &fakeTable{}
		table.put("eth0", "192.0.2.1/24", false)
		a := open(t, table, t.TempDir())
		if err := a.Add("eth0", prefixes("192.0.2.1/24", "192.0.2.100/24"), false); err == nil {
			t.Error("got no error")
		}
		if !table.has("eth0", "192.0.2.100/24") {
			t.Error("the other vip was not added")
		}
	})
}

func TestAddressesAfterACrash(t *testing.T) {
	vip := prefixes("192.0.2.100/24")
	crashed := func(t *testing.T) (*fakeTable, string) {
		table, dir := &fakeTable{}, t.TempDir()
		if err := open(t, table, dir).Add("eth0", vip, false); err != nil {
			t.Fatal(err)
		}
		return table, dir
	}
	t.Run("what was left is known", func(t *testing.T) {
		table, dir := crashed(t)
		a := open(t, table, dir)
		report, err := a.Check("eth0", vip, false)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(AddressReport{Present: vip}, report, cmpAddr); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if err := a.Remove("eth0", vip); err != nil || table.has("eth0", "192.0.2.100/24") {
			t.Errorf("not removed (error %v)", err)
		}
	})
	t.Run("recorded before it is added", func(t *testing.T) {
		table, dir := &fakeTable{}, t.TempDir()
		a := open(t, table, dir)
		var recorded bool
		table.before = func(owned) error {
			b, err := os.ReadFile(filepath.Join(dir, recordName))
			recorded = err == nil && bytes.Contains(b, []byte("192.0.2.100/24"))
			return syscall.EPERM
		}
		if err := a.Add("eth0", vip, false); !errors.Is(err, syscall.EPERM) {
			t.Errorf("got error %v", err)
		}
		if !recorded {
			t.Error("the record did not name the address when it was added")
		}
		if a.Added(vip[0].Addr()) {
			t.Error("an address that could not be added counts as added")
		}
	})
	t.Run("an entry that is not on the host is void", func(t *testing.T) {
		table, dir := crashed(t)
		table.addrs = nil
		a := open(t, table, dir)
		table.put("eth0", "192.0.2.100/24", false) // by the operator, later
		if report, _ := a.Check("eth0", vip, false); len(report.Conflicts) != 1 {
			t.Errorf("got %v, want a conflict", report)
		}
	})
	t.Run("another prefix is not what was added", func(t *testing.T) {
		table, dir := crashed(t)
		table.addrs = nil
		table.put("eth0", "192.0.2.100/32", false)
		if report, _ := open(t, table, dir).Check("eth0", vip, false); len(report.Conflicts) != 1 {
			t.Errorf("got %v, want a conflict", report)
		}
	})
	t.Run("another interface is not where it was added", func(t *testing.T) {
		table, dir := crashed(t)
		table.addrs = nil
		table.put("eth1", "192.0.2.100/24", false)
		if report, _ := open(t, table, dir).Check("eth0", vip, false); len(report.Conflicts) != 1 {
			t.Errorf("got %v, want a conflict", report)
		}
	})
	t.Run("a reboot makes the record void", func(t *testing.T) {
		table, dir := crashed(t)
		a, err := openAddresses(table, dir, "boot 2", discard)
		if err != nil {
			t.Fatal(err)
		}
		if report, _ := a.Check("eth0", vip, false); len(report.Conflicts) != 1 {
			t.Errorf("got %v, want a conflict", report)
		}
	})
	t.Run("a torn record is reported and void", func(t *testing.T) {
		table, dir := crashed(t)
		path := filepath.Join(dir, recordName)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b[:len(b)/2], 0o644); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		a, err := openAddresses(table, dir, "boot 1", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), "cannot be read") {
			t.Errorf("got log %q", log.String())
		}
		if report, _ := a.Check("eth0", vip, false); len(report.Conflicts) != 1 {
			t.Errorf("got %v, want a conflict", report)
		}
	})
	t.Run("what is no longer configured is removed", func(t *testing.T) {
		table, dir := crashed(t)
		a := open(t, table, dir)
		if err := a.Add("eth0", prefixes("192.0.2.101/24"), false); err != nil {
			t.Fatal(err)
		}
		gone, err := a.Forget(func(iface string, p netip.Prefix) bool {
			return iface == "eth0" && p.Addr() == addr("192.0.2.101")
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(vip, gone, cmpAddr); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
		if table.has("eth0", "192.0.2.100/24") || !table.has("eth0", "192.0.2.101/24") {
			t.Errorf("got addresses %v", table.addrs)
		}
		// And a third run does not know it any more.
		table.put("eth0", "192.0.2.100/24", false)
		if open(t, table, dir).Added(addr("192.0.2.100")) {
			t.Error("the forgotten address is still recorded")
		}
	})
}

func TestAddressesKeepSecondaries(t *testing.T) {
	for _, tt := range []struct {
		name       string
		secondary  string
		isSecond   bool
		promotes   bool
		vipPrimary bool
	}{
		{"another of the subnet hangs on the vip", "192.0.2.7/24", true, true, true},
		{"another subnet", "198.51.100.7/24", true, false, true},
		{"another prefix length", "192.0.2.7/25", true, false, true},
		{"the vip is secondary itself", "192.0.2.7/24", false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := &fakeTable{}
			a := open(t, table, t.TempDir())
			vip := prefixes("192.0.2.100/24")
			if err := a.Add("eth0", vip, false); err != nil {
				t.Fatal(err)
			}
			table.addrs[0].secondary = !tt.vipPrimary
			table.put("eth0", tt.secondary, tt.isSecond)
			if err := a.Remove("eth0", vip); err != nil {
				t.Fatal(err)
			}
			if got := len(table.promoted) > 0; got != tt.promotes {
				t.Errorf("secondaries are promoted: got %v, want %v", got, tt.promotes)
			}
		})
	}
}

func TestAddressesUnwritableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := openAddresses(&fakeTable{}, filepath.Join(file, "state"), "boot 1", discard)
	var path *fs.PathError
	if !errors.As(err, &path) {
		t.Errorf("got error %v, want one that names the path", err)
	}

	// Later it is only logged: the vip is worth more than its record.
	dir := filepath.Join(t.TempDir(), "state")
	var log bytes.Buffer
	table := &fakeTable{}
	a, err := openAddresses(table, dir, "boot 1", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.Add("eth0", prefixes("192.0.2.100/24"), false); err != nil || !table.has("eth0", "192.0.2.100/24") {
		t.Errorf("not added (error %v)", err)
	}
	if !strings.Contains(log.String(), "cannot be recorded") {
		t.Errorf("got log %q", log.String())
	}
}

func TestAddressesConcurrently(t *testing.T) {
	table, dir := &fakeTable{}, t.TempDir()
	a := open(t, table, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			vip := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}), 24)}
			for range 20 {
				if err := a.Add("eth0", vip, false); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := a.Remove("eth0", vip); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := len(open(t, table, dir).own); got != 4 {
		t.Errorf("got %d recorded addresses, want 4", got)
	}
}
