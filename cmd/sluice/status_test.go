package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/loader"
)

// The text says how many source ports are in use where there are not many left.
func TestStatusShowsPorts(t *testing.T) {
	const said = "source ports in use"
	for _, tc := range []struct {
		name        string
		used, ports int
		why, want   string
	}{
		{"few", 699, 1000, "", ""},
		{"many", 700, 1000, "", "  700 of 1000 source ports in use\n"},
		{"all, of a server that is down", 1000, 1000, "refused", "  refused, 1000 of 1000 source ports in use\n"},
		{"none: no source NAT", 0, 0, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			now := time.Now()
			err := printStatus(&b, control.Status{Running: true, Time: now, Started: &now, Services: []control.ServiceStatus{{
				Name: "web", Backends: []control.BackendStatus{{
					Address: netip.MustParseAddrPort("192.0.2.11:80"), Why: tc.why, PortsUsed: tc.used, Ports: tc.ports,
				}},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == "" && strings.Contains(b.String(), said) || !strings.Contains(b.String(), tc.want) {
				t.Errorf("got\n%s\nwant %q", b.String(), tc.want)
			}
		})
	}
}

// What nobody knows, or lies in no past, is not made up.
func TestStatusOfTheMoment(t *testing.T) {
	now := time.Now()
	server := control.BackendStatus{Address: netip.MustParseAddrPort("192.0.2.11:80"), Slots: 7}
	moves := &loader.Moves{At: now.Add(7 * time.Millisecond), Changed: 7, Least: 7}
	for _, tc := range []struct {
		name   string
		status control.Status
		want   string
	}{
		{"weights of a dead daemon", control.Status{Services: []control.ServiceStatus{{Backends: []control.BackendStatus{server}}}}, "192.0.2.11:80 - - 7 "},
		{"a change in this moment", control.Status{Running: true, Started: &now, Services: []control.ServiceStatus{{Moves: moves}}}, "last change, 0s ago: 7 slots moved"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			tc.status.Time = now
			if err := printStatus(&b, tc.status); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(strings.Fields(b.String()), " "); !strings.Contains(got, tc.want) {
				t.Errorf("got\n%s\nwant %q", b.String(), tc.want)
			}
		})
	}
}
