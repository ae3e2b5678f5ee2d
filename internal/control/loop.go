package control

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// Tables is the data plane, as far as the loop writes it.
type Tables interface {
	Apply(lb.Snapshot) error
	// RefreshInterfaces makes the data plane know the MAC addresses that its
	// interfaces have now. Its error is one of the problems of a status.
	RefreshInterfaces() error
	// Maintain ends what time has ended: windows of slots, idle flows, backends
	// that have drained.
	Maintain() error
	// Stats tells what the data plane holds and has counted, from whatever goroutine.
	Stats() (loader.Stats, error)
	// Traffic tells what each backend was sent; it costs less than Stats.
	Traffic() (map[loader.ServiceBackend]loader.Traffic, error)
	// Usage tells how much is used of what is bounded.
	Usage() ([]loader.Usage, error)
	// Preview returns the tables that Apply would change, as they would be then.
	Preview(lb.Snapshot) ([]lb.TableState, error)
	// TableStates returns those that are in force, from whatever goroutine.
	TableStates() []lb.TableState
	// AdoptTables makes another node's tables those that are in force.
	AdoptTables([]lb.TableState) ([]loader.RefusedTable, error)
}

// Checker probes servers.
type Checker interface {
	Set([]health.Target)
	Status(health.Target) (health.Status, bool)
	Changed() <-chan struct{}
	Ready() <-chan struct{}
}

// CheckVerdicts knows what becomes of the checks of this node.
type CheckVerdicts interface {
	// Verdict returns the verdict on a check, and why that is Down; Unknown for one
	// that is not there.
	Verdict(check string) (v health.Verdict, why string)
}

// NextHops follows the ways to servers.
type NextHops interface {
	Set([]netip.Addr)
	Lookup(netip.Addr) (lb.NextHop, error)
}

// ProbePaths keeps the ways of probes to VIPs at servers.
type ProbePaths interface {
	Set([]lb.ProbePath) error
	// Refresh makes the paths follow the ways to their servers. Its error is one of
	// the problems of a status.
	Refresh() error
}

// retryAfter is the wait after a write to the data plane that failed.
const retryAfter = time.Second

// lookEvery is how often the loop looks at the world even if nobody called.
const lookEvery = 10 * time.Second

// maintainEvery is how often the data plane is maintained.
const maintainEvery = time.Second

// A Loop keeps the data plane in line with the configuration, the health of
// servers and the ways to them.
type Loop struct {
	services []lb.Service
	tables   Tables
	checker  Checker
	hops     NextHops
	paths    ProbePaths
	checks   CheckVerdicts // nil: there are none
	changes  *Overrides
	log      *slog.Logger

	dirty   chan struct{}
	reloads chan *reload
	applied chan struct{} // closed after the first Apply
	told    func()        // of new views; nil: nobody
	changed func()        // by an operator; nil: nobody is told
	record  func(events.Event)

	// What is wrong with the interfaces, the maintenance, the ways of probes and the
	// last write; Run's own.
	interfaces, maintenance, probing, written string
	// Who has come back a short while ago; Run's own.
	slowStarts slowStarts
	// What runs short; Run's own.
	shortages shortages
	// Services that are about to take the place of the present ones; Run's own.
	coming    *reload
	addresses []netip.Addr // of servers, whose ways are followed; Run's own
	stops     stops
	rates     rates
	// What there is in common with other nodes; nil: nothing.
	sharing *sharing

	mu      sync.Mutex // of services, too, which Run alone changes
	views   []View
	problem string  // of the interfaces and the last Apply
	wrong   []Alarm // the same, one by one
	alarms  []Alarm // about what runs short
}

// NewLoop returns a loop over the services of a configuration. Run runs it.
func NewLoop(services []lb.Service, tables Tables, checker Checker, hops NextHops, paths ProbePaths, changes *Overrides, log *slog.Logger) *Loop {
	return &Loop{
		services: services, tables: tables, checker: checker, hops: hops, paths: paths, changes: changes, log: log,
		dirty: make(chan struct{}, 1), reloads: make(chan *reload), applied: make(chan struct{}), shortages: newShortages(log), record: func(events.Event) {},
	}
}

