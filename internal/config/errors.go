package config

import (
	"fmt"
	"sort"
	"strings"
	"unicode"
)

// An Error is one mistake in a configuration.
type Error struct {
	File    string // as named by the user, or by the include that led to it
	Line    int    // from 1; 0 where the file as a whole is meant (it cannot be read)
	Column  int    // in characters, from 1; 0 with Line 0
	Message string // what is wrong and what to do; one line
	Text    string // the source line, without its line break
	Width   int    // characters that the caret line marks, at least 1

	cause error
}

// Summary is the mistake in one line: FILE:LINE:COLUMN: MESSAGE.
func (e *Error) Summary() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Error is the summary, the source line, and a line that marks the place.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Summary()
	}
	shown, pad, marks := excerpt(e.Text, e.Column, e.Width)
	number := fmt.Sprintf("%5d", e.Line)
	return fmt.Sprintf("%s\n%s | %s\n%s | %s%s", e.Summary(),
		number, shown, strings.Repeat(" ", len(number)), pad, marks)
}

// Unwrap returns what the operating system said, for a file that cannot be read.
func (e *Error) Unwrap() error { return e.cause }

// Errors is every mistake of a configuration, in the order of the files and of
// the places in them. It is what [Load] returns.
type Errors []*Error

// Error prints every mistake with its place and its source line.
func (e Errors) Error() string {
	parts := make([]string, len(e))
	for i, one := range e {
		parts[i] = one.Error()
	}
	return strings.Join(parts, "\n")
}

// Unwrap returns the mistakes, for errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}

// sorted returns the mistakes by file (in the order of files), line and column,
// each once: what an alias repeats is one mistake.
func (e Errors) sorted(files []string) Errors {
	rank := make(map[string]int, len(files))
	for i, f := range files {
		if _, ok := rank[f]; !ok {
			rank[f] = i
		}
	}
	out := append(Errors(nil), e...)
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.File != b.File {
			return rank[a.File] < rank[b.File]
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	seen := make(map[string]bool, len(out))
	kept := out[:0]
	for _, one := range out {
		if s := one.Summary(); !seen[s] {
			seen[s] = true
			kept = append(kept, one)
		}
	}
	return kept
}

// An excerpt is at most this many characters wide; a longer line is cut around
// the place.
const (
	excerptWidth  = 110
	excerptBefore = 60
)

// excerpt returns the part of a source line to show, what to print below it up
// to the place, and the marks themselves.
func excerpt(text string, column, width int) (shown, pad, marks string) {
	line := []rune(text)
	at := min(max(column-1, 0), len(line))
	width = max(1, min(width, len(line)-at))

	first, last := 0, len(line)
	if len(line) > excerptWidth {
		first = max(0, min(at-excerptBefore, len(line)-excerptWidth))
		last = min(len(line), first+excerptWidth)
	}
	width = max(1, min(width, last-at))

	var s, p strings.Builder
	if first > 0 {
		s.WriteRune('…')
		p.WriteByte(' ')
	}
	for i := first; i < last; i++ {
		r := line[i]
		if unicode.IsControl(r) && r != '\t' {
			r = '\uFFFD' // a terminal must not act on what a file holds
		}
		s.WriteRune(r)
		if i < at {
			switch {
			case r == '\t':
				p.WriteByte('\t')
			case wide(r):
				p.WriteString("  ")
			default:
				p.WriteByte(' ')
			}
		}
	}
	if last < len(line) {
		s.WriteRune('…')
	}
	n := 0
	for i := at; i < at+width; i++ {
		n++
		if i < len(line) && wide(line[i]) {
			n++
		}
	}
	return s.String(), p.String(), strings.Repeat("^", n)
}

// wide reports whether a terminal gives r two columns: the marks below a line
// with East Asian text stand in the right place.
func wide(r rune) bool {
	return r >= 0x1100 && (r <= 0x115F || r >= 0x2E80 && r <= 0xA4CF || r >= 0xAC00 && r <= 0xD7A3 ||
		r >= 0xF900 && r <= 0xFAFF || r >= 0xFE30 && r <= 0xFE6F || r >= 0xFF00 && r <= 0xFF60 ||
		r >= 0xFFE0 && r <= 0xFFE6 || r >= 0x1F300 && r <= 0x1FAFF || r >= 0x20000 && r <= 0x3FFFD)
}
