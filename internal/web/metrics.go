package web

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
)

// A Report is what is known of a daemon.
type Report struct {
	Status control.Status
	// Ready tells that the data plane holds what the configuration says, as far as
	// that depends on the daemon.
	Ready       bool
	Probes      []health.Status
	Transitions map[Transition]uint64
	Events      map[events.Type]uint64
}

// A Transition is a change of an instance to a state.
type Transition struct{ Instance, To string }

var (
	buildInfo     = gauge("build_info", "The version of sluice that runs; always 1.", "version", "goversion", "node")
	startTime     = gauge("start_time_seconds", "When the daemon was started, since the epoch.")
	ready         = gauge("ready", "Whether the data plane holds what the configuration says.")
	forwarding    = gauge("forwarding", "Whether the XDP program is on some interface.")
	problems      = gauge("problems", "How many problems `sluice status` has.")
	interfaceInfo = gauge("interface_info", "An interface that the XDP program is on, and its mode; always 1.", "interface", "mode")

	alarm       = gauge("alarm", "An alarm that lasts; 1 while it does. Where it is about no instance, service, server, interface or peer the label is empty.", "kind", "instance", "service", "server", "interface", "peer")
	alarmSince  = gauge("alarm_since_timestamp_seconds", "Since when an alarm lasts, since the epoch.", "kind", "instance", "service", "server", "interface", "peer")
	eventsTotal = counter("events_total", "What happened since the daemon was started, by type, as `sluice events` shows it.", "type")

	outcomePackets = counter("outcome_packets_total", "Packets that were not forwarded, by what became of them (action: drop, pass to the kernel, or answer) and why.", "outcome", "action")
	tableEntries   = gauge("flow_table_entries", "Entries of a table of flows that count, as of the last look through it.", "table")
	tableSize      = gauge("flow_table_size_entries", "How many entries a table of flows has room for.", "table")

	upgradeTime    = gauge("upgrade_timestamp_seconds", "When the data plane of an earlier version was taken over, since the epoch.")
	upgradeKept    = gauge("upgrade_kept", "What the last upgrade has kept, by kind.", "kind")
	upgradeNotKept = gauge("upgrade_not_kept", "How many things `sluice status` names that the last upgrade did not keep.")

	checkState      = gauge("check_state", "The verdict on a check: 1 for the one it is.", "check", "state")
	checkDuration   = gauge("check_duration_seconds", "How long the last run of a check took.", "check")
	checkLastRun    = gauge("check_last_run_timestamp_seconds", "When the last run of a check began, since the epoch.", "check")
	checkRecovering = gauge("check_recovering", "Whether the recovery of a check is at work.", "check")
	checkAttempts   = gauge("check_recovery_attempts", "Attempts to recover since a check last passed for good.", "check")
	checkExhausted  = gauge("check_recovery_exhausted", "Whether all attempts to recover were in vain.", "check")
)

// A collector turns reports into metrics, when it is asked. It is a
// prometheus.Collector.
type collector struct{ report func() Report }

func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, f := range families {
		to <- f.desc
	}
}

func (c collector) Collect(to chan<- prometheus.Metric) {
	r := c.report()
	s := sink(to)
	s.daemon(r)
	s.alarms(r.Status.Alarms)
	s.checks(r.Status.Checks)
	s.instances(r)
	s.heartbeats(r.Status.Heartbeats)
	s.sync(r.Status.Sync)
	s.services(r.Status)
	s.http(r.Status.HTTP)
	s.dns(r.Status.DNS)
	s.probes(r.Probes)
}

func (s sink) daemon(r Report) {
	st := r.Status
	s.put(buildInfo, 1, st.Version, runtime.Version(), st.Node)
	if st.Started != nil {
		s.put(startTime, seconds(*st.Started))
	}
	s.put(ready, truth(r.Ready))
	s.put(forwarding, truth(st.Forwarding))
	s.put(problems, float64(len(st.Problems)))
	for _, i := range st.Interfaces {
		s.put(interfaceInfo, 1, i.Name, string(i.Mode))
	}
	for _, t := range events.Types() {
		s.count(eventsTotal, r.Events[t], string(t))
	}
	for _, o := range st.Outcomes {
		action := "pass"
		if o.Answered {
			action = "answer"
		}
		if o.Dropped {
			action = "drop"
		}
		s.count(outcomePackets, o.Packets, o.Name, action)
	}
	for _, t := range st.Tables {
		if t.Used >= 0 {
			s.put(tableEntries, float64(t.Used), t.Name)
		}
		s.put(tableSize, float64(t.Size), t.Name)
	}
	if u := st.Upgrade; u != nil {
		s.put(upgradeTime, seconds(u.At))
		s.put(upgradeKept, float64(u.VIPs), "vips")
		s.put(upgradeKept, float64(u.Services), "services")
		s.put(upgradeKept, float64(u.Backends), "backends")
		s.put(upgradeKept, float64(u.Slots), "slots")
		s.put(upgradeKept, float64(u.Pairs), "nat_pairs")
		s.put(upgradeKept, float64(u.Flows), "nat_connections")
		s.put(upgradeNotKept, float64(len(u.NotKept)))
	}
}

func (s sink) alarms(all []control.Alarm) {
	for _, a := range all {
		s.put(alarm, 1, string(a.Kind), a.Instance, a.Service, a.Server, a.Interface, a.Peer)
		s.put(alarmSince, seconds(a.Since), string(a.Kind), a.Instance, a.Service, a.Server, a.Interface, a.Peer)
	}
}

func (s sink) checks(all []control.CheckStatus) {
	for _, c := range all {
		s.state(checkState, c.Verdict, []string{health.Unknown.String(), health.Up.String(), health.Down.String()}, c.Name)
		if c.LastRun != nil {
			s.put(checkDuration, c.Took.Seconds(), c.Name)
			s.put(checkLastRun, seconds(*c.LastRun), c.Name)
		}
		s.put(checkRecovering, truth(c.Recovering), c.Name)
		s.put(checkAttempts, float64(c.Attempts), c.Name)
		s.put(checkExhausted, truth(c.Exhausted), c.Name)
	}
}

// seconds is a time as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
