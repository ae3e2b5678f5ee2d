package control

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/vrrp"
)

// A fakeRouter hands over to peer, or to nobody.
type fakeRouter struct {
	status vrrp.Status
	peer   netip.Addr
	err    error
	held   []bool // calls of Hold
}

func (r *fakeRouter) Status() vrrp.Status { return r.status }
func (r *fakeRouter) Hold(on bool)        { r.held = append(r.held, on); r.status.Held = on }
func (r *fakeRouter) HandOver(context.Context) (vrrp.Handover, error) {
	return vrrp.Handover{WasActive: r.status.State == vrrp.Active, Peer: r.peer}, r.err
}

var lb2 = netip.MustParseAddr("192.0.2.2")

// routerIn is one in a state, named VI_1, that a peer would take over from.
func routerIn(s vrrp.State) *fakeRouter {
	r := &fakeRouter{status: vrrp.Status{Name: "VI_1", State: s, Reason: "so it is", Priority: 100}}
	if s == vrrp.Active {
		r.peer = lb2
	}
	return r
}

func openHolds(t *testing.T, path string) *Holds {
	t.Helper()
	h, err := OpenHolds(path)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// What an operator orders of instances while a reload puts others in their place is
// true of those.
func TestHoldsOfInstancesThatBeganAnew(t *testing.T) {
	holds := openHolds(t, filepath.Join(t.TempDir(), "holds.json"))
	movable := func(r *fakeRouter) []Movable {
		return []Movable{{Name: "VI_1", Router: r, Others: true, Own: func() bool { return false }}}
	}
	before, anew := routerIn(vrrp.Active), routerIn(vrrp.Backup)
	old := NewHandovers(holds, movable(before), slog.New(slog.DiscardHandler))
	next := NewHandovers(holds, movable(anew), slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		order HandoverOrder
		want  bool
	}{{HandoverOrder{Hold: true}, true}, {HandoverOrder{Release: true}, false}} {
		if _, err := old.Do(t.Context(), tt.order); err != nil {
			t.Fatal(err)
		}
		next.Settle()
		next.Settle()
		if anew.status.Held != tt.want {
			t.Errorf("%+v: held %v, want %v", tt.order, anew.status.Held, tt.want)
		}
	}
	if diff := cmp.Diff([]bool{true, false}, anew.held); diff != "" {
		t.Errorf("calls of Hold (-want +got):\n%s", diff)
	}
}

// lacking has no other node know of an instance's connections.
func lacking(m *Movable) { m.Lacks = func() string { return "lb2 is not connected" } }

func TestHandoverOrders(t *testing.T) {
	for _, tt := range []struct {
		name   string
		router *fakeRouter
		change func(*Movable)
		order  HandoverOrder
		err    string // part of what it is refused with
		text   string // part of the result
		done   bool
		held   bool // kept in the file afterwards
	}{
		{name: "an active one", router: routerIn(vrrp.Active), text: "192.0.2.2 has taken over; this node stays backup while", done: true},
		{name: "by its name", router: routerIn(vrrp.Active), order: HandoverOrder{Instance: "VI_1"}, text: "192.0.2.2 has", done: true},
		{name: "with hold", router: routerIn(vrrp.Active), order: HandoverOrder{Hold: true}, text: "until `sluice handover VI_1 --release`", done: true, held: true},
		{name: "a backup with hold", router: func() *fakeRouter {
			r := routerIn(vrrp.Backup)
			r.status.Peer.Address = lb2
			return r
		}(), order: HandoverOrder{Instance: "VI_1", Hold: true}, text: "it is not active; this node stays backup until", done: true, held: true},
		{name: "nobody takes over", router: &fakeRouter{status: vrrp.Status{State: vrrp.Active}}, order: HandoverOrder{Hold: true},
			text: "no peer has taken over within 0s: this node holds the addresses as before"},
		{name: "cut short", router: &fakeRouter{status: vrrp.Status{State: vrrp.Active}, err: errors.New("cut short")}, order: HandoverOrder{Hold: true}, text: "cut short"},
		{name: "none is active", router: routerIn(vrrp.Backup), err: "no instance is active here"},
		{name: "a backup", router: routerIn(vrrp.Backup), order: HandoverOrder{Instance: "VI_1"}, err: "VI_1 is backup (so it is): there is nothing to hand over"},
		{name: "a backup with hold that has heard nobody", router: routerIn(vrrp.Backup), order: HandoverOrder{Instance: "VI_1", Hold: true}, err: "nobody would have its addresses"},
		{name: "one that has not started", router: routerIn(vrrp.Initialize), order: HandoverOrder{Instance: "VI_1", Hold: true}, err: "VI_1 has not started yet: so it is"},
		{name: "another name", router: routerIn(vrrp.Active), order: HandoverOrder{Instance: "VI_2"}, err: `there is no instance "VI_2": there are ["VI_1"]`},
		{name: "own addresses", router: routerIn(vrrp.Active), change: func(m *Movable) { m.Own = func() bool { return true } }, order: HandoverOrder{Force: true}, err: "this node's own"},
		{name: "no peer is known", router: routerIn(vrrp.Active), change: func(m *Movable) { m.Others = false }, err: "no peer is known"},
		{name: "no peer is known, by force", router: routerIn(vrrp.Active), change: func(m *Movable) { m.Others = false }, order: HandoverOrder{Force: true}, text: "192.0.2.2 has taken over", done: true},
		{name: "no peer is configured, and one was heard", router: func() *fakeRouter {
			r := routerIn(vrrp.Active)
			r.status.Peer.Address = lb2
			return r
		}(), change: func(m *Movable) { m.Others = false }, text: "192.0.2.2 has taken over", done: true},
		{name: "no node has the connections", router: routerIn(vrrp.Active), change: lacking, err: "VI_1: connections would break: lb2 is not connected (--force"},
		{name: "no node has the connections, by force", router: routerIn(vrrp.Active), change: lacking, order: HandoverOrder{Force: true}, text: "192.0.2.2 has taken over", done: true},
		{name: "another node has the connections", router: routerIn(vrrp.Active), change: func(m *Movable) { m.Lacks = func() string { return "" } }, text: "192.0.2.2 has taken over", done: true},
		{name: "under way already", router: &fakeRouter{status: vrrp.Status{State: vrrp.Active, Releasing: true}}, err: "under way already"},
		{name: "hold and release", router: routerIn(vrrp.Active), order: HandoverOrder{Hold: true, Release: true}, err: "opposites"},
		{name: "release of nothing", router: routerIn(vrrp.Active), order: HandoverOrder{Release: true}, err: "no instance is held back"},
		{name: "release of one that is not held back", router: routerIn(vrrp.Active), order: HandoverOrder{Instance: "VI_1", Release: true}, err: "VI_1 is not held back"},
		{name: "release after a handover", router: &fakeRouter{status: vrrp.Status{State: vrrp.Backup, Yielded: true, Priority: 90}}, order: HandoverOrder{Release: true},
			text: "takes part in the election again, with priority 90", done: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "holds.json")
			m := Movable{Name: "VI_1", Router: tt.router, Others: true, Own: func() bool { return false }}
			if tt.change != nil {
				tt.change(&m)
			}
			h := NewHandovers(openHolds(t, path), []Movable{m}, slog.New(slog.DiscardHandler))
			got, err := h.Do(t.Context(), tt.order)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || len(tt.router.held) > 0 {
					t.Errorf("got %+v, error %v, calls of Hold %v, want an error with %q and none", got, err, tt.router.held, tt.err)
				}
				return
			}
			if err != nil || len(got) != 1 || got[0].Done != tt.done || !strings.Contains(got[0].Text, tt.text) {
				t.Errorf("got %+v, error %v, want done: %v, %q", got, err, tt.done, tt.text)
			}
			if _, held := openHolds(t, path).Since("VI_1"); held != tt.held || tt.router.status.Held != tt.held {
				t.Errorf("kept: %v, held: %v, want %v", held, tt.router.status.Held, tt.held)
			}
		})
	}
}

