package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/sluice-lb/sluice/scripts/rounds"
)

// figures are what was measured.
type figures struct {
	rounds.Figures
	comments []string
}

// comment notes what else there is to say.
func (f *figures) comment(format string, args ...any) {
	f.comments = append(f.comments, fmt.Sprintf(format, args...))
}

// print prints a line for each figure, the median of its rounds, with a comment that has
// their extremes; then how many times as much processor time sluice has taken as the
// others, round by round.
func (f *figures) print(w io.Writer) {
	f.Print(w, func(string) string { return "" })
	for _, name := range f.Names {
		of, ours := strings.CutSuffix(name, ".sluice.cpu_us")
		if !ours {
			continue
		}
		for _, other := range []string{"nginx", "haproxy"} {
			if r := ratios(f.Values[name], f.Values[of+"."+other+".cpu_us"]); len(r) > 0 {
				fmt.Fprintf(w, "# %s: sluice takes %s times %s's processor time, %s\n", of, rounds.Number(rounds.Median(r)), other, rounds.Spread(r))
			}
		}
	}
	for _, c := range f.comments {
		fmt.Fprintf(w, "# %s\n", c)
	}
}

// ratios are those of the values of the same rounds.
func ratios(a, b []float64) (all []float64) {
	for i := range min(len(a), len(b)) {
		all = append(all, a[i]/b[i])
	}
	return all
}
