package control

import (
	"compress/gzip"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// Where the daemon's time and memory go is told in the format of `go tool pprof`, by the
// name of each profile.
func TestAdminTellsProfiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	a := listen(t, path)
	defer a.Close()
	for _, tt := range []struct {
		name, path string
		status     int
		packed     bool
		want       string // what is in it
	}{
		{"processor time", "profile?seconds=1", 200, true, "nanoseconds"},
		{"memory", "heap", 200, true, "inuse_space"},
		{"goroutines, as text", "goroutine?debug=2", 200, false, "TestAdminTellsProfiles"},
		{"all that there are", "", 200, false, "mutex"},
		{"one that is not there", "nothing", 404, false, "Unknown profile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://sluice/debug/pprof/"+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := clientOf(path).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body := io.Reader(res.Body)
			if tt.packed {
				if body, err = gzip.NewReader(res.Body); err != nil {
					t.Fatal(err)
				}
			}
			text, err := io.ReadAll(body)
			if err != nil || res.StatusCode != tt.status || !strings.Contains(string(text), tt.want) {
				t.Errorf("status %d, %v, %d bytes; want status %d, and %q in it", res.StatusCode, err, len(text), tt.status, tt.want)
			}
		})
	}
}
