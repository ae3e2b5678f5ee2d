package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StopGrace is how long a process has to end after SIGTERM before it is killed.
// A planned stop of VRRP with an interval of 1 s may wait for a peer for 4.6 s.
const StopGrace = 15 * time.Second

// A Process runs on a host, in a session and process group of its own: a
// terminal's Ctrl-C does not reach it.
type Process struct {
	Name string
	host *Host
	cmd  *exec.Cmd
	id   ProcessID
	log  string

	done chan struct{} // closed when it has been waited for
	err  error         // of Wait; read after done

}

// Start starts cmd on the host. Name is unique among the host's running
// processes. Standard output and error, unless cmd redirects them, go to the
// host's log/NAME.log, after what an earlier process of that name wrote. The
// environment, unless cmd sets it, is h.Env. The lab stops it at Close.
func (h *Host) Start(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, host: h, cmd: cmd, log: filepath.Join(h.dir, "log", name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer func() { _ = out.Close() }() // the child has its own descriptor
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = out
	}
	if cmd.Env == nil {
		cmd.Env = h.Env()
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A grandchild that keeps a pipe open must not keep Wait from returning.
	cmd.WaitDelay = time.Second

	// The child inherits the namespace of the thread that forks it.
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	shareOfSession(cmd.Process.Pid, preferred)
	// Until it is waited for below, the process cannot vanish.
	if p.id, err = IdentifyProcess(cmd.Process.Pid); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	h.lab.adopt(p)
	return p, nil
}

// Run runs a program on the host to its end and returns what it wrote to both
// outputs. When ctx ends, it is killed with its process group.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = h.Env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := h.Do(cmd.Start)
	if err == nil {
		shareOfSession(cmd.Process.Pid, preferred)
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("run %s on %s: %w: %s", strings.Join(cmd.Args, " "), h.Name, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// What a session has of the CPUs, beside others (autogroups, sched(7)): as a service manager
// gives to what must not wait, some ten times as much as others; and as little as can be.
// With what all others have, a process may wait for seconds while the machine is busy.
const preferred, least = "-10", "19"

// shareOfSession sets the share of a process's session. Where there are no shares, or the
// process has ended already, nothing needs to be done.
func shareOfSession(pid int, nice string) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(nice), 0)
}

// GiveWay has the process and what it starts run only where others leave time. What it
// does about its priority itself counts among its own threads alone.
func (p *Process) GiveWay() {
	if !p.ended() {
		shareOfSession(p.id.PID, least)
	}
}

// ID identifies the process beyond its end.
func (p *Process) ID() ProcessID { return p.id }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns its error, as exec.Cmd does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the process alone; to one that has ended it is an
// error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s on %s: %w", sig, p.Name, p.host.Name, err)
	}
	return nil
}

// Stop ends the process with SIGTERM, and with SIGKILL for its whole group when
// it takes longer than StopGrace, which is an error.
func (p *Process) Stop() error {
	if p.ended() {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(StopGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	return errors.Join(fmt.Errorf("stop %s on %s: still running %v after SIGTERM, killed", p.Name, p.host.Name, StopGrace), p.Kill())
}

// Kill ends the process and its group with SIGKILL and waits for the end.
func (p *Process) Kill() error {
	if p.ended() {
		return nil
	}
	// Not yet waited for, the process keeps its id: the group is its own. ESRCH
	// is a group that has ended in this moment.
	if err := unix.Kill(-p.id.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill %s on %s: %w", p.Name, p.host.Name, err)
	}
	<-p.done
	return nil
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *Process) stop() error { return p.Stop() }

// Tail returns the last lines of the process's log.
func (p *Process) Tail(lines int) string { return tail(p.log, lines) }

// tail returns the last lines of a file, or why it cannot be read.
func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimRight(data, "\n")
	end := len(data)
	for range lines {
		i := bytes.LastIndexByte(data[:end], '\n')
		if i < 0 {
			return string(data)
		}
		end = i
	}
	return string(data[end+1:])
}

// A ProcessID names a process for ever: a number alone is given to another
// process one day.
type ProcessID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// IdentifyProcess returns the identity of the process that has the pid now.
func IdentifyProcess(pid int) (ProcessID, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ProcessID{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	// The command's name, in parentheses, may hold anything. What follows it
	// starts with field 3, the state.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return ProcessID{}, fmt.Errorf("identify process %d: /proc/%d/stat has %d fields", pid, pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return ProcessID{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return ProcessID{PID: pid, Start: start}, nil
}

// End ends the process, which need not be a child of this one, with SIGTERM and
// after the grace with SIGKILL, and waits until it is gone. A process that has
// ended, its number reused or not, is no error.
func (id ProcessID) End(grace time.Duration) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", id.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	// The descriptor stays with the process that it was opened for, so that
	// this comparison holds for the signals below.
	if now, err := IdentifyProcess(id.PID); err != nil || now != id {
		return nil
	}
	for _, step := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, StopGrace}} {
		if err := unix.PidfdSendSignal(fd, step.sig, nil, 0); err == unix.ESRCH {
			return nil
		} else if err != nil {
			return fmt.Errorf("send %v to process %d: %w", step.sig, id.PID, err)
		}
		gone, err := waitReadable(fd, step.wait)
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", id.PID, err)
		}
		if gone {
			return nil
		}
	}
	return fmt.Errorf("end process %d: still there %v after SIGKILL", id.PID, StopGrace)
}

// waitReadable waits until fd can be read; a pidfd can when its process ends.
func waitReadable(fd int, timeout time.Duration) (bool, error) {
	deadline := time.Now().Add(timeout)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		return n > 0, err
	}
}

// allProcesses returns the ids of all processes.
func allProcesses() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
