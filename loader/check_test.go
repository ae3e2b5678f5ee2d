package loader

import (
	"slices"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Check finds out beforehand what Apply would refuse, and changes nothing.
func TestCheck(t *testing.T) {
	web := service("web", lb.DSR, 80, backends(2, 80))
	d := newDatapath(t, web)
	before := stats(t, d)
	if _, err := d.Check(lb.Snapshot{Services: []lb.ServiceState{service("mail", lb.DSR, 25, backends(3, 25)), web}}); err != nil {
		t.Errorf("one service more: %v", err)
	}
	var many []lb.ServiceState
	for i := range 40 { // of 16 times the default size there is room
		s := service("s"+string(rune('A'+i)), lb.DSR, uint16(1000+i), backends(1, uint16(1000+i)))
		many = append(many, s)
	}
	slices.SortFunc(many, func(a, b lb.ServiceState) int { return strings.Compare(a.Name, b.Name) })
	_, err := d.Check(lb.Snapshot{Services: many})
	if err == nil || !strings.Contains(err.Error(), "restart the daemon, which makes the table larger") {
		t.Errorf("many services: %v", err)
	}
	after := stats(t, d)
	if len(after.Services) != 1 || after.Services[0].Backends[0].Slots != before.Services[0].Backends[0].Slots || after.Services[0].Moves != nil && before.Services[0].Moves == nil {
		t.Errorf("it has changed something: %+v, was %+v", after, before)
	}
}
