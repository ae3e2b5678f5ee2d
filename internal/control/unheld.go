package control

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An unheldTable is one that a peer has in force, and this node has not, though it may
// when the peer sends it again, which it does; or that each of both has its own of.
type unheldTable struct {
	why     string
	epoch   lb.Epoch
	serving []netip.AddrPort // the backends that the peer reaches
	// at is when it came last; zero: it was followed until each node had its own, and is not
	// sent again while that is so. Then the other node's comes, or this one's is in force.
	at time.Time
}

// Whose table it is, and of which service: each of several peers may have one.
type unheldKey struct{ service, peer string }

// heard takes note of what has become of a peer's tables.
func (x *sharing) heard(peer string, tables []lb.TableState, refused []RefusedTable, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, table := range tables {
		why := ""
		if err != nil {
			why = err.Error()
		}
		for _, r := range refused {
			t := x.tables[r.Service]
			// One that is older than what is held is sent again, in a later term.
			older := table.Epoch.Less(r.Held) && t != nil && t.peer != peer
			if r.Service == table.Service && (r.Later || older) {
				why = r.Why
			}
		}
		x.hold(peer, table, why)
	}
}

// hold notes why a peer's table is not in force here; "": it is, or never will be.
func (x *sharing) hold(peer string, table lb.TableState, why string) {
	key, t := unheldKey{table.Service, peer}, x.tables[table.Service]
	if why != "" {
		u := unheldTable{why, table.Epoch, servingIn(table), time.Now()}
		if t != nil && t.role == RoleSplit {
			u.at = time.Time{}
		}
		x.unheld[key] = u
		return
	}
	delete(x.unheld, key)
	if t == nil || t.peer != peer {
		return
	}
	// Its node is Active now: what another one had before is over.
	maps.DeleteFunc(x.unheld, func(other unheldKey, u unheldTable) bool {
		return other.service == table.Service && u.epoch.Less(table.Epoch)
	})
}

// servingIn returns the backends of a table that its node reaches.
func servingIn(table lb.TableState) []netip.AddrPort {
	var all []netip.AddrPort
	for _, b := range table.Backends {
		if !b.Failed {
			all = append(all, b.Address)
		}
	}
	return all
}

// Unready says what a peer has by its tables and this node has not, so that connections
// would move or end if this node were Active in its place; "": nothing.
func (l *Loop) Unready(peer string) string {
	if l.sharing == nil {
		return ""
	}
	if why := l.sharing.lacking(peer); why != "" {
		return why
	}
	return l.unreached(peer)
}

// lacking names a table of a peer's that is to come into force here, and is not yet.
func (x *sharing) lacking(peer string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var lacking []string
	for key := range x.unheld {
		if t := x.tables[key.service]; key.peer == peer && (t == nil || t.role == RoleBackup) {
			lacking = append(lacking, key.service)
		}
	}
	if len(lacking) == 0 {
		return ""
	}
	name := slices.Min(lacking)
	return fmt.Sprintf("the table of service %s that %s has is not in force here: %s", name, peer, x.unheld[unheldKey{name, peer}].why)
}

// unreached names a server that a peer reaches, by its table, and that this node does not,
// or not as far as it knows yet.
func (l *Loop) unreached(peer string) string {
	views, _ := l.Views()
	x := l.sharing
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, v := range views {
		t := x.tables[v.Service.Name]
		if t == nil {
			continue
		}
		serving := t.serving
		if t.peer != peer {
			u, unheld := x.unheld[unheldKey{v.Service.Name, peer}]
			if !unheld || t.role == RoleActive {
				continue
			}
			serving = u.serving
		}
		for _, s := range v.Servers {
			away := s.State == ServerDown || s.State == ServerNoRoute || s.State == ServerUnknown
			if away && slices.Contains(serving, s.Address) {
				return fmt.Sprintf("%v of service %s, which %s reaches: %s", s.Address, v.Service.Name, peer, s.Why)
			}
		}
	}
	return ""
}
