package control

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

func TestRoleOf(t *testing.T) {
	at := func(as ...string) lb.Service {
		s := lb.Service{}
		for _, a := range as {
			s.Addresses = append(s.Addresses, lb.FrontendOf(netip.MustParseAddrPort(a)))
		}
		return s
	}
	vips := map[netip.Addr]bool{
		netip.MustParseAddr("192.0.2.100"): true, netip.MustParseAddr("192.0.2.101"): true,
		netip.MustParseAddr("192.0.2.102"): false, netip.MustParseAddr("2001:db8::100"): false,
	}
	for _, tc := range []struct {
		name    string
		service lb.Service
		want    Role
	}{
		{"its VIP is here", at("192.0.2.100:80"), RoleActive},
		{"elsewhere", at("192.0.2.102:80"), RoleBackup},
		{"of no instance", at("192.0.2.9:80"), RoleOwn},
		{"two ports", at("192.0.2.100:80", "192.0.2.100:443"), RoleActive},
		{"two here", at("192.0.2.100:80", "192.0.2.101:80"), RoleActive},
		{"two elsewhere", at("192.0.2.102:80", "[2001:db8::100]:80"), RoleBackup},
		{"one here", at("192.0.2.100:80", "[2001:db8::100]:80"), RoleSplit},
		{"one here, one of no instance", at("192.0.2.100:80", "192.0.2.9:80"), RoleActive},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := roleOf(tc.service, vips); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// The Active node's table is with the other node before it is in force, and each has
// the next number of a term that began when the node became Active.
func TestTablesAreAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		var first []int // calls of Publish before each one of Apply
		r.fakeWorld.mu.Lock()
		r.onApply = func() { first = append(first, len(r.peer.epochs())) }
		r.fakeWorld.mu.Unlock()
		r.change(7, "web")
		synctest.Wait()
		r.wantEpochs() // it is Backup
		r.active(true)
		r.wantEpochs("web 1.0")
		r.peer.set(func(p *fakePeer) { p.takes = 30 * time.Millisecond })
		start := time.Now()
		r.change(8, "web")
		time.Sleep(29 * time.Millisecond)
		synctest.Wait()
		r.fakeWorld.mu.Lock()
		writes := len(first)
		r.fakeWorld.mu.Unlock()
		if writes != 1 {
			t.Errorf("it is in force before the other node has it")
		}
		time.Sleep(time.Second)
		r.change(9) // a change that concerns no table
		time.Sleep(time.Second)
		r.change(10, "web")
		time.Sleep(time.Second)
		synctest.Wait()
		r.wantEpochs("web 1.0", "web 1.1", "web 1.2")
		if diff := cmp.Diff([]int{0, 2, 2, 3}, first); diff != "" {
			t.Errorf("tables that were published before each write (-want +got):\n%s", diff)
		}
		if took := time.Since(start); took < 3*time.Second || len(r.loop.Alarms()) > 0 {
			t.Errorf("after %v alarms %v", took, r.loop.Alarms())
		}
		r.wantTable(TableStatus{Role: RoleActive, Term: 1, Number: 2})
		want := tableOf("web", 1, 2)
		if diff := cmp.Diff([]lb.TableState{want}, r.loop.Published(), cmpAddresses); diff != "" {
			t.Errorf("what a node that connects gets (-want +got):\n%s", diff)
		}
	})
}

// A table that does not fit the other node is sent again now and then: its configuration
// may be the same by now. When it goes, its refusal is no problem any more.
func TestRefusedTablesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		differs := &RefusedError{"lb2", []RefusedTable{{Service: "web", Why: "no such service"}}}
		r.peer.set(func(p *fakePeer) { p.answer = differs })
		r.active(true)
		time.Sleep(tryAgain - time.Second)
		r.wantEpochs("web 1.0")
		time.Sleep(2 * time.Second)
		r.wantEpochs("web 1.0", "web 1.0")
		if text := r.table().Problem; !strings.Contains(text, "no such service") {
			t.Errorf("problem %q", text)
		}
		r.peer.set(func(p *fakePeer) { p.answer = nil })
		time.Sleep(tryAgain + time.Second)
		r.wantTable(TableStatus{Role: RoleActive, Term: 1})

		r.peer.set(func(p *fakePeer) { p.answer = differs })
		r.change(8, "web")
		synctest.Wait()
		r.peer.set(func(p *fakePeer) { p.connected = false })
		time.Sleep(2 * time.Second)
		r.wantTable(TableStatus{Role: RoleActive, Term: 1, Number: 1})
	})
}

