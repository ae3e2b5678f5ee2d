// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

// published waits for a publication as the control loop does.
func published(m *member, within time.Duration, tables ...lb.TableState) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return m.PublishTables(ctx, tables)
}

func TestTablesArePublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		a, b := newPlane(), newPlane()
		web := tableOf("web", 3, 65537)
		a.tables["web"] = web
		one := w.member(t, a, config("lb1", "lb2"))
		two := w.member(t, b, config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		theirs := func(service string) (s lb.TableState) {
			b.do(func() { s = b.theirs["lb1 "+service] })
			return s
		}
		if diff := cmp.Diff(web, theirs("web"), values); diff != "" {
			t.Errorf("the table in force, -want +got:\n%s", diff)
		}
		web.Epoch.Number++
		dns := tableOf("dns", 2, 251)
		if err := published(one, time.Second, web, dns); err != nil {
			t.Error(err)
		}
		// It is applied, not only sent.
		if theirs("web").Epoch != web.Epoch || theirs("dns").Epoch != dns.Epoch {
			t.Errorf("lb2 has epochs %v and %v", theirs("web").Epoch, theirs("dns").Epoch)
		}
		older := web
		older.Epoch.Number--
		if err := published(one, time.Second, older); err == nil {
			t.Error("an older table is published")
		}
		if err := published(one, time.Second, lb.TableState{Service: "web", Slots: []lb.Slot{{Owner: 1}}}); err == nil {
			t.Error("a table with an owner that is none is published")
		}
		// What the peer can't take is its answer.
		b.do(func() { b.noSink = errors.New("another term is in force") })
		web.Epoch.Number++
		if err := published(one, time.Second, web); err == nil || !strings.Contains(err.Error(), "lb2 refuses the table of web: another term is in force") {
			t.Errorf("error %v", err)
		}
		b.do(func() { b.noSink = nil })
		// One that does not answer is named in time, and gets the table all the same.
		hold := make(chan struct{})
		b.do(func() { b.hold = hold })
		a.set(natFlow)
		later(50 * time.Millisecond)
		web.Epoch.Number++
		began := time.Now()
		err := published(one, 200*time.Millisecond, web)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lb2 has not acknowledged the table of web") || time.Since(began) != 200*time.Millisecond {
			t.Errorf("after %v: error %v", time.Since(began), err)
		}
		b.do(func() { b.hold = nil })
		close(hold)
		later(settled)
		if theirs("web").Epoch != web.Epoch {
			t.Errorf("lb2 has epoch %v", theirs("web").Epoch)
		}
		// Who is gone is not waited for, and hears of it when it is back: of what was
		// published, though the Source has an older one still.
		two.stop()
		web.Epoch.Number++
		if err := published(one, time.Second, web); err != nil {
			t.Error(err)
		}
		b = newPlane()
		two = w.member(t, b, config("lb2", "lb1"))
		defer closed(two)
		later(3 * time.Second)
		if theirs("web").Epoch != web.Epoch || theirs("dns").Epoch != dns.Epoch {
			t.Errorf("after its restart lb2 has epochs %v and %v", theirs("web").Epoch, theirs("dns").Epoch)
		}
	})
}

// A peer is in sync once it has the tables and operators' changes, too, not before.
func TestASnapshotEndsWithTheTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		a, b := newPlane(manyFlows(100)...), newPlane()
		web, dns := tableOf("web", 3, 65537), tableOf("dns", 2, 251)
		a.tables["web"], a.tables["dns"] = web, dns
		cfg := config("lb1", "lb2")
		cfg.Overrides = []Override{{"x", Stamp{1, "lb1"}, []byte("drain")}}
		there := make(chan [3]bool, 1)
		other := config("lb2", "lb1")
		other.Told.Synced = func(_ string, synced bool) {
			b.do(func() {
				there <- [3]bool{b.theirs["lb1 web"].Epoch == web.Epoch, b.theirs["lb1 dns"].Epoch == dns.Epoch, b.overrides["x"].Key != ""}
			})
		}
		one := w.member(t, a, cfg, func(n *Node) { n.tuning.window = 4 << 10 })
		two := w.member(t, b, other)
		later(settled)
		if got := <-there; got != [3]bool{true, true, true} {
			t.Errorf("lb2 is in sync, and has the tables and the change: %v", got)
		}
		if s := one.peerStatus("lb2"); !s.Out.InSync {
			t.Errorf("got %+v", s)
		}
		closed(one)
		later(settled)
		<-there
		closed(two)
	})
}

// A publication that waits is let go when the connection ends.
func TestAPublicationMeetsTheEndOfAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		one := w.member(t, newPlane(), config("lb1", "lb2"))
		two := w.member(t, newPlane(), config("lb2", "lb1"))
		defer closed(one, two)
		later(settled)
		w.cut.Store(true)
		began := time.Now()
		if err := published(one, time.Minute, tableOf("web", 2, 65537), tableOf("dns", 2, 251)); err != nil || time.Since(began) > 3*time.Second {
			t.Errorf("after %v: error %v", time.Since(began), err)
		}
	})
}

