package control

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/events"
)

// An AlarmKind names what an alarm is about. The names are a contract with whoever
// reads them; those of VRRP instances are package vrrp's.
type AlarmKind string

// The kinds that are about no VRRP instance.
const (
	AlarmTables      AlarmKind = "tables"      // the data plane's tables cannot be written
	AlarmInterfaces  AlarmKind = "interfaces"  // or its interfaces are not as it needs them
	AlarmMaintenance AlarmKind = "maintenance" // or nothing ends windows and idle flows
	AlarmProbes      AlarmKind = "probes"      // servers cannot be probed through their VIPs
	AlarmOverrides   AlarmKind = "overrides"   // operators' changes were lost
	AlarmHolds       AlarmKind = "holds"       // which instances an operator holds back was lost
	AlarmGenericXDP  AlarmKind = "generic_xdp" // an interface has no native XDP
	AlarmUpgrade     AlarmKind = "upgrade"     // the last one did not keep everything
	AlarmNATLog      AlarmKind = "nat_log"     // the translation log is not complete
	AlarmEvents      AlarmKind = "events"      // events are not kept over a restart
	AlarmMonitoring  AlarmKind = "monitoring"  // admin.listen could not be had
	AlarmHTTP        AlarmKind = "http"        // an access log is not written, a certificate not renewed, connections wait

	// Of the tables that the nodes have in common, by service.
	AlarmTableSync    AlarmKind = "table_sync"    // the other nodes have not adopted this node's in time
	AlarmTableDiffers AlarmKind = "table_differs" // that of the active node cannot be followed

	// What runs short, by service.
	AlarmSourcePorts    AlarmKind = "source_ports"
	AlarmNoPort         AlarmKind = "no_port"
	AlarmFlowsFull      AlarmKind = "flows_full"
	AlarmHandshakesFull AlarmKind = "handshakes_full"
	AlarmPinsFull       AlarmKind = "pins_full"
)

// An Alarm is something that is wrong, lasts, and is for somebody to put right.
// Kind, Instance, Service, Server, Interface and Peer together identify it.
type Alarm struct {
	Kind      AlarmKind `json:"kind"`
	Instance  string    `json:"instance,omitempty"` // of VRRP
	Service   string    `json:"service,omitempty"`
	Server    string    `json:"server,omitempty"`
	Interface string    `json:"interface,omitempty"`
	Peer      string    `json:"peer,omitempty"` // whose packets show it
	Text      string    `json:"text"`
	Since     time.Time `json:"since"`
}

// id is a without what changes while it lasts.
func (a Alarm) id() Alarm {
	a.Text, a.Since = "", time.Time{}
	return a
}

func (a Alarm) event(t events.Type) events.Event {
	return events.Event{
		Type: t, Alarm: string(a.Kind), Instance: a.Instance, Service: a.Service, Server: cmp.Or(a.Server, a.Interface), Peer: a.Peer, Text: a.Text,
	}
}

// An AlarmBook knows since when alarms last. Its methods may be called from several
// goroutines.
type AlarmBook struct {
	mu  sync.Mutex
	all map[Alarm]Alarm // by id
}

// See notes the alarms that there are, and returns them with their beginnings, and
// what has happened since the last call.
func (b *AlarmBook) See(alarms []Alarm, now time.Time) (all []Alarm, happened []events.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := map[Alarm]Alarm{}
	for _, a := range alarms {
		id := a.id()
		if _, twice := next[id]; twice {
			continue
		}
		known, ok := b.all[id]
		switch {
		case ok:
			a.Since = known.Since
		case a.Since.IsZero():
			a.Since = now
		}
		if !ok {
			happened = append(happened, a.event(events.AlarmBegin))
		}
		next[id] = a
		all = append(all, a)
	}
	var over []Alarm
	for id, a := range b.all {
		if _, ok := next[id]; !ok {
			over = append(over, a)
		}
	}
	slices.SortFunc(over, func(a, b Alarm) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Text, b.Text)) })
	for _, a := range over {
		happened = append(happened, a.event(events.AlarmEnd))
	}
	b.all = next
	return all, happened
}

// recordViews tells what has changed from one set of views to the next. Nil: there
// were none, and only what is not well is news. The order of services may be another.
func (l *Loop) recordViews(before, now []View) {
	known := map[string]View{}
	for _, v := range before {
		known[v.Service.Name] = v
	}
	for _, v := range now {
		old, ok := known[v.Service.Name]
		was := ServiceUnknown
		if ok {
			was = old.state()
		}
		l.recordServers(old, v)
		is := v.state()
		if is == was || !ok && is == ServiceUp {
			continue
		}
		why := v.belowQuorum()
		if is == ServiceDown {
			why = "no server can serve"
		}
		l.record(events.Event{Type: events.ServiceState, Service: v.Service.Name, From: was, To: is, Text: why})
	}
}

func (l *Loop) recordServers(before, now View) {
	states := map[string]ServerState{}
	for _, s := range before.Servers {
		states[s.Address.String()] = s.State
	}
	for _, s := range now.Servers {
		was, ok := states[s.Address.String()]
		if !ok {
			was = ServerUnknown
		}
		if s.State == was || !ok && s.State == ServerUp {
			continue
		}
		l.record(events.Event{
			Type: events.ServerState, Service: now.Service.Name, Server: s.Address.String(), From: string(was), To: string(s.State), Text: s.Why,
		})
	}
}
