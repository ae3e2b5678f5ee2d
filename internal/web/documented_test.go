package web

import (
	"os"
	"regexp"
	"testing"
)

// Metrics that are documented exist.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, f := range families {
		known[f.name] = true
	}
	found := 0
	for _, name := range regexp.MustCompile(`\bsluice_[a-z_]+`).FindAllString(string(text), -1) {
		if name == "sluice_probe" {
			continue // a filter's name
		}
		found++
		if !known[name] {
			t.Errorf("docs/operations.md has %s, which is no metric", name)
		}
	}
	if found == 0 {
		t.Error("docs/operations.md has no metric")
	}
}
