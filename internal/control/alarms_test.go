package control

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// summary is an event without its time, as a word or two.
func summary(e events.Event) string { return fmt.Sprintf("%s %v", e.Type, e) }

func TestAlarmsBeginAndEnd(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	vrid := Alarm{Kind: "virtual_router_id", Instance: "VI_1", Peer: "192.0.2.2", Text: "another id", Since: now.Add(-time.Minute)}
	short := func(n int) Alarm { return Alarm{Kind: AlarmNoPort, Service: "web", Text: fmt.Sprint(n, " refused")} }
	ports := func(server string) Alarm {
		return Alarm{Kind: AlarmSourcePorts, Service: "web", Server: server, Text: server}
	}
	var b AlarmBook
	for _, tc := range []struct {
		name   string
		alarms []Alarm
		want   []string
		since  []time.Duration // after the beginning, by alarm
	}{
		{"none", nil, nil, nil},
		{"two begin", []Alarm{vrid, short(1)}, []string{
			"alarm.begin VI_1 192.0.2.2 virtual_router_id: another id", "alarm.begin web no_port: 1 refused",
		}, []time.Duration{-time.Minute, time.Second}},
		{"they last, with another text", []Alarm{short(2), vrid}, nil, []time.Duration{time.Second, -time.Minute}},
		{"one ends, with its last text", []Alarm{vrid}, []string{"alarm.end web no_port: 2 refused"}, []time.Duration{-time.Minute}},
		{"one of each of two servers", []Alarm{ports("a"), ports("b"), ports("a")}, []string{
			"alarm.begin web a source_ports: a", "alarm.begin web b source_ports: b",
			"alarm.end VI_1 192.0.2.2 virtual_router_id: another id",
		}, []time.Duration{4 * time.Second, 4 * time.Second}},
		{"all end", nil, []string{"alarm.end web a source_ports: a", "alarm.end web b source_ports: b"}, nil},
		{"one begins again", []Alarm{short(9)}, []string{"alarm.begin web no_port: 9 refused"}, []time.Duration{6 * time.Second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all, happened := b.See(tc.alarms, now)
			var got []string
			for _, e := range happened {
				got = append(got, summary(e))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			var since []time.Duration
			began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			for _, a := range all {
				since = append(since, a.Since.Sub(began))
			}
			if diff := cmp.Diff(tc.since, since); diff != "" {
				t.Errorf("since (-want +got):\n%s", diff)
			}
		})
		now = now.Add(time.Second)
	}
}

// What happens to services and servers is recorded once, with the reason, and what
// operators change.
func TestLoopRecords(t *testing.T) {
	var mu sync.Mutex
	var got []string
	take := func(want ...string) func(t *testing.T, when string) {
		return func(t *testing.T, when string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: events (-want +got):\n%s", when, diff)
			}
			got = nil
		}
	}
	runLoopWith(t, time.Second, []lb.Service{webService()}, func(l *Loop) {
		l.Record(func(e events.Event) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, summary(e))
		})
	}, func(t *testing.T, l *Loop, w *fakeWorld) {
		w.changes.path = filepath.Join(t.TempDir(), "overrides.json")
		healthy(w)
		close(w.ready)
		take()(t, "a start where all is well")

		w.say("192.0.2.12:80", health.Down)
		take("server.state web 192.0.2.12:80: up -> down: refused")(t, "a server fails")
		l.Dirty()
		take()(t, "nothing new")
		w.say("192.0.2.11:80", health.Down)
		take("server.state web 192.0.2.11:80: up -> down: refused", "service.state web: up -> down: no server can serve")(t, "the other, too")
		w.say("192.0.2.11:80", health.Up)
		take("server.state web 192.0.2.11:80: down -> up", "service.state web: down -> up")(t, "one comes back")
		if _, err := l.Change(Change{Drain, "web", "192.0.2.11", 0}); err != nil {
			t.Fatal(err)
		}
		take("operator.change drain: 192.0.2.11 of web: drained", "server.state web 192.0.2.11:80: up -> drained: by an operator",
			"service.state web: up -> down: no server can serve")(t, "a drain")
	})
}
