package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// probedServices are one that is probed through two VIPs, one that is probed as a part
// of that is, one as healthy as a check, and one that is not probed.
func probedServices() []lb.Service {
	through := viaService(lb.DSR, "192.0.2.100:80", "192.0.2.101:80")
	again := viaService(lb.DSR, "192.0.2.100:80")
	again.Name = "again"
	direct := webService()
	direct.Name, direct.Pool.Probe = "direct", &lb.Probe{Type: lb.ProbeTCP, Timeout: time.Second, Port: 8080}
	check := byCheck("ok")
	check.Name = "check"
	none := webService()
	none.Name, none.Pool.Probe = "none", nil
	return []lb.Service{through, again, direct, check, none}
}

func TestRunProbes(t *testing.T) {
	const vip, second = "via VIP 192.0.2.100", "via VIP 192.0.2.101"
	at := netip.MustParseAddrPort
	ms := time.Millisecond
	for _, tt := range []struct {
		name, service string
		want          []ProbeResult
		runs          int
	}{
		{"all", "", []ProbeResult{
			{Service: "web", Server: at("192.0.2.12:80"), Type: "tcp", Path: vip, OK: true, Answer: "connected", Took: ms},
			{Service: "web", Server: at("192.0.2.12:80"), Type: "tcp", Path: second, Took: ms, Error: "no answer"},
			{Service: "again", Server: at("192.0.2.12:80"), Type: "tcp", Path: vip, OK: true, Answer: "connected", Took: ms},
			{Service: "direct", Server: at("192.0.2.12:8080"), Type: "tcp", Path: "direct", OK: true, Answer: "connected", Took: ms},
			{Service: "direct", Server: at("192.0.2.11:8080"), Type: "tcp", Path: "direct", OK: true, Answer: "connected", Took: ms},
			{Service: "check", Server: at("192.0.2.12:80"), Type: "check", Path: "check ok", Took: 2 * ms, Error: "check ok fails"},
			{Service: "check", Server: at("192.0.2.11:80"), Type: "check", Path: "check ok", Took: 2 * ms, Error: "check ok fails"},
		}, 5},
		{"one", "direct", []ProbeResult{
			{Service: "direct", Server: at("192.0.2.12:8080"), Type: "tcp", Path: "direct", OK: true, Answer: "connected", Took: ms},
			{Service: "direct", Server: at("192.0.2.11:8080"), Type: "tcp", Path: "direct", OK: true, Answer: "connected", Took: ms},
		}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				runs := 0
				count := func() {
					mu.Lock()
					defer mu.Unlock()
					runs++
				}
				got, err := RunProbes(t.Context(), probedServices(), ProbeOrder{tt.service}, ProbeRunner{
					Probe: func(_ context.Context, target health.Target) (string, error) {
						count()
						time.Sleep(ms)
						if target.Path.VIP == netip.MustParseAddr("192.0.2.101") {
							return "", errors.New("no answer")
						}
						return "connected", nil
					},
					Check: func(_ context.Context, name string) error {
						count()
						time.Sleep(2 * ms)
						return fmt.Errorf("check %s fails", name)
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got, cmpAddresses); diff != "" {
					t.Errorf("results (-want +got):\n%s", diff)
				}
				if runs != tt.runs {
					t.Errorf("%d runs, want %d", runs, tt.runs)
				}
			})
		})
	}
}

func TestRunProbesRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, service, want string
		services            []lb.Service
	}{
		{"no such service", "wep", `there is no service, upstream or pool of dns "wep": there are web, again, direct, check, none`, probedServices()},
		{"no service at all", "web", `there is no service, upstream or pool of dns "web", nor any other one`, nil},
		{"not probed", "none", `"none" has no health: its servers are not probed`, probedServices()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := RunProbes(t.Context(), tt.services, ProbeOrder{tt.service}, ProbeRunner{})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if got, err := RunProbes(t.Context(), probedServices()[4:], ProbeOrder{}, ProbeRunner{}); err != nil || got == nil || len(got) > 0 {
		t.Errorf("services without health: %v, %v, want an empty list", got, err)
	}
}

// A thousand servers are not probed all at once.
func TestRunProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := webService()
		s.Pool.Servers = nil
		for a := netip.MustParseAddr("198.51.100.0"); len(s.Pool.Servers) < 3*probesAtOnce; a = a.Next() {
			s.Pool.Servers = append(s.Pool.Servers, lb.Server{Address: a})
		}
		var mu sync.Mutex
		now, most := 0, 0
		began := time.Now()
		results, err := RunProbes(t.Context(), []lb.Service{s}, ProbeOrder{}, ProbeRunner{Probe: func(context.Context, health.Target) (string, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return "", nil
		}})
		if err != nil || len(results) != 3*probesAtOnce || most != probesAtOnce || time.Since(began) != 3*time.Second {
			t.Errorf("%d results, %v, %d at once, in %v", len(results), err, most, time.Since(began))
		}
	})
}

func TestCheckRunner(t *testing.T) {
	run := CheckRunner([]lb.Check{
		{Name: "good", Type: lb.CheckExec, Command: []string{"/bin/true"}, Timeout: time.Minute},
		{Name: "bad", Type: lb.CheckExec, Command: []string{"/bin/false"}, Timeout: time.Minute},
	})
	for name, want := range map[string]string{"good": "", "bad": "exit status 1", "gone": "the check is gone"} {
		got := ""
		if err := run(t.Context(), name); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// A client that goes away ends the probes that it asked for.
func TestAdminProbes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	if _, err := SendProbe(t.Context(), path, ProbeOrder{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	d := fakeDaemon{ended: make(chan struct{})}
	a, err := Listen(path, d, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got, err := SendProbe(t.Context(), path, ProbeOrder{"web"})
	if diff := cmp.Diff([]ProbeResult{{Service: "web", Answer: "connected", OK: true}}, got, cmpAddresses); diff != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, diff)
	}
	if _, err := SendProbe(t.Context(), path, ProbeOrder{"nobody"}); err == nil || err.Error() != errRefused.Error() {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := SendProbe(ctx, path, ProbeOrder{"ever"}); err == nil {
		t.Error("an answer without an end of the probes")
	}
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		t.Error("the probes go on")
	}
}
