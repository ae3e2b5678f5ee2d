package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const poolYAML = "pools: [{name: NAME, servers: [{address: 192.0.2.11}]}]\n"

func poolFile(name string) string { return strings.Replace(poolYAML, "NAME", name, 1) }

func TestInclude(t *testing.T) {
	tests := []struct {
		name  string
		files memFiles
		order []string // of reading
		pools []string
	}{
		{
			name: "pattern, sorted, relative to the file",
			files: memFiles{
				"etc/main.yaml":     "include: [conf.d/*.yaml]\n" + poolFile("main"),
				"etc/conf.d/b.yaml": poolFile("b"),
				"etc/conf.d/a.yaml": poolFile("a"),
				"etc/conf.d/c.conf": poolFile("c"),
				"conf.d/x.yaml":     poolFile("x"),
			},
			order: []string{"etc/main.yaml", "etc/conf.d/a.yaml", "etc/conf.d/b.yaml"},
			pools: []string{"main", "a", "b"},
		},
		{
			name: "names in the order of the list",
			files: memFiles{
				"etc/main.yaml": "include: [z.yaml, /abs/y.yaml, ../up.yaml]\n",
				"etc/z.yaml":    poolFile("z"),
				"/abs/y.yaml":   poolFile("y"),
				"up.yaml":       poolFile("up"),
			},
			order: []string{"etc/main.yaml", "etc/z.yaml", "/abs/y.yaml", "up.yaml"},
			pools: []string{"z", "y", "up"},
		},
		{
			name: "an included file includes, relative to itself",
			files: memFiles{
				"etc/main.yaml":    "include: [sub/one.yaml]\n",
				"etc/sub/one.yaml": "include: [two.yaml]\n" + poolFile("one"),
				"etc/sub/two.yaml": poolFile("two"),
			},
			order: []string{"etc/main.yaml", "etc/sub/one.yaml", "etc/sub/two.yaml"},
			pools: []string{"one", "two"},
		},
		{
			name: "editors' files and files of comments",
			files: memFiles{
				"etc/main.yaml":       "include: [conf.d/*.yaml]\n",
				"etc/conf.d/.#a.yaml": "not: [read\n",
				"etc/conf.d/a.yaml":   "# nothing yet\n",
			},
			order: []string{"etc/main.yaml", "etc/conf.d/a.yaml"},
		},
		{
			name:  "a pattern without a match",
			files: memFiles{"etc/main.yaml": "include: [\"*.none\"]\n"},
			order: []string{"etc/main.yaml"},
		},
		{
			name: "a pattern in a folder with a special name",
			files: memFiles{
				"a[b]*/main.yaml":    "include: [c/*.yaml]\n",
				"a[b]*/c/good.yaml":  poolFile("good"),
				"abx/c/a-wrong.yaml": poolFile("wrong"),
			},
			order: []string{"a[b]*/main.yaml", "a[b]*/c/good.yaml"},
			pools: []string{"good"},
		},
		{
			name: "references and anchors",
			files: memFiles{
				"etc/main.yaml": "include: [p.yaml]\nx-a: &a 1\ndatapath: {interfaces: [e]}\n" +
					"services: [{name: s, address: \"192.0.2.100:80\", pool: p}]\n",
				"etc/p.yaml": "x-a: &a p\npools: [{name: *a, servers: [{address: 192.0.2.1}]}]\ndefaults: {service: {quorum: 0}}\n",
			},
			order: []string{"etc/main.yaml", "etc/p.yaml"},
			pools: []string{"p"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(tt.files, tt.order[0], Options{Hostname: "h"})
			if err != nil {
				t.Fatal(err)
			}
			var pools []string
			for _, p := range c.Pools {
				pools = append(pools, p.Name)
			}
			if diff := cmp.Diff(tt.order, c.Files); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.pools, pools); diff != "" {
				t.Errorf("pools (-want +got):\n%s", diff)
			}
			if c.File != tt.order[0] {
				t.Errorf("file %q", c.File)
			}
		})
	}
}

