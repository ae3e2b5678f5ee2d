package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A RefusedTable is a table of another node's that is not followed, and why.
type RefusedTable struct {
	Service string
	Why     string
	Held    lb.Epoch // of the one that is in force here
	Later   bool     // it may be followed when it is sent again: the nodes do not differ
}

// A following is a call of Follow.
type following struct {
	peer   string
	tables []lb.TableState
	done   chan followed // has room for the result
}

type followed struct {
	refused []RefusedTable
	err     error
}

// errAlone is the error of Follow where tables are not shared.
var errAlone = errors.New("this node has no tables in common with others")

// Follow makes tables of another node's, which is Active for their VIPs, those that are
// in force here, and returns when they are: then the other node may rely on them. Peer
// is its name. Tables that are refused are no error. It waits until the data plane
// holds the services.
func (l *Loop) Follow(ctx context.Context, peer string, tables []lb.TableState) ([]RefusedTable, error) {
	if l.sharing == nil {
		return nil, errAlone
	}
	refused, err := l.ask(ctx, peer, tables)
	l.sharing.heard(peer, tables, refused, err)
	return refused, err
}

// ask is Follow, where tables are shared.
func (l *Loop) ask(ctx context.Context, peer string, tables []lb.TableState) ([]RefusedTable, error) {
	f := &following{peer: peer, tables: tables, done: make(chan followed, 1)}
	select {
	case l.sharing.follows <- f:
	case <-ctx.Done():
		return nil, fmt.Errorf("follow the tables of %s: %w", peer, ctx.Err())
	}
	select {
	case r := <-f.done:
		return r.refused, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("follow the tables of %s: %w", peer, ctx.Err())
	}
}

// takeIn answers a call of Follow.
func (l *Loop) takeIn(f *following) {
	refused, err := l.adoptFrom(f.peer, f.tables)
	f.done <- followed{refused, err}
}

func (l *Loop) adoptFrom(peer string, tables []lb.TableState) ([]RefusedTable, error) {
	wanted, refused := l.chooseTables(peer, tables)
	if len(wanted) == 0 {
		return refused, nil
	}
	l.sharing.adopted = true
	misfits, err := l.tables.AdoptTables(wanted)
	if err != nil {
		l.log.Error("the tables of another node could not be adopted", "peer", peer, "error", err)
		return refused, fmt.Errorf("adopt the tables of %s: %w", peer, err)
	}
	x := l.sharing
	defer l.saveEpochs()
	x.mu.Lock()
	defer x.mu.Unlock()
	why := map[string]string{}
	for _, m := range misfits {
		why[m.Service] = m.Why
	}
	changed := false
	for _, table := range wanted {
		t := x.tables[table.Service]
		was := *t
		if text := why[table.Service]; text != "" {
			t.peer, t.problem, t.foreign, t.serving = "", fmt.Sprintf("the table of %s is not followed: %s", peer, text), nil, nil
			refused = append(refused, RefusedTable{Service: table.Service, Why: text, Held: t.epoch})
		} else {
			t.peer, t.problem, t.foreign, t.serving = peer, "", foreignOf(l.services, table), servingIn(table)
			t.epoch = table.Epoch
		}
		t.seen = max(t.seen, table.Epoch.Term)
		if was.peer != t.peer || was.problem != t.problem {
			l.log.Info("whose table of a service is in force", "service", table.Service, "node", t.peer, "term", t.epoch.Term, "problem", t.problem)
		}
		changed = changed || !slices.Equal(was.foreign, t.foreign)
		l.keep(table.Service, t)
	}
	if changed {
		x.moved = true
	}
	return refused, nil
}

// chooseTables returns the tables that may be followed, and why the others are not.
func (l *Loop) chooseTables(peer string, tables []lb.TableState) (wanted []lb.TableState, refused []RefusedTable) {
	x := l.sharing
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, table := range tables {
		t := x.tables[table.Service]
		why, later := "", false
		switch {
		case t == nil:
			why = "there is no such service here: give both nodes the same configuration"
			x.strange[table.Service] = strangeTable{peer, time.Now()}
		case t.role == RoleActive:
			t.seen = max(t.seen, table.Epoch.Term)
			why, later = "this node is active for its VIPs itself", true
		case t.role == RoleOwn:
			why = "VRRP moves none of its VIPs here: give both nodes the same configuration"
		case t.role == RoleSplit:
			why, later = t.problem, true
		case table.Epoch.Less(t.epoch):
			why = fmt.Sprintf("it is older than the one that is held: epoch %s, and %s is here", epochText(table.Epoch), epochText(t.epoch))
		default:
			wanted = append(wanted, table)
			continue
		}
		r := RefusedTable{Service: table.Service, Why: why, Later: later}
		if t != nil {
			r.Held = t.epoch
		}
		refused = append(refused, r)
	}
	return wanted, refused
}

