package config

import (
	"fmt"
	"slices"
	"strings"
)

// A schema says which keys a mapping may have.
type schema struct {
	what  string   // with its article: "a pool"
	keys  []string // what is supported
	later []string // what is known and not supported yet
	hints map[string]string
}

// fields is a mapping that is being decoded.
type fields struct {
	d        *decoder
	n        *node
	what     string
	own      map[string]*node
	keys     map[string]*node // where each key stands
	defaults map[string]*node // what fills in for keys that are not set
	// partial marks a section of defaults: what it leaves out may be set where
	// it is used.
	partial bool
}

// fields checks that n is a mapping and that the schema knows each of its
// keys. It returns false where n is no mapping; unknown keys are reported and
// left out.
func (d *decoder) fields(n *node, s *schema) (fields, bool) {
	f := fields{d: d, n: n, what: s.what, own: map[string]*node{}, keys: map[string]*node{}}
	if n.kind != mapping {
		d.mismatch(n, s.what, "a mapping (\"key: value\")")
		return f, false
	}
	for _, e := range n.entries {
		key := e.key.text
		switch {
		case slices.Contains(s.keys, key):
			f.own[key], f.keys[key] = e.value, e.key
		case slices.Contains(s.later, key):
			d.errorf(e.key, "%s is not supported yet", key)
		default:
			if k, value, ok := missingSpace(key); ok && slices.Contains(s.keys, k) {
				d.errorf(e.key, "a space is missing after the colon: write %s: %s", k, value)
				f.own[k], f.keys[k] = &node{src: n.src, kind: invalid}, e.key
				continue
			}
			d.unknownKey(e.key, s)
		}
	}
	return f, true
}

func (d *decoder) unknownKey(key *node, s *schema) {
	hint := ""
	if h, ok := s.hints[strings.ToLower(key.text)]; ok {
		hint = "; " + h
	} else if near := nearest(key.text, append(slices.Clone(s.keys), s.later...)); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	d.errorf(key, "unknown key %q in %s%s", key.text, s.what, hint)
}

// get returns the value of a key, from the mapping itself or from the
// defaults; nil where neither sets it.
func (f fields) get(key string) *node {
	if n, ok := f.own[key]; ok {
		return n
	}
	return f.defaults[key]
}

// sets tells whether the mapping itself sets a key, for good: what a section of
// defaults says may not apply everywhere.
func (f fields) sets(key string) bool { return f.own[key] != nil && !f.partial }

// need is get for a key without which the mapping makes no sense.
func (f fields) need(key string) *node {
	n := f.get(key)
	if n == nil {
		f.d.errorf(f.n, "missing key %q: %s needs it", key, f.what)
	}
	return n
}

// nearest returns the candidate that word was probably meant to be, or "".
func nearest(word string, candidates []string) string {
	word = strings.ReplaceAll(strings.ToLower(word), "-", "_")
	best, bestDistance := "", 1+max(1, len(word)/3)
	for _, c := range candidates {
		if dist := distance(word, c); dist < bestDistance {
			best, bestDistance = c, dist
		}
	}
	if best != "" || len(word) < 4 {
		return best
	}
	for _, c := range candidates {
		if strings.HasPrefix(c, word) || strings.HasPrefix(word, c) && len(c) >= 4 {
			return c
		}
	}
	return ""
}

// distance counts the insertions, removals, replacements and swaps of
// neighbours that lead from a to b.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 2*len(y)+4 {
		return len(x)
	}
	before := make([]int, len(y)+1) // the row before the previous one
	previous := make([]int, len(y)+1)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(x); i++ {
		before, previous, row = previous, row, before
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(previous[j]+1, row[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(y)]
}
