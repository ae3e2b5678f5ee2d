package health

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestRunExec(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.11:80"), netip.MustParseAddrPort("[2001:db8::11]:80")
	shell := func(line string, args ...string) []string {
		return append([]string{"/bin/sh", "-c", line, "sh"}, args...)
	}
	for _, tt := range []struct {
		name    string
		server  netip.AddrPort
		probe   lb.Probe
		timeout time.Duration
		answer  string
		want    string
	}{
		{"passes", v4, lb.Probe{Command: []string{"/bin/true"}}, long, "exit code 0", ""},
		{"passes and talks", v4, lb.Probe{Command: shell("echo; echo all is well; echo more")}, long, "all is well", ""},
		{"fails", v4, lb.Probe{Command: []string{"/bin/false"}}, long, "", "exit status 1"},
		{"says why", v4, lb.Probe{Command: shell("echo no space >&2; exit 2")}, long, "no space", "no space (exit status 2)"},
		{"hangs", v4, lb.Probe{Command: []string{"/bin/sleep", "600"}}, short, "", "no end within 500ms: killed"},
		{"is not there", v4, lb.Probe{Command: []string{"/nonexistent"}}, long, "", "start: fork/exec /nonexistent: no such file or directory"},
		{"is not named", v4, lb.Probe{}, long, "", "run probe: there is no command"},
		{"knows its server", v4, lb.Probe{Command: shell("echo $SLUICE_SERVER $SLUICE_PORT")}, long, "192.0.2.11 80", ""},
		{"knows its server, IPv6", v6, lb.Probe{Command: shell("echo $SLUICE_SERVER $SLUICE_PORT")}, long, "2001:db8::11 80", ""},
		{"knows the port that is probed", v4, lb.Probe{Port: 8080, Command: shell("echo $SLUICE_SERVER $SLUICE_PORT")}, long, "192.0.2.11 8080", ""},
		{"placeholders", v4, lb.Probe{Port: 8080, Command: shell(`echo "$1" "$2"`, "a {address}:{port}", "{adress} {port")}, long, "a 192.0.2.11:8080 {adress} {port", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{Address: tt.server, Probe: tt.probe}
			target.Probe.Type, target.Probe.Timeout = lb.ProbeExec, tt.timeout
			ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
			defer cancel()
			answer, err := prober{}.ask(ctx, target)
			if diff := cmp.Diff([]string{tt.answer, tt.want}, []string{answer, text(err)}); diff != "" {
				t.Errorf("answer and result (-want +got):\n%s", diff)
			}
		})
	}
}

// When its time is over nothing of the command is left, whatever it has started.
func TestRunExecKillsTheGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	target := Target{Address: netip.MustParseAddrPort("192.0.2.11:80"), Probe: lb.Probe{
		Type: lb.ProbeExec, Timeout: time.Hour,
		Command: []string{"/bin/sh", "-c", fmt.Sprintf("sleep 600 & echo $! > %s.new; mv %[1]s.new %[1]s; wait", file)},
	}}
	done := make(chan error, 1)
	go func() { done <- Run(ctx, target) }()
	var content []byte
	eventually(t, "the command begins", func() (err error) {
		content, err = os.ReadFile(file)
		return err
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("a command that was killed passes")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "what it has started ends", func() error {
		if _, running := processName(pid); running {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// The user of a probe is who runs its command.
func TestRunExecAsAUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run programs as others")
	}
	target := Target{Address: netip.MustParseAddrPort("192.0.2.11:80"), Probe: lb.Probe{
		Type: lb.ProbeExec, Timeout: long, Command: []string{"/usr/bin/id", "-un"}, User: "nobody",
	}}
	answer, err := prober{}.ask(t.Context(), target)
	if answer != "nobody" || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
	target.Probe.User = "nobody-of-that-name"
	if got := text(Run(t.Context(), target)); got != "run /usr/bin/id as nobody-of-that-name: there is no such user" {
		t.Errorf("got %q", got)
	}
}
