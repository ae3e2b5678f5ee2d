package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
)

// lastFollowed is how many events --follow begins with.
const lastFollowed = 10

// daemonPoll is how often --follow looks whether a daemon is there again.
const daemonPoll = time.Second

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show what happened",
		Description: "States of VRRP instances, servers and checks, alarms, operators' changes, starts and stops of the daemon. " +
			"With the daemon dead it reads the file that they are kept in. With --json it prints an object on a line for each.",
		Flags: append(configFlags(),
			&cli.StringFlag{Name: "since", Usage: "only what happened in the last `TIME`, such as 1h, or since one, such as 2026-01-02T15:04:05Z"},
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"},
				Usage: fmt.Sprintf("go on with what happens, until interrupted; without --since it begins with the last %d", lastFollowed)},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: func(c *cli.Context) error {
			since, err := parseSince(c.String("since"), time.Now())
			if err != nil {
				return &usageError{"events ", err}
			}
			cfg, err := statusConfig(c)
			if err != nil {
				return err
			}
			r := &eventReader{
				socket: socket(cfg, c.String("run-dir")), file: filepath.Join(c.String("state-dir"), eventsFile),
				out: c.App.Writer, json: c.Bool("json"), since: since,
			}
			if !c.Bool("follow") {
				return r.show(c.Context)
			}
			return r.follow(c.Context, !c.IsSet("since"))
		},
	}
}

// parseSince reads a time, or how long ago it is.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, fmt.Errorf("--since %q: want a duration such as 1h, or a time such as 2026-01-02T15:04:05Z", s)
	}
	return at, nil
}

// An eventReader prints events, each once.
type eventReader struct {
	socket, file string
	out          io.Writer
	json         bool
	since        time.Time

	last uint64 // number of the latest one that is printed, or left out
}

// show prints what there is.
func (r *eventReader) show(ctx context.Context) error {
	all, err := r.kept(ctx)
	for _, e := range all {
		if err == nil {
			err = r.print(e)
		}
	}
	return err
}

// kept returns all events that are kept: those that the daemon knows, or, where none
// runs, those in the file.
func (r *eventReader) kept(ctx context.Context) (all []events.Event, err error) {
	err = control.AskEvents(ctx, r.socket, 0, false, func(e events.Event) error {
		all = append(all, e)
		return nil
	})
	if !errors.Is(err, control.ErrNotRunning) {
		return all, err
	}
	all, fileErr := events.Read(r.file)
	if errors.Is(fileErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w, and no events are kept in %s: start it with `sluice run`, or give its --state-dir", err, r.file)
	}
	if fileErr != nil {
		return nil, fmt.Errorf("%w, and its events can't be read: %w%s", err, fileErr, advice(fileErr))
	}
	return all, nil
}

// follow prints the last events, or those since r.since, and goes on until ctx
// ends, over restarts of the daemon.
func (r *eventReader) follow(ctx context.Context, few bool) error {
	all, err := r.kept(ctx)
	if err != nil {
		return err
	}
	if n := len(all) - lastFollowed; few && n > 0 {
		r.last, all = all[n-1].Seq, all[n:]
	}
	for _, e := range all {
		if err := r.print(e); err != nil {
			return err
		}
	}
	for {
		var broken error // the output is
		err := control.AskEvents(ctx, r.socket, r.last, true, func(e events.Event) error {
			broken = r.print(e)
			return broken
		})
		if broken != nil || ctx.Err() != nil {
			return broken // interrupted: that is how it ends
		}
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w%s", err, advice(err))
		}
		if errors.Is(err, control.ErrNotRunning) {
			if err := r.rest(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(daemonPoll): // for the next daemon
		}
	}
}

// rest prints what a daemon that is gone has said last.
func (r *eventReader) rest() error {
	all, err := events.Read(r.file)
	if err != nil {
		return nil // the next daemon knows, if anybody
	}
	for _, e := range all {
		if e.Seq <= r.last {
			continue
		}
		if err := r.print(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *eventReader) print(e events.Event) error {
	r.last = e.Seq
	if e.Time.Before(r.since) {
		return nil
	}
	if r.json {
		return json.NewEncoder(r.out).Encode(e)
	}
	_, err := fmt.Fprintf(r.out, "%s  %-15s  %v\n", e.Time.Format("2006-01-02T15:04:05.000Z07:00"), e.Type, e)
	return err
}
