package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPrintedMistakes shows what a user sees for a file with five different
// mistakes.
func TestPrintedMistakes(t *testing.T) {
	const yaml = `datapath: {interfaces: [eth0]}
pools:
  - name: web
    helth: {type: http}
    servers:
      - {address: 192.0.2.256, weight: 1}
services:
  - name: www
    address: [2001:db8::100]:80
    pool: wbe
    track_window: 5m
    affinity: client
`
	const want = `/etc/sluice/sluice.yaml:4:5: unknown key "helth" in a pool; did you mean "health"?
    4 |     helth: {type: http}
      |     ^^^^^
/etc/sluice/sluice.yaml:6:19: bad address "192.0.2.256": IPv4 field has value >255
    6 |       - {address: 192.0.2.256, weight: 1}
      |                   ^^^^^^^^^^^
/etc/sluice/sluice.yaml:9:14: put quotes around it: write "[2001:db8::100]:80" (without them YAML reads [ as the start of a list)
    9 |     address: [2001:db8::100]:80
      |              ^^^^^^^^^^^^^^^^^^
/etc/sluice/sluice.yaml:10:11: there is no pool "wbe"; did you mean "web"?
   10 |     pool: wbe
      |           ^^^
/etc/sluice/sluice.yaml:12:15: affinity must be one of none, flow, not "client"
   12 |     affinity: client
      |               ^^^^^^`
	_, err := load(memFiles{"/etc/sluice/sluice.yaml": yaml}, "/etc/sluice/sluice.yaml", Options{})
	if err == nil {
		t.Fatal("no mistake found")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
	var one *Error
	if !errors.As(err, &one) || one.Line != 4 || one.Column != 5 || one.Text != "    helth: {type: http}" {
		t.Errorf("first mistake %+v", one)
	}
}

func TestErrorPrinted(t *testing.T) {
	long := strings.Repeat("a", 200)
	tests := []struct {
		name string
		err  Error
		want string
	}{
		{
			name: "a file as a whole",
			err:  Error{File: "f", Message: "cannot be read"},
			want: "f: cannot be read",
		},
		{
			name: "one character",
			err:  Error{File: "f", Line: 1, Column: 3, Width: 1, Message: "m", Text: "a: b"},
			want: "f:1:3: m\n    1 | a: b\n      |   ^",
		},
		{
			name: "at the end of the line",
			err:  Error{File: "f", Line: 12345, Column: 5, Width: 9, Message: "m", Text: "a: b"},
			want: "f:12345:5: m\n12345 | a: b\n      |     ^",
		},
		{
			name: "tabs before the place",
			err:  Error{File: "f", Line: 1, Column: 3, Width: 2, Message: "m", Text: "\ta bc"},
			want: "f:1:3: m\n    1 | \ta bc\n      | \t ^^",
		},
		{
			name: "characters of two columns",
			err:  Error{File: "f", Line: 1, Column: 4, Width: 2, Message: "m", Text: "é网 站点 x"},
			want: "f:1:4: m\n    1 | é网 站点 x\n      |     ^^^^",
		},
		{
			name: "control characters are not sent to a terminal",
			err:  Error{File: "f", Line: 1, Column: 1, Width: 1, Message: "m", Text: "a\x1b[31m"},
			want: "f:1:1: m\n    1 | a\uFFFD[31m\n      | ^",
		},
		{
			name: "a long line, place at its start",
			err:  Error{File: "f", Line: 1, Column: 1, Width: 300, Message: "m", Text: long},
			want: "f:1:1: m\n    1 | " + long[:110] + "…\n      | " + strings.Repeat("^", 110),
		},
		{
			name: "a long line, place in its middle",
			err:  Error{File: "f", Line: 1, Column: 81, Width: 2, Message: "m", Text: long},
			want: "f:1:81: m\n    1 | …" + long[:110] + "…\n      | " + strings.Repeat(" ", 61) + "^^",
		},
		{
			name: "a long line, place at its end",
			err:  Error{File: "f", Line: 1, Column: 200, Width: 1, Message: "m", Text: long},
			want: "f:1:200: m\n    1 | …" + long[:110] + "\n      | " + strings.Repeat(" ", 110) + "^",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.err.Error()); diff != "" {
				t.Errorf("printed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsSorted(t *testing.T) {
	at := func(file string, line, column int, m string) *Error {
		return &Error{File: file, Line: line, Column: column, Message: m}
	}
	got := Errors{at("b", 1, 1, "x"), at("a", 2, 1, "x"), at("a", 1, 9, "x"), at("a", 1, 2, "y"), at("a", 1, 2, "x"), at("a", 1, 9, "x")}.
		sorted([]string{"b", "a"})
	var lines []string
	for _, e := range got {
		lines = append(lines, e.Summary())
	}
	want := []string{"b:1:1: x", "a:1:2: y", "a:1:2: x", "a:1:9: x", "a:2:1: x"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestNearest(t *testing.T) {
	candidates := []string{"address", "weight", "backup", "interfaces", "type"}
	for word, want := range map[string]string{
		"adress": "address", "addr": "address", "wieght": "weight", "Weight": "weight", "bakcup": "backup",
		"interface": "interfaces", "typ": "type", "x": "", "port": "", "frobnicate": "", "": "",
	} {
		if got := nearest(word, candidates); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "axc", 1}, {"abcd", "bcd", 1}, {"kitten", "sitting", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance of %q and %q is %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
