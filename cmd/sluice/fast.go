package main

import (
	"fmt"
	"io"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/heartbeat"
	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/vrrp"
)

// pacemakerName is the command that the daemon starts.
const pacemakerName = "pacemaker"

// pacemakerCommand is a part of the daemon: a process that sends what must be on
// time.
func pacemakerCommand() *cli.Command {
	return &cli.Command{
		Name: pacemakerName, Hidden: true, Usage: "send packets on time for the daemon that starts it",
		Action: func(*cli.Context) error { return pace.Main() },
	}
}

const (
	// pacedBelow is the advertisement interval from which on the daemon itself is on
	// time, also where it is some tenths of a second late.
	pacedBelow = 200 * time.Millisecond
	// leaseTime is how long advertisements of a daemon that hangs go on. On a machine
	// that is busy beyond reason a daemon may be late by a second.
	leaseTime = 3 * time.Second
)

// A fastMode is what instances need that must be on time.
type fastMode struct {
	node  *node
	pacer *pace.Pacer // nil where no instance needs it
}

// makeFast starts what sends packets on time, and makes the node's heartbeats.
func (n *node) makeFast() *fastMode {
	f := &fastMode{node: n}
	beating := slices.ContainsFunc(n.cfg.VRRP, func(i config.Instance) bool { return i.Heartbeat.Interval > 0 })
	if !beating && !slices.ContainsFunc(n.cfg.VRRP, paced) {
		return f
	}
	f.pacer = pace.New(n.startPacemaker, n.log)
	n.closers = append(n.closers, func() error { f.pacer.Close(); return nil })
	if beating {
		n.beats = heartbeat.New(n.heartbeatConfig(f.pacer))
	}
	return f
}

// startPacemaker starts a process, or where that fails a thread.
func (n *node) startPacemaker(socket int) (func() error, error) {
	// Closed by what is started, or by what could not be.
	spare, err := syscall.Dup(socket)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(spare)
	wait, err := pace.Process("/proc/self/exe", pacemakerName)(socket)
	if err == nil {
		return wait, syscall.Close(spare)
	}
	n.log.Warn("the pacemaker is no process of its own: under load, heartbeats and advertisements may be late", "error", err)
	return pace.Thread(spare)
}

func paced(i config.Instance) bool { return i.Interval < pacedBelow }

func (n *node) heartbeatConfig(pacer *pace.Pacer) heartbeat.Config {
	c := heartbeat.Config{Name: n.cfg.Node, Port: n.cfg.Sync.Port, Keys: n.cfg.Sync.Keys, Pacer: pacer, Log: n.log}
	for _, other := range n.cfg.Nodes {
		if other.Name == n.cfg.Node {
			c.Local = other.Address
		} else {
			c.Roster = append(c.Roster, other.Address)
		}
	}
	return c
}

// join gives an instance its part. What it returns is to be called with its
// Router.
func (f *fastMode) join(i config.Instance, deps *vrrp.Deps) func(*vrrp.Router) {
	if paced(i) {
		deps.Pacer = advertisements{f.pacer.Slot("advertisements of " + i.Name)}
	}
	if i.Heartbeat.Interval == 0 {
		return func(*vrrp.Router) {}
	}
	id := heartbeat.Instance{VRID: i.VRID, IPv6: i.Addresses[0].Addr().Is6(), Digest: heartbeat.Digest(i.Addresses)}
	h := f.node.beats.Add(id, i.Heartbeat.Peers, i.Heartbeat.Interval, max(3*i.Interval, 3*time.Second))
	deps.Heartbeats = h
	return func(r *vrrp.Router) { h.Deliver(r.Hear) }
}

// advertisements is a vrrp.Pacer.
type advertisements struct{ *pace.Slot }

func (a advertisements) Repeat(socket syscall.RawConn, interval time.Duration, messages []vrrp.Parcel) bool {
	j := pace.Job{Interval: interval, Lease: max(leaseTime, 3*interval)}
	for _, m := range messages {
		j.Parcels = append(j.Parcels, pace.Parcel(m))
	}
	return a.Set(socket, j)
}

// printHeartbeats prints the paths to other nodes.
func printHeartbeats(w io.Writer, s control.Status) {
	if len(s.Heartbeats) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "HEARTBEATS\tNODE\tHEARD\tCONNECTED\tRECEIVED\tFORGED\tREPLAYED\tMISTAKE")
	for _, h := range s.Heartbeats {
		heard, name := "never", h.Node
		if h.Heard != nil {
			heard = age(s.Time, *h.Heard) + " ago"
		}
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(t, "%v\t%s\t%s\t%v\t%d\t%d\t%d\t%s\n", h.Address, name, heard, h.Connected, h.Received, h.Forged, h.Replayed, h.Mistake)
	}
	t.Flush()
}
