package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeygen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sync.key")
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"no file", nil, exitUsage, "want one FILE"},
		{"two files", []string{path, path}, exitUsage, "want one FILE"},
		{"a new file", []string{path}, 0, ""},
		{"a file that is there", []string{path}, exitFailed, "exists already"},
		{"a folder that is not there", []string{filepath.Join(dir, "none", "key")}, exitFailed, "no such file or directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), append([]string{"sluice", "keygen"}, tc.args...), &stdout, &stderr); code != tc.code {
				t.Errorf("exit code %d, want %d: %s", code, tc.code, stderr.String())
			}
			if !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("stderr says %q, want %q", stderr.String(), tc.stderr)
			}
		})
	}
	// What is written is taken, and not any more once others can read it.
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, []byte("sync: {key_file: sync.key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(want int, say string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{"sluice", "check", "-c", file}, &stdout, &stderr); code != want || !strings.Contains(stderr.String(), say) {
			t.Errorf("exit code %d, want %d; stderr:\n%s", code, want, stderr.String())
		}
	}
	check(0, "")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	check(exitFailed, "sync.key: others than its owner may use it (mode 0640): chmod 600")
}
