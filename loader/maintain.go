package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// How long entries of the flow tables live without a packet.
const (
	handshakeIdle = 5 * time.Second
	pinIdle       = 124 * time.Minute // RFC 5382, REQ-5
	pinEnding     = time.Minute       // after FIN or RST
	udpIdle       = time.Duration(lbLimitsUDP_IDLE_TICKS) * tick
)

// scanShare is how many times longer than a scan of the flow tables the pause
// after it is, at least.
const scanShare = 20

// A scan is one look through the tables of single flows.
type scan struct {
	pinned map[uint32]int // flows, by backend
	used   map[string]int // entries that count, by table; nil: not counted
	next   time.Duration  // when the next one may be, since boot
}

// Maintain ends what time has ended: windows, idle pins, backends that have
// drained. It is to be called about once a second; while every slot is clean
// there is next to nothing to do.
func (d *Datapath) Maintain() error {
	return errors.Join(d.findNeighbours(), d.maintain(sinceBoot(), ticks()))
}

func (d *Datapath) maintain(now time.Duration, tick uint32) error {
	d.mu.Lock()
	defer d.unlock()
	if err := d.closeWindows(now, tick); err != nil {
		return err
	}
	if now < d.scan.next {
		return nil
	}
	d.scan = scan{pinned: map[uint32]int{}, used: map[string]int{}}
	if !d.tracksFlows() {
		return nil
	}
	start := time.Now()
	used := map[uint16]map[uint32]bool{} // slots with a flow of their own, by service
	if err := d.scanFlows(tick, used); err != nil {
		return err
	}
	if err := d.scanPairs(tick); err != nil {
		return err
	}
	if err := d.changeSlots(func(service uint16, i int, s slot) slot {
		if used[service][uint32(i)] {
			return s
		}
		return s.clean()
	}); err != nil {
		return err
	}
	d.scan.next = now + scanShare*time.Since(start)
	return d.letGo(now)
}

// closeWindows settles the slots whose windows are over.
func (d *Datapath) closeWindows(now time.Duration, tick uint32) error {
	longest := time.Duration(0)
	services := d.wanted()
	for _, s := range services {
		longest = max(longest, s.TrackWindow)
	}
	if err := d.pressure.measure(d.tables, now, tick, longest); err != nil {
		return err
	}
	held := 0
	err := d.changeSlots(func(service uint16, _ int, s slot) slot {
		switch {
		case s.state() != lbSlotStateSLOT_TRACKED || s.left(now) > 0:
			return s
		case !d.pressure.over(now, services[service].TrackWindow):
			held++
			return s
		}
		return s.settle()
	})
	if held > 0 && !d.pressure.said {
		d.log.Warn("windows stay open: more segments of unknown connections come than can be remembered, as in a flood of ACKs; connections stay where they are",
			"slots", held)
	}
	d.pressure.said = held > 0
	return err
}

// wanted returns the services of the last snapshot, by number.
func (d *Datapath) wanted() map[uint16]lb.ServiceState {
	byName := map[string]lb.ServiceState{}
	for _, s := range d.want.Services {
		byName[s.Name] = s
	}
	byNumber := map[uint16]lb.ServiceState{}
	for number, name := range d.names {
		byNumber[number] = byName[name]
	}
	return byNumber
}

// tracksFlows tells whether any entry of a flow table may count.
func (d *Datapath) tracksFlows() bool {
	for _, e := range d.state.Services {
		if e.Flags&lbServiceFlagsSERVICE_UDP_FLOWS != 0 {
			return true
		}
	}
	for _, b := range d.state.Backends {
		if b.Leaving != 0 {
			return true
		}
	}
	owners := map[uint32]bool{}
	for _, slots := range d.state.Slots {
		for _, s := range slots {
			if s.state() != lbSlotStateSLOT_CLEAN {
				return true
			}
			owners[s.owner()] = true
		}
	}
	// Who has no slot may be waited for.
	for n, b := range d.state.Backends {
		if b.Alive && !owners[n] {
			return true
		}
	}
	return false
}

