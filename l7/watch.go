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
// would cost more than it saves. All of it belongs to a lock, which is held where methods
// are called.
type watch struct {
	lock    sync.Locker
	waits   chan bool // gets what end is told; nil: there was no watch yet
	waiting bool
	count   uint // of watches
	seen    uint // the same, when the timer has last run
	timer   *time.Timer
	running bool // the timer is set
}

// begin begins a watch, and returns what its end can be received from: true if it may read
// now.
func (w *watch) begin(lock sync.Locker) <-chan bool {
	switch {
	case w.waits == nil:
		w.lock, w.waits = lock, make(chan bool, 1)
		w.timer = time.AfterFunc(watchAfter, w.look)
	case !w.running:
		w.timer.Reset(watchAfter)
	}
	w.running, w.waiting = true, true
	w.count++
	return w.waits
}

// end ends the waiting of a watch, if there is one.
func (w *watch) end(read bool) {
	if w.waiting {
		w.waiting = false
		w.waits <- read
	}
}

// look lets the watch read that was there at the last look already. The timer calls it,
// without the lock.
func (w *watch) look() {
	w.lock.Lock()
	defer w.lock.Unlock()
	if w.count == w.seen {
		w.end(true)
	}
	w.seen = w.count
	if w.running = w.waiting; w.running {
		w.timer.Reset(watchAfter)
	}
}
