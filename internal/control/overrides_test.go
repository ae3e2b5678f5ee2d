package control

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// twoServices use one pool; the third has backends of its own, two on one host.
func twoServices() []lb.Service {
	a, b, c := webService(), webService(), webService()
	a.Name, b.Name, c.Name = "http", "https", "mail"
	b.Addresses = []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.100:443"))}
	c.Pool = lb.Pool{Name: "mail", Servers: []lb.Server{
		{Address: netip.MustParseAddr("192.0.2.20"), Port: 25, Weight: 1},
		{Address: netip.MustParseAddr("192.0.2.20"), Port: 26, Weight: 1},
	}}
	return []lb.Service{a, b, c}
}

func openOverrides(t *testing.T) *Overrides {
	t.Helper()
	o, err := OpenOverrides(filepath.Join(t.TempDir(), "state", "overrides.json"), "lb1")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOverridesApply(t *testing.T) {
	tests := []struct {
		name    string
		changes []Change
		text    string // of the last one
		err     string
		http    Override // of 192.0.2.12
		https   Override
	}{
		{"drain of a pool is for all its services", []Change{{Drain, "web", "192.0.2.12", 0}},
			"192.0.2.12 of web: drained", "", Override{State: Drain}, Override{State: Drain}},
		{"drain of a service is for it alone", []Change{{Drain, "http", "192.0.2.12", 0}},
			"192.0.2.12 of http: drained", "", Override{State: Drain}, Override{}},
		{"with the port", []Change{{Drain, "http", "192.0.2.12:80", 0}},
			"192.0.2.12:80 of http: drained", "", Override{State: Drain}, Override{}},
		{"the service counts more than the pool", []Change{{Disable, "web", "192.0.2.12", 0}, {Weight, "https", "192.0.2.12", 5}},
			"192.0.2.12 of https: enabled, weight 5", "", Override{State: Disable}, Override{Weight: new(5)}},
		{"enable undoes drain and keeps the weight", []Change{{Weight, "web", "192.0.2.12", 5}, {Drain, "web", "192.0.2.12", 0}, {Enable, "web", "192.0.2.12", 0}},
			"192.0.2.12 of web: enabled, weight 5", "", Override{Weight: new(5)}, Override{Weight: new(5)}},
		{"reset undoes all", []Change{{Weight, "web", "192.0.2.12", 5}, {Drain, "web", "192.0.2.12", 0}, {Reset, "web", "192.0.2.12", 0}},
			"192.0.2.12 of web: as configured", "", Override{}, Override{}},
		{"a weight of 0", []Change{{Weight, "http", "192.0.2.12", 0}}, "192.0.2.12 of http: enabled, weight 0", "", Override{Weight: new(0)}, Override{}},
		{"no such pool", []Change{{Drain, "wbe", "192.0.2.12", 0}}, "", `no pool or service "wbe"`, Override{}, Override{}},
		{"no such server", []Change{{Drain, "web", "192.0.2.99", 0}}, "", "web has no server 192.0.2.99", Override{}, Override{}},
		{"no address", []Change{{Drain, "web", "first", 0}}, "", `"first" is no address`, Override{}, Override{}},
		{"two servers of one address", []Change{{Drain, "mail", "192.0.2.20", 0}}, "", "by its port", Override{}, Override{}},
		{"one of them", []Change{{Drain, "mail", "192.0.2.20:26", 0}}, "192.0.2.20:26 of mail: drained", "", Override{}, Override{}},
		{"a weight out of range", []Change{{Weight, "web", "192.0.2.12", MaxWeight + 1}}, "", "weight 65536", Override{}, Override{}},
		{"no action", []Change{{"stop", "web", "192.0.2.12", 0}}, "", `"stop" is no action`, Override{}, Override{}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o, services := openOverrides(t), twoServices()
			var text string
			var err error
			for _, c := range tc.changes {
				text, err = o.Apply(c, services)
			}
			if text != tc.text || tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %q, %v; want %q, %q", text, err, tc.text, tc.err)
			}
			// The same holds after a restart.
			again, err := OpenOverrides(o.path, "lb1")
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []*Overrides{o, again} {
				got := []Override{o.Of(services[0], services[0].Pool.Servers[0]), o.Of(services[1], services[1].Pool.Servers[0])}
				if diff := cmp.Diff([]Override{tc.http, tc.https}, got); diff != "" {
					t.Errorf("overrides (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestOverridesThatCannotBeRead(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":         "{",
		"another version": `{"version": 2}`,
		"no sense":        `{"version": 1, "overrides": [{"scope": "web", "address": "192.0.2.12", "state": "gone"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "overrides.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := OpenOverrides(path, "lb1")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(o.Alarm(), path+".corrupt") {
				t.Errorf("alarm %q", o.Alarm())
			}
			if kept, err := os.ReadFile(path + ".corrupt"); string(kept) != text {
				t.Errorf("what is kept aside is %q, %v", kept, err)
			}
			if _, err := o.Apply(Change{Drain, "http", "192.0.2.12", 0}, twoServices()); err != nil {
				t.Errorf("a change afterwards: %v", err)
			}
		})
	}
}

// A change that cannot be kept is not made.
func TestOverridesThatCannotBeKept(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := &Overrides{path: filepath.Join(blocked, "overrides.json"), all: map[target]Override{}, stamps: map[target]stamp{}}
	services := twoServices()
	if _, err := o.Apply(Change{Drain, "http", "192.0.2.12", 0}, services); err == nil || !strings.Contains(err.Error(), "nothing has been changed") {
		t.Errorf("got %v", err)
	}
	if got := o.Of(services[0], services[0].Pool.Servers[0]); !got.none() {
		t.Errorf("it is in force: %v", got)
	}
}

// What an operator says reaches the data plane at once: a drained server keeps
// what it has, a disabled one does not, and a backup stands in for either.
func TestLoopAppliesOperatorsChanges(t *testing.T) {
	runLoop(t, time.Second, []lb.Service{webService()}, func(t *testing.T, l *Loop, w *fakeWorld) {
		w.changes.path = filepath.Join(t.TempDir(), "overrides.json")
		healthy(w)
		close(w.ready)
		synctest.Wait()
		backend := func(last byte, weight int, failed bool) lb.Backend {
			return lb.Backend{
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 80),
				Weight:  weight, Failed: failed, NextHop: hopTo(last),
			}
		}
		for _, step := range []struct {
			change Change
			want   []lb.Backend // of .11, the backup, and .12
			state  ServerState  // of .12
		}{
			{Change{Weight, "web", "192.0.2.12", 9}, []lb.Backend{backend(11, 0, false), backend(12, 9, false)}, ServerUp},
			{Change{Drain, "web", "192.0.2.12", 0}, []lb.Backend{backend(11, 1, false), backend(12, 0, false)}, ServerDrained},
			{Change{Disable, "web", "192.0.2.12", 0}, []lb.Backend{backend(11, 1, false), backend(12, 0, true)}, ServerDisabled},
			{Change{Enable, "web", "192.0.2.12", 0}, []lb.Backend{backend(11, 0, false), backend(12, 9, false)}, ServerUp},
			{Change{Reset, "web", "192.0.2.12", 0}, []lb.Backend{backend(11, 0, false), backend(12, 3, false)}, ServerUp},
		} {
			if _, err := l.Change(step.change); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if diff := cmp.Diff(step.want, w.last(t).Services[0].Backends, cmpAddresses); diff != "" {
				t.Errorf("backends after %v (-want +got):\n%s", step.change, diff)
			}
			views, _ := l.Views()
			if got := views[0].Servers[0].State; got != step.state {
				t.Errorf("after %v the server is %s, want %s", step.change, got, step.state)
			}
		}
		// A drained server whose probe fails has failed.
		if _, err := l.Change(Change{Drain, "web", "192.0.2.12", 0}); err != nil {
			t.Fatal(err)
		}
		w.say("192.0.2.12:80", health.Down)
		synctest.Wait()
		if got := w.last(t).Services[0].Backends[1]; !got.Failed {
			t.Error("a drained server that has failed keeps its connections")
		}
	})
}
