package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

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
	beats *heartbeat.Node // nil where no instance has heartbeats

	node  *node
	mu    sync.Mutex
	pacer *pace.Pacer // nil where no instance has needed it yet
	slots map[*vrrp.Router]*pace.Slot
}

// makeFast makes the node's heartbeats. Who gets them, and of which instances, stays
// as it is until the daemon ends.
func (n *node) makeFast() {
	f := &n.fast
	f.node, f.slots = n, map[*vrrp.Router]*pace.Slot{}
	n.closers = append(n.closers, func() error {
		if f.pacer != nil {
			f.pacer.Close()
		}
		return nil
	})
	for _, i := range n.cfg.VRRP {
		if i.Heartbeat.Interval == 0 {
			continue
		}
		if f.beats == nil {
			f.beats = heartbeat.New(n.heartbeatConfig(f.sender()))
		}
		f.beats.Add(beatsOf(i), i.Heartbeat.Peers, i.Heartbeat.Interval)
	}
}

// sender is what sends packets on time. It is started when it is needed first.
func (f *fastMode) sender() *pace.Pacer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pacer == nil {
		f.pacer = pace.New(f.node.startPacemaker, f.node.log)
	}
	return f.pacer
}

// startPacemaker starts a process, or where that fails a thread.
func (n *node) startPacemaker(socket int) (func() error, error) {
	// Closed by what is started, or by what could not be. A check that is started now
	// must not have it: the end of the pacemaker would not be seen before the check's.
	spare, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, unix.Close(socket))
	}
	wait, err := pace.Process("/proc/self/exe", pacemakerName)(socket)
	if err == nil {
		return wait, syscall.Close(spare)
	}
	n.log.Warn("the pacemaker is no process of its own: under load, heartbeats and advertisements may be late", "error", err)
	return pace.Thread(spare)
}

func paced(i config.Instance) bool { return i.Interval < pacedBelow }

func (n *node) heartbeatConfig(pacer *pace.Pacer) heartbeat.Config {
	c := heartbeat.Config{Name: n.cfg.Node, Port: n.cfg.Sync.Port, Open: n.sharedPort().Other, Keys: n.cfg.Sync.Keys, Pacer: pacer, Log: n.log}
	for _, other := range n.cfg.Nodes {
		if other.Name == n.cfg.Node {
			c.Local = other.Address
		} else {
			c.Roster = append(c.Roster, heartbeat.Peer{Name: other.Name, Address: other.Address})
		}
	}
	return c
}

// join gives an instance what must be on time for it.
func (f *fastMode) join(i config.Instance, deps *vrrp.Deps) {
	if paced(i) {
		deps.Pacer = advertisements{f.sender().Slot("advertisements of " + i.Name)}
	}
	if i.Heartbeat.Interval > 0 {
		deps.Heartbeats = f.beats.Find(beatsOf(i))
	}
}

// note remembers what an instance has got, and leave gives back what those have that
// have ended, or were never begun.
func (f *fastMode) note(r *vrrp.Router, deps *vrrp.Deps) {
	if a, ok := deps.Pacer.(advertisements); ok {
		f.slots[r] = a.Slot
	}
}

func (f *fastMode) leave(stay []*vrrp.Router) {
	for r, slot := range f.slots {
		if !slices.Contains(stay, r) {
			slot.Close()
			delete(f.slots, r)
		}
	}
}

// deliver has an instance hear heartbeats, in the place of one before.
func (f *fastMode) deliver(i config.Instance, r *vrrp.Router) {
	if i.Heartbeat.Interval > 0 {
		f.beats.Find(beatsOf(i)).Deliver(r.Hear, max(3*i.Interval, 3*time.Second))
	}
}

// beatsOf names an instance in heartbeats.
func beatsOf(i config.Instance) heartbeat.Instance {
	return heartbeat.Instance{VRID: i.VRID, IPv6: i.Addresses[0].Addr().Is6(), Digest: heartbeat.Digest(i.Addresses)}
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
