package key

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	k := New()
	text := string(k.Text())
	for _, tc := range []struct {
		name, text string
		ok         bool
	}{
		{"as written", text, true},
		{"without the line break", strings.TrimSuffix(text, "\n"), true},
		{"with another line break", strings.TrimSuffix(text, "\n") + "\r\n", true},
		{"empty", "", false},
		{"another version", strings.Replace(text, "v1", "v2", 1), false},
		{"without the header", strings.TrimPrefix(text, header), false},
		{"one character short", text[:len(text)-2], false},
		{"one key behind another", text + text, false},
		{"not base64", header + strings.Repeat("!", 44), false},
		{"a byte short", header + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(tc.text))
			if tc.ok != (err == nil) || tc.ok && got != k || !tc.ok && !errors.Is(err, ErrFormat) {
				t.Errorf("got the key: %v, error %v", got == k, err)
			}
		})
	}
	if New() == k {
		t.Error("two keys are equal")
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sync.key")
	k := New()
	if err := Write(path, k); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", st.Mode())
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(text, k.Text()) {
		t.Errorf("the file holds %q, error %v", text, err)
	}
	if err := Write(path, New()); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("the key was written over: error %v", err)
	}
	if all, _ := os.ReadDir(filepath.Dir(path)); len(all) != 1 {
		t.Errorf("%d files are there, want the key's only", len(all))
	}
}

func TestCheckMode(t *testing.T) {
	for _, tc := range []struct {
		mode fs.FileMode
		ok   bool
	}{
		{0o600, true}, {0o400, true}, {0o700, true},
		{0o640, false}, {0o604, false}, {0o620, false}, {0o601, false}, {fs.ModeDir | 0o700, false},
	} {
		if err := CheckMode(tc.mode); tc.ok != (err == nil) {
			t.Errorf("mode %v: error %v", tc.mode, err)
		}
	}
}
