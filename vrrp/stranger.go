// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"time"
)

// An Active node asks whether anybody else answers for the VIPs: one that has died and
// cannot be fenced, or a host that has a VIP by mistake. Nothing of that shows in
// advertisements. While somebody answers, the VIPs are announced again and again, and an
// alarm says who it is.
//
// One answer is no alarm, since an owner that has just been relieved may give it.

const (
	// claimPause is how long after a claim the next one is read: a flood of forged
	// ones must not keep the loop busy.
	claimPause = 10 * time.Millisecond
	// answerTime is how long after a probe a claim counts as its answer.
	answerTime = 500 * time.Millisecond
	// wholeRounds are how many rounds after a takeover ask for all VIPs, and perRound for
	// how many each later one does, in turn: each question is a broadcast.
	wholeRounds = 3
	perRound    = 8
)

// A watch is when an Active node asks, and what came of it. It is pure.
type watch struct {
	next     time.Time // zero: not Active
	asked    time.Time // the last round
	rounds   int       // since it began
	answered bool      // the last round
	inRow    int       // rounds that were answered, one after the other
}

// askAfter is how long a round follows another that was answered, and the first one
// the takeover: long enough for who was relieved to have heard of it.
func askAfter(interval time.Duration) time.Duration {
	return min(max(interval, 100*time.Millisecond), time.Second)
}

// askEvery is how long a round follows another that nobody answers: so a stranger that
// comes later, without a word, is known after three intervals, too.
func askEvery(interval time.Duration) time.Duration { return max(interval, time.Second) }

func (w *watch) begin(now time.Time, interval time.Duration) {
	*w = watch{next: now.Add(askAfter(interval))}
}

func (w *watch) stop() { *w = watch{} }

// due reports whether a round is due, and plans the next one.
func (w *watch) due(now time.Time, interval time.Duration) bool {
	if w.next.IsZero() || now.Before(w.next) {
		return false
	}
	if !w.answered {
		w.inRow = 0
	}
	w.answered, w.asked = false, now
	w.next = now.Add(askEvery(interval))
	w.rounds++
	return true
}

// whole reports whether the round that is due is about all VIPs: who has answered may
// have any of them.
func (w *watch) whole() bool { return w.rounds <= wholeRounds || w.inRow > 0 }

// claim takes a claim into account, and reports whether it shows that somebody else
// answers, still. Another round follows soon.
func (w *watch) claim(now time.Time, interval time.Duration) bool {
	if w.next.IsZero() {
		return false
	}
	if soon := now.Add(askAfter(interval)); soon.Before(w.next) {
		w.next = soon
	}
	if w.asked.IsZero() || now.Sub(w.asked) > answerTime {
		return false
	}
	if !w.answered {
		w.answered = true
		w.inRow++
	}
	return w.inRow > 1
}

// probe sends a round of probes if one is due.
func (r *Router) probe(now time.Time) {
	if !r.watch.due(now, r.cfg.Interval) || r.prober == nil {
		return
	}
	most := perRound
	if r.watch.whole() {
		most = len(r.filter.VIPs)
	}
	if err := r.prober.Probe(most); err != nil && now.Sub(r.probeLog) >= logEvery {
		r.probeLog = now
		r.log.Warn("vips could not be probed", "error", err)
	}
}

// claimed handles a claim of another node.
func (r *Router) claimed(now time.Time, c claim) {
	if c.from != r.prober || !r.watch.claim(now, r.cfg.Interval) {
		return
	}
	r.schedule.begin(now)
	r.announce(now)
	r.raise(now, AlarmAnswered, c.VIP, evidence{digest: fnv(fnvBasis, c.MAC[:])}, func() string {
		return fmt.Sprintf("%v is answered by %v, too: find the host with that MAC address, and take %v off it", c.VIP, c.MAC, c.VIP)
	})
}

// A claim is one with the prober that it was heard by.
type claim struct {
	Claim
	from *listener
}

// A listener reads claims off a Prober.
type listener struct {
	Prober
	quit chan struct{}
	done chan struct{}
}

func listen(p Prober, into chan<- claim) *listener {
	l := &listener{Prober: p, quit: make(chan struct{}), done: make(chan struct{})}
	go l.run(into)
	return l
}

func (l *listener) run(into chan<- claim) {
	defer close(l.done)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		c, err := l.Receive()
		wait := retryAfter // it is closed, or its interface was down
		if err == nil {
			select {
			case into <- claim{c, l}:
			case <-l.quit:
				return
			}
			wait = claimPause
		}
		pause.Reset(wait)
		select {
		case <-pause.C:
		case <-l.quit:
			return
		}
	}
}

// stop closes the prober and waits until nothing reads it any more.
func (l *listener) stop() {
	close(l.quit)
	l.Close()
	<-l.done
}
