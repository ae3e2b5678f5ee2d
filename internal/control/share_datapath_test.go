package control

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

// A realTables is a fakeWorld with a data plane in the kernel.
type realTables struct {
	*fakeWorld
	*loader.Datapath
}

func (r realTables) Apply(s lb.Snapshot) error { return r.Datapath.Apply(s) }
func (r realTables) RefreshInterfaces() error  { return nil }
func (r realTables) Maintain() error           { return r.Datapath.Maintain() }
func (r realTables) Preview(s lb.Snapshot) ([]lb.TableState, error) {
	return r.Datapath.Preview(s)
}
func (r realTables) TableStates() []lb.TableState { return r.Datapath.TableStates() }
func (r realTables) AdoptTables(t []lb.TableState) ([]loader.RefusedTable, error) {
	return r.Datapath.AdoptTables(t)
}
func (r realTables) Stats() (loader.Stats, error) { return r.Datapath.Stats() }
func (r realTables) Traffic() (map[loader.ServiceBackend]loader.Traffic, error) {
	return r.Datapath.Traffic()
}
func (r realTables) Usage() ([]loader.Usage, error) { return r.Datapath.Usage() }

// ownersOf are the owners and previous owners of a table's slots.
func ownersOf(t lb.TableState) [][2]netip.AddrPort {
	at := func(i uint16) (a netip.AddrPort) {
		if i > 0 {
			a = t.Backends[i-1].Address
		}
		return a
	}
	var all [][2]netip.AddrPort
	for _, s := range t.Slots {
		all = append(all, [2]netip.AddrPort{at(s.Owner), at(s.Previous)})
	}
	return all
}

// Two nodes with data planes in the kernel have one table, whoever is Active and
// whatever each of them finds of the servers.
func TestTwoNodesHaveOneTable(t *testing.T) {
	testenv.RequireRoot(t)
	web := webService()
	web.TableSize, web.TrackWindow, web.DrainTimeout = 251, 5*time.Minute, time.Hour
	web.Pool.Servers = append(web.Pool.Servers, lb.Server{Address: netip.MustParseAddr("192.0.2.13"), Weight: 1})
	synctest.Test(t, func(t *testing.T) {
		start := func() *shareRig {
			d, err := loader.Open(loader.Options{MaxFlows: 1024, Ports: lb.PortRange{First: 1024, Last: 65535}, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() }) // nothing of it is pinned
			w := newFakeWorld()
			r := newShareRigWith(t, file(t), w, realTables{w, d}, web)
			w.know("192.0.2.13:80", health.Up)
			w.lead("192.0.2.13", 13)
			r.loop.Dirty()
			return r
		}
		a, b := start(), start()
		for _, pair := range [][2]*shareRig{{a, b}, {b, a}} {
			pair[0].peer.set(func(p *fakePeer) {
				p.deliver = func(ctx context.Context, tables []lb.TableState) error {
					refused, err := pair[1].loop.Follow(ctx, "other", tables)
					if err == nil && len(refused) > 0 {
						err = &RefusedError{"other", refused}
					}
					return err
				}
			})
		}
		same := func(what string, servers int) {
			t.Helper()
			time.Sleep(3 * time.Second) // what was refused at first is sent again
			synctest.Wait()
			there, here := a.loop.tables.TableStates()[0], b.loop.tables.TableStates()[0]
			if diff := cmp.Diff(ownersOf(there), ownersOf(here), cmpAddresses); diff != "" {
				t.Fatalf("%s: slots (-there +here):\n%.1500s", what, diff)
			}
			owners := map[netip.AddrPort]bool{}
			for _, o := range ownersOf(there) {
				owners[o[0]] = true
			}
			if len(owners) != servers {
				t.Errorf("%s: slots are of %v, want %d servers", what, owners, servers)
			}
		}
		a.active(true)
		same("at the beginning", 2)
		b.say("192.0.2.12:80", health.Down)
		same("a server fails for the Backup", 2)
		a.say("192.0.2.13:80", health.Down)
		same("another one for the Active node", 1)
		a.say("192.0.2.13:80", health.Up)
		same("it is back", 2)
		a.active(false)
		b.active(true)
		same("a takeover", 1)
		b.say("192.0.2.12:80", health.Up)
		same("all is well", 2)
		a.active(true) // the other one hears of it later
		b.active(false)
		same("back again", 2)
		a.wantTable(TableStatus{Role: RoleActive, Term: a.table().Term, Number: a.table().Number})
		if got := b.table(); got.Follows != "other" || got.Term != a.table().Term || got.Term < 3 || got.Problem != "" {
			t.Errorf("the Backup has %+v, the Active node %+v", got, a.table())
		}
	})
}
