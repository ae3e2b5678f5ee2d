package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/vrrp"
)

// Dependencies of a router that must not begin.
type (
	noNetwork   struct{ vrrp.Network }
	noAddresses struct{ vrrp.AddressStore }
)

// A node whose data plane is never written takes no part in the election,
// however long that lasts, nor does an instance that tracks what is not known.
func TestNoElectionBeforeTheDataPlaneAndWhatIsTracked(t *testing.T) {
	for _, tt := range []struct {
		name           string
		written, known bool
	}{
		{"neither", false, false}, {"tables not written", false, true}, {"not known what is tracked", true, false},
	} {
		t.Run(tt.name, func(t *testing.T) { wantNoElection(t, tt.written, tt.known) })
	}
}

func wantNoElection(t *testing.T, ready ...bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, err := vrrp.New(vrrp.Config{
			Name: "VI_1", Interface: "eth0", VRID: 51, Version: vrrp.V3, Priority: 100, Interval: time.Second,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/24")},
		}, vrrp.Deps{Network: noNetwork{}, Addresses: noAddresses{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		n := &node{log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			var all []<-chan struct{}
			for _, yes := range ready {
				c := make(chan struct{})
				if yes {
					close(c)
				}
				all = append(all, c)
			}
			n.runRouter(ctx, t.Context(), r, all...)
			close(done)
		}()
		time.Sleep(time.Hour) // virtual
		if got := r.Status().State; got != vrrp.Initialize {
			t.Errorf("state is %v, want %v", got, vrrp.Initialize)
		}
		stop()
		<-done
		if _, err := r.Release(t.Context()); !errors.Is(err, vrrp.ErrNotRunning) {
			t.Errorf("release: got %v, want %v", err, vrrp.ErrNotRunning)
		}
	})
}