// That another node has a service which is not here is an alarm for as long as it sends
// its table.
func TestStrangeTablesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		for range 5 {
			r.follow(tableOf("mail", 1, 0))
			time.Sleep(tryAgain)
			if alarms := r.loop.Alarms(); len(alarms) != 1 || alarms[0].Kind != AlarmTableDiffers || alarms[0].Peer != "lb2" {
				t.Fatalf("alarms %v", alarms)
			}
		}
		time.Sleep(3 * tryAgain)
		if alarms := r.loop.Alarms(); len(alarms) != 0 {
			t.Errorf("alarms %v when it is sent no more", alarms)
		}
	})
}

// A node that connects while a change is written, and began with the table before it,
// gets the one that is in force.
func TestNodeConnectsDuringChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		r.peer.set(func(p *fakePeer) { p.connected = false })
		r.active(true)
		r.change(8, "web")
		synctest.Wait()
		r.wantEpochs()
		r.fakeWorld.mu.Lock()
		r.onApply = func() { r.peer.set(func(p *fakePeer) { p.connected = true }) }
		r.fakeWorld.mu.Unlock()
		r.change(9, "web")
		synctest.Wait()
		r.wantEpochs("web 1.0")
	})
}

func TestTableStatusInWords(t *testing.T) {
	for want, s := range map[string]TableStatus{
		"this node's, epoch 4.17; the other nodes follow it":                    {Role: RoleActive, Term: 4, Number: 17},
		"that of lb1, epoch 4.17":                                               {Role: RoleBackup, Term: 4, Number: 17, Follows: "lb1"},
		"this node's own: that of the active node has not come yet":             {Role: RoleBackup, Term: 4},
		"this node's own":                                                       {Role: RoleSplit},
		"this node's, epoch 4.17; the other nodes do not follow it, or not yet": {Role: RoleActive, Term: 4, Number: 17, Problem: "late"},
	} {
		if got := s.String(); got != want {
			t.Errorf("%+v in words: %q, want %q", s, got, want)
		}
	}
}

// A change waits for the other node, but not for long, and not at all for one that is
// not there. What was not adopted in time is an alarm until it is.
func TestWaitForTables(t *testing.T) {
	fails := func(r *shareRig) { r.say("192.0.2.12:80", health.Down) }
	moves := func(r *shareRig) { r.lead("192.0.2.12", 9); r.loop.Dirty() }
	for _, tc := range []struct {
		name      string
		connected bool
		takes     time.Duration
		change    func(*shareRig)
		want      time.Duration
		alarm     bool
	}{
		{"a planned change", true, 20 * time.Millisecond, moves, 20 * time.Millisecond, false},
		{"a planned change, slowly", true, 5 * time.Second, moves, publishWait, true},
		{"a failure", true, 20 * time.Millisecond, fails, 20 * time.Millisecond, false},
		{"a failure, slowly", true, 5 * time.Second, fails, failureWait, true},
		{"nobody is there", false, time.Hour, moves, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), webService())
				r.peer.set(func(p *fakePeer) { p.connected = false })
				r.active(true)
				r.peer.set(func(p *fakePeer) { p.connected, p.takes = tc.connected, tc.takes })
				r.fakeWorld.mu.Lock()
				r.previews = []lb.TableState{tableOf("web")}
				var applied time.Time
				r.onApply = func() { applied = time.Now() }
				r.fakeWorld.mu.Unlock()
				start := time.Now()
				tc.change(r)
				time.Sleep(400 * time.Millisecond)
				synctest.Wait()
				if got := applied.Sub(start); got != tc.want {
					t.Errorf("it was in force after %v, want %v", got, tc.want)
				}
				alarms := r.loop.Alarms()
				if (len(alarms) > 0) != tc.alarm {
					t.Fatalf("alarms %v", alarms)
				}
				if !tc.alarm {
					return
				}
				if a := alarms[0]; a.Kind != AlarmTableSync || a.Service != "web" || !strings.Contains(a.Text, "has not adopted it within "+tc.want.String()) {
					t.Errorf("alarm %+v", a)
				}
				time.Sleep(5 * time.Second) // it has been adopted by now
				if alarms := r.loop.Alarms(); len(alarms) > 0 {
					t.Errorf("alarms %v when it has been adopted", alarms)
				}
			})
		})
	}
}

