package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An Upgrade tells what became of the data plane of an earlier version.
type Upgrade struct {
	From     uint32    `json:"from_layout"`
	To       uint32    `json:"to_layout"`
	At       time.Time `json:"at"`
	VIPs     int       `json:"vips"`
	Services int       `json:"services"`
	Backends int       `json:"backends"`
	Slots    int       `json:"slots"`
	Pairs    int       `json:"nat_pairs"`
	Flows    int       `json:"nat_flows"` // names in the flow table: closed ones may linger
	NotKept  []string  `json:"not_kept"`
}

// An upgrade takes over the maps of an earlier layout, in this order:
//
//  1. What only the daemon writes is copied into new maps: there is no other
//     daemon. What the program writes is shared between the old program and the
//     new one, so that there is no difference to be missed.
//  2. The new maps and the program are pinned in a folder of their own.
//  3. Each interface's link gets the new program, in one step. Until the last one
//     has it both programs run, for as long as that takes. A flow may meet both:
//     its entry, its port and its slot are the same for either, and the tables that
//     were copied say the same until Apply, which comes later.
//  4. The difference of counters that were copied is added.
//  5. The new pins take the places of the old ones; that of meta first, with which
//     all of it is decided.
//
// A daemon that is killed before that leaves the old pins as they were. The next
// one begins anew, the earlier version might as well go on: what the new program
// has done is in the maps that are shared, but for counters that are not. One that
// is killed later leaves the rest of the renaming to the next.
type upgrade struct {
	from     uint32
	layout   earlierLayout
	old      map[string]*ebpf.Map // those that are not shared
	counters []*counterCopy
	notKept  []string
	reached  func(step string) error
}

// pinnedLayout returns the layout of the maps that are pinned in dir; false where none
// are.
func pinnedLayout(dir string) (uint32, bool, error) {
	meta, err := ebpf.LoadPinnedMap(pinPath(dir, "meta"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		// So it is where a first start was cut short: nothing was attached yet.
		links, err := pinnedLinks(dir)
		if err == nil && len(links) > 0 {
			err = fmt.Errorf("%s holds links (%s), but no map that says what their program's maps are: "+
				"forwarding goes on; `sluice detach` ends it, with its connections, so that a new one can begin",
				dir, strings.Join(links, ", "))
		}
		return 0, false, err
	}
	if err != nil {
		return 0, false, fmt.Errorf("open the pinned maps: %w", err)
	}
	defer meta.Close()
	entry, err := meta.LookupBytes(uint32(0))
	if err == nil && len(entry) < 4 {
		err = fmt.Errorf("%d bytes are no layout", len(entry))
	}
	if err != nil {
		return 0, false, fmt.Errorf("read the layout of the pinned maps: %w", err)
	}
	return binary.NativeEndian.Uint32(entry), true, nil
}

// refuse is the error for maps that can't be taken over. Nothing has been changed.
func refuse(dir string, layout uint32, err error) error {
	what := "can't be taken over"
	if layout != uint32(lbLayoutLAYOUT_VERSION) {
		what = fmt.Sprintf("is of another version of sluice (layout %d) and can't be taken over", layout)
	}
	return fmt.Errorf("the data plane pinned in %s %s: %w. It goes on forwarding as it is. "+
		"Run the version that made it, or end it with `sluice detach`, which breaks its connections", dir, what, err)
}

// beginUpgrade finds out what the pinned maps of an earlier layout are and opens
// them. It returns those that are shared, and what meta is to say.
func beginUpgrade(spec *ebpf.CollectionSpec, o Options, from uint32) (_ *upgrade, _ map[string]*ebpf.Map, meta lbMeta, err error) {
	layout, ok := earlierLayouts[from]
	if !ok {
		return nil, nil, meta, fmt.Errorf("this version knows layouts %d to %d",
			slices.Min(slices.Collect(maps.Keys(earlierLayouts))), lbLayoutLAYOUT_VERSION)
	}
	u := &upgrade{from: from, layout: layout, old: map[string]*ebpf.Map{}, reached: o.reached}
	shared := map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeAll(shared)
			u.close()
		}
	}()
	for _, name := range slices.Concat(layout.shared, layout.verbatim, layout.obsolete, counterMaps, []string{"meta", "nat_keys"}) {
		if shared[name] != nil || u.old[name] != nil {
			continue
		}
		m, err := ebpf.LoadPinnedMap(pinPath(o.PinDir, name), nil)
		if err != nil {
			return u, shared, meta, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		u.old[name] = m
		if !slices.Contains(layout.shared, name) {
			continue
		}
		same, err := shareable(m, spec.Maps[name])
		if err != nil {
			return u, shared, meta, fmt.Errorf("share the pinned map %s: %w", name, err)
		}
		if same {
			shared[name] = m
			delete(u.old, name)
		} else if !slices.Contains(counterMaps, name) {
			return u, shared, meta, fmt.Errorf("share the pinned map %s: its entries are others", name)
		}
	}
	metas, err := records[lbMeta](u, "meta", spec)
	if err != nil {
		return u, shared, meta, err
	}
	meta = metas[0]
	meta.Layout = uint32(lbLayoutLAYOUT_VERSION)
	meta.NatSeed = layout.seed(meta.NatSeed)
	return u, shared, meta, nil
}

