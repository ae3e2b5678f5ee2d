package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/loader"
)

func decapCommand() *cli.Command {
	return &cli.Command{
		Name:  "decap",
		Usage: "decapsulate in XDP on a backend of tunnel services",
		Description: "Runs in the foreground on the backend. SIGTERM and SIGINT end decapsulation; a process that is " +
			"killed leaves it going on, and the next one takes over. Its pins are in the --pin-dir with -decap " +
			"behind its name.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "interface", Usage: "NIC by which tunnel packets come, may be repeated: `NAME`"},
			&cli.StringSliceFlag{Name: "vip", Usage: "VIP, may be repeated (default: the addresses on lo, as they come and go): `ADDRESS`"},
			&cli.StringFlag{Name: "mode", Value: string(loader.Auto), Usage: "XDP mode: auto, native or generic"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"},
			&cli.BoolFlag{Name: "status", Usage: "show where it is attached and what it counted"},
			&cli.BoolFlag{Name: "json", Usage: "with --status: print JSON"},
			&cli.BoolFlag{Name: "detach", Usage: "remove what a killed process has left"},
		},
		Action: func(c *cli.Context) error {
			d, err := newDecap(c)
			if err != nil {
				return &usageError{"decap ", err}
			}
			switch {
			case c.Bool("status"):
				return d.status(c.Bool("json"))
			case c.Bool("detach"):
				return d.detach()
			}
			return d.run(c.Context)
		},
	}
}

// A decap is the command with what its command line says.
type decap struct {
	options loader.DecapOptions
	stdout  io.Writer
}

// newDecap reads the command line. An error is one of usage.
func newDecap(c *cli.Context) (*decap, error) {
	d := &decap{stdout: c.App.Writer}
	d.options.PinDir = strings.TrimRight(c.String("pin-dir"), "/") + "-decap"
	switch {
	case c.Bool("status") && c.Bool("detach"):
		return nil, errors.New("--status and --detach exclude each other")
	case c.Bool("json") && !c.Bool("status"):
		return nil, errors.New("--json is for --status")
	case c.Bool("status") || c.Bool("detach"):
		for _, name := range []string{"interface", "vip", "mode"} {
			if c.IsSet(name) {
				return nil, fmt.Errorf("--%s is of no use with --status and --detach", name)
			}
		}
		return d, nil
	}

	for _, name := range c.StringSlice("interface") {
		if name == "" || slices.Contains(d.options.Interfaces, name) {
			return nil, fmt.Errorf("--interface %q is empty or given twice", name)
		}
		d.options.Interfaces = append(d.options.Interfaces, name)
	}
	if len(d.options.Interfaces) == 0 {
		return nil, errors.New("--interface is missing: name the NIC by which tunnel packets come")
	}
	for _, text := range c.StringSlice("vip") {
		vip, err := netip.ParseAddr(text)
		if err != nil || vip.Zone() != "" {
			return nil, fmt.Errorf("--vip %q: want an IPv4 or IPv6 address, without a prefix length", text)
		}
		if vip = vip.Unmap(); !vip.IsGlobalUnicast() {
			return nil, fmt.Errorf("--vip %v: that is no address that a VIP can have", vip)
		}
		d.options.VIPs = append(d.options.VIPs, vip)
	}
	d.options.Mode = loader.Mode(c.String("mode"))
	if !slices.Contains([]loader.Mode{loader.Auto, loader.Native, loader.Generic}, d.options.Mode) {
		return nil, fmt.Errorf("--mode %q: want auto, native or generic", d.options.Mode)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", c.String("log-level"))
	}
	d.options.Log = slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	return d, nil
}

