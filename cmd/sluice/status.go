package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// status is what the daemon answers.
func (n *node) status() control.Status {
	now, cfg := time.Now(), n.config()
	var on []loader.Attachment
	if n.tables != nil {
		on = n.tables.where()
	}
	s := control.Status{
		Node: cfg.Node, Version: version(), Config: cfg.File, Time: now, Running: true,
		PID: os.Getpid(), Started: &n.started, Forwarding: len(on) > 0,
		Interfaces: []control.Interface{}, VRRP: []control.Instance{}, Services: []control.ServiceStatus{},
		Checks: control.Checks(n.tracker.Checks()), Outcomes: []loader.Outcome{},
	}
	for _, a := range on {
		s.Interfaces = append(s.Interfaces, control.Interface{Name: a.Interface, Mode: a.Mode, Warning: a.Warning})
	}
	s.VRRP = append(s.VRRP, n.vrrpStatus()...)
	if n.fast.beats != nil {
		s.Heartbeats = control.Heartbeats(n.fast.beats.Status())
	}
	if n.tables != nil {
		services, stats, known, err := n.loop.Services()
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
		if s.Services = services; !known {
			s.Problems = append(s.Problems, "starting: not every server has been probed yet, the data plane is as the last daemon left it")
		}
		s.Outcomes, s.Tables = stats.Outcomes, stats.Tables
		s.Upgrade = n.tables.datapath.Upgraded()
		s.Sync = n.syncStatus(s.Services)
	}
	s.HTTP, s.DNS = n.httpStatus(), n.dnsStatus()
	for _, a := range n.ownAlarms() {
		s.Problems = append(s.Problems, a.Text)
	}
	s.Alarms = n.seeAlarms(now)
	s.FindProblems()
	return s
}

// vrrpStatus describes the instances. A reload changes them at one moment.
func (n *node) vrrpStatus() (all []control.Instance) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for i, r := range n.routers {
		instance := control.NewInstance(r.Status(), n.cfg.VRRP[i].Addresses)
		instance.Group, instance.Closed = n.cfg.VRRP[i].Group, !n.cfg.VRRP[i].Accept
		instance.Tracking = control.NewTracking(n.tracker.Standing(i))
		all = append(all, instance)
	}
	return all
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the node, its VRRP instances, services and backends",
		Flags: append(configFlags(), &cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.BoolFlag{Name: "check", Usage: "print one line for monitoring; the exit code is 1 if anything is wrong"}),
		Action: func(c *cli.Context) error {
			if c.Bool("json") && c.Bool("check") {
				return &usageError{"status ", errors.New("--json and --check exclude each other")}
			}
			if c.Bool("check") {
				s, err := getForMonitoring(c)
				return printVerdict(c.App.Writer, s, err)
			}
			s, err := getStatus(c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				e := json.NewEncoder(c.App.Writer)
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return printStatus(c.App.Writer, s)
		},
	}
}

// getStatus asks the daemon, or reads what it has left in the kernel.
func getStatus(c *cli.Context) (control.Status, error) {
	cfg, err := statusConfig(c)
	if err != nil {
		return control.Status{}, err
	}
	path := socket(cfg, c.String("run-dir"))
	s, err := control.Ask(c.Context, path)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, control.ErrNotRunning) {
		return s, fmt.Errorf("%w%s", err, advice(err))
	}
	if isLocked(c.String("run-dir")) {
		return s, fmt.Errorf("a daemon runs, but nothing answers on %s: it is starting or stopping, or has another socket: give its configuration with -c", path)
	}
	s, leftErr := leftStatus(c, cfg)
	if errors.Is(leftErr, fs.ErrNotExist) {
		return s, fmt.Errorf("%w, and nothing of it is left in the kernel: start it with `sluice run`", err)
	}
	if leftErr != nil {
		return s, fmt.Errorf("%w, and what it left can't be read: %w", err, leftErr)
	}
	s.Problems = []string{fmt.Sprintf("sluice is not running (nothing answers on %s): new failures of backends are not noticed", path)}
	s.FindProblems()
	return s, nil
}

// statusConfig reads the configuration for the socket's path and the services'
// names. Without -c it need not be there, nor be right.
func statusConfig(c *cli.Context) (*config.Config, error) {
	if c.IsSet("config") {
		if c.Bool("check") {
			return readConfig(c) // its mistakes are for who reads the line
		}
		return loadConfig(c)
	}
	host, _ := os.Hostname() // without a name no node of the roster is meant
	cfg, err := config.Load(c.String("config"), config.Options{Node: c.String("node"), Hostname: host})
	if err != nil {
		return nil, nil
	}
	return cfg, nil
}

// nameServices gives services that were read from the kernel, which knows no
// names, those of the configuration.
func nameServices(services []control.ServiceStatus, cfg *config.Config) {
	for i, s := range services {
		for _, c := range cfg.Services {
			first := c.Addresses[0]
			if s.Name == "" && s.Protocol == c.Protocol.String() && slices.ContainsFunc(s.Addresses, func(f lb.Frontend) bool {
				return f.VIP == first.VIP && f.Ports.Contains(first.Port())
			}) {
				services[i].Name = c.Name
			}
		}
	}
}

