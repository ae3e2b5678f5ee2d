package loader

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/internal/maglev"
)

// Moves is what the last change of a service's backends has done to its slots.
type Moves struct {
	At      time.Time `json:"at"`
	Changed int       `json:"changed"` // slots that got another owner
	Least   int       `json:"least"`   // that had to, whatever the construction of the table

	reported bool
}

// moved notes which services' slots get other owners in the next state. Slots that
// nobody owned had nothing to lose.
func (d *Datapath) moved(next *State) {
	for n := range d.moves {
		if _, ok := next.Services[n]; !ok {
			delete(d.moves, n)
		}
	}
	for n, after := range next.Slots {
		before := d.state.Slots[n]
		if len(before) == 0 || &before[0] == &after[0] {
			continue
		}
		if !slices.ContainsFunc(before, func(s slot) bool { return s.owner() != 0 }) {
			continue
		}
		if m := compareOwners(before, after); m.Changed > 0 {
			d.moves[n] = m
		}
	}
}

// compareOwners compares a service's slots before and after a change.
func compareOwners(before, after []slot) Moves {
	changed, least := maglev.Disruption(ownersOf(before), ownersOf(after))
	return Moves{At: time.Now(), Changed: changed, Least: least}
}

// ownersOf returns slots as a table, whose keys are backends' numbers.
func ownersOf(slots []slot) *maglev.Table {
	t := &maglev.Table{Slots: make([]int32, len(slots))}
	index := map[uint32]int32{0: maglev.None}
	for i, s := range slots {
		owner, ok := index[s.owner()]
		if !ok {
			owner = int32(len(t.Backends))
			index[s.owner()] = owner
			t.Backends = append(t.Backends, maglev.Backend{Key: strconv.Itoa(int(s.owner()))})
		}
		t.Slots[i] = owner
	}
	return t
}

// reportMoves logs what the last change has moved.
func (d *Datapath) reportMoves() {
	for _, n := range slices.Sorted(maps.Keys(d.moves)) {
		if m := d.moves[n]; !m.reported {
			m.reported = true
			d.moves[n] = m
			d.log.Info("slots changed", "service", d.names[n], "slots changed", m.Changed, "least", m.Least, "of", len(d.state.Slots[n]))
		}
	}
}