// changeSlots writes the slots that change makes another word of.
func (d *Datapath) changeSlots(change func(service uint16, i int, s slot) slot) error {
	for _, n := range slices.Sorted(maps.Keys(d.state.Slots)) {
		before := d.state.Slots[n]
		var after []slot
		var changes []slotChange
		for i, s := range before {
			if s.state() == lbSlotStateSLOT_CLEAN {
				continue
			}
			if c := change(n, i, s); c != s {
				if after == nil {
					after = slices.Clone(before)
				}
				after[i] = c
				changes = append(changes, slotChange{uint32(i), c})
			}
		}
		if after == nil {
			continue
		}
		if err := d.write([]step{setSlots{n, d.state.Services[n].First, changes}}); err != nil {
			return err
		}
		next := d.state.clone()
		next.Slots[n] = after
		d.state = next
	}
	return nil
}

// scanFlows drops entries that are void, idle, or say what the slot says anyway,
// and counts the others.
func (d *Datapath) scanFlows(now uint32, used map[uint16]map[uint32]bool) error {
	vips := map[uint32]netip.Addr{}
	for a, v := range d.state.VIPs {
		vips[v.Index] = a
	}
	// place finds a flow's slot; false: its service is gone.
	place := func(k lbFlowKey) (uint16, uint32, bool) {
		vip, ok := vips[k.Vip]
		if !ok {
			return 0, 0, false
		}
		protocol := lb.Protocol(k.Protocol)
		port := bigEndian16(k.VipPort)
		n := d.state.service(d.state.VIPs[vip].Tables[portTable(protocol)], port)
		e, ok := d.state.Services[n]
		if !ok {
			return 0, 0, false
		}
		client := netip.AddrPortFrom(unmapped(k.Client), bigEndian16(k.ClientPort))
		return n, Slot(e.hash(client, netip.AddrPortFrom(vip, port)), e.Count), true
	}
	idle := func(p lbPin) time.Duration { return time.Duration(int32(now-p.Seen)) * tick }
	alive := func(p lbPin) bool {
		b := d.state.Backends[p.Backend]
		return b.Alive && b.Generation == p.Generation
	}
	pinned := func(kind lb.FlowKind) func(k lbFlowKey, p lbPin) fate {
		return func(k lbFlowKey, p lbPin) fate {
			service, i, ok := place(k)
			if !ok || !alive(p) {
				return fateVoid
			}
			if idle(p) > pinLife(kind, &p) {
				return fateIdle
			}
			s := d.state.Slots[service][i]
			if s.state() == lbSlotStateSLOT_CLEAN || s.state() == lbSlotStateSLOT_SETTLING && s.owner() == p.Backend {
				return fateVoid
			}
			if used[service] == nil {
				used[service] = map[uint32]bool{}
			}
			used[service][i] = true
			d.scan.pinned[p.Backend]++
			return fateKept
		}
	}
	for _, t := range []struct {
		name  string
		table *ebpf.Map
		kind  lb.FlowKind // 0: other nodes are not told of it
		look  func(lbFlowKey, lbPin) fate
	}{
		{"handshakes", d.objects.Handshakes, 0, func(_ lbFlowKey, p lbPin) fate {
			if alive(p) && idle(p) <= handshakeIdle {
				return fateKept
			}
			return fateIdle
		}},
		{"pins", d.objects.Pins, lb.FlowPinned, pinned(lb.FlowPinned)},
		{"stragglers", d.objects.Stragglers, lb.FlowStraggler, pinned(lb.FlowStraggler)},
		{"udp_flows", d.objects.UdpFlows, lb.FlowDatagrams, func(k lbFlowKey, p lbPin) fate {
			service, _, ok := place(k)
			if !ok || !alive(p) || d.state.Services[service].Flags&lbServiceFlagsSERVICE_UDP_FLOWS == 0 {
				return fateVoid
			}
			if idle(p) > pinLife(lb.FlowDatagrams, &p) {
				return fateIdle
			}
			d.scan.pinned[p.Backend]++
			return fateKept
		}},
	} {
		var gone []goneFlow
		err := eachFlow(t.table, func(k lbFlowKey, p lbPin) {
			is := t.look(k, p)
			if is != fateKept {
				gone = append(gone, goneFlow{k, is == fateIdle && p.Held == 0})
				return
			}
			d.scan.used[t.name]++
		})
		if err != nil {
			return err
		}
		for _, g := range gone {
			if err := t.table.Delete(&g.key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("drop a flow of %v: %w", t.table, err)
			}
			if d.feed != nil && t.kind != 0 {
				d.feed.dropPin(t.kind, &g.key, g.told)
			}
		}
	}
	return nil
}

