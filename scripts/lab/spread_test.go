package main

import (
	"strings"
	"testing"
)

func TestCheckSpread(t *testing.T) {
	// Of 2000, a backend with half of the weight may have 1000 ± 89.4, one with
	// a quarter 500 ± 77.5.
	for _, tc := range []struct {
		name    string
		answers map[string]int
		wrong   string // backends that the error names; "": no error
	}{
		{"exact", map[string]int{"b1": 500, "b2": 1000, "b3": 500}, ""},
		{"at the limit", map[string]int{"b1": 577, "b2": 1000, "b3": 423}, ""},
		{"beyond the limit", map[string]int{"b1": 578, "b2": 1000, "b3": 422}, "b1 b3"},
		{"by number, not by weight", map[string]int{"b1": 667, "b2": 667, "b3": 666}, "b1 b2 b3"},
		{"one is missing", map[string]int{"b2": 1000, "b3": 500}, "b1 b2 b3"},
		{"a stranger", map[string]int{"b1": 500, "b2": 1000, "b3": 499, "lb1": 1}, "lb1"},
		{"no answers at all", nil, "nobody"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := checkSpread(tc.answers, map[string]int{"b1": 1, "b2": 2, "b3": 1})
			if (err == nil) != (tc.wrong == "") {
				t.Fatalf("error %v, want one about %q", err, tc.wrong)
			}
			for name := range strings.FieldsSeq(tc.wrong) {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("error %q does not name %s", err, name)
				}
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"no command", nil},
		{"an unknown command", []string{"destroy"}},
		{"an unknown flag", []string{"demo", "--fast"}},
		{"shell without a node", []string{"shell"}},
		{"too many arguments", []string{"down", "now"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := run(t.Context(), tc.args); err != errUsage {
				t.Errorf("error %v, want %v", err, errUsage)
			}
		})
	}
}
