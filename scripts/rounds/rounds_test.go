package rounds

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChoose(t *testing.T) {
	all := []string{"Seed", "Fast", "Close"}
	for _, tt := range []struct {
		name, list string
		want       []string
		ok         bool
	}{
		{"nothing is asked for", "", all, true},
		{"two, in another order", "close,seed", []string{"Close", "Seed"}, true},
		{"one that is not there", "seed,v4", nil, false},
		{"an empty one", "seed,", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := Choose(all, strings.ToLower, tt.list); !slices.Equal(got, tt.want) || ok != tt.ok {
				t.Errorf("got %q, %v, want %q, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
	if got := Names(all, strings.ToLower); !slices.Equal(got, []string{"seed", "fast", "close"}) {
		t.Errorf("names %q", got)
	}
}

func TestFigures(t *testing.T) {
	var f Figures
	for _, v := range []float64{3, 1, 2.5, 2} {
		f.Add("b", "ms", v)
	}
	f.Add("a", "requests/s", 12345.678)
	f.Add("c", "ms", 3612.25)
	var out strings.Builder
	f.Print(&out, func(name string) string { return map[string]string{"a": ", on a Sunday"}[name] })
	const want = `figure: b 2.25 ms
# b: median of 4, from 1 to 3
figure: a 12346 requests/s
# a: median of 1, from 12346 to 12346, on a Sunday
figure: c 3612.25 ms
# c: median of 1, from 3612.25 to 3612.25
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}
