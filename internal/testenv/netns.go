package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces.
const netnsDir = "/run/netns"

// A namespace is a named network namespace that this process holds open.
type namespace struct {
	name   string
	handle netns.NsHandle
	nl     *netlink.Handle // its sockets live in the namespace

	releaseOnce sync.Once
}

// shareDirectory makes netnsDir a shared mount point, as `ip netns add` does. It
// must be one before the first namespace is bound into it: made one later, by an
// `ip netns add` beside us, it would cover our namespaces, and nobody could
// remove them.
func shareDirectory() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// createNamespace makes a namespace with lo up, and IPv6 off unless asked for.
func createNamespace(name string, ipv6 bool) (_ *namespace, err error) {
	if _, err := os.Stat(filepath.Join(netnsDir, name)); err == nil {
		return nil, fmt.Errorf("create namespace %s: it exists; remove it with: ip netns del %s", name, name)
	}
	if err := shareDirectory(); err != nil {
		return nil, fmt.Errorf("share %s: %w", netnsDir, err)
	}
	var handle netns.NsHandle
	err = onOwnThread(func() error {
		handle, err = netns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create namespace %s: %w", name, err), deleteNamespace(name))
	}
	n, err := newNamespace(name, handle)
	if err != nil {
		return nil, errors.Join(err, deleteNamespace(name))
	}
	defer func() {
		if err != nil {
			n.release()
			err = errors.Join(err, deleteNamespace(name))
		}
	}()
	settings := [][2]string{
		// A new namespace may inherit these from the machine.
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/ip_forward", "0"},
	}
	if hasIPv6() {
		off := "1"
		if ipv6 {
			off = "0"
		}
		settings = append(settings,
			[2]string{"net/ipv6/conf/all/disable_ipv6", off},
			[2]string{"net/ipv6/conf/default/disable_ipv6", off},
			[2]string{"net/ipv6/conf/all/accept_dad", "0"},
			[2]string{"net/ipv6/conf/default/accept_dad", "0"})
	} else if ipv6 {
		return nil, errors.New("switch on ipv6: this kernel has none")
	}
	for _, s := range settings {
		if err := n.sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo in %s: %w", name, err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set lo up in %s: %w", name, err)
	}
	return n, nil
}

// openNamespace opens one that exists.
func openNamespace(name string) (*namespace, error) {
	handle, err := netns.GetFromPath(filepath.Join(netnsDir, name))
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	return newNamespace(name, handle)
}

func newNamespace(name string, handle netns.NsHandle) (*namespace, error) {
	nl, err := netlink.NewHandleAt(handle, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", name, err), handle.Close())
	}
	return &namespace{name: name, handle: handle, nl: nl}, nil
}

// release closes what this process holds open. The namespace stays.
func (n *namespace) release() {
	n.releaseOnce.Do(func() {
		n.nl.Close()
		_ = n.handle.Close() // opened for reading: nothing can be lost
	})
}

// do runs f on this goroutine with its thread inside the namespace.
func (n *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.name, err)
		}
		return f()
	})
}

// sysctl writes a setting, for example net/ipv4/ip_forward.
func (n *namespace) sysctl(path, value string) error {
	// /proc/sys/net shows the namespace of the thread that opens it.
	err := n.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("set %s to %s in %s: %w", path, value, n.name, err)
	}
	return nil
}

// onOwnThread runs f, which may change the network namespace of its thread, and
// changes it back.
func onOwnThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's own namespace: %w", err)
	}
	defer func() {
		if restoreErr := netns.Set(home); restoreErr != nil {
			// The thread stays locked: it ends with this goroutine and no
			// other ever runs in the wrong namespace.
			err = errors.Join(err, fmt.Errorf("return to the thread's own namespace: %w", restoreErr))
		} else {
			runtime.UnlockOSThread()
		}
		_ = home.Close() // opened for reading: nothing can be lost
	}()
	return f()
}

// deleteNamespace removes a namespace's name; one that is gone is no error. The
// kernel frees it, with its links, when nothing uses it any more.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// processesIn returns the processes, other than this one, whose main thread is
// in one of the namespaces.
func processesIn(names []string) ([]int, error) {
	type inode struct{ dev, ino uint64 }
	wanted := make(map[inode]bool)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(netnsDir, name), &st); err != nil {
			continue // never made, or gone
		}
		wanted[inode{st.Dev, st.Ino}] = true
	}
	pids, err := allProcesses()
	if err != nil || len(wanted) == 0 {
		return nil, err
	}
	var inside []int
	for _, pid := range pids {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st); err != nil {
			continue // ended meanwhile, or a zombie
		}
		if pid != os.Getpid() && wanted[inode{st.Dev, st.Ino}] {
			inside = append(inside, pid)
		}
	}
	return inside, nil
}

// endProcessesIn ends whatever is left inside the namespaces: nothing but what
// the lab's own processes have started, and shells that were opened in it.
func endProcessesIn(names []string) error {
	pids, err := processesIn(names)
	if err != nil {
		return fmt.Errorf("list processes in namespaces: %w", err)
	}
	var errs []error
	for _, pid := range pids {
		id, err := IdentifyProcess(pid)
		if err != nil {
			continue // ended meanwhile
		}
		errs = append(errs, id.End(500*time.Millisecond))
	}
	return errors.Join(errs...)
}

// unmountUnder unmounts everything below dir.
func unmountUnder(dir string) error {
	mounts, err := mountsWithPrefix(dir + "/")
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- { // the last mounted is the innermost
		err := unix.Unmount(mounts[i], 0)
		if err == unix.EBUSY {
			err = unix.Unmount(mounts[i], unix.MNT_DETACH)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i], err))
		}
	}
	return errors.Join(errs...)
}

// mountsWithPrefix returns the mount points whose path starts with prefix, in
// the order of mounting.
func mountsWithPrefix(prefix string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var mounts []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], prefix) {
			mounts = append(mounts, f[4])
		}
	}
	return mounts, nil
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

func isNotEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}
