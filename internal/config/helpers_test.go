package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// memFiles are files in memory, by name.
type memFiles map[string]string

func (m memFiles) ReadFile(name string) ([]byte, error) {
	s, ok := m[path.Clean(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(s), nil
}

func (m memFiles) Glob(pattern string) ([]string, error) {
	var names []string
	for name := range m {
		ok, err := filepath.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (m memFiles) Identity(name string) string { return path.Clean(name) }

// mistake is what a test compares of an Error: its place and message.
func mistake(e *Error) string {
	if e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Message)
}

// mustLoad loads a configuration that has no mistakes.
func mustLoad(t *testing.T, yaml string) *Config {
	t.Helper()
	c, err := load(memFiles{"sluice.yaml": yaml}, "sluice.yaml", Options{Hostname: "lb1"})
	if err != nil {
		t.Fatalf("load:\n%v", err)
	}
	return c
}

// wantMistakes loads a configuration and compares the places and messages of
// all its mistakes.
func wantMistakes(t *testing.T, yaml string, want []string) {
	t.Helper()
	c, err := load(memFiles{"sluice.yaml": yaml}, "sluice.yaml", Options{Hostname: "lb1"})
	if err == nil {
		t.Fatalf("no mistake found in\n%s\nwant %q; got %+v", yaml, want, c)
	}
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("error is a %T", err)
	}
	var got []string
	for _, e := range all {
		got = append(got, mistake(e))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s\nprinted:\n%v", diff, err)
	}
	for _, e := range all {
		if strings.TrimSpace(e.Text) == "" {
			t.Errorf("no source line is shown for %s", e.Summary())
		}
	}
}
