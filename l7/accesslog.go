package l7

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

const (
	// logBacklog is how many lines wait for the disk before more are dropped.
	logBacklog = 8192
	// logBatch is what is written at once, in bytes, where so much waits.
	logBatch = 64 << 10
	// lookForRotation is how often a log looks whether its file is another one now.
	lookForRotation = time.Second
)

// An accessLog is a file with a line for each request. Its own goroutine writes: a
// request never waits for the disk. What the disk does not take in time is dropped, and
// counted.
type accessLog struct {
	config lb.AccessLog
	log    *slog.Logger
	lines  chan *[]byte
	quit   chan struct{}
	done   chan struct{}

	dropped atomic.Uint64
	mu      sync.Mutex
	problem string
}

// linePool has the memory of lines that are written.
var linePool = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// openAccessLog opens a log. It fails where the file cannot be opened now; what happens
// to it later is a problem.
func openAccessLog(config lb.AccessLog, log *slog.Logger) (*accessLog, error) {
	f, err := openLogFile(config.Path)
	if err != nil {
		return nil, fmt.Errorf("open the access log: %w", err)
	}
	l := &accessLog{config: config, log: log, lines: make(chan *[]byte, logBacklog), quit: make(chan struct{}), done: make(chan struct{})}
	go l.run(f)
	return l, nil
}

func openLogFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640) // not to wait for who reads a pipe
}

// put has a line written about a request. It waits for nothing.
func (l *accessLog) put(x *exchange, status int, took time.Duration) {
	if len(l.lines) == cap(l.lines) {
		l.dropped.Add(1)
		return
	}
	line := linePool.Get().(*[]byte)
	if l.config.Format == lb.LogJSON {
		*line = appendJSON((*line)[:0], x, status, took)
	} else {
		*line = appendCombined((*line)[:0], x, status)
	}
	select {
	case l.lines <- line:
	default:
		l.dropped.Add(1)
		linePool.Put(line)
	}
}

// run writes until close.
func (l *accessLog) run(f *os.File) {
	defer close(l.done)
	ticker := time.NewTicker(lookForRotation)
	defer ticker.Stop()
	for {
		select {
		case line := <-l.lines:
			l.write(f, line)
		case <-ticker.C:
			f = l.follow(f)
		case <-l.quit:
			for {
				select {
				case line := <-l.lines:
					l.write(f, line)
					continue
				default:
				}
				break
			}
			if f != nil {
				f.Close()
			}
			return
		}
	}
}

// write writes a line, and those that wait behind it.
func (l *accessLog) write(f *os.File, first *[]byte) {
	lines := uint64(1)
	batch := *first
	for len(batch) < logBatch {
		select {
		case more := <-l.lines:
			batch = append(batch, *more...)
			linePool.Put(more)
			lines++
			continue
		default:
		}
		break
	}
	err := errors.New("the file is gone")
	if f != nil {
		_, err = f.Write(batch)
	}
	if err != nil {
		l.dropped.Add(lines)
	}
	l.setProblem(err)
	if cap(batch) <= logBatch {
		*first = batch[:0]
		linePool.Put(first)
	}
}

// follow opens the file anew where a rotation has put another one in its place, or
// none.
func (l *accessLog) follow(f *os.File) *os.File {
	if f != nil {
		there, err := os.Stat(l.config.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.setProblem(err)
			return f
		}
		if mine, statErr := f.Stat(); err == nil && statErr == nil && os.SameFile(there, mine) {
			return f
		}
	}
	anew, err := openLogFile(l.config.Path)
	l.setProblem(err)
	if err != nil {
		return f
	}
	if f != nil {
		f.Close()
	}
	return anew
}

func (l *accessLog) setProblem(err error) {
	problem := ""
	if err != nil {
		problem = fmt.Sprintf("access log %s is not written: %v", l.config.Path, err)
	}
	l.mu.Lock()
	before := l.problem
	l.problem = problem
	l.mu.Unlock()
	if problem != "" && before == "" {
		l.log.Error("the access log is not written", "path", l.config.Path, "error", err)
	}
}

// Problem tells what is wrong with the file; "": nothing.
func (l *accessLog) Problem() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problem
}

// close writes what there is and waits for it.
func (l *accessLog) close() {
	close(l.quit)
	late := time.NewTimer(closeWait)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C: // whoever should read it hangs: nothing else may wait for that
	}
}

// closeWait is how long the last lines may take.
const closeWait = time.Second
