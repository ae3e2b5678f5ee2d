package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A short run of what `make soak` does for longer: on a machine that is busy beyond
// reason nobody takes over from a node that is at work.
func TestSoak(t *testing.T) {
	testenv.RequireRoot(t)
	program := build(t)
	for _, name := range soaked {
		t.Run(name, func(t *testing.T) {
			c := configurations[slices.IndexFunc(configurations, func(c configuration) bool { return c.name == name })]
			var out strings.Builder
			ctx, cancel := context.WithTimeout(t.Context(), soakLimit)
			defer cancel()
			err := soak(ctx, task{sluice: program, soak: 8 * time.Second}, c, &out)
			t.Logf("\n%s", out.String())
			if errors.Is(err, errStalled) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, figure := range []string{"false_takeovers 0 takeovers", "advertisement_gap.ms ", "lost "} {
				if want := fmt.Sprintf("figure: soak.%s.%s", name, figure); !strings.Contains(out.String(), want) {
					t.Errorf("there is no %q", want)
				}
			}
			if beats := strings.Contains(out.String(), "heartbeat_gap.ms"); beats != c.key {
				t.Errorf("heartbeats came: %v, want %v", beats, c.key)
			}
		})
	}
}

func TestVerdictOfASoaking(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*soaking)
		want   string // in the error; "": none
	}{
		{"nothing has happened", func(*soaking) {}, ""},
		{"probes were lost", func(r *soaking) { r.lost = 3 }, ""},
		{"a takeover", func(r *soaking) { r.takeovers = []string{"VI_1 on lb2", "VI_1 on lb2 again"} }, "2 false takeovers, the first: VI_1 on lb2"},
		{"takeovers after stalls", func(r *soaking) { r.takeovers, r.excused = []string{"VI_1 on lb2"}, 1 }, "1 takeovers, each after the machine itself had stood still"},
		{"one of two takeovers after a stall", func(r *soaking) { r.takeovers, r.excused = []string{"a", "b"}, 1 }, "2 false takeovers"},
		{"the first node has changed", func(r *soaking) { r.changes = []string{"VI_1 on lb1"} }, "1 changes of state, the first: VI_1 on lb1"},
		{"an advertisement of the second node", func(r *soaking) { r.strays = 1 }, "lb2 has advertised"},
		{"no reload", func(r *soaking) { r.reloads = 0 }, "made no garbage"},
		{"no collection", func(r *soaking) { r.collections[second] = 0 }, "made no garbage"},
		{"nothing was heard", func(r *soaking) { delete(r.arrivals, advertisements) }, "nothing is shown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := soaking{reloads: 1, collections: map[string]int{first: 1, second: 1}, arrivals: map[string]gaps{advertisements: {count: 1}}}
			tc.change(&r)
			if err := r.verdict(); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestFiguresOfASoaking(t *testing.T) {
	r := soaking{
		length: 2 * time.Minute, reloads: 100, lost: 1, sent: 24000, silence: 31 * time.Millisecond, pause: 11 * time.Millisecond, stall: 3 * time.Millisecond, late: 4 * time.Millisecond, slowest: 412 * time.Millisecond,
		takeovers: []string{"why\nnot"}, collections: map[string]int{first: 7, second: 8},
		arrivals: map[string]gaps{heartbeats: {count: 24000, longest: 6125 * time.Microsecond}},
	}
	var out strings.Builder
	r.print(&out, "fast")
	const want = `figure: soak.fast.false_takeovers 1 takeovers
figure: soak.fast.heartbeat_gap.ms 6.12 ms
# soak.fast.heartbeat_gap.ms: the longest of 24000, at the Backup's interface
figure: soak.fast.lost 1 probes
# soak.fast: 2m0s, 40 busy processes, 100 reloads of each node; 7 and 8 collections of garbage
# soak.fast: a status, or metrics, took 412 ms at most
# soak.fast: the client sent 24000 probes; its longest silence was 31 ms, and it paused for 11 ms at most
# soak.fast: pacemakers were late by 4 ms at most, and the machine itself stood still for 3 ms
# soak.fast: why; not
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}

func TestStalls(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	stalls := []stall{{at(1000), 40 * time.Millisecond}, {at(5000), 10 * time.Millisecond}}
	if got := longest(stalls); got != 40*time.Millisecond {
		t.Errorf("the longest is %v", got)
	}
	for _, tc := range []struct {
		name string
		at   int
		want time.Duration
	}{
		{"before all", 900, 0}, {"in the middle of one", 980, 40 * time.Millisecond}, {"shortly after", 1100, 40 * time.Millisecond},
		{"long after", 1300, 0}, {"after another one", 5001, 10 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := stalledBefore(stalls, at(tc.at)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestWatch(t *testing.T) {
	testenv.RequireRoot(t)
	began := time.Now()
	w, err := startWatch()
	if err != nil {
		t.Fatal(err)
	}
	stalls, err := w.stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stalls {
		if s.Length <= stallOver || s.End.Before(began) || s.End.After(time.Now()) {
			t.Errorf("a stall of %v until %v after the beginning", s.Length, s.End.Sub(began))
		}
	}
}

func TestGaps(t *testing.T) {
	var g gaps
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, ms := range []int{0, 5, 11, 15} {
		g.note(start.Add(time.Duration(ms) * time.Millisecond))
	}
	if g.count != 3 || g.longest != 6*time.Millisecond {
		t.Errorf("%d gaps, the longest %v, want 3 and 6ms", g.count, g.longest)
	}
}

func TestWhatAPacketIs(t *testing.T) {
	from := netip.MustParseAddr("192.0.2.1")
	packet := func(protocol byte, payload ...byte) []byte {
		b := make([]byte, 20)
		b[0], b[9] = 0x45, protocol
		copy(b[12:], from.AsSlice())
		return append(b, payload...)
	}
	beat := func(port uint16, kind byte) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0, 0}, port)
		return packet(17, append(b, 0, 0, 0, 0, 's', 'l', 'h', 'b', 1, kind, 0, 0)...)
	}
	for _, tc := range []struct {
		name string
		b    []byte
		from string
		want string
	}{
		{"an advertisement", packet(112, 0x31), "192.0.2.1", advertisements},
		{"of another node", packet(112, 0x31), "192.0.2.2", ""},
		{"a heartbeat", beat(3780, 3), "192.0.2.1", heartbeats},
		{"a challenge", beat(3780, 1), "192.0.2.1", ""},
		{"another port", beat(53, 3), "192.0.2.1", ""},
		{"cut short", beat(3780, 3)[:30], "192.0.2.1", ""},
		{"nothing", nil, "192.0.2.1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := kindOf(tc.b, netip.MustParseAddr(tc.from)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