func printStatus(w io.Writer, s control.Status) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	if s.Running {
		fmt.Fprintf(&b, "node %s, sluice %s, pid %d, up %s\n", s.Node, s.Version, s.PID, age(s.Time, *s.Started))
	} else {
		printDead(&b, s)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	for _, i := range s.Interfaces {
		fmt.Fprintf(&b, "interface %s: XDP %s\n", i.Name, i.Mode)
	}
	if u := s.Upgrade; u != nil {
		fmt.Fprintf(&b, "upgraded %s ago, the data plane was layout %d and is %d: kept %d VIPs, %d services, %d backends, %d nat connections\n",
			age(s.Time, u.At), u.From, u.To, u.VIPs, u.Services, u.Backends, u.Flows)
	}
	for _, i := range s.VRRP {
		fmt.Fprintf(&b, "\nvrrp %s: %s for %s (%s)\n", i.Name, strings.ToUpper(i.State), age(s.Time, i.Since), i.Reason)
		if i.Group != "" {
			fmt.Fprintf(&b, "  moves with group %s\n", i.Group)
		}
		if i.HeldBack != "" {
			fmt.Fprintf(&b, "  held back: %s\n", i.HeldBack)
		}
		fmt.Fprintf(t, "  interface %s\tvirtual router %d\tversion %d\tpriority %d\n", i.Interface, i.VirtualRouterID, i.Version, i.Priority)
		fmt.Fprintf(t, "  addresses %s\ton this node: %s\n", join(i.Addresses), join(i.Present))
		if i.VirtualMAC != "" {
			fmt.Fprintf(t, "  virtual MAC address %s\n", i.VirtualMAC)
		}
		if i.Closed {
			fmt.Fprintf(t, "  accepts nothing but services\n")
		}
		if i.Peer != nil {
			fmt.Fprintf(t, "  last heard %s\tpriority %d\t%s ago\n", i.Peer.Address, i.Peer.Priority, age(s.Time, i.Peer.Heard))
		}
		if i.Unfenced != "" {
			fmt.Fprintf(t, "  not fenced\t%s\n", i.Unfenced)
		}
		t.Flush()
		printTracking(&b, i.Tracking)
		for _, reason := range slices.Sorted(maps.Keys(i.Dropped)) {
			fmt.Fprintf(t, "  dropped %d\t%s\n", i.Dropped[reason], reason)
		}
		t.Flush()
	}
	printHeartbeats(&b, s)
	printSync(&b, s)
	printChecks(&b, s)
	for _, v := range s.Services {
		fmt.Fprintf(&b, "\nservice %s: %s, %s %s %s\n", nameOf(v.Name), strings.ReplaceAll(v.State, "_", " "), v.Protocol, joinPorts(v.Addresses), v.Forward)
		fmt.Fprintln(t, "  BACKEND\tSTATE\tWEIGHT\tSLOTS\tSHARE\tCONNECTIONS\tPACKETS\tBYTES\tREPLIES\tREPLY BYTES\tNEXT HOP\t")
		for _, k := range v.Backends {
			state := string(k.State)
			if k.Backup {
				state += " backup"
			}
			if state == "" {
				state = "-"
			}
			if k.Pinned > 0 && k.Slots == 0 {
				k.Why = strings.TrimPrefix(fmt.Sprintf("%s, %d connections left", k.Why, k.Pinned), ", ")
			}
			if k.SlowStart != nil {
				k.Why = fmt.Sprintf("slow start, %d %%, %v left", k.SlowStart.Percent,
					max(0, k.SlowStart.Ends.Sub(s.Time)).Round(time.Second))
			}
			if u := k.Source(); u.AtLeast(loader.HighPorts) {
				k.Why = strings.TrimPrefix(fmt.Sprintf("%s, %d of %d source ports in use", k.Why, u.Used, u.Ports), ", ")
			}
			weight := fmt.Sprint(k.Weight)
			switch {
			case !s.Running:
				weight = "-" // the kernel does not know it
			case k.Weight != k.Configured:
				weight += fmt.Sprintf(" (configured %d)", k.Configured)
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%.1f %%\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", k.Address, strings.ReplaceAll(state, "_", " "),
				weight, k.Slots, 100*k.Share, k.Flows, k.Packets, k.Bytes, k.ReplyPackets, k.ReplyBytes, k.NextHop, k.Why)
		}
		t.Flush()
		if v.Rate != nil {
			fmt.Fprintf(&b, "  now: %s\n", v.Rate)
		}
		if v.Table != nil {
			fmt.Fprintf(&b, "  table: %s\n", v.Table)
		}
		if m := v.Moves; m != nil {
			fmt.Fprintf(&b, "  last change, %s ago: %d slots moved, %d had to\n", age(s.Time, m.At), m.Changed, m.Least)
		}
		for _, l := range []struct {
			n    uint64
			what string
		}{
			{v.Losses.NoBackend, "packets dropped: no backend"},
			{v.Losses.NoPort, "connections refused: no source port is free"},
			{v.Losses.FlowsFull, "connections refused: the flow table is full"},
			{v.Losses.Evicted, "handshakes given up for newer ones"},
			{v.Losses.EarlyReuse, "source ports reused within 60 s"},
			{v.Losses.HandshakesFull, "handshakes not remembered: no room"},
			{v.Losses.PinsFull, "connections not pinned: no room"},
			{v.Losses.TooBig, "packets too long for their way"},
		} {
			if l.n > 0 {
				fmt.Fprintf(&b, "  %d %s\n", l.n, l.what)
			}
		}
	}
	printHTTP(&b, s)
	printDNS(&b, s)
	var dropped []string
	for _, o := range s.Outcomes {
		if o.Dropped && o.Packets > 0 {
			dropped = append(dropped, fmt.Sprintf("%s %d", o, o.Packets))
		}
	}
	if len(dropped) > 0 {
		fmt.Fprintf(&b, "\ndropped packets: %s\n", strings.Join(dropped, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// age tells how long ago something was. What has come up while the status was made is
// of now.
func age(now, then time.Time) string {
	d := max(0, now.Sub(then))
	if d >= time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}

func join(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "none"
	}
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

func joinPorts(as []lb.Frontend) string {
	texts := make([]string, len(as))
	for i, a := range as {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}
