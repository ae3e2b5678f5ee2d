package loader

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// readNews appends the flows of a pair that the program has marked (bpf/news.h). A
// mark is taken away before what it stands for is read, so that a change meanwhile
// sets it again. What does not fit any more keeps its marks.
func (f *FlowFeed) readNews(into []lb.FlowState, p *toldPair, most int, now uint32) []lb.FlowState {
	if atomic.LoadUint64(p.newsMark()) == 0 {
		return into
	}
	for marks := atomic.SwapUint64(p.newsMark(), 0); marks != 0; marks &= marks - 1 {
		i := bits.TrailingZeros64(marks)
		if len(into) >= most {
			atomic.OrUint64(p.newsMark(), marks)
			return into
		}
		above := p.news.at(int(lbLimitsNAT_NEWS_WORDS) + i)
		for words := atomic.SwapUint64(above, 0); words != 0; words &= words - 1 {
			if len(into) >= most {
				atomic.OrUint64(above, words)
				atomic.OrUint64(p.newsMark(), marks)
				return into
			}
			word := i*portsPerWord + bits.TrailingZeros64(words)
			for ports := atomic.SwapUint64(p.news.at(word), 0); ports != 0; ports &= ports - 1 {
				into = f.readPort(into, p, uint16(word*portsPerWord+bits.TrailingZeros64(ports)), now)
			}
		}
	}
	return into
}

// unread is how many ports have news.
func (p *toldPair) unread() (ports int) {
	for marks := atomic.LoadUint64(p.newsMark()); marks != 0; marks &= marks - 1 {
		i := bits.TrailingZeros64(marks)
		for words := atomic.LoadUint64(p.news.at(int(lbLimitsNAT_NEWS_WORDS) + i)); words != 0; words &= words - 1 {
			ports += bits.OnesCount64(atomic.LoadUint64(p.news.at(i*portsPerWord + bits.TrailingZeros64(words))))
		}
	}
	return ports
}

// readPort appends what has become of the flow of a port: the end of one that other
// nodes know, and the one that there is now.
func (f *FlowFeed) readPort(into []lb.FlowState, p *toldPair, port uint16, now uint32) []lb.FlowState {
	e, ok := p.read(port)
	if !ok {
		f.mark(p, port) // again, at the next call
		return into
	}
	known := p.of(port)
	same := known != nil && known.is(&e)
	if worthTelling(&e) && f.index.holds(uint32(e.Backend), e.Generation) {
		if known != nil && !same {
			into = f.appendEnd(into, p, port, known, now)
		}
		if same && known.held && !known.moved(&e) {
			return into // the mark is of an earlier flow
		}
		return f.tell(into, p, port, &e, now)
	}
	// Of a flow that is held, time is no end that counts: who told of it knows better. Where another
	// flow has the port it may have been more than time.
	timeOnly := same && known.held && known.seen == e.LastSeen && known.state != uint8(lbNatStateNAT_CLOSED)
	if known != nil && !timeOnly {
		if same {
			known.seen = e.LastSeen
		}
		into = f.appendEnd(into, p, port, known, now)
	}
	p.forget(port)
	return into
}

// tell appends a flow that is this node's own from now on, if another one told of it.
func (f *FlowFeed) tell(into []lb.FlowState, p *toldPair, port uint16, e *lbNatFlow, now uint32) []lb.FlowState {
	s, ok := f.index.translated(p, port, e, now)
	if !ok {
		return into
	}
	if e.Flags&heldFlag != 0 {
		atomic.AndUint32(&p.flow(port).Flags, ^heldFlag)
		e.Flags &^= heldFlag
	}
	p.know(port, e)
	return append(into, s)
}

func (f *FlowFeed) appendEnd(into []lb.FlowState, p *toldPair, port uint16, known *toldFlow, now uint32) []lb.FlowState {
	if s, ok := f.index.over(p, port, known, now); ok {
		into = append(into, s)
	}
	return into
}

// mark marks a port as the program does.
func (f *FlowFeed) mark(p *toldPair, port uint16) {
	word := int(port) / portsPerWord
	atomic.OrUint64(p.news.at(word), 1<<(int(port)%portsPerWord))
	atomic.OrUint64(p.news.at(int(lbLimitsNAT_NEWS_WORDS)+word/portsPerWord), 1<<(word%portsPerWord))
	atomic.OrUint64(p.newsMark(), 1<<(word/portsPerWord))
}

// A walk goes over all nat flows that other nodes know, at an even pace. Packets that
// change nothing leave no mark, so this is how other nodes learn that a flow goes on.
type walk struct {
	last       time.Time
	pair, word int // where it goes on
	owed       time.Duration
}

// walkOn appends the flows that go on and that other nodes would soon count as
// idle for longer than they are.
func (f *FlowFeed) walkOn(into []lb.FlowState, most int, now uint32) []lb.FlowState {
	w := &f.walk
	at := time.Now()
	if w.last.IsZero() {
		w.last = at
	}
	all := len(f.order) * int(lbLimitsNAT_NEWS_WORDS)
	if all == 0 {
		w.last = at
		return into
	}
	// A part of a step is left for the next call.
	w.owed = min(w.owed+at.Sub(w.last), walkTime)
	w.last = at
	steps := int(w.owed * time.Duration(all) / walkTime)
	w.owed -= time.Duration(steps) * walkTime / time.Duration(all)
	for ; steps > 0 && len(into) < most; steps-- {
		if w.word++; w.word >= int(lbLimitsNAT_NEWS_WORDS) {
			w.word, w.pair = 0, w.pair+1
		}
		if w.pair >= len(f.order) {
			w.pair = 0
		}
		into = f.walkWord(into, f.pairs[f.order[w.pair]], w.word, now)
	}
	return into
}

func (f *FlowFeed) walkWord(into []lb.FlowState, p *toldPair, word int, now uint32) []lb.FlowState {
	told := p.told[word]
	if told == nil {
		return into
	}
	for i := range told {
		t, port := &told[i], uint16(word*portsPerWord+i)
		if !t.known() || atomic.LoadUint32(&p.flow(port).LastSeen) == t.seen {
			continue
		}
		e, ok := p.read(port)
		if !ok || !t.is(&e) || !worthTelling(&e) || e.LastSeen == t.seen || !f.index.holds(uint32(e.Backend), e.Generation) {
			continue // what has changed has left a mark
		}
		if t.held {
			t.held = false
			atomic.AndUint32(&p.flow(port).Flags, ^heldFlag)
		}
		if int32(now-t.seen) > f.timeouts[e.State%uint32(lbNatStateNAT_STATES)]/4 {
			into = f.tell(into, p, port, &e, now)
		}
	}
	return into
}
