package config

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What the data plane has no room for is a mistake with a place, that of the
// service's name, wherever it stands.
func TestMisfitsHavePlaces(t *testing.T) {
	files := memFiles{
		"sluice.yaml": withInterface + `include: [more.yaml]
pools: [{name: p, servers: [{address: 192.0.2.1}]}]
services:
- {address: "192.0.2.100:80", pool: p, name: one}
`,
		"more.yaml": `services:
- name: two
  address: "192.0.2.100:81"
  pool: p
- {name: three, address: "192.0.2.100:82", pool: p}
`,
	}
	asked := 0
	fits := func(services []lb.Service) []lb.Misfit {
		asked++
		var all []lb.Misfit
		for i, s := range services {
			if s.Name != "two" {
				all = append(all, lb.Misfit{Service: i, Message: "no room for " + s.Name})
			}
		}
		return all
	}
	_, err := load(files, "sluice.yaml", Options{Hostname: "lb1", Fits: fits})
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("error %v, want mistakes", err)
	}
	var got []string
	for _, e := range all {
		got = append(got, e.Summary())
	}
	want := []string{"sluice.yaml:5:46: no room for one", "more.yaml:5:10: no room for three"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
	if all[0].Width != len("one") {
		t.Errorf("%d characters are marked, want %d", all[0].Width, len("one"))
	}

	files["more.yaml"] += "- {name: four}\n"
	if _, err := load(files, "sluice.yaml", Options{Hostname: "lb1", Fits: fits}); err == nil || asked != 1 {
		t.Errorf("asked %d times, want once: the other file has a mistake (%v)", asked, err)
	}
}
