// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
)

var epochStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A side is one end of a path.
type side struct {
	path
	identity
	number uint64
}

func newSide(epoch byte, keys ...key.Key) *side {
	s := &side{path: path{ticket: newTicket()}, identity: identity{epoch: Epoch{epoch}, name: string('a' + rune(epoch))}}
	for _, k := range keys {
		s.keys = append(s.keys, newSigner(k))
	}
	return s
}

// again is the side after a restart of the daemon, with the same key.
func (s *side) again(epoch byte) *side {
	return &side{path: path{ticket: newTicket()}, identity: identity{epoch: Epoch{epoch}, name: s.identity.name, keys: s.keys}}
}

// beat makes the next heartbeat for the other side.
func (s *side) beat() []byte {
	s.number++
	body := appendBeat(nil, 5000, []entry{{Instance{VRID: 51, Digest: 7}, 2, 100}})
	return s.keys[s.key].appendMessage(nil, message{kind: kindBeat, from: s.epoch, to: Epoch(s.show), counter: s.number, body: body})
}

// talk delivers a message and all that follows from it.
func talk(now time.Time, to, from *side, b []byte) {
	for b != nil {
		v := to.receive(now, b, &to.identity)
		if v.ask {
			talk(now, from, to, to.challenge(now, &to.identity))
		}
		b = v.reply
		to, from = from, to
	}
}

// meet makes two sides trust each other.
func meet(t *testing.T, a, b *side) {
	t.Helper()
	talk(epochStart, b, a, a.challenge(epochStart, &a.identity))
	if a.peer != b.epoch || b.peer != a.epoch || a.path.name != b.identity.name {
		t.Fatalf("they do not trust each other: %v, %v", a.peer, b.peer)
	}
}

func (s *side) take(b []byte) verdict { return s.receive(epochStart, b, &s.identity) }

