package config

import (
	"strconv"
	"unicode/utf8"
)

type kind uint8

const (
	// invalid is a value whose mistake has been reported already: everything
	// that decodes it keeps quiet.
	invalid kind = iota
	empty        // a key without a value
	scalar
	list
	mapping
)

func (k kind) String() string {
	switch k {
	case empty:
		return "empty"
	case scalar:
		return "a single value"
	case list:
		return "a list"
	case mapping:
		return "a mapping"
	}
	return "invalid"
}

// A node is a value of a YAML file with its place. Aliases and merge keys are
// resolved: what stays is where each value is written.
type node struct {
	src                 *source
	line, column, width int
	kind                kind

	text    string  // of a scalar: its source text, unquoted
	quoted  bool    // of a scalar: it was written in quotes or as a block
	items   []*node // of a list
	entries []entry // of a mapping, each key once

	// For the value of an alias, whose place is the alias: its name, and the
	// place of the anchor's value.
	alias string
	def   *node
}

type entry struct{ key, value *node }

// samePlace reports whether both are one value of a file.
func (n *node) samePlace(other *node) bool {
	return n.src == other.src && n.line == other.line && n.column == other.column
}

// written shows a scalar as it should be written: with its quotes.
func (n *node) written() string {
	if n.quoted {
		return strconv.Quote(n.text)
	}
	return n.text
}

// at copies the node to the place of an alias.
func (n *node) at(line, column int, alias string) *node {
	c := *n
	c.line, c.column, c.width = line, column, utf8.RuneCountInString(alias)+1
	c.alias = alias
	if n.def == nil {
		c.def = n
	}
	return &c
}