// Without a name an order is for those that it fits.
func TestHandoverOfSeveral(t *testing.T) {
	routers := map[string]*fakeRouter{"a": routerIn(vrrp.Active), "b": routerIn(vrrp.Backup), "c": routerIn(vrrp.Active)}
	routers["c"].peer = netip.Addr{}
	var all []Movable
	for _, name := range []string{"a", "b", "c"} {
		all = append(all, Movable{Name: name, Router: routers[name], Others: true, Own: func() bool { return false }})
	}
	h := NewHandovers(openHolds(t, filepath.Join(t.TempDir(), "holds.json")), all, slog.New(slog.DiscardHandler))
	results, err := h.Do(t.Context(), HandoverOrder{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, r := range results {
		got[r.Instance] = r.Done
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "c": false}, got); diff != "" {
		t.Errorf("what was done (-want +got):\n%s", diff)
	}
}

// A group moves together, or stays.
func TestHandoverOfAGroup(t *testing.T) {
	for _, tt := range []struct {
		name  string
		order HandoverOrder
		back  netip.Addr // who takes the back side over
		done  map[string]bool
		holds map[string][]bool // calls of Hold
		text  string            // of the front side
	}{
		{"by one of its instances", HandoverOrder{Instance: "front"}, lb2, map[string]bool{"front": true, "back": true},
			map[string][]bool{}, "192.0.2.2 has taken over; this node stays backup while"},
		{"with hold", HandoverOrder{Hold: true}, lb2, map[string]bool{"front": true, "back": true, "other": true},
			map[string][]bool{"front": {true}, "back": {true}, "other": {true}}, "until `sluice handover front --release`"},
		{"one stays", HandoverOrder{Instance: "back", Hold: true}, netip.Addr{}, map[string]bool{"front": false, "back": false},
			map[string][]bool{"front": {false}}, "192.0.2.2 has taken over, but back of the same group has stayed here: taking it back"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			routers := map[string]*fakeRouter{}
			var all []Movable
			for _, name := range []string{"front", "back", "other"} {
				routers[name] = routerIn(vrrp.Active)
				group := "pair"
				if name == "other" {
					group = ""
				}
				all = append(all, Movable{Name: name, Group: group, Router: routers[name], Others: true, Own: func() bool { return false }})
			}
			routers["back"].peer = tt.back
			h := NewHandovers(openHolds(t, filepath.Join(t.TempDir(), "holds.json")), all, slog.New(slog.DiscardHandler))
			results, err := h.Do(t.Context(), tt.order)
			if err != nil {
				t.Fatal(err)
			}
			done, holds := map[string]bool{}, map[string][]bool{}
			for _, r := range results {
				done[r.Instance] = r.Done
				if r.Instance == "front" && !strings.Contains(r.Text, tt.text) {
					t.Errorf("got %q, want %q", r.Text, tt.text)
				}
			}
			for name, r := range routers {
				if r.held != nil {
					holds[name] = r.held
				}
			}
			if diff := cmp.Diff(tt.done, done); diff != "" {
				t.Errorf("what was done (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.holds, holds); diff != "" {
				t.Errorf("calls of Hold (-want +got):\n%s", diff)
			}
		})
	}
}

// A hold outlives the daemon, until it is released.
func TestHoldIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "holds.json")
	do := func(s vrrp.State, o HandoverOrder) (router *fakeRouter, heldBefore bool) {
		t.Helper()
		router = routerIn(s)
		h := NewHandovers(openHolds(t, path), []Movable{{Name: "VI_1", Router: router, Others: true, Own: func() bool { return false }}}, slog.New(slog.DiscardHandler))
		heldBefore = router.status.Held
		if _, err := h.Do(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		return router, heldBefore
	}
	if _, held := do(vrrp.Active, HandoverOrder{Hold: true}); held {
		t.Error("held back before anybody said so")
	}
	if r, held := do(vrrp.Backup, HandoverOrder{Release: true}); !held || r.status.Held {
		t.Errorf("held back after the restart: %v, after release: %v", held, r.status.Held)
	}
	if _, held := do(vrrp.Active, HandoverOrder{}); held {
		t.Error("held back after the release")
	}
}

func TestHoldsThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"{", `{"version": 2}`, `{"version": 1, "holds": [{"instance": ""}]}`} {
		path := filepath.Join(t.TempDir(), "holds.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h := openHolds(t, path)
		if aside, err := os.ReadFile(path + ".corrupt"); err != nil || string(aside) != text {
			t.Errorf("%s: moved aside: %q, %v", text, aside, err)
		}
		if !strings.Contains(h.Alarm(), path+".corrupt") {
			t.Errorf("%s: alarm %q", text, h.Alarm())
		}
		if err := h.Set("VI_1", true, time.Now()); err != nil {
			t.Error(err)
		}
		if _, held := openHolds(t, path).Since("VI_1"); !held {
			t.Errorf("%s: what is held back later is not kept", text)
		}
	}
}

func TestHoldThatCannotBeKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file", "holds.json")
	h := openHolds(t, path)
	if err := os.WriteFile(filepath.Dir(path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := routerIn(vrrp.Active)
	moves := NewHandovers(h, []Movable{{Name: "VI_1", Router: r, Others: true, Own: func() bool { return false }}}, slog.New(slog.DiscardHandler))
	got, err := moves.Do(t.Context(), HandoverOrder{Hold: true})
	if err != nil || got[0].Done || !strings.Contains(got[0].Text, "or until the daemon restarts: keep in") || !r.status.Held {
		t.Errorf("got %+v, %v, held: %v", got, err, r.status.Held)
	}
}

// A Backup that waits for the other node's state says for how long.
func TestHeldBackBySync(t *testing.T) {
	until := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	s := vrrp.Status{Name: "VI_1", AwaitsState: until, Peer: vrrp.Peer{Address: netip.MustParseAddr("192.0.2.2")}}
	want := "it does not hold the state of 192.0.2.2 yet, or does not reach a server that serves there, and waits for it until 15:04:05 at the latest (sync_wait)"
	if got := NewInstance(s, nil).HeldBack; got != want {
		t.Errorf("held back: %q, want %q", got, want)
	}
}
