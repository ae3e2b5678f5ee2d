// Lab builds the network of a sluice pair on one machine, in network
// namespaces: a client, two nodes and three backends with real nginx.
//
//	lab demo          shows the main job, checks it, and leaves nothing behind
//	lab up            leaves the network up, with sluice running on both nodes
//	lab shell NODE    opens a shell on a host of it
//	lab down          removes it
//
// It needs root, nginx and ip.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

const usage = `usage: lab [--sluice FILE] COMMAND

  demo          shows the main job and checks it; leaves nothing behind
  up            leaves the network up
  shell NODE    opens a shell on client, lb1, lb2, b1, b2 or b3
  down          removes the network

  --sluice FILE   the sluice program (default bin/sluice)
`

// errUsage has been explained to the user.
var errUsage = errors.New("usage")

func main() {
	// Ctrl-C ends what is going on, and what was built is still removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	sluice := flags.String("sluice", "bin/sluice", "")
	// Flags may stand before, between and after the words of the command.
	var words []string
	for rest := args; ; rest = flags.Args()[1:] {
		if err := flags.Parse(rest); err != nil {
			return errUsage
		}
		if flags.NArg() == 0 {
			break
		}
		words = append(words, flags.Arg(0))
	}
	path, err := filepath.Abs(*sluice)
	if err != nil {
		return fmt.Errorf("find sluice: %w", err)
	}
	switch {
	case slices.Equal(words, []string{"demo"}):
		return demo(ctx, path, os.Stdout)
	case slices.Equal(words, []string{"up"}):
		return up(ctx, path)
	case slices.Equal(words, []string{"down"}):
		return down()
	case len(words) == 2 && words[0] == "shell":
		return shell(words[1], path)
	}
	flags.Usage()
	return errUsage
}
