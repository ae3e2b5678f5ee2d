package maglev

// Disruption compares two tables, of one service at two times: changed is the
// number of slots whose owner differs, least the number that any table with the
// slots per backend of to would differ in. Backends are told apart by key; None
// counts as an owner. Slots of tables of different sizes do not correspond: then
// all slots of to are counted as changed, and as bound to change.
func Disruption(from, to *Table) (changed, least int) {
	if len(from.Slots) != len(to.Slots) {
		return len(to.Slots), len(to.Slots)
	}
	toIndex := make(map[string]int32, len(to.Backends))
	for i, b := range to.Backends {
		toIndex[b.Key] = int32(i)
	}
	const gone = -2
	fromIndex := make([]int32, len(from.Backends)) // its index in to, or gone
	for i, b := range from.Backends {
		fromIndex[i] = gone
		if j, ok := toIndex[b.Key]; ok {
			fromIndex[i] = j
		}
	}
	grown := make([]int, len(to.Backends)+1) // last: None
	index := func(owner int32) int {
		if owner == None {
			return len(to.Backends)
		}
		return int(owner)
	}
	for slot, owner := range from.Slots {
		if owner != None {
			owner = fromIndex[owner]
		}
		if owner != to.Slots[slot] {
			changed++
		}
		if owner != gone {
			grown[index(owner)]--
		}
		grown[index(to.Slots[slot])]++
	}
	for _, n := range grown {
		least += max(n, 0)
	}
	return changed, least
}
