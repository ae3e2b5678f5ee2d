package loader

import (
	"fmt"
	"time"
)

// A pressure is how it stands with connections that are older than their slot's
// window. Who cannot be remembered, because a flood of segments of no connection
// takes all the room, goes to the previous owner while the window is open, and
// would move when it closes. So it stays open until they have had a whole window's
// time without pressure.
type pressure struct {
	last   time.Duration // when there was some, since boot; 0: never
	since  time.Duration // of granted
	before uint32        // how many had been remembered by then
	begun  bool          // before is known: an earlier daemon's count goes on
	said   bool
}

// measure looks at what the program has remembered and refused.
func (p *pressure) measure(t *tables, now time.Duration, tickNow uint32, window time.Duration) error {
	var cpus []lbAllowance
	if err := t.objects.StragglerAllowance.Lookup(uint32(0), &cpus); err != nil {
		return fmt.Errorf("read how many connections were remembered: %w", err)
	}
	granted := uint32(0)
	for _, c := range cpus {
		granted += c.Granted
		if c.Refused != 0 {
			// A tick may have begun since the caller looked at the clock.
			ago := time.Duration(max(0, int32(tickNow-c.Refused))) * tick
			p.last = max(p.last, now-ago)
		}
	}
	if !p.begun {
		p.begun, p.before, p.since = true, granted, now
	}
	// Who is not refused may have taken the place of others.
	if granted-p.before > t.objects.Stragglers.MaxEntries()/2 {
		p.last = now
	}
	if p.last == now || now-p.since >= window {
		p.before, p.since = granted, now
	}
	return nil
}

// over tells whether a window of this length may close.
func (p *pressure) over(now, window time.Duration) bool {
	return p.last == 0 || now-p.last >= window
}

// left is for how long no window of this length closes.
func (p *pressure) left(now, window time.Duration) time.Duration {
	if p.over(now, window) {
		return 0
	}
	return window - (now - p.last)
}
