package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// localService is what a program on the Active node itself serves. It is the one that
// depends on who has the VIP: what is forwarded goes on without.
var localService = netip.AddrPortFrom(vip, 8080)

// serveLocally has both nodes serve localService.
func (r *rig) serveLocally() {
	r.Helper()
	for _, node := range []string{"lb1", "lb2"} {
		h := r.host(node)
		if _, err := h.StartHTTP(netip.AddrPortFrom(netip.IPv4Unspecified(), localService.Port()), h.NameHandler()); err != nil {
			r.Fatal(err)
		}
	}
}

// A moveWatch probes services while VIPs move.
type moveWatch struct {
	r       *rig
	names   []string
	probers []*testenv.Prober
	moves   int
}

// A probed service is asked again after every interval.
var probed = map[string]struct {
	service  netip.AddrPort
	interval time.Duration
}{
	"dsr":   {dsrService, 2 * time.Millisecond},
	"nat":   {natService, 4 * time.Millisecond},
	"local": {localService, time.Millisecond},
}

// watchMoves begins to probe. A connection whose packet is lost would go on when that
// is sent again, after a second: it counts as lost.
func (r *rig) watchMoves(names ...string) *moveWatch {
	r.Helper()
	w := &moveWatch{r: r, names: names}
	for _, name := range names {
		p, err := r.host("client").StartProber(testenv.ProbeConfig{
			Target: probed[name].service, Interval: probed[name].interval, Timeout: 900 * time.Millisecond,
		})
		if err != nil {
			r.Fatal(err)
		}
		w.probers = append(w.probers, p)
	}
	w.settle()
	return w
}

// settle lets some answers pass.
func (w *moveWatch) settle() {
	for _, p := range w.probers {
		w.r.answersMore(p, 100)
	}
}

// move does something that moves the VIPs, or may. How long the client hears nothing
// is told, and not judged: on a busy machine it is the prober that is late. A node
// that does not answer shows in what is lost, a request a millisecond.
func (w *moveWatch) move(what string, do func()) {
	w.r.Helper()
	w.moves++
	from := time.Now()
	do()
	w.settle()
	to := time.Now()
	for i, p := range w.probers {
		got := p.Result()
		silence, _ := got.LongestSilenceBetween(from, to)
		w.r.Logf("%s, %s: longest silence %v", what, w.names[i], silence.Round(100*time.Microsecond))
	}
}

// stop demands that next to nothing was lost. What is in flight the moment that the
// client learns of the other node may be: its packets go to a node that does not
// know it. On a busy machine that is more than one request. But somebody answers a
// new one at any moment, except in nat, where the backends learn of the other node,
// too, and the answer to a SYN may be in flight.
func (w *moveWatch) stop() {
	w.r.Helper()
	for i, p := range w.probers {
		got, err := p.Stop()
		if err != nil {
			w.r.Fatal(err)
		}
		unheard := got.Errors["connect: timeout"]
		w.r.Logf("%s: %d lost of %d in %d moves, %d of them unheard", w.names[i], got.Failed, got.Sent, w.moves, unheard)
		if w.names[i] != "nat" && unheard > 2*w.moves {
			w.r.Errorf("%s: nobody has heard %d requests in %d moves", w.names[i], unheard, w.moves)
		}
		if got.Failed > 20*w.moves {
			w.r.Errorf("%s: %d requests were lost in %d moves, want those in flight at most: %v", w.names[i], got.Failed, w.moves, got.Errors)
		}
	}
}

// waitHeldBack waits until a node says why it leaves the VIPs to the other one.
func (r *rig) waitHeldBack(node, why string) {
	r.Helper()
	r.waitStatus(node, soon, "a node that is held back: "+why, func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "backup" || !strings.Contains(i.HeldBack, why) {
			return fmt.Errorf("it is %s, %q: %w", i.State, i.HeldBack, err)
		}
		return nil
	})
}

