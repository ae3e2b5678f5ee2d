package control

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/loader"
)

// When a backend's use of its source ports is an alarm, and when it is none any more,
// in percent.
const (
	portsAlarm = 80
	portsCalm  = loader.HighPorts
)

// quiet is how long nothing is lost before an alarm about losses ends.
const quiet = time.Minute

// A lossKind is something that a service loses for lack of room.
type lossKind struct {
	alarm        AlarmKind
	count        func(loader.Losses) uint64
	what, advice string
}

var lossKinds = []lossKind{
	{
		AlarmNoPort, func(l loader.Losses) uint64 { return l.NoPort },
		"connections refused: no source port is free", "give it more source_addresses",
	},
	{
		AlarmFlowsFull, func(l loader.Losses) uint64 { return l.FlowsFull },
		"connections refused: the flow table is full", roomAdvice,
	},
	{
		AlarmHandshakesFull, func(l loader.Losses) uint64 { return l.HandshakesFull },
		"handshakes not remembered: more than fit come in 5 s", "source_limit and deny keep a flood out",
	},
	{
		AlarmPinsFull, func(l loader.Losses) uint64 { return l.PinsFull },
		"connections not pinned, which the next change of backends may move: no room", roomAdvice,
	},
}

const roomAdvice = "raise datapath.max_flows, which counts after `sluice detach`"

// shortages is what runs short, as seen once a second.
type shortages struct {
	log    *slog.Logger
	ports  map[portsID]bool // backends that an alarm is about
	losses map[lossID]*loss
}

type portsID struct {
	service string
	backend netip.AddrPort
}

type lossID struct {
	service string
	kind    int
}

// A loss is a counter that grows, or has grown. Grew is zero where it is no alarm.
type loss struct {
	last, base  uint64 // now, and when the alarm began
	began, grew time.Time
}

func newShortages(log *slog.Logger) shortages {
	return shortages{log: log, ports: map[portsID]bool{}, losses: map[lossID]*loss{}}
}

// observe returns the alarms there are now, and logs those that begin and end. What
// was lost before it was called first is no alarm.
func (s *shortages) observe(usage []loader.Usage, now time.Time) []Alarm {
	var alarms []Alarm
	high := map[portsID]bool{}
	for _, p := range usage {
		for i, kind := range lossKinds {
			if text := s.lost(lossID{p.Service, i}, kind, kind.count(p.Losses), now); text != "" {
				alarms = append(alarms, Alarm{Kind: kind.alarm, Service: p.Service, Text: text})
			}
		}
		for _, b := range p.Backends {
			id := portsID{p.Service, b.Address}
			if s.short(id, b.Source) {
				high[id] = true
				alarms = append(alarms, Alarm{
					Kind: AlarmSourcePorts, Service: p.Service, Server: b.Address.String(),
					Text: fmt.Sprintf("service %s: %d of %d source ports towards %v are in use (%d %%): give it more source_addresses",
						p.Service, b.Source.Used, b.Source.Ports, b.Address, b.Source.Percent()),
				})
			}
		}
	}
	s.ports = high // without backends that are gone
	return alarms
}

// short tells whether a backend's ports are an alarm.
func (s *shortages) short(id portsID, use loader.PortUse) bool {
	log := s.log.With("service", id.service, "backend", id.backend, "in use", use.Used, "ports", use.Ports)
	was := s.ports[id]
	switch {
	case !was && use.AtLeast(portsAlarm):
		log.Warn("the source ports towards a backend run short: the service needs more source_addresses")
		return true
	case was && !use.AtLeast(portsCalm):
		log.Info("there are source ports towards a backend again")
		return false
	}
	return was
}

// lost follows a counter and returns the alarm that it is, if it is one.
func (s *shortages) lost(id lossID, kind lossKind, count uint64, now time.Time) string {
	l, ok := s.losses[id]
	if !ok {
		s.losses[id] = &loss{last: count}
		return ""
	}
	if count < l.last { // it was cleared
		l.last, l.base = 0, 0
	}
	if count > l.last {
		if l.grew.IsZero() {
			l.base, l.began = l.last, now
			s.log.Warn(kind.what, "service", id.service, "count", count-l.base, "advice", kind.advice)
		}
		l.grew = now
	}
	l.last = count
	if l.grew.IsZero() {
		return ""
	}
	if now.Sub(l.grew) >= quiet {
		s.log.Info("no more "+kind.what, "service", id.service, "count", count-l.base)
		l.grew = time.Time{}
		return ""
	}
	return fmt.Sprintf("service %s: %d %s, since %s: %s", id.service, count-l.base, kind.what, l.began.Format(time.RFC3339), kind.advice)
}
