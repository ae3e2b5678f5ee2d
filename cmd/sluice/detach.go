package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

func detachCommand() *cli.Command {
	return &cli.Command{
		Name:  "detach",
		Usage: "remove what a stopped daemon has left: programs, maps, links and VIPs",
		Description: "Refuses while the daemon runs, and while this node holds a VIP: clients would lose it. " +
			"--force does it all the same, but never while the daemon runs.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Usage: "even while this node holds a VIP"}},
		Action: func(c *cli.Context) error {
			held, err := lock(c.String("run-dir"))
			if errors.Is(err, errLocked) {
				return fmt.Errorf("detach: %w: stop it first", err)
			}
			if err != nil {
				return err
			}
			defer held.Close()
			pins, err := lockPins(c.String("pin-dir"))
			if errors.Is(err, errLocked) {
				return fmt.Errorf("detach: %w: stop it first", err)
			}
			if err != nil {
				return err
			}
			if pins != nil {
				defer pins.Close()
			}
			return detach(c)
		},
	}
}

func detach(c *cli.Context) error {
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))
	host, err := vrrp.OpenHost(log)
	if err != nil {
		return err
	}
	defer host.Close()
	addresses, err := vrrp.OpenAddresses(host, c.String("run-dir"), log)
	if err != nil {
		return err
	}
	var vips []string
	gone, err := addresses.Forget(func(iface string, vip netip.Prefix) bool {
		if !c.Bool("force") {
			vips = append(vips, vip.String()+" on "+iface)
		}
		return !c.Bool("force")
	})
	if err != nil {
		return err
	}
	if len(vips) == 0 {
		settings, err := vrrp.OpenARPSettings(c.String("run-dir"), log)
		if err != nil {
			return err
		}
		if err := settings.Restore(); err != nil {
			return err
		}
	}
	if len(vips) > 0 {
		return fmt.Errorf("detach: this node holds %s, clients would lose it: hand it over first, or use --force", strings.Join(vips, ", "))
	}
	routes, err := vrrp.OpenRoutes(host, c.String("run-dir"), log)
	if err != nil {
		return err
	}
	if err := routes.Forget(vrrp.RouteSet{}); err != nil {
		return err
	}
	macs, err := vrrp.OpenMACFilters(host, c.String("run-dir"), log)
	if err != nil {
		return err
	}
	if err := macs.Forget(noMAC); err != nil {
		return err
	}
	freed, err := loader.Detach(c.String("pin-dir"))
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		fmt.Fprintf(c.App.Writer, "removed %s\n", join(gone))
	}
	if len(freed) == 0 {
		fmt.Fprintln(c.App.Writer, "nothing was attached")
		return nil
	}
	fmt.Fprintf(c.App.Writer, "detached from %s\n", strings.Join(freed, ", "))
	return nil
}
