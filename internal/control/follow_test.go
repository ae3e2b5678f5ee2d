package control

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A Backup follows: the other node's table is in force, whatever the verdicts here are,
// which say how this node stands. When it is Active, its own is in force, in a term that
// no node has told of.
func TestBackupFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		if got := r.last(t).Services[0]; got.Followed {
			t.Error("it follows nobody's table")
		}
		table := tableOf("web", 3, 14)
		table.Backends = append(table.Backends, lb.TableBackend{Address: netip.MustParseAddrPort("192.0.2.50:80"), Leaving: true})
		if refused := r.follow(table); len(refused) > 0 {
			t.Fatalf("refused %v", refused)
		}
		if diff := cmp.Diff([][]lb.TableState{{table}}, r.adopted, cmpAddresses); diff != "" {
			t.Errorf("adopted (-want +got):\n%s", diff)
		}
		r.wantTable(TableStatus{Role: RoleBackup, Term: 3, Number: 14, Follows: "lb2"})
		if got := r.last(t).Services[0]; !got.Followed {
			t.Error("the next snapshot does not follow")
		}
		// The way to a backend that is not configured here is followed, too.
		gone := netip.MustParseAddr("192.0.2.50")
		if !slices.Contains(r.followed, gone) {
			t.Errorf("the ways to %v are followed", r.followed)
		}
		r.lead("192.0.2.50", 50)
		r.loop.Dirty()
		synctest.Wait()
		leaving := []lb.Backend{{Address: netip.AddrPortFrom(gone, 80), NextHop: hopTo(50)}}
		if diff := cmp.Diff(leaving, r.last(t).Services[0].Leaving, cmpAddresses); diff != "" {
			t.Errorf("backends that leave (-want +got):\n%s", diff)
		}

		r.say("192.0.2.12:80", health.Down)
		r.say("192.0.2.11:80", health.Down)
		synctest.Wait()
		if got := r.last(t).Services[0]; !got.Followed {
			t.Error("a verdict has ended it")
		}
		if known, problem := r.loop.Quorum("web"); !known || problem == "" {
			t.Error("this node does not stand by its own verdicts")
		}
		r.wantEpochs()

		r.active(true)
		if got := r.last(t).Services[0]; got.Followed || !got.Backends[0].Failed {
			t.Errorf("as the Active node it has the table of %+v", got)
		}
		r.wantEpochs("web 4.0")
		r.wantTable(TableStatus{Role: RoleActive, Term: 4})

		// And back: what it has itself is not older than what was followed before.
		r.active(false)
		if refused := r.follow(tableOf("web", 3, 20)); len(refused) != 1 || refused[0].Held != (lb.Epoch{Term: 4}) {
			t.Errorf("an older table is refused with %v", refused)
		}
		if refused := r.follow(tableOf("web", 5, 0)); len(refused) != 0 {
			t.Errorf("refused %v", refused)
		}
		if diff := cmp.Diff([]netip.Addr(nil), foreignAddresses(r.followed), cmpAddresses); diff != "" {
			t.Errorf("ways that are followed still (-want +got):\n%s", diff)
		}
	})
}

// A table that comes while this node waits for another one is followed by the write
// that this is for.
func TestTableComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mail := webService()
		mail.Name, mail.Addresses = "mail", []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.101:25"))}
		r := newShareRig(t, file(t), mail, webService())
		r.mu.Lock()
		r.vips[netip.MustParseAddr("192.0.2.101")] = false
		r.mu.Unlock()
		r.active(true)
		r.peer.set(func(p *fakePeer) { p.takes = 100 * time.Millisecond })
		r.change(8, "web")
		time.Sleep(50 * time.Millisecond)
		_, before := r.counts()
		if refused := r.follow(tableOf("mail", 3, 1)); len(refused) > 0 {
			t.Fatalf("refused %v", refused)
		}
		time.Sleep(time.Second)
		r.fakeWorld.mu.Lock()
		defer r.fakeWorld.mu.Unlock()
		for _, s := range r.applied[before:] {
			if !s.Services[0].Followed || s.Services[1].Followed {
				t.Errorf("a snapshot after it follows: mail %v, web %v", s.Services[0].Followed, s.Services[1].Followed)
			}
		}
		if len(r.applied) == before {
			t.Error("the change has not been written")
		}
	})
}

// A table that comes in the moment in which this node becomes Active does not stay.
func TestTableComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		_, before := r.counts()
		r.mu.Lock()
		r.vips[vip] = true
		r.mu.Unlock()
		r.follow(tableOf("web", 3, 1))
		if _, after := r.counts(); len(r.adopted) != 1 || after != before+1 || r.last(t).Services[0].Followed {
			t.Errorf("%d tables adopted, %d writes, followed %v", len(r.adopted), after-before, r.last(t).Services[0].Followed)
		}
		r.wantEpochs("web 4.0")
	})
}

// foreignAddresses are those that the service does not have.
func foreignAddresses(as []netip.Addr) (foreign []netip.Addr) {
	for _, a := range as {
		if !slices.ContainsFunc(webService().Pool.Servers, func(s lb.Server) bool { return s.Address == a }) {
			foreign = append(foreign, a)
		}
	}
	return foreign
}

