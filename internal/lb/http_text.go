package lb

import "strings"

// Variables are the names that a text with variables may have: $host or ${host}.
// "$$" is a dollar sign.
var Variables = []string{
	"client_address", "client_port", "host", "method", "path", "query", "request_id", "request_uri", "scheme", "server_address",
	"server_name", "server_port",
}

// A TextPart is a piece of a text with variables: a literal, or a variable by its
// name.
type TextPart struct{ Literal, Variable string }

// TextParts takes a text with variables apart. A dollar sign that begins no name
// stands for itself.
func TextParts(s string) []TextPart {
	var parts []TextPart
	literal := func(s string) {
		if s == "" {
			return
		}
		if n := len(parts); n > 0 && parts[n-1].Variable == "" {
			parts[n-1].Literal += s
			return
		}
		parts = append(parts, TextPart{Literal: s})
	}
	for s != "" {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			literal(s)
			break
		}
		literal(s[:i])
		name, rest := variable(s[i+1:])
		switch {
		case name != "":
			parts = append(parts, TextPart{Variable: name})
		case strings.HasPrefix(rest, "$"):
			literal("$")
			rest = rest[1:]
		default:
			literal("$")
		}
		s = rest
	}
	return parts
}

// variable reads the name behind a dollar sign.
func variable(s string) (name, rest string) {
	if inner, ok := strings.CutPrefix(s, "{"); ok {
		if n, after, closed := strings.Cut(inner, "}"); closed && nameLength(n) == len(n) {
			return n, after
		}
		return "", s
	}
	n := nameLength(s)
	return s[:n], s[n:]
}

func nameLength(s string) int {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}
