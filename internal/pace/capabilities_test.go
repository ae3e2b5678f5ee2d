// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// capabilities are the sets of a process, by name, as its status tells them.
func capabilities(t *testing.T, status []byte, err error) map[string]uint64 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	sets := map[string]uint64{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(name, "Cap") {
			continue
		}
		var set uint64
		if _, err := fmt.Sscanf(strings.TrimSpace(value), "%x", &set); err != nil {
			t.Fatal(err)
		}
		sets[name] = set
	}
	return sets
}

// An engine's process may do nothing but what it is there for, and does it; the process
// that has started it may do what it could before.
func TestEngineHasNoCapabilities(t *testing.T) {
	testenv.RequireRoot(t)
	// What this process starts otherwise, since its own threads differ.
	others := func() map[string]uint64 {
		status, err := exec.Command("cat", "/proc/self/status").Output()
		return capabilities(t, status, err)
	}
	before := others()
	w := newWire(t)
	pid := 0
	p, log := newPacer(t, func(control int) (func() error, error) {
		wait, err := ownProcess(control)
		pid = childOf(t)
		return wait, err
	})
	p.Slot("hello").Set(w.conn(), hello("one"))
	for range 5 {
		if got := string(w.next()); got != "one" {
			t.Fatalf("got %q", got)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for name, set := range capabilities(t, status, err) {
		if most := uint64(1) << unix.CAP_IPC_LOCK; set&^most != 0 {
			t.Errorf("the engine has %s %#x, want no more than %#x", name, set, most)
		}
	}
	if log.has("real-time") {
		t.Errorf("the log says %s", log.lines)
	}
	if diff := cmp.Diff(before, others()); diff != "" {
		t.Errorf("other programs that this process starts (-before +after):\n%s", diff)
	}
}
