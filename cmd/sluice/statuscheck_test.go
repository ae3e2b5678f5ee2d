package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
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
	wrong := full
	wrong.Problems = []string{"service web is down", "first\nsecond"}
	for _, tc := range []struct {
		name string
		s    control.Status
		err  error
		want string
		ok   bool
	}{
		{"nothing is wrong", full, nil, "ok: lb1: vrrp VI_1 active, VI_2 backup; 3 of 4 servers of 2 services are healthy; up 1h30m0s\n", true},
		{"nothing is configured", running, nil, "ok: lb1: up 1h30m0s\n", true},
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
