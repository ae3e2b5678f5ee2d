package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

func shell(script string) Command { return Command{Args: []string{"/bin/sh", "-c", script}} }

func TestOutput(t *testing.T) {
	tests := []struct {
		name    string
		command Command
		line    string
		err     string
	}{
		{"nothing", shell("true"), "", ""},
		{"both outputs, first line", shell("echo; echo ' one ' >&2; echo two"), "one", ""},
		{"exit code", shell("echo no space left; exit 3"), "no space left", "exit status 3"},
		{"a signal", shell("kill -9 $$"), "", "signal: killed"},
		{"more than is kept", shell("echo first; head -c 300000 /dev/zero"), "first", ""},
		{"no shell", Command{Args: []string{"/bin/echo", "$HOME", "a  b"}}, "$HOME a  b", ""},
		{"environment", Command{Args: []string{"/bin/sh", "-c", "echo $SLUICE_A"}, Env: []string{"SLUICE_A=yes"}}, "yes", ""},
		{"no such program", Command{Args: []string{"/nonexistent"}}, "", "start: fork/exec /nonexistent: no such file or directory"},
		{"no such user", Command{Args: []string{"/bin/true"}, User: "nobody-of-this-name"}, "",
			"run /bin/true as nobody-of-this-name: there is no such user"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			line, err := tt.command.Output(ctx)
			if line != tt.line {
				t.Errorf("line %q, want %q", line, tt.line)
			}
			if got := fmt.Sprint(err); got != tt.err && (err != nil || tt.err != "") {
				t.Errorf("error %q, want %q", got, tt.err)
			}
		})
	}
}

// What a command leaves running is no reason to wait, nor is it killed: a
// recovery starts servers.
func TestWhatIsLeftRunning(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	line, err := shell("echo started; sleep 600 & echo $! > " + pid).Output(t.Context())
	if line != "started" || err != nil {
		t.Errorf("got %q, %v", line, err)
	}
	left := readPID(t, pid)
	if err := syscall.Kill(left, 0); err != nil {
		t.Errorf("what was left running is gone: %v", err)
	}
	if err := syscall.Kill(left, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// At the end of its time the whole process group goes.
func TestProcessGroupIsKilled(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- shell("sleep 600 & echo $! > " + pid + "; wait").Run(ctx) }()
	testenv.Eventually(t, 10*time.Second, "the child", func() (bool, error) {
		b, err := os.ReadFile(pid)
		return strings.HasSuffix(string(b), "\n"), err
	})
	cancel()
	err := <-ended
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	child := readPID(t, pid)
	t.Cleanup(func() {
		if !gone(child) {
			_ = syscall.Kill(child, syscall.SIGKILL) // the test has failed
		}
	})
	testenv.Eventually(t, 10*time.Second, "the child to be gone", func() (bool, error) { return gone(child), nil })
}

func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	line, err := Command{Args: []string{"/usr/bin/id", "-u"}, User: "nobody"}.Output(t.Context())
	if err != nil || line == "0" {
		t.Errorf("user %s, error %v", line, err)
	}
	line, err = Command{Args: []string{"/usr/bin/id", "-u"}, User: "65534"}.Output(t.Context())
	if err != nil || line != "65534" {
		t.Errorf("user %s, error %v, want 65534", line, err)
	}
}

func readPID(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone tells whether a process runs no more: one that has ended and that nobody
// has waited for does not.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}
