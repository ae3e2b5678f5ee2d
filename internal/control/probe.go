package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A ProbeOrder is an operator's wish to have the health of servers probed now.
type ProbeOrder struct {
	Service string `json:"service"` // the name of a service, an upstream or a pool of dns; "": all
}

// A ProbeResult is what became of one run of a probe.
type ProbeResult struct {
	Service string         `json:"service"` // as in a ProbeOrder
	Server  netip.AddrPort `json:"server"`  // the port is the one that is probed
	Type    string         `json:"type"`
	// Path is "direct", "via VIP 192.0.2.100", or for a check, which sees no server,
	// "check NAME".
	Path   string        `json:"path"`
	OK     bool          `json:"ok"`
	Answer string        `json:"answer,omitempty"` // what came back, if anything did
	Took   time.Duration `json:"took_ns"`
	Error  string        `json:"error,omitempty"` // "" where OK
}

// A ProbeRunner runs probes and checks once, each within its timeout.
type ProbeRunner struct {
	Probe func(context.Context, health.Target) (answer string, err error)
	Check func(ctx context.Context, name string) error
}

// probesAtOnce bounds the runs that are under way at a time.
const probesAtOnce = 64

// RunProbes runs the probes of services, or of those of one name, once: beside those that
// verdicts come from, and without a consequence for any. What several servers or
// services have in common runs once. The order is that of the configuration.
func RunProbes(ctx context.Context, services []lb.Service, o ProbeOrder, r ProbeRunner) ([]ProbeResult, error) {
	if o.Service != "" {
		var named []lb.Service
		for _, s := range services {
			if s.Name == o.Service {
				named = append(named, s)
			}
		}
		switch {
		case len(named) == 0:
			return nil, noService(services, o.Service)
		case !slices.ContainsFunc(named, func(s lb.Service) bool { return s.Pool.Probe != nil }):
			return nil, fmt.Errorf("%q has no health: its servers are not probed", o.Service)
		}
		services = named
	}
	runs := map[string]*probeRun{}
	results, by := []ProbeResult{}, []*probeRun{} // parallel
	add := func(key string, result ProbeResult, do func() (string, error)) {
		if runs[key] == nil {
			runs[key] = &probeRun{do: do}
		}
		results, by = append(results, result), append(by, runs[key])
	}
	for _, s := range services {
		p := s.Pool.Probe
		if p == nil {
			continue
		}
		for _, server := range s.Pool.Servers {
			if server.Here {
				continue
			}
			result := ProbeResult{Service: s.Name, Server: endpoint(s, server), Type: string(p.Type), Path: "direct"}
			if p.Type == lb.ProbeCheck {
				result.Path = "check " + p.Check
				add(result.Path, result, func() (string, error) { return "", r.Check(ctx, p.Check) })
				continue
			}
			for _, t := range targetsOf(s, server) {
				result.Server = t.Endpoint()
				if t.Path != (lb.ProbePath{}) {
					result.Path = fmt.Sprintf("via VIP %v", t.Path.VIP)
				}
				add(t.Identity(), result, func() (string, error) { return r.Probe(ctx, t) })
			}
		}
	}
	runAll(runs)
	for i, run := range by {
		results[i].Answer, results[i].Took = run.answer, run.took
		if results[i].OK = run.err == nil; !results[i].OK {
			results[i].Error = run.err.Error()
		}
	}
	return results, ctx.Err()
}

// A probeRun is one run, which some results have in common.
type probeRun struct {
	do     func() (answer string, err error)
	answer string
	err    error
	took   time.Duration
}

func runAll(runs map[string]*probeRun) {
	free := make(chan struct{}, probesAtOnce)
	var all sync.WaitGroup
	for _, run := range runs {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			began := time.Now()
			run.answer, run.err = run.do()
			run.took = time.Since(began)
		})
	}
	all.Wait()
}

func noService(services []lb.Service, name string) error {
	var known []string
	for _, s := range services {
		if !slices.Contains(known, s.Name) {
			known = append(known, s.Name)
		}
	}
	if len(known) == 0 {
		return fmt.Errorf("there is no service, upstream or pool of dns %q, nor any other one", name)
	}
	return fmt.Errorf("there is no service, upstream or pool of dns %q: there are %s", name, strings.Join(known, ", "))
}

// CheckRunner returns how a ProbeRunner runs the checks of a configuration.
func CheckRunner(checks []lb.Check) func(ctx context.Context, name string) error {
	return func(ctx context.Context, name string) error {
		i := slices.IndexFunc(checks, func(c lb.Check) bool { return c.Name == name })
		if i < 0 {
			return errors.New("the check is gone")
		}
		return health.RunCheck(ctx, checks[i])
	}
}

// SendProbe has the daemon behind the socket probe servers now, and waits for the
// results. Where there is no daemon, the error is ErrNotRunning.
func SendProbe(ctx context.Context, socket string, o ProbeOrder) ([]ProbeResult, error) {
	var results []ProbeResult
	// How long it takes is a matter of the probes' timeouts.
	err := ask(ctx, 0, socket, http.MethodPost, "/probe", o, &results)
	return results, err
}
