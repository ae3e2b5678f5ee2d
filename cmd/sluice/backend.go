package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/l7"
)

// waitPoll is how often --wait asks.
const waitPoll = time.Second

func backendCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Usage: "show what is left of the backend's connections until nothing is"},
		&cli.DurationFlag{Name: "timeout", Usage: "how long to wait at most; 0: without end"},
	}
	var commands []*cli.Command
	for _, a := range []struct {
		action control.Action
		usage  string
	}{
		{control.Drain, "gives a backend nothing new; what it serves goes on"},
		{control.Disable, "takes a backend out at once, as if it had failed"},
		{control.Enable, "undoes drain and disable"},
		{control.Weight, "gives a backend another weight than the configured one"},
		{control.Reset, "undoes all of these"},
	} {
		args := "POOL_OR_SERVICE ADDRESS"
		if a.action == control.Weight {
			args += " N"
		}
		commands = append(commands, &cli.Command{
			Name: string(a.action), Usage: a.usage, ArgsUsage: args, Flags: append(configFlags(), flags...),
			Action: func(c *cli.Context) error { return changeBackend(c, a.action) },
		})
	}
	return &cli.Command{
		Name:  "backend",
		Usage: "change a backend while the daemon runs",
		Description: "A change of a pool is for all services that use it, that of a service for it alone, and counts more. " +
			"Changes are kept over restarts until they are undone.",
		Subcommands: commands,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return &usageError{"backend ", fmt.Errorf("%q is no action", c.Args().First())}
			}
			return &usageError{"backend ", errors.New("what is to be done is missing")}
		},
	}
}

// backendArgs reads the arguments, among which the flags may stand, too.
func backendArgs(c *cli.Context, action control.Action) (change control.Change, wait bool, timeout time.Duration, err error) {
	change.Action, wait, timeout = action, c.Bool("wait"), c.Duration("timeout")
	var words []string
	args := c.Args().Slice()
	for i := 0; i < len(args); i++ {
		name, value, ok := strings.Cut(args[i], "=")
		switch {
		case args[i] == "--wait":
			wait = true
		case name == "--timeout":
			if !ok && i+1 < len(args) {
				i++
				value = args[i]
			}
			if timeout, err = time.ParseDuration(value); err != nil {
				return change, wait, timeout, fmt.Errorf("--timeout %q: want a duration such as 90s", value)
			}
		case strings.HasPrefix(args[i], "-") && len(words) < 2:
			return change, wait, timeout, fmt.Errorf("flag %s is not known here; flags of the daemon's configuration stand before the arguments", args[i])
		default:
			words = append(words, args[i])
		}
	}
	want := 2
	if action == control.Weight {
		want = 3
	}
	if len(words) != want {
		return change, wait, timeout, fmt.Errorf("want %d arguments (%s), got %d", want, c.Command.ArgsUsage, len(words))
	}
	change.Scope, change.Address = words[0], words[1]
	if action == control.Weight {
		if change.Weight, err = strconv.Atoi(words[2]); err != nil || change.Weight < 0 || change.Weight > control.MaxWeight {
			return change, wait, timeout, fmt.Errorf("weight %q: want a number from 0 to %d", words[2], control.MaxWeight)
		}
	}
	return change, wait, timeout, nil
}

func changeBackend(c *cli.Context, action control.Action) error {
	change, wait, timeout, err := backendArgs(c, action)
	if err != nil {
		return &usageError{"backend " + string(action) + " ", err}
	}
	cfg, err := statusConfig(c)
	if err != nil {
		return err
	}
	path := socket(cfg, c.String("run-dir"))
	text, err := control.SendChange(c.Context, path, change)
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("%s a backend: %w: start it first", action, err)
	}
	if err != nil {
		return fmt.Errorf("%s a backend: %w", action, err)
	}
	fmt.Fprintln(c.App.Writer, text)
	if !wait {
		return nil
	}
	return waitDrained(c, path, change, timeout)
}

// waitDrained follows a backend until nothing is left of what it serves.
func waitDrained(c *cli.Context, path string, change control.Change, timeout time.Duration) error {
	ctx := c.Context
	started, last := time.Now(), ""
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	for {
		s, err := control.Ask(ctx, path)
		if err != nil {
			return err
		}
		left, text := remaining(s, change)
		if text != last {
			last = text
			fmt.Fprintln(c.App.Writer, text)
		}
		if !left {
			return nil
		}
		if timeout > 0 && time.Since(started) >= timeout {
			return fmt.Errorf("wait for %s: not drained after %v", change.Address, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// remaining tells whether anything is left of what a backend serves, and in words
// what it is.
func remaining(s control.Status, change control.Change) (bool, string) {
	slots, previous, pinned := 0, 0, 0
	counted, written := true, true
	done := map[control.Action]string{control.Drain: "drained", control.Disable: "disabled"}[change.Action]
	for _, v := range s.Services {
		if v.Name != change.Scope && v.Pool != change.Scope {
			continue
		}
		for _, b := range v.Backends {
			if b.Address.String() != change.Address && b.Address.Addr().String() != change.Address {
				continue
			}
			slots, previous = slots+b.Slots, previous+b.Previous
			pinned += max(0, b.Pinned)
			counted = counted && b.Pinned >= 0
			written = written && strings.HasPrefix(b.Override, done)
		}
	}
	requests := 0
	for _, b := range proxied(s, change) {
		requests += b.InFlight
	}
	switch {
	case slots > 0:
		return true, fmt.Sprintf("it serves: %d slots", slots)
	case !written: // what the tables hold is that of before
		return true, "the change is being written"
	case !counted:
		return true, "counting its connections"
	case previous > 0:
		return true, fmt.Sprintf("known so far: %s; others are found while the window of %d slots is open", count(pinned, "connection"), previous)
	case pinned > 0 && requests > 0:
		return true, count(pinned, "connection") + " and " + count(requests, "request") + " left"
	case pinned > 0:
		return true, count(pinned, "connection") + " left"
	case requests > 0:
		return true, count(requests, "request") + " left"
	}
	return false, "nothing is left"
}

// proxied are the servers of upstreams that a change is for.
func proxied(s control.Status, change control.Change) (all []l7.UpstreamServer) {
	if s.HTTP == nil {
		return nil
	}
	for _, u := range s.HTTP.Upstreams {
		if u.Name != change.Scope && u.Pool != change.Scope {
			continue
		}
		for _, b := range u.Servers {
			if b.Address.String() == change.Address || b.Address.Addr().String() == change.Address {
				all = append(all, b)
			}
		}
	}
	return all
}
