// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	b, err := os.ReadFile(filepath.Join(r.dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	var f recordFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("read record %s: %w", filepath.Join(r.dir, recordName), err)
	}
	if f.BootID != r.boot {
		return nil, nil
	}
	return f.Addresses, nil
}

// write replaces the file as a whole. It is not synced to disk: it has to
// survive this process, and a crash of the machine makes it void anyway.
func (r record) write(addresses []owned) error {
	if addresses == nil {
		addresses = []owned{}
	}
	b, err := json.MarshalIndent(recordFile{r.boot, addresses}, "", "  ")
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	path := filepath.Join(r.dir, recordName)
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

// bootID is the same for as long as the kernel runs.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
