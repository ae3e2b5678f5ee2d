// Failover measures how long a client is without an answer when a VIP moves: from
// sluice to sluice, and from keepalived to keepalived, in turns. Each pair of nodes
// has a network of its own, in network namespaces.
//
//	failover [--rounds N] [--configurations NAME,...] [--sluice FILE]
//	failover --soak DURATION [--configurations NAME,...] [--sluice FILE]
//
// It prints a line for each figure, and leaves nothing behind. It needs root,
// keepalived, and a machine that does nothing else. docs/figures.md tells what is
// compared. With --soak it measures no move, but demands that there is none: see soak.
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
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/scripts/rounds"
)

const (
	// limit bounds the whole run. The usual one takes some nine minutes, most of them
	// spent waiting for advertisements that come every second; on a slower machine daemons
	// take their time to start, too.
	limit = 25 * time.Minute
	// usualRounds make a figure: their median.
	usualRounds = 7
)

const usage = `usage: failover [--rounds N] [--configurations NAME,...] [--sluice FILE]
       failover --soak DURATION [--configurations NAME,...] [--sluice FILE]

  --rounds N              how many times each event is measured (default %d)
  --soak DURATION         measure no event: a pair of sluice nodes is left alone for so long, on a busy machine
  --configurations NAMES  which of %s (default all; with --soak %s)
  --sluice FILE           the sluice program (default bin/sluice)
`

// errUsage has been explained to the user.
var errUsage = errors.New("usage")

func main() {
	if os.Getenv(actAsWatch) != "" {
		if err := watchStalls(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "failover:", err)
			os.Exit(1)
		}
		return
	}
	// Threads that wait in the kernel count as busy for a while: there must be room
	// for all of them, or one that is to measure waits for another.
	runtime.GOMAXPROCS(16)
	// Ctrl-C ends what is going on, and what was built is still removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

// A task is what a command line asks for.
type task struct {
	rounds         int
	soak           time.Duration // 0: events are measured
	configurations []configuration
	sluice         string // the program
}

func parse(args []string) (task, error) {
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, usage, usualRounds, strings.Join(rounds.Names(configurations, nameOf), ", "), strings.Join(soaked, ", "))
	}
	var t task
	flags.IntVar(&t.rounds, "rounds", usualRounds, "")
	flags.DurationVar(&t.soak, "soak", 0, "")
	chosen := flags.String("configurations", "", "")
	sluice := flags.String("sluice", "bin/sluice", "")
	if err := flags.Parse(args); err != nil {
		return task{}, errUsage
	}
	if flags.NArg() > 0 || t.rounds < 1 || t.soak < 0 {
		flags.Usage()
		return task{}, errUsage
	}
	if t.soak > 0 && *chosen == "" {
		*chosen = strings.Join(soaked, ",")
	}
	var known bool
	if t.configurations, known = rounds.Choose(configurations, nameOf, *chosen); !known {
		flags.Usage()
		return task{}, errUsage
	}
	var err error
	if t.sluice, err = filepath.Abs(*sluice); err != nil {
		return task{}, fmt.Errorf("find sluice: %w", err)
	}
	return t, nil
}

func nameOf(c configuration) string { return c.name }

// run measures one configuration after the other. One that goes wrong has no
// figures, and the run fails, but the others are still measured.
func run(ctx context.Context, args []string, out io.Writer) error {
	t, err := parse(args)
	if err != nil {
		return err
	}
	if err := rounds.Ready("failover", t.sluice); err != nil {
		return err
	}
	limit := limit
	if t.soak > 0 {
		limit = time.Duration(len(t.configurations)) * (t.soak + soakLimit)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the run has taken %v", limit))
	defer cancel()
	var errs []error
	for _, c := range t.configurations {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: not measured: %w", c.name, context.Cause(ctx)))
			continue
		}
		if t.soak > 0 {
			if err := soak(ctx, t, c, out); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			}
			continue
		}
		f := &figures{}
		if err := measure(ctx, t, c, f); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			continue
		}
		f.print(out)
	}
	return errors.Join(errs...)
}

// measure measures one configuration: a pair of each program, in turns.
func measure(ctx context.Context, t task, c configuration, f *figures) (err error) {
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			if err != nil {
				p.printLogs(os.Stderr)
			}
			err = errors.Join(err, p.close())
		}
	}()
	programs := []program{&sluice{path: t.sluice, keys: c.sluice, key: c.key}}
	if c.keepalived != nil {
		programs = append(programs, &keepalived{dialect: *c.keepalived})
	}
	for _, program := range programs {
		p, err := newPair(ctx, program)
		if err != nil {
			return fmt.Errorf("%s: set up: %w", program.name(), err)
		}
		pairs = append(pairs, p)
	}
	for n := range t.rounds {
		for _, p := range pairs {
			began := time.Now()
			if err := p.round(ctx, c.name, f); err != nil {
				return fmt.Errorf("round %d of %s: %w", n+1, p.program.name(), err)
			}
			fmt.Fprintf(os.Stderr, "failover: %s: round %d of %d of %s took %v\n",
				c.name, n+1, t.rounds, p.program.name(), time.Since(began).Round(100*time.Millisecond))
		}
	}
	return nil
}
