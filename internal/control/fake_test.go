package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// A fakeWorld is everything around a Loop: Tables, Checker and NextHops.
type fakeWorld struct {
	changed chan struct{}
	ready   chan struct{}

	mu       sync.Mutex
	targets  []health.Target
	followed []netip.Addr
	verdicts map[netip.AddrPort]health.Status
	checks   map[string]health.Verdict // of the node's own; absent: not known
	hops     map[netip.Addr]lb.NextHop // absent: no way
	refused  error                     // what Apply answers
	tries    int                       // calls of Apply
	applied  []lb.Snapshot             // those that went well
	looks    int                       // calls of RefreshInterfaces
	absent   error                     // what RefreshInterfaces answers
	tidied   int                       // calls of Maintain
	untidy   error                     // what Maintain answers
	paths    []lb.ProbePath
	led      int   // calls of Refresh
	unled    error // what Refresh answers
	changes  *Overrides
	stats    loader.Stats // what Stats answers
	usage    []loader.Usage
	onApply  func()                // called by Apply
	previews []lb.TableState       // what Preview answers, until the next Apply
	states   []lb.TableState       // what TableStates answers
	adopted  [][]lb.TableState     // what AdoptTables was given
	misfits  []loader.RefusedTable // what it answers
	unfit    error                 // the same
}

func (w *fakeWorld) Preview(lb.Snapshot) ([]lb.TableState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.previews), nil
}

func (w *fakeWorld) TableStates() []lb.TableState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.states)
}

func (w *fakeWorld) AdoptTables(tables []lb.TableState) ([]loader.RefusedTable, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adopted = append(w.adopted, tables)
	return w.misfits, w.unfit
}

func newFakeWorld() *fakeWorld {
	return &fakeWorld{
		changed: make(chan struct{}, 1), ready: make(chan struct{}),
		verdicts: map[netip.AddrPort]health.Status{}, checks: map[string]health.Verdict{}, hops: map[netip.Addr]lb.NextHop{},
		changes: &Overrides{all: map[target]Override{}, stamps: map[target]stamp{}},
	}
}

func (w *fakeWorld) Apply(s lb.Snapshot) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries++
	if w.onApply != nil {
		w.onApply()
	}
	if w.refused != nil {
		return w.refused
	}
	w.applied = append(w.applied, s)
	w.previews = nil
	return nil
}

func (w *fakeWorld) RefreshInterfaces() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	return w.absent
}

func (w *fakeWorld) Maintain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tidied++
	return w.untidy
}

func (w *fakeWorld) Stats() (loader.Stats, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats, nil
}

// Traffic is that of stats.
func (w *fakeWorld) Traffic() (map[loader.ServiceBackend]loader.Traffic, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[loader.ServiceBackend]loader.Traffic{}
	for _, s := range w.stats.Services {
		for _, b := range s.Backends {
			all[loader.ServiceBackend{Service: s.Name, Address: b.Address}] = loader.Traffic{
				Packets: b.Packets, Bytes: b.Bytes, Flows: b.Flows, ReplyPackets: b.ReplyPackets, ReplyBytes: b.ReplyBytes,
			}
		}
	}
	return all, nil
}

func (w *fakeWorld) Usage() ([]loader.Usage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.usage, nil
}

func (w *fakeWorld) maintained() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tidied
}

// The set of Checker and that of NextHops differ in type only: fakeChecker and
// fakeHops tell them apart.
type (
	fakeChecker struct{ *fakeWorld }
	fakeHops    struct{ *fakeWorld }
)

func (c fakeChecker) Set(ts []health.Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.targets = ts
}

func (c fakeChecker) Status(t health.Target) (health.Status, bool) { return c.status(t) }
func (c fakeChecker) Changed() <-chan struct{}                     { return c.changed }
func (c fakeChecker) Ready() <-chan struct{}                       { return c.ready }

func (h fakeHops) Set(as []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followed = as
}

func (h fakeHops) Lookup(a netip.Addr) (lb.NextHop, error) { return h.nextHop(a) }

// fakePaths are the ways of probes.
type fakePaths struct{ *fakeWorld }

func (p fakePaths) Set(paths []lb.ProbePath) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paths = paths
	return nil
}

