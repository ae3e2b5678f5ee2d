package health

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A runner is a target in a Checker: what is known about it, and the rules by
// which results change that.
type runner struct {
	target   Target
	identity string
	action   string
	rhythm   rhythm
	cancel   context.CancelFunc
	done     chan struct{} // closed when no run is under way or will be

	// Guarded by Checker.mu.
	status  Status
	decided bool // a result of this probe has decided the verdict
}

func newRunner(t Target, cancel context.CancelFunc) *runner {
	r := &runner{
		target:   t,
		identity: t.Identity(),
		action:   t.action(),
		cancel:   cancel,
		done:     make(chan struct{}),
		status:   Status{Target: t},
	}
	r.target.Probe.Interval = positive(t.Probe.Interval)
	r.target.Probe.Timeout = positive(t.Probe.Timeout)
	r.rhythm = newRhythm(r.action, r.target.Probe.Interval)
	return r
}

// positive guards the loop against a configuration that nobody has checked.
func positive(d time.Duration) time.Duration {
	if d <= 0 {
		return time.Second
	}
	return d
}

// inherit takes over what is known from the runners that r replaces, if there
// are any among those of before.
func (r *runner) inherit(before []*runner) {
	var verdicts [Down + 1]*runner
	for _, old := range before {
		switch {
		case old.action == r.action:
			target := r.status.Target
			r.status, r.decided = old.status, old.decided
			r.status.Target = target
			return
		case old.target.Endpoint() == r.target.Endpoint():
			verdicts[old.status.Verdict] = old
		}
	}
	// Where two probes of an endpoint disagreed, Up stands: the result of the
	// new one is at most 100 ms and a run away, and a server that is wrongly
	// given traffic for so long harms less than one whose connections move away.
	for _, v := range []Verdict{Up, Down} {
		if old := verdicts[v]; old != nil {
			r.status.Verdict, r.status.Since = v, old.status.Since
			return
		}
	}
}

// unreached reports whether a failure may be one of the way to the server: a command does
// not say where it has failed.
func (r *runner) unreached(err error) bool {
	return r.target.Probe.Type == lb.ProbeExec || unreached(err)
}

// undecided reports whether all that is known are failures, too few for a verdict.
func (s *Status) undecided() bool { return s.Verdict == Unknown && s.Failures > 0 }

// Tried reports whether there has been a result, whether or not it has decided.
func (s *Status) Tried() bool { return s.Verdict != Unknown || s.undecided() }

// WhyUnknown says why there is no verdict on a target that is probed like this.
func (s *Status) WhyUnknown(p lb.Probe) string {
	if !s.Tried() {
		return "not probed yet"
	}
	return fmt.Sprintf("%d of %d probes have failed: %s", s.Failures, p.Fall, s.LastError)
}

// pace is the rhythm by which the next run follows.
func (r *runner) pace() rhythm {
	if r.status.undecided() {
		return rhythm{min(r.rhythm.interval, undecidedEvery), r.rhythm.hash}
	}
	return r.rhythm
}

// record changes the status by the result of a run, err.
func (r *runner) record(began, ended time.Time, err error) {
	s := &r.status
	s.LastRun, s.LastDuration, s.LastError = began, ended.Sub(began), ""
	if err != nil {
		s.LastError = err.Error()
	}
	s.Checks++
	if inconclusive(err) {
		return
	}
	verdict := s.Verdict
	if err == nil {
		s.Successes, s.Failures = s.Successes+1, 0
		if !r.decided || s.Successes >= r.target.Probe.Rise {
			verdict = Up
		}
	} else {
		s.Successes, s.Failures = 0, s.Failures+1
		first := !r.decided && (verdict != Unknown || !r.unreached(err))
		if first || s.Failures >= r.target.Probe.Fall {
			verdict = Down
		}
	}
	r.decided = verdict != Unknown
	if verdict != s.Verdict {
		s.Verdict, s.Since = verdict, ended
	}
}
