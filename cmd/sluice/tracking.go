package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/track"
	"github.com/sluice-lb/sluice/vrrp"
)

// makeTracker makes what drives the instances by what they track.
func (n *node) makeTracker() {
	w := track.World{Upstream: n.http.proxy.Able}
	if n.loop != nil {
		w.Service = n.loop.Quorum
	}
	n.tracker = track.New(n.cfg.Checks, trackedBy(n.cfg, n.routers), w, n.log)
	told := track.Told{Standing: n.recordStanding, Check: func(before, now track.CheckStatus) {
		n.recordCheck(before, now)
		if n.loop != nil {
			n.loop.Dirty() // servers may be as healthy as the check
		}
		n.touchServers()
	}}
	if n.loop != nil {
		n.loop.Tell(func() {
			n.tracker.Dirty()
			n.touchServers() // another node's operator may have changed them
		})
		n.loop.Consult(n.tracker)
	}
	n.tracker.Tell(told)
}

// touchServers has what is known of the servers of upstreams and records looked at again,
// soon. It never waits.
func (n *node) touchServers() {
	n.http.touch()
	n.dns.touch()
}

// checksOfBoth are the checks of a configuration, and those of the one before that
// are not in it any more: services of the one before may depend on them.
func checksOfBoth(before, next *config.Config) []lb.Check {
	all := slices.Clone(next.Checks)
	for _, c := range before.Checks {
		if !slices.ContainsFunc(next.Checks, func(o lb.Check) bool { return o.Name == c.Name }) {
			all = append(all, c)
		}
	}
	return all
}

// trackedBy are the instances as the tracker knows them.
func trackedBy(cfg *config.Config, routers []*vrrp.Router) []track.Instance {
	var instances []track.Instance
	for i, c := range cfg.VRRP {
		instances = append(instances, track.Instance{
			Name: c.Name, Priority: c.Priority, Track: c.Track, StartTimeout: c.StartTimeout, Router: routers[i],
		})
	}
	return instances
}

// hooks returns what tells programs of an instance's changes. It is closed when the
// daemon ends, after the instance's last change; until then it outlives instances
// of that name.
func (n *node) hooks(i config.Instance) *track.Notifier {
	h := n.notifiers[i.Name]
	if h == nil {
		h = track.NewNotifier(hooksOf(i), n.log)
		n.closers = append(n.closers, h.Close)
		if n.notifiers == nil {
			n.notifiers = map[string]*track.Notifier{}
		}
		n.notifiers[i.Name] = h
	}
	return h
}

func hooksOf(i config.Instance) track.Hooks {
	return track.Hooks{Active: i.Notify.Active, Backup: i.Notify.Backup, Fault: i.Notify.Fault, Any: i.Notify.Any}
}

// printChecks prints what is known of checks.
func printChecks(w io.Writer, s control.Status) {
	if len(s.Checks) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tTYPE\tVERDICT\tSINCE\tWHY")
	for _, c := range s.Checks {
		since := "-"
		if c.Since != nil {
			since = age(s.Time, *c.Since)
		}
		var why []string
		if c.Recovering {
			why = append(why, fmt.Sprintf("recovering, attempt %d", c.Attempts))
		}
		if c.Exhausted {
			why = append(why, "recovery was in vain")
		}
		switch {
		case c.Why != "":
			why = append(why, c.Why)
		case c.LastError != "":
			why = append(why, "last run: "+c.LastError)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Type, c.Verdict, since, strings.Join(why, ": "))
	}
	t.Flush()
}

// printTracking prints what an instance tracks.
func printTracking(w io.Writer, t *control.Tracking) {
	if t == nil {
		return
	}
	if t.Sum != "" {
		fmt.Fprintf(w, "  priority %s\n", t.Sum)
	}
	for _, i := range t.Items {
		effect := "a failure is a fault"
		if i.Weight != 0 {
			effect = fmt.Sprintf("weight %d", i.Weight)
		}
		why := ""
		if i.Why != "" {
			why = ": " + i.Why
		}
		fmt.Fprintf(w, "  tracks %s %s (%s): %s%s\n", i.Kind, i.Name, effect, i.State, why)
	}
}
