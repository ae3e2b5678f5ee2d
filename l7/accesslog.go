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
	// logBacklog is what waits for the disk before more is dropped, in bytes.
	logBacklog = 2 << 20
	// logBatch is what is written at once, in bytes, without waiting for more.
	logBatch = 64 << 10
	// logDelay is how long a line waits for others, to be written with them.
	logDelay = 100 * time.Millisecond
	// lookForRotation is how often a log looks whether its file is another one now.
	lookForRotation = time.Second
)

// An accessLog is a file with a line for each request. Its own goroutine writes: a
// request never waits for the disk. What the disk does not take in time is dropped, and
// counted.
type accessLog struct {
	config     lb.AccessLog
	log        *slog.Logger
	backlog    int           // see logBacklog
	some, much chan struct{} // lines wait; so many that they are to be written now
	quit       chan struct{}
	done       chan struct{}
	dropped    *atomic.Uint64 // lines, of this log and others
	// users are the requests under way whose lines come here, and the configuration. With
	// the last one the log ends: whatever is configured meanwhile, no line is lost.
	users atomic.Int64

	mu      sync.Mutex
	waiting []byte // lines
	count   uint64 // of them
	problem string
}

// linePool has the memory of lines that are made.
var linePool = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// openAccessLog opens a log. It fails where the file cannot be opened now; what happens
// to it later is a problem.
func openAccessLog(config lb.AccessLog, lost *atomic.Uint64, log *slog.Logger) (*accessLog, error) {
	f, err := openLogFile(config.Path)
	if err != nil {
		return nil, fmt.Errorf("open the access log: %w", err)
	}
	l := &accessLog{
		config: config, log: log, backlog: logBacklog, dropped: lost,
		some: make(chan struct{}, 1), much: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	l.users.Store(1)
	go l.run(f)
	return l, nil
}

// hold keeps the log open until release. False: it has ended.
func (l *accessLog) hold() bool {
	for {
		n := l.users.Load()
		if n == 0 {
			return false
		}
		if l.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release ends a hold, or the configuration's use.
func (l *accessLog) release() {
	if l.users.Add(-1) == 0 {
		close(l.quit)
	}
}

// holdLog keeps the log open that the request's line goes to: that of its server, or,
// where another configuration has ended that since, of the one in force; nil: none.
func (x *exchange) holdLog() *accessLog {
	l := x.host.log
	for l != nil && !l.hold() {
		now := x.proxy.now.Load().log
		if now == l { // the proxy is closed
			return nil
		}
		l = now
	}
	return l
}

func openLogFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640) // not to wait for who reads a pipe
}

// put has a line written about a request that is over now. It waits for nothing.
func (l *accessLog) put(x *exchange, status int, took time.Duration) {
	line := linePool.Get().(*[]byte)
	if now := x.began.Add(took); l.config.Format == lb.LogJSON {
		*line = appendJSON((*line)[:0], x, status, took, now)
	} else {
		*line = appendCombined((*line)[:0], x, status, now)
	}
	l.add(*line)
	linePool.Put(line)
}

// add has a line wait for its turn.
func (l *accessLog) add(line []byte) {
	l.mu.Lock()
	before := len(l.waiting)
	if before+len(line) > l.backlog {
		l.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	l.waiting = append(l.waiting, line...)
	l.count++
	l.mu.Unlock()
	switch {
	case before == 0:
		wake(l.some)
	case before+len(line) >= logBatch:
		wake(l.much)
	}
}

// wake wakes up who waits for c, now or the next time.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run writes until nobody uses the log.
func (l *accessLog) run(f *os.File) {
	defer close(l.done)
	ticker := time.NewTicker(lookForRotation)
	defer ticker.Stop()
	var spare []byte // memory for the lines that come next
	for {
		select {
		case <-l.some:
			l.gather()
			spare = l.write(f, spare)
		case <-l.much:
			spare = l.write(f, spare)
		case <-ticker.C:
			f = l.follow(f)
		case <-l.quit:
			l.write(f, spare)
			if f != nil {
				f.Close()
			}
			return
		}
	}
}

// gather waits for more lines behind the first one.
func (l *accessLog) gather() {
	late := time.NewTimer(logDelay)
	defer late.Stop()
	select {
	case <-l.much:
	case <-late.C:
	case <-l.quit:
	}
}

// write writes the lines that wait, has others wait in spare, and returns the memory of
// those that it has written.
func (l *accessLog) write(f *os.File, spare []byte) []byte {
	l.mu.Lock()
	batch, lines := l.waiting, l.count
	l.waiting, l.count = spare[:0], 0
	l.mu.Unlock()
	if lines == 0 {
		return batch
	}
	err := errors.New("the file is gone")
	if f != nil {
		_, err = f.Write(batch)
	}
	if err != nil {
		l.dropped.Add(lines)
	}
	l.setProblem(err)
	if cap(batch) > 4*logBatch {
		return nil
	}
	return batch
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

// wait waits until the log has ended and all is written.
func (l *accessLog) wait() {
	late := time.NewTimer(closeWait)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C: // whoever should read it hangs: nothing else may wait for that
	}
}

// closeWait is how long the last lines may take.
const closeWait = time.Second
