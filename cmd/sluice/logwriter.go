package main

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// logBacklog is how many lines wait for who reads the log, and logPatience how long the
	// daemon waits for him when it ends.
	logBacklog  = 4096
	logPatience = time.Second
)

// A logWriter hands lines on in a goroutine of its own: who reads the log may be slow, or
// hang, and VRRP must not wait for him. Lines for which there is no room are left out,
// which is said when there is room again.
type logWriter struct {
	to    io.Writer
	lines chan []byte
	quit  chan struct{}
	done  chan struct{}

	mu   sync.Mutex
	lost int
}

// newLogWriter returns a logWriter. Close it.
func newLogWriter(to io.Writer) *logWriter {
	w := &logWriter{to: to, lines: make(chan []byte, logBacklog), quit: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line. It waits for nothing.
func (w *logWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.mu.Lock()
		w.lost++
		w.mu.Unlock()
	}
	return len(line), nil
}

// Close hands on what there is, but waits no longer than a second.
func (w *logWriter) Close() {
	close(w.quit)
	select {
	case <-w.done:
	case <-time.After(logPatience):
	}
}

func (w *logWriter) run() {
	defer close(w.done)
	for more := true; more; {
		select {
		case line := <-w.lines:
			w.hand(line)
		case <-w.quit:
			more = false
		}
		for len(w.lines) > 0 {
			w.hand(<-w.lines)
		}
		w.tellLost()
	}
}

func (w *logWriter) hand(line []byte) {
	_, _ = w.to.Write(line) // nobody can be told
}

// tellLost says how many lines were left out since it was said last.
func (w *logWriter) tellLost() {
	w.mu.Lock()
	lost := w.lost
	w.lost = 0
	w.mu.Unlock()
	if lost > 0 {
		log := slog.New(slog.NewTextHandler(w.to, nil))
		log.Warn("who reads the log was too slow: lines were left out", "count", lost)
	}
}