// Dirty has the loop compute the world anew. It never waits.
func (l *Loop) Dirty() {
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// Applied is closed when the data plane holds the first snapshot, made when
// every server had a verdict or the time for that was over.
func (l *Loop) Applied() <-chan struct{} { return l.applied }

// Tell has f called after the views have changed, perhaps; f must not wait. Call
// it before Run.
func (l *Loop) Tell(f func()) { l.told = f }

// Consult has the loop know checks, whose verdicts may be the health of servers. Who
// has a new one calls Dirty. Call it before Run.
func (l *Loop) Consult(checks CheckVerdicts) { l.checks = checks }

// Record has f told what happens to services and servers, and what operators
// change; f must not wait. Call it before Run.
func (l *Loop) Record(f func(events.Event)) { l.record = f }

// Views returns the services as they are now, and what is wrong with the data
// plane, if anything is.
func (l *Loop) Views() ([]View, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.views), l.problem
}

// Alarms tells what is wrong with the data plane, and what runs short.
func (l *Loop) Alarms() []Alarm {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Concat(l.wrong, l.alarms, l.tableAlarms())
}

// Run keeps the data plane in line until ctx ends. Until every server has a
// verdict, but no longer than patience, it writes nothing: what an earlier
// daemon left forwarding goes on.
func (l *Loop) Run(ctx context.Context, patience time.Duration) {
	follows, acks, end := l.channels()
	defer end()
	l.follow(addressesOf(l.services), targetsOfAll(l.services))
	if !l.wait(ctx, patience) {
		return
	}

	l.adopt()
	var last lb.Snapshot
	ok := false
	retry := time.NewTimer(0)
	defer retry.Stop()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	maintenance := time.NewTicker(maintainEvery)
	defer maintenance.Stop()
	step := time.NewTimer(lookEvery)
	defer step.Stop()
	patient := time.NewTimer(lookEvery) // with services that come
	defer patient.Stop()
	var risen []string // services whose tables other nodes are to get when they are in force
	for {
		asked := follows
		if !ok {
			asked = nil // until the services are in force
		}
		select {
		case <-ctx.Done():
			return
		case f := <-asked:
			l.takeIn(f)
			if l.sharing.moved {
				l.lead()
			}
		case a := <-acks:
			l.acknowledged(a)
			continue
		case r := <-l.reloads:
			l.begin(r)
			if l.coming != nil {
				patient.Reset(time.Until(l.coming.deadline))
			}
		case <-patient.C:
		case <-l.checker.Changed():
		case <-l.dirty:
		case <-retry.C:
		case <-ticker.C:
		case <-step.C:
		case <-maintenance.C:
			if ok {
				l.maintain()
				l.sendAgain(ctx, time.Now())
			}
			continue
		}
		arrived := l.takeOver()
		risen = append(risen, l.elect()...)
		views := l.look()
		if at := l.slowStarts.next; !at.IsZero() {
			step.Reset(time.Until(at))
		}
		next := snapshot(views)
		l.mark(next)
		if !l.settle() && ok && arrived == nil && sameBackends(last, next) {
			l.publish(views, "")
			l.bring(ctx, risen)
			risen = nil
			continue
		}
		if ok && len(risen) == 0 { // who has just taken over waits for nobody
			risen = l.announce(ctx, last, next)
			if l.settle() { // another node's table has come meanwhile
				l.mark(next)
			}
		}
		err := l.tables.Apply(next)
		if err != nil && arrived != nil {
			l.giveUp(arrived, err)
			ok = false
			retry.Reset(0) // with the services of before
			continue
		}
		if ok = err == nil; !ok {
			l.log.Error("the data plane is not up to date", "error", err, "retry", retryAfter)
			l.publish(views, "write the data plane: "+err.Error())
			retry.Reset(retryAfter)
			continue
		}
		l.publish(views, "")
		last = next
		l.bring(ctx, risen)
		risen = nil
		if arrived != nil {
			arrived.done <- arrived.Finish()
		}
		select {
		case <-l.applied:
		default:
			close(l.applied)
		}
	}
}

// wait waits until every target has a first result, those of others than services too,
// and every server of a service a verdict, or patience is over; false: ctx has ended. A
// server that is silent, and has no verdict yet, is not waited for where its service can do
// without it, or did so before: what depends on it is known.
func (l *Loop) wait(ctx context.Context, patience time.Duration) bool {
	over := time.NewTimer(patience)
	defer over.Stop()
	idle := l.idle()
	for {
		ready := l.checker.Ready()
		select {
		case <-ready:
			if l.decided(checksOf(l.services)) && l.spares(l.services, idle) {
				return true
			}
			ready = nil // of verdicts the checker tells, and of checks the loop is dirty
		default:
		}
		select {
		case <-ctx.Done():
			return false
		case <-ready:
		case <-l.checker.Changed():
		case <-over.C:
			l.log.Warn("not every server has been probed yet", "waited", patience)
			return true
		case <-l.dirty: // a probe may be waiting for its way, and this for a check
			l.leadProbes()
		}
	}
}

