package main

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever looks whether a daemon runs does not keep one from starting; a daemon does.
func TestLockOutlastsAGlance(t *testing.T) {
	dir := t.TempDir()
	first, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); !errors.Is(err, errLocked) {
		t.Errorf("beside a daemon the error is %v, want %v", err, errLocked)
	}
	if !isLocked(dir) {
		t.Error("a daemon that holds the directory is not seen")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	looking, err := unix.Open(filepath.Join(dir, lockName), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(looking, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(glance/5, func() { _ = unix.Close(looking) })
	second, err := lock(dir)
	if err != nil {
		t.Fatalf("after a glance: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}
