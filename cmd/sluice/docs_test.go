package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/key"
)

// readDocument returns the text of a file of the repository.
func readDocument(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every configuration that the documents show must be one that sluice takes.
func TestDocumentedConfigurations(t *testing.T) {
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, document := range append(documents, "../../README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range strings.Split(string(text), "```yaml\n")[1:] {
			found++
			yaml, _, _ := strings.Cut(part, "```")
			if strings.HasSuffix(document, "README.md") && i == 0 && strings.Count(yaml, "\n") > 15 {
				t.Errorf("the smallest useful file has %d lines, want 15 at most", strings.Count(yaml, "\n"))
			}
			file := withKey(t, []byte(yaml))
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), []string{"sluice", "check", "-c", file, "--node", "lb1"}, &stdout, &stderr)
			if code != 0 {
				t.Errorf("%s: example %d: exit code %d:\n%s", document, i+1, code, stderr.String())
			}
		}
	}
	if found == 0 {
		t.Error("the documents show no configuration")
	}
}

// withKey writes a configuration beside a key and certificates, and returns its path.
func withKey(t *testing.T, yaml []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := key.Write(filepath.Join(dir, "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, filepath.Join(dir, "www.pem"), filepath.Join(dir, "www.key"))
	writeCertificate(t, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err := os.WriteFile(filepath.Join(dir, "sorry.html"), []byte("<p>sorry"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, yaml, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// So must be the reference, all of it: what the configuration takes, the data plane
// has room for.
func TestReferenceIsTaken(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"sluice", "check", "-c", withKey(t, []byte(config.Reference))}, &stdout, &stderr); code != 0 {
		t.Errorf("exit code %d:\n%s", code, stderr.String())
	}
}
