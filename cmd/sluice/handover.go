package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/vrrp"
)

// openHolds reads which instances an operator holds back.
func (n *node) openHolds() (err error) {
	if n.holds, err = control.OpenHolds(filepath.Join(n.stateDir, "holds.json")); err != nil {
		return err
	}
	if alarm := n.holds.Alarm(); alarm != "" {
		n.log.Error(alarm)
	}
	return nil
}

// handovers makes what carries out `sluice handover`.
func (n *node) handovers(cfg *config.Config, routers []*vrrp.Router) *control.Handovers {
	var all []control.Movable
	for k, i := range cfg.VRRP {
		r := routers[k]
		all = append(all, control.Movable{
			Name: i.Name, Group: i.Group, Router: r, Others: len(i.Peers) > 0 || len(cfg.Nodes) > 1,
			Lacks: func() string { return n.lacks(context.Background(), handoverPatience) },
			Own:   func() bool { return i.Priority == vrrp.PriorityOwner && len(r.Status().Addresses) < len(i.Addresses) },
		})
	}
	return control.NewHandovers(n.holds, all, n.log)
}

func handoverCommand() *cli.Command {
	return &cli.Command{
		Name: "handover", Usage: "give the VIPs of an instance, or of all that are active here, to a peer", ArgsUsage: "[INSTANCE]",
		Description: "At any moment one node has the VIPs: they stay until the peer has taken over, and for good if none does (exit code 1). " +
			"This node is backup then for as long as that one is active.",
		Flags: append(configFlags(),
			&cli.BoolFlag{Name: "hold", Usage: "stay backup until --release, also if the peer fails or this daemon restarts"},
			&cli.BoolFlag{Name: "release", Usage: "take part in the election again"},
			&cli.BoolFlag{Name: "force", Usage: "try it also where no peer is known, or none has the state of connections"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: handOver,
	}
}

// handoverArgs reads the arguments, behind which flags may stand, too.
func handoverArgs(c *cli.Context) (o control.HandoverOrder, asJSON bool, err error) {
	o.Hold, o.Release, o.Force, asJSON = c.Bool("hold"), c.Bool("release"), c.Bool("force"), c.Bool("json")
	for _, arg := range c.Args().Slice() {
		switch {
		case arg == "--hold":
			o.Hold = true
		case arg == "--release":
			o.Release = true
		case arg == "--force":
			o.Force = true
		case arg == "--json":
			asJSON = true
		case strings.HasPrefix(arg, "-"):
			return o, asJSON, fmt.Errorf("flag %s is not known here; flags of the daemon's configuration stand before the instance", arg)
		case o.Instance != "":
			return o, asJSON, fmt.Errorf("unexpected %q: one instance at a time, or none for all", arg)
		default:
			o.Instance = arg
		}
	}
	if o.Hold && o.Release {
		return o, asJSON, errors.New("--hold and --release are opposites")
	}
	return o, asJSON, nil
}

func handOver(c *cli.Context) error {
	o, asJSON, err := handoverArgs(c)
	if err != nil {
		return &usageError{"handover ", err}
	}
	cfg, err := statusConfig(c)
	if err != nil {
		return err
	}
	results, err := control.SendHandover(c.Context, socket(cfg, c.String("run-dir")), o)
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("hand over: %w: start it first", err)
	}
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return printHandover(c, results, asJSON)
}

// printHandover prints what has become of an order: what went well on stdout, the
// rest on stderr.
func printHandover(c *cli.Context, results []control.HandoverResult, asJSON bool) error {
	var failed error
	for _, r := range results {
		to := c.App.Writer
		if !r.Done {
			failed = errReported
			to = c.App.ErrWriter
		}
		if !asJSON {
			fmt.Fprintf(to, "%s: %s\n", r.Instance, r.Text)
		}
	}
	if asJSON {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		if err := e.Encode(results); err != nil {
			return err
		}
	}
	return failed
}
