package config

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// A builder turns the library's syntax tree into nodes.
type builder struct {
	src     *source
	bad     map[place]bool   // scalars whose mistake is reported already
	anchors map[string]*node // nil value: the anchor is being built
	errs    []*Error
}

func (b *builder) errorf(n *node, format string, args ...any) {
	b.errs = append(b.errs, b.src.errorAt(n.line, n.column, n.width, fmt.Sprintf(format, args...)))
}

// documents returns the root of the one document that a file may hold, nil for
// none.
func (b *builder) documents(docs []*ast.DocumentNode) *node {
	var root *node
	for _, doc := range docs {
		switch doc.Body.(type) {
		case nil:
			continue
		case *ast.CommentGroupNode, *ast.DirectiveNode:
			continue
		}
		n := b.value(doc.Body)
		if root != nil {
			b.errorf(n, "a second document in one file: use include for several files")
			break
		}
		root = n
	}
	return root
}

// newNode makes a node at the place of a token.
func (b *builder) newNode(k kind, tk *token.Token) *node {
	n := &node{src: b.src, kind: k, line: 1, column: 1, width: 1}
	if tk != nil && tk.Position != nil {
		n.line, n.column = tk.Position.Line, tk.Position.Column
	}
	return n
}

// scalar makes a scalar node. Its text is what is written, whatever type YAML
// would give it: 0123, 1e3, true and ~ stay as they are.
func (b *builder) scalar(tk *token.Token) *node {
	n := b.newNode(scalar, tk)
	n.text = tk.Value
	n.quoted = quoted(tk)
	n.width = max(1, utf8.RuneCountInString(firstLine(tk.Origin)))
	if b.bad[place{n.line, n.column}] {
		n.kind = invalid
	}
	return n
}

func (b *builder) value(v ast.Node) *node {
	switch v := v.(type) {
	case *ast.NullNode:
		if v.Token.Type == token.ImplicitNullType {
			return b.newNode(empty, v.Token)
		}
		return b.scalar(v.Token)
	case *ast.LiteralNode:
		n := b.newNode(scalar, v.Start)
		n.text, n.quoted = strings.TrimRight(v.Value.Value, "\n"), true
		return n
	case *ast.MappingNode:
		if n := b.word(v); n != nil {
			return n
		}
		return b.mapping(v)
	case *ast.MappingValueNode:
		return b.mapping(&ast.MappingNode{Start: v.Start, Values: []*ast.MappingValueNode{v}})
	case *ast.SequenceNode:
		n := b.newNode(list, v.Start)
		for _, item := range v.Values {
			n.items = append(n.items, b.value(item))
		}
		return n
	case *ast.AnchorNode:
		return b.anchor(v)
	case *ast.AliasNode:
		return b.alias(v)
	case *ast.TagNode:
		n := b.newNode(invalid, v.GetToken())
		n.width = utf8.RuneCountInString(v.GetToken().Value)
		b.errorf(n, "tags are not supported: remove %s", v.GetToken().Value)
		return n
	case *ast.CommentGroupNode:
		return b.newNode(empty, v.GetToken())
	case ast.ScalarNode:
		return b.scalar(v.GetToken())
	case nil:
		return b.newNode(empty, nil)
	default:
		n := b.newNode(invalid, v.GetToken())
		b.errorf(n, "this kind of YAML is not supported")
		return n
	}
}

func (b *builder) anchor(v *ast.AnchorNode) *node {
	name := v.Name.GetToken().Value
	b.anchors[name] = nil
	n := b.value(v.Value)
	b.anchors[name] = n
	return n
}

func (b *builder) alias(v *ast.AliasNode) *node {
	name := v.Value.GetToken().Value
	n := b.newNode(invalid, v.Start)
	n.width = utf8.RuneCountInString(name) + 1
	def, ok := b.anchors[name]
	switch {
	case !ok:
		b.errorf(n, "no anchor &%s stands before this alias; a text that starts with * must be in quotes", name)
		return n
	case def == nil:
		b.errorf(n, "alias *%s stands inside its own anchor", name)
		return n
	}
	return def.at(n.line, n.column, name)
}

