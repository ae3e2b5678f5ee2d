package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A slowReader takes nothing before it is told to.
type slowReader struct {
	begin chan struct{}
	mu    sync.Mutex
	text  bytes.Buffer
}

func (r *slowReader) Write(b []byte) (int, error) {
	<-r.begin
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

// Whoever writes to the log waits for nobody, and what is left out is counted.
func TestLogWriterWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{begin: make(chan struct{})}
		w := newLogWriter(r)
		began := time.Now()
		const extra = 100
		fmt.Fprintln(w, "first")
		synctest.Wait() // it is in the reader's hands
		for i := range logBacklog + extra {
			fmt.Fprintln(w, i)
		}
		w.Close()
		if took := time.Since(began); took != logPatience {
			t.Errorf("took %v, want to wait for the reader %v in the end", took, logPatience)
		}
		close(r.begin)
		<-w.done
		lines := strings.Split(strings.TrimSpace(r.text.String()), "\n")
		last := len(lines) - 1
		if last != logBacklog+1 || lines[0] != "first" || lines[last-1] != fmt.Sprint(logBacklog-1) || !strings.HasSuffix(lines[last], fmt.Sprintf(" count=%d", extra)) {
			t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[max(0, last-1):])
		}
	})
}

// All that was said is there when the daemon has ended.
func TestLogWriterHandsOnWhatThereIs(t *testing.T) {
	r := &slowReader{begin: make(chan struct{})}
	close(r.begin)
	w := newLogWriter(r)
	for range 1000 {
		fmt.Fprintln(w, "line")
	}
	w.Close()
	if got := strings.Count(r.text.String(), "line\n"); got != 1000 {
		t.Errorf("got %d lines, want 1000", got)
	}
}

// Nobody reads the log, and there is no room for more: VRRP goes on all the same.
func TestVRRPDoesNotWaitForTheReaderOfTheLog(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRig(t, lab1())
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fd := writer.Fd() // once: each call makes it blocking again
	if _, err := unix.FcntlInt(fd, unix.F_SETFL, unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	for full := make([]byte, 4096); ; {
		if _, err := unix.Write(int(fd), full); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.FcntlInt(fd, unix.F_SETFL, 0); err != nil { // the daemon's writes wait
		t.Fatal(err)
	}
	cmd := r.startLoggingTo(writer)
	r.eventually(soon, "the VIP on lb1", func() (bool, error) { return r.has("lb1", vip), nil })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		t.Errorf("sluice ended with %v, want exit code 0", err)
	}
	r.wantRun(0, "lb1", "detach", "--force")
}
