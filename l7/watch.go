package l7

import (
	"sync"
	"time"
)

// watchAfter is how long a request is under way, at the least, before its connection is
// watched; and half of the longest time until it is.
const watchAfter = 50 * time.Millisecond

// A watch is what net/http has beside each request: a read of a single byte, to find out
// when the client has gone. Most requests end long before that can be of use, and then it
// is a read that finds nothing, and two deadlines to break it off. So a watch waits before
// it reads.
//
// One timer for the connection finds watches that have waited: to set one for each of them
// would cost more than it saves.
type watch struct {
	mu      sync.Mutex
	waits   chan bool // gets what end is told; nil: there was no watch yet
	waiting bool
	count   uint // of watches
	seen    uint // the same, when the timer has last run
	timer   *time.Timer
	running bool // the timer is set
}

// begin begins a watch, and returns what its end can be received from: true if it may read
// now.
func (w *watch) begin() <-chan bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waits == nil {
		w.waits = make(chan bool, 1)
		w.timer = time.AfterFunc(watchAfter, w.look)
		w.running = true
	} else if !w.running {
		w.timer.Reset(watchAfter)
		w.running = true
	}
	w.waiting = true
	w.count++
	return w.waits
}

// end ends the waiting of a watch, if there is one.
func (w *watch) end(read bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finish(read)
}

// finish is end. The lock is held.
func (w *watch) finish(read bool) {
	if w.waiting {
		w.waiting = false
		w.waits <- read
	}
}

// look lets the watch read that was there at the last look already.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting && w.count == w.seen {
		w.finish(true)
	}
	w.running = w.waiting
	if w.seen = w.count; w.running {
		w.timer.Reset(watchAfter)
	}
}
