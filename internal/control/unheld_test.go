package control

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A node that does not reach a server of another one's must not take its place.
func TestUnreached(t *testing.T) {
	const server = "192.0.2.12:80"
	for _, tc := range []struct {
		name   string
		change func(*shareRig, *lb.TableState)
		want   string
	}{
		{"it reaches all", func(*shareRig, *lb.TableState) {}, ""},
		{"it does not", func(r *shareRig, _ *lb.TableState) { r.say(server, health.Down) }, "192.0.2.12:80 of service web, which lb2 reaches: "},
		{"it is silent so far", func(r *shareRig, _ *lb.TableState) { r.fails(server) }, "192.0.2.12:80 of service web, which lb2 reaches: "},
		{"there is no way to it", func(r *shareRig, _ *lb.TableState) { r.mislead("192.0.2.12") }, "192.0.2.12:80 of service web, which lb2 reaches: "},
		{"nor does the other one", func(r *shareRig, t *lb.TableState) {
			r.say(server, health.Down)
			t.Backends[0].Failed = true
		}, ""},
		{"another one, which the other has not", func(r *shareRig, _ *lb.TableState) { r.say("192.0.2.11:80", health.Down) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), webService())
				table := tableOf("web", 3, 14)
				tc.change(r, &table)
				if why := r.loop.Unready("lb2"); why != "" {
					t.Errorf("before any table: %q", why)
				}
				r.follow(table)
				r.loop.Dirty()
				synctest.Wait()
				if why := r.loop.Unready("lb2"); !strings.HasPrefix(why, tc.want) || (why == "") != (tc.want == "") {
					t.Errorf("got %q, want %q", why, tc.want)
				}
				if why := r.loop.Unready("lb3"); why != "" {
					t.Errorf("of a node that is not followed: %q", why)
				}
			})
		})
	}
}

// A table of the other node's that is refused, and is to come again, is one that this node
// lacks: without it, it must not take the other one's place either.
func TestUnheld(t *testing.T) {
	for _, tc := range []struct {
		name string
		// come has the table come, which is refused, and goes, the node be Backup again, or
		// what kept it from it be over.
		come, goes func(*shareRig)
		want       string
	}{
		{"it is followed", func(r *shareRig) { r.follow(tableOf("web", 9, 9)) }, nil, ""},
		{"this node was Active when it came", func(r *shareRig) {
			r.active(true)
			r.follow(tableOf("web", 9, 9))
			if why := r.loop.Unready("lb2"); why != "" {
				r.Errorf("as the Active node it lacks %q", why)
			}
			r.active(false)
		}, nil, "this node is active for its VIPs itself"},
		{"it could not be written", func(r *shareRig) {
			r.unfit = errRefused
			if _, err := r.loop.Follow(r.Context(), "lb2", []lb.TableState{tableOf("web", 9, 9)}); err == nil {
				r.Error("it is followed")
			}
		}, func(r *shareRig) { r.unfit = nil }, errRefused.Error()},
		{"it is older than this node's own", func(r *shareRig) {
			r.active(true)
			r.active(false)
			r.follow(tableOf("web", 0, 9))
		}, nil, "it is older than the one that is held"},
		{"an older one comes after the one that is followed", func(r *shareRig) {
			r.follow(tableOf("web", 9, 9))
			r.follow(tableOf("web", 9, 8))
		}, nil, ""},
		{"the nodes differ", func(r *shareRig) {
			r.misfits = []loader.RefusedTable{{Service: "web", Why: "251 slots"}}
			r.follow(tableOf("web", 9, 9))
		}, func(r *shareRig) { r.misfits = nil }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), webService())
				tc.come(r)
				why := r.loop.Unready("lb2")
				if !strings.Contains(why, tc.want) || (why == "") != (tc.want == "") ||
					tc.want != "" && !strings.HasPrefix(why, "the table of service web that lb2 has is not in force here: ") {
					t.Errorf("it lacks %q, want %q", why, tc.want)
				}
				if why := r.loop.Unready("lb3"); why != "" {
					t.Errorf("of another node it lacks %q", why)
				}
				time.Sleep(4 * tryAgain)
				if why := r.loop.Unready("lb2"); why != "" {
					t.Errorf("it lacks %q, which does not come again", why)
				}
				tc.come(r)
				if tc.goes != nil {
					tc.goes(r)
				}
				if refused := r.follow(tableOf("web", 20, 0)); len(refused) > 0 {
					t.Fatalf("refused %v", refused)
				}
				if why := r.loop.Unready("lb2"); why != "" {
					t.Errorf("when it has come again it lacks %q", why)
				}
			})
		})
	}
}

