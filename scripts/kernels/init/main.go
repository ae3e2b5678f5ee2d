// Init is the first and only program of a virtual machine that runs a test
// binary: it sets up what the tests expect of a Linux system, runs them, says
// how they ended on the second serial port and switches the machine off.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err) // the kernel's console
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "init: power off:", err)
	}
	os.Exit(1) // the kernel panics, and so the machine ends anyway
}

func run() error {
	for _, m := range []struct{ kind, dir string }{
		{"devtmpfs", "/dev"},
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"bpf", "/sys/fs/bpf"},
		{"tmpfs", "/run"},
		{"tmpfs", "/tmp"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := raise("lo"); err != nil {
		return err
	}
	out, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open the port for results: %w", err)
	}
	defer out.Close()
	return test(out)
}

// loadModules loads all modules of a directory in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("open module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrExist) { // EEXIST: it is built in
			return fmt.Errorf("load module %s: %w", e.Name(), err)
		}
	}
	return nil
}

// raise brings an interface up.
func raise(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// test runs the test binary and writes what it says to out, with its exit code
// as the last line. The error is of this program, not of the tests.
func test(out *os.File) error {
	args, err := os.ReadFile("/args")
	if err != nil {
		return fmt.Errorf("read the arguments: %w", err)
	}
	cmd := exec.Command("/test", strings.Split(string(args), "\n")...)
	cmd.Dir = "/package"
	cmd.Env = []string{"HOME=/tmp", "TMPDIR=/tmp", "PATH=/"}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run the tests: %w", err)
	}
	// -1 where a signal ended them.
	if _, err := fmt.Fprintf(out, "\nkernels: exit code %d\n", cmd.ProcessState.ExitCode()); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	// Waits until the port has sent everything.
	if err := unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1); err != nil {
		return fmt.Errorf("drain the port for results: %w", err)
	}
	return nil
}
