package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/lb"
)

// What was undone is kept for a while, so that a node which was away meanwhile learns of
// it: the latest undoneMost, for undoneFor. Who was away for longer brings it back.
const (
	undoneMost = 1024
	undoneFor  = 30 * 24 * time.Hour
)

// changesMost is how many overrides are taken in from other nodes at most, and
// nameLongest how long the name of a pool or an address may be there.
const (
	changesMost = 16384
	nameLongest = 255
)

// A stamp says when an override was made, and on which node. That of a file of an
// earlier version is the zero value.
type stamp struct {
	At   time.Time `json:"at,omitzero"`
	Node string    `json:"node,omitempty"`
}

// change is an override as nodes tell each other of it.
func (t target) change(v Override, s stamp) lb.OperatorChange {
	c := lb.OperatorChange{Scope: t.scope, Address: t.address, State: string(v.State), Weight: -1, Time: s.At, Node: s.Node}
	if v.Weight != nil {
		c.Weight = *v.Weight
	}
	return c
}

// override is what a change of another node's makes; false: it makes no sense here.
func override(c lb.OperatorChange) (target, Override, bool) {
	v := Override{State: Action(c.State)}
	if c.Weight >= 0 {
		v.Weight = &c.Weight
	}
	ok := v.valid() && c.Scope != "" && c.Address != "" && c.Weight >= -1 &&
		len(c.Scope) <= nameLongest && len(c.Address) <= nameLongest && len(c.Node) <= nameLongest
	return target{c.Scope, c.Address}, v, ok
}

// Changes returns all that operators have changed, and what they have undone, in an
// order of its own: what another node is to take in.
func (o *Overrides) Changes() []lb.OperatorChange {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]lb.OperatorChange, 0, len(o.stamps))
	for t, s := range o.stamps {
		all = append(all, t.change(o.all[t], s))
	}
	slices.SortFunc(all, func(a, b lb.OperatorChange) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Address, b.Address))
	})
	return all
}

// TakeIn takes changes over that operators have made on other nodes, as far as they are
// later than what is known of the same servers here, keeps them, and returns those. A
// change that makes no sense is an error, and the others are taken in all the same.
func (o *Overrides) TakeIn(changes []lb.OperatorChange) (taken []lb.OperatorChange, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	newer := false
	next, stamps := maps.Clone(o.all), maps.Clone(o.stamps)
	for _, c := range changes {
		t, v, ok := override(c)
		if !ok {
			errs = append(errs, fmt.Errorf("a change of %.64q of %.64q that makes no sense here: does that node run a later version?", c.Address, c.Scope))
			continue
		}
		s, known := stamps[t]
		have := t.change(next[t], s)
		switch {
		case known && !c.After(have):
			continue
		case !known && v.none() && time.Since(c.Time) > undoneFor: // forgotten here
			continue
		case !known && len(stamps) >= changesMost:
			errs = append(errs, fmt.Errorf("more than %d servers of which operators have changed anything: that of %s of %s is left out", changesMost, c.Address, c.Scope))
			continue
		}
		newer = true
		put(next, stamps, t, v, stamp{c.Time.UTC(), c.Node})
		if c.State != have.State || c.Weight != have.Weight { // else the same was said again
			taken = append(taken, c)
		}
	}
	if !newer {
		return nil, errors.Join(errs...)
	}
	if err := o.keep(next, stamps); err != nil {
		return nil, errors.Join(append(errs, fmt.Errorf("keep the changes of another node in %s: %w: none is taken in", o.path, err))...)
	}
	return taken, errors.Join(errs...)
}

// put makes v the override of a target.
func put(all map[target]Override, stamps map[target]stamp, t target, v Override, s stamp) {
	stamps[t] = s
	if all[t] = v; v.none() {
		delete(all, t)
	}
}

// keep writes overrides down and has them in force. Its caller holds o.mu.
func (o *Overrides) keep(all map[target]Override, stamps map[target]stamp) error {
	forget(all, stamps, time.Now())
	if err := o.save(all, stamps); err != nil {
		return err
	}
	o.all, o.stamps = all, stamps
	return nil
}

// forget drops what was undone long ago, and the oldest of what is too much.
func forget(all map[target]Override, stamps map[target]stamp, now time.Time) {
	var undone []target
	for t, s := range stamps {
		if _, ok := all[t]; ok {
			continue
		}
		if now.Sub(s.At) > undoneFor {
			delete(stamps, t)
			continue
		}
		undone = append(undone, t)
	}
	if len(undone) <= undoneMost {
		return
	}
	slices.SortFunc(undone, func(a, b target) int { return stamps[a].At.Compare(stamps[b].At) })
	for _, t := range undone[:len(undone)-undoneMost] {
		delete(stamps, t)
	}
}

// now is the stamp of a change that is made of a target here: later than all that is
// known of it, whatever this node's clock says.
func (o *Overrides) now(t target) stamp {
	at := time.Now().UTC().Round(0)
	if last := o.stamps[t].At; !at.After(last) {
		at = last.Add(1)
	}
	return stamp{at, o.node}
}

// TellChanges has f called after an operator's change, made here or taken in from
// another node; f must not wait. Call it before Run.
func (l *Loop) TellChanges(f func()) { l.changed = f }

// Changes returns what another node is to take in of operators' changes.
func (l *Loop) Changes() []lb.OperatorChange { return l.changes.Changes() }

// TakeInChanges takes over what operators have changed on another node, whose name is
// peer, and has it applied. After an error what makes sense is in force all the same,
// unless it cannot be kept.
func (l *Loop) TakeInChanges(peer string, changes []lb.OperatorChange) error {
	taken, err := l.changes.TakeIn(changes)
	for _, c := range taken {
		_, v, _ := override(c)
		text := fmt.Sprintf("%s of %s: %s, on %s", c.Address, c.Scope, v, cmp.Or(c.Node, peer))
		l.log.Info("changed by an operator", "change", text)
		l.record(events.Event{Type: events.OperatorChange, Peer: peer, To: string(v.action()), Text: text})
	}
	if len(taken) > 0 {
		l.Dirty()
		l.tellChanges()
	}
	return err
}

func (l *Loop) tellChanges() {
	if l.changed != nil {
		l.changed()
	}
}

// action is what makes an override of none.
func (o Override) action() Action {
	switch {
	case o.State != "":
		return o.State
	case o.Weight != nil:
		return Weight
	}
	return Reset
}
