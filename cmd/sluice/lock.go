package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked is the error where another daemon holds a directory.
var errLocked = errors.New("another sluice runs")

const lockName = "lock"

// lock makes the run directory this process's own until it ends; the kernel
// lets go of the lock however that comes about.
func lock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the run directory: %w%s", err, advice(err))
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the run directory: %w%s", err, advice(err))
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(lockError(err, "run", dir), f.Close())
	}
	return f, nil
}

// lockPins does the same for the directory of the pins, which another daemon may
// use that has a run directory of its own: both would write the same tables. It
// returns nil where there is no such directory.
func lockPins(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock the pin directory: %w%s", err, advice(err))
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(lockError(err, "pin", dir), f.Close())
	}
	return f, nil
}

// isLocked tells whether a daemon holds the run directory. Where that can't be
// found out it is false.
func isLocked(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer f.Close()
	// A shared one, so that two who look at once do not see each other.
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// glance is longer than a command that looks whether a daemon runs has the lock.
const glance = 500 * time.Millisecond

// flock takes the lock. Who only looks has it for a moment, and must not keep a daemon
// from starting.
func flock(f *os.File) error {
	for began := time.Now(); ; time.Sleep(glance / 50) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) >= glance {
			return err
		}
	}
}

func lockError(err error, what, dir string) error {
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w with the %s directory %s", errLocked, what, dir)
	}
	return fmt.Errorf("lock the %s directory: %w", what, err)
}

// advice says what to do about a directory or socket that can't be used.
func advice(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ": run sluice as root"
	case errors.Is(err, unix.EROFS):
		return ": give a --run-dir that can be written"
	}
	return ""
}
