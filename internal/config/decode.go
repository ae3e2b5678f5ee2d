package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A decoder reads typed values out of nodes and collects what is wrong. Its
// methods report a mistake and return false; the caller goes on with the rest.
type decoder struct {
	errs Errors
	// incomplete is set when a part of the configuration could not be read: a
	// reference to something unknown may be one to what is in that part.
	incomplete bool
	files      fileSystem // for what the configuration names
	// healthChecks are the names of checks whose verdicts are the health of servers.
	healthChecks []*node
}

func (d *decoder) errorf(n *node, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if n.alias != "" {
		message += fmt.Sprintf(" (*%s has its value on line %d)", n.alias, n.def.line)
	}
	d.errs = append(d.errs, n.src.errorAt(n.line, n.column, n.width, message))
}

// mismatch reports a value of the wrong type. want continues "KEY must be".
func (d *decoder) mismatch(n *node, what, want string) {
	switch n.kind {
	case invalid:
	case empty:
		d.errorf(n, "%s has no value: it must be %s", what, want)
	case scalar:
		if key, value, ok := missingSpace(n.text); ok && !n.quoted {
			d.errorf(n, "%s must be %s, not the text %q: is a space missing after the colon (%s: %s)?",
				what, want, n.text, key, value)
			return
		}
		d.errorf(n, "%s must be %s, not %q", what, want, n.text)
	default:
		d.errorf(n, "%s must be %s, not %v", what, want, n.kind)
	}
}

// text returns the source text of a scalar, never what YAML would make of it.
func (d *decoder) text(n *node, what string) (string, bool) {
	switch {
	case n.kind != scalar:
		d.mismatch(n, what, "a text")
	case n.text == "":
		d.errorf(n, "%s is empty", what)
	case strings.ContainsFunc(n.text, unicode.IsControl):
		d.errorf(n, "%s must be one line without control characters", what)
	default:
		return n.text, true
	}
	return "", false
}

var namePattern = regexp.MustCompile(`^[\pL\pN_][\pL\pN_.-]*$`)

// maxName bounds a name, in bytes.
const maxName = 63

// name returns the name of something: what a user types in a command.
func (d *decoder) name(n *node, what string) (string, bool) {
	s, ok := d.text(n, what)
	switch {
	case !ok:
	case !namePattern.MatchString(s):
		d.errorf(n, "%s %q must consist of letters, digits, '.', '_' and '-', and start with a letter, a digit or '_'", what, s)
	case len(s) > maxName:
		d.errorf(n, "%s is longer than %d bytes", what, maxName)
	default:
		return s, true
	}
	return "", false
}

var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// integer returns a number from lo to hi.
func (d *decoder) integer(n *node, what string, lo, hi int) (int, bool) {
	want := fmt.Sprintf("a whole number from %d to %d", lo, hi)
	if n.kind != scalar {
		d.mismatch(n, what, want)
		return 0, false
	}
	if n.quoted {
		d.errorf(n, "%s must be %s, not a text in quotes", what, want)
		return 0, false
	}
	if !decimal.MatchString(n.text) {
		d.mismatch(n, what, want+" in decimal digits")
		return 0, false
	}
	i, err := strconv.Atoi(n.text)
	if err != nil || i < lo || i > hi {
		d.errorf(n, "%s must be %s, not %s", what, want, n.text)
		return 0, false
	}
	return i, true
}

func (d *decoder) boolean(n *node, what string) (value, ok bool) {
	if n.kind == scalar && !n.quoted {
		switch n.text {
		case "true":
			return true, true
		case "false":
			return false, true
		case "yes", "on", "True", "TRUE", "Yes", "On":
			d.errorf(n, "%s must be true or false: write true for %s", what, n.text)
			return false, false
		case "no", "off", "False", "FALSE", "No", "Off":
			d.errorf(n, "%s must be true or false: write false for %s", what, n.text)
			return false, false
		}
	}
	d.mismatch(n, what, "true or false")
	return false, false
}

var bareNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

// duration returns a duration in Go's form, from lo to hi.
func (d *decoder) duration(n *node, what string, lo, hi time.Duration) (time.Duration, bool) {
	if n.kind != scalar {
		d.mismatch(n, what, "a duration such as 1s or 500ms")
		return 0, false
	}
	v, err := time.ParseDuration(n.text)
	switch compact := strings.ReplaceAll(n.text, " ", ""); {
	case err == nil:
	case bareNumber.MatchString(n.text):
		d.errorf(n, "%s has no unit: write %ss", what, n.text)
		return 0, false
	case compact != n.text && validDuration(compact):
		d.errorf(n, "%s must have no space in it: write %s", what, compact)
		return 0, false
	default:
		d.mismatch(n, what, "a duration such as 1s, 500ms or 1h30m (units: ms s m h)")
		return 0, false
	}
	if v < lo || v > hi {
		d.errorf(n, "%s must be from %s to %s, not %s", what, short(lo), short(hi), n.text)
		return 0, false
	}
	return v, true
}

func validDuration(s string) bool {
	_, err := time.ParseDuration(s)
	return err == nil
}

// short prints a duration as a person writes it: 1h, not 1h0m0s.
func short(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// list returns the items of a list of texts.
func (d *decoder) list(n *node, what string) ([]*node, bool) {
	if n.kind == scalar && n.text != "" {
		d.errorf(n, "%s must be a list: write [%s]", what, n.written())
		return nil, false
	}
	return d.mappings(n, what)
}

// mappings returns the items of a list of mappings.
func (d *decoder) mappings(n *node, what string) ([]*node, bool) {
	if n.kind == list {
		return n.items, true
	}
	d.mismatch(n, what, "a list (its items start with \"- \")")
	return nil, false
}

// oneOf returns one of a few words. later holds words that sluice knows but
// does not do yet.
func (d *decoder) oneOf(n *node, what string, words, later []string) (string, bool) {
	s, ok := d.text(n, what)
	switch {
	case !ok:
		return "", false
	case slices.Contains(words, s):
		return s, true
	case slices.Contains(later, s):
		d.errorf(n, "%s: %s is not supported yet", what, s)
		return "", false
	}
	hint := ""
	if near := nearest(s, append(slices.Clone(words), later...)); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	if len(words) == 1 {
		d.errorf(n, "%s must be %s, not %q%s", what, words[0], s, hint)
	} else {
		d.errorf(n, "%s must be one of %s, not %q%s", what, strings.Join(words, ", "), s, hint)
	}
	return "", false
}
