package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// An Inspection is what a daemon that is gone has left in the kernel.
type Inspection struct {
	Attachments []Attachment // where it forwards; Warning says what is wrong
	Stats       Stats        // services have no names: those are the configuration's
}

// Inspect reads what is pinned in dir, without changing anything. Where nothing
// is, the error is fs.ErrNotExist.
func Inspect(dir string) (Inspection, error) {
	var in Inspection
	names, err := pinnedLinks(dir)
	if err != nil {
		return in, err
	}
	for _, name := range names {
		a := Attachment{Interface: name}
		nic, err := net.InterfaceByName(name)
		if err == nil {
			a.Index = nic.Index
			a.Mode, err = attachedMode(nic)
		}
		if err != nil {
			a.Warning = fmt.Sprintf("%s: not forwarding: %v", name, err)
		}
		in.Attachments = append(in.Attachments, a)
	}

	spec, err := loadLb()
	if err != nil {
		return in, fmt.Errorf("read the program: %w", err)
	}
	open := map[string]*ebpf.Map{}
	defer func() { closeAll(open) }()
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue // constants are not pinned: a BPF file system refuses the name
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return in, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		open[name] = m
	}
	if open["meta"] == nil {
		return in, fmt.Errorf("nothing is pinned in %s: %w", dir, fs.ErrNotExist)
	}
	var meta lbMeta
	if err := open["meta"].Lookup(uint32(0), &meta); err != nil {
		return in, fmt.Errorf("read the pinned maps: %w", err)
	}
	if meta.Layout != uint32(lbLayoutLAYOUT_VERSION) {
		return in, fmt.Errorf("the maps pinned in %s are those of another version of sluice (layout %d, not %d)",
			dir, meta.Layout, lbLayoutLAYOUT_VERSION)
	}
	for name := range spec.Maps {
		if open[name] == nil && !strings.HasPrefix(name, ".") {
			return in, fmt.Errorf("the map %s is not pinned in %s: `sluice run` makes it anew", name, dir)
		}
	}
	m := lbMaps{
		Meta: open["meta"], Interfaces: open["interfaces"], Vips: open["vips"], Ports: open["ports"],
		Services: open["services"], Slots: open["slots"], Backends: open["backends"], Traffic: open["traffic"],
		Losses: open["losses"], Outcomes: open["outcomes"], NatPairs: open["nat_pairs"],
		NatChoices: open["nat_choices"], NatKeys: open["nat_keys"], NatBuckets: open["nat_buckets"],
	}
	t, err := openTables(m)
	if err != nil {
		return in, err
	}
	defer t.close()
	state, err := t.readState()
	if err != nil {
		return in, err
	}
	in.Stats, err = readStats(&m, state, nil)
	return in, err
}
