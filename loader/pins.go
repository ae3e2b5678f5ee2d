package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// DefaultPinDir is where programs, maps and links are pinned.
const DefaultPinDir = "/sys/fs/bpf/sluice"

// A BPF file system takes no dots in names, and VLAN interfaces have one.
var (
	escape   = strings.NewReplacer("_", "__", ".", "_d")
	unescape = strings.NewReplacer("__", "_", "_d", ".")
)

const (
	linkPrefix  = "link-"
	freshPrefix = "new-" // of a pin that is not in its place yet
	programPin  = "program"
	bpffsParent = "/sys/fs/bpf"
)

// preparePinDir makes dir on a BPF file system, which it mounts where there is
// none: on /sys/fs/bpf for a dir below it, else on dir itself.
func preparePinDir(dir string) error {
	mount := dir
	if strings.HasPrefix(dir, bpffsParent+"/") {
		mount = bpffsParent
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the pin directory: %w", err)
	}
	on, err := onBPFFS(mount)
	if err != nil {
		return err
	}
	if !on {
		if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount a BPF file system on %s: %w", mount, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the pin directory: %w", err)
	}
	return removeFresh(dir)
}

// removeFresh removes pins that a killed daemon has not brought to their place.
// A link among them would keep a program on its interface that nobody knows of.
func removeFresh(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the pin directory: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), freshPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the pin: %w", err)
		}
	}
	return nil
}

func onBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// repin pins what p pins at path, in place of what is pinned there.
func repin(p interface{ Pin(string) error }, path string) error {
	fresh := filepath.Join(filepath.Dir(path), freshPrefix+filepath.Base(path))
	if err := p.Pin(fresh); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// linkPath is where the link of an interface is pinned.
func linkPath(dir, name string) string {
	return filepath.Join(dir, linkPrefix+escape.Replace(name))
}

// pinnedLinks returns the names of the interfaces that have a pinned link.
func pinnedLinks(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the pin directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), linkPrefix); ok {
			names = append(names, unescape.Replace(name))
		}
	}
	return names, nil
}

// detachLinks takes the program off all interfaces that have a pinned link. It returns
// those that it freed.
func detachLinks(dir string) (freed []string, err error) {
	names, err := pinnedLinks(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		ok, err := detachLink(dir, name)
		if err != nil {
			return freed, err
		}
		if ok {
			freed = append(freed, name)
		}
	}
	return freed, nil
}

// Detach removes the links, programs and maps that are pinned in dir:
// forwarding stops. It returns the interfaces that it freed. Nothing pinned is
// no error. A BPF file system that is mounted on dir itself stays.
func Detach(dir string) ([]string, error) {
	freed, err := detachLinks(dir)
	if err != nil {
		return freed, err
	}
	if err := sweepPinned(dir); err != nil {
		return freed, err
	}
	spec, err := loadLb()
	if err != nil {
		return freed, fmt.Errorf("read the program: %w", err)
	}
	paths, err := programsMaps(dir)
	if err != nil {
		return freed, err
	}
	paths = append(paths, filepath.Join(dir, programPin))
	for name := range spec.Maps {
		if pinnable(name) {
			paths = append(paths, pinPath(dir, name))
		}
	}
	for _, name := range obsoletePins() {
		paths = append(paths, pinPath(dir, name))
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("remove the pin: %w", err)
		}
	}
	if err := removeFresh(dir); err != nil {
		return freed, err
	}
	if err := dropUpgrades(dir); err != nil {
		return freed, err
	}
	// Only our own, empty folder goes; a file system's root can't be removed.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return freed, fmt.Errorf("remove the pin directory: %w", err)
	}
	return freed, nil
}

// detachLink frees one interface; it tells whether there was one: an interface that
// is gone has taken the program along.
func detachLink(dir, name string) (bool, error) {
	path := linkPath(dir, name)
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false, fmt.Errorf("open the pinned link of %s: %w", name, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("look at the link of %s: %w", name, err)
	}
	// The pin goes first: should the daemon die here, the link dies with it.
	if err := os.Remove(path); err != nil {
		return false, fmt.Errorf("unpin the link of %s: %w", name, err)
	}
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.ENOLINK) {
		return false, fmt.Errorf("detach from %s: %w", name, err)
	}
	return info.XDP() != nil && info.XDP().Ifindex != 0, nil
}
