package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The YAML library gives tokens and a syntax tree. Its decoder is not used: it
// reads 0123 as the number 83 even where a text is wanted, and stops at the
// first mistake.

// maxDepth bounds how deep values may be nested. The configuration needs six
// levels; the library recurses, and ten thousand brackets must not end the
// process.
const maxDepth = 64

// parse reads a file into its root node. It returns nil, and at least one
// error, where nothing can be made of the file; and nil without an error for a
// file that holds comments only.
func parse(src *source) (*node, []*Error) {
	if err := src.checkText(); err != nil {
		return nil, []*Error{err}
	}
	errs, text, bad := unquotedIPv6(src)
	f, err := parseYAML(src, text)
	if err != nil {
		return nil, append(errs, err)
	}
	b := &builder{src: src, bad: bad, anchors: map[string]*node{}, errs: errs}
	root := b.documents(f.Docs)
	return root, b.errs
}

// parseYAML calls the library. A panic in it is a mistake of the file like any
// other: the daemon that reloads goes on with what it has.
func parseYAML(src *source, text string) (f *ast.File, e *Error) {
	defer func() {
		if r := recover(); r != nil {
			f, e = nil, src.errorAt(1, 1, 1, fmt.Sprintf("the YAML reader fails on this file: %v", r))
		}
	}()
	tokens := lexer.Tokenize(text)
	if e := checkDepth(src, tokens); e != nil {
		return nil, e
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntaxError(src, err)
	}
	return f, nil
}

func checkDepth(src *source, tokens token.Tokens) *Error {
	flow, inline, prefix, line := 0, 0, 0, 0
	for _, tk := range tokens {
		if tk.Position.Line != line {
			line, inline = tk.Position.Line, 0
		}
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(flow-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			inline++
		}
		switch {
		case tk.Type == token.AnchorType || tk.Type == token.TagType:
			prefix++
		case tk.Prev == nil || tk.Prev.Type != token.AnchorType:
			prefix = 0
		}
		if flow+inline+prefix > maxDepth {
			return src.errorAt(tk.Position.Line, tk.Position.Column, 1,
				fmt.Sprintf("values are nested more than %d deep", maxDepth))
		}
	}
	return nil
}

// syntaxError turns an error of the library into one of ours, in words that
// say what to do for the mistakes that people make.
func syntaxError(src *source, err error) *Error {
	const rest = " (YAML syntax: nothing else in this file could be checked)"
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil || ye.GetToken().Position == nil {
		return src.errorAt(1, 1, 1, err.Error()+rest)
	}
	tk, message := ye.GetToken(), ye.GetMessage()
	line, column, width := tk.Position.Line, tk.Position.Column, 1
	switch {
	case strings.HasPrefix(message, "found character '\t'"), strings.Contains(message, "tab character"):
		message = "a tab cannot indent in YAML: use spaces"
	case strings.HasPrefix(message, "could not find end character of double-quoted"):
		message = `the closing " is missing`
	case strings.HasPrefix(message, "could not find end character of single-quoted"):
		message = "the closing ' is missing"
	case strings.HasSuffix(message, "is a reserved character"):
		message = "a text that starts with " + strings.TrimSuffix(message, " is a reserved character") + " must be in quotes"
	case strings.HasPrefix(message, "mapping value is not allowed"):
		// The library read two lines as one text. The first lacks the space
		// after its colon, or the second is indented as if it went on.
		origin := strings.TrimSpace(tk.Origin)
		if strings.Contains(origin, "\n") {
			first := firstLine(origin)
			if key, value, ok := missingSpace(first); ok {
				width = utf8.RuneCountInString(first)
				message = fmt.Sprintf("a space is missing after the colon: write %s: %s", key, value)
				break
			}
			line += strings.Count(origin, "\n")
			text := src.lines[min(line, len(src.lines))-1]
			column = 1 + utf8.RuneCountInString(text) - utf8.RuneCountInString(strings.TrimLeft(text, " "))
			message = "this line's indentation fits neither the line above nor an outer one"
			break
		}
		message = `a second ": " in one line: put the value in quotes if it belongs to the text`
	case strings.HasPrefix(message, "value is not allowed in this context"):
		message = "nothing is expected here: check quotes, brackets and the indentation"
	case strings.HasPrefix(message, "',' or ']' must be"):
		message = "',' or ']' is missing before this"
	case strings.HasPrefix(message, "',' or '}' must be"):
		message = "',' or '}' is missing before this"
	case strings.HasPrefix(message, "sequence end token ']' not found"):
		message = "the closing ] is missing"
	case strings.HasPrefix(message, "could not find flow mapping end token"):
		message = "the closing } is missing"
	case strings.HasPrefix(message, "found an invalid key for this map"), strings.HasPrefix(message, "unexpected scalar value"):
		message = "a key must be a single word before its colon"
	case strings.HasPrefix(message, "non-map value is specified"), strings.HasPrefix(message, "unexpected key name"):
		message = "this is not a key with a value: a colon and a space are missing, or the indentation is wrong"
		if key, value, ok := missingSpace(firstLine(tk.Origin)); ok {
			width = utf8.RuneCountInString(firstLine(tk.Origin))
			message = fmt.Sprintf("a space is missing after the colon: write %s: %s", key, value)
		}
	}
	return src.errorAt(line, column, width, message+rest)
}

// firstLine is the first line that a token's text has, without the space
// around it.
func firstLine(origin string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(origin), "\n")
	return strings.TrimRight(first, " \t")
}

var glued = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_-]*):([^\s:].*)$`)

// missingSpace recognises "key:value", which YAML reads as one text.
func missingSpace(text string) (key, value string, ok bool) {
	m := glued.FindStringSubmatch(text)
	if m == nil || strings.HasPrefix(m[2], "//") { // a URL is what it seems
		return "", "", false
	}
	return m[1], m[2], true
}

var bracketed = regexp.MustCompile(`^\[([0-9A-Fa-f:.%a-z]*:[0-9A-Fa-f:.%a-z]*)\]:[0-9*][0-9*-]*`)

type place struct{ line, column int }

// unquotedIPv6 finds [v6]:port without quotes, which YAML reads as a list and
// some rubbish. It returns an error for each, and the text with each made one
// word of the same length, so that the rest of the file can be checked, and
// the places of these words.
func unquotedIPv6(src *source) ([]*Error, string, map[place]bool) {
	if !strings.Contains(src.text, "]:") {
		return nil, src.text, nil
	}
	var errs []*Error
	bad := map[place]bool{}
	lines := append([]string(nil), src.lines...)
	for _, tk := range lexer.Tokenize(src.text) {
		if tk.Type != token.SequenceStartType {
			continue
		}
		line, column := tk.Position.Line, tk.Position.Column
		if line > len(lines) {
			continue
		}
		runes := []rune(lines[line-1])
		if column > len(runes) {
			continue
		}
		before, after := string(runes[:column-1]), string(runes[column-1:])
		m := bracketed.FindStringSubmatch(after)
		if m == nil {
			continue
		}
		errs = append(errs, src.errorAt(line, column, len(m[0]),
			fmt.Sprintf("put quotes around it: write \"%s\" (without them YAML reads [ as the start of a list)", m[0])))
		bad[place{line, column}] = true
		word := strings.NewReplacer("[", "v", "]", "v", "*", "v").Replace(m[0])
		lines[line-1] = before + word + after[len(m[0]):]
	}
	return errs, strings.Join(lines, "\n"), bad
}