// What could not be published is published again, every second, until the other node
// has it or is not there any more.
func TestTablesAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		r.active(true)
		r.peer.set(func(p *fakePeer) { p.answer = errors.New("the connection is gone") })
		r.change(8, "web")
		time.Sleep(3500 * time.Millisecond)
		r.wantEpochs("web 1.0", "web 1.1", "web 1.1", "web 1.1", "web 1.1")
		if text := r.table().Problem; !strings.Contains(text, "the connection is gone") {
			t.Errorf("problem %q", text)
		}
		r.peer.set(func(p *fakePeer) { p.answer = nil })
		time.Sleep(3 * time.Second)
		r.wantEpochs("web 1.0", "web 1.1", "web 1.1", "web 1.1", "web 1.1", "web 1.1")
		r.wantTable(TableStatus{Role: RoleActive, Term: 1, Number: 1})

		r.peer.set(func(p *fakePeer) { p.answer, p.got = errors.New("the connection is gone"), nil })
		r.change(9, "web")
		synctest.Wait()
		r.peer.set(func(p *fakePeer) { p.connected = false })
		time.Sleep(3 * time.Second)
		r.wantEpochs("web 1.2")
		if alarms := r.loop.Alarms(); len(alarms) > 0 {
			t.Errorf("alarms %v while nobody is there", alarms)
		}
	})
}

// What the other node refuses is dealt with by what it says.
func TestPublishedTableIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name    string
		refused RefusedTable
		epochs  []string // after the first
		problem string
	}{
		{"it holds a later term", RefusedTable{Why: "older", Held: lb.Epoch{Term: 7, Number: 3}},
			[]string{"web 8.0"}, ""},
		{"it holds a later number", RefusedTable{Why: "older", Held: lb.Epoch{Term: 1, Number: 9}},
			[]string{"web 2.0"}, ""},
		{"it is Active itself", RefusedTable{Why: "it is active", Later: true},
			[]string{"web 1.1"}, ""},
		{"its service is another one", RefusedTable{Why: "251 slots"}, nil, "251 slots"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), webService())
				r.active(true)
				tc.refused.Service = "web"
				r.peer.set(func(p *fakePeer) { p.answer = &RefusedError{"lb2", []RefusedTable{tc.refused}} })
				r.change(8, "web")
				synctest.Wait()
				if r.table().Problem == "" {
					t.Error("no problem is told")
				}
				r.peer.set(func(p *fakePeer) { p.answer = nil })
				time.Sleep(2500 * time.Millisecond)
				r.wantEpochs(append([]string{"web 1.0", "web 1.1"}, tc.epochs...)...)
				if got := r.table().Problem; !strings.Contains(got, tc.problem) || (got == "") != (tc.problem == "") {
					t.Errorf("problem %q, want %q", got, tc.problem)
				}
			})
		})
	}
}

// Two nodes that are Active for one service each tell each other of changes at the same
// time: neither waits for the end of the other's wait.
func TestNodesPublishToEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, mail := webService(), webService()
		mail.Name, mail.Addresses = "mail", []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.101:25"))}
		other := netip.MustParseAddr("192.0.2.101")
		a, b := newShareRig(t, file(t), mail, web), newShareRig(t, file(t), mail, web)
		for _, n := range []struct {
			from, to *shareRig
			vips     map[netip.Addr]bool
		}{{a, b, map[netip.Addr]bool{vip: true, other: false}}, {b, a, map[netip.Addr]bool{vip: false, other: true}}} {
			n.from.peer.set(func(p *fakePeer) {
				p.deliver = func(ctx context.Context, tables []lb.TableState) error {
					refused, err := n.to.loop.Follow(ctx, "other", tables)
					if err == nil && len(refused) > 0 {
						err = &RefusedError{"other", refused}
					}
					return err
				}
			})
			n.from.mu.Lock()
			n.from.vips = n.vips
			n.from.mu.Unlock()
		}
		a.loop.Dirty()
		b.loop.Dirty()
		time.Sleep(3 * time.Second)
		var mu sync.Mutex
		var slowest time.Duration
		for i := range byte(20) {
			start := time.Now()
			note := func() {
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, time.Since(start))
			}
			a.fakeWorld.mu.Lock()
			a.onApply = note
			a.fakeWorld.mu.Unlock()
			b.fakeWorld.mu.Lock()
			b.onApply = note
			b.fakeWorld.mu.Unlock()
			a.change(100+i, "web")
			b.change(100+i, "mail")
			time.Sleep(10 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		if slowest >= 10*time.Millisecond {
			t.Errorf("a change took %v", slowest)
		}
		for _, r := range []*shareRig{a, b} {
			if alarms := r.loop.Alarms(); len(alarms) > 0 {
				t.Errorf("alarms %v", alarms)
			}
		}
		a.wantTable(TableStatus{Role: RoleActive, Term: 1, Number: 20})
		b.wantTable(TableStatus{Role: RoleBackup, Term: 1, Number: 20, Follows: "other"})
	})
}
