package control

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestLoopReportsInterfacesThatAreGone(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		healthy(w)
		close(w.ready)
		wantCounts(t, w, "at start", 1, 1)
		lose := func(err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.absent = err
		}
		wantProblem := func(when, want string) {
			t.Helper()
			if _, got := l.Views(); got != want {
				t.Errorf("%s: problem %q, want %q", when, got, want)
			}
		}

		// Nobody tells the loop: it looks by itself.
		lose(errors.New("eth0 is gone"))
		time.Sleep(lookEvery + time.Millisecond)
		wantProblem("eth0 is gone", "eth0 is gone")
		wantCounts(t, w, "nothing to write", 1, 1)

		w.refuse(errRefused)
		w.lead("192.0.2.11", 99)
		l.Dirty()
		time.Sleep(time.Millisecond)
		wantProblem("a write fails, too", "write the data plane: no room; eth0 is gone")

		w.refuse(nil)
		lose(nil)
		time.Sleep(lookEvery + time.Millisecond)
		wantProblem("all is well", "")
	})
}
