package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/vrrp"
)

// events are what `sluice events` prints on a node.
func (r *rig) events(on string, args ...string) []events.Event {
	r.Helper()
	return r.parseEvents(r.wantRun(0, on, append([]string{"events", "--json"}, args...)...).stdout)
}

func (r *rig) parseEvents(text string) []events.Event {
	r.Helper()
	var all []events.Event
	for line := range strings.Lines(text) {
		e, err := events.Decode([]byte(line))
		if err != nil {
			r.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// brief are events in a few words: type, what they are about, and the change.
func brief(all []events.Event) []string {
	var texts []string
	for _, e := range all {
		e.Peer = ""
		if e.Type != events.VRRPState {
			e.Text = ""
		}
		texts = append(texts, strings.TrimSpace(fmt.Sprintf("%s %v", e.Type, e)))
	}
	return texts
}

// waitEvents waits until a node's events contain these in this order, others between
// them or not.
func (r *rig) waitEvents(on string, within time.Duration, want ...string) {
	r.Helper()
	r.eventually(within, "events on "+on, func() (bool, error) {
		got := brief(r.events(on))
		rest := got
		for _, w := range want {
			i := 0
			for ; i < len(rest) && rest[i] != w; i++ {
			}
			if i == len(rest) {
				return false, fmt.Errorf("%q is missing in:\n%s", w, strings.Join(got, "\n"))
			}
			rest = rest[i+1:]
		}
		return true, nil
	})
}

// What happens is told by a daemon that runs, by one that is dead, and to who
// follows from one to the next: each once, in order.
func TestEvents(t *testing.T) {
	r := webRig(t, 2)
	if got := r.wantRun(exitFailed, "lb1", "events"); !strings.Contains(got.stderr, "start it with `sluice run`") {
		t.Errorf("without any daemon: %q", got.stderr)
	}
	file := r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}, {address: 192.0.2.12}"), services(dsr), vrrps(pair))
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	began := []string{
		"daemon.start",
		"vrrp.state VI_1: initialize -> backup: started",
		"vrrp.state VI_1: backup -> active: no active node heard for 721.875ms",
	}
	r.waitEvents("lb1", soon, began...)
	r.waitEvents("lb1", soon, "daemon.start", "daemon.ready")

	follower, err := r.host("lb1").Start("follow", sluice(r.host("lb1"), "events", "--follow", "--since", "1h", "--json"))
	if err != nil {
		t.Fatal(err)
	}
	r.wantRun(0, "lb1", "backend", "drain", "web", "192.0.2.11")
	changes := []string{"operator.change drain", "server.state dsr 192.0.2.11:80: up -> drained"}
	r.waitEvents("lb1", soon, append(began, changes...)...)
	if text := r.wantRun(0, "lb1", "events").stdout; !strings.Contains(text, "Z  operator.change  drain: 192.0.2.11 of web: drained\n") {
		t.Errorf("for people it says\n%s", text)
	}

	// Nothing is lost with a daemon that is killed, and the next one goes on.
	before := r.events("lb1")
	r.kill(daemon)
	if diff := cmp.Diff(before, r.events("lb1")); diff != "" {
		t.Errorf("the events of a dead daemon (-while it ran +now):\n%s", diff)
	}
	if got := r.events("lb1", "--since", "1ns"); len(got) > 0 {
		t.Errorf("in the last nanosecond: %v", got)
	}
	daemon = r.start("lb1", file)
	r.waitEvents("lb1", soon, append(changes, "daemon.start", "daemon.adopt", "daemon.ready")...)
	r.stop(daemon)
	r.waitEvents("lb1", soon, "daemon.adopt", "daemon.ready", "daemon.stop")

	all := r.events("lb1")
	for i, e := range all {
		if e.Seq != uint64(i+1) {
			t.Errorf("event %d has number %d", i+1, e.Seq)
		}
		if e.Type == events.DaemonStart && strings.Contains(e.Text, "was killed") != (i > 0) {
			t.Errorf("the start at %d says %q", i, e.Text)
		}
	}
	var followed []events.Event
	r.eventually(soon, "the follower has all", func() (bool, error) {
		followed = r.parseEvents(follower.Tail(1000))
		if len(followed) < len(all) {
			return false, fmt.Errorf("it has %d of %d", len(followed), len(all))
		}
		return true, nil
	})
	if diff := cmp.Diff(all, followed[:len(all)]); diff != "" {
		t.Errorf("what was followed (-want +got):\n%s", diff)
	}
	if err := follower.Kill(); err != nil {
		t.Error(err)
	}
}

// The types are documented, and those that are documented exist.
func TestEventTypesAreDocumented(t *testing.T) {
	text := readDocument(t, "../../docs/operations.md")
	for _, e := range events.Types() {
		if !strings.Contains(text, "| `"+string(e)+"` |") {
			t.Errorf("docs/operations.md has no row for %s", e)
		}
	}
	known, _ := json.Marshal(events.Types())
	for line := range strings.Lines(text) {
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |")
		kind, _, dotted := strings.Cut(name, ".")
		if ok && dotted && strings.Contains(" daemon vrrp service server upstream check alarm operator ", " "+kind+" ") && !strings.Contains(string(known), `"`+name+`"`) {
			t.Errorf("docs/operations.md has a row for %s, which is no event", name)
		}
	}
}

// So are the kinds of alarms, in the table of alarms.
func TestAlarmKindsAreDocumented(t *testing.T) {
	_, table, _ := strings.Cut(readDocument(t, "../../docs/operations.md"), "**Alarms** are")
	table, _, _ = strings.Cut(table, "\n## ")
	var kinds []string
	for k := vrrp.AlarmKind(0); !strings.HasPrefix(k.String(), "alarm_"); k++ {
		kinds = append(kinds, k.String())
	}
	for _, m := range regexp.MustCompile(`AlarmKind = "(\w+)"`).FindAllStringSubmatch(readDocument(t, "../../internal/control/alarms.go"), -1) {
		kinds = append(kinds, m[1])
	}
	if len(kinds) < 20 {
		t.Errorf("%d kinds are all that was found: %q", len(kinds), kinds)
	}
	for _, kind := range kinds {
		if !strings.Contains(table, "`"+kind+"`") {
			t.Errorf("docs/operations.md has no row for alarms of kind %s", kind)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		in   string
		want time.Time
		bad  bool
	}{
		{"", time.Time{}, false},
		{"1h", now.Add(-time.Hour), false},
		{"2026-01-01T00:00:00+01:00", time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC), false},
		{"-1h", time.Time{}, true},
		{"0s", time.Time{}, true},
		{"yesterday", time.Time{}, true},
		{"2026-01-01", time.Time{}, true},
	} {
		got, err := parseSince(tc.in, now)
		if !got.Equal(tc.want) || (err != nil) != tc.bad {
			t.Errorf("%q: %v, %v", tc.in, got, err)
		}
	}
	r := newRig(t, testenv.Spec{Hosts: testenv.Default(0).Hosts[1:2]})
	r.wantRun(exitUsage, "lb1", "events", "--since", "yesterday")
}