func TestOneChallengeIntroducesBoth(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	if v := b.take(a.beat()); v.beat != nil || !v.ask {
		t.Errorf("a stranger's heartbeat: counts %v, is asked %v", v.beat != nil, v.ask)
	}
	meet(t, a, b)
	for range 3 {
		if v := b.take(a.beat()); v.beat == nil {
			t.Fatal("a heartbeat does not count")
		}
	}
	var got []entry
	v := b.take(a.beat())
	if !eachEntry(v.beat, func(e entry) { got = append(got, e) }) {
		t.Fatal("the body is malformed")
	}
	if diff := cmp.Diff([]entry{{Instance{VRID: 51, Digest: 7}, 2, 100}}, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
}

func TestMessagesThatDoNotCount(t *testing.T) {
	k := key.New()
	for _, tc := range []struct {
		name string
		make func(a, b *side) []byte // a trusts b and b trusts a
		want Counters
	}{
		{"the same again", func(a, b *side) []byte { m := a.beat(); b.take(m); return m }, Counters{Beats: 1, Replayed: 1}},
		{"an older one", func(a, b *side) []byte { m := a.beat(); b.take(a.beat()); return m }, Counters{Beats: 1, Replayed: 1}},
		{"of the sender's earlier run", func(a, b *side) []byte {
			m := a.beat()
			meetAgain(a.again(9), b)
			return m
		}, Counters{Replayed: 1}},
		{"for the receiver's earlier run", func(a, b *side) []byte {
			m := a.beat()
			again := b.again(8)
			meetAgain(a, again)
			*b = *again
			return m
		}, Counters{Replayed: 1}},
		{"for another node", func(a, b *side) []byte { a.show = ticket{77}; return a.beat() }, Counters{Replayed: 1}},
		{"sent back to its sender", func(a, b *side) []byte { return b.beat() }, Counters{Replayed: 1}},
		{"an answer to an older challenge", func(a, b *side) []byte {
			old := b.challenge(epochStart, &b.identity)
			b.challenge(epochStart, &b.identity)
			return slices.Clone(a.take(old).reply)
		}, Counters{Replayed: 1}},
		{"an answer twice", func(a, b *side) []byte {
			m := slices.Clone(a.take(b.challenge(epochStart, &b.identity)).reply)
			b.take(m)
			return m
		}, Counters{Replayed: 1}},
		{"another key", func(a, b *side) []byte { a.keys = []*signer{newSigner(key.New())}; return a.beat() }, Counters{Forged: 1}},
		{"another priority", func(a, b *side) []byte {
			m := a.beat()
			m[headerLen+4+2]++
			return m
		}, Counters{Forged: 1}},
		{"another number", func(a, b *side) []byte {
			m := a.beat()
			m[counterAt]++
			return m
		}, Counters{Forged: 1}},
		{"another version", func(a, b *side) []byte { m := a.beat(); m[4]++; return m }, Counters{Malformed: 1}},
		{"cut short", func(a, b *side) []byte { return a.beat()[:headerLen+tagLen-1] }, Counters{Malformed: 1}},
		{"too long", func(a, b *side) []byte { return append(a.beat(), make([]byte, maxMessage)...) }, Counters{Malformed: 1}},
		{"empty", func(a, b *side) []byte { return nil }, Counters{Malformed: 1}},
		{"one of a connection", func(a, b *side) []byte {
			return a.keys[0].appendMessage(nil, message{kind: kindBye, from: a.epoch, to: b.epoch})
		}, Counters{Malformed: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newSide(1, k), newSide(2, k)
			meet(t, a, b)
			m := tc.make(a, b)
			if v := b.take(m); v.beat != nil || v.met {
				t.Errorf("it counts: %+v", v)
			}
			if diff := cmp.Diff(tc.want, b.counts); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

// meetAgain introduces a side that has started again.
func meetAgain(a, b *side) {
	now := epochStart.Add(time.Second)
	talk(now, b, a, a.challenge(now, &a.identity))
}

func TestEveryByteIsSigned(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	for i := range len(a.beat()) {
		m := a.beat()
		m[i] ^= 1
		if v := b.take(m); v.beat != nil {
			t.Errorf("a heartbeat with another byte %d counts", i)
		}
	}
	if v := b.take(a.beat()); v.beat == nil {
		t.Error("the next one that is whole does not count")
	}
}

// Who replays what an earlier run has sent does not change whom a node trusts.
func TestAnEarlierRunIsNotTrusted(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	recorded := a.challenge(epochStart, &a.identity)
	meet(t, a, b)
	beat := a.beat()
	later := a.again(3)
	meetAgain(later, b)
	if b.peer != later.epoch {
		t.Fatal("the run that is there now is not trusted")
	}
	for i, m := range [][]byte{recorded, beat} {
		now := epochStart.Add(time.Duration(1+i) * time.Minute)
		v := b.receive(now, m, &b.identity)
		if !v.ask {
			t.Error("who sends it is not asked")
		}
		// The answer comes from who is there.
		talk(now, later, b, b.challenge(now, &b.identity))
		if b.peer != later.epoch {
			t.Error("an earlier run is trusted")
		}
	}
	if v := b.receive(epochStart, later.beat(), &b.identity); v.beat == nil {
		t.Error("the run that is there now does not count any more")
	}
}

// What was recorded while a run counted as ended is of no use once it counts again.
func TestNothingCountsTwiceAfterAnEnd(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	recorded := a.beat()
	if v := b.take(recorded); v.beat == nil {
		t.Fatal("a heartbeat does not count")
	}
	b.forget()
	meetAgain(a, b)
	if v := b.take(recorded); v.beat != nil {
		t.Error("a heartbeat counts a second time")
	}
	if v := b.take(a.beat()); v.beat == nil {
		t.Error("the next one does not count")
	}
}

// Two nodes may have several paths between them. What was sent by one of them does
// not count on another, where its number may be new.
func TestNothingCountsOnAnotherPath(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	a2, b2 := newSide(1, k), newSide(2, k)
	meet(t, a2, b2)
	recorded := a.beat()
	if v := b2.take(recorded); v.beat != nil {
		t.Error("a heartbeat counts on a path that it was not sent by")
	}
	if v := b.take(recorded); v.beat == nil {
		t.Error("it does not count on its own path")
	}
	if v := b2.take(a2.beat()); v.beat == nil {
		t.Error("the other path's does not count")
	}
}

func TestPathTellsWhoHasLeft(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	later := a.again(3)
	now := epochStart.Add(time.Second)
	ask := b.challenge(now, &b.identity)
	answer := later.receive(now, ask, &later.identity).reply
	if v := b.receive(now, answer, &b.identity); !v.met || v.left != a.epoch {
		t.Errorf("got %+v, want that %v has left", v, a.epoch)
	}
}

func TestReplaysCauseFewChallenges(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	m := a.beat()
	later := a.again(3)
	meetAgain(later, b)
	asked := 0
	for i := range 1000 {
		now := epochStart.Add(time.Minute + time.Duration(i)*time.Millisecond)
		if b.receive(now, m, &b.identity).ask {
			asked++
			b.challenge(now, &b.identity)
		}
	}
	if most := int(time.Second/askAgain) + 1; asked > most {
		t.Errorf("1000 replays in a second caused %d challenges, want %d at most", asked, most)
	}
}

// While keys change, nodes that have one in common understand each other.
func TestKeyRotation(t *testing.T) {
	before, after := key.New(), key.New()
	for _, tc := range []struct {
		name string
		a, b []key.Key
		ok   bool
	}{
		{"the old one only", []key.Key{before}, []key.Key{before}, true},
		{"one node has both", []key.Key{after, before}, []key.Key{before}, true},
		{"both have both", []key.Key{after, before}, []key.Key{after, before}, true},
		{"in another order", []key.Key{after, before}, []key.Key{before, after}, true},
		{"one node has the new one only", []key.Key{after, before}, []key.Key{after}, true},
		{"none in common", []key.Key{after}, []key.Key{before}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newSide(1, tc.a...), newSide(2, tc.b...)
			now := epochStart
			for range 4 {
				now = now.Add(askEvery)
				for _, s := range [][2]*side{{a, b}, {b, a}} {
					if s[0].due(now) {
						talk(now, s[1], s[0], s[0].challenge(now, &s[0].identity))
					}
				}
			}
			if met := a.peer == b.epoch && b.peer == a.epoch; met != tc.ok {
				t.Fatalf("they trust each other: %v", met)
			}
			if v := b.receive(now, a.beat(), &b.identity); (v.beat != nil) != tc.ok {
				t.Errorf("a heartbeat counts: %v", v.beat != nil)
			}
			if got := b.wrongKey(now); got == tc.ok {
				t.Errorf("a wrong key is reported: %v", got)
			}
		})
	}
}

func TestPathAsks(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	if !a.due(epochStart) {
		t.Error("a new path does not ask")
	}
	a.challenge(epochStart, &a.identity)
	if a.due(epochStart.Add(askEvery-1)) || !a.due(epochStart.Add(askEvery)) {
		t.Error("it asks again at the wrong time")
	}
	meet(t, a, b)
	if a.due(epochStart.Add(doubtAfter - 1)) {
		t.Error("it asks who has just been heard")
	}
	if !a.due(epochStart.Add(doubtAfter + askEvery)) {
		t.Error("it does not ask who is silent")
	}
	a.forget()
	if !a.due(epochStart.Add(1)) {
		t.Error("it does not ask after an end")
	}
}

func TestReceivingDoesNotAllocate(t *testing.T) {
	k := key.New()
	a, b := newSide(1, k), newSide(2, k)
	meet(t, a, b)
	var all [][]byte
	for range 102 {
		all = append(all, a.beat())
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		v := b.receive(epochStart, all[i], &b.identity)
		eachEntry(v.beat, func(entry) {})
		i++
	}); n > 0 {
		t.Errorf("a heartbeat allocates %v times", n)
	}
}

// FuzzMessage feeds anything. What is read is written again as the same bytes.
func FuzzMessage(f *testing.F) {
	s := newSigner(key.Key{1})
	f.Add(s.appendMessage(nil, message{kind: kindBeat, from: Epoch{1}, to: Epoch{2}, counter: 3, body: appendBeat(nil, 5000, []entry{{Instance{1, true, 2}, 3, 4}})}))
	f.Add(s.appendMessage(nil, message{kind: kindChallenge, from: Epoch{1}, body: introduction{[nonceLen]byte{1}, ticket{2}, "lb1"}.append(nil)}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := read(b)
		if err != nil {
			return
		}
		if again := appendUnsigned(nil, m); !bytes.Equal(again, b[:len(b)-tagLen]) {
			t.Errorf("read %x, wrote %x", b, again)
		}
		var entries []entry
		if eachEntry(m.body, func(e entry) { entries = append(entries, e) }) {
			if again := appendBeat(nil, 0, entries); !bytes.Equal(again[4:], m.body[4:]) {
				t.Errorf("entries %x, wrote %x", m.body, again)
			}
		}
		if i, ok := readIntroduction(m.body); ok && !bytes.Equal(i.append(nil), m.body) {
			t.Errorf("introduction %x, wrote %x", m.body, i.append(nil))
		}
		p := path{}
		own := &identity{epoch: Epoch{2}, keys: []*signer{s}}
		p.receive(epochStart, b, own)
	})
}