func (p fakePaths) Refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.led++
	return p.unled
}

// status and nextHop make a fakeWorld the facts of a view, too.
func (w *fakeWorld) status(t health.Target) (health.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.verdicts[t.Address]
	return s, ok
}

// Verdict makes it CheckVerdicts.
func (w *fakeWorld) Verdict(name string) (health.Verdict, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checks[name], map[health.Verdict]string{health.Down: "no answer"}[w.checks[name]]
}

func (w *fakeWorld) check(name string) (health.Verdict, string) { return w.Verdict(name) }

// decide sets the verdict on a check.
func (w *fakeWorld) decide(name string, v health.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks[name] = v
}

func (w *fakeWorld) override(service lb.Service, s lb.Server) Override {
	return w.changes.Of(service, s)
}

func (w *fakeWorld) stopping(string) (stops, gone bool) { return false, false }

func (w *fakeWorld) nextHop(a netip.Addr) (lb.NextHop, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.hops[a]
	if !ok {
		return lb.NextHop{}, fmt.Errorf("%v does not answer", a)
	}
	return h, nil
}

// know sets a verdict.
func (w *fakeWorld) know(address string, v health.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts[netip.MustParseAddrPort(address)] = health.Status{Verdict: v, LastError: "refused"}
}

// fails has a server fail, without a verdict.
func (w *fakeWorld) fails(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts[netip.MustParseAddrPort(address)] = health.Status{Failures: 1, LastError: "refused"}
}

// say sets a verdict and tells the loop about it.
func (w *fakeWorld) say(address string, v health.Verdict) {
	w.know(address, v)
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// lead gives an address a next hop, which ends in n.
func (w *fakeWorld) lead(address string, n byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hops[netip.MustParseAddr(address)] = hopTo(n)
}

// mislead takes the way to an address away.
func (w *fakeWorld) mislead(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.hops, netip.MustParseAddr(address))
}

func (w *fakeWorld) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = err
}

// counts returns how often Apply was called, and how often it went well.
func (w *fakeWorld) counts() (tries, applied int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tries, len(w.applied)
}

func (w *fakeWorld) last(t *testing.T) lb.Snapshot {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.applied) == 0 {
		t.Fatal("nothing has been applied")
	}
	return w.applied[len(w.applied)-1]
}

func hopTo(n byte) lb.NextHop {
	return lb.NextHop{Interface: 2, Destination: [6]byte{2, 0, 0, 0, 0, n}, Source: [6]byte{2, 0, 0, 0, 1, 0}}
}

var (
	errRefused = errors.New("no room")
	probe      = &lb.Probe{Type: lb.ProbeTCP, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1}
)

// webService has one primary of weight 3 and one backup.
func webService() lb.Service {
	return lb.Service{
		Name: "web", Addresses: []lb.Frontend{lb.FrontendOf(netip.MustParseAddrPort("192.0.2.100:80"))},
		Protocol: lb.TCP, Forward: lb.DSR, TableSize: lb.DefaultTableSize, Quorum: 1,
		Pool: lb.Pool{Name: "web", Probe: probe, Servers: []lb.Server{
			{Address: netip.MustParseAddr("192.0.2.12"), Weight: 3},
			{Address: netip.MustParseAddr("192.0.2.11"), Weight: 1, Backup: true},
		}},
	}
}

// runLoop runs a loop in virtual time until f returns.
func runLoop(t *testing.T, patience time.Duration, services []lb.Service, f func(*testing.T, *Loop, *fakeWorld)) {
	t.Helper()
	runLoopWith(t, patience, services, func(*Loop) {}, f)
}

// runLoopWith does so after prepare.
func runLoopWith(t *testing.T, patience time.Duration, services []lb.Service, prepare func(*Loop), f func(*testing.T, *Loop, *fakeWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		l := NewLoop(services, w, fakeChecker{w}, fakeHops{w}, fakePaths{w}, w.changes, slog.New(slog.DiscardHandler))
		l.Consult(w)
		prepare(l)
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { l.Run(ctx, patience) })
		synctest.Wait()
		f(t, l, w)
		cancel()
		done.Wait()
	})
}
