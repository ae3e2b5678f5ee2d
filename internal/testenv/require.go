package testenv

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// requireVar, set to 1, makes a test that would be skipped for want of root or
// of a program fail instead.
const requireVar = "SLUICE_REQUIRE_ROOT"

// RequireRoot skips the test unless this process may make namespaces, configure
// networks and load BPF programs. With SLUICE_REQUIRE_ROOT=1 it fails instead.
func RequireRoot(t testing.TB) {
	t.Helper()
	if !privileged() {
		unmet(t, "needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run the tests with sudo")
	}
}

// RequireSessions skips the test where the kernel does not deal out CPUs to sessions
// (autogroups, sched(7)).
func RequireSessions(t testing.TB) {
	t.Helper()
	if on, err := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled"); err != nil || strings.TrimSpace(string(on)) == "0" {
		t.Skip("the kernel knows no shares of sessions")
	}
}

// RequireProgram returns the path of a program that the test needs, and skips
// the test where it is not installed. With SLUICE_REQUIRE_ROOT=1 it fails
// instead.
func RequireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := FindProgram(name)
	if err != nil {
		unmet(t, "needs the program "+name+": install it, or run scripts/setup test")
	}
	return path
}

// FindProgram returns the path of a program, which may be in an administrator's
// directory that PATH lacks.
func FindProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

func unmet(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(requireVar) == "1" {
		t.Fatalf("%s (%s=1 forbids to skip)", why, requireVar)
	} else {
		t.Skip(why)
	}
}

// privileged tells whether the effective capabilities include those that a lab
// needs: user id 0 in a container often lacks them.
func privileged() bool {
	const capNetAdmin, capSysAdmin = 12, 21
	status, err := os.Open("/proc/self/status")
	if err != nil {
		return false
	}
	defer func() { _ = status.Close() }() // opened for reading
	scanner := bufio.NewScanner(status)
	for scanner.Scan() {
		hex, ok := strings.CutPrefix(scanner.Text(), "CapEff:")
		if !ok {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		const need = 1<<capNetAdmin | 1<<capSysAdmin
		return err == nil && caps&need == need
	}
	return false
}
