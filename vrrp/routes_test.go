// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// A fakeRoutes is a host's routes and rules in memory.
type fakeRoutes struct {
	mu     sync.Mutex
	routes []Route
	rules  []Rule
	err    error // of the next addition
}

func (f *fakeRoutes) addRoute(r Route) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if slices.ContainsFunc(f.routes, func(o Route) bool { return o.To == r.To && o.Table == r.Table }) {
		return syscall.EEXIST
	}
	f.routes = append(f.routes, r)
	return nil
}

func (f *fakeRoutes) removeRoute(r Route) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes = slices.DeleteFunc(f.routes, func(o Route) bool { return o == r })
	return nil
}

func (f *fakeRoutes) addRule(r Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.rules, r) {
		return syscall.EEXIST
	}
	f.rules = append(f.rules, r)
	return nil
}

func (f *fakeRoutes) removeRule(r Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = slices.DeleteFunc(f.rules, func(o Rule) bool { return o == r })
	return nil
}

// change changes them behind the Router's back.
func (f *fakeRoutes) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fakeRoutes) describe() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, r := range f.routes {
		all = append(all, r.String())
	}
	for _, r := range f.rules {
		all = append(all, r.String())
	}
	return all
}

var (
	theRoute = Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("192.0.2.254"), Source: addr("192.0.2.100"), Table: 100}
	theRule  = Rule{From: netip.MustParsePrefix("192.0.2.100/32"), Table: 100}
	theSet   = RouteSet{Routes: []Route{theRoute}, Rules: []Rule{theRule}}
	both     = []string{"route to 0.0.0.0/0 via 192.0.2.254 in table 100", "rule from 192.0.2.100/32 for table 100"}
)

func TestRoutes(t *testing.T) {
	wantTable := func(t *testing.T, f *fakeRoutes, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, f.describe()); diff != "" {
			t.Errorf("routes and rules (-want +got):\n%s", diff)
		}
	}
	t.Run("come and go", func(t *testing.T) {
		f := &fakeRoutes{}
		r := openRoutes(f, t.TempDir(), "boot 1", discard)
		for range 2 {
			if err := r.Add(theSet); err != nil {
				t.Fatal(err)
			}
			wantTable(t, f, both...)
		}
		for range 2 {
			if err := r.Remove(theSet); err != nil {
				t.Fatal(err)
			}
			wantTable(t, f)
		}
	})
	t.Run("somebody removes them", func(t *testing.T) {
		f, log := &fakeRoutes{}, &testLog{}
		r := openRoutes(f, t.TempDir(), "boot 1", slog.New(log))
		if err := r.Add(theSet); err != nil {
			t.Fatal(err)
		}
		f.routes = nil
		if err := r.Add(theSet); err != nil {
			t.Fatal(err)
		}
		wantTable(t, f, both...)
		if n := log.count("was removed by somebody else"); n != 1 {
			t.Errorf("the log says so %d times", n)
		}
	})
	t.Run("what is there already is somebody else's", func(t *testing.T) {
		theirs := Route{To: theRoute.To, Via: addr("192.0.2.1"), Table: 100}
		f := &fakeRoutes{routes: []Route{theirs}}
		r := openRoutes(f, t.TempDir(), "boot 1", discard)
		err := r.Add(theSet)
		if want := both[0] + ": one is there that sluice has not added"; err == nil || err.Error() != want {
			t.Errorf("got error %v, want %q", err, want)
		}
		if err := r.Remove(theSet); err != nil {
			t.Error(err)
		}
		wantTable(t, f, "route to 0.0.0.0/0 via 192.0.2.1 in table 100")
	})
	t.Run("one that cannot be added", func(t *testing.T) {
		f := &fakeRoutes{err: syscall.ENETUNREACH}
		r := openRoutes(f, t.TempDir(), "boot 1", discard)
		if err := r.Add(theSet); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("got error %v", err)
		}
		wantTable(t, f, both[1])
		f.err = nil
		if err := r.Add(theSet); err != nil {
			t.Error(err)
		}
		wantTable(t, f, both...)
	})
	for _, tt := range []struct {
		name       string
		boot       string
		configured RouteSet
		want       []string
	}{
		{"a later run removes what is not configured", "boot 1", RouteSet{}, nil},
		{"and leaves what is", "boot 1", theSet, both},
		{"after a reboot they are not its own", "boot 2", RouteSet{}, both},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, dir := &fakeRoutes{}, t.TempDir()
			if err := openRoutes(f, dir, "boot 1", discard).Add(theSet); err != nil {
				t.Fatal(err)
			}
			later := openRoutes(f, dir, tt.boot, discard)
			if err := later.Forget(tt.configured); err != nil {
				t.Fatal(err)
			}
			wantTable(t, f, tt.want...)
			if tt.boot == "boot 1" { // and knows them for its own
				if err := later.Remove(theSet); err != nil {
					t.Fatal(err)
				}
				wantTable(t, f)
			}
		})
	}
	t.Run("a record that cannot be read", func(t *testing.T) {
		dir, log := t.TempDir(), &testLog{}
		if err := os.WriteFile(filepath.Join(dir, routesName), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := &fakeRoutes{}
		if err := openRoutes(f, dir, "boot 1", slog.New(log)).Add(theSet); err != nil {
			t.Error(err)
		}
		wantTable(t, f, both...)
		if log.count("cannot be read") != 1 {
			t.Error("it is not reported")
		}
	})
}