func TestTablesThatAreNotFollowed(t *testing.T) {
	split := webService()
	split.Addresses = append(split.Addresses, lb.FrontendOf(netip.MustParseAddrPort("[2001:db8::100]:80")))
	for _, tc := range []struct {
		name    string
		service lb.Service
		vips    map[netip.Addr]bool
		table   lb.TableState
		misfit  string
		why     string
		later   bool
		problem string
	}{
		{"older", webService(), nil, tableOf("web", 3, 6), "", "epoch 3.6, and 3.7 is here", false, ""},
		{"the same again", webService(), nil, tableOf("web", 3, 7), "", "", false, ""},
		{"no such service", webService(), nil, tableOf("mail", 9, 9), "", "no such service", false, ""},
		{"this node is Active", webService(), map[netip.Addr]bool{vip: true}, tableOf("web", 9, 9), "", "active for its VIPs itself", true, ""},
		{"VRRP does not move it", webService(), map[netip.Addr]bool{}, tableOf("web", 9, 9), "", "moves none of its VIPs", false, ""},
		{"one of two VIPs is here", split, map[netip.Addr]bool{vip: true, netip.MustParseAddr("2001:db8::100"): false},
			tableOf("web", 9, 9), "", "another node is active for one of its VIPs", true, "another node is active for one of its VIPs"},
		{"it does not fit", webService(), nil, tableOf("web", 9, 9), "251 slots", "251 slots", false, "the table of lb2 is not followed: 251 slots"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), tc.service)
				if refused := r.follow(tableOf("web", 3, 7)); len(refused) > 0 && tc.service.Name == "web" && len(tc.service.Addresses) == 1 {
					t.Fatalf("refused %v", refused)
				}
				if tc.vips != nil {
					r.mu.Lock()
					r.vips = tc.vips
					r.mu.Unlock()
					r.loop.Dirty()
					synctest.Wait()
				}
				r.fakeWorld.mu.Lock()
				if tc.misfit != "" {
					r.misfits = []loader.RefusedTable{{Service: "web", Why: tc.misfit}}
				}
				r.fakeWorld.mu.Unlock()
				refused := r.follow(tc.table)
				if (len(refused) == 1) != (tc.why != "") || tc.why != "" && !strings.Contains(refused[0].Why, tc.why) || len(refused) == 1 && refused[0].Later != tc.later {
					t.Errorf("refused %+v, want %q", refused, tc.why)
				}
				if got := r.table().Problem; !strings.Contains(got, tc.problem) || (got == "") != (tc.problem == "") {
					t.Errorf("problem %q, want %q", got, tc.problem)
				}
				if tc.problem != "" && r.last(t).Services[0].Followed {
					t.Error("it is followed still")
				}
				var alarms []AlarmKind
				if tc.problem != "" || tc.table.Service == "mail" {
					alarms = []AlarmKind{AlarmTableDiffers}
				}
				var got []AlarmKind
				for _, a := range r.loop.Alarms() {
					got = append(got, a.Kind)
				}
				if diff := cmp.Diff(alarms, got); diff != "" {
					t.Errorf("alarms (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A table that could not be written is not taken for one that is followed.
func TestTableThatIsNotAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		r.unfit = errRefused
		if _, err := r.loop.Follow(t.Context(), "lb2", []lb.TableState{tableOf("web", 1, 1)}); !errors.Is(err, errRefused) {
			t.Errorf("got %v", err)
		}
		r.wantTable(TableStatus{Role: RoleBackup})
	})
}

// A daemon that starts anew goes on with what the one before held: whose table is in
// the kernel's, and which terms there have been.
func TestEpochsOutliveTheDaemon(t *testing.T) {
	kept := file(t)
	run := func(name string, f func(*shareRig)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(newShareRig(t, kept, webService())) })
		})
	}
	run("it follows", func(r *shareRig) { r.follow(tableOf("web", 5, 3)) })
	run("it goes on following", func(r *shareRig) {
		if !r.last(r.T).Services[0].Followed {
			r.Error("the first snapshot does not follow")
		}
		if refused := r.follow(tableOf("web", 4, 9)); len(refused) != 1 {
			r.Error("a table of an earlier term is not refused")
		}
		if refused := r.follow(tableOf("web", 5, 3)); len(refused) != 0 {
			r.Errorf("refused %v", refused)
		}
	})
	run("it takes over", func(r *shareRig) { r.active(true); r.wantEpochs("web 6.0") })
	run("and again", func(r *shareRig) {
		if r.last(r.T).Services[0].Followed {
			r.Error("it follows, and had a table of its own")
		}
		r.active(true)
		r.wantEpochs("web 7.0")
	})
	run("it follows again", func(r *shareRig) { r.follow(tableOf("web", 8, 0)) })
	t.Run("the data plane is another one", func(t *testing.T) {
		e, err := OpenEpochs(kept, true)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.of("web"); got.Peer != "" || got.Term != 8 {
			t.Errorf("got %+v", got)
		}
	})
}
