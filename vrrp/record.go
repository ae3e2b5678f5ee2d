// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recordName is the file in the state directory.
const recordName = "addresses.json"

// A record is the file that names the addresses that were added.
type record struct {
	dir  string
	boot string // the kernel's boot id: no address outlives a reboot
}

type recordFile struct {
	BootID    string  `json:"boot_id"`
	Addresses []owned `json:"addresses"`
}

// read returns the recorded addresses: none if there is no file or it is of
// another boot.
func (r record) read() ([]owned, error) {
	var f recordFile
	if err := readRecord(r.dir, recordName, &f); err != nil || f.BootID != r.boot {
		return nil, err
	}
	return f.Addresses, nil
}

// readRecord reads a record; one that is not there holds nothing.
func readRecord(dir, name string, content any) error {
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, content); err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	return nil
}

// write replaces the file as a whole.
func (r record) write(addresses []owned) error {
	if addresses == nil {
		addresses = []owned{}
	}
	return writeRecord(r.dir, recordName, recordFile{r.boot, addresses})
}

// writeRecord replaces a record as a whole. It is not synced to disk: it has to
// survive this process, and a crash of the machine makes it void anyway.
func writeRecord(dir, name string, content any) error {
	b, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	path := filepath.Join(dir, name)
	// One name for all: what a crash leaves is overwritten, and never piles up.
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// An Added is an address that this program has put on an interface.
type Added struct {
	Interface string
	Address   netip.Prefix
}

// ReadAdded returns the addresses that a run has recorded in dir and that are there
// still. It is for who looks on: a run of its own opens Addresses.
func ReadAdded(dir string) ([]Added, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	all, err := record{dir, boot}.read()
	if err != nil {
		return nil, err
	}
	var there []Added
	for _, o := range all {
		nic, err := net.InterfaceByName(o.Interface)
		if err != nil {
			continue // it is gone, and its addresses with it
		}
		addrs, err := nic.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", o.Interface, err)
		}
		if slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == o.Address.String() }) {
			there = append(there, Added(o))
		}
	}
	return there, nil
}

// bootID is the same for as long as the kernel runs.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