// Routes are there while their node is Active.
func TestRouterBringsRoutes(t *testing.T) {
	virtual(t, "with the VIP", func(t *testing.T) {
		f := &fakeRoutes{}
		n := newNode(t, newSegment(), 1)
		n.routes = openRoutes(f, t.TempDir(), "boot 1", discard)
		n.run(func(c *Config) { c.Extra = theSet })
		n.wantState(Backup)
		has := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			if got := len(f.describe()); got != 0 && !want || got != 2 && want {
				t.Errorf("%s: %d routes and rules are there, want them: %v", when, got, want)
			}
		}
		has("backup", false)
		sleep(4 * time.Second)
		n.wantState(Active)
		has("active", true)
		f.change(func() { f.routes, f.rules = nil, nil })
		sleep(recheckEvery)
		has("after somebody has removed them", true)
		n.change(func() { n.link.Up = false })
		has("fault", false)
		n.change(func() { n.link.Up = true })
		sleep(4 * time.Second)
		has("active again", true)
		f.change(func() { f.err, f.routes = syscall.ENETUNREACH, nil })
		sleep(recheckEvery)
		if s := n.router.Status(); !strings.Contains(s.RouteProblem, "network is unreachable") {
			t.Errorf("got problem %q", s.RouteProblem)
		}
		f.change(func() { f.err = nil })
		sleep(recheckEvery)
		has("when it works again", true)
		if s := n.router.Status(); s.RouteProblem != "" {
			t.Errorf("got problem %q", s.RouteProblem)
		}
		if _, err := n.router.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		has("released, and nobody took over", true)
	})
	virtual(t, "after a crash", func(t *testing.T) {
		f, dir := &fakeRoutes{}, t.TempDir()
		s := newSegment()
		n := newNode(t, s, 1)
		if err := openRoutes(f, dir, "boot 1", discard).Add(theSet); err != nil {
			t.Fatal(err)
		}
		n.vips = testConfig().Addresses
		n.routes = openRoutes(f, dir, "boot 1", discard)
		n.run(func(c *Config) { c.Extra = theSet })
		sleep(time.Second)
		if len(f.describe()) == 0 || !n.holds() {
			t.Error("gone before anybody else was heard")
		}
		s.speak("192.0.2.3", priority(200))
		if len(f.describe()) > 0 || n.holds() {
			t.Error("still there though another node is active")
		}
	})
}

