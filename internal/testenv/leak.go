package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testPrefix starts the name of all that tests leave visible on the machine: a
// process id, a hyphen and a number follow.
const testPrefix = "sluice-test-"

// DemoPrefix does the same for a demo, followed by a process id.
const DemoPrefix = "sluice-demo-"

// leakPatience is how long what tests have started may take to end.
const leakPatience = 3 * time.Second

// Main is the body of a package's TestMain. It sweeps up after test runs that
// were killed, runs the tests, and fails when they leave goroutines, child
// processes, namespaces, mounts or pins behind. It does not return.
func Main(m *testing.M) {
	if privileged() {
		if err := Sweep(); err != nil {
			fmt.Fprintln(os.Stderr, "sweep up after earlier runs:", err)
		}
	}
	code := m.Run()
	if leaks := leaksNow(); len(leaks) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: the tests have left behind:\n%s\n", strings.Join(leaks, "\n"))
		if code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

// leaksNow returns one line, or a stack, for each thing left behind.
func leaksNow() []string {
	var leaks []string
	deadline := time.Now().Add(leakPatience)
	for {
		leaks = leftGoroutines()
		leaks = append(leaks, leftChildren()...)
		leaks = append(leaks, Leftovers(fmt.Sprintf("%s%d-", testPrefix, os.Getpid()))...)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks
		}
		time.Sleep(pollInterval)
	}
}

// Leftovers returns one line for each namespace, mount and lab directory whose
// name starts with prefix. Pins are inside mounts.
func Leftovers(prefix string) []string {
	var left []string
	for _, place := range []struct{ what, dir string }{
		{"namespace", netnsDir}, {"lab directory", Root},
	} {
		found, err := namesWithPrefix(place.dir, prefix)
		if err != nil {
			left = append(left, err.Error())
		}
		for _, name := range found {
			left = append(left, place.what+" "+filepath.Join(place.dir, name))
		}
	}
	mounts, err := mountsWithPrefix(filepath.Join(Root, prefix))
	if err != nil {
		left = append(left, err.Error())
	}
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	return left
}

// namesWithPrefix lists the entries of dir that start with prefix. A directory
// that is absent, or closed to this user, holds none of ours.
func namesWithPrefix(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// leftGoroutines returns the stacks of goroutines that tests have started.
func leftGoroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	// The first stack is that of this goroutine.
	for _, stack := range bytes.Split(buf, []byte("\n\n"))[1:] {
		if !ownedByRuntime(stack) {
			left = append(left, string(stack))
		}
	}
	return left
}

// ownedByRuntime tells whether a goroutine belongs to the runtime or to the
// testing package, whose goroutines outlive the tests.
func ownedByRuntime(stack []byte) bool {
	for _, frame := range []string{
		"os/signal.signal_recv(", "os/signal.loop(", "testing.(*M).startAlarm",
		"runtime/trace.", "runtime/pprof.",
	} {
		if bytes.Contains(stack, []byte(frame)) {
			return true
		}
	}
	return false
}

// leftChildren names the child processes that are still there.
func leftChildren() []string {
	pids, err := allProcesses()
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // ended meanwhile
		}
		end := bytes.LastIndexByte(stat, ')')
		if fields := strings.Fields(string(stat[end+1:])); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			left = append(left, "child process "+string(stat[:end+1]))
		}
	}
	return left
}

// ownerPattern finds the process id in a name made by a test or a demo.
var ownerPattern = regexp.MustCompile(`^((?:` + testPrefix + `|` + DemoPrefix + `)(\d+)(?:-\d+)?)(?:-|$)`)

// Sweep removes labs and pins of tests and demos whose process is gone: killed,
// it could not clean up.
func Sweep() error {
	var errs []error
	namespaces := make(map[string][]string) // by lab
	for _, dir := range []string{Root, netnsDir} {
		names, err := namesWithPrefix(dir, "sluice-")
		errs = append(errs, err)
		for _, name := range names {
			lab, ok := orphan(name)
			if !ok {
				continue
			}
			if _, known := namespaces[lab]; !known {
				namespaces[lab] = nil // it may have no namespace, only a directory
			}
			if dir == netnsDir {
				namespaces[lab] = append(namespaces[lab], name)
			}
		}
	}
	for lab, names := range namespaces {
		errs = append(errs, removeLab(filepath.Join(Root, lab), names))
	}
	return errors.Join(errs...)
}

// orphan returns the lab that a name belongs to, if a test or demo has made it
// whose process is gone.
func orphan(name string) (lab string, ok bool) {
	m := ownerPattern.FindStringSubmatch(name)
	if m == nil {
		return "", false
	}
	pid, err := strconv.Atoi(m[2])
	return m[1], err == nil && unix.Kill(pid, 0) == unix.ESRCH
}

// PinDir returns a directory on a bpffs of its own for the pins of a test, and
// removes both at its end. It skips the test without root.
func PinDir(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	dir := filepath.Join(Root, TestPrefix())
	if err := makeLabDir(dir); err != nil {
		t.Fatalf("create directory for a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := removeLab(dir, nil); err != nil {
			t.Errorf("remove pins: %v", err)
		}
	})
	bpffs := filepath.Join(dir, "bpf")
	if err := mountBPFFS(bpffs); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bpffs, "sluice")
}