// look computes the views.
func (l *Loop) look() []View {
	before := l.interfaces
	l.interfaces = ""
	if err := l.tables.RefreshInterfaces(); err != nil {
		l.interfaces = err.Error()
		if l.interfaces != before {
			l.log.Error("the interfaces are not as the data plane needs them", "error", err)
		}
	}
	l.leadProbes()
	views := make([]View, len(l.services))
	for i, s := range l.services {
		views[i] = view(s, l)
	}
	l.slowStarts.observe(views, time.Now())
	return views
}

// adopt learns who served when an earlier daemon left.
func (l *Loop) adopt() {
	stats, err := l.tables.Stats()
	if err != nil {
		l.log.Error("who served before is not known: no server starts slowly now", "error", err)
		return
	}
	l.slowStarts.adopt(l.services, stats)
}

// watch finds out what runs short.
func (l *Loop) watch() error {
	usage, err := l.tables.Usage()
	if err != nil {
		return err
	}
	alarms := l.shortages.observe(usage, time.Now())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alarms = alarms
	return nil
}

// maintain has the data plane tidied up, and looked at. What is wrong with that is known until it
// is right again.
func (l *Loop) maintain() {
	before := l.maintenance
	l.maintenance = ""
	if err := errors.Join(l.tables.Maintain(), l.watch(), l.count(time.Now())); err != nil {
		l.maintenance = err.Error()
		if l.maintenance != before {
			l.log.Error("the data plane cannot be maintained", "error", err)
		}
	}
	if l.maintenance != before {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.setProblem(l.written)
	}
}

// setProblem makes known what is wrong: with the last write, and beside.
func (l *Loop) setProblem(written string) {
	l.written = written
	l.wrong = nil
	var all []string
	for _, p := range []struct {
		kind AlarmKind
		text string
	}{
		{AlarmTables, written}, {AlarmInterfaces, l.interfaces}, {AlarmMaintenance, l.maintenance},
		{AlarmProbes, l.probing}, {AlarmOverrides, l.changes.Alarm()},
	} {
		if p.text != "" {
			l.wrong = append(l.wrong, Alarm{Kind: p.kind, Text: p.text})
			all = append(all, p.text)
		}
	}
	l.problem = strings.Join(all, "; ")
}

// publish makes the views known and says what has changed about services. It
// comes after the write: who reads that a server serves may rely on it.
func (l *Loop) publish(views []View, problem string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := map[string]View{}
	for _, v := range l.views {
		known[v.Service.Name] = v
	}
	for _, v := range views {
		before := -1
		if old, ok := known[v.Service.Name]; ok {
			before = old.Serving()
		}
		switch now := v.Serving(); {
		case now == 0 && before != 0:
			l.log.Error("service is down: no server can serve it, its packets are dropped", "service", v.Service.Name)
		case now > 0 && before == 0:
			l.log.Info("service is up again", "service", v.Service.Name, "servers", now)
		}
	}
	l.recordViews(l.views, views)
	l.views = views
	l.setProblem(problem)
	if l.told != nil {
		l.told()
	}
}

// addressesOf returns the addresses of all servers of services, but for this node.
func addressesOf(services []lb.Service) []netip.Addr {
	var as []netip.Addr
	for _, s := range services {
		for _, server := range s.Pool.Servers {
			if !server.Here {
				as = append(as, server.Address)
			}
		}
	}
	slices.SortFunc(as, netip.Addr.Compare)
	return slices.Compact(as)
}

// Change makes an operator's change and has it applied. Others are services beside the
// loop's, which it may be for as well. Text says what has become of it.
func (l *Loop) Change(c Change, others ...lb.Service) (text string, err error) {
	l.mu.Lock()
	services := slices.Concat(l.services, others)
	l.mu.Unlock()
	if text, err = l.changes.Apply(c, services); err != nil {
		return "", err
	}
	l.log.Info("changed by an operator", "change", text)
	l.record(events.Event{Type: events.OperatorChange, To: string(c.Action), Text: text})
	l.Dirty()
	l.tellChanges()
	return text, nil
}

func (l *Loop) override(service lb.Service, s lb.Server) Override { return l.changes.Of(service, s) }

func (l *Loop) check(name string) (health.Verdict, string) {
	if l.checks == nil {
		return health.Unknown, ""
	}
	return l.checks.Verdict(name)
}

func (l *Loop) status(t health.Target) (health.Status, bool) { return l.checker.Status(t) }
func (l *Loop) nextHop(a netip.Addr) (lb.NextHop, error)     { return l.hops.Lookup(a) }