// run decapsulates until ctx ends.
func (d *decap) run(ctx context.Context) (err error) {
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log may go
	before, err := d.lock()
	if err != nil {
		return err
	}
	defer before.Close()
	log := d.options.Log
	program, err := loader.OpenDecap(d.options)
	if err != nil {
		return fmt.Errorf("decap: %w", err)
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	if !d.isDirectory(before) { // it was made, or mounted over, only now
		held, err := d.lock()
		if err != nil {
			return err
		}
		defer held.Close()
	}

	inside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	following.Go(func() { program.Run(inside) })
	notify(log, daemon.SdNotifyReady)
	log.Info("decapsulating", "interfaces", d.options.Interfaces, "vips", d.options.VIPs)
	<-ctx.Done()

	notify(log, daemon.SdNotifyStopping)
	// Nothing may attach again what is detached now.
	stop()
	following.Wait()
	outcomes, err := program.Stats()
	if err != nil {
		return err
	}
	if _, err := loader.DetachDecap(d.options.PinDir); err != nil {
		return fmt.Errorf("decap: %w", err)
	}
	return printOutcomes(d.stdout, outcomes)
}

// lock keeps another decap off the pins; where there are none yet it returns nil,
// which may be closed all the same.
func (d *decap) lock() (*os.File, error) {
	held, err := lockPins(d.options.PinDir)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("decap: %w: one process serves all interfaces: stop it first", err)
	}
	return held, err
}

// isDirectory tells whether f is the directory of the pins as it is now.
func (d *decap) isDirectory(f *os.File) bool {
	if f == nil {
		return false
	}
	was, err := f.Stat()
	if err != nil {
		return false
	}
	is, err := os.Stat(d.options.PinDir)
	return err == nil && os.SameFile(was, is)
}

// running tells whether a decap holds the pins. Where that can't be found out it
// is false.
func (d *decap) running() bool {
	f, err := os.Open(d.options.PinDir)
	if err != nil {
		return false
	}
	defer f.Close()
	// A shared lock, so that two who look at once do not see each other.
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (d *decap) detach() error {
	held, err := d.lock()
	if err != nil {
		return err
	}
	defer held.Close()
	freed, err := loader.DetachDecap(d.options.PinDir)
	if err != nil {
		return fmt.Errorf("decap: %w", err)
	}
	if len(freed) == 0 {
		fmt.Fprintln(d.stdout, "nothing was attached")
		return nil
	}
	fmt.Fprintf(d.stdout, "detached from %s\n", strings.Join(freed, ", "))
	return nil
}

// decapStatus is what --status --json prints.
type decapStatus struct {
	Running    bool             `json:"running"` // else only what a killed process has left
	Interfaces []decapInterface `json:"interfaces"`
	Outcomes   []loader.Outcome `json:"outcomes"` // frames, since the counters were made
}

type decapInterface struct {
	Name    string      `json:"name"`
	Mode    loader.Mode `json:"mode,omitempty"`
	Warning string      `json:"warning,omitempty"`
}

func (d *decap) status(asJSON bool) error {
	in, err := loader.InspectDecap(d.options.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("decap: %w: start it with `sluice decap --interface NAME`", err)
	}
	if err != nil {
		return fmt.Errorf("decap: %w%s", err, advice(err))
	}
	s := decapStatus{Running: d.running(), Interfaces: []decapInterface{}, Outcomes: in.Outcomes}
	for _, a := range in.Attachments {
		s.Interfaces = append(s.Interfaces, decapInterface{a.Interface, a.Mode, a.Warning})
	}
	if asJSON {
		e := json.NewEncoder(d.stdout)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	if !s.Running {
		fmt.Fprintln(d.stdout, "problem: sluice decap is not running: addresses that come or go are not noticed")
	}
	for _, i := range s.Interfaces {
		if i.Warning != "" {
			fmt.Fprintf(d.stdout, "problem: %s\n", i.Warning)
			continue
		}
		fmt.Fprintf(d.stdout, "interface %s: XDP %s\n", i.Name, i.Mode)
	}
	return printOutcomes(d.stdout, s.Outcomes)
}

// printOutcomes prints a line for what was decapsulated, and for each other
// outcome that occurred.
func printOutcomes(w io.Writer, outcomes []loader.Outcome) error {
	var b strings.Builder
	for i, o := range outcomes {
		what := "passed to the kernel, "
		switch {
		case i == 0:
			what = ""
		case o.Packets == 0:
			continue
		case o.Dropped:
			what = "dropped, "
		}
		fmt.Fprintf(&b, "%s%s: %d\n", what, o, o.Packets)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
