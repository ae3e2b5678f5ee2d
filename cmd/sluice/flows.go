package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/loader"
)

func flowsCommand() *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "show the flows that are pinned to a backend or translated",
		Description: "In dsr and tunnel only flows of slots that have changed of late are kept, and those of UDP services with " +
			"affinity: flow; in nat all are. It works with the daemon running or dead. With --json it prints an " +
			"object for each flow on a line of its own, and then {\"summary\": {...}}.",
		Flags: append(configFlags(),
			&cli.StringFlag{Name: "service", Usage: "only flows of this service: `NAME`"},
			&cli.StringFlag{Name: "client", Usage: "only flows of this client: `IP`"},
			&cli.IntFlag{Name: "limit", Usage: "show no more than `N`; all are counted (0: show all)"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, a line for each flow"},
		),
		Action: func(c *cli.Context) error {
			var client netip.Addr
			if c.IsSet("client") {
				var err error
				if client, err = netip.ParseAddr(c.String("client")); err != nil {
					return &usageError{"flows ", fmt.Errorf("--client %q: want an IP address", c.String("client"))}
				}
			}
			if c.Int("limit") < 0 {
				return &usageError{"flows ", fmt.Errorf("--limit %d: want 0 or more", c.Int("limit"))}
			}
			return flows(c, client.Unmap())
		},
	}
}

func flows(c *cli.Context, client netip.Addr) (err error) {
	p, err := openPinned(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	names, err := serviceNames(c, p.Services())
	if err != nil {
		return err
	}
	service := c.String("service")
	if err := checkService(c.IsSet("service"), service, names); err != nil {
		return err
	}
	w := bufio.NewWriterSize(c.App.Writer, 1<<16)
	defer func() { err = errors.Join(err, w.Flush()) }()
	out := flowWriter{w: w, limit: c.Int("limit"), counts: map[loader.FlowKind]int{}}
	if c.Bool("json") {
		out.json = json.NewEncoder(w)
	}
	if err := p.Flows(func(f loader.Flow) error {
		f.Service = names[f.Number]
		if service != "" && f.Service != service || client.IsValid() && f.Client.Addr() != client {
			return nil
		}
		if err := c.Err(); err != nil {
			return err
		}
		return out.write(f)
	}); err != nil {
		return err
	}
	return out.end()
}

// checkService returns an error where a service is asked for that there is not.
func checkService(asked bool, name string, names map[uint16]string) error {
	var known []string
	for _, n := range names {
		if n != "" {
			known = append(known, n)
		}
		if n == name && name != "" {
			return nil
		}
	}
	if !asked {
		return nil
	}
	if len(known) == 0 {
		return fmt.Errorf("no service's name is known, as no daemon runs: give its configuration with -c")
	}
	slices.Sort(known)
	return fmt.Errorf("there is no service %q: there are %s", name, strings.Join(known, ", "))
}

// A flowWriter prints flows as they are read, and counts them.
type flowWriter struct {
	w      io.Writer
	json   *json.Encoder // nil: text
	limit  int           // of flows that are shown; 0: none
	shown  int
	counts map[loader.FlowKind]int
}

// flowColumns are wide enough for IPv4, so that no line waits for a later one.
const flowColumns = "%-9s  %-12s  %-12s  %-4s  %-21s  %-21s  %-21s  %-21s  %7s  %9s\n"

func (f *flowWriter) write(flow loader.Flow) error {
	f.counts[flow.Kind]++
	if f.limit > 0 && f.shown >= f.limit {
		return nil
	}
	f.shown++
	if f.json != nil {
		return f.json.Encode(flow)
	}
	if f.shown == 1 {
		if _, err := fmt.Fprintf(f.w, flowColumns, "KIND", "STATE", "SERVICE", "", "CLIENT", "VIP", "BACKEND", "SOURCE", "IDLE", "LEFT"); err != nil {
			return err
		}
	}
	source := "-"
	if flow.Source.IsValid() {
		source = flow.Source.String()
	}
	state := flow.State
	if state == "" {
		state = "-"
	}
	_, err := fmt.Fprintf(f.w, flowColumns, flow.Kind, state, nameOf(flow.Service), flow.Protocol, flow.Client, flow.VIP,
		flow.Backend, source, flow.Idle, flow.Left)
	return err
}

// end prints how many flows of each kind there are.
func (f *flowWriter) end() error {
	total := 0
	var parts []string
	for _, k := range loader.FlowKinds {
		total += f.counts[k]
		parts = append(parts, fmt.Sprintf("%d %s", f.counts[k], k))
	}
	if f.json != nil {
		summary := map[string]int{"total": total, "shown": f.shown}
		for _, k := range loader.FlowKinds {
			summary[string(k)] = f.counts[k]
		}
		return f.json.Encode(map[string]any{"summary": summary})
	}
	text := fmt.Sprintf("%d flows: %s", total, strings.Join(parts, ", "))
	if f.shown < total {
		text += fmt.Sprintf("; %d shown", f.shown)
	}
	_, err := fmt.Fprintln(f.w, text)
	return err
}
