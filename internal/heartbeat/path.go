// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Timing of a path's introductions.
const (
	// askEvery is the time between challenges while nobody answers.
	askEvery = 250 * time.Millisecond
	// askAgain bounds the challenges that messages of strangers cause: who replays
	// what he has recorded must not make a flood.
	askAgain = 20 * time.Millisecond
	// doubtAfter is how long a path is silent before the peer is asked again.
	doubtAfter = time.Second
	// mistakeLasts is how long a mistake is told of after it was seen.
	mistakeLasts = 10 * time.Second
)

// identity is what a node says of itself, and the keys that count for it.
type identity struct {
	epoch Epoch
	name  string
	keys  []*signer
}

// Counters are what has come by a path.
type Counters struct {
	Beats     uint64 // heartbeats that counted
	Forged    uint64 // messages that none of the keys has signed
	Replayed  uint64 // heartbeats that came before, or are of another run; introductions of who is elsewhere
	Malformed uint64
}

// A path is an address of another node, and what is known of who answers there.
// It is pure: messages and the time go in, messages come out.
type path struct {
	address netip.Addr
	// names are those that may be here; nil: any but this node's own.
	names []string

	// peer is the run that is trusted: it has answered a challenge of this run, so
	// it is there now. Zero: none is.
	peer Epoch
	name string
	key  int    // which of the keys it has
	show ticket // what it wants to see

	ticket ticket // what this node wants to see here
	last   uint64 // the number of the last heartbeat,
	lastOf Epoch  // which was of this run, trusted still or not

	nonce   [nonceLen]byte
	pending bool // nonce is not answered yet
	asked   time.Time
	tries   int

	stranger   string    // the name of the last who introduced itself, and may not be here,
	strangerAt time.Time // and when

	heard  time.Time // its last message that counted
	forged time.Time // the last message that none of the keys has signed
	counts Counters
	buf    []byte
}

// A verdict is what a message has done.
type verdict struct {
	reply []byte // to be sent back; valid until the path's next call
	// ask says that the path wants to send a challenge.
	ask bool
	// beat is the body of a heartbeat that counts; valid as long as the message.
	beat []byte
	// met says that peer is another one now; left is who it was before.
	met  bool
	left Epoch
}

// receive takes a message that has come from the path's address.
func (p *path) receive(now time.Time, b []byte, own *identity) (v verdict) {
	m, key, err := open(b, own.keys)
	switch {
	case err == errForged:
		p.counts.Forged++
		p.forged = now
		return v
	case err != nil:
		p.counts.Malformed++
		return v
	case m.from == own.epoch:
		p.counts.Replayed++ // this node's own, sent back
		return v
	}
	switch m.kind {
	case kindChallenge:
		asked, ok := readIntroduction(m.body)
		if !ok {
			p.counts.Malformed++
			return v
		}
		if !p.admits(now, asked.name, own) {
			return v
		}
		p.buf = introduction{asked.nonce, p.ticket, own.name}.append(p.buf[:0])
		v.reply = own.keys[key].appendMessage(nil, message{kind: kindResponse, from: own.epoch, to: m.from, body: p.buf})
		v.ask = m.from != p.peer && p.mayAsk(now)
	case kindResponse:
		return p.meet(now, m, key, own)
	case kindBeat:
		return p.hear(now, m)
	default:
		p.counts.Malformed++
	}
	return v
}

// meet takes an answer to a challenge.
func (p *path) meet(now time.Time, m message, key int, own *identity) (v verdict) {
	got, ok := readIntroduction(m.body)
	switch {
	case !ok:
		p.counts.Malformed++
		return v
	case m.to != own.epoch || !p.pending || got.nonce != p.nonce:
		p.counts.Replayed++
		return v
	case !p.admits(now, got.name, own):
		return v // somebody has passed the question on to another node, or the answer
	}
	p.pending, p.tries, p.heard = false, 0, now
	if m.from == p.peer && key == p.key && got.ticket == p.show {
		return v
	}
	v.met, v.left = true, p.peer
	if v.left == m.from || got.name != p.name {
		// It has only changed its key; or another node has this address now, which says
		// nothing of the one before.
		v.left = Epoch{}
	}
	if m.from != p.lastOf {
		p.last, p.lastOf = 0, m.from
	}
	p.peer, p.key, p.show, p.name = m.from, key, got.ticket, got.name
	return v
}

// admits reports whether a node of this name may be here. The nodes have one key, so
// what one of them has signed for a path could be passed on by another one.
func (p *path) admits(now time.Time, name string, own *identity) bool {
	if name != own.name && (p.names == nil || slices.Contains(p.names, name)) {
		return true
	}
	p.stranger, p.strangerAt = name, now
	p.counts.Replayed++
	return false
}

// misnamed reports whether who is here has a name that it should not have, and nobody
// else counts.
func (p *path) misnamed(now time.Time) bool {
	return p.stranger != "" && now.Sub(p.strangerAt) < mistakeLasts && (p.peer.isZero() || now.Sub(p.heard) > doubtAfter)
}

// expected tells who may be here.
func (p *path) expected() string {
	if p.names == nil {
		return "another node than this one"
	}
	return strings.Join(p.names, " or ")
}

// hear takes a heartbeat.
func (p *path) hear(now time.Time, m message) (v verdict) {
	switch {
	case m.from != p.peer:
		// Perhaps the node has started again, perhaps this is from its past.
		p.counts.Replayed++
		v.ask = p.mayAsk(now)
	case m.to != Epoch(p.ticket) || m.counter <= p.last:
		p.counts.Replayed++
	default:
		p.last, p.heard = m.counter, now
		p.counts.Beats++
		v.beat = m.body
	}
	return v
}

// forget takes back the trust in a run that has ended.
func (p *path) forget() {
	p.peer, p.asked = Epoch{}, time.Time{}
}

func (p *path) mayAsk(now time.Time) bool { return now.Sub(p.asked) >= askAgain }

// due reports whether it is time to ask who is there.
func (p *path) due(now time.Time) bool {
	if !p.peer.isZero() && now.Sub(p.heard) < doubtAfter {
		return false
	}
	return now.Sub(p.asked) >= askEvery
}

// challenge asks who is there. While nobody answers, the keys take turns: a node
// may have one of them only.
func (p *path) challenge(now time.Time, own *identity) []byte {
	_, _ = rand.Read(p.nonce[:]) // never fails (crypto/rand)
	p.pending, p.asked = true, now
	k := own.keys[p.tries%len(own.keys)]
	p.tries++
	p.buf = introduction{p.nonce, p.ticket, own.name}.append(p.buf[:0])
	return k.appendMessage(nil, message{kind: kindChallenge, from: own.epoch, to: p.peer, body: p.buf})
}

// wrongKey reports whether what comes from this address is signed with another
// key: not now and then, as when anybody forges it, but while nothing else counts.
func (p *path) wrongKey(now time.Time) bool {
	return !p.forged.IsZero() && now.Sub(p.forged) < mistakeLasts && (p.peer.isZero() || now.Sub(p.heard) > doubtAfter)
}
