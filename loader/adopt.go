package loader

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
)

// A foundation is what a data plane is built on.
type foundation struct {
	meta    lbMeta
	maps    map[string]*ebpf.Map // pinned ones that it takes over
	fresh   bool                 // there are none
	upgrade *upgrade             // of maps of an earlier layout
}

// adopt finds the pinned maps.
func (f *foundation) adopt(spec *ebpf.CollectionSpec, o Options) error {
	layout, found, err := pinnedLayout(o.PinDir)
	if err != nil {
		return err
	}
	if err := recoverUpgrade(o.PinDir, layout); err != nil || !found {
		return err
	}
	f.fresh = false
	wanted := f.meta.BucketMask + 1
	var pinned map[string]*ebpf.Map
	if layout == f.meta.Layout {
		if f.meta, pinned, err = openPinned(spec, o.PinDir); err != nil {
			return err
		}
	} else if f.upgrade, pinned, f.meta, err = beginUpgrade(spec, o, layout); err != nil {
		return refuse(o.PinDir, layout, err)
	}
	if f.meta.BucketMask+1 != wanted {
		o.Log.Warn("max_flows has changed: the flow table keeps its size until `sluice detach`",
			"buckets", f.meta.BucketMask+1, "wanted", wanted)
		spec.Maps["nat_buckets"].MaxEntries = f.meta.BucketMask + 1
	}
	for name, m := range pinned {
		delete(pinned, name)
		if f.maps[name], err = fit(m, spec.Maps[name]); err != nil {
			break
		}
	}
	if err != nil {
		closeAll(pinned)
		closeAll(f.maps)
		f.upgrade.close()
		return refuse(o.PinDir, layout, err)
	}
	return nil
}

// openPinned opens the pinned maps of this layout.
func openPinned(spec *ebpf.CollectionSpec, dir string) (lbMeta, map[string]*ebpf.Map, error) {
	var meta lbMeta
	pinned := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if !pinnable(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(pinPath(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeAll(pinned)
			return meta, nil, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		pinned[name] = m
	}
	if err := pinned["meta"].Lookup(uint32(0), &meta); err != nil {
		closeAll(pinned)
		return meta, nil, fmt.Errorf("read the pinned maps: %w", err)
	}
	return meta, pinned, nil
}

// fit makes a specification that of a pinned map where only the size differs, or
// returns a larger map in its place. The map is closed where it is not returned.
func fit(m *ebpf.Map, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if spec.Name == "slots" && m.MaxEntries() < spec.MaxEntries {
		defer m.Close()
		return growSlots(spec, m)
	}
	// A table of flows keeps its size.
	if _, ok := flowTables(0)[spec.Name]; ok || spec.Name == "slots" {
		spec.MaxEntries = m.MaxEntries()
	}
	if err := spec.Compatible(m); err != nil {
		m.Close()
		return nil, fmt.Errorf("adopt the pinned map %s: %w", spec.Name, err)
	}
	return m, nil
}

// growSlots makes a larger table of slots with what the old one holds.
func growSlots(spec *ebpf.MapSpec, old *ebpf.Map) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make a larger table of slots: %w", err)
	}
	from, err := mapWords(old)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	defer from.close()
	to, err := mapWords(m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	defer to.close()
	for i := range int(min(old.MaxEntries(), spec.MaxEntries)) {
		to.store(i, from.load(i))
	}
	return m, nil
}
