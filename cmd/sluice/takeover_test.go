package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// A slowStore adds no address before it is let.
type slowStore struct {
	*vrrp.Addresses
	asked, let chan struct{}
}

func (s *slowStore) Add(iface string, vips []netip.Prefix, owner bool) error {
	s.asked <- struct{}{}
	<-s.let
	return s.Addresses.Add(iface, vips, owner)
}

// A node answers for a VIP from its takeover on, though its kernel is slow to add the
// address; when that is there, the kernel answers.
func TestTakeoverIsAnsweredBeforeTheAddressIsThere(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from     string // the asker
		address  string
		takeover string // its instance
	}{
		{"IPv4", "192.0.2.200", "192.0.2.100/24", "VI_1"},
		{"IPv6", "2001:db8::200", "2001:db8::100/64", "VI_6"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := viaRig(t, 0)
			h, vip := r.host("lb1"), netip.MustParsePrefix(tc.address)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			log := slog.New(slog.DiscardHandler)
			store := &slowStore{asked: make(chan struct{}, 1), let: make(chan struct{})}
			var datapath *loader.Datapath
			ended := make(chan error, 1)
			begin := func() (err error) {
				if datapath, err = loader.Open(loader.Options{PinDir: h.PinDir, MaxFlows: 20000, Slots: 1, Log: log, Ports: lb.PortRange{First: 1024, Last: 65535}}); err != nil {
					return err
				}
				if _, err := datapath.Attach([]string{"eth0"}, "auto"); err != nil {
					return err
				}
				fences, err := datapath.OpenFences(nil)
				if err != nil {
					return err
				}
				host, err := vrrp.OpenHost(log)
				if err != nil {
					return err
				}
				t.Cleanup(func() { host.Close() })
				if store.Addresses, err = vrrp.OpenAddresses(host, h.RunDir, log); err != nil {
					return err
				}
				router, err := vrrp.New(vrrp.Config{
					Name: tc.takeover, Interface: "eth0", VRID: 51, Version: vrrp.V3, Priority: 100, Interval: 100 * time.Millisecond,
					Addresses: []netip.Prefix{vip},
				}, vrrp.Deps{Network: host, Addresses: store, Log: log, Fence: fence{Fence: fences.Fence(51, []netip.Addr{vip.Addr()})}})
				if err != nil {
					return err
				}
				go func() { ended <- h.Do(func() error { return router.Run(ctx) }) }()
				return nil
			}
			if err := h.Do(begin); err != nil {
				t.Fatal(err)
			}
			defer datapath.Close()
			answered := func() uint64 {
				s, err := datapath.Stats()
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(s.Outcomes, func(o loader.Outcome) bool { return o.Name == "who_has" })
				return s.Outcomes[i].Packets
			}

			ask := r.askerFrom("client", netip.MustParseAddr(tc.from))
			select {
			case <-store.asked:
			case <-time.After(soon):
				t.Fatal("nobody takes over")
			}
			// It stands still now, and does not beat: nobody else has the VIP.
			ask.wait(vip.Addr(), "lb1")
			if r.has("lb1", vip.Addr()) {
				t.Fatal("the address is there already: nothing is shown here")
			}
			if answered() == 0 {
				t.Error("the program has answered nothing")
			}
			close(store.let)
			r.eventually(soon, "that the kernel alone answers", func() (bool, error) {
				before := answered()
				got := ask.answers(vip.Addr())
				if after := answered(); after > before || !slices.Equal(got, []string{"lb1"}) {
					return false, fmt.Errorf("%v answer, the program for %d of the questions", got, after-before)
				}
				return r.has("lb1", vip.Addr()), nil
			})
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