// What one of two peers has says nothing of what the other one has.
func TestUnheldOfTwoPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig(t, file(t), webService())
		r.unfit = errRefused
		for _, peer := range []string{"lb2", "lb3"} {
			if _, err := r.loop.Follow(r.Context(), peer, []lb.TableState{tableOf("web", 9, 9)}); err == nil {
				t.Fatalf("that of %s is followed", peer)
			}
		}
		r.unfit = nil
		if refused, err := r.loop.Follow(r.Context(), "lb3", []lb.TableState{tableOf("web", 9, 9)}); err != nil || len(refused) > 0 {
			t.Fatalf("refused %v, %v", refused, err)
		}
		if why := r.loop.Unready("lb2"); !strings.Contains(why, "service web that lb2 has") {
			t.Errorf("of lb2 it lacks %q", why)
		}
		if why := r.loop.Unready("lb3"); why != "" {
			t.Errorf("of lb3 it lacks %q", why)
		}
		// A later one says that the others' are over.
		if refused, err := r.loop.Follow(r.Context(), "lb3", []lb.TableState{tableOf("web", 10, 1)}); err != nil || len(refused) > 0 {
			t.Fatalf("refused %v, %v", refused, err)
		}
		if why := r.loop.Unready("lb2"); why != "" {
			t.Errorf("of lb2 it still lacks %q", why)
		}
	})
}

// So is one that comes before the services are in force.
func TestUnheldBeforeTheLoopRuns(t *testing.T) {
	epochs, err := OpenEpochs(file(t), false)
	if err != nil {
		t.Fatal(err)
	}
	w := newFakeWorld()
	l := NewLoop([]lb.Service{webService()}, w, fakeChecker{w}, fakeHops{w}, fakePaths{w}, w.changes, slog.New(slog.DiscardHandler))
	l.Share(Exchange{Publisher: &fakePeer{}, VIPs: func() map[netip.Addr]bool { return map[netip.Addr]bool{vip: false} }, Epochs: epochs})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Follow(ctx, "lb2", []lb.TableState{tableOf("web", 1, 1)}); err == nil {
		t.Fatal("it is followed")
	}
	if why := l.Unready("lb2"); !strings.Contains(why, "service web that lb2 has") {
		t.Errorf("it lacks %q", why)
	}
}

// Where each node has a table of its own, what the other one reaches counts all the same.
func TestUnreachedWhereNodesShareAService(t *testing.T) {
	split, second := webService(), netip.MustParseAddr("2001:db8::100")
	split.Addresses = append(split.Addresses, lb.FrontendOf(netip.AddrPortFrom(second, 80)))
	for _, tc := range []struct {
		name   string
		before bool // the table came when this node followed it still
	}{
		{"it was followed", true},
		{"it came later", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), split)
				r.mu.Lock()
				r.vips[second] = false
				r.mu.Unlock()
				if tc.before {
					r.follow(tableOf("web", 3, 7))
				}
				r.active(true) // for one of both
				if !tc.before {
					r.follow(tableOf("web", 3, 7))
				}
				if got := r.table(); got.Role != RoleSplit || got.Follows != "" {
					t.Fatalf("the table is %+v", got)
				}
				if why := r.loop.Unready("lb2"); why != "" {
					t.Errorf("it lacks %q, though it reaches all", why)
				}
				time.Sleep(24 * time.Hour) // it does not come again
				r.say("192.0.2.12:80", health.Down)
				synctest.Wait()
				if why := r.loop.Unready("lb2"); !strings.HasPrefix(why, "192.0.2.12:80 of service web, which lb2 reaches: ") {
					t.Errorf("it lacks %q", why)
				}
			})
		})
	}
}

// It counts no longer than that: the Active node's table comes when this node is Backup,
// and this one's is in force when it is Active.
func TestUnreachedWhereNodesShareNoMore(t *testing.T) {
	split, second := webService(), netip.MustParseAddr("2001:db8::100")
	split.Addresses = append(split.Addresses, lb.FrontendOf(netip.AddrPortFrom(second, 80)))
	for _, tc := range []struct {
		name string
		both bool // this node is Active for both VIPs meanwhile
	}{
		{"this node was Active for both", true},
		{"the other one is", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newShareRig(t, file(t), split)
				become := func(one, two bool) {
					r.mu.Lock()
					r.vips[second] = two
					r.mu.Unlock()
					r.active(one)
				}
				become(false, false)
				r.follow(tableOf("web", 3, 7))
				become(true, false)
				if tc.both {
					become(true, true)
					time.Sleep(24 * time.Hour)
					become(true, false)
					r.say("192.0.2.12:80", health.Down)
					synctest.Wait()
					if why := r.loop.Unready("lb2"); why != "" {
						t.Errorf("a day later, each has one of both: it lacks %q", why)
					}
				}
				become(false, false)
				if why := r.loop.Unready("lb2"); why != "" {
					t.Errorf("as Backup it lacks %q", why)
				}
			})
		})
	}
}
