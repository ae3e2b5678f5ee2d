package main

import (
	"testing"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/l7"
)

func TestRiskText(t *testing.T) {
	busy := &l7.Status{Servers: []l7.ServerStatus{{InFlight: 1}, {}, {InFlight: 2}}}
	for _, tc := range []struct {
		risk int
		http *l7.Status
		want string
	}{
		{0, nil, "a failover now would break no connection"},
		{0, &l7.Status{}, "a failover now would break no connection"},
		{1, nil, "a failover now would break 1 connection"},
		{7, nil, "a failover now would break 7 connections"},
		{0, busy, "a failover now would break no connection, beside those of 3 requests that http serves here"},
	} {
		if got := riskText(&control.SyncStatus{AtRisk: tc.risk}, tc.http); got != tc.want {
			t.Errorf("%d at risk: %q, want %q", tc.risk, got, tc.want)
		}
	}
}
