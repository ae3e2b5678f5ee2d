package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// Probe runs probes as the daemon does, beside its own runs.
func (d daemonOf) Probe(ctx context.Context, o control.ProbeOrder) ([]control.ProbeResult, error) {
	cfg := d.config()
	return control.RunProbes(ctx, askable(cfg), o, control.ProbeRunner{
		Probe: func(ctx context.Context, t health.Target) (string, error) { return health.Ask(ctx, t, d.probes) },
		Check: control.CheckRunner(cfg.Checks),
	})
}

// askable are services, upstreams, and the pools that dns has, each once.
func askable(cfg *config.Config) []lb.Service {
	all := slices.Clone(cfg.Services)
	for i := range cfg.HTTP.Upstreams {
		all = append(all, asService(&cfg.HTTP.Upstreams[i]))
	}
	pools := map[string]bool{}
	for i := range cfg.DNS.Records {
		r := &cfg.DNS.Records[i]
		if !pools[r.Pool.Name] {
			pools[r.Pool.Name] = true
			all = append(all, recordAsService(r))
		}
	}
	return all
}

func probeCommand() *cli.Command {
	return &cli.Command{
		Name: "probe", Usage: "probe the servers of all services, upstreams and pools of dns, or of one, now", ArgsUsage: "[NAME]",
		Description: "The daemon runs each health probe once, and prints what came back; the exit code is 1 if any fails. It changes no " +
			"verdict, and nothing that is served.",
		Flags:  append(configFlags(), &cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: probe,
	}
}

// probeArgs reads the arguments, behind which the flag may stand, too.
func probeArgs(c *cli.Context) (o control.ProbeOrder, asJSON bool, err error) {
	asJSON = c.Bool("json")
	for _, arg := range c.Args().Slice() {
		switch {
		case arg == "--json":
			asJSON = true
		case strings.HasPrefix(arg, "-"):
			return o, asJSON, fmt.Errorf("flag %s is not known here; flags of the daemon's configuration stand before the name", arg)
		case o.Service != "":
			return o, asJSON, fmt.Errorf("unexpected %q: one name at a time, or none for all", arg)
		default:
			o.Service = arg
		}
	}
	return o, asJSON, nil
}

func probe(c *cli.Context) error {
	o, asJSON, err := probeArgs(c)
	if err != nil {
		return &usageError{"probe ", err}
	}
	cfg, err := statusConfig(c)
	if err != nil {
		return err
	}
	results, err := control.SendProbe(c.Context, socket(cfg, c.String("run-dir")), o)
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("probe: %w: start it first", err)
	}
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	if err := printProbes(c.App.Writer, results, asJSON); err != nil {
		return err
	}
	for _, r := range results {
		if !r.OK {
			return errReported
		}
	}
	return nil
}

func printProbes(w io.Writer, results []control.ProbeResult, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	if len(results) == 0 {
		_, err := fmt.Fprintln(w, "nothing has health: there is nothing to probe")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tSERVER\tTYPE\tPATH\tRESULT\tANSWER\tTIME\tERROR")
	for _, r := range results {
		result, answer, server := "ok", r.Answer, r.Server.String()
		if r.Server.Port() == 0 { // it has none, nor is any needed
			server = r.Server.Addr().String()
		}
		if !r.OK {
			result = "failed"
		}
		if answer == "" {
			answer = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Service, server, r.Type, r.Path, result, answer, r.Took.Round(10*time.Microsecond), r.Error)
	}
	return t.Flush()
}