func TestIncludeMistakes(t *testing.T) {
	tests := []struct {
		name  string
		files memFiles
		want  []string
	}{
		{
			name:  "missing file",
			files: memFiles{"etc/main.yaml": "include:\n  - none.yaml\n"},
			want:  []string{"etc/main.yaml:2:5: include: cannot read etc/none.yaml: file does not exist"},
		},
		{
			name:  "itself",
			files: memFiles{"etc/main.yaml": "include: [\"*.yaml\"]\n"},
			want:  []string{"etc/main.yaml:1:11: include: etc/main.yaml includes itself"},
		},
		{
			name: "a cycle",
			files: memFiles{
				"main.yaml": "include: [a.yaml]\n",
				"a.yaml":    "include: [b.yaml]\n",
				"b.yaml":    "include: [./a.yaml]\n",
			},
			want: []string{"b.yaml:1:11: include: a.yaml includes itself"},
		},
		{
			name: "twice",
			files: memFiles{
				"main.yaml": "include: [a.yaml, a.yaml]\n",
				"a.yaml":    poolFile("a"),
			},
			want: []string{"main.yaml:1:19: include: a.yaml is read twice, first by main.yaml:1"},
		},
		{
			name: "mistakes in several files, in the order of the files",
			files: memFiles{
				"main.yaml": "include: [b.yaml, a.yaml]\nnode: [x]\npools: [{name: p, servers: [{address: 192.0.2.1}]}]\n",
				"a.yaml":    "foo: 1\n",
				"b.yaml":    "pools:\n- name: p\n  servers: [{address: 192.0.2.2}]\n",
			},
			want: []string{
				"main.yaml:2:7: node must be a text, not a list",
				`b.yaml:2:9: duplicate pool "p": the first one is at main.yaml:3`,
				`a.yaml:1:1: unknown key "foo" in a configuration`,
			},
		},
		{
			name: "a key that is no list in two files",
			files: memFiles{
				"main.yaml": "include: [a.yaml]\nadmin: {socket: /a}\n",
				"a.yaml":    "admin: {socket: /a}\n",
			},
			want: []string{"a.yaml:1:1: admin is set at main.yaml:2 already: only lists may be spread over files"},
		},
		{
			name: "a syntax mistake hides no pool",
			files: memFiles{
				"main.yaml": "include: [a.yaml]\ndatapath: {interfaces: [e]}\nservices: [{name: s, address: \"192.0.2.100:80\", pool: p}]\nnode: [x]\n",
				"a.yaml":    "pools: [\n",
			},
			want: []string{
				"main.yaml:4:7: node must be a text, not a list",
				"a.yaml:1:8: the closing ] is missing" + rest,
			},
		},
		{
			name:  "not a list",
			files: memFiles{"main.yaml": "include: a.yaml\n"},
			want:  []string{"main.yaml:1:10: include must be a list: write [a.yaml]"},
		},
		{
			name:  "bad pattern",
			files: memFiles{"main.yaml": "include: [\"[\"]\n"},
			want:  []string{`main.yaml:1:11: include: bad pattern "["`},
		},
		{
			name:  "an included file that is no mapping",
			files: memFiles{"main.yaml": "include: [a.yaml]\n", "a.yaml": "- 1\n"},
			want:  []string{`a.yaml:1:1: a configuration must be a mapping ("key: value"), not a list`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			main := "main.yaml"
			if _, ok := tt.files[main]; !ok {
				main = "etc/main.yaml"
			}
			_, err := load(tt.files, main, Options{Hostname: "h"})
			var all Errors
			if !errors.As(err, &all) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			var got []string
			for _, e := range all {
				got = append(got, e.Summary())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestIncludeOnDisk reads real files, one of them by a link.
func TestIncludeOnDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	main := write("main.yaml", "include: [\"conf.d/*.yaml\"]\n")
	a, b := write("conf.d/a.yaml", poolFile("a")), write("conf.d/b.yaml", poolFile("b"))
	c, err := Load(main, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{main, a, b}, c.Files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}

	if err := os.Symlink(main, filepath.Join(dir, "conf.d/c.yaml")); err != nil {
		t.Fatal(err)
	}
	_, err = Load(main, Options{})
	if want := main + ":1:11: include: " + filepath.Join(dir, "conf.d/c.yaml") + " includes itself"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}

	write("main.yaml", "include: [none.yaml]\n")
	_, err = Load(main, Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v is not fs.ErrNotExist", err)
	}
}

func TestPasswordFile(t *testing.T) {
	instance := func(auth string) string {
		return "vrrp:\n- {name: v, interface: e, virtual_router_id: 1, version: 2, addresses: [192.0.2.1], authentication: {type: pass, " + auth + "}}\n"
	}
	tests := []struct {
		name, auth, content string
		password            string
		want                []string
	}{
		{name: "beside the configuration", auth: "password_file: secret", content: "0123\n", password: "0123"},
		{name: "absolute", auth: "password_file: /etc/secret", content: "12345678\r\n", password: "12345678"},
		{name: "spaces count", auth: "password_file: secret", content: " a ", password: " a "},
		{name: "too long", auth: "password_file: secret", content: "123456789\n", want: []string{
			"2:129: password has 9 bytes: VRRP carries 8 (other implementations cut the rest off)",
		}},
		{name: "empty", auth: "password_file: secret", content: "\n", want: []string{"2:129: password_file: etc/secret is empty"}},
		{name: "two lines", auth: "password_file: secret", content: "a\nb\n", want: []string{"2:129: password_file: etc/secret must hold one line of text"}},
		{name: "missing", auth: "password_file: none", want: []string{"2:129: password_file: cannot read etc/none: file does not exist"}},
		{name: "both", auth: "password: a, password_file: secret", want: []string{"2:127: password and password_file are both set: take one of them"}},
		{name: "neither", auth: "", want: []string{`2:101: missing key "password": authentication needs it, or "password_file"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := memFiles{"etc/f": instance(tt.auth), "etc/secret": tt.content, "/etc/secret": tt.content}
			c, err := load(files, "etc/f", Options{})
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), mistakesOf(err)); diff != "" {
				t.Fatalf("mistakes (-want +got):\n%s", diff)
			}
			if err != nil {
				return
			}
			if got := c.VRRP[0].Password; got != tt.password {
				t.Errorf("password %q, want %q", got, tt.password)
			}
			if !slices.Equal(c.Files, []string{"etc/f"}) {
				t.Errorf("files %q", c.Files)
			}
		})
	}
}
