package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Whoever asks what there is does not wait until a change of the tables is written.
func TestAskingWaitsForNobody(t *testing.T) {
	web := service("web", lb.DSR, 80, backends(2, 80))
	n := newFeedNode(t, lb.PortRange{First: 1024, Last: 33023}, web)
	vips := map[netip.Addr]bool{web.Addresses[0].VIP: true}

	n.mu.Lock() // as Apply does while it writes
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err := n.Stats()
		if err != nil || len(s.Services) != 1 || s.Services[0].Name != "web" || len(s.Services[0].Backends) != 2 {
			t.Errorf("stats: %+v, %v, want those of web and two backends", s.Services, err)
		}
		if all, err := n.Traffic(); err != nil || len(all) != 2 {
			t.Errorf("traffic of %d backends, %v, want of two", len(all), err)
		}
		if u := n.Upgraded(); u != nil {
			t.Errorf("upgraded: %+v", u)
		}
		if flows := n.feed.Translated(vips); flows != 0 {
			t.Errorf("%d flows are translated", flows)
		}
		if changes := n.feed.Unread(); changes != 0 {
			t.Errorf("%d changes are unread", changes)
		}
	}()
	select {
	case <-done:
		n.mu.Unlock()
	case <-time.After(10 * time.Second):
		n.mu.Unlock()
		<-done
		t.Error("who asked has waited for who writes")
	}

	// What has been written is shown, with the name and the moves of its slots.
	web.Backends = backends(3, 80)
	apply(t, n.Datapath, web)
	s, err := n.Stats()
	if err != nil || len(s.Services) != 1 || len(s.Services[0].Backends) != 3 || s.Services[0].Moves == nil {
		t.Errorf("stats after a change: %+v, %v, want three backends and what has moved", s.Services, err)
	}
}

// Whoever asks while backends with pairs of ports come and go, and when the data plane is
// closed, gets what there is, or an error.
func TestAskingBesideChanges(t *testing.T) {
	var n *feedNode
	quit := make(chan struct{})
	var all sync.WaitGroup
	t.Cleanup(func() { // the data plane is closed by then
		close(quit)
		all.Wait()
		if _, err := n.Stats(); !errors.Is(err, errClosed) {
			t.Errorf("stats when it is closed: %v, want %v", err, errClosed)
		}
	})
	n = newFeedNode(t, lb.PortRange{First: 1024, Last: 2047}, service("web", lb.NAT, 80, backends(2, 80)))
	vips := map[netip.Addr]bool{vipIP: true}
	ask := func(f func() error) {
		all.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				if err := f(); err != nil && !errors.Is(err, errClosed) {
					t.Error(err)
					return
				}
			}
		})
	}
	ask(func() error {
		s, err := n.Stats()
		if err == nil && (len(s.Services) != 1 || len(s.Services[0].Backends) < 1) {
			err = fmt.Errorf("stats of %d services", len(s.Services))
		}
		return err
	})
	ask(func() error { _, err := n.Traffic(); return err })
	feed := n.feed
	ask(func() error { feed.Translated(vips); feed.Unread(); return nil })
	for i := range 12 {
		if err := n.Apply(lb.Snapshot{Services: []lb.ServiceState{service("web", lb.NAT, 80, backends(1+i%3, 80))}}); err != nil {
			t.Fatal(err)
		}
		if err := n.Maintain(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Usage(); err != nil {
			t.Fatal(err)
		}
		n.changes()
	}
}