// The kernel takes all that the configuration does, in both families.
func TestRoutesOnTheHost(t *testing.T) {
	a, b := cable(t)
	a.do(func() error { return writeSysctl("net/ipv6/conf/eth0/accept_dad", "0") })
	a.addAddress("eth0", "2001:db8::1/64")
	p := netip.MustParsePrefix
	set := RouteSet{
		Routes: []Route{
			{To: p("0.0.0.0/0"), Via: addr("192.0.2.2"), Source: addr("192.0.2.100"), Table: 100, Metric: 20},
			{To: p("198.51.100.0/24"), Interface: "eth0", Table: 254},
			{To: p("::/0"), Via: addr("fe80::2"), Interface: "eth0", Table: 4000},
			{To: p("2001:db8:1::/48"), Interface: "eth0", Table: 254, Metric: 7},
		},
		Rules: []Rule{
			{From: p("192.0.2.100/32"), Table: 100, Priority: 32000},
			{To: p("198.51.100.0/24"), Interface: "eth0", Table: 4000, Priority: 1000},
			{V6: true, Interface: "eth0", Table: 4000, Priority: 32000},
		},
	}
	// ours are what the kernel has of sluice's.
	ours := func() []string {
		all := []string{}
		a.do(func() error {
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol, Table: 0}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
				if err != nil {
					return err
				}
				for _, r := range routes {
					all = append(all, fmt.Sprintf("route %v via %v src %v table %d", r.Dst, r.Gw, r.Src, r.Table))
				}
				rules, err := netlink.RuleList(family)
				if err != nil {
					return err
				}
				for _, r := range rules {
					if r.Protocol == routeProtocol {
						all = append(all, fmt.Sprintf("rule from %v to %v iif %q table %d", r.Src, r.Dst, r.IifName, r.Table))
					}
				}
			}
			return nil
		})
		slices.Sort(all)
		return all
	}
	want := []string{
		`route 0.0.0.0/0 via 192.0.2.2 src 192.0.2.100 table 100`,
		`route 198.51.100.0/24 via <nil> src <nil> table 254`,
		`route 2001:db8:1::/48 via <nil> src <nil> table 254`,
		`route ::/0 via fe80::2 src <nil> table 4000`,
		`rule from 192.0.2.100/32 to <nil> iif "" table 100`,
		`rule from <nil> to 198.51.100.0/24 iif "eth0" table 4000`,
		`rule from <nil> to <nil> iif "eth0" table 4000`,
	}
	cfg, dir := fast(100), t.TempDir()
	cfg.Extra = set
	r, stop := a.start(cfg, dir)
	wantOurs := func(when string, want []string) {
		t.Helper()
		eventually(t, when, func() bool { return slices.Equal(ours(), want) || len(want) > 0 && r.Status().RouteProblem != "" })
		if diff := cmp.Diff(want, ours()); diff != "" {
			t.Fatalf("%s (-want +got):\n%s\n%s", when, diff, r.Status().RouteProblem)
		}
	}
	wantOurs("active", want)
	// The kernel takes the route that has the VIP for its source away with it.
	a.deleteAddress("eth0", "192.0.2.100/24")
	wantOurs("the VIP was deleted and is back", want)
	if report := r.Status().RouteProblem; report != "" {
		t.Errorf("got problem %q", report)
	}

	b.start(fast(101), t.TempDir())
	eventually(t, "b is active", func() bool { return r.Status().State == Backup })
	wantOurs("backup", []string{})
	stop()

	// What a killed daemon has left goes when it is not configured any more.
	left, err := OpenRoutes(a.host(), dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	set.Routes[0].Source = netip.Addr{} // the VIP is not there
	if err := left.Add(set); err != nil {
		t.Fatal(err)
	}
	if got := ours(); len(got) != len(want) {
		t.Fatalf("got %v, want as many as before", got)
	}
	next, err := OpenRoutes(a.host(), dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Forget(RouteSet{}); err != nil {
		t.Fatal(err)
	}
	if got := ours(); len(got) > 0 {
		t.Errorf("still there: %v", got)
	}
}
