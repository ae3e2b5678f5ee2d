package testenv

import "time"

// A Timeline holds when answers came, from its start to its end.
type Timeline struct {
	Start time.Time
	// Length is the time from Start to the end of the measurement.
	Length time.Duration
	// Answers are times after Start, in ascending order.
	Answers []time.Duration
}

// LongestSilence returns the longest time without an answer and when it began,
// after Start. The times before the first answer and after the last one count.
func (t Timeline) LongestSilence() (silence, began time.Duration) {
	return t.longestSilence(0, t.Length)
}

// LongestSilenceBetween looks at a part of the timeline only. A silence that
// reaches out of it is cut off at its limits.
func (t Timeline) LongestSilenceBetween(from, to time.Time) (silence, began time.Duration) {
	return t.longestSilence(max(from.Sub(t.Start), 0), min(to.Sub(t.Start), t.Length))
}

func (t Timeline) longestSilence(from, to time.Duration) (silence, began time.Duration) {
	last := from
	for _, at := range t.Answers {
		if at <= from {
			continue
		}
		if at >= to {
			break
		}
		if at-last > silence {
			silence, began = at-last, last
		}
		last = at
	}
	if to-last > silence {
		silence, began = to-last, last
	}
	return silence, began
}
