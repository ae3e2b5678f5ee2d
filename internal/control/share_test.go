package control

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A fakePeer is the other node, as a Publisher brings tables to it.
type fakePeer struct {
	mu        sync.Mutex
	connected bool
	takes     time.Duration // to adopt
	answer    error
	got       [][]lb.TableState
	deliver   func(context.Context, []lb.TableState) error // to a loop; nil: nowhere
}

func (p *fakePeer) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

func (p *fakePeer) Publish(ctx context.Context, tables []lb.TableState) error {
	p.mu.Lock()
	takes, answer, deliver := p.takes, p.answer, p.deliver
	p.got = append(p.got, tables)
	p.mu.Unlock()
	if deliver != nil {
		return deliver(ctx, tables)
	}
	select {
	case <-time.After(takes):
		return answer
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *fakePeer) set(change func(*fakePeer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// epochs are those of the tables that it got, one call after the other, with their
// services.
func (p *fakePeer) epochs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, tables := range p.got {
		var call []string
		for _, t := range tables {
			call = append(call, t.Service+" "+epochText(t.Epoch))
		}
		all = append(all, strings.Join(call, ", "))
	}
	return all
}

// A shareRig is a node with a loop that has tables in common with another node.
type shareRig struct {
	*testing.T
	loop *Loop
	*fakeWorld
	peer *fakePeer
	file string

	mu   sync.Mutex
	vips map[netip.Addr]bool
}

// vip is that of the services of the tests.
var vip = netip.MustParseAddr("192.0.2.100")

// active tells whether the node is Active for the VIP.
func (r *shareRig) active(on bool) {
	r.mu.Lock()
	r.vips[vip] = on
	r.mu.Unlock()
	r.loop.Dirty()
	synctest.Wait()
}

func (r *shareRig) roles() map[netip.Addr]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[netip.Addr]bool{}
	for a, on := range r.vips {
		all[a] = on
	}
	return all
}

// newShareRig starts a loop in virtual time; it ends with the test. Its Epochs are in
// a file, perhaps of an earlier one.
func newShareRig(t *testing.T, file string, services ...lb.Service) *shareRig {
	t.Helper()
	w := newFakeWorld()
	return newShareRigWith(t, file, w, w, services...)
}

// newShareRigWith does so over tables of the test's own.
func newShareRigWith(t *testing.T, file string, w *fakeWorld, tables Tables, services ...lb.Service) *shareRig {
	t.Helper()
	epochs, err := OpenEpochs(file, false)
	if err != nil {
		t.Fatal(err)
	}
	r := &shareRig{T: t, fakeWorld: w, peer: &fakePeer{connected: true}, file: file, vips: map[netip.Addr]bool{vip: false}}
	r.loop = NewLoop(services, tables, fakeChecker{w}, fakeHops{w}, fakePaths{w}, w.changes, slog.New(slog.DiscardHandler))
	r.loop.Share(Exchange{Publisher: r.peer, VIPs: r.roles, Epochs: epochs})
	for _, s := range services {
		w.states = append(w.states, tableOf(s.Name))
		for _, server := range s.Pool.Servers {
			w.know(endpoint(s, server).String(), health.Up)
		}
	}
	healthy(w)
	close(w.ready)
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { r.loop.Run(ctx, time.Second) })
	t.Cleanup(func() { cancel(); done.Wait() })
	synctest.Wait()
	return r
}

// tableOf is a table of a service.
func tableOf(service string, epoch ...uint64) lb.TableState {
	t := lb.TableState{
		Service:  service,
		Backends: []lb.TableBackend{{Address: netip.MustParseAddrPort("192.0.2.12:80")}},
		Slots:    []lb.Slot{{Owner: 1}},
	}
	if len(epoch) == 2 {
		t.Epoch = lb.Epoch{Term: epoch[0], Number: epoch[1]}
	}
	return t
}

func (r *shareRig) follow(tables ...lb.TableState) []RefusedTable {
	r.Helper()
	refused, err := r.loop.Follow(r.Context(), "lb2", tables)
	if err != nil {
		r.Fatal(err)
	}
	synctest.Wait()
	return refused
}

// table is how the first service's stands.
func (r *shareRig) table() TableStatus {
	r.Helper()
	services, _, _, _ := r.loop.Services()
	i := slices.IndexFunc(services, func(s ServiceStatus) bool { return s.Name == "web" })
	return *services[i].Table
}

func (r *shareRig) wantTable(want TableStatus) {
	r.Helper()
	if diff := cmp.Diff(want, r.table()); diff != "" {
		r.Errorf("the table (-want +got):\n%s", diff)
	}
}

func (r *shareRig) wantEpochs(want ...string) {
	r.Helper()
	if diff := cmp.Diff(want, r.peer.epochs()); diff != "" {
		r.Errorf("tables that were published (-want +got):\n%s", diff)
	}
}

// change has the data plane's next table be another one, by a new next hop or verdict.
func (r *shareRig) change(last byte, services ...string) {
	r.fakeWorld.mu.Lock()
	r.previews = nil
	for _, s := range services {
		r.previews = append(r.previews, tableOf(s))
	}
	r.fakeWorld.mu.Unlock()
	r.lead("192.0.2.12", last)
	r.loop.Dirty()
}

func file(t *testing.T) string { return filepath.Join(t.TempDir(), "tables.json") }
