package events

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// Kept is how many events are kept, the latest.
	Kept = 10000
	// retryAfter is the wait after the file could not be written. It doubles with each
	// further failure, up to retryMost: each try writes the whole file, and a disk that
	// is full has other things to do.
	retryAfter = time.Second
	retryMost  = time.Minute
	// closeTimeout bounds the wait for a disk that hangs when the daemon ends.
	closeTimeout = 2 * time.Second
)

// A Log records events. A goroutine of its own writes them to the file; while that
// cannot be written they are kept in memory alone, and written when it can again.
// A nil Log records nothing.
type Log struct {
	file file
	log  *slog.Logger
	wake chan struct{} // has a value when there is something to write
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex
	lines   [][]byte // that of number n stands at n % Kept
	first   uint64   // number of the oldest one that is kept
	last    uint64   // of the latest; first-1 where there is none
	counts  map[Type]uint64
	more    chan struct{} // closed when there is another one
	problem string
	before  Event // the last one of an earlier daemon
}

// Open reads what is kept in a file, and goes on with it. What is wrong with the
// file is no error but a Problem: a full disk stops no daemon.
func Open(path string, log *slog.Logger) *Log {
	l := &Log{
		file: file{path: path}, log: log, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		lines: make([][]byte, Kept), first: 1, counts: map[Type]uint64{}, more: make(chan struct{}),
	}
	lines, err := l.file.load()
	l.setProblem(err)
	for i, e := range lines {
		if i == 0 {
			l.first = max(1, e.Seq)
			l.last = l.first - 1
		}
		if e.Seq <= l.last { // somebody has put the file together
			e.Seq = l.last + 1
		}
		for n := max(l.last+1, e.Seq-min(e.Seq, Kept)); n < e.Seq; n++ {
			l.lines[n%Kept] = nil // it was lost
		}
		l.put(e)
		l.before = e
	}
	l.file.written = l.last
	go l.run()
	return l
}

// Before is the last event of an earlier daemon; zero: none is known.
func (l *Log) Before() Event { return l.before }

// Record adds an event. Its number is set, and its time where it has none. It waits
// for nothing.
func (l *Log) Record(e Event) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	e.Seq = l.last + 1
	l.put(e)
	l.counts[e.Type]++
	close(l.more)
	l.more = make(chan struct{})
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// put is for who holds l.mu.
func (l *Log) put(e Event) {
	l.lines[e.Seq%Kept] = encode(e)
	l.last = e.Seq
	if l.last-l.first >= Kept {
		l.first = l.last - Kept + 1
	}
}

// After returns the events behind a number, as lines, oldest first, and the number
// of the last of all. More is closed when there is another one.
func (l *Log) After(seq uint64) (lines [][]byte, last uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq > l.last {
		seq = 0 // it is of another file's
	}
	return l.after(seq), l.last, l.more
}

func (l *Log) after(seq uint64) (lines [][]byte) {
	for n := max(seq+1, l.first); n <= l.last; n++ {
		if line := l.lines[n%Kept]; line != nil {
			lines = append(lines, line)
		}
	}
	return lines
}

// Counts tells how many of each type have been recorded since Open.
func (l *Log) Counts() map[Type]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[Type]uint64{}
	for t, n := range l.counts {
		counts[t] = n
	}
	return counts
}

// Problem tells why events are not kept in the file; "": they are.
func (l *Log) Problem() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problem
}

// Close writes what there is still, but waits for a disk that hangs no longer than
// two seconds.
func (l *Log) Close() error {
	close(l.quit)
	over := time.NewTimer(closeTimeout)
	defer over.Stop()
	select {
	case <-l.done:
	case <-over.C:
		l.log.Error("the last events are not in the file: the disk hangs")
	}
	return nil
}

// run writes the file until Close.
func (l *Log) run() {
	defer close(l.done)
	retry := time.NewTimer(0)
	defer retry.Stop()
	wait := time.Duration(0) // 0: the last try has not failed
	for more := true; more; {
		select {
		case <-l.wake:
			if wait > 0 {
				continue // it is tried again in a moment
			}
		case <-retry.C:
		case <-l.quit:
			more = false
		}
		if l.write() == nil {
			wait = 0
			continue
		}
		wait = min(max(2*wait, retryAfter), retryMost)
		retry.Reset(wait)
	}
	l.file.close()
}

// write brings the file up to date.
func (l *Log) write() error {
	fits := l.file.fit()
	l.mu.Lock()
	lines, last := l.after(l.file.written), l.last
	whole := !fits || l.file.written+1 < l.first || l.file.lines+len(lines) > most
	if whole {
		lines = l.after(0)
	}
	l.mu.Unlock()
	if len(lines) == 0 {
		return nil
	}
	add := l.file.add
	if whole {
		add = l.file.replace
	}
	err := add(lines)
	if err == nil {
		l.file.written = last
	}
	l.setProblem(err)
	return err
}

func (l *Log) setProblem(err error) {
	problem := ""
	if err != nil {
		problem = "events are not kept over a restart: " + err.Error()
	}
	l.mu.Lock()
	before := l.problem
	l.problem = problem
	l.mu.Unlock() // whoever reads the log may be slow
	switch {
	case problem == before:
	case err != nil:
		l.log.Error("events are not kept over a restart", "error", err)
	default:
		l.log.Info("events are kept over a restart again")
	}
}
