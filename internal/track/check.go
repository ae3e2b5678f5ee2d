package track

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/command"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// recoverTimeout bounds a command that recovers something.
const recoverTimeout = time.Minute

// A CheckStatus is what is known of a check.
type CheckStatus struct {
	Check   lb.Check
	Verdict health.Verdict
	Since   time.Time // when the verdict was reached; zero while Unknown
	Why     string    // it failed when the verdict became Down; "" otherwise
	// Recovering: the check has failed, and its recovery is at work. The verdict
	// is the last one meanwhile.
	Recovering bool
	// Attempts were made to recover since the check last passed Rise times in a
	// row; Exhausted: all that there are, in vain.
	Attempts  int
	Exhausted bool

	// The last finished run; zero before the first.
	LastRun      time.Time // its start
	LastDuration time.Duration
	LastError    string // "" if it passed
}

// A checker runs one check again and again. Its runs, and what its recovery
// does, never overlap.
type checker struct {
	check   lb.Check
	run     func(context.Context, lb.Check) error
	recover func(context.Context, []string) error
	changed func()                        // called when the status has changed in more than its last run
	told    func(before, now CheckStatus) // as Told.Check
	log     *slog.Logger

	ctx    context.Context // ends with its place in the configuration
	cancel context.CancelFunc

	successes, failures int // in a row

	mu     sync.Mutex
	status CheckStatus
}

func newChecker(c lb.Check, w World, changed func(), log *slog.Logger) *checker {
	return &checker{
		check: c, run: w.Run, recover: w.Recover, changed: changed, log: log.With("check", c.Name),
		told: func(CheckStatus, CheckStatus) {}, status: CheckStatus{Check: c},
	}
}

// runCommand is how a real World recovers.
func runCommand(ctx context.Context, args []string) error {
	return command.Command{Args: args}.Run(ctx)
}

// inherit takes over the verdict of one that it takes the place of.
func (c *checker) inherit(old *checker) {
	s := old.get()
	c.status.Verdict, c.status.Since, c.status.Why = s.Verdict, s.Since, s.Why
	c.status.Exhausted = s.Exhausted && c.check.Recover != nil
}

func (c *checker) get() CheckStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *checker) update(f func(*CheckStatus)) {
	c.mu.Lock()
	f(&c.status)
	c.mu.Unlock()
}

// loop runs the check until ctx ends, first at once.
func (c *checker) loop(ctx context.Context) {
	for {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return // the run was broken off: its result says nothing
		}
		if c.take(err) {
			c.tryRecovery(ctx)
			began = time.Now()
		}
		if !wait(ctx, max(0, c.check.Interval-time.Since(began))) {
			return
		}
	}
}

// once runs the check and notes how that went.
func (c *checker) once(ctx context.Context) error {
	began := time.Now()
	err := c.run(ctx, c.check)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	before := c.get().LastError
	c.update(func(s *CheckStatus) { s.LastRun, s.LastDuration, s.LastError = began, time.Since(began), text })
	if health.Inconclusive(err) && text != before {
		c.log.Warn("cannot run the check", "error", err)
	}
	return err
}

// take changes the verdict by the result of a run. It reports whether the check
// has failed and a recovery is to be tried first.
func (c *checker) take(err error) (recover bool) {
	s := c.get()
	switch {
	case health.Inconclusive(err):
	case err == nil:
		c.successes, c.failures = c.successes+1, 0
		if c.successes >= c.check.Rise {
			c.update(func(s *CheckStatus) { s.Attempts = 0 })
		}
		if s.Verdict == health.Unknown || s.Verdict == health.Down && c.successes >= c.check.Rise {
			c.decide(health.Up, "")
		}
	default:
		c.successes, c.failures = 0, c.failures+1
		if s.Verdict == health.Down || s.Verdict == health.Up && c.failures < c.check.Fall {
			break
		}
		if c.check.Recover != nil && s.Attempts < c.check.Recover.Attempts {
			return true
		}
		c.decide(health.Down, err.Error())
	}
	return false
}

func (c *checker) decide(v health.Verdict, why string) {
	before := c.get()
	c.update(func(s *CheckStatus) {
		s.Verdict, s.Since, s.Why, s.Recovering = v, time.Now(), why, false
		s.Exhausted = v == health.Down && c.check.Recover != nil
	})
	if v == health.Up {
		c.log.Info("check passes")
	} else {
		c.log.Warn("check fails", "error", why)
	}
	c.told(before, c.get())
	c.changed()
}

// tryRecovery runs the recovery, waits, and runs the check again, until that
// passes or no attempt is left. One pass is enough here, but the attempts are
// used up until the check has passed Rise times: what dies again and again is not
// recovered for ever.
func (c *checker) tryRecovery(ctx context.Context) {
	for {
		attempt, before := 0, c.get()
		c.update(func(s *CheckStatus) {
			s.Recovering, s.Attempts = true, s.Attempts+1
			attempt = s.Attempts
		})
		c.told(before, c.get())
		c.changed()
		c.log.Warn("check fails: recovering", "error", c.get().LastError, "command", c.check.Recover.Command,
			"attempt", attempt, "of", c.check.Recover.Attempts)
		limited, cancel := context.WithTimeout(ctx, recoverTimeout)
		err := c.recover(limited, c.check.Recover.Command)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.log.Error("the command for recovery failed", "error", err)
		}
		if !wait(ctx, c.check.Recover.Wait) {
			return
		}
		if err = c.conclusive(ctx); ctx.Err() != nil {
			return
		}
		if err == nil {
			c.log.Info("check passes again after its recovery", "attempt", attempt)
		}
		if !c.take(err) {
			before := c.get()
			c.update(func(s *CheckStatus) { s.Recovering = false })
			if before.Recovering { // else its end was a verdict, and is told
				c.told(before, c.get())
			}
			c.changed()
			return
		}
	}
}

// conclusive runs the check until a run has a result.
func (c *checker) conclusive(ctx context.Context) error {
	for {
		err := c.once(ctx)
		if !health.Inconclusive(err) || !wait(ctx, c.check.Interval) {
			return err
		}
	}
}

// wait returns false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
