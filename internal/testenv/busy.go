package testenv

import (
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// Busy runs so many processes that never rest, until the test ends.
func Busy(t testing.TB, count int) {
	t.Helper()
	for range count {
		cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatalf("start a busy process: %v", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it has not ended by itself
			_ = cmd.Wait()         // says that it was killed
		})
	}
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
