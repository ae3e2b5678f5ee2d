package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Of the test below.
const (
	deathInterval = time.Second
	deathTimeout  = 500 * time.Millisecond
	deathFall     = 3
	// deathSlack is what a busy machine adds.
	deathSlack  = 2 * time.Second
	deathProbes = `health: {type: tcp, interval: 1s, timeout: 500ms, rise: 1, fall: 3}`
)

// knocks opens connections from a host, one every few milliseconds, until it is
// stopped. It returns when the last one that failed was begun, zero if none
// failed, and how many succeeded and failed.
func (r *rig) knocks(from string, to netip.AddrPort) (stop func() (lastFailed time.Time, good, bad int)) {
	r.Helper()
	const pause, patience = 10 * time.Millisecond, 700 * time.Millisecond
	var (
		mu        sync.Mutex
		last      time.Time
		good, bad int
		knocking  sync.WaitGroup
	)
	ctx, cancel := context.WithCancel(r.Context())
	knock := func() {
		began := time.Now()
		// Not of the context that ends the knocking: who has begun goes on.
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		conn, err := r.host(from).Dial(attempt, "tcp", to.String())
		if err == nil {
			err = conn.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			good++
			return
		}
		bad++
		if began.After(last) {
			last = began
		}
	}
	knocking.Go(func() {
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				knocking.Go(knock)
			}
		}
	})
	end := sync.OnceFunc(func() {
		cancel()
		knocking.Wait()
	})
	r.Cleanup(end)
	return func() (time.Time, int, int) {
		end()
		return last, good, bad
	}
}

// A backend that dies, its process and its interface, gets nothing new within
// interval x fall. Its old connections are reset on their next packet, those that
// spoke into the void with the first that they send again, and nobody else's.
func TestBackendDies(t *testing.T) {
	const count = 600
	for _, m := range forwardModes {
		t.Run(m.name, func(t *testing.T) {
			clients := testenv.Addresses(prefix("192.0.2.200/24"), 20)
			r := newModeRig(t, m, withAddresses(testenv.Default(3), "client", clients...))
			processes := map[string]*testenv.Process{}
			for i := range 3 {
				name := fmt.Sprintf("b%d", i+1)
				processes[name] = r.startEcho(name)
			}
			r.start("lb1", r.file("sluice.yaml", roster,
				"pools:\n  - {name: web, "+deathProbes+", servers: [{address: 192.0.2.11}, {address: 192.0.2.12}, {address: 192.0.2.13}]}\n",
				services(m.service("dies", m.vip, "web")), vrrps(pair)))
			r.waitReady("lb1")
			service := netip.AddrPortFrom(m.vip, 80)
			c := r.crowd("client", clients...)
			c.mustOpen([]netip.AddrPort{service}, count)
			dead := slices.DeleteFunc(slices.Clone(c.members), func(m *member) bool { return m.backend != "b2" })
			alive := slices.DeleteFunc(slices.Clone(c.members), func(m *member) bool { return m.backend == "b2" })
			stopKnocks := r.knocks("client", service)

			// Cut first: a machine that is gone does not even say goodbye.
			died := time.Now()
			if err := r.host("b2").LinkDown(); err != nil {
				t.Fatal(err)
			}
			r.kill(processes["b2"])
			// A few speak at once, before anybody knows.
			speaking := make(chan error, 1)
			early, late := dead[:20], dead[20:]
			go func() { speaking <- each(len(early), func(i int) error { return early[i].say("too early") }) }()

			r.waitServers("lb1", "dies", soon, control.ServerUp, control.ServerDown, control.ServerUp)
			noticed := time.Since(died)
			r.eventually(soon, "b2 out of the table", func() (bool, error) {
				v, err := serviceOf(r.mustStatus("lb1"), "dies")
				return err == nil && v.Backends[1].Slots == 0, err
			})
			answered := make([]time.Duration, len(late))
			err := each(len(late), func(i int) error {
				began := time.Now()
				err := late[i].say("are you there?")
				answered[i] = time.Since(began)
				return err
			})
			wantReset(t, "after the backend was found dead", err, len(late))
			last, good, bad := stopKnocks()
			earlyErr := <-speaking
			earlyAfter := time.Since(died)
			wantReset(t, "before the backend was found dead", earlyErr, len(early))
			if err := each(len(alive), func(i int) error { return alive[i].say("and you?") }); err != nil {
				t.Errorf("connections of other backends: %v", err)
			}
			c.members = alive
			fresh := c.mustOpen([]netip.AddrPort{service}, 200)
			if got := backends(fresh); got["b2"] > 0 || got["b1"] == 0 || got["b3"] == 0 {
				t.Errorf("new connections are with %v", got)
			}
			c.talk("after the death of b2")

			t.Logf("b2 was found dead after %v; of %d new connections the last to fail, of %d, began %v after its death",
				noticed.Round(time.Millisecond), good+bad, bad, last.Sub(died).Round(time.Millisecond))
			t.Logf("%d connections were reset within %v; those that spoke at once, %v after the death",
				len(late), slices.Max(answered).Round(time.Microsecond), earlyAfter.Round(time.Millisecond))
			if bad == 0 {
				t.Error("no new connection went to the dead backend: it was not dead")
			}
			if within := deathInterval*deathFall + deathTimeout + deathSlack; last.Sub(died) > within {
				t.Errorf("a new connection failed that began %v after the death, want none after %v", last.Sub(died), within)
			}
		})
	}
}

// wantReset fails unless all of so many connections were reset.
func wantReset(t *testing.T, when string, err error, count int) {
	t.Helper()
	var all *tally
	if !errors.As(err, &all) || all.reset != count || !errors.Is(all.first, syscall.ECONNRESET) {
		t.Errorf("%d connections that speak %s: %v; want all reset", count, when, err)
	}
}