// mapping resolves merge keys: a key of the mapping itself wins over a merged
// one, an earlier merged mapping over a later one.
func (b *builder) mapping(v *ast.MappingNode) *node {
	n := b.newNode(mapping, v.Start)
	own := map[string]*node{}
	var merges []*node
	for i, mv := range v.Values {
		key := b.key(mv.Key)
		if i == 0 && !v.IsFlowStyle {
			// A block mapping starts where its first key does.
			n.line, n.column, n.width = key.line, key.column, key.width
		}
		value := b.value(mv.Value)
		if v.IsFlowStyle && adjacent(mv) {
			text := "..."
			if value.kind == scalar {
				text = value.written()
			}
			b.errorf(key, "a space is missing after the colon: write %s: %s", key.text, text)
			value.kind = invalid
		}
		if value.kind == empty {
			value.line, value.column, value.width = key.line, key.column, key.width
		}
		if key.kind == invalid {
			continue
		}
		if first, dup := own[key.text]; dup {
			b.errorf(key, "duplicate key %q: it is set on line %d already", key.text, first.line)
			continue
		}
		own[key.text] = key
		if mv.Key.IsMergeKey() {
			merges = append(merges, value)
			continue
		}
		n.entries = append(n.entries, entry{key, value})
	}
	for _, m := range merges {
		b.merge(n, own, m)
	}
	return n
}

// word undoes a misreading of the library. In a list within braces it takes
// 192.0.2.1:80 for a mapping, of 192.0.2.1 to 80; in YAML a colon without a
// space after it is part of the word. It returns nil for a real mapping.
func (b *builder) word(v *ast.MappingNode) *node {
	if v.IsFlowStyle || len(v.Values) != 1 || !adjacent(v.Values[0]) {
		return nil
	}
	value, ok := v.Values[0].Value.(ast.ScalarNode)
	if !ok || quoted(value.GetToken()) {
		return nil
	}
	key, rest := v.Values[0].Key.GetToken(), value.GetToken()
	n := b.newNode(scalar, key)
	n.text = key.Value + ":" + rest.Value
	n.width = utf8.RuneCountInString(firstLine(n.text))
	if b.bad[place{n.line, n.column}] {
		n.kind = invalid
	}
	return n
}

// adjacent reports whether nothing stands between a key without quotes, its
// colon and its value.
func adjacent(mv *ast.MappingValueNode) bool {
	key, colon, value := mv.Key.GetToken(), mv.Start, mv.Value.GetToken()
	if _, ok := mv.Key.(ast.ScalarNode); !ok || mv.Key.IsMergeKey() || quoted(key) || value == nil || colon == nil {
		return false
	}
	if colon.Type != token.MappingValueType || value.Type == token.ImplicitNullType {
		return false
	}
	k, c, v := key.Position, colon.Position, value.Position
	return k.Line == c.Line && c.Line == v.Line &&
		c.Column == k.Column+utf8.RuneCountInString(key.Value) && v.Column == c.Column+1
}

func quoted(tk *token.Token) bool {
	return tk.Type == token.SingleQuoteType || tk.Type == token.DoubleQuoteType
}

func (b *builder) merge(n *node, taken map[string]*node, from *node) {
	switch from.kind {
	case mapping:
		for _, e := range from.entries {
			if _, ok := taken[e.key.text]; !ok {
				taken[e.key.text] = e.key
				n.entries = append(n.entries, e)
			}
		}
	case list:
		for _, item := range from.items {
			if item.kind == list {
				b.errorf(item, "<< takes mappings, not a list of lists")
				continue
			}
			b.merge(n, taken, item)
		}
	case invalid:
	default:
		b.errorf(from, "<< takes a mapping or a list of mappings, such as *anchor")
	}
}

func (b *builder) key(k ast.MapKeyNode) *node {
	if mk, ok := k.(*ast.MappingKeyNode); ok {
		if inner, ok := mk.Value.(ast.MapKeyNode); ok {
			return b.key(inner)
		}
		n := b.newNode(invalid, mk.Start)
		b.errorf(n, "a key must be a single word")
		return n
	}
	switch k.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		n := b.newNode(invalid, k.GetToken())
		b.errorf(n, "a key must be a plain word, not an anchor, an alias or a tag")
		return n
	}
	return b.scalar(k.GetToken())
}
