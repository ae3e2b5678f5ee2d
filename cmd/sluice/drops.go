package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/loader"
)

func dropsCommand() *cli.Command {
	return &cli.Command{
		Name:  "drops",
		Usage: "show how many packets are dropped, by reason, and how fast",
		Description: "Counts twice, --interval apart. It works with the daemon running or dead. With --json it prints an object " +
			"on a line of its own, with --watch one for each interval.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "watch", Usage: "go on until interrupted"},
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "over which rates are measured"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *cli.Context) error {
			if c.Duration("interval") <= 0 {
				return &usageError{"drops ", fmt.Errorf("--interval %v: want more than 0", c.Duration("interval"))}
			}
			return drops(c)
		},
	}
}

// A dropCount is what one look at the counters says.
type dropCount struct {
	Time    time.Time    `json:"time"`
	Total   uint64       `json:"packets"`
	Rate    float64      `json:"packets_per_second"`
	Reasons []dropReason `json:"reasons"` // all, in the order of the program
}

type dropReason struct {
	Name    string  `json:"name"`
	Packets uint64  `json:"packets"` // since the data plane was loaded
	Rate    float64 `json:"packets_per_second"`
	Meaning string  `json:"meaning"`
	Advice  string  `json:"advice"`
}

func drops(c *cli.Context) (err error) {
	p, err := openPinned(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	then := time.Now()
	before, err := p.Outcomes()
	if err != nil {
		return err
	}
	ticker := time.NewTicker(c.Duration("interval"))
	defer ticker.Stop()
	for {
		select {
		case <-c.Done():
			return nil // interrupted, which is how --watch ends
		case <-ticker.C:
		}
		now := time.Now()
		after, err := p.Outcomes()
		if err != nil {
			return err
		}
		count := countDrops(before, after, now, now.Sub(then))
		if c.Bool("json") {
			err = json.NewEncoder(c.App.Writer).Encode(count)
		} else {
			err = printDrops(c.App.Writer, count)
		}
		if err != nil || !c.Bool("watch") {
			return err
		}
		before, then = after, now
	}
}

// countDrops compares two looks at the counters.
func countDrops(before, after []loader.Outcome, now time.Time, apart time.Duration) dropCount {
	d := dropCount{Time: now, Reasons: []dropReason{}}
	for i, o := range after {
		if !o.Dropped {
			continue
		}
		m := loader.OutcomeMeanings[o.Name]
		r := dropReason{Name: o.Name, Packets: o.Packets, Meaning: m.Text, Advice: m.Advice}
		r.Rate = float64(o.Packets-before[i].Packets) / apart.Seconds()
		d.Total += r.Packets
		d.Rate += r.Rate
		d.Reasons = append(d.Reasons, r)
	}
	return d
}

// printDrops prints the reasons for which any packet was dropped.
func printDrops(w io.Writer, d dropCount) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tPACKETS\tPER SECOND\tMEANING\n", d.Time.Format(time.TimeOnly))
	for _, r := range d.Reasons {
		if r.Packets > 0 {
			fmt.Fprintf(t, "%s\t%d\t%.1f\t%s\n", r.Name, r.Packets, r.Rate, r.Meaning)
		}
	}
	fmt.Fprintf(t, "total\t%d\t%.1f\t\n", d.Total, d.Rate)
	return t.Flush()
}
