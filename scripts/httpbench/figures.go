package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// figures are what was measured, by name, in the order of their first rounds.
type figures struct {
	names    []string
	units    map[string]string
	values   map[string][]float64
	comments []string
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

// comment notes what else there is to say.
func (f *figures) comment(format string, args ...any) {
	f.comments = append(f.comments, fmt.Sprintf(format, args...))
}

// print prints a line for each figure, the median of its rounds, with a comment that has
// their extremes; then how many times as much processor time sluice has taken as the
// others, round by round.
func (f *figures) print(w io.Writer) {
	for _, name := range f.names {
		v := f.values[name]
		fmt.Fprintf(w, "figure: %s %s %s\n", name, number(median(v)), f.units[name])
		if len(v) > 1 {
			fmt.Fprintf(w, "# %s: median of %d, from %s to %s\n", name, len(v), number(slices.Min(v)), number(slices.Max(v)))
		}
	}
	for _, name := range f.names {
		of, ours := strings.CutSuffix(name, ".sluice.cpu_us")
		if !ours {
			continue
		}
		for _, other := range []string{"nginx", "haproxy"} {
			if r := ratios(f.values[name], f.values[of+"."+other+".cpu_us"]); len(r) > 0 {
				fmt.Fprintf(w, "# %s: sluice takes %s times %s's processor time, median of %d rounds, from %s to %s\n",
					of, number(median(r)), other, len(r), number(slices.Min(r)), number(slices.Max(r)))
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

// median is that of one value or more.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// number has two digits after the point, or none where they say nothing.
func number(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
}
