// SPDX-License-Identifier: Apache-2.0

package vrrp

import "sync"

// maxChanges is how many changes wait for a callback that is busy.
const maxChanges = 128

// A changeQueue hands changes to a callback from a goroutine of its own, so
// that a slow callback delays no advertisement.
type changeQueue struct {
	mu      sync.Mutex
	waiting []Change
	wake    chan struct{}
	quit    chan struct{}
	done    chan struct{}
}

// start begins to hand changes to call. A nil call discards them.
func (q *changeQueue) start(call func(Change)) {
	q.wake, q.quit, q.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(q.done)
		for more := true; more; {
			select {
			case <-q.wake:
			case <-q.quit:
				more = false // after what is left
			}
			for _, c := range q.take() {
				if call != nil {
					call(c)
				}
			}
		}
	}()
}

func (q *changeQueue) put(c Change) {
	q.mu.Lock()
	if len(q.waiting) == maxChanges {
		q.waiting = append(q.waiting[:0], q.waiting[1:]...)
	}
	q.waiting = append(q.waiting, c)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *changeQueue) take() []Change {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	q.waiting = nil
	return all
}

// stop hands over what is left and waits for the callback.
func (q *changeQueue) stop() {
	close(q.quit)
	<-q.done
}
