package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/scripts/rounds"
)

// figures are what was measured.
type figures struct {
	rounds.Figures
	pauses map[string]time.Duration // the longest of the client's, by name

	sent, skipped int  // of the client's probes
	slow          bool // a prober had no real-time priority
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
	f.Print(w, func(name string) string {
		if pause, ok := f.pauses[name]; ok {
			return fmt.Sprintf("; the client paused for %s ms at most", rounds.Number(pause.Seconds()*1000))
		}
		return ""
	})
	for _, name := range f.Names {
		rest, ours := strings.CutPrefix(name, "failover.sluice.")
		rest, crash := strings.CutSuffix(rest, ".crash.ms")
		theirs := f.Values["failover.keepalived."+rest+".crash.ms"]
		if ours && crash && len(theirs) > 0 {
			fmt.Fprintf(w, "figure: failover.sluice_over_keepalived.%s.crash.ratio %s x\n",
				rest, rounds.Number(rounds.Median(f.Values[name])/rounds.Median(theirs)))
		}
	}
	fmt.Fprintf(w, "# the client sent %d probes, and was late for %d others\n", f.sent, f.skipped)
	if f.slow {
		fmt.Fprintln(w, "# the client had no real-time priority: its own delays are in the figures")
	}
}
