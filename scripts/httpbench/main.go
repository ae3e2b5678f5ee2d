// Httpbench measures what a request costs in the HTTP proxy, beside nginx and haproxy,
// and what clients cost it that are slow or say nothing. All of it happens on loopback in
// a network namespace of its own.
//
//	httpbench [--rounds N] [--length DURATION] [--clients N] [--cases NAME,...] [--sluice FILE]
//
// It prints a line for each figure, and leaves nothing behind. It needs root, nginx,
// haproxy, wrk, two CPUs, and a machine that does nothing else. docs/figures.md tells
// what is compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/scripts/rounds"
)

// What a run is, unless it is told otherwise.
const (
	usualRounds  = 5
	usualLength  = 3 * time.Second
	usualClients = 10000 // of slow and of idle ones
)

const usage = `usage: httpbench [--rounds N] [--length DURATION] [--clients N] [--cases NAME,...] [--sluice FILE]

  --rounds N         how many times each program is measured in each case (default %d)
  --length DURATION  of each measurement (default %v)
  --clients N        how many clients are slow, and how many idle (default %d, 0: do not measure them)
  --cases NAMES      which of %s (default all)
  --sluice FILE      the sluice program (default bin/sluice)
`

// errUsage has been explained to the user.
var errUsage = errors.New("usage")

func main() {
	if os.Getenv(actAsCrowd) != "" {
		if err := beCrowd(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "httpbench:", err)
			os.Exit(1)
		}
		return
	}
	// Ctrl-C ends what is going on, and what was built is still removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "httpbench:", err)
		os.Exit(1)
	}
}

// A task is what a command line asks for.
type task struct {
	rounds  int
	length  time.Duration
	clients int
	cases   []benchCase
	sluice  string // the program
}

func parse(args []string) (task, error) {
	flags := flag.NewFlagSet("httpbench", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, usage, usualRounds, usualLength, usualClients, strings.Join(rounds.Names(cases, nameOf), ", "))
	}
	var t task
	flags.IntVar(&t.rounds, "rounds", usualRounds, "")
	flags.DurationVar(&t.length, "length", usualLength, "")
	flags.IntVar(&t.clients, "clients", usualClients, "")
	chosen := flags.String("cases", "", "")
	sluice := flags.String("sluice", "bin/sluice", "")
	if err := flags.Parse(args); err != nil {
		return task{}, errUsage
	}
	if flags.NArg() > 0 || t.rounds < 1 || t.length < time.Second || t.clients < 0 || t.clients > 0 && t.clients < 10 {
		flags.Usage()
		return task{}, errUsage
	}
	var known bool
	if t.cases, known = rounds.Choose(cases, nameOf, *chosen); !known {
		flags.Usage()
		return task{}, errUsage
	}
	var err error
	if t.sluice, err = filepath.Abs(*sluice); err != nil {
		return task{}, fmt.Errorf("find sluice: %w", err)
	}
	return t, nil
}

func nameOf(c benchCase) string { return c.name }

// run measures slow and idle clients, then the cases: a minute after those with a connection for
// each request, the kernel forgets these connections on the proxy's CPU, tens of thousands of them.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	t, err := parse(args)
	if err != nil {
		return err
	}
	if err := rounds.Ready("httpbench", t.sluice); err != nil {
		return err
	}
	b, err := newBench(ctx, t)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	defer func() {
		if err != nil {
			b.printLogs(os.Stderr)
		}
		err = errors.Join(err, b.close())
	}()
	if t.clients > 0 {
		f := &figures{}
		if err := b.measureCrowds(ctx, f); err != nil {
			return err
		}
		f.print(out)
	}
	for _, c := range t.cases {
		f := &figures{}
		if err := b.measure(ctx, c, f); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		f.print(out)
	}
	return nil
}
