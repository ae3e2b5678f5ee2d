package health

import (
	"context"
	"fmt"

	"github.com/sluice-lb/sluice/internal/command"
	"github.com/sluice-lb/sluice/internal/lb"
)

// RunCheck runs a check once, bounded by its timeout and by ctx. It returns nil
// if the check passes, and else in a few words why not.
func RunCheck(ctx context.Context, c lb.Check) error {
	c.Timeout = positive(c.Timeout)
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	switch c.Type {
	case lb.CheckTCP, lb.CheckDNS, lb.CheckUDP:
		p := lb.Probe{Type: lb.ProbeType(c.Type), Timeout: c.Timeout, Query: c.Query, Send: c.Send, Expect: c.Expect}
		return Run(ctx, Target{Address: c.Address, Probe: p})
	case lb.CheckHTTP, lb.CheckHTTPS:
		return checkURLs(ctx, c)
	case lb.CheckExec:
		_, err := execute(ctx, command.Command{Args: c.Command, User: c.User}, c.Timeout)
		return err
	case lb.CheckProcess:
		return checkProcess(c)
	}
	return fmt.Errorf("run check: unknown type %q", c.Type)
}

// Inconclusive reports whether an error of RunCheck says something about this
// process only: it could open no socket, or start no program. Such a run has no
// result.
func Inconclusive(err error) bool { return inconclusive(err) }

// checkURLs asks for one after the other, all within one timeout.
func checkURLs(ctx context.Context, c lb.Check) error {
	for _, u := range c.URLs {
		p := lb.Probe{Type: lb.ProbeHTTP, Timeout: c.Timeout, Pages: []lb.Page{{Host: u.Host, Path: u.Path}}, Status: c.Status, Body: c.Body}
		if u.TLS {
			p.Type, p.TLS = lb.ProbeHTTPS, c.TLS
		}
		if err := Run(ctx, Target{Address: u.Address, Probe: p}); err != nil {
			return fmt.Errorf("%v: %w", u, err)
		}
	}
	return nil
}