// foreignOf returns the backends of a table that its service does not have here.
func foreignOf(services []lb.Service, table lb.TableState) []netip.AddrPort {
	here := map[netip.AddrPort]bool{}
	for _, s := range services {
		if s.Name == table.Service {
			for _, server := range s.Pool.Servers {
				here[endpoint(s, server)] = true
			}
		}
	}
	var all []netip.AddrPort
	for _, b := range table.Backends {
		if !here[b.Address] && !b.Failed {
			all = append(all, b.Address)
		}
	}
	return all
}

func epochText(e lb.Epoch) string { return fmt.Sprintf("%d.%d", e.Term, e.Number) }

// A TableStatus is how a service's table stands between the nodes.
type TableStatus struct {
	Role   Role   `json:"role"`
	Term   uint64 `json:"term"`
	Number uint64 `json:"number"`
	// Follows is the node whose table is in force here.
	Follows string `json:"follows,omitempty"`
	// Problem says why none is followed, or why a failover may move connections.
	Problem string `json:"problem,omitempty"`
}

// String says it in a line.
func (t TableStatus) String() string {
	epoch := epochText(lb.Epoch{Term: t.Term, Number: t.Number})
	switch {
	case t.Role == RoleActive && t.Problem != "":
		return fmt.Sprintf("this node's, epoch %s; the other nodes do not follow it, or not yet", epoch)
	case t.Role == RoleActive:
		return fmt.Sprintf("this node's, epoch %s; the other nodes follow it", epoch)
	case t.Follows != "":
		return fmt.Sprintf("that of %s, epoch %s", t.Follows, epoch)
	case t.Role == RoleBackup:
		return "this node's own: that of the active node has not come yet"
	}
	return "this node's own"
}

// addTables tells how the tables of services stand between the nodes, where any is
// shared.
func (l *Loop) addTables(services []ServiceStatus) {
	x := l.sharing
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range services {
		t := x.tables[services[i].Name]
		if t == nil {
			continue
		}
		s := TableStatus{Role: t.role, Term: t.epoch.Term, Number: t.epoch.Number, Follows: t.peer, Problem: t.problem}
		if late, is := x.late[services[i].Name]; is {
			s.Problem = lateText(late)
		}
		services[i].Table = &s
	}
}

// Services describes the services as they are now, by what the data plane has counted; not
// known: they are not in force yet. What a view says of a server has been written before, so
// the counters are read after the views. After an error they are those that could be read.
func (l *Loop) Services() (services []ServiceStatus, stats loader.Stats, known bool, err error) {
	views, _ := l.Views()
	if known = views != nil; !known {
		views = []View{}
	}
	stats, err = l.tables.Stats()
	services = Services(views, stats)
	l.rates.add(services, time.Now())
	l.addTables(services)
	return services, stats, known, err
}

func lateText(t lateTable) string {
	return fmt.Sprintf("its table %s is in force, and %s: a failover now may move connections; look at what `sluice status` says of the other node", epochText(t.epoch), t.why)
}

// tableAlarms are about tables that the other nodes have not adopted.
func (l *Loop) tableAlarms() []Alarm {
	x := l.sharing
	if x == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []Alarm
	for name, t := range x.late {
		all = append(all, Alarm{Kind: AlarmTableSync, Service: name, Text: fmt.Sprintf("service %s: %s", name, lateText(t))})
	}
	for name, t := range x.tables {
		if t.problem != "" {
			all = append(all, Alarm{Kind: AlarmTableDiffers, Service: name, Text: fmt.Sprintf("service %s: %s", name, t.problem)})
		}
	}
	for name, s := range x.strange {
		all = append(all, Alarm{Kind: AlarmTableDiffers, Service: name, Peer: s.peer, Text: fmt.Sprintf(
			"%s has a service %s, which is not here: its table is not followed; give both nodes the same configuration", s.peer, name)})
	}
	slices.SortFunc(all, func(a, b Alarm) int { return strings.Compare(a.Text, b.Text) })
	return all
}
