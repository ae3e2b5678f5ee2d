package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// pinWrites are entries that wait to be written to a table of single flows.
type pinWrites struct {
	flows []*lb.FlowState
	keys  []lbFlowKey
	pins  []lbPin
}

// maxPinWrites is how many are written at once.
const maxPinWrites = 1024

// pinned takes in a flow of one of pinTables.
func (a *applying) pinned(table int, s *lb.FlowState) error {
	t := pinTables[table]
	if (s.Protocol == lb.UDP) != (s.Kind == lb.FlowDatagrams) || s.Phase == lb.FlowOpening || s.Phase == lb.FlowClosed {
		a.result.refuse(s, RefusedMalformed, "")
		return nil
	}
	if s.Phase == lb.FlowOver {
		return a.overPinned(table, s)
	}
	backend, vip := a.backendOf(s, func(e serviceEntry) bool {
		return e.Forward.Stateless() && (s.Protocol == lb.TCP || e.Flags&lbServiceFlagsSERVICE_UDP_FLOWS != 0)
	})
	if backend == 0 {
		return nil
	}
	a.key = pinKeyOf(&s.FlowID, vip)
	want := lbPin{Backend: backend, Generation: a.index.state.Backends[backend].Generation, Seen: a.seen(s), Held: 1}
	want.Told = want.Seen
	if s.Phase == lb.FlowClosing {
		want.Ending = 1
	}
	is := &a.is
	err := a.table(t).Lookup(&a.key, is)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read a flow of %v: %w", a.table(t), err)
	}
	if err == nil && is.Held == 0 && a.index.holds(is.Backend, is.Generation) && idleFor(a.now, is.Seen) <= pinLife(t.kind, is) {
		if is.Backend != backend && int32(want.Seen-is.Seen) <= flowOutlived {
			a.result.refuse(s, RefusedOther, fmt.Sprintf("to %v", a.index.state.Backends[is.Backend].Address))
			return nil
		}
		if newer(is.Seen, want.Seen) {
			a.result.Kept++
			return nil
		}
	}
	a.outdate(t.kind, &a.key)
	w := &a.waiting[table]
	w.flows, w.keys, w.pins = append(w.flows, s), append(w.keys, a.key), append(w.pins, want)
	if len(w.keys) < maxPinWrites {
		return nil
	}
	return a.flush(table)
}

func pinKeyOf(id *lb.FlowID, vip uint32) lbFlowKey {
	return lbFlowKey{
		Client: mapped(id.Client.Addr()), Vip: vip, ClientPort: bigEndian16(id.Client.Port()),
		VipPort: bigEndian16(id.VIP.Port()), Protocol: uint32(id.Protocol),
	}
}

// flush writes what waits.
func (a *applying) flush(table int) error {
	w, m := &a.waiting[table], a.table(pinTables[table])
	for at := 0; at < len(w.keys); {
		n, err := m.BatchUpdate(w.keys[at:], w.pins[at:], nil)
		a.result.Applied += n
		at += n
		switch {
		case err == nil:
		case at < len(w.keys) && (errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM)):
			a.result.refuse(w.flows[at], RefusedRoom, "")
			at++
		default:
			return fmt.Errorf("write flows of %v: %w", m, err)
		}
	}
	*w = pinWrites{w.flows[:0], w.keys[:0], w.pins[:0]}
	return nil
}

// overPinned drops an entry that another node has dropped, unless packets have come
// for it here.
func (a *applying) overPinned(table int, s *lb.FlowState) error {
	if err := a.flush(table); err != nil {
		return err
	}
	v, ok := a.index.state.VIPs[s.VIP.Addr()]
	if !ok {
		a.result.refuse(s, RefusedVIP, "")
		return nil
	}
	t, key := pinTables[table], pinKeyOf(&s.FlowID, v.Index)
	var is lbPin
	err := a.table(t).Lookup(&key, &is)
	own := err == nil && is.Held == 0 && a.index.holds(is.Backend, is.Generation)
	// Without a time it is of a moment ago, and this node knows better.
	if own && (s.Idle == 0 || newer(is.Seen, a.seen(s))) {
		a.result.Kept++
		return nil
	}
	if err == nil {
		err = a.table(t).Delete(&key)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("drop a flow of %v: %w", a.table(t), err)
	}
	a.outdate(t.kind, &key)
	a.result.Ended++
	return nil
}
