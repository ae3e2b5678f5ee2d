package control

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/statesync"
)

// stops are the nodes that are about to end, and until when that holds: what they
// serve they go on with, and they want nothing new. One that is gone serves nothing any
// more, whether it has come to its end or was killed on the way: a node tells its state
// to others longer than it serves.
type stops struct {
	mu    sync.Mutex
	until map[string]time.Time
	gone  map[string]bool
}

// set notes that a node ends within a while; 0: it does not, or not any more.
func (s *stops) set(node string, within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.gone, node)
	if within <= 0 {
		delete(s.until, node)
		return
	}
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[node] = time.Now().Add(within)
}

// leave notes that a node which is about to end is gone, until it is heard again, and
// reports whether that is new.
func (s *stops) leave(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone[node] || !time.Now().Before(s.until[node]) {
		return false
	}
	if s.gone == nil {
		s.gone = map[string]bool{}
	}
	s.gone[node] = true
	return true
}

// back notes that a node which was gone is there still, and reports whether that is new.
func (s *stops) back(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.gone[node]
	delete(s.gone, node)
	return gone
}

func (s *stops) has(node string) (stops, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[node]), s.gone[node]
}

// NodeStops has the loop know that a node ends within a while: until then, services that
// are spread give it nothing new, and leave it what it has, whatever probes say. 0: it
// does not end.
func (l *Loop) NodeStops(node string, within time.Duration) {
	l.stops.set(node, within)
	l.Dirty()
}

// NodeGone has the loop know that a node is not heard any more. Of one that is about to
// stop that says more than its probes, which may have failed for a while: nothing that it
// has served goes on. Of others the probes decide.
func (l *Loop) NodeGone(node string) {
	if l.stops.leave(node) {
		l.Dirty()
	}
}

// NodeBack has the loop know that a node is heard again: one that was gone, and was about to
// stop, is there still and goes on with what it serves. It says so once, and not again when
// only the connection had broken.
func (l *Loop) NodeBack(node string) {
	if l.stops.back(node) {
		l.Dirty()
	}
}

func (l *Loop) stopping(node string) (stops, gone bool) {
	if node == "" {
		return false, false
	}
	return l.stops.has(node)
}

// Settled tells whether the nodes agree on the table of a service: the one in force here
// is that of the node that is Active, or this is that node, and the others have adopted it.
func (l *Loop) Settled(service string) bool {
	x := l.sharing
	if x == nil {
		return true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	t := x.tables[service]
	switch {
	case t == nil:
		return true
	case t.role == RoleBackup:
		return t.peer != ""
	case t.role == RoleActive:
		_, late := x.late[service]
		return !late && x.flights == 0
	}
	return true
}

// nodeKey begins the key of what a node says of itself, among the changes of operators:
// no pool and no service has an empty name. The node's own follows.
const nodeKey = targetEnd

// A nodeWord is what a node says of itself. Fields of later versions are skipped.
type nodeWord struct {
	Stops int64 `json:"stops_ms,omitempty"` // within so many; 0: it does not
}

// Introduce has peers told of this node, by its name: that it does not end. Call it
// before anything is told.
func (s *SharedState) Introduce(name string) { s.say(name, 0) }

// Stop has peers told that this node ends within a while.
func (s *SharedState) Stop(within time.Duration) {
	s.say(s.name, within)
	s.loop.tellChanges()
}

func (s *SharedState) say(name string, within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
	s.word = statesync.Override{
		Key: nodeKey + name, Stamp: statesync.Stamp{Time: max(time.Now().UnixNano(), s.word.Stamp.Time+1), Node: name},
	}
	s.word.Value, _ = json.Marshal(nodeWord{within.Milliseconds()}) // of a number
}

// words are what this node says of itself.
func (s *SharedState) words() []statesync.Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == "" {
		return nil
	}
	return []statesync.Override{s.word}
}

// hearWord takes in what a node says of itself; false: it is an operator's change. What
// an earlier run of this node has said is taken back.
func (s *SharedState) hearWord(o statesync.Override) bool {
	name, is := strings.CutPrefix(o.Key, nodeKey)
	if !is {
		return false
	}
	var w nodeWord
	if json.Unmarshal(o.Value, &w) != nil {
		return true
	}
	s.mu.Lock()
	own := name == s.name
	if own {
		s.word.Stamp.Time = max(s.word.Stamp.Time, o.Stamp.Time+1)
	}
	s.mu.Unlock()
	if own {
		s.loop.tellChanges()
	} else {
		s.loop.NodeStops(name, time.Duration(w.Stops)*time.Millisecond)
	}
	return true
}
