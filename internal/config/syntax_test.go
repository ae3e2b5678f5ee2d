package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const rest = " (YAML syntax: nothing else in this file could be checked)"

var syntaxMistakes = []mistakeCase{
	{"tab", "pools:\n\t- name: web\n", []string{"2:1: a tab cannot indent in YAML: use spaces" + rest}},
	{"deeper by mistake", "node: a\n pools: []\n", []string{
		"2:2: this line's indentation fits neither the line above nor an outer one" + rest,
	}},
	{"no space after the colon, then a key", "datapath:\n  mode:auto\n  max_flows: 5000\n", []string{
		"2:3: a space is missing after the colon: write mode: auto" + rest,
	}},
	{"no space after the colon, after a key", "services:\n  - name: x\n    address:\"192.0.2.1:80\"\n    pool: y\n", []string{
		"3:5: a space is missing after the colon: write address: \"192.0.2.1:80\"" + rest,
	}},
	{"two colons", "node: a: b\n", []string{`1:7: a second ": " in one line: put the value in quotes if it belongs to the text` + rest}},
	{"open double quote", "node: \"a\npools: []\n", []string{`1:7: the closing " is missing` + rest}},
	{"open single quote", "node: 'a\n", []string{`1:7: the closing ' is missing` + rest}},
	{"open bracket", "datapath: {interfaces: [eth0\npools: []\n", []string{"2:1: ',' or ']' is missing before this" + rest}},
	{"open brace", "admin: {socket: /a\n", []string{"1:8: the closing } is missing" + rest}},
	{"reserved character", "node: @a\n", []string{"1:7: a text that starts with '@' must be in quotes" + rest}},
	{"list key", "? [a]\n: b\n", []string{"2:1: a key must be a single word before its colon" + rest}},
	{"words where a key belongs", "node: a\nfoo\npools: []\n", []string{
		"2:1: this is not a key with a value: a colon and a space are missing, or the indentation is wrong" + rest,
	}},
	{"deep nesting", "x-a: " + strings.Repeat("[", 70) + "\n", []string{"1:70: values are nested more than 64 deep"}},
	{"deep nesting of items", "x-a:\n" + strings.Repeat("- ", 70) + "1\n", []string{"2:129: values are nested more than 64 deep"}},
	{"many anchors in a row", "x-a: " + strings.Repeat("&a ", 70) + "1\n", []string{"1:198: values are nested more than 64 deep"}},
	{"empty file", "", nil},
	{"control character", "node: a\x01b\n", []string{"1:8: control character U+0001 is not allowed"}},
	{"not UTF-8", "node: é\xff\n", []string{"1:8: this is not UTF-8 text: save the file as UTF-8"}},
	{"two documents", "node: a\n---\nnode: b\n", []string{"3:1: a second document in one file: use include for several files"}},
	{"tag", "node: !!str 5\n", []string{"1:7: tags are not supported: remove !!str"}},
	{"unknown alias", "node: *a\n", []string{"1:7: no anchor &a stands before this alias; a text that starts with * must be in quotes"}},
	{"pattern without quotes", "include: [*.yaml]\n", []string{"1:11: no anchor &.yaml stands before this alias; a text that starts with * must be in quotes"}},
	{"alias in its own anchor", "x-a: &a [*a]\n", []string{"1:10: alias *a stands inside its own anchor"}},
	{"alias of two lines", " * n.>\n  g\n", []string{"1:2: no anchor &n.> g stands before this alias; a text that starts with * must be in quotes"}},
	{"merges of lists", "x-a: &a [[{socket: /a}]]\nadmin:\n  <<: *a\n", []string{"1:10: << takes mappings, not a list of lists"}},
	{"merge of a mistake", "admin:\n  <<: [*none, {socket: /a}]\n", []string{"2:8: no anchor &none stands before this alias; a text that starts with * must be in quotes"}},
	{"alias as a key", "x-a: &a node\n*a : b\n", []string{"2:1: a key must be a plain word, not an anchor, an alias or a tag"}},
	{"a list as a key", "? - a\n: b\n", []string{"1:3: a key must be a single word before its colon" + rest}},
	{"a text of many lines", "node: \"" + strings.Repeat("a\\n", 300) + "\"\n", []string{"1:7: node must be one line without control characters"}},
	{"a very long text", "datapath: {mode: " + strings.Repeat("a", 500) + "}\n", []string{
		"1:18: mode must be one of auto, native, generic, not \"" + strings.Repeat("a", 352) + "…",
	}},
	{"merge of a text", "admin:\n  <<: yes\n", []string{"2:7: << takes a mapping or a list of mappings, such as *anchor"}},

	// [v6]:port without quotes; the rest of the file is checked all the same.
	{"unquoted IPv6", "datapath: {mode: fast}\nservices:\n- name: s\n  address: [2001:db8::1]:80\n  backends:\n  - address: [2001:db8::2]:8080\n  - {address: [2001:db8::3]:80, weight: x}\nnode: [a]\n", []string{
		`1:1: missing "interfaces" in datapath: services need to know where their traffic comes in, such as datapath: {interfaces: [eth0]}`,
		`1:18: mode must be one of auto, native, generic, not "fast"`,
		`4:12: put quotes around it: write "[2001:db8::1]:80" (without them YAML reads [ as the start of a list)`,
		`6:14: put quotes around it: write "[2001:db8::2]:8080" (without them YAML reads [ as the start of a list)`,
		`7:15: put quotes around it: write "[2001:db8::3]:80" (without them YAML reads [ as the start of a list)`,
		`7:41: weight must be a whole number from 0 to 65535 in decimal digits, not "x"`,
		`8:7: node must be a text, not a list`,
	}},
	{"unquoted IPv6 in a list", "datapath: {interfaces: [e]}\nservices:\n- name: s\n  address: [[2001:db8::1]:80, \"192.0.2.1:443\", [::1]:*]\n  backends: [{address: 192.0.2.2}]\n  quorum: -1\n", []string{
		`4:13: put quotes around it: write "[2001:db8::1]:80" (without them YAML reads [ as the start of a list)`,
		`4:48: put quotes around it: write "[::1]:*" (without them YAML reads [ as the start of a list)`,
		`6:11: quorum must be a whole number from 0 to 65535, not -1`,
	}},
	{"unquoted IPv6 without a port", "nodes: [{name: lb1, address: [2001:db8::1]}]\n", []string{
		`1:30: address must be one address: a text in [] is a list unless it stands in quotes`,
	}},
	{"unquoted IPv6 in a list in braces", "datapath: {interfaces: [e]}\nservices: [{name: s, address: [[2001:db8::1]:80], backends: [{address: [::1]:80}], quorum: x}]\n", []string{
		`2:32: put quotes around it: write "[2001:db8::1]:80" (without them YAML reads [ as the start of a list)`,
		`2:72: put quotes around it: write "[::1]:80" (without them YAML reads [ as the start of a list)`,
		`2:92: quorum must be a whole number from 0 to 65535 in decimal digits, not "x"`,
	}},
	{"no space after a colon in braces", "admin: {socket:/a}\npools: [{name: p, servers: [{address:192.0.2.1}, {\"address\":192.0.2.2}]}]\n", []string{
		`1:9: a space is missing after the colon: write socket: /a`,
		`2:30: a space is missing after the colon: write address: 192.0.2.1`,
	}},
	{"unquoted IPv6 and a syntax mistake", "x-a: [2001:db8::1]:80\nnode: 'a\n", []string{
		`1:6: put quotes around it: write "[2001:db8::1]:80" (without them YAML reads [ as the start of a list)`,
		`2:7: the closing ' is missing` + rest,
	}},
}

