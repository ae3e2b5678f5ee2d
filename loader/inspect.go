package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

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

	var m kernelMaps
	byName := m.byName()
	defer func() {
		for _, m := range byName {
			(*m).Close() // nothing was written through it
		}
	}()
	for name, into := range byName {
		opened, err := ebpf.LoadPinnedMap(pinPath(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return in, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		*into = opened
	}
	if m.Meta == nil {
		return in, fmt.Errorf("nothing is pinned in %s: %w", dir, fs.ErrNotExist)
	}
	var meta lbMeta
	if err := m.Meta.Lookup(uint32(0), &meta); err != nil {
		return in, fmt.Errorf("read the pinned maps: %w", err)
	}
	if meta.Layout != uint32(lbLayoutLAYOUT_VERSION) {
		advice := "the version that made them can read them"
		if _, ok := earlierLayouts[meta.Layout]; ok {
			advice = "`sluice run` takes them over"
		}
		return in, fmt.Errorf("the maps pinned in %s are those of another version of sluice (layout %d, not %d): %s",
			dir, meta.Layout, lbLayoutLAYOUT_VERSION, advice)
	}
	for name, opened := range byName {
		if *opened == nil {
			return in, fmt.Errorf("%s is not pinned: `sluice run` makes it anew", pinPath(dir, name))
		}
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
	in.Stats, err = readStats(&m, state, nil, nil)
	return in, err
}
