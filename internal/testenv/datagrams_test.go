package testenv

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// answersMore waits until so many more datagrams have been answered, none of them
// missing in between.
func answersMore(t *testing.T, p *DatagramProber, n int) {
	t.Helper()
	before, _ := p.Progress()
	Eventually(t, 10*time.Second, fmt.Sprintf("%d more echoes", n), func() (bool, error) {
		answered, streak := p.Progress()
		return answered >= before+n && streak >= n, nil
	})
}

func TestDatagramProberCountsWhatIsLost(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	// The echo answers from the address that it was asked at, not from the host's
	// first one.
	second := netip.MustParseAddr("192.0.2.77")
	if err := b1.AddAddress(DefaultInterface, netip.PrefixFrom(second, 24)); err != nil {
		t.Fatal(err)
	}
	const port = 7
	if _, err := b1.StartUDPEcho(port); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	prober, err := client.StartDatagramProber(netip.AddrPortFrom(second, port), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	answersMore(t, prober, 50)
	before := time.Now()
	answersMore(t, prober, 50)
	cut := time.Now()
	if err := b1.LinkDown(); err != nil {
		t.Fatal(err)
	}
	const while = 100 * time.Millisecond
	Eventually(t, 10*time.Second, "a long cut", func() (bool, error) { return time.Since(cut) > while, nil })
	restored := time.Now()
	if err := b1.LinkUp(); err != nil {
		t.Fatal(err)
	}
	answersMore(t, prober, 50)
	got, err := prober.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if lost := got.LostBetween(began, before); lost > 0 {
		t.Errorf("%d datagrams were lost before the cut, want none", lost)
	}
	if silence := got.LongestSilenceBetween(cut, restored.Add(time.Second)); silence < while/2 {
		t.Errorf("the longest silence is %v, want about %v", silence, while)
	}
	// The network takes a moment to go, and the prober skips when it is late.
	sent := 0
	for _, at := range got.Sent {
		if at := got.Start.Add(at); at.After(cut.Add(while/2)) && at.Before(restored) {
			sent++
		}
	}
	if lost := got.LostBetween(cut.Add(while/2), restored); lost != sent || sent == 0 {
		t.Errorf("of %d datagrams in the middle of the cut %d were lost, want all", sent, lost)
	}
	answered, _ := prober.Progress()
	if lost := got.LostBetween(began, time.Now()); lost+answered != len(got.Sent) {
		t.Errorf("%d were sent, %d answered and %d lost", len(got.Sent), answered, lost)
	}
	again, err := prober.Stop()
	if err != nil || len(again.Sent) != len(got.Sent) {
		t.Errorf("a second Stop: %d datagrams, %v; want %d as the first", len(again.Sent), err, len(got.Sent))
	}
}

func TestLongestSilenceOfDatagrams(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	// Moments and lengths are in tenths of a millisecond.
	const unit = 100 * time.Microsecond
	for _, tt := range []struct {
		name     string
		sent     []int
		answered []int // 0: never
		from, to int
		want     int
		lost     int
		pause    int
	}{
		{"all answered", []int{10, 20, 30, 40}, []int{11, 21, 31, 41}, 11, 41, 10, 0, 10},
		{"one is lost", []int{10, 20, 30, 40}, []int{11, 0, 31, 41}, 11, 41, 20, 1, 10},
		{"one is late", []int{10, 20, 30, 40}, []int{11, 21, 38, 41}, 11, 41, 17, 0, 10},
		{"several are late", []int{10, 20, 30, 40, 50}, []int{11, 48, 48, 49, 51}, 11, 51, 37, 0, 10},
		{"the prober is late", []int{10, 20, 90, 100}, []int{11, 21, 91, 101}, 11, 101, 11, 0, 70},
		{"the prober is late, then one is lost", []int{10, 20, 90, 100}, []int{11, 21, 0, 101}, 11, 101, 80, 1, 70},
		{"the prober is late, then one is answered late", []int{10, 20, 90, 100}, []int{11, 21, 105, 106}, 11, 106, 84, 0, 70},
		{"the prober is late in the middle of a silence", []int{10, 20, 90, 100}, []int{11, 0, 0, 101}, 11, 101, 90, 2, 70},
		{"cut off at its beginning", []int{10, 20, 30, 40}, []int{11, 0, 0, 41}, 25, 50, 16, 1, 10},
		{"cut off at its end", []int{10, 20, 30, 40}, []int{11, 0, 0, 41}, 11, 35, 24, 2, 10},
		{"silence outside", []int{10, 20, 30, 40, 50}, []int{11, 0, 31, 41, 51}, 31, 51, 10, 0, 10},
		{"no answer in the end", []int{10, 20, 30}, []int{11, 0, 0}, 11, 40, 29, 2, 10},
		{"no answer at all", []int{10, 20}, []int{0, 0}, 10, 40, 30, 2, 10},
		{"a pause outside", []int{10, 20, 30, 40, 90, 100}, []int{11, 21, 31, 41, 91, 101}, 11, 35, 10, 0, 10},
		{"nothing was sent", nil, nil, 10, 40, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := DatagramResult{Start: start, Interval: 10 * unit}
			for i := range tt.sent {
				r.Sent = append(r.Sent, time.Duration(tt.sent[i])*unit)
				r.Answered = append(r.Answered, time.Duration(tt.answered[i])*unit)
			}
			from, to := start.Add(time.Duration(tt.from)*unit), start.Add(time.Duration(tt.to)*unit)
			if got, want := r.LongestSilenceBetween(from, to), time.Duration(tt.want)*unit; got != want {
				t.Errorf("the longest silence is %v, want %v", got, want)
			}
			if got := r.LostBetween(from, to); got != tt.lost {
				t.Errorf("%d were lost, want %d", got, tt.lost)
			}
			if got, want := r.LongestPauseBetween(from, to), time.Duration(tt.pause)*unit; got != want {
				t.Errorf("the longest pause is %v, want %v", got, want)
			}
		})
	}
}

// A host that refuses datagrams, or is not there, is no error of the prober's.
func TestDatagramProberWithoutAnEcho(t *testing.T) {
	for _, tt := range []struct{ name, target string }{
		{"refused", "192.0.2.11:7"}, {"nobody there", "192.0.2.99:7"}, {"no route", "203.0.113.1:7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := New(t, Default(1))
			prober, err := lab.Host("client").StartDatagramProber(netip.MustParseAddrPort(tt.target), time.Millisecond)
			if tt.name == "no route" {
				if err == nil {
					t.Error("a prober without a route starts")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			const while = 100 * time.Millisecond
			began := time.Now()
			Eventually(t, 10*time.Second, "some time", func() (bool, error) { return time.Since(began) > while, nil })
			got, err := prober.Stop()
			if err != nil {
				t.Fatal(err)
			}
			answered, _ := prober.Progress()
			lost := got.LostBetween(time.Time{}, time.Now())
			if answered > 0 || len(got.Sent) == 0 || lost != len(got.Sent) {
				t.Errorf("%d sent, %d answered, %d lost: want all lost", len(got.Sent), answered, lost)
			}
			if silence := got.LongestSilenceBetween(began, began.Add(while)); silence < while/2 {
				t.Errorf("the longest silence is %v, want most of %v", silence, while)
			}
		})
	}
}
