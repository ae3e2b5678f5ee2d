// Package rounds is what benchmarks that run for minutes have in common: figures by
// rounds, what of them is chosen on the command line, and a machine that is ready.
package rounds

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// Figures are what was measured, by name, in the order of their first rounds. The zero
// value has none.
type Figures struct {
	Names  []string
	Values map[string][]float64 // one of each round
	units  map[string]string
}

// Add notes what one round has found.
func (f *Figures) Add(name, unit string, value float64) {
	if f.Values == nil {
		f.units, f.Values = map[string]string{}, map[string][]float64{}
	}
	if _, ok := f.Values[name]; !ok {
		f.Names = append(f.Names, name)
	}
	f.units[name], f.Values[name] = unit, append(f.Values[name], value)
}

// Print prints a line for each figure, the median of its rounds, and a comment with their
// extremes and what else there is to say of it.
func (f *Figures) Print(w io.Writer, more func(name string) string) {
	for _, name := range f.Names {
		v := f.Values[name]
		fmt.Fprintf(w, "figure: %s %s %s\n", name, Number(Median(v)), f.units[name])
		fmt.Fprintf(w, "# %s: %s%s\n", name, Spread(v), more(name))
	}
}

// Spread says what the values of rounds are.
func Spread(v []float64) string {
	return fmt.Sprintf("median of %d, from %s to %s", len(v), Number(slices.Min(v)), Number(slices.Max(v)))
}

// Median is that of one value or more.
func Median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// Number has two digits after the point, or none where they say nothing.
func Number(v float64) string {
	if v >= 10_000 {
		return fmt.Sprintf("%.0f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
}

// Names are those of all that there is to choose from.
func Names[T any](all []T, name func(T) string) (names []string) {
	for _, one := range all {
		names = append(names, name(one))
	}
	return names
}

// Choose returns those that a list with commas names, in its order, or all where it is
// empty; false: it names one that is not there.
func Choose[T any](all []T, name func(T) string, list string) (chosen []T, ok bool) {
	if list == "" {
		return all, true
	}
	for wanted := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(one T) bool { return name(one) == wanted })
		if i < 0 {
			return nil, false
		}
		chosen = append(chosen, all[i])
	}
	return chosen, true
}

// Ready makes the machine ready for a program that measures sluice: the error is that it
// is not there.
func Ready(program, sluice string) error {
	if _, err := os.Stat(sluice); err != nil {
		return fmt.Errorf("find the sluice program (make build makes it; --sluice names another): %w", err)
	}
	if err := testenv.Sweep(); err != nil {
		// What an earlier run has left is a nuisance, but not in this one's way.
		fmt.Fprintf(os.Stderr, "%s: sweep up after earlier runs: %v\n", program, err)
	}
	return nil
}