// Tables of services that differ stay at home, flows travel all the same; and a reload
// that makes services equal has their tables follow.
func TestServicesThatDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		a, b := newPlane(natFlow), newPlane()
		a.tables["web"], a.tables["dns"] = tableOf("web", 2, 251), tableOf("dns", 2, 251)
		one := w.member(t, a, config("lb1", "lb2"))
		cfg := config("lb2", "lb1")
		cfg.Services = []ServiceDigest{{"web", 1}, {"dns", 3}, {"mail", 4}}
		two := w.member(t, b, cfg)
		defer closed(one, two)
		later(settled)
		for _, s := range []PeerStatus{one.peerStatus("lb2"), two.peerStatus("lb1")} {
			if !slices.Equal(s.Differs, []string{"dns", "mail"}) || !strings.Contains(s.Problem, "dns, mail: give both nodes the same configuration") {
				t.Errorf("got %+v", s)
			}
		}
		if _, ok := b.theirs["lb1 dns"]; ok || len(b.theirs) != 1 {
			t.Error("the table of a service that differs was applied")
		}
		mustHave(t, b, "lb1", a)
		if err := published(one, time.Second, tableOf("dns", 2, 251)); err != nil {
			t.Errorf("a table that is not synced is waited for: %v", err)
		}
		if err := two.Reconfigure(twoServices, []key.Key{aKey}); err != nil {
			t.Fatal(err)
		}
		later(settled + 2*defaults().again)
		// What had no use before may have one now: it is told again.
		if s := one.peerStatus("lb2"); len(s.Differs) != 0 || s.Problem != "" || s.Out.Ended != 0 || s.Out.Snapshots != 2 {
			t.Errorf("after the reload: %+v", s)
		}
		if b.theirs["lb1 dns"].Service != "dns" {
			t.Error("the table does not follow")
		}
	})
}

// The last writer wins, on all nodes, and a node that was away hears of it.
func TestOverrides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		planes := []*plane{newPlane(), newPlane(), newPlane()}
		cfg := config("lb1", "lb2", "lb3")
		cfg.Overrides = []Override{{"old", Stamp{5, "lb1"}, []byte("drain")}, {"mine", Stamp{5, "lb1"}, []byte("a")}}
		one := w.member(t, planes[0], cfg)
		cfg = config("lb2", "lb1", "lb3")
		cfg.Overrides = []Override{{"old", Stamp{5, "lb2"}, []byte("enable")}, {"mine", Stamp{4, "lb2"}, []byte("b")}}
		two := w.member(t, planes[1], cfg)
		defer closed(one, two)
		later(settled)
		at := func(i int, key string) (s string) {
			planes[i].do(func() { s = string(planes[i].overrides[key].Value) })
			return s
		}
		if at(0, "old") != "enable" || at(1, "mine") != "a" || at(1, "old") != "" || at(0, "mine") != "" {
			t.Errorf("lb1 was told %v, lb2 %v", planes[0].overrides, planes[1].overrides)
		}
		made, err := one.PublishOverrides([]Override{{Key: "web", Value: []byte("drain")}})
		if err != nil || made[0].Stamp.Node != "lb1" || made[0].Stamp.Time == 0 {
			t.Fatalf("got %v, error %v", made, err)
		}
		later(settled)
		// On the other node's clock it is earlier, and it is a later change all the same.
		again, err := two.PublishOverrides([]Override{{Key: "web", Value: nil, Stamp: Stamp{}}})
		if err != nil || !made[0].Stamp.Less(again[0].Stamp) {
			t.Fatalf("got %v behind %v, error %v", again, made, err)
		}
		three := w.member(t, planes[2], config("lb3", "lb1", "lb2"))
		defer closed(three)
		later(3 * time.Second)
		if at(1, "web") != "drain" || at(2, "old") != "enable" || at(2, "mine") != "a" {
			t.Errorf("lb2 was told %v, lb3 %v", planes[1].overrides, planes[2].overrides)
		}
		if o, ok := planes[0].overrides["web"]; !ok || o.Value != nil || planes[2].overrides["web"].Stamp != o.Stamp {
			t.Errorf("what was taken back is %v on lb1, %v on lb3", o, planes[2].overrides["web"])
		}
		for _, bad := range []Override{{}, {Key: strings.Repeat("x", 256)}, {Key: "x", Value: make([]byte, maxOverrideValue+1)}, {Key: "x", Stamp: Stamp{-1, "lb1"}}} {
			if _, err := one.PublishOverrides([]Override{bad}); err == nil {
				t.Errorf("%+v is accepted", bad)
			}
		}
	})
}
