// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// priority is the real-time priority of an engine: above everything that has
// none, below the kernel's own threads where those have one.
const priority = 20

// heapLimit is the memory of an engine's process that Go may use. It needs a small
// part of it, and collects no garbage before it has.
const heapLimit = 32 << 20

// endTime is how long an engine's process may take to end, once its socket is closed,
// before it is killed.
const endTime = 500 * time.Millisecond

// controlFD is where an engine's process finds its socket.
const controlFD = 3

// Process returns a Start that runs the engine in a process of its own: command is
// a program that calls Main.
func Process(command ...string) Start {
	return func(control int) (func() error, error) {
		socket := os.NewFile(uintptr(control), "control")
		defer socket.Close()
		cmd := exec.Command(command[0], command[1:]...)
		cmd.ExtraFiles = []*os.File{socket}
		cmd.Stderr = os.Stderr
		cmd.Env = append(os.Environ(), fmt.Sprint("GOMAXPROCS=", 1+maxHands), "GOGC=off", fmt.Sprint("GOMEMLIMIT=", heapLimit))
		// A signal for the daemon's group is not for it: it ends with the daemon.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		ended := make(chan error, 1)
		started := make(chan error)
		go func() {
			// Every thread of the process has the priority of the one that starts it, and no
			// more capabilities than that one leaves.
			err := onThread(func() error {
				// Without CAP_SETPCAP, nothing can be dropped, and there is little to drop.
				_ = shedCapabilities()
				return cmd.Start()
			})
			started <- err
			if err == nil {
				ended <- cmd.Wait()
			}
		}()
		if err := <-started; err != nil {
			return nil, err
		}
		return func() error {
			select {
			case err := <-ended:
				return err
			case <-time.After(endTime):
			}
			_ = cmd.Process.Kill() // it stands still
			return <-ended
		}, nil
	}
}

// onThread calls f on a thread of its own, with real-time priority where that is
// allowed. The thread ends with it.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		_ = realTime()
		result <- f()
	}()
	return <-result
}

// realTime gives the calling thread real-time priority.
func realTime() error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}, 0)
}

// Main is an engine's process. It returns when the program that started it has
// ended.
func Main() error {
	// Whoever stops a service signals all its processes. This one goes last.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	if _, err := unix.FcntlInt(controlFD, unix.F_GETFD, 0); err != nil {
		return errors.New("this is started by the daemon itself")
	}
	unix.CloseOnExec(controlFD)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("lock memory: %w", err)
	}
	if err := onThread(realTime); err != nil {
		fmt.Fprintf(os.Stderr, "no real-time priority (%v): under load, packets that must be on time may be late\n", err)
	}
	return Run(controlFD)
}
