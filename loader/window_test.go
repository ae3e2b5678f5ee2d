package loader

import (
	"fmt"
	"testing"
	"time"
)

const (
	clean    = lbSlotStateSLOT_CLEAN
	tracked  = lbSlotStateSLOT_TRACKED
	settling = lbSlotStateSLOT_SETTLING
)

const oldWindow, newWindow = 1000 * time.Second, 1200 * time.Second

func (s slot) String() string {
	return fmt.Sprintf("owner %d previous %d state %d closes %d", s.owner(), s.previous(), s.state(), s>>lbSlotBitsSLOT_CLOSES_SHIFT)
}

func TestSlotChange(t *testing.T) {
	tests := []struct {
		name  string
		from  slot
		owner uint32
		dead  uint32
		want  slot
		none  bool // no window is to be opened
	}{
		{"a planned change opens a window", makeSlot(1, 0, clean), 2, 0, makeSlot(2, 1, tracked), false},
		{"the same owner changes nothing", makeSlot(1, 0, clean), 1, 0, makeSlot(1, 0, clean), false},
		{"a failed owner's slot moves at once", makeSlot(1, 0, clean), 2, 1, makeSlot(2, 0, clean), false},
		{"the first owner comes from none", makeSlot(0, 0, clean), 2, 0, makeSlot(2, 0, clean), false},
		{"the last owner goes as planned", makeSlot(1, 0, clean), 0, 0, makeSlot(0, 1, tracked), false},
		{"a second change keeps the previous owner", makeSlot(2, 1, tracked), 3, 0, makeSlot(3, 1, tracked), false},
		{"a change back keeps the previous owner", makeSlot(2, 1, tracked), 1, 0, makeSlot(1, 1, tracked), false},
		{"a dead previous owner gives way to the outgoing one", makeSlot(2, 1, tracked), 3, 1, makeSlot(3, 2, tracked), false},
		{"a dead previous owner without a change", makeSlot(2, 1, tracked), 2, 1, makeSlot(2, 0, tracked), false},
		{"an owner that fails in a window", makeSlot(2, 1, tracked), 3, 2, makeSlot(3, 1, tracked), false},
		{"a change while settling opens a new window", makeSlot(2, 0, settling), 3, 0, makeSlot(3, 2, tracked), false},
		{"a failure while settling moves at once", makeSlot(2, 0, settling), 3, 2, makeSlot(3, 0, settling), false},
		{"a change without a window moves at once", makeSlot(1, 0, clean), 2, 0, makeSlot(2, 0, clean), true},
		{"a change without a window while settling", makeSlot(2, 0, settling), 3, 0, makeSlot(3, 0, settling), true},
		{"a change in a window that is open still", makeSlot(2, 1, tracked), 3, 0, makeSlot(3, 1, tracked), true},
		{"a dead previous owner in a window that is open still", makeSlot(2, 1, tracked), 3, 1, makeSlot(3, 2, tracked), true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			alive := func(n uint32) bool { return n != 0 && n != tc.dead }
			if tc.want.state() == tracked {
				closes := newWindow // a window that opens
				if tc.from.state() == tracked {
					closes = oldWindow // or stays as it is
				}
				tc.want = tc.want.closing(closes)
			}
			if tc.from.state() == tracked {
				tc.from = tc.from.closing(oldWindow)
			}
			closes := newWindow
			if tc.none {
				closes = noWindow
			}
			if got := tc.from.change(tc.owner, alive, closes); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestSlotWindowEnds(t *testing.T) {
	s := makeSlot(5, 4, tracked)
	if got, want := s.clean(), s; got != want {
		t.Errorf("a tracked slot was cleaned: %v", got)
	}
	if got, want := s.settle(), makeSlot(5, 0, settling); got != want {
		t.Errorf("settled: got %v, want %v", got, want)
	}
	if got, want := s.settle().clean(), makeSlot(5, 0, clean); got != want {
		t.Errorf("clean: got %v, want %v", got, want)
	}
	if got, want := makeSlot(5, 0, clean).settle(), makeSlot(5, 0, clean); got != want {
		t.Errorf("a clean slot settled: got %v, want %v", got, want)
	}
}

// A window closes when it should, or up to a unit later, however long the machine
// has been up.
func TestSlotWindowLeft(t *testing.T) {
	for _, now := range []time.Duration{0, time.Second, 17 * time.Hour, 36*time.Hour + 3*time.Second, 1000 * time.Hour} {
		for _, window := range []time.Duration{0, time.Second, 8 * time.Second, 5 * time.Minute, maxWindow} {
			s := makeSlot(2, 1, tracked).closing(now + window)
			if left := s.left(now); left < window || left >= window+closesUnit {
				t.Errorf("at %v a window of %v stays open for %v", now, window, left)
			}
			if left := s.left(now + window + closesUnit); left != 0 {
				t.Errorf("at %v a window of %v is open %v later for %v more", now, window, window+closesUnit, left)
			}
			if left := s.left(now + window + 10*time.Hour); left != 0 {
				t.Errorf("at %v a window of %v is open 10 h later for %v more", now, window, left)
			}
		}
	}
}
