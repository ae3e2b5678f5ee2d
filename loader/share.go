package loader

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A portQueue is a pair's ring of free ports as the XDP program uses it, at the
// same time (bpf/nat_ports.h): pop, push and add are the twins of pop_port,
// push_port and queue_port.
type portQueue struct {
	pair  []byte // lbNatPair
	ring  words
	flows words
}

func (t *tables) openQueue(n uint32) (*portQueue, error) {
	size := int(unsafe.Sizeof(lbNatPair{}))
	q := &portQueue{pair: t.pairs.memory[int(n)*size:][:size]}
	for _, m := range []struct {
		into *words
		from *ebpf.Map
	}{{&q.ring, t.objects.NatRings}, {&q.flows, t.objects.NatFlows}} {
		var inner *ebpf.Map
		err := m.from.Lookup(n, &inner)
		if err == nil {
			*m.into, err = mapWords(inner)
			inner.Close()
		}
		if err != nil {
			q.close()
			return nil, fmt.Errorf("open the ports of pair %d: %w", n, err)
		}
	}
	return q, nil
}

func (q *portQueue) close() {
	// Unmapping what mapWords has mapped can't fail.
	_ = q.ring.close()
	_ = q.flows.close()
}

func (q *portQueue) word(offset uintptr) *uint64 { return (*uint64)(unsafe.Pointer(&q.pair[offset])) }
func (q *portQueue) head() *uint64               { return q.word(unsafe.Offsetof(lbNatPair{}.Head)) }
func (q *portQueue) tail() *uint64               { return q.word(unsafe.Offsetof(lbNatPair{}.Tail)) }

func (q *portQueue) flow(port uint16) *lbNatFlow {
	return (*lbNatFlow)(unsafe.Pointer(&q.flows.memory[int(port)*int(unsafe.Sizeof(lbNatFlow{}))]))
}

const ticketMask = 1<<48 - 1 // a word of the ring is ticket << 16 | port

func (q *portQueue) pop() (uint16, bool) {
	for {
		head := atomic.LoadUint64(q.head())
		w := q.ring.load(int(head % uint64(lbLimitsNAT_PORTS)))
		switch {
		case w>>16 == (head+1)&ticketMask:
			if atomic.CompareAndSwapUint64(q.head(), head, head+1) {
				return uint16(w), true
			}
		case atomic.LoadUint64(q.head()) == head:
			return 0, false
		}
	}
}

func (q *portQueue) push(port uint16) {
	ticket := atomic.AddUint64(q.tail(), 1) - 1
	q.ring.store(int(ticket%uint64(lbLimitsNAT_PORTS)), (ticket+1)<<16|uint64(port))
}

// add queues a port that is not in use, unless it is queued.
func (q *portQueue) add(port uint16) {
	f := q.flow(port)
	if s := atomic.LoadUint32(&f.State); s != uint32(lbNatStateNAT_FREE) && s != uint32(lbNatStateNAT_CLOSED) {
		return // it queues when the flow ends
	}
	if atomic.OrUint32(&f.Flags, uint32(lbNatFlagsNAT_QUEUED))&uint32(lbNatFlagsNAT_QUEUED) == 0 {
		q.push(port)
	}
}

// setShare gives a pair another range of ports. Its flows go on, whatever their
// port is; from now on only ports of the new range are handed out.
func (t *tables) setShare(n uint32, share lb.PortRange, protocol lb.Protocol) error {
	ports, err := freePorts(share, protocol)
	if err != nil {
		return err
	}
	q, err := t.openQueue(n)
	if err != nil {
		return err
	}
	defer q.close()
	atomic.StoreUint64(q.word(unsafe.Offsetof(lbNatPair{}.FirstPort)),
		uint64(share.First)|uint64(share.Last)<<16|uint64(handshakes(share)-1)<<32)
	old := atomic.LoadUint64(q.tail())
	for _, port := range ports {
		q.add(port)
	}
	// The program would skip what is not its own any more, a few at a time.
	for atomic.LoadUint64(q.head()) < old {
		port, ok := q.pop()
		if !ok {
			break
		}
		if port >= share.First && port <= share.Last {
			q.push(port)
		} else {
			atomic.AndUint32(&q.flow(port).Flags, ^uint32(lbNatFlagsNAT_QUEUED))
		}
	}
	return nil
}
