package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// A machine is a virtual one with one CPU, no disk and no network.
type machine struct {
	kernel, initramfs string
	console           string // file that gets what the kernel and init say
	output            string // file that gets what the tests say
	timeout           time.Duration
}

// memory holds the maps of the tests, which are sized for a million flows.
const memory = "3072" // MiB

// errTimeout says that a machine did not come to its end.
var errTimeout = errors.New("no end within the time given")

// run starts the machine and returns when it is off.
func (m machine) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout, errTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", memory,
		"-kernel", m.kernel, "-initrd", m.initramfs,
		// A panic or an oops ends the machine: with -no-reboot, a reboot does.
		"-append", "console=ttyS0 panic=-1 oops=panic",
		"-serial", "file:"+m.console, "-serial", "file:"+m.output)
	// No machine outlives this process, even where that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("run qemu: %w (%v)", err, m.timeout)
	}
	if err != nil {
		return fmt.Errorf("run qemu: %w: %s", err, out)
	}
	return nil
}