// shareable tells whether the entries of a map are what this version's program
// takes them for. Of a map of maps, those of the inner ones count; one without any
// is as good as new.
func shareable(m *ebpf.Map, spec *ebpf.MapSpec) (bool, error) {
	if spec.InnerMap != nil {
		inner, err := anyInner(m)
		if inner == nil {
			return true, err
		}
		defer inner.Close()
		if err := spec.InnerMap.Compatible(inner); err != nil {
			return false, err
		}
		m, spec = inner, spec.InnerMap
	}
	old, err := entryType(m, spec.Value)
	if err != nil {
		return false, err
	}
	return sameShape(old, spec.Value), nil
}

// fill copies what is not shared into the new maps.
func (u *upgrade) fill(d *Datapath, spec *ebpf.CollectionSpec) error {
	if err := u.fillArrays(d.tables, spec); err != nil {
		return err
	}
	for _, name := range u.layout.verbatim {
		if err := copyWords(u.old[name], *d.objects.byName()[name]); err != nil {
			return err
		}
	}
	if err := u.fillKeys(d.objects.NatKeys, spec); err != nil {
		return err
	}
	for _, name := range counterMaps {
		old := u.old[name]
		if old == nil {
			continue // shared
		}
		c, err := u.newCounterCopy(name, old, *d.objects.byName()[name], spec.Maps[name].Value)
		if err != nil {
			return err
		}
		if err := c.copy(); err != nil {
			return err
		}
		u.counters = append(u.counters, c)
	}
	return u.at("filled")
}

// fillArrays fills in the program's variable. Each of its arrays was a map.
func (u *upgrade) fillArrays(t *tables, spec *ebpf.CollectionSpec) error {
	arrays, at, err := variable(spec)
	if err != nil {
		return err
	}
	for _, m := range arrays.Members {
		old := u.old[m.Name]
		if old == nil {
			continue // this version is the first to have it
		}
		array, ok := btf.UnderlyingType(m.Type).(*btf.Array)
		if !ok {
			return fmt.Errorf("take over %s: it is no array", m.Name)
		}
		size, err := btf.Sizeof(array.Type)
		if err != nil {
			return fmt.Errorf("take over %s: %w", m.Name, err)
		}
		place := t.shared.memory[at+m.Offset.Bytes():][:size*int(array.Nelems)]
		err = u.convert(m.Name, array.Type, func(i uint32, entry []byte) {
			copy(place[int(i)*size:], entry)
		}, array.Nelems)
		if err != nil {
			return err
		}
	}
	return nil
}

// variable returns the type of the program's one variable, and where it is in its
// map.
func variable(spec *ebpf.CollectionSpec) (*btf.Struct, uint32, error) {
	section, ok := spec.Maps[tablesMap].Value.(*btf.Datasec)
	if ok && len(section.Vars) == 1 {
		if v, ok := section.Vars[0].Type.(*btf.Var); ok {
			if s, ok := btf.UnderlyingType(v.Type).(*btf.Struct); ok {
				return s, section.Vars[0].Offset, nil
			}
		}
	}
	return nil, 0, errors.New("the program has not one variable that is a struct")
}

// convert hands each entry of an old map that holds something to f, as one of this
// version. Of those from room on it counts how many are not kept, and of fields that
// are gone in how many entries they held something.
func (u *upgrade) convert(name string, to btf.Type, f func(i uint32, entry []byte), room uint32) error {
	old := u.old[name]
	from, err := entryType(old, to)
	if err != nil {
		return fmt.Errorf("take over %s: %w", name, err)
	}
	c, err := newConverter(from, to, u.layout.moved)
	if err != nil {
		return fmt.Errorf("take over %s: %w", name, err)
	}
	size, err := btf.Sizeof(to)
	if err != nil {
		return fmt.Errorf("take over %s: %w", name, err)
	}
	zero := make([]byte, old.ValueSize())
	without, lost := make([]int, len(c.lost)), 0
	for i := range old.MaxEntries() {
		entry, err := old.LookupBytes(i)
		if err != nil {
			return fmt.Errorf("read entry %d of %s: %w", i, name, err)
		}
		if bytes.Equal(entry, zero) {
			continue
		}
		if i >= room {
			lost++
			continue
		}
		for n, field := range c.lost {
			if field.holds(entry) {
				without[n]++
			}
		}
		converted := make([]byte, size)
		c.convert(entry, converted)
		f(i, converted)
	}
	if lost > 0 {
		u.notKept = append(u.notKept, fmt.Sprintf("%d entries of %s that do not fit any more", lost, name))
	}
	for n, field := range c.lost {
		if without[n] > 0 {
			u.notKept = append(u.notKept, fmt.Sprintf("%s of %d entries of %s", field.name, without[n], name))
		}
	}
	return nil
}

