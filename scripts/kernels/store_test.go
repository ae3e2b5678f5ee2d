package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImagePattern(t *testing.T) {
	tests := []struct {
		series, name string
		want         bool
	}{
		{"6.1", "linux-image-6.1.0-56-amd64", true},
		{"6.12", "linux-image-6.12.117+deb12-amd64", true},
		{"6.12", "linux-image-6.12.9-1-amd64", true},
		{"6.1", "linux-image-6.1.0-0.deb11.22-amd64", true},
		{"6.1", "linux-image-6.12.117+deb12-amd64", false},
		{"6.12", "linux-image-6.1.0-56-amd64", false},
		{"6.12", "linux-image-6.12-amd64", false},
		{"6.1", "linux-image-6.1.0-56-cloud-amd64", false},
		{"6.12", "linux-image-6.12.117+deb12-cloud-amd64", false},
		{"6.1", "linux-image-6.1.0-56-rt-amd64", false},
		{"6.1", "linux-image-6.1.0-56-amd64-unsigned", false},
		{"6.1", "linux-image-6.1.0-56-amd64-dbg", false},
	}
	for _, tt := range tests {
		if got := imagePattern(tt.series).MatchString(tt.name); got != tt.want {
			t.Errorf("%s is of series %s: %v, want %v", tt.name, tt.series, got, tt.want)
		}
	}
}

func TestNaturally(t *testing.T) {
	ascending := []string{
		"linux-image-6.1.0-9-amd64", "linux-image-6.1.0-10-amd64", "linux-image-6.1.0-10-amd64_6.1.2",
		"linux-image-6.12.9+deb12-amd64", "linux-image-6.12.10+deb12-amd64", "linux-image-6.12.100+deb12-amd64",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := naturally(a, b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%s compared with %s is %d", a, b, got)
			}
		}
	}
}

func TestStoreKept(t *testing.T) {
	s := store{dir: t.TempDir()}
	if k, found := s.kept("6.1"); found {
		t.Errorf("an empty store has %s", k.name)
	}
	for _, name := range []string{
		"linux-image-6.1.0-9-amd64_6.1.67-1" + suffix(),
		"linux-image-6.1.0-10-amd64_6.1.38-1" + suffix(),
		"linux-image-6.1.0-11-amd64_6.1.40-1_00000000", // with other modules
		"linux-image-6.12.9+deb12-amd64_6.12.9-1" + suffix(),
		"work-1",
	} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k, _ := s.kept("6.1")
	want := kernel{name: "linux-image-6.1.0-10-amd64", dir: filepath.Join(s.dir, "linux-image-6.1.0-10-amd64_6.1.38-1"+suffix())}
	if diff := cmp.Diff(want, k, cmp.AllowUnexported(kernel{})); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}

func TestSourcesOf(t *testing.T) {
	targets := `http://mirror.example/debian/ Debian
http://mirror.example/debian/ Debian
http://security.example/debian-security/ Debian-Security
http://mirror.example/debian/ Debian Backports
http://packages.example/apt/ Somebody
`
	var got []string
	for line := range strings.Lines(sourcesOf(targets, "bookworm")) {
		options := line[strings.Index(line, "["):strings.Index(line, "]")]
		if !strings.HasPrefix(options, "[arch=amd64") {
			t.Errorf("options are %s]", options)
		}
		got = append(got, strings.Replace(line, options+"] ", "", 1))
	}
	want := []string{
		"deb http://mirror.example/debian/ bookworm main\n",
		"deb http://security.example/debian-security/ bookworm-security main\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	if got := sourcesOf("http://packages.example/apt/ Somebody\n", "bookworm"); got != "" {
		t.Errorf("sources of no Debian mirror are %q", got)
	}
}
