package config

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"
)

// design is a configuration with every key that sluice knows.
//
//go:embed testdata/design.yaml
var design string

// TestUnsupportedKeys demands, for every key that is known and not supported
// yet, that it is refused with these words and at its place.
func TestUnsupportedKeys(t *testing.T) {
	frames := map[*schema]string{
		&topLevel:       "%s: 1\n",
		&instanceSchema: "vrrp:\n- name: v\n  interface: e\n  virtual_router_id: 1\n  addresses: [192.0.2.1]\n  %s: 1\n",
		&syncSchema:     "sync:\n  key_file: sync.key\n  %s: 1\n",
	}
	for _, s := range supported {
		frame, ok := frames[s]
		if !ok && len(s.later) > 0 {
			t.Errorf("no frame for the keys of %s", s.what)
		}
		for _, key := range s.later {
			t.Run(s.what+"/"+key, func(t *testing.T) {
				yaml := fmt.Sprintf(frame, key)
				lines := strings.Split(yaml, "\n")
				line := len(lines) - 1
				column := 1 + strings.Index(lines[line-1], key)
				wantMistakes(t, yaml, []string{fmt.Sprintf("%d:%d: %s is not supported yet", line, column, key)})
			})
		}
	}
}

// TestDesign loads a configuration with everything in it: all of it is supported.
func TestDesign(t *testing.T) {
	if _, err := load(memFiles{"f": design, "/etc/sluice/sync.key": testKey, "cert.pem": testPair()[0], "cert.key": testPair()[1]}, "f", Options{}); err != nil {
		t.Error(err)
	}
}
