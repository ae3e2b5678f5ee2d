package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The verdict on a check is the health of servers, and the priority of an instance
// besides: it is run once for both. A reload runs another check before servers are as
// healthy as that.
func TestHealthByCheck(t *testing.T) {
	const up, down, every = control.ServerUp, control.ServerDown, 200 * time.Millisecond
	r := newRig(t, testenv.Default(2))
	good, runs := filepath.Join(r.lab.Dir(), "good"), filepath.Join(r.lab.Dir(), "runs")
	script := r.file("front-ok", "#!/bin/sh", "echo run >> "+runs, "test -e "+good)
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	file := func(check, track string) string {
		return r.file("sluice.yaml", roster, fmt.Sprintf(`
checks:
  - {name: %s, type: exec, command: [%s], interval: %v, rise: 1, fall: 2}
pools:
  - name: web
    health: {check: %[1]s}
    servers: [{address: 192.0.2.11}, {address: 192.0.2.12}]
`, check, script, every), services(nat), vrrps(strings.TrimSuffix(pair, "}")+", start_timeout: 5m"+track+"}"))
	}
	path := file("front", ", track: [{check: front, weight: -20}]")
	began := time.Now()
	r.start("lb1", path)
	for _, step := range []struct {
		name     string
		change   func() error
		state    control.ServerState
		priority uint8
	}{
		{"the check fails at first", func() error { return nil }, down, 80},
		{"it passes", func() error { return os.WriteFile(good, nil, 0o600) }, up, 100},
		{"it fails", func() error { return os.Remove(good) }, down, 80},
		{"it passes again", func() error { return os.WriteFile(good, nil, 0o600) }, up, 100},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		r.waitServers("lb1", "nat", soon, step.state, step.state)
		s := r.waitStatus("lb1", soon, step.name, func(s control.Status) error {
			if s.VRRP[0].Priority != step.priority {
				return fmt.Errorf("priority %d, want %d", s.VRRP[0].Priority, step.priority)
			}
			return nil
		})
		if b := s.Services[0].Backends[0]; step.state == down && !strings.HasPrefix(b.Why, "check front fails: exit status 1") {
			t.Errorf("%s: the server is down: %q", step.name, b.Why)
		}
	}
	content, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	if got, most := strings.Count(string(content), "\n"), int(time.Since(began)/every)+2; got > most {
		t.Errorf("the check ran %d times, want %d at most", got, most)
	}

	// Without its verdict the reload would take the start_timeout.
	file("other", "")
	if got := r.wantRun(0, "lb1", "reload", "-c", path).stdout; !strings.Contains(got, "check other: added") || !strings.Contains(got, "service nat: health") {
		t.Errorf("the reload changes:\n%s", got)
	}
	s := r.mustStatus("lb1")
	if len(s.Checks) != 1 || s.Checks[0].Name != "other" {
		t.Errorf("checks after the reload: %+v", s.Checks)
	}
	for _, b := range s.Services[0].Backends {
		if b.State != up {
			t.Errorf("%v is %s after the reload: %s", b.Address, b.State, b.Why)
		}
	}
}
