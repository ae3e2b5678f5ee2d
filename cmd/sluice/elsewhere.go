package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/loader"
)

// notPinned is the error of a command that has found nothing pinned. A daemon that
// answers has pinned nothing, or where this process does not look.
func notPinned(c *cli.Context) error {
	dir := c.String("pin-dir")
	cfg, err := statusConfig(c)
	if err != nil {
		return err
	}
	path := socket(cfg, c.String("run-dir"))
	s, err := control.Ask(c.Context, path)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return fmt.Errorf("nothing of sluice is in the kernel (nothing is pinned in %s, and no daemon answers on %s): start it with `sluice run`", dir, path)
	case err != nil:
		return fmt.Errorf("nothing is pinned in %s: %w%s", dir, err, advice(err))
	case len(s.Outcomes) == 0:
		return fmt.Errorf("the daemon (pid %d) has no service, so there is nothing of it in the kernel", s.PID)
	case pinsOf(s.PID, dir):
		return fmt.Errorf("the daemon (pid %d) runs, but its pins are not visible here: its mount namespace has another %s, as `ip netns exec` makes it: "+
			"run this in it, with `nsenter -t %d -m -n` before the command, or start the daemon with `nsenter --net=/run/netns/NAME` instead of `ip netns exec NAME`",
			s.PID, filepath.Dir(dir), s.PID)
	}
	return fmt.Errorf("the daemon (pid %d) runs, but nothing is pinned in %s: give the --pin-dir that it has", s.PID, dir)
}

// pinsOf tells whether a process sees pins in a directory that this one does not.
func pinsOf(pid int, dir string) bool {
	p, err := loader.OpenPinned(seenBy(pid, dir))
	if err == nil {
		err = p.Close()
	}
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission)
}

// seenBy is the path of what is at a path of another process.
func seenBy(pid int, path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), path)
}

// warnIfHidden warns where the pins are on a file system that is this process's
// own, as the /sys that `ip netns exec` makes: nothing there outlives the daemon.
func (n *node) warnIfHidden() {
	var own syscall.Stat_t
	if syscall.Stat(n.pinDir, &own) != nil {
		return
	}
	for pid := os.Getppid(); pid > 0; pid = parentOf(pid) {
		var theirs syscall.Stat_t
		if syscall.Stat(seenBy(pid, "/"), &theirs) != nil {
			return // not for this process to see
		}
		err := syscall.Stat(seenBy(pid, n.pinDir), &theirs)
		if err == nil && own.Dev != theirs.Dev || errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("the pins are in a mount namespace that ends with this process, and forwarding with them: "+
				"start it with `nsenter --net=/run/netns/NAME` instead of `ip netns exec NAME`", "pins", n.pinDir)
			return
		}
	}
}

// parentOf returns the parent of a process; 0: none that can be seen.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command's name, in parentheses, may hold anything.
	var parent int
	if _, err := fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " %c %d", new(rune), &parent); err != nil {
		return 0
	}
	return parent
}
