package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsWatch in the environment makes this program a watch: see watchStalls.
const actAsWatch = "FAILOVER_IS_WATCH"

const (
	// stallOver is what counts as a stall: so long nobody ran, who ought to every
	// millisecond.
	stallOver = 4 * time.Millisecond
	// fresh is how soon after a stall it may be why something happened.
	fresh = 200 * time.Millisecond
)

// A stall is a time in which the machine let nobody run, whatever the priority: on a
// kernel that does not preempt itself, another program's long system call on each CPU
// does that. No program can help it.
type stall struct {
	End    time.Time
	Length time.Duration
}

// watchStalls is a process of its own, with nothing in it that could be late by itself:
// a thread on each CPU wakes up each millisecond, and all threads of the process have
// real-time priority, above that of pacemakers. Whoever wakes looks how long ago another
// one did. When in ends it writes the stalls to out.
func watchStalls(in io.Reader, out io.Writer) error {
	debug.SetGCPercent(-1)
	cpus, err := testenv.CPUs()
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(len(cpus) + 4) // no thread of it waits for another
	if err := allInRealTime(); err != nil {
		return err
	}
	var last atomic.Int64 // when one of them woke up, after began
	var quit atomic.Bool
	var mu sync.Mutex
	stalls := []stall{}
	began := time.Now()
	look := func() {
		now := int64(time.Since(began))
		if length := time.Duration(now - last.Swap(now)); length > stallOver {
			mu.Lock()
			defer mu.Unlock()
			stalls = append(stalls, stall{began.Add(time.Duration(now)), length})
		}
	}
	var all sync.WaitGroup
	errs := make([]error, len(cpus))
	for i, cpu := range cpus {
		all.Go(func() {
			errs[i] = testenv.OnCPUs([]int{cpu}, func() error {
				pause := unix.NsecToTimespec(int64(time.Millisecond))
				for !quit.Load() {
					if err := unix.Nanosleep(&pause, nil); err != nil && err != unix.EINTR {
						return fmt.Errorf("sleep: %w", err)
					}
					look()
				}
				return nil
			})
		})
	}
	_, err = io.Copy(io.Discard, in)
	quit.Store(true)
	all.Wait()
	return errors.Join(errors.Join(errs...), err, json.NewEncoder(out).Encode(stalls))
}

// allInRealTime gives all threads of this process real-time priority, and with it those
// that they start.
func allInRealTime() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		const above = 30
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: above}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("set real-time priority: %w", err)
		}
	}
	return nil
}

// A watch is the process.
type watch struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

// startWatch begins to watch the machine. The process ends with this one, however.
func startWatch() (*watch, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("watch for stalls: %w", err)
	}
	w := &watch{cmd: exec.Command(self)}
	w.cmd.Env, w.cmd.Stderr = append(os.Environ(), actAsWatch+"=1"), os.Stderr
	w.in, err = w.cmd.StdinPipe()
	if err == nil {
		w.out, err = w.cmd.StdoutPipe()
	}
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("watch for stalls: %w", err)
	}
	return w, nil
}

// stop ends it, and returns the stalls that there were.
func (w *watch) stop() ([]stall, error) {
	var stalls []stall
	err := w.in.Close()
	if err == nil {
		err = json.NewDecoder(bufio.NewReader(w.out)).Decode(&stalls)
	}
	if err := errors.Join(err, w.cmd.Wait()); err != nil {
		return nil, fmt.Errorf("watch for stalls: %w", err)
	}
	return stalls, nil
}

// longest is the longest stall; 0: there was none.
func longest(stalls []stall) (d time.Duration) {
	for _, s := range stalls {
		d = max(d, s.Length)
	}
	return d
}

// stalledBefore is the longest stall that ended shortly before a moment, or lasted then.
func stalledBefore(stalls []stall, at time.Time) (d time.Duration) {
	for _, s := range stalls {
		if begin := s.End.Add(-s.Length); begin.Before(at) && s.End.After(at.Add(-fresh)) {
			d = max(d, s.Length)
		}
	}
	return d
}
