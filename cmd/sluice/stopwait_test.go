package main

import (
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/vrrp"
)

// systemd must not kill a daemon that waits for a peer: the unit's timeout is enough
// for usual intervals, and what the daemon asks for in any case.
func TestStopTimeoutExceedsTheWait(t *testing.T) {
	unit, err := os.ReadFile("../../docs/sluice.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit has no TimeoutStopSec in seconds")
	}
	seconds, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		version  vrrp.Version
		interval time.Duration
		least    time.Duration // Active_Down_Interval at its longest, and one interval
		unit     bool          // the unit's timeout is enough
	}{
		{"the classic pair", vrrp.V2, time.Second, 4996 * time.Millisecond, true},
		{"ten seconds", vrrp.V2, 10 * time.Second, 40996 * time.Millisecond, true},
		{"the longest of version 3", vrrp.V3, 40950 * time.Millisecond, 204 * time.Second, false},
		{"the longest of version 2", vrrp.V2, 255 * time.Second, 1020 * time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := vrrp.New(vrrp.Config{
				Name: "VI_1", Interface: "eth0", VRID: 51, Version: tt.version, Priority: 100, Interval: tt.interval,
				Addresses: []netip.Prefix{prefix("192.0.2.100/24")},
			}, vrrp.Deps{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			n := &node{cfg: &config.Config{}, routers: []*vrrp.Router{r}}
			if got := n.stopWait(); got <= tt.least {
				t.Errorf("the daemon asks for %v, and waits %v for a peer", got, tt.least)
			} else if enough := time.Duration(seconds)*time.Second > got; enough != tt.unit {
				t.Errorf("TimeoutStopSec=%d is enough for %v: %v, want %v", seconds, got, enough, tt.unit)
			}
		})
	}
	waits := &node{cfg: &config.Config{VRRP: []config.Instance{{SyncWait: 5 * time.Second}, {SyncWait: 40 * time.Second}}}}
	alone := waits.stopWait()
	waits.sharing = &sharing{}
	if got := waits.stopWait() - alone; got != 40*time.Second {
		t.Errorf("%v are for peers that are to have all connections, want 40s", got)
	}
	if got, want := stopping(1500*time.Millisecond), "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000"; got != want {
		t.Errorf("the daemon says %q, want %q", got, want)
	}
}
