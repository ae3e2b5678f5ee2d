package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/maglev"
)

// Apply makes the kernel's tables those of the snapshot. Either all of it is
// planned or nothing is written. A planned change of backends moves no
// connection that sends something while the window is open; a backend that the
// snapshot has no more keeps its connections until they are gone.
func (d *Datapath) Apply(want lb.Snapshot) error {
	d.mu.Lock()
	defer d.unlock()
	if d.upgrade != nil {
		// The version before runs still, and the tables it runs over share pairs with ours.
		return errUpgrading
	}
	return d.apply(want, limits{})
}

// Check tells whether Apply has room for a snapshot, and what connections it would
// break though they might go on, in words, one backend each. It writes nothing, and may
// be called at any time: what is applied meanwhile does not wait for it.
func (d *Datapath) Check(want lb.Snapshot) (breaks []string, err error) {
	d.mu.Lock()
	state := d.state // another one takes its place, it does not change
	d.mu.Unlock()
	steps, _, err := plan(state, want, d.limits(limits{}), new(tableCache).table)
	return breaksOf(steps), err
}

// breaksOf says what connections steps break.
func breaksOf(steps []step) (breaks []string) {
	for _, s := range steps {
		if b, ok := s.(setBackend); ok && b.Breaks != "" {
			breaks = append(breaks, b.Breaks)
		}
	}
	return breaks
}

// limits fills in what does not depend on what is planned.
func (d *Datapath) limits(lim limits) limits {
	lim.slots, lim.share, lim.now = d.objects.Slots.MaxEntries(), d.share, sinceBoot()
	return lim
}

// apply does so; of lim drained and adopted count.
func (d *Datapath) apply(want lb.Snapshot, lim limits) error {
	steps, next, err := plan(d.state, want, d.limits(lim), d.cache.table)
	if err != nil {
		return err
	}
	d.cache.turn()
	if next.ExpectsReplies && !d.state.ExpectsReplies {
		if err := d.refreshWays(); err != nil {
			return err
		}
	}
	if err := d.write(steps); err != nil {
		return err
	}
	for _, text := range breaksOf(steps) {
		d.log.Warn(text)
	}
	d.moved(next)
	d.state, d.want = next, want
	d.scan = scan{} // what it counted is old news
	d.nameServices(want)
	d.reportMoves()
	return nil
}

// write takes steps in order. Should one fail, the state is what the maps say.
func (d *Datapath) write(steps []step) error {
	clear(d.tables.listening) // it is asked anew
	var pairs []addPair
	for _, s := range steps {
		if p, ok := s.(addPair); ok {
			pairs = append(pairs, p)
		}
	}
	if err := d.tables.preparePairs(pairs); err != nil {
		return err
	}
	for _, s := range steps {
		d.log.Debug("apply", "step", s.String())
		if err := s.apply(d.tables); err != nil {
			// What is written is written: the maps say what holds now.
			state, readErr := d.tables.readState()
			if readErr == nil {
				d.state = state
			}
			return errors.Join(fmt.Errorf("%v: %w", s, err), readErr)
		}
	}
	return nil
}

func (d *Datapath) nameServices(want lb.Snapshot) {
	clear(d.names)
	for _, s := range want.Services {
		d.names[d.state.numberOf(s.Service)] = s.Name
	}
	delete(d.names, 0)
}

// numberOf returns the number of a service, or 0.
func (s *State) numberOf(service lb.Service) uint16 {
	for _, a := range service.Addresses {
		if v, ok := s.VIPs[a.Addr()]; ok {
			if n := s.service(v.Tables[portTable(service.Protocol)], a.Port()); n != 0 {
				return n
			}
		}
	}
	return 0
}

// tableCache remembers the Maglev tables of the last snapshot, since most changes
// touch one service only.
type tableCache struct{ last, now map[string][]int32 }

// turn forgets the tables that have not been asked for since the last turn.
func (c *tableCache) turn() { c.last, c.now = c.now, nil }

func (c *tableCache) table(size int, backends []lb.Backend) ([]int32, error) {
	var b strings.Builder
	fmt.Fprint(&b, size)
	members := make([]maglev.Backend, len(backends))
	for i, m := range backends {
		fmt.Fprintf(&b, " %v/%d", m.Address, m.Weight)
		members[i] = maglev.Backend{Key: m.Address.String(), Weight: m.Weight}
	}
	key := b.String()
	slots, ok := c.now[key] // a preview has made it
	if !ok {
		slots, ok = c.last[key]
	}
	if !ok {
		t, err := maglev.Build(size, members)
		if err != nil {
			return nil, err
		}
		slots = t.Slots
	}
	if c.now == nil {
		c.now = map[string][]int32{}
	}
	c.now[key] = slots
	return slots, nil
}
