package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/l7"
)

func TestPrintVerdict(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	started := now.Add(-90 * time.Minute)
	running := control.Status{Node: "lb1", Running: true, Time: now, Started: &started}
	full := running
	full.VRRP = []control.Instance{{Name: "VI_1", State: "active"}, {Name: "VI_2", State: "backup"}}
	full.Services = []control.ServiceStatus{
		{Name: "web", Healthy: 2, Backends: make([]control.BackendStatus, 3)}, {Name: "mail", Healthy: 1, Backends: make([]control.BackendStatus, 1)},
	}
	one := running
	one.Services = []control.ServiceStatus{{Name: "web", Healthy: 1, Backends: make([]control.BackendStatus, 1)}}
	one.HTTP, one.DNS = &l7.Status{Servers: make([]l7.ServerStatus, 1)}, &dns.Status{Records: make([]dns.RecordStatus, 1)}
	fresh := running
	fresh.VRRP = []control.Instance{{Name: "VI_1", State: "initialize", Reason: "starting"}}
	wrong := full
	wrong.Problems = []string{"service web is down", "first\nsecond"}
	for _, tc := range []struct {
		name string
		s    control.Status
		err  error
		want string
		ok   bool
	}{
		{"nothing is wrong", full, nil, "ok: lb1: vrrp VI_1 active, VI_2 backup; 3 of 4 servers healthy in 2 services; up 1h30m0s\n", true},
		{"nothing is configured", running, nil, "ok: lb1: up 1h30m0s\n", true},
		{"one of each", one, nil, "ok: lb1: 1 of 1 server healthy in 1 service; 1 HTTP server; 1 DNS record; up 1h30m0s\n", true},
		{"it is starting", fresh, nil, "problem: lb1: vrrp instance VI_1 has not begun: starting\n", false},
		{"problems", wrong, nil, "problem: lb1: service web is down; first; second\n", false},
		{"no daemon", control.Status{Time: now, Problems: []string{"sluice is not running"}}, nil, "problem: sluice is not running\n", false},
		{"no answer", control.Status{}, errors.Join(errors.New("it hangs"), errors.New("ask again")), "problem: it hangs; ask again\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := printVerdict(&out, tc.s, tc.err)
			if out.String() != tc.want || (err == nil) != tc.ok || err != nil && !errors.Is(err, errReported) {
				t.Errorf("got %q, %v, want %q", out.String(), err, tc.want)
			}
		})
	}
}

func TestStatusFlagsThatExcludeEachOther(t *testing.T) {
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"sluice", "status", "--json", "--check"}, io.Discard, &stderr)
	if want := "sluice: --json and --check exclude each other: see `sluice status --help`\n"; code != exitUsage || stderr.String() != want {
		t.Errorf("code %d, stderr %q, want %d, %q", code, stderr.String(), exitUsage, want)
	}
}

// Monitoring reads nothing but standard output.
func TestStatusCheckOfAWrongFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, []byte("services: 7\nnonsense: s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"sluice", "--run-dir", dir, "--pin-dir", dir, "status", "--check", "-c", file}, &stdout, &stderr)
	if out := stdout.String(); code != exitFailed || !strings.HasPrefix(out, "problem: ") || strings.Count(out, "\n") != 1 || !strings.Contains(out, "nonsense") || strings.Contains(out, "s3cret") || stderr.Len() > 0 {
		t.Errorf("code %d, stdout %q, stderr %q, want a line with the mistakes, without what the file holds", code, out, stderr.String())
	}
}
