package main

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// openPinned opens what is in the kernel, whether the daemon runs or not.
func openPinned(c *cli.Context) (*loader.Pinned, error) {
	p, err := loader.OpenPinned(c.String("pin-dir"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notPinned(c)
	}
	return p, err
}

// serviceNames returns the names of services, by number: those that the daemon
// knows, or, where none runs, those of the configuration.
func serviceNames(c *cli.Context, views []loader.ServiceView) (map[uint16]string, error) {
	cfg, err := statusConfig(c)
	if err != nil {
		return nil, err
	}
	var known []control.ServiceStatus
	for _, v := range views {
		known = append(known, control.ServiceStatus{Addresses: v.Addresses, Protocol: v.Protocol.String()})
	}
	if s, err := control.Ask(c.Context, socket(cfg, c.String("run-dir"))); err == nil {
		takeNames(known, s.Services)
	} else if cfg != nil {
		nameServices(known, cfg)
	}
	names := map[uint16]string{}
	for i, v := range views {
		names[v.Number] = known[i].Name
	}
	return names, nil
}

// takeNames gives services the names of those that have an address in common with
// them.
func takeNames(services, named []control.ServiceStatus) {
	for i, s := range services {
		for _, n := range named {
			if s.Protocol == n.Protocol && len(n.Addresses) > 0 && slices.ContainsFunc(s.Addresses, func(f lb.Frontend) bool {
				return f.VIP == n.Addresses[0].VIP && f.Ports.Contains(n.Addresses[0].Port())
			}) {
				services[i].Name = n.Name
			}
		}
	}
}

// nameOf is a service's name for people.
func nameOf(name string) string {
	if name == "" {
		return "(name not known)"
	}
	return name
}
