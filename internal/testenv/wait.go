package testenv

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// pollInterval is how often WaitFor looks.
const pollInterval = 10 * time.Millisecond

// WaitFor calls f again and again until it returns true or ctx ends. An error
// of f means not yet; the last one is part of the returned error, which says
// that what ("the vip on lb2") never came. An error that wraps ErrGiveUp ends
// the wait at once.
func WaitFor(ctx context.Context, what string, f func() (bool, error)) error {
	start := time.Now()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ok, err := f()
		if ok && err == nil {
			return nil
		}
		if errors.Is(err, ErrGiveUp) {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			waited := time.Since(start).Round(time.Millisecond)
			if err != nil {
				return fmt.Errorf("wait for %s: not there after %v (%w); at the last look: %w", what, waited, context.Cause(ctx), err)
			}
			return fmt.Errorf("wait for %s: not there after %v: %w", what, waited, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// ErrGiveUp in a condition's error tells WaitFor that it can never be met.
var ErrGiveUp = errors.New("it can no longer come")

// Eventually is WaitFor in a test: it fails the test at the deadline.
func Eventually(t testing.TB, within time.Duration, what string, f func() (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := WaitFor(ctx, what, f); err != nil {
		t.Fatal(err)
	}
}
