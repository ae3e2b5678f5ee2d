package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/track"
	"github.com/sluice-lb/sluice/vrrp"
)

// eventsFile is what the events are kept in, below the state directory: what comes
// before a reboot is what one wants to know after it.
const eventsFile = "events.jsonl"

// lookAtAlarms is how often the daemon looks whether alarms begin or end.
const lookAtAlarms = time.Second

// openEvents begins to record what happens. It cannot fail: where nothing can be
// kept, that is an alarm.
func (n *node) openEvents() {
	n.events = events.Open(filepath.Join(n.stateDir, eventsFile), n.log)
	n.closers = append(n.closers, n.events.Close)
	text := fmt.Sprintf("sluice %s, pid %d, node %s", version(), os.Getpid(), n.cfg.Node)
	if b := n.events.Before(); b.Type != "" && b.Type != events.DaemonStop {
		text += fmt.Sprintf("; the one before was killed, or has crashed, after %s", b.Time.Format(time.RFC3339))
	}
	n.events.Record(events.Event{Type: events.DaemonStart, Text: text})
}

// recordStop records the end of the daemon, and why, if it is a failure.
func (n *node) recordStop(err error) {
	text := "as planned"
	if n.unshared != "" {
		text += "; " + n.unshared
	}
	if err != nil {
		text = err.Error()
	}
	n.events.Record(events.Event{Type: events.DaemonStop, Text: text})
}

func (n *node) recordReady(cfg *config.Config) {
	text := fmt.Sprintf("%s, %s", count(len(cfg.Services), "service"), count(len(cfg.VRRP), "VRRP instance"))
	if k := len(cfg.HTTP.Servers); k > 0 {
		text += ", " + count(k, "HTTP server")
	}
	if k := len(cfg.DNS.Records); k > 0 {
		text += ", " + count(k, "DNS record")
	}
	n.events.Record(events.Event{Type: events.DaemonReady, Text: text})
}

// recordDatapath records what the data plane was made of.
func (n *node) recordDatapath() {
	if u := n.tables.datapath.Upgraded(); u != nil {
		text := fmt.Sprintf("layout %d is %d now: kept %d VIPs, %d services, %d backends, %d nat connections",
			u.From, u.To, u.VIPs, u.Services, u.Backends, u.Flows)
		if len(u.NotKept) > 0 {
			text += "; not kept: " + strings.Join(u.NotKept, "; ")
		}
		n.events.Record(events.Event{Type: events.DaemonUpgrade, From: fmt.Sprint(u.From), To: fmt.Sprint(u.To), Text: text})
		return
	}
	if !n.tables.datapath.Fresh() {
		n.events.Record(events.Event{Type: events.DaemonAdopt, Text: "what an earlier daemon has pinned goes on forwarding"})
	}
}

// changes returns who is told of an instance's changes of state: the events, and
// its hooks.
func (n *node) changes(hooks *track.Notifier) func(vrrp.Change) {
	return func(c vrrp.Change) {
		n.transitions.add(c)
		n.activity.change(c)
		if n.loop != nil {
			n.loop.Dirty()
		}
		n.events.Record(events.Event{
			Type: events.VRRPState, Time: c.At, Instance: c.Instance, From: c.From.String(), To: c.To.String(), Text: c.Reason,
		})
		hooks.Notify(c)
	}
}

func (n *node) recordCheck(before, now track.CheckStatus) {
	e := events.Event{Type: events.CheckState, Check: now.Check.Name, From: before.Verdict.String(), To: now.Verdict.String(), Text: now.Why}
	switch {
	case now.Recovering:
		e = events.Event{Type: events.CheckRecovery, Check: now.Check.Name, To: "tried", Text: fmt.Sprintf("attempt %d of %d: %s",
			now.Attempts, now.Check.Recover.Attempts, now.LastError)}
	case before.Recovering && before.Verdict == now.Verdict:
		e = events.Event{Type: events.CheckRecovery, Check: now.Check.Name, To: "recovered", Text: fmt.Sprintf("attempt %d", now.Attempts)}
	case before.Verdict == health.Unknown && now.Verdict == health.Up:
		return // as it should be
	}
	n.events.Record(e)
}

func (n *node) recordStanding(instance string, before, now track.Standing) {
	text := now.Sum()
	if text == "" {
		text = "as configured"
	}
	n.events.Record(events.Event{
		Type: events.VRRPPriority, Instance: instance,
		From: strconv.Itoa(int(before.Priority)), To: strconv.Itoa(int(now.Priority)), Text: text,
	})
}

func (d daemonOf) Events(after uint64) (lines [][]byte, last uint64, more <-chan struct{}) {
	return d.events.After(after)
}

// watchAlarms records when alarms begin and end, until ctx ends.
func (n *node) watchAlarms(ctx context.Context) {
	ticker := time.NewTicker(lookAtAlarms)
	defer ticker.Stop()
	for {
		n.seeAlarms(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// seeAlarms returns the alarms that there are, and records what is new.
func (n *node) seeAlarms(now time.Time) []control.Alarm {
	all := n.ownAlarms()
	for _, r := range n.instances() {
		s := r.Status()
		for _, a := range s.Alarms {
			all = append(all, control.Alarm{
				Kind: control.AlarmKind(a.Kind.String()), Instance: s.Name, Peer: a.Peer.String(), Text: a.Text, Since: a.Since,
			})
		}
	}
	all = append(all, n.standingAlarms()...)
	all, happened := n.alarms.See(all, now)
	for _, e := range happened {
		n.events.Record(e)
	}
	return all
}

// ownAlarms are those of the daemon itself, which nothing else in a status tells.
func (n *node) ownAlarms() []control.Alarm {
	var all []control.Alarm
	if n.loop != nil {
		all = n.loop.Alarms()
	}
	if n.natLog != nil {
		if problems := n.natLog.Problems(); len(problems) > 0 {
			all = append(all, control.Alarm{Kind: control.AlarmNATLog, Text: strings.Join(problems, "; ")})
		}
	}
	if h := n.httpStatus(); h != nil && len(h.Problems) > 0 {
		all = append(all, control.Alarm{Kind: control.AlarmHTTP, Text: strings.Join(h.Problems, "; ")})
	}
	if p := n.holds.Alarm(); p != "" {
		all = append(all, control.Alarm{Kind: control.AlarmHolds, Text: p})
	}
	if p := n.events.Problem(); p != "" {
		all = append(all, control.Alarm{Kind: control.AlarmEvents, Text: p})
	}
	if p := n.webProblem(); p != "" {
		all = append(all, control.Alarm{Kind: control.AlarmMonitoring, Text: p})
	}
	return all
}

// standingAlarms are about what does not change while the daemon runs; a status
// has them elsewhere, too.
func (n *node) standingAlarms() []control.Alarm {
	if n.tables == nil {
		return nil
	}
	var all []control.Alarm
	for _, a := range n.tables.where() {
		if a.Warning != "" {
			all = append(all, control.Alarm{Kind: control.AlarmGenericXDP, Interface: a.Interface, Text: a.Warning})
		}
	}
	if u := n.tables.datapath.Upgraded(); u != nil && len(u.NotKept) > 0 {
		all = append(all, control.Alarm{Kind: control.AlarmUpgrade, Text: "not kept: " + strings.Join(u.NotKept, "; "), Since: u.At})
	}
	return all
}
