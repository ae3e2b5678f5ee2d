package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// burn is what a busy process runs. It ends by itself, a moment after the process
// whose number it is given: also one that is killed leaves nothing that burns.
const burn = `while kill -0 "$1"; do n=0; while [ $n -lt 50000 ]; do n=$((n+1)); done; done`

// StartBusy starts so many processes that never rest. Stop ends them, each by its
// number, and waits for them; it may be called twice. After an error none is left.
func StartBusy(count int) (stop func(), err error) {
	var all []*exec.Cmd
	stop = sync.OnceFunc(func() {
		for _, cmd := range all {
			_ = cmd.Process.Kill() // it has not ended by itself
		}
		for _, cmd := range all {
			_ = cmd.Wait() // says that it was killed
		}
	})
	for range count {
		cmd := exec.Command("/bin/sh", "-c", burn, "busy", strconv.Itoa(os.Getpid()))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for who stops them
		if err := cmd.Start(); err != nil {
			stop()
			return nil, fmt.Errorf("start a busy process: %w", err)
		}
		all = append(all, cmd)
	}
	return stop, nil
}

// Busy runs so many processes that never rest, until the test ends.
func Busy(t testing.TB, count int) {
	t.Helper()
	stop, err := StartBusy(count)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// Churn keeps this process's garbage collector at work, over a heap of many small
// pieces, until the test ends.
func Churn(t testing.TB) {
	t.Helper()
	type piece struct {
		next *piece
		_    [5]uint64
	}
	const kept = 1 << 20
	quit := make(chan struct{})
	var done sync.WaitGroup
	for range 2 {
		done.Go(func() {
			heap := make([]*piece, kept/2)
			var last *piece
			for i := 0; ; i++ {
				if i%4096 == 0 {
					select {
					case <-quit:
						return
					default:
					}
					last = nil
				}
				p := &piece{next: last}
				last = p
				// Where the pieces lie is random, so that marking them is slow.
				heap[uint32(i*2654435761)%uint32(len(heap))] = p
			}
		})
	}
	t.Cleanup(func() { close(quit); done.Wait() })
}
