package web

import (
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

var (
	serviceInfo    = gauge("service_info", "A service; always 1.", "service", "pool", "protocol", "forward", "addresses")
	serviceState   = gauge("service_state", "The state of a service: 1 for the one it is in.", "service", "state")
	serviceHealthy = gauge("service_healthy_backends", "Backends of a service that are up, those for emergencies included.", "service")
	serviceQuorum  = gauge("service_quorum_backends", "Healthy backends below which a service is below its quorum.", "service")
	serviceLost    = counter("service_lost_total", "What a service could not do, by reason: no_backend and too_big count packets; no_port and flows_full connections that were refused; handshakes_full and pins_full those that a change of backends may move; evicted handshakes that were given up for newer ones; early_reuse source ports that were used again within 60 s.", "service", "reason")
	changeTime     = gauge("service_last_change_timestamp_seconds", "When slots of a service got other owners last, since the epoch.", "service")
	changeSlots    = gauge("service_last_change_slots", "How many slots that change has moved, and how many had to.", "service", "which")

	backendInfo       = gauge("backend_info", "A backend of a service; always 1. Override is what an operator has changed.", "service", "backend", "backup", "override", "next_hop")
	backendState      = gauge("backend_state", "The state that a backend is in, as `sluice status` has it; always 1.", "service", "backend", "state")
	backendUp         = gauge("backend_up", "Whether a backend is up.", "service", "backend")
	backendServing    = gauge("backend_serving", "Whether a backend gets new connections.", "service", "backend")
	backendWeight     = gauge("backend_weight", "The weight of a backend, as operators want it.", "service", "backend")
	backendConfigured = gauge("backend_configured_weight", "The weight of a backend in the configuration.", "service", "backend")
	backendSlowStart  = gauge("backend_slow_start_ratio", "The part of its weight that a backend has: less than 1 while it starts slowly.", "service", "backend")
	backendShare      = gauge("backend_share_ratio", "The part of a service's slots that a backend owns.", "service", "backend")
	backendSlots      = gauge("backend_slots", "Slots that a backend owns.", "service", "backend")
	backendPrevious   = gauge("backend_previous_slots", "Slots that a backend owned until a change whose window is open still.", "service", "backend")
	backendPinned     = gauge("backend_pinned_connections", "Connections that are kept with a backend whoever owns their slots; in nat all of its connections while it owns none.", "service", "backend")
	backendOpened     = counter("backend_connections_total", "Connections that were opened: SYNs forwarded, of UDP new flows.", "service", "backend")
	backendPackets    = counter("backend_packets_total", "Packets to a backend (forward), and from it in nat (reply).", "service", "backend", "direction")
	backendBytes      = counter("backend_bytes_total", "Bytes of IP packets to a backend (forward), and from it in nat (reply).", "service", "backend", "direction")
	backendPorts      = gauge("backend_source_ports", "Source ports towards a backend of nat that this node may use.", "service", "backend")
	backendPortsUsed  = gauge("backend_source_ports_used", "Those of them that are in use.", "service", "backend")

	probeUp       = gauge("probe_up", "The verdict on what is probed; no value while there is none.", "probe")
	probeDuration = gauge("probe_duration_seconds", "How long the last probe took.", "probe")
	probeLastRun  = gauge("probe_last_run_timestamp_seconds", "When the last probe began, since the epoch.", "probe")
	probeRuns     = counter("probe_runs_total", "Probes that have ended.", "probe")
)

func (s sink) services(st control.Status) {
	for _, v := range st.Services {
		s.put(serviceInfo, 1, v.Name, v.Pool, v.Protocol, v.Forward, addresses(v.Addresses))
		s.state(serviceState, v.State, []string{control.ServiceUp, control.ServiceQuorum, control.ServiceDown}, v.Name)
		s.put(serviceHealthy, float64(v.Healthy), v.Name)
		s.put(serviceQuorum, float64(v.Quorum), v.Name)
		for _, l := range []struct {
			reason string
			n      uint64
		}{
			{"no_backend", v.Losses.NoBackend}, {"no_port", v.Losses.NoPort}, {"flows_full", v.Losses.FlowsFull},
			{"early_reuse", v.Losses.EarlyReuse}, {"evicted", v.Losses.Evicted}, {"handshakes_full", v.Losses.HandshakesFull},
			{"pins_full", v.Losses.PinsFull}, {"too_big", v.Losses.TooBig},
		} {
			s.count(serviceLost, l.n, v.Name, l.reason)
		}
		if m := v.Moves; m != nil {
			s.put(changeTime, seconds(m.At), v.Name)
			s.put(changeSlots, float64(m.Changed), v.Name, "moved")
			s.put(changeSlots, float64(m.Least), v.Name, "least")
		}
		for _, b := range v.Backends {
			s.backend(v.Name, b)
		}
	}
}

func (s sink) backend(service string, b control.BackendStatus) {
	at := b.Address.String()
	s.put(backendInfo, 1, service, at, strconv.FormatBool(b.Backup), b.Override, b.NextHop)
	s.put(backendState, 1, service, at, string(b.State))
	s.put(backendUp, truth(b.State == control.ServerUp), service, at)
	s.put(backendServing, truth(b.Serving), service, at)
	s.put(backendWeight, float64(b.Weight), service, at)
	s.put(backendConfigured, float64(b.Configured), service, at)
	part := 1.0
	if b.SlowStart != nil {
		part = float64(b.SlowStart.Percent) / 100
	}
	s.put(backendSlowStart, part, service, at)
	s.put(backendShare, b.Share, service, at)
	s.put(backendSlots, float64(b.Slots), service, at)
	s.put(backendPrevious, float64(b.Previous), service, at)
	if b.Pinned >= 0 {
		s.put(backendPinned, float64(b.Pinned), service, at)
	}
	s.count(backendOpened, b.Flows, service, at)
	s.count(backendPackets, b.Packets, service, at, "forward")
	s.count(backendPackets, b.ReplyPackets, service, at, "reply")
	s.count(backendBytes, b.Bytes, service, at, "forward")
	s.count(backendBytes, b.ReplyBytes, service, at, "reply")
	if b.Ports > 0 {
		s.put(backendPorts, float64(b.Ports), service, at)
		s.put(backendPortsUsed, float64(b.PortsUsed), service, at)
	}
}

func addresses(all []lb.Frontend) string {
	var texts []string
	for _, f := range all {
		texts = append(texts, f.String())
	}
	return strings.Join(texts, ",")
}

// probes describes probes by what they are called. Several of one name, which
// differ in what they ask for, are the one that is worst off.
func (s sink) probes(all []health.Status) {
	worst := map[string]health.Status{}
	var names []string
	for _, p := range all {
		name := p.Target.String()
		other, twice := worst[name]
		if !twice {
			names = append(names, name)
		}
		if !twice || p.Verdict == health.Down && other.Verdict != health.Down {
			worst[name] = p
		}
	}
	for _, name := range names {
		p := worst[name]
		if p.Verdict != health.Unknown {
			s.put(probeUp, truth(p.Verdict == health.Up), name)
		}
		if !p.LastRun.IsZero() {
			s.put(probeDuration, p.LastDuration.Seconds(), name)
			s.put(probeLastRun, seconds(p.LastRun), name)
		}
		s.count(probeRuns, p.Checks, name)
	}
}
