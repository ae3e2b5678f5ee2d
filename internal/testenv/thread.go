package testenv

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// CPUs returns the CPUs that this thread may run on, in ascending order.
func CPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("ask for the thread's cpus: %w", err)
	}
	var cpus []int
	for cpu := range 64 * len(set) {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// OnCPUs runs f on this goroutine with its thread on these CPUs alone. What f starts
// with os/exec stays on them.
func OnCPUs(cpus []int, f func() error) (err error) {
	runtime.LockOSThread()
	var before, wanted unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("ask for the thread's cpus: %w", err)
	}
	for _, cpu := range cpus {
		wanted.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &wanted); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("keep the thread on cpus %v: %w", cpus, err)
	}
	defer func() {
		if restoreErr := unix.SchedSetaffinity(0, &before); restoreErr != nil {
			// The thread stays locked, and ends with this goroutine.
			err = errors.Join(err, fmt.Errorf("let the thread run on all its cpus: %w", restoreErr))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// undisturbed runs f on the last CPU that the thread may use, with real-time
// priority if it may have that, and says whether it has. A thread that measures in
// milliseconds must not wait for what else goes on; and real-time priority alone
// does not help where a kernel is busy for another program, as in loading BPF.
func undisturbed(realtime *bool, f func() error) error {
	cpus, err := CPUs()
	if err != nil {
		return err
	}
	return OnCPUs(cpus[len(cpus)-1:], func() error { return inRealTime(realtime, f) })
}

// inRealTime runs f with real-time priority for its thread, which must be locked.
func inRealTime(got *bool, f func() error) error {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("ask for the thread's priority: %w", err)
	}
	wanted := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}
	if unix.SchedSetAttr(0, &wanted, 0) != nil {
		return f() // later, sometimes, and no worse than that
	}
	*got = true
	err = f()
	if restoreErr := unix.SchedSetAttr(0, before, 0); restoreErr != nil {
		err = errors.Join(err, fmt.Errorf("give the thread its priority back: %w", restoreErr))
	}
	return err
}
