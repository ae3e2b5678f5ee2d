package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
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