// Planned moves between two nodes, each way that there is: none interrupts anything.
func TestPlannedMoves(t *testing.T) {
	r := webRig(t, 3)
	file := r.usual()
	daemons := r.startPair(file)
	r.serveLocally()
	w := r.watchMoves("dsr", "nat", "local")

	w.move("handover", func() {
		got := r.wantRun(0, "lb1", "handover")
		if want := "VI_1: 192.0.2.2 has taken over; this node stays backup while that one is active\n"; got.stdout != want {
			t.Errorf("handover says %q, want %q", got.stdout, want)
		}
		r.waitVIP(soon, vip, "lb2", "lb1")
	})
	r.wantOnOneNode("lb2", 3*takeover) // it does not come back
	r.waitHeldBack("lb1", "who took them is active")
	if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "held back: the addresses were handed over") {
		t.Errorf("status says\n%s", text)
	}
	w.move("handover back", func() {
		var got []control.HandoverResult
		text := r.wantRun(0, "lb2", "handover", "VI_1", "--json").stdout
		if err := json.Unmarshal([]byte(text), &got); err != nil || len(got) != 1 || !got[0].Done || got[0].Peer != "192.0.2.1" {
			t.Errorf("handover --json says %s (%v)", text, err)
		}
		r.waitVIP(soon, vip, "lb1", "lb2")
	})
	r.wantOnOneNode("lb1", takeover)

	// Held, over a restart, until released.
	r.wantRun(0, "lb1", "handover", "VI_1", "--hold")
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.stop(daemons["lb1"])
	daemons["lb1"] = r.start("lb1", file)
	r.waitBackup("lb1")
	r.waitHeldBack("lb1", "by an operator, until `sluice handover VI_1 --release`")
	r.wantOnOneNode("lb2", 3*takeover)
	w.move("hand-back", func() {
		r.wantRun(0, "lb1", "handover", "--release")
		r.waitVIP(soon, vip, "lb1", "lb2")
	})

	// A stop, and the return of a node with the higher priority.
	w.move("stop", func() {
		r.stop(daemons["lb1"])
		r.waitVIP(soon, vip, "lb2", "lb1")
	})
	w.move("return", func() {
		daemons["lb1"] = r.start("lb1", file)
		r.waitVIP(soon, vip, "lb1", "lb2")
	})

	// Nobody is there to take over.
	r.stop(daemons["lb2"])
	w.move("refusal", func() {
		got := r.wantRun(exitFailed, "lb1", "handover")
		if !strings.Contains(got.stderr, "VI_1: no peer has taken over within") || got.stdout != "" {
			t.Errorf("handover to nobody says %q, %q", got.stdout, got.stderr)
		}
	})
	r.waitReady("lb1")
	w.stop()
}

// What makes no sense is refused, with the reason.
func TestHandoverIsRefused(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRig(t, lab1())
	if got := r.wantRun(exitFailed, "lb1", "handover"); !strings.Contains(got.stderr, "not running") {
		t.Errorf("without a daemon: %q", got.stderr)
	}
	r.start("lb1", r.file("sluice.yaml", vrrps(pair)))
	r.eventually(soon, "the VIP on lb1", func() (bool, error) { return r.has("lb1", vip), nil })
	for _, tc := range []struct {
		name string
		code int
		args []string
		want string
	}{
		{"no peer", exitFailed, nil, "VI_1: no peer is known"},
		{"another instance", exitFailed, []string{"VI_2"}, `there is no instance "VI_2"`},
		{"two instances", exitUsage, []string{"VI_1", "VI_2"}, `unexpected "VI_2"`},
		{"an unknown flag", exitUsage, []string{"VI_1", "--now"}, "--now"},
		{"opposites", exitUsage, []string{"--hold", "--release"}, "opposites"},
		{"release of nothing", exitFailed, []string{"--release"}, "no instance is held back"},
		{"by force", exitFailed, []string{"VI_1", "--force"}, "no peer has taken over within 1"},
	} {
		got := r.wantRun(tc.code, "lb1", append([]string{"handover"}, tc.args...)...)
		if !strings.Contains(got.stderr, tc.want) || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: %q, want one line with %q", tc.name, got.stderr, tc.want)
		}
	}
	if i := r.mustStatus("lb1").VRRP[0]; i.State != "active" || !slices.Contains(i.Present, prefix("192.0.2.100/24")) {
		t.Errorf("instance is %s with %v", i.State, i.Present)
	}
}

// The same with keepalived for a peer, which serves the VIP by itself: what sluice
// hands over arrives, and does not come back.
func TestPlannedMovesToKeepalived(t *testing.T) {
	testenv.RequireProgram(t, "keepalived")
	r := webRig(t, 3)
	r.serve("lb2", r.host("lb2").NameHandler())
	file := r.file("sluice.yaml", roster, webPool, services(dsr), vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [192.0.2.100/24]}`))
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	r.waitTakesPart("lb2", r.startKeepalived("lb2", dialects[1], 99))
	r.waitVIP(soon, vip, "lb1", "lb2")
	w := r.watchMoves("dsr")
	w.move("handover", func() {
		r.wantRun(0, "lb1", "handover")
		r.waitVIP(soon, vip, "lb2", "lb1")
	})
	r.wantOnOneNode("lb2", 3*takeover)
	w.move("hand-back", func() {
		r.wantRun(0, "lb1", "handover", "--release")
		r.waitVIP(soon, vip, "lb1", "lb2")
	})
	w.move("stop", func() {
		r.stop(daemon)
		r.waitVIP(soon, vip, "lb2", "lb1")
	})
	w.stop()
	if got := names(r.answers("client", dsrService, burst)); !slices.Equal(got, []string{"lb2"}) {
		t.Errorf("the VIP is served by %v, want keepalived's node", got)
	}
}
