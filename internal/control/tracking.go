package control

import (
	"time"

	"github.com/sluice-lb/sluice/internal/track"
)

// A CheckStatus is what is known of a check.
type CheckStatus struct {
	Name    string     `json:"name"`
	Type    string     `json:"type"`
	Verdict string     `json:"verdict"` // up, down, unknown
	Since   *time.Time `json:"since,omitempty"`
	Why     string     `json:"why,omitempty"` // it failed when it went down
	// Recovering: it has failed, and its recovery is at work; the verdict is the
	// last one meanwhile.
	Recovering bool `json:"recovering"`
	Attempts   int  `json:"attempts"`  // to recover, since it last passed for good
	Exhausted  bool `json:"exhausted"` // the attempts were in vain
	// The last run; LastError is "" if it passed.
	LastRun   *time.Time    `json:"last_run,omitempty"`
	Took      time.Duration `json:"took_ns"`
	LastError string        `json:"last_error,omitempty"`
}

// A Tracking is what the things that an instance tracks make of it.
type Tracking struct {
	Base     uint8         `json:"base_priority"` // the configured one
	Priority uint8         `json:"priority"`
	Sum      string        `json:"sum,omitempty"`   // where Priority comes from, if it is not Base
	Fault    string        `json:"fault,omitempty"` // what keeps the instance from running
	Items    []TrackedItem `json:"items"`
}

// A TrackedItem is something that an instance tracks.
type TrackedItem struct {
	Kind   string `json:"kind"` // check, interface, service
	Name   string `json:"name"`
	Weight int    `json:"weight"` // 0: a failure is a fault
	State  string `json:"state"`  // passing, failing, unknown
	Why    string `json:"why,omitempty"`
	Effect int    `json:"effect"` // on the priority
	Faults bool   `json:"faults"` // it is a fault now
}

// Checks describes checks.
func Checks(all []track.CheckStatus) []CheckStatus {
	out := []CheckStatus{}
	for _, c := range all {
		out = append(out, CheckStatus{
			Name: c.Check.Name, Type: string(c.Check.Type), Verdict: c.Verdict.String(), Since: unlessZero(c.Since), Why: c.Why,
			Recovering: c.Recovering, Attempts: c.Attempts, Exhausted: c.Exhausted,
			LastRun: unlessZero(c.LastRun), Took: c.LastDuration, LastError: c.LastError,
		})
	}
	return out
}

// NewTracking describes a standing; nil where nothing is tracked.
func NewTracking(s track.Standing) *Tracking {
	if len(s.Items) == 0 {
		return nil
	}
	t := &Tracking{Base: s.Base, Priority: s.Priority, Sum: s.Sum(), Fault: s.Fault}
	for _, i := range s.Items {
		t.Items = append(t.Items, TrackedItem{
			Kind: string(i.Tracked.Kind), Name: i.Tracked.Name, Weight: i.Tracked.Weight,
			State: string(i.State), Why: i.Why, Effect: i.Effect, Faults: i.Faults,
		})
	}
	return t
}

func unlessZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Quorum tells whether a service is known yet, and what is wrong with it: "" where
// as many servers are healthy as its quorum says.
func (l *Loop) Quorum(service string) (known bool, problem string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.views {
		if v.Service.Name == service {
			return true, v.belowQuorum()
		}
	}
	return false, ""
}