// records reads a whole map, as entries of this version.
func records[T any](u *upgrade, name string, spec *ebpf.CollectionSpec) ([]T, error) {
	all := make([]T, u.old[name].MaxEntries())
	err := u.convert(name, spec.Maps[name].Value, func(i uint32, entry []byte) {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&all[i])), unsafe.Sizeof(all[i])), entry)
	}, uint32(len(all)))
	return all, err
}

// copyWords copies the memory of a map that only a daemon writes.
func copyWords(from, to *ebpf.Map) error {
	size := func(m *ebpf.Map) uint64 { return uint64(m.MaxEntries()) * uint64((m.ValueSize()+7)&^7) }
	if size(from) != size(to) {
		return fmt.Errorf("take over %v: it has %d bytes, and %v has %d", from, size(from), to, size(to))
	}
	old, err := mapWords(from)
	if err != nil {
		return err
	}
	defer old.close()
	words, err := mapWords(to)
	if err != nil {
		return err
	}
	defer words.close()
	for i := range int(size(from) / 8) {
		if w := old.load(i); w != 0 {
			words.store(i, w)
		}
	}
	return nil
}

// fillKeys gives each pair the place in nat_keys where this version's program looks
// for it.
func (u *upgrade) fillKeys(to *ebpf.Map, spec *ebpf.CollectionSpec) error {
	keys, err := records[lbPairKey](u, "nat_keys", spec)
	if err != nil {
		return err
	}
	taken := map[uint32]bool{}
	for _, k := range keys {
		if k.State != uint32(lbEntryENTRY_USED) {
			continue
		}
		backend := netip.AddrPortFrom(unmapped(k.Address), bigEndian16(k.Port))
		at, err := place("backend "+backend.String(), pairHash(backend, k.Vip, lb.Protocol(k.Protocol)), to.MaxEntries(),
			func(i uint32) bool { return taken[i] })
		if err != nil {
			return err
		}
		taken[at] = true
		if err := put(to, at, &k); err != nil {
			return err
		}
	}
	return nil
}

// at tells a test how far it has come.
func (u *upgrade) at(step string) error {
	if u == nil || u.reached == nil {
		return nil
	}
	return u.reached(step)
}

func (u *upgrade) close() {
	if u != nil {
		closeAll(u.old)
	}
}

// finishUpgrade ends the upgrade after every link has got the new program.
func (d *Datapath) finishUpgrade() error {
	u := d.upgrade
	if err := waitForPrograms(); err != nil {
		d.log.Debug("a few packets may go uncounted", "error", err)
	}
	for _, c := range u.counters {
		if err := c.copy(); err != nil {
			return err
		}
		u.notKept = append(u.notKept, c.notKept()...)
	}
	if err := u.at("difference copied"); err != nil {
		return err
	}
	if err := moveUpgrade(d.pinDir, uint32(lbLayoutLAYOUT_VERSION), u.at); err != nil {
		return err
	}
	d.upgrade = nil
	u.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.describe(u)
	d.upgraded.Store(r)
	d.log.Info("the data plane of an earlier version was taken over", "layout", r.From, "new layout", r.To,
		"vips", r.VIPs, "services", r.Services, "backends", r.Backends, "slots", r.Slots, "nat pairs", r.Pairs, "nat flows", r.Flows)
	for _, what := range r.NotKept {
		d.log.Warn("not kept in the upgrade", "what", what)
	}
	return nil
}

func (d *Datapath) describe(u *upgrade) *Upgrade {
	r := &Upgrade{
		From: u.from, To: uint32(lbLayoutLAYOUT_VERSION), At: time.Now(), VIPs: len(d.state.VIPs), Services: len(d.state.Services),
		Backends: len(d.state.Backends), Pairs: len(d.state.Pairs), NotKept: append([]string{}, u.notKept...),
	}
	for _, slots := range d.state.Slots {
		r.Slots += len(slots)
	}
	for i := range len(d.tables.buckets.memory) / 8 {
		if uint32(d.tables.buckets.load(i)) != 0 {
			r.Flows++
		}
	}
	return r
}

// Upgraded tells what became of the data plane of an earlier version that this one
// has taken over; nil where there was none.
func (d *Datapath) Upgraded() *Upgrade { return d.upgraded.Load() }

// waitForPrograms returns when every run of a program that has been replaced is
// over: MEMBARRIER_CMD_GLOBAL waits for readers of RCU, which they are.
func waitForPrograms() error {
	const global = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		return fmt.Errorf("wait for the programs that were replaced: %w", errno)
	}
	return nil
}
