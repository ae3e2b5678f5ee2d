// Command sluice balances TCP and UDP in the kernel and moves virtual IP addresses
// between nodes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/loader"
)

// defaultConfig is read where -c does not say otherwise.
const defaultConfig = "/etc/sluice/sluice.yaml"

// The exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, args)
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "sluice: %v: see `sluice %s--help`\n", err, usage.command)
		return exitUsage
	case errors.Is(err, errReported):
		return exitFailed
	}
	fmt.Fprintf(stderr, "sluice: %v\n", err)
	return exitFailed
}

// errReported is the error of a command that has said what is wrong itself.
var errReported = errors.New("reported")

// A usageError is a command line that can't be understood.
type usageError struct {
	command string // with a space behind it, or nothing
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func newApp(stdout, stderr io.Writer) *cli.App {
	usage := func(c *cli.Context, err error, _ bool) error {
		command := ""
		if c != nil && c.Command != nil && c.Command.Name != "" && c.Command.Name != "sluice" {
			command = c.Command.Name + " "
		}
		return &usageError{command, err}
	}
	app := &cli.App{
		Name:           "sluice",
		Usage:          "a layer-4 load balancer in XDP, with VRRP",
		Writer:         stdout,
		ErrWriter:      stderr,
		Version:        version(),
		HideVersion:    true,
		OnUsageError:   usage,
		ExitErrHandler: func(*cli.Context, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "run-dir", EnvVars: []string{"SLUICE_RUN_DIR"}, Value: "/run/sluice",
				Usage: "`DIR` for the admin socket, the lock and the record of added addresses"},
			&cli.StringFlag{Name: "pin-dir", EnvVars: []string{"SLUICE_PIN_DIR"}, Value: loader.DefaultPinDir,
				Usage: "`DIR` on a BPF file system for what outlives the daemon"},
			&cli.StringFlag{Name: "state-dir", EnvVars: []string{"SLUICE_STATE_DIR"}, Value: "/var/lib/sluice",
				Usage: "`DIR` for what outlives a reboot: operators' changes, events"},
		},
		Commands: []*cli.Command{runCommand(), checkCommand(), statusCommand(), dropsCommand(), explainCommand(), flowsCommand(), backendCommand(), handoverCommand(), probeCommand(), eventsCommand(), reloadCommand(), detachCommand(), decapCommand(), keygenCommand(), versionCommand(), pacemakerCommand()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage(c, fmt.Errorf("%q is no command", c.Args().First()), false)
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.OnUsageError = usage
		// The library gives commands a help command of their own later.
		nested := len(command.Subcommands) > 0 || command.ArgsUsage != ""
		action := command.Action
		command.Action = func(c *cli.Context) error {
			if c.Args().Present() && !nested {
				return usage(c, fmt.Errorf("unexpected %q", strings.Join(c.Args().Slice(), " ")), false)
			}
			return action(c)
		}
	}
	return app
}

// configFlags are those of commands that read the configuration.
func configFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Value: defaultConfig, Usage: "configuration `FILE`"},
		&cli.StringFlag{Name: "node", Usage: "this node's `NAME` in nodes: (default: what the file says, else the host name)"},
	}
}