// A fate is what becomes of an entry of a flow table.
type fate uint8

const (
	fateKept fate = iota
	fateIdle      // its time is over
	fateVoid      // its backend has failed, or its slot says the same: other nodes find that out by themselves
)

// A goneFlow is an entry that is to be deleted, and whether other nodes are told.
type goneFlow struct {
	key  lbFlowKey
	told bool
}

// hash is what the program computes for a flow of the service.
func (e serviceEntry) hash(client, vip netip.AddrPort) uint64 {
	if e.Flags&lbServiceFlagsSERVICE_SOURCE_HASH != 0 {
		return SourceHash(client.Addr())
	}
	return FlowHash(client, vip, e.protocol())
}

// eachFlow calls f for every entry of a flow table. What changes meanwhile may be
// seen or not.
func eachFlow(m *ebpf.Map, f func(lbFlowKey, lbPin)) error {
	const batch = 4096
	keys, values := make([]lbFlowKey, batch), make([]lbPin, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read %v: %w", m, err)
		}
		for i := range n {
			f(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}

// scanPairs counts the nat connections of backends that get no new ones: those
// that somebody may wait for.
func (d *Datapath) scanPairs(now uint32) error {
	owners := map[uint32]bool{}
	for _, slots := range d.state.Slots {
		for _, s := range slots {
			owners[s.owner()] = true
		}
	}
	pairs := map[uint32]bool{}
	waiting := map[uint32]uint32{} // generations
	for n, b := range d.state.Backends {
		if b.Alive && !owners[n] {
			waiting[n] = b.Generation
			for _, pair := range b.Pairs {
				pairs[pair] = true
			}
		}
	}
	var timeouts [lbNatStateNAT_STATES]int32
	for state, t := range natTimeouts {
		timeouts[state] = int32(t / tick)
	}
	var mu sync.Mutex
	return forAll(slices.Collect(maps.Keys(pairs)), func(pair uint32) error {
		q, err := d.tables.openQueue(pair)
		if err != nil {
			return err
		}
		defer q.close()
		mu.Lock()
		defer mu.Unlock()
		for port := range int(lbLimitsNAT_PORTS) {
			f := q.flow(uint16(port))
			state := f.State % uint32(lbNatStateNAT_STATES)
			generation, ok := waiting[uint32(f.Backend)]
			over := state == uint32(lbNatStateNAT_FREE) || state == uint32(lbNatStateNAT_CLOSED)
			if ok && !over && f.Generation == generation && int32(now-f.LastSeen) <= timeouts[state] {
				d.scan.pinned[uint32(f.Backend)]++
			}
		}
		return nil
	})
}

// letGo removes the backends that have left and that nothing needs any more, or
// whose time to drain is over.
func (d *Datapath) letGo(now time.Duration) error {
	needed := map[uint32]bool{}
	for _, slots := range d.state.Slots {
		for _, s := range slots {
			needed[s.owner()], needed[s.previous()] = true, true
		}
	}
	services := d.wanted()
	drained := map[uint32]bool{}
	for n, b := range d.state.Backends {
		if b.Leaving == 0 {
			continue
		}
		left := d.scan.pinned[n]
		late := now-time.Duration(b.Leaving)*time.Second > services[b.Service].DrainTimeout
		if services[b.Service].Followed {
			late = late && !needed[n] // what its table names the other node lets go
		}
		if late || left == 0 && !needed[n] {
			drained[n] = true
			d.log.Info("a removed backend is let go", "service", d.names[b.Service], "backend", b.Address,
				"connections broken", left)
		}
	}
	if len(drained) == 0 {
		return nil
	}
	return d.apply(d.want, limits{drained: drained})
}

// sinceBoot is CLOCK_BOOTTIME.
func sinceBoot() time.Duration { return clock(unix.CLOCK_BOOTTIME) }

// ticks is the program's clock.
func ticks() uint32 { return uint32(clock(unix.CLOCK_MONOTONIC_COARSE) / tick) }

func clock(id int32) time.Duration {
	var ts unix.Timespec
	// The clock is one of those that every kernel has, so this can't fail.
	_ = unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano())
}
