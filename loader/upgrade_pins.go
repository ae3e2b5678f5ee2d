package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// upgradePrefix begins the name of a folder in the pin directory that holds the pins
// of a data plane which is about to take the place of an earlier version's; its
// layout follows. The version before takes no notice of it.
const upgradePrefix = "upgrade-"

func upgradeFolder(dir string, layout uint32) string {
	return filepath.Join(dir, upgradePrefix+strconv.FormatUint(uint64(layout), 10))
}

// recoverUpgrade ends what a killed daemon has left of an upgrade: it is finished
// where the pinned maps are those of its layout already, and else forgotten. Pinned is
// 0 where there are none.
func recoverUpgrade(dir string, pinned uint32) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the pin directory: %w", err)
	}
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), upgradePrefix)
		layout, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || layout > uint64(lbLayoutLAYOUT_VERSION) {
			continue
		}
		if uint32(layout) == pinned {
			err = moveUpgrade(dir, pinned, nil)
		} else {
			err = dropUpgrade(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// moveUpgrade gives the pins of an upgrade their places; of what the earlier version
// had besides it removes the pins. That of meta comes first.
func moveUpgrade(dir string, layout uint32, at func(step string) error) error {
	folder := upgradeFolder(dir, layout)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("read the pins of an upgrade: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if i := slices.Index(names, "meta"); i > 0 {
		names[0], names[i] = names[i], names[0]
	}
	report := func(step string) error {
		if at == nil {
			return nil
		}
		return at(step)
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(folder, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("move the pin of an upgrade: %w", err)
		}
		if err := report("moved " + name); err != nil {
			return err
		}
	}
	for _, name := range obsoletePins() {
		err := os.Remove(pinPath(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove a pin of the earlier version: %w", err)
		}
		if err := report("removed " + name); err != nil {
			return err
		}
	}
	if err := os.Remove(folder); err != nil {
		return fmt.Errorf("remove the folder of an upgrade: %w", err)
	}
	return report("done")
}

// obsoletePins are those of earlier layouts that this one does not have.
func obsoletePins() []string {
	var names []string
	for _, layout := range earlierLayouts {
		names = append(names, layout.obsolete...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// dropUpgrade removes an upgrade's folder. A program of it that is on an interface
// goes on with its maps until it is replaced.
func dropUpgrade(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("read the pins of an upgrade: %w", err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(folder, e.Name())); err != nil {
			return fmt.Errorf("remove the pin of an upgrade: %w", err)
		}
	}
	if err := os.Remove(folder); err != nil {
		return fmt.Errorf("remove the folder of an upgrade: %w", err)
	}
	return nil
}

// dropUpgrades removes the folders of all upgrades.
func dropUpgrades(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the pin directory: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), upgradePrefix) {
			if err := dropUpgrade(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// programsMaps returns the paths in dir where maps of the pinned program are pinned:
// of a later version than this one their names are not known.
func programsMaps(dir string) ([]string, error) {
	program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programPin), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the pinned program: %w", err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil, fmt.Errorf("look at the pinned program: %w", err)
	}
	ids, _ := info.MapIDs()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the pin directory: %w", err)
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // a link, a folder, a program
		}
		if mi, err := m.Info(); err == nil {
			if id, ok := mi.ID(); ok && slices.Contains(ids, id) {
				paths = append(paths, path)
			}
		}
		m.Close()
	}
	return paths, nil
}
