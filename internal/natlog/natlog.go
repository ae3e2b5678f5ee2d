// Package natlog writes the translation log of full nat: who had which source
// address and port when, a line for each beginning and each end. After a start and
// in each new file a line for each translation that is there comes first, so that one
// file alone answers.
package natlog

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A Source is the data plane, as far as it tells of translations:
// *loader.Translations.
type Source interface {
	Read(into []loader.Translation, until time.Time) ([]loader.Translation, error)
	Held() iter.Seq2[loader.Translation, error]
	Lost() (uint64, error)
}

const (
	// collect is how long lines may wait to be written together.
	collect = 200 * time.Millisecond
	// lookEvery is how often the file's name is looked at, and how long after a
	// failure the next attempt is.
	lookEvery = time.Second
	// heldAtATime is how many lines of what is held come between two looks at what
	// is new.
	heldAtATime = 4096
	// lossShown is for how long after the last loss a status has it.
	lossShown = time.Hour
)

// What may be wrong, one at a time of each kind.
const (
	opening = iota
	writing
	reading
	counting
	holding
	kinds
)

// A Log is the translation log, a file.
type Log struct {
	source  Source
	service func(lb.Protocol, netip.AddrPort) string
	log     *slog.Logger
	reopen  atomic.Bool

	// Run's own.
	file       file
	batch      []loader.Translation
	held       func() (loader.Translation, error, bool) // what comes next of it; nil: all is written
	stopHeld   func()
	look       time.Time // when to look at the file's name again
	sourceLost uint64    // what the source had lost when it was asked
	unreported uint64    // lost lines that the file does not tell of

	mu       sync.Mutex
	problems [kinds]string // "": none
	lost     uint64
	lastLost time.Time
}

// New returns a log that is not written yet. Service names the service of a VIP and
// port; "": there is none.
func New(path string, source Source, service func(lb.Protocol, netip.AddrPort) string, log *slog.Logger) *Log {
	return &Log{source: source, service: service, log: log, file: file{path: path}}
}

// Reopen has the file opened anew, and what is held written to it. It does not wait.
func (l *Log) Reopen() { l.reopen.Store(true) }

// Problems tells what is wrong with the log, in words.
func (l *Log) Problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, p := range l.problems {
		if p != "" {
			all = append(all, "the translation log is not complete: "+p)
		}
	}
	if l.lost > 0 && time.Since(l.lastLost) < lossShown {
		all = append(all, fmt.Sprintf("the translation log lacks %d lines, the last one of %s: its \"lost\" lines tell where",
			l.lost, l.lastLost.UTC().Format(time.RFC3339)))
	}
	return all
}

// Run writes the log until ctx ends, and then what there is still.
func (l *Log) Run(ctx context.Context) {
	defer l.endHeld()
	defer l.file.close()
	for {
		last := ctx.Err() != nil
		l.follow()
		until := time.Now()
		if !last && l.held == nil {
			until = until.Add(collect)
		}
		l.read(ctx, until)
		if !last {
			l.writeHeld()
		}
		l.flush()
		if last {
			return
		}
	}
}

// follow opens the file where it has to be.
func (l *Log) follow() {
	asked := l.reopen.Swap(false)
	if !asked && time.Now().Before(l.look) {
		return
	}
	l.look = time.Now().Add(lookEvery)
	fresh, err := l.file.follow(asked)
	l.setProblem(opening, err)
	if fresh {
		l.beginHeld()
	}
	lost, err := l.source.Lost()
	l.setProblem(counting, err)
	if err != nil {
		return
	}
	l.lose(lost - l.sourceLost)
	l.sourceLost = lost
}

// read takes what is new from the source.
func (l *Log) read(ctx context.Context, until time.Time) {
	var err error
	l.batch, err = l.source.Read(l.batch[:0], until)
	for _, t := range l.batch {
		l.add(t)
	}
	l.setProblem(reading, err)
	if err == nil {
		return
	}
	select {
	case <-time.After(lookEvery):
	case <-ctx.Done():
	}
}

func (l *Log) add(t loader.Translation) {
	service := ""
	if t.VIP.IsValid() {
		service = l.service(t.Protocol, t.VIP)
	}
	l.file.buffer = appendLine(l.file.buffer, t, service)
}

func (l *Log) beginHeld() {
	l.endHeld()
	l.setProblem(holding, nil)
	l.held, l.stopHeld = iter.Pull2(l.source.Held())
}

func (l *Log) endHeld() {
	if l.held != nil {
		l.stopHeld()
		l.held = nil
	}
}

// writeHeld adds some lines of what is held.
func (l *Log) writeHeld() {
	for range heldAtATime {
		if l.held == nil {
			return
		}
		t, err, ok := l.held()
		switch {
		case !ok:
			l.endHeld()
		case err != nil:
			l.endHeld()
			l.setProblem(holding, err)
		default:
			l.add(t)
		}
	}
}

// flush writes what waits. After a failure it tries again a second later; what
// comes until then is lost.
func (l *Log) flush() {
	failed := !l.file.failed.IsZero()
	if l.file.open == nil || failed && time.Since(l.file.failed) < lookEvery {
		l.lose(l.file.drop())
		return
	}
	lost, err := l.file.flush()
	l.lose(lost)
	if err == nil && l.unreported > 0 {
		if err = l.file.writeLine(appendLost(nil, time.Now(), l.unreported)); err == nil {
			l.unreported = 0
		}
	}
	if !l.file.written() && err == nil {
		return // it was not tried
	}
	l.setProblem(writing, err)
	if failed && err == nil {
		l.beginHeld() // the file may lack any of them
	}
}

// lose counts lines that the file lacks.
func (l *Log) lose(n uint64) {
	if n == 0 {
		return
	}
	l.unreported += n
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost += n
	l.lastLost = time.Now()
}

func (l *Log) setProblem(kind int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.problems[kind]
	l.problems[kind] = ""
	if err != nil {
		l.problems[kind] = err.Error()
	}
	switch {
	case l.problems[kind] == before:
	case err != nil:
		l.log.Error("the translation log is not complete", "error", err)
	default:
		l.log.Info("the translation log goes on", "after", before, "lines lost so far", l.lost)
	}
}
