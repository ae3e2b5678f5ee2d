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
	pair    []byte // lbNatPair
	ring    words
	flows   words
	reached func(step string) // a test's; nil: none
}

func (t *tables) openQueue(n uint32) (*portQueue, error) {
	q := &portQueue{pair: t.pair(n), reached: t.reached}
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

// pair is the memory of a pair, an lbNatPair.
func (t *tables) pair(n uint32) []byte {
	size := int(unsafe.Sizeof(lbNatPair{}))
	return t.pairs.memory[int(n)*size:][:size]
}

func pairWord(pair []byte, offset uintptr) *uint64 { return (*uint64)(unsafe.Pointer(&pair[offset])) }

func (q *portQueue) word(offset uintptr) *uint64 { return pairWord(q.pair, offset) }
func (q *portQueue) head() *uint64               { return q.word(unsafe.Offsetof(lbNatPair{}.Head)) }
func (q *portQueue) tail() *uint64               { return q.word(unsafe.Offsetof(lbNatPair{}.Tail)) }

// ports is the word of how many ports the ring and the flows share, and of whether
// somebody is at it: fillingBit.
func (q *portQueue) ports() *uint64 { return q.word(unsafe.Offsetof(lbNatPair{}.Ports)) }

const fillingBit = 1 << 32

func (q *portQueue) flow(port uint16) *lbNatFlow {
	return (*lbNatFlow)(unsafe.Pointer(&q.flows.memory[int(port)*int(unsafe.Sizeof(lbNatFlow{}))]))
}

// at tells a test how far it has come.
func (q *portQueue) at(step string) {
	if q.reached != nil {
		q.reached(step)
	}
}

const ticketMask = 1<<48 - 1 // a word of the ring is ticket << 16 | port

// ringWord is the word by which a port stands in the ring at a ticket.
func ringWord(ticket uint64, port uint16) uint64 { return (ticket+1)<<16 | uint64(port) }

func (q *portQueue) pop() (uint16, bool) {
	for {
		head := atomic.LoadUint64(q.head())
		w := q.ring.load(int(head % uint64(lbLimitsNAT_PORTS)))
		switch {
		case w>>16 == (head+1)&ticketMask:
			if atomic.CompareAndSwapUint64(q.head(), head, head+1) {
				q.at("popped")
				return uint16(w), true
			}
		case atomic.LoadUint64(q.head()) == head:
			return 0, false
		}
	}
}

func (q *portQueue) push(port uint16) {
	ticket := atomic.AddUint64(q.tail(), 1) - 1
	q.at("ticket taken")
	q.ring.store(int(ticket%uint64(lbLimitsNAT_PORTS)), ringWord(ticket, port))
	q.at("pushed")
}

// over tells whether nobody uses a flow's port.
func over(f *lbNatFlow) bool {
	s := atomic.LoadUint32(&f.State)
	return s == uint32(lbNatStateNAT_FREE) || s == uint32(lbNatStateNAT_CLOSED)
}

func queued(f *lbNatFlow) bool {
	return atomic.LoadUint32(&f.Flags)&uint32(lbNatFlagsNAT_QUEUED) != 0
}

// unqueue takes a port's mark away.
func (q *portQueue) unqueue(port uint16) {
	atomic.AndUint32(&q.flow(port).Flags, ^uint32(lbNatFlagsNAT_QUEUED))
}

// add queues a port that is not in use, unless it is queued.
func (q *portQueue) add(port uint16) {
	f := q.flow(port)
	if !over(f) {
		return // it queues when the flow ends
	}
	if atomic.OrUint32(&f.Flags, uint32(lbNatFlagsNAT_QUEUED))&uint32(lbNatFlagsNAT_QUEUED) == 0 {
		q.at("marked")
		q.push(port)
	}
}

// setShare gives a pair another range of ports. Its flows go on, whatever their
// port is; from now on only ports of the new range are handed out. The pair bears a
// mark meanwhile: a daemon that is killed here leaves it, and the next one, which
// sees it, does the same again. So it may meet what was half done.
func (t *tables) setShare(n uint32, share lb.PortRange, protocol lb.Protocol) error {
	ports, err := t.freePorts(share, protocol)
	if err != nil {
		return err
	}
	q, err := t.openQueue(n)
	if err != nil {
		return err
	}
	defer q.close()
	if atomic.OrUint64(q.ports(), fillingBit)&fillingBit != 0 {
		q.mend()
	}
	q.at("begun")
	atomic.StoreUint64(q.word(unsafe.Offsetof(lbNatPair{}.FirstPort)),
		uint64(share.First)|uint64(share.Last)<<16|uint64(handshakes(share)-1)<<32)
	q.at("share stored")
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
			q.unqueue(port)
		}
	}
	q.at("filled")
	atomic.StoreUint64(q.ports(), q.count(share, ports)) // without the mark
	return nil
}

// count returns how many ports of a share are in the ring or in use: those that
// were added, and others that flows had already.
func (q *portQueue) count(share lb.PortRange, added []uint16) uint64 {
	known := make([]bool, lbLimitsNAT_PORTS)
	for _, port := range added {
		known[port] = true
	}
	n := uint64(len(added))
	for port := int(share.First); port <= int(share.Last); port++ {
		if f := q.flow(uint16(port)); !known[port] && (queued(f) || !over(f)) {
			n++
		}
	}
	return n
}
