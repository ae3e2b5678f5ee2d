package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// figures are what was measured, by name, in the order of their first rounds.
type figures struct {
	names  []string
	units  map[string]string
	values map[string][]float64
	pauses map[string]time.Duration // the longest of the client's

	sent, skipped int  // of the client's probes
	slow          bool // a prober had no real-time priority
}

// add notes what one round has found.
func (f *figures) add(name, unit string, value float64) {
	if f.values == nil {
		f.units, f.values = map[string]string{}, map[string][]float64{}
	}
	if _, ok := f.values[name]; !ok {
		f.names = append(f.names, name)
	}
	f.units[name], f.values[name] = unit, append(f.values[name], value)
}

// probes notes how well the client itself has kept time.
func (f *figures) probes(r testenv.DatagramResult) {
	f.sent += len(r.Sent)
	f.skipped += r.Skipped
	f.slow = f.slow || !r.Realtime
}

// pause notes for how long the client has seen nothing of what a figure is about.
func (f *figures) pause(name string, length time.Duration) {
	if f.pauses == nil {
		f.pauses = map[string]time.Duration{}
	}
	f.pauses[name] = max(f.pauses[name], length)
}

// print prints a line for each figure, the median of its rounds, and a comment with
// their extremes; then sluice's crashes over keepalived's, and what else bears on
// the figures.
func (f *figures) print(w io.Writer) {
	for _, name := range f.names {
		v := f.values[name]
		fmt.Fprintf(w, "figure: %s %s %s\n", name, number(median(v)), f.units[name])
		fmt.Fprintf(w, "# %s: median of %d, from %s to %s", name, len(v), number(slices.Min(v)), number(slices.Max(v)))
		if pause, ok := f.pauses[name]; ok {
			fmt.Fprintf(w, "; the client paused for %s ms at most", number(pause.Seconds()*1000))
		}
		fmt.Fprintln(w)
	}
	for _, name := range f.names {
		rest, ours := strings.CutPrefix(name, "failover.sluice.")
		rest, crash := strings.CutSuffix(rest, ".crash.ms")
		theirs := f.values["failover.keepalived."+rest+".crash.ms"]
		if ours && crash && len(theirs) > 0 {
			fmt.Fprintf(w, "figure: failover.sluice_over_keepalived.%s.crash.ratio %s x\n",
				rest, number(median(f.values[name])/median(theirs)))
		}
	}
	fmt.Fprintf(w, "# the client sent %d probes, and was late for %d others\n", f.sent, f.skipped)
	if f.slow {
		fmt.Fprintln(w, "# the client had no real-time priority: its own delays are in the figures")
	}
}

// median is that of one value or more.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// number has two digits after the point, or none where they say nothing.
func number(v float64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
}
