package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// announce brings the tables that a snapshot changes to the other nodes before they are
// in force here, and waits for them, but not for long.
//
// It returns the services that a node which connects meanwhile has to get once more:
// what it began with is not in force any more.
func (l *Loop) announce(ctx context.Context, last, next lb.Snapshot) (unsaid []string) {
	x := l.sharing
	if x == nil {
		return nil
	}
	if !x.Publisher.Connected() {
		for _, s := range next.Services {
			unsaid = append(unsaid, s.Name)
		}
		return unsaid
	}
	tables, err := l.tables.Preview(next)
	if err != nil {
		return nil // Apply will say so
	}
	wait := publishWait
	tables = x.number(tables)
	if len(tables) == 0 {
		return nil
	}
	if failsNow(last, next, tables) {
		wait = failureWait
	}
	number := l.send(ctx, tables)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-x.follows: // the other node may be waiting for this one
			l.takeIn(f)
			if x.moved {
				l.lead()
			}
		case a := <-x.acks:
			if l.acknowledged(a); a.number == number {
				return nil
			}
		case <-timer.C:
			l.overdue(tables, fmt.Sprintf("another node has not adopted it within %v", wait))
			return nil
		}
	}
}

// number gives the tables that others follow their epochs, and leaves the others out.
func (x *sharing) number(tables []lb.TableState) []lb.TableState {
	x.mu.Lock()
	defer x.mu.Unlock()
	var mine []lb.TableState
	for _, table := range tables {
		if t := x.tables[table.Service]; t != nil && t.role == RoleActive {
			t.epoch.Number++
			table.Epoch = t.epoch
			mine = append(mine, table)
		}
	}
	return mine
}

// failsNow tells whether a backend of one of the tables fails with the change.
func failsNow(last, next lb.Snapshot, tables []lb.TableState) bool {
	failed := map[string]map[netip.AddrPort]bool{}
	for _, s := range last.Services {
		failed[s.Name] = map[netip.AddrPort]bool{}
		for _, b := range s.Backends {
			failed[s.Name][b.Address] = b.Failed
		}
	}
	for _, s := range next.Services {
		if !slices.ContainsFunc(tables, func(t lb.TableState) bool { return t.Service == s.Name }) {
			continue
		}
		for _, b := range s.Backends {
			if was, ok := failed[s.Name][b.Address]; b.Failed && ok && !was {
				return true
			}
		}
	}
	return false
}

// send publishes tables, beside all else, and returns the number that their ack has.
func (l *Loop) send(ctx context.Context, tables []lb.TableState) int {
	x := l.sharing
	x.sent++
	a := ack{number: x.sent, tables: map[string]lb.Epoch{}}
	for _, t := range tables {
		a.tables[t.Service] = t.Epoch
	}
	x.mu.Lock()
	x.flights++
	x.mu.Unlock()
	x.sending.Go(func() {
		given, cancel := context.WithTimeout(ctx, publishGiven)
		defer cancel()
		a.err = x.Publisher.Publish(given, tables)
		select {
		case x.acks <- a:
		case <-ctx.Done():
		}
	})
	return a.number
}

// acknowledged takes note of what other nodes have said of tables.
func (l *Loop) acknowledged(a ack) {
	x := l.sharing
	defer l.saveEpochs()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.flights--
	refused := map[string]RefusedTable{}
	var refusal *RefusedError
	if errors.As(a.err, &refusal) {
		for _, r := range refusal.Tables {
			refused[r.Service] = r
		}
	}
	for name, epoch := range a.tables {
		t := x.tables[name]
		if t == nil || t.role != RoleActive || epoch.Less(t.epoch) {
			continue // there is a later one
		}
		r, is := refused[name]
		_, late := x.late[name]
		t.problem = ""
		switch {
		case is && t.epoch.Less(r.Held):
			t.seen = r.Held.Term
			t.rise()
			l.keep(name, t)
			x.late[name] = lateTable{t.epoch, refusal.Peer + " holds a later one"} // it is sent again
		case is && r.Later:
			x.late[name] = lateTable{epoch, refusal.Peer + " does not follow it: " + r.Why}
		case is:
			t.refused = time.Now()
			t.problem = fmt.Sprintf("%s does not follow this node's table, and a failover may move connections: %s", refusal.Peer, r.Why)
			delete(x.late, name)
		case refusal == nil && a.err != nil:
			x.late[name] = lateTable{epoch, a.err.Error()}
		case late:
			delete(x.late, name)
			l.log.Info("the table of a service has been adopted by the other nodes", "service", name)
		}
	}
}

// overdue makes alarms of tables that have not been acknowledged in time.
func (l *Loop) overdue(tables []lb.TableState, why string) {
	x := l.sharing
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range tables {
		if _, is := x.late[t.Service]; !is {
			l.log.Warn("the table of a service is in force here before the other nodes have adopted it: a failover now may move connections", "service", t.Service, "why", why)
		}
		x.late[t.Service] = lateTable{t.Epoch, why}
	}
}

// bring sends tables of some services that are in force to the other nodes, without
// waiting. Who is not there gets them when it comes.
func (l *Loop) bring(ctx context.Context, services []string) {
	if l.sharing == nil || len(services) == 0 || !l.sharing.Publisher.Connected() {
		return
	}
	if tables := l.publishedTables(services); len(tables) > 0 {
		l.send(ctx, tables)
	}
}

// sendAgain does so with those that are late and, now and then, with those that the
// other nodes do not follow: their configuration may be another one by now. It also
// forgets what other nodes have not sent again.
func (l *Loop) sendAgain(ctx context.Context, now time.Time) {
	x := l.sharing
	if x == nil {
		return
	}
	x.mu.Lock()
	maps.DeleteFunc(x.strange, func(_ string, s strangeTable) bool { return now.Sub(s.at) > 3*tryAgain })
	maps.DeleteFunc(x.unheld, func(_ unheldKey, u unheldTable) bool { return !u.at.IsZero() && now.Sub(u.at) > 3*tryAgain })
	connected := x.Publisher.Connected()
	var again []string
	for name, t := range x.tables {
		_, late := x.late[name]
		switch {
		case t.role != RoleActive:
		case !connected: // that nobody is there the exchange says itself
			delete(x.late, name)
			t.problem = ""
		case x.flights > 0:
		case late, t.problem != "" && now.Sub(t.refused) >= tryAgain:
			again = append(again, name)
		}
	}
	x.mu.Unlock()
	slices.Sort(again)
	l.bring(ctx, again)
}

// Published returns the tables of the services that this node is Active for, with their
// epochs: what a node that connects begins with. It may be called from any goroutine.
func (l *Loop) Published() []lb.TableState {
	if l.sharing == nil {
		return nil
	}
	return l.publishedTables(nil)
}

// publishedTables returns those of some services; nil: of all.
func (l *Loop) publishedTables(services []string) []lb.TableState {
	x := l.sharing
	// First the epochs: one that is too old for its table does no harm.
	epochs := map[string]lb.Epoch{}
	x.mu.Lock()
	for name, t := range x.tables {
		if t.role == RoleActive && (services == nil || slices.Contains(services, name)) {
			epochs[name] = t.epoch
		}
	}
	x.mu.Unlock()
	if len(epochs) == 0 {
		return nil
	}
	var mine []lb.TableState
	for _, t := range l.tables.TableStates() {
		if epoch, ok := epochs[t.Service]; ok {
			t.Epoch = epoch
			mine = append(mine, t)
		}
	}
	return mine
}