func TestSyntaxMistakes(t *testing.T) {
	for _, tt := range syntaxMistakes {
		if tt.yaml == "" {
			continue // nothing to show: TestEmptyFile
		}
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

func TestEmptyFile(t *testing.T) {
	for name, yaml := range map[string]string{
		"nothing": "", "a line break": "\n", "a comment": "# nothing\n", "an empty document": "---\n", "a byte order mark": "\uFEFF",
	} {
		_, err := load(memFiles{"f": yaml}, "f", Options{})
		if got, want := mistakesOf(err), "1:1: the configuration is empty"; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestSourceText checks that a text is what is written, whatever YAML makes of
// it.
func TestSourceText(t *testing.T) {
	tests := []struct{ written, want string }{
		{"0123", "0123"},
		{"1111", "1111"},
		{"0x1F", "0x1F"},
		{"0b11", "0b11"},
		{"0o17", "0o17"},
		{"1_000", "1_000"},
		{"1e3", "1e3"},
		{"1.50", "1.50"},
		{"-0", "-0"},
		{".inf", ".inf"},
		{".nan", ".nan"},
		{"true", "true"},
		{"Yes", "Yes"},
		{"~", "~"},
		{"null", "null"},
		{"12:30", "12:30"},
		{`"0123"`, "0123"},
		{`'it''s'`, "it's"},
		{`"a\"b"`, `a"b`},
		{`"é"`, "é"},
		{"a b", "a b"},
		{"a#b", "a#b"},
		{"a # b", "a"},
		{"|\n    0123", "0123"},
		{"&p 0123", "0123"},
	}
	for _, tt := range tests {
		t.Run(tt.written, func(t *testing.T) {
			c := mustLoad(t, "vrrp:\n- name: v\n  interface: e\n  virtual_router_id: 1\n  version: 2\n  addresses: [192.0.2.1]\n"+
				"  authentication:\n   type: pass\n   password: "+tt.written+"\n")
			if got := c.VRRP[0].Password; got != tt.want {
				t.Errorf("password %q, want %q", got, tt.want)
			}
		})
	}
}

// TestNamesThatLookLikeNumbers checks names and references that YAML would not
// take for texts.
func TestNamesThatLookLikeNumbers(t *testing.T) {
	c := mustLoad(t, `
nodes: [{name: 010, address: 192.0.2.1}, {name: 8, address: 192.0.2.2}]
node: 010
datapath: {interfaces: [0]}
pools: [{name: 0123, servers: [{address: 192.0.2.11}]}, {name: 83, servers: [{address: 192.0.2.12}]}]
services: [{name: 1e3, address: "192.0.2.100:80", pool: 0123}, {name: true, address: "192.0.2.100:81", pool: 83}]
`)
	got := []string{c.Node, c.Services[0].Name, c.Services[0].Pool.Name, c.Services[1].Name, c.Services[1].Pool.Name}
	if diff := cmp.Diff([]string{"010", "1e3", "0123", "true", "83"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	wantMistakes(t, "datapath: {interfaces: [e]}\npools: [{name: 0123, servers: [{address: 192.0.2.11}]}]\nservices: [{name: s, address: \"192.0.2.100:80\", pool: 83}]\n",
		[]string{`3:55: there is no pool "83"`})
}

// TestEndpointsWithoutQuotes checks that an address with its port needs no
// quotes anywhere: the colon has no space after it.
func TestEndpointsWithoutQuotes(t *testing.T) {
	c := mustLoad(t, `
datapath: {interfaces: [e]}
services:
  - {name: a, address: [192.0.2.100:80, 192.0.2.101:80], backends: [{address: 192.0.2.11:8080}]}
  - name: b
    address: [192.0.2.100:81, 192.0.2.101:81]
    backends:
      - address: 192.0.2.11:8080
  - name: c
    address:
      - 192.0.2.100:82
    backends: [{address: 192.0.2.11}]
`)
	var got []string
	for _, s := range c.Services {
		got = append(got, fmt.Sprint(s.Addresses, s.Pool.Servers[0].Port))
	}
	want := []string{"[192.0.2.100:80 192.0.2.101:80] 8080", "[192.0.2.100:81 192.0.2.101:81] 8080", "[192.0.2.100:82] 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// TestAnchors checks what aliases and merge keys give, and where mistakes in
// them are.
func TestAnchors(t *testing.T) {
	c := mustLoad(t, `
x-servers: &servers
  - &first {address: 192.0.2.11, weight: 5}
  - address: 192.0.2.12
x-base: &base {interval: 3s, fall: 9}
x-more: &more {<<: *base, rise: 7, fall: 8}
pools:
  - {name: a, servers: *servers, health: {<<: [*more, *base], type: tcp, rise: 1}}
  - name: b
    servers: [*first, {<<: *first, address: 192.0.2.13}]
    health:
      fall: 2
      <<: *more
      type: tcp
`)
	p := c.Pools[0].Probe
	if p.Rise != 1 || p.Fall != 8 || p.Interval.String() != "3s" {
		t.Errorf("pool a: %+v", p)
	}
	p = c.Pools[1].Probe
	if p.Rise != 7 || p.Fall != 2 {
		t.Errorf("pool b: %+v", p)
	}
	if s := c.Pools[1].Servers; s[0].Weight != 5 || s[1].Weight != 5 || s[1].Address.String() != "192.0.2.13" {
		t.Errorf("servers of b: %+v", s)
	}
	if len(c.Pools[0].Servers) != 2 {
		t.Errorf("servers of a: %+v", c.Pools[0].Servers)
	}
}

func TestAnchorMistakes(t *testing.T) {
	for _, tt := range []mistakeCase{
		{"in a mapping that is used twice, once", "x-h: &h {type: tcp, fall: 0}\npools:\n- {name: a, health: *h, servers: [{address: 192.0.2.1}]}\n- {name: b, health: *h, servers: [{address: 192.0.2.1}]}\n", []string{
			"1:27: fall must be a whole number from 1 to 255, not 0",
		}},
		{"in a merged key", "x-h: &h\n  type: tcp\n  foo: 0\npools:\n- {name: a, health: {<<: *h}, servers: [{address: 192.0.2.1}]}\n", []string{
			`3:3: unknown key "foo" in health`,
		}},
		{"in a value, at its alias", "x-t: &t 10s\npools:\n- name: a\n  health: {type: tcp, rise: *t}\n  servers: [{address: 192.0.2.1}]\n", []string{
			`4:29: rise must be a whole number from 1 to 255 in decimal digits, not "10s" (*t has its value on line 1)`,
		}},
		{"a mapping in place of a text", "x-t: &t {a: b}\nnode: *t\n", []string{
			`2:7: node must be a text, not a mapping (*t has its value on line 1)`,
		}},
		{"a pool that is repeated", "pools:\n- &p {name: a, servers: [{address: 192.0.2.1}]}\n- *p\n", []string{
			`3:3: duplicate pool "a": an alias repeats it (*p has its value on line 2)`,
		}},
		{"a merge key twice", "x-a: &a {socket: /a}\nadmin:\n  <<: *a\n  <<: *a\n", []string{
			`4:3: duplicate key "<<": it is set on line 3 already`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// TestLineEnds checks places in files with a byte order mark, CRLF and
// characters of several bytes.
func TestLineEnds(t *testing.T) {
	for name, yaml := range map[string]string{
		"LF":              "# é\nadmin: {x-é: 网, sock: /a}\n",
		"CRLF":            "# é\r\nadmin: {x-é: 网, sock: /a}\r\n",
		"byte order mark": "\uFEFF# é\nadmin: {x-é: 网, sock: /a}\n",
		"no end":          "# é\nadmin: {x-é: 网, sock: /a}",
	} {
		_, err := load(memFiles{"f": yaml}, "f", Options{})
		want := "2:9: unknown key \"x-é\" in admin\n2:17: unknown key \"sock\" in admin; did you mean \"socket\"?"
		if got := mistakesOf(err); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}
