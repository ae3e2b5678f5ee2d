package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Pinned are the maps of the data plane that is pinned in a directory, whether its
// daemon runs or not. Reading them changes nothing.
type Pinned struct {
	dir    string
	maps   kernelMaps
	tables *tables
	state  *State
}

// OpenPinned opens what is pinned in dir. Where nothing is, the error is
// fs.ErrNotExist. The services and backends are those of this moment.
func OpenPinned(dir string) (*Pinned, error) {
	p := &Pinned{dir: dir}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pinned) open() error {
	byName := p.maps.byName()
	for name, into := range byName {
		m, err := ebpf.LoadPinnedMap(pinPath(p.dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		*into = m
	}
	if p.maps.Meta == nil {
		return fmt.Errorf("nothing is pinned in %s: %w", p.dir, fs.ErrNotExist)
	}
	var meta lbMeta
	if err := p.maps.Meta.Lookup(uint32(0), &meta); err != nil {
		return fmt.Errorf("read the pinned maps: %w", err)
	}
	if meta.Layout != uint32(lbLayoutLAYOUT_VERSION) {
		advice := "the version that made them can read them"
		if _, ok := earlierLayouts[meta.Layout]; ok {
			advice = "`sluice run` takes them over"
		}
		return fmt.Errorf("the maps pinned in %s are those of another version of sluice (layout %d, not %d): %s",
			p.dir, meta.Layout, lbLayoutLAYOUT_VERSION, advice)
	}
	for name, m := range byName {
		if *m == nil {
			return fmt.Errorf("%s is not pinned: `sluice run` makes it anew", pinPath(p.dir, name))
		}
	}
	var err error
	if p.tables, err = openTables(p.maps); err != nil {
		return err
	}
	p.state, err = p.tables.readState()
	return err
}

// Close lets go of the maps.
func (p *Pinned) Close() error {
	var err error
	if p.tables != nil {
		err = p.tables.close()
	}
	for _, m := range p.maps.byName() {
		(*m).Close() // nothing was written through it
	}
	return err
}

// Outcomes reads what was not forwarded, in the order of enum outcome.
func (p *Pinned) Outcomes() ([]Outcome, error) { return readOutcomes(&p.maps) }

// A ServiceView is a service as the data plane knows it: without a name.
type ServiceView struct {
	Number    uint16
	Addresses []lb.Frontend
	Protocol  lb.Protocol
	Forward   lb.Forward
}

// Services returns the services, by number.
func (p *Pinned) Services() []ServiceView {
	addresses := p.state.addresses()
	var all []ServiceView
	for _, n := range slices.Sorted(maps.Keys(p.state.Services)) {
		all = append(all, p.state.view(n, addresses))
	}
	return all
}

// view describes a service, given the addresses of all.
func (s *State) view(number uint16, addresses map[uint16][]lb.Frontend) ServiceView {
	e := s.Services[number]
	return ServiceView{Number: number, Addresses: addresses[number], Protocol: e.protocol(), Forward: e.Forward}
}

// addresses returns where each service listens, in order.
func (s *State) addresses() map[uint16][]lb.Frontend {
	all := map[uint16][]lb.Frontend{}
	for a, v := range s.VIPs {
		for _, table := range v.Tables {
			for _, r := range s.Ports[table] {
				f := lb.Frontend{VIP: a, Ports: lb.PortRange{First: r.First, Last: r.Last}}
				all[r.Service] = append(all[r.Service], f)
			}
		}
	}
	for _, fs := range all {
		slices.SortFunc(fs, lb.CompareFrontends)
	}
	return all
}
