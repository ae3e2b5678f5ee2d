// Package events keeps what happened: a bounded list of lines, in memory and in a
// file that outlives the daemon and the node's reboot. Recording waits for nothing,
// whatever the disk does.
package events

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// A Type says what kind of thing happened. Their names are a contract with
// whoever reads them.
type Type string

// The types. docs/operations.md says the same.
const (
	DaemonStart   Type = "daemon.start"
	DaemonReady   Type = "daemon.ready"   // the tables are written; VRRP takes part
	DaemonAdopt   Type = "daemon.adopt"   // the data plane of an earlier daemon goes on
	DaemonUpgrade Type = "daemon.upgrade" // that of an earlier version was taken over
	DaemonReload  Type = "daemon.reload"  // To: applied, refused
	DaemonStop    Type = "daemon.stop"

	VRRPState    Type = "vrrp.state"    // Instance; From and To: initialize, backup, active, fault
	VRRPPriority Type = "vrrp.priority" // Instance; From and To: numbers

	ServiceState  Type = "service.state"  // Service; From and To: up, below_quorum, down
	ServerState   Type = "server.state"   // Service, Server; From and To as in `sluice status`
	UpstreamState Type = "upstream.state" // Service, the upstream's name, Server; the same
	PoolState     Type = "pool.state"     // Service, the pool's name, Server; the same, for dns
	CheckState    Type = "check.state"    // Check; From and To: unknown, up, down
	CheckRecovery Type = "check.recovery" // Check; To: tried, recovered

	AlarmBegin Type = "alarm.begin" // Alarm, its kind; Instance, Service, Server or Peer where it is about one
	AlarmEnd   Type = "alarm.end"

	OperatorChange Type = "operator.change" // To: drain, disable, enable, weight, reset
)

// Types lists all types.
func Types() []Type {
	return []Type{
		DaemonStart, DaemonReady, DaemonAdopt, DaemonUpgrade, DaemonReload, DaemonStop, VRRPState, VRRPPriority,
		ServiceState, ServerState, UpstreamState, PoolState, CheckState, CheckRecovery, AlarmBegin, AlarmEnd, OperatorChange,
	}
}

// An Event is something that happened. Fields that say nothing are left out.
type Event struct {
	// Seq counts events, over restarts too. Numbers that are missing were lost.
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"` // UTC
	Type     Type      `json:"type"`
	Instance string    `json:"instance,omitempty"`
	Service  string    `json:"service,omitempty"`
	Server   string    `json:"server,omitempty"` // address and port
	Check    string    `json:"check,omitempty"`
	Alarm    string    `json:"alarm,omitempty"`
	Peer     string    `json:"peer,omitempty"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Text     string    `json:"text"` // why, in words
}

// maxText is the longest of an event's texts, in bytes.
const maxText = 1024

// maxSeq is a number that no event will ever have: where a file says so, those that
// follow would begin again at 0.
const maxSeq = 1 << 62

// encode makes a line of an event, with its end.
func encode(e Event) []byte {
	for _, s := range []*string{&e.Instance, &e.Service, &e.Server, &e.Check, &e.Alarm, &e.Peer, &e.From, &e.To, &e.Text} {
		*s = cut(*s)
	}
	line, err := json.Marshal(e)
	if err != nil { // a year beyond 9999 is all that it could be
		line, _ = json.Marshal(Event{Seq: e.Seq, Type: e.Type, Text: err.Error()}) // the zero time has no such year
	}
	return append(line, '\n')
}

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	s = s[:maxText]
	for !utf8.ValidString(s) && len(s) > maxText-utf8.UTFMax {
		s = s[:len(s)-1]
	}
	return s + "..."
}

// Decode reads a line. One that a crash has torn is an error.
func Decode(line []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("read an event: %w", err)
	}
	if e.Type == "" || e.Time.IsZero() {
		return e, fmt.Errorf("read an event: it has no time or no type")
	}
	if e.Seq > maxSeq {
		return e, fmt.Errorf("read an event: no event has the number %d", e.Seq)
	}
	return e, nil
}

// String is an event for people, without time and type.
func (e Event) String() string {
	var b strings.Builder
	part := func(between, s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(between)
		}
		b.WriteString(s)
	}
	for _, s := range []string{e.Instance, e.Service, e.Server, e.Check, e.Peer, e.Alarm} {
		part(" ", s)
	}
	change := e.To
	if e.From != "" {
		change = e.From + " -> " + e.To
	}
	part(": ", change)
	part(": ", e.Text)
	return b.String()
}
