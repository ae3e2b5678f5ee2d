package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// topLevel is what a file may hold. x- keys are left out before it is asked.
var topLevel = schema{
	what: "a configuration",
	keys: []string{"nodes", "node", "datapath", "pools", "services", "checks", "vrrp", "sync", "http", "dns", "admin", "include", "defaults"},
	hints: map[string]string{
		"vrrp_instance":  "instances are a list under \"vrrp\"",
		"vrrp_script":    "scripts are checks of type exec, a list under \"checks\"",
		"virtual_server": "layer-4 services are a list under \"services\"",
		"upstream":       "upstreams are a list in \"http\"",
		"server":         "virtual hosts are a list in http, under \"servers\"",
		"global_defs":    "sluice has no such section",
	},
}

// listKeys are the keys whose values are lists: several files may have them,
// and their items follow each other.
var listKeys = []string{"nodes", "pools", "services", "checks", "vrrp"}

// A document is the files of a configuration put together.
type document struct {
	root  *node              // of the main file
	items map[string][]*node // per list key, the items of all files
	set   map[string]*node   // per other key, its value
	keys  map[string]*node   // where each key stands first
}

// A loader reads files.
type loader struct {
	files fileSystem
	d     decoder
	doc   *document
	order []string          // names, in the order of reading
	ids   map[string]string // identity of each file read: by whom it is included
	stack []string          // identities of the files that are being read
}

// load returns the document, or nil where nothing of it can be read.
func (l *loader) load(path string) *document {
	l.doc = &document{items: map[string][]*node{}, set: map[string]*node{}, keys: map[string]*node{}}
	content, err := l.files.ReadFile(path)
	if err != nil {
		l.order = append(l.order, path)
		l.d.errs = append(l.d.errs, &Error{File: path, Message: "cannot read the configuration: " + reason(err), cause: err})
		return nil
	}
	l.ids[l.files.Identity(path)] = "the main file"
	root := l.read(path, content)
	if root == nil {
		if len(l.d.errs) == 0 {
			l.d.errs = append(l.d.errs, newSource(path, content).errorAt(1, 1, 1, "the configuration is empty"))
		}
		return nil
	}
	l.doc.root = root
	return l.doc
}

// read adds one file, and those that it includes, to the document. It returns
// the root, which is nil for a file without content or with a syntax error.
func (l *loader) read(name string, content []byte) *node {
	l.order = append(l.order, name)
	src := newSource(name, content)
	root, errs := parse(src)
	l.d.errs = append(l.d.errs, errs...)
	if root == nil || root.kind == empty {
		l.d.incomplete = l.d.incomplete || len(errs) > 0
		return nil
	}
	if root.kind == mapping {
		entries := root.entries[:0:0]
		for _, e := range root.entries {
			if !strings.HasPrefix(e.key.text, "x-") {
				entries = append(entries, e)
			}
		}
		root.entries = entries
	}
	f, ok := l.d.fields(root, &topLevel)
	if !ok {
		l.d.incomplete = true
		return root
	}
	for _, key := range topLevel.keys {
		value, ok := f.own[key]
		if !ok || key == "include" {
			continue
		}
		l.add(key, f.keys[key], value)
	}
	if n, ok := f.own["include"]; ok {
		id := l.files.Identity(name)
		l.stack = append(l.stack, id)
		l.include(n, filepath.Dir(name))
		l.stack = l.stack[:len(l.stack)-1]
	}
	return root
}

// add puts one top-level key of a file into the document.
func (l *loader) add(key string, at, value *node) {
	first, dup := l.doc.keys[key]
	if !dup {
		l.doc.keys[key] = at
	}
	for _, k := range listKeys {
		if k == key {
			items, ok := l.d.mappings(value, key)
			l.d.incomplete = l.d.incomplete || !ok
			l.doc.items[key] = append(l.doc.items[key], items...)
			return
		}
	}
	if dup {
		l.d.errorf(at, "%s is set at %s:%d already: only lists may be spread over files", key, first.src.name, first.line)
		return
	}
	l.doc.set[key] = value
}

// include reads the files of an include list. Names are relative to dir, the
// folder of the including file.
func (l *loader) include(n *node, dir string) {
	items, ok := l.d.list(n, "include")
	l.d.incomplete = l.d.incomplete || !ok
	for _, item := range items {
		pattern, ok := l.d.text(item, "include")
		if !ok {
			l.d.incomplete = true
			continue
		}
		path := pattern
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if !strings.ContainsAny(pattern, `*?[\`) {
			l.includeFile(item, path)
			continue
		}
		if filepath.IsAbs(pattern) {
			path = filepath.Clean(path)
		} else {
			path = filepath.Join(quoteMeta(dir), pattern)
		}
		matches, err := l.files.Glob(path)
		if err != nil {
			l.d.errorf(item, "include: bad pattern %q", pattern)
			l.d.incomplete = true
			continue
		}
		hidden := strings.HasPrefix(filepath.Base(pattern), ".")
		for _, m := range matches {
			// An editor's lock and swap files are not the configuration.
			if hidden || !strings.HasPrefix(filepath.Base(m), ".") {
				l.includeFile(item, m)
			}
		}
	}
}

// quoteMeta makes a folder's name match itself in a pattern.
func quoteMeta(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

func (l *loader) includeFile(at *node, path string) {
	id := l.files.Identity(path)
	for _, open := range l.stack {
		if open == id {
			l.d.errorf(at, "include: %s includes itself", path)
			return
		}
	}
	if by, ok := l.ids[id]; ok {
		l.d.errorf(at, "include: %s is read twice, first by %s", path, by)
		return
	}
	content, err := l.files.ReadFile(path)
	if err != nil {
		l.d.errorf(at, "include: cannot read %s: %s", path, reason(err))
		l.d.errs[len(l.d.errs)-1].cause = err
		l.d.incomplete = true
		return
	}
	l.ids[id] = fmt.Sprintf("%s:%d", at.src.name, at.line)
	l.read(path, content)
}
