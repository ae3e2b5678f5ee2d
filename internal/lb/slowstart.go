package lb

import "time"

// A server that comes back begins with firstPercent of its weight and gets more
// in equal steps: as many as there are seconds in its slow start, but no more
// than mostSteps, since each is a change of weights, and of layer 4's table.
const (
	firstPercent = 5
	mostSteps    = 19
)

// LeastStep is the least time between two steps of a slow start that takes seconds.
const LeastStep = time.Second

// SlowStartAt returns how much of its weight a server has when it has been back for
// a while, and when that changes next, counted from its return. After total it is
// 100, for good.
func SlowStartAt(total, since time.Duration) (percent int, next time.Duration) {
	if since >= total {
		return 100, 0
	}
	steps := min(max(total/LeastStep, 1), mostSteps)
	done := since * steps / total
	next = (total*(done+1) + steps - 1) / steps // rounded up, or done would be the same then
	return firstPercent + (100-firstPercent)*int(done)/int(steps), next
}

// GCD is the greatest common divisor: weights with slow starts in them need be no larger than
// their ratios ask for. Of 0 and n it is n.
func GCD(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
