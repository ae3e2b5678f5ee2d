package track

import (
	"fmt"
	"strings"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A State is how something that is tracked stands.
type State string

// The states.
const (
	Unknown State = "unknown" // not found out yet; it changes nothing
	Passing State = "passing"
	Failing State = "failing"
)

// An Item is something that an instance tracks, as it stands.
type Item struct {
	Tracked lb.Tracked
	State   State
	Why     string // where it fails
	Effect  int    // what it adds to the priority now
	Faults  bool   // it is a fault of the instance now
}

// A Standing is what an instance's tracked items make of it.
type Standing struct {
	Base     uint8 // the configured priority
	Priority uint8 // with the effects of all items, 1 to 254; 255 where Base is
	Items    []Item
	Fault    string // why the instance cannot run; "": it can
	// Known: every check, service and upstream has been found out about.
	Known bool
}

// facts are what standings are computed from.
type facts interface {
	checkStatus(name string) CheckStatus
	link(name string) error
	service(name string) (known bool, problem string)
	upstream(name string) (known bool, problem string)
}

// stand computes the standing of an instance.
func stand(base uint8, track []lb.Tracked, f facts) Standing {
	s := Standing{Base: base, Priority: base, Known: true}
	sum := int(base)
	var faults []string
	for _, t := range track {
		item := Item{Tracked: t}
		var exhausted bool
		item.State, item.Why, exhausted = look(t, f)
		switch {
		case item.State == Unknown:
			s.Known = false
		case exhausted, t.Weight == 0:
			item.Faults = item.State == Failing
		case (t.Weight < 0) == (item.State == Failing):
			item.Effect = t.Weight
		}
		if item.Faults {
			faults = append(faults, item.Why)
		}
		sum += item.Effect
		s.Items = append(s.Items, item)
	}
	if base != 255 {
		s.Priority = uint8(min(max(sum, 1), 254))
	}
	s.Fault = strings.Join(faults, "; ")
	return s
}

// look finds out about one item. Exhausted: it is a check whose recovery was in
// vain.
func look(t lb.Tracked, f facts) (state State, why string, exhausted bool) {
	switch t.Kind {
	case lb.TrackInterface:
		if err := f.link(t.Name); err != nil {
			return Failing, err.Error(), false
		}
	case lb.TrackService, lb.TrackUpstream:
		of := f.service
		if t.Kind == lb.TrackUpstream {
			of = f.upstream
		}
		known, problem := of(t.Name)
		switch {
		case !known:
			return Unknown, "", false
		case problem != "":
			return Failing, fmt.Sprintf("%s %s is %s", t.Kind, t.Name, problem), false
		}
	default:
		switch c := f.checkStatus(t.Name); {
		case c.Verdict == health.Unknown:
			return Unknown, "", false
		case c.Verdict == health.Down && c.Exhausted:
			return Failing, fmt.Sprintf("check %s fails, and recovery was in vain: %s", t.Name, c.Why), true
		case c.Verdict == health.Down:
			return Failing, fmt.Sprintf("check %s fails: %s", t.Name, c.Why), false
		}
	}
	return Passing, "", false
}

// Sum says where the priority comes from, as in "98 = 100 - 2 (web_ok)"; "" where
// it is the configured one.
func (s Standing) Sum() string {
	var b strings.Builder
	sum := int(s.Base)
	for _, i := range s.Items {
		switch {
		case i.Effect > 0:
			fmt.Fprintf(&b, " + %d (%s)", i.Effect, i.Tracked.Name)
		case i.Effect < 0:
			fmt.Fprintf(&b, " - %d (%s)", -i.Effect, i.Tracked.Name)
		}
		sum += i.Effect
	}
	if b.Len() == 0 {
		return ""
	}
	limit := ""
	switch {
	case sum < 1:
		limit = ", at least 1"
	case sum > 254:
		limit = ", at most 254"
	}
	return fmt.Sprintf("%d = %d%s%s", s.Priority, s.Base, b.String(), limit)
}
