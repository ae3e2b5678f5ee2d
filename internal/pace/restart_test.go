// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// An engine that dies is started again, with the jobs that there are.
func TestEngineIsStartedAgain(t *testing.T) {
	w := newWire(t)
	var pids []int
	var mu sync.Mutex
	p, log := newPacer(t, func(control int) (func() error, error) {
		mu.Lock()
		defer mu.Unlock()
		wait, err := ownProcess(control)
		pids = append(pids, childOf(t))
		return wait, err
	})
	s := p.Slot("hello")
	s.Set(w.conn(), hello("one"))
	w.next()
	mu.Lock()
	pid := pids[0]
	mu.Unlock()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, soon, "another engine", func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return len(pids) > 1 && pids[1] != pid, nil
	})
	w.waitSilence(0)
	w.next()
	if !log.has("starting another") {
		t.Errorf("the log says %s", log.lines)
	}
}

// An engine that stands still, as a stopped process does, is one that is gone: another
// takes its place, and nothing waits for it.
func TestEngineThatStandsStill(t *testing.T) {
	w := newWire(t)
	started := make(chan int, 16)
	p, _ := newPacer(t, func(control int) (func() error, error) {
		wait, err := ownProcess(control)
		started <- childOf(t)
		return wait, err
	})
	stop := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // gone, if all is well
	}
	s := p.Slot("hello")
	j := hello("one")
	j.Lease = 400 * time.Millisecond
	s.Set(w.conn(), j)
	w.next()
	stop(<-started)
	w.waitSilence(100 * time.Millisecond)
	testenv.Eventually(t, soon, "another engine", func() (bool, error) {
		s.Renew()
		return len(started) > 0, nil
	})
	w.next()
	stop(<-started)
	ended := make(chan struct{})
	go func() { defer close(ended); p.Close() }()
	select {
	case <-ended:
	case <-time.After(soon):
		t.Error("Close waits for it for ever")
	}
}

// childOf returns the child process that was started last.
func childOf(t *testing.T) int {
	var b []byte
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		more, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			b = append(append(b, ' '), more...)
		}
	}
	pid := 0
	for _, word := range strings.Fields(string(b)) {
		if _, err := fmt.Sscan(word, &pid); err != nil {
			t.Error(err)
		}
	}
	return pid
}

// An engine that hangs takes no jobs. Once it goes on it is given what it could not take:
// until then it says what was true before.
func TestJobThatCouldNotBeTaken(t *testing.T) {
	gate := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(gate) })
	p, _ := newPacer(t, func(control int) (func() error, error) {
		ended := make(chan error, 1)
		go func() {
			<-gate
			ended <- errors.Join(Run(control), unix.Close(control))
		}()
		return func() error { return <-ended }, nil
	})
	t.Cleanup(goOn)
	w, other := newWire(t), newWire(t)
	fill, late := p.Slot("fill"), p.Slot("late")
	for n := 0; fill.Set(other.conn(), hello("fill")); n++ {
		if n > 1<<20 {
			t.Fatal("its queue is never full")
		}
	}
	if late.Set(w.conn(), hello("late")) || late.Renew() {
		t.Fatal("an engine that hangs has taken a job")
	}
	goOn()
	testenv.Eventually(t, soon, "the job is taken", func() (bool, error) { return late.Renew(), nil })
	if got := string(w.next()); got != "late" {
		t.Errorf("got %q, want late", got)
	}
}

// The place of a slot that is closed is another one's, as soon as nothing that is said of
// it can be about the one before: instances come and go for as long as the daemon runs.
func TestPlacesAreUsedAgain(t *testing.T) {
	w := newWire(t)
	p, _ := newPacer(t, Thread)
	places := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.slots)
	}
	for n := range 20 {
		s := p.Slot("hello")
		if !s.Set(w.conn(), hello(fmt.Sprint(n))) {
			t.Fatal("a job is refused")
		}
		testenv.Eventually(t, soon, "the message", func() (bool, error) { return string(w.next()) == fmt.Sprint(n), nil })
		s.Close()
		s.Close()
		if s.Set(w.conn(), hello("closed")) || s.Renew() {
			t.Fatal("a slot that is closed takes a job")
		}
		testenv.Eventually(t, soon, "the place is free", func() (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.free) == 1, nil
		})
	}
	if n := places(); n != 1 {
		t.Errorf("20 slots, one after the other, have taken %d places", n)
	}
	w.waitSilence(100 * time.Millisecond)
	kept, closed := p.Slot("kept"), p.Slot("closed")
	kept.Set(w.conn(), hello("kept"))
	// The engine that would say that it has cleared the place is gone.
	p.mu.Lock()
	p.abandon()
	p.mu.Unlock()
	closed.Close()
	testenv.Eventually(t, soon, "the place is free", func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.free) == 1 && p.socket >= 0, nil
	})
	testenv.Eventually(t, soon, "the other job", func() (bool, error) { return string(w.next()) == "kept", nil })
}
