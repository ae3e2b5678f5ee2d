package loader

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A replyID is what a reply in nat without source NAT is told by: the backend's
// address, its port (0: any that is one of its service's), and the protocol.
type replyID struct {
	Address  netip.Addr
	Port     uint16
	Protocol lb.Protocol
}

func (r replyID) String() string {
	port := "any port"
	if r.Port != 0 {
		port = fmt.Sprint("port ", r.Port)
	}
	return fmt.Sprintf("%v %v %s", r.Address, r.Protocol, port)
}

// collides tells whether packets from one may be taken for packets from the
// other.
func (r replyID) collides(o replyID) bool {
	return r.Address == o.Address && r.Protocol == o.Protocol && (r.Port == o.Port || r.Port == 0 || o.Port == 0)
}

// A replyEntry says whose a reply is.
type replyEntry struct {
	Place   uint32 // in replies
	VIP     uint32 // index
	Port    uint16 // of the VIP; 0: the packet's own
	Backend uint32
}

// keepsPort tells whether the backends of a service get packets for the ports
// that these came to: it has several.
func keepsPort(s lb.Service) bool {
	several := len(s.Addresses) > 1 || s.Addresses[0].Ports.Count() > 1
	return several && (s.Forward == lb.DNAT || s.Forward == lb.NAT && s.KeepsPorts)
}

func replyOf(s lb.Service, backend netip.AddrPort) replyID {
	id := replyID{backend.Addr(), backend.Port(), s.Protocol}
	if keepsPort(s) {
		id.Port = 0
	}
	return id
}

// replies plans what tells the replies of the backends that there will be. An
// entry is there before packets come to its backend, and goes after it.
func (p *planner) replies() error {
	services := map[uint16]lb.Service{}
	for i, s := range p.want.Services {
		if s.Forward == lb.DNAT {
			services[p.numbers[i]] = s.Service
		}
	}
	want := map[replyID]replyEntry{}
	for _, n := range slices.Sorted(maps.Keys(p.next.Backends)) {
		b := p.next.Backends[n]
		s, ok := services[b.Service]
		if !ok {
			continue
		}
		id := replyOf(s, b.Address)
		// One that leaves may have had a port of its own, when the service had one.
		if _, taken := want[id]; taken && b.Leaving != 0 {
			continue
		}
		e := replyEntry{VIP: p.next.VIPs[s.Addresses[0].VIP].Index, Backend: n}
		if !keepsPort(s) {
			e.Port = s.Addresses[0].Port()
		}
		want[id] = e
	}
	taken := map[uint32]bool{}
	for _, e := range p.have.Replies {
		taken[e.Place] = true
	}
	var add, remove []step
	for _, id := range slices.SortedFunc(maps.Keys(want), compareReplies) {
		have, known := p.have.Replies[id]
		e := want[id]
		e.Place = have.Place
		if !known {
			var err error
			e.Place, err = place("replies of "+id.String(), replyHash(id), uint32(lbLimitsMAX_REPLIES), func(i uint32) bool { return taken[i] })
			if err != nil {
				return err
			}
			taken[e.Place] = true
		}
		want[id] = e
		if !known || e != have {
			add = append(add, setReply{id, e})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.have.Replies), compareReplies) {
		if _, ok := want[id]; !ok {
			remove = append(remove, clearReply{id, p.have.Replies[id].Place})
		}
	}
	p.next.Replies, p.next.ExpectsReplies = want, len(want) > 0
	if expects := p.next.ExpectsReplies; expects && !p.have.ExpectsReplies {
		add = append(add, expectReplies{true})
	} else if !expects && p.have.ExpectsReplies {
		remove = append(remove, expectReplies{false})
	}
	p.add = append(p.add, add...)
	p.remove = append(p.remove, remove...)
	return nil
}

type setReply struct {
	ID    replyID
	Entry replyEntry
}

func (s setReply) String() string {
	port := "its own port"
	if s.Entry.Port != 0 {
		port = fmt.Sprint("port ", s.Entry.Port)
	}
	return fmt.Sprintf("take what comes from %v for replies of backend %d from %s", s.ID, s.Entry.Backend, port)
}

func (s setReply) apply(t *tables) error {
	return put(t.objects.Replies, s.Entry.Place, &lbReply{
		Address: mapped(s.ID.Address), Backend: s.Entry.Backend, Vip: uint16(s.Entry.VIP),
		VipPort: bigEndian16(s.Entry.Port), Port: bigEndian16(s.ID.Port), Protocol: uint16(s.ID.Protocol),
		State: uint32(lbEntryENTRY_USED),
	})
}

type clearReply struct {
	ID    replyID
	Place uint32
}

func (s clearReply) String() string { return fmt.Sprintf("expect no replies from %v", s.ID) }

func (s clearReply) apply(t *tables) error {
	replies := t.objects.Replies
	return clearEntry(replies.MaxEntries(), s.Place,
		func(i uint32) (uint32, error) {
			var r lbReply
			if err := replies.Lookup(i, &r); err != nil {
				return 0, fmt.Errorf("read entry %d of %v: %w", i, replies, err)
			}
			return r.State, nil
		},
		func(i, state uint32) error { return put(replies, i, &lbReply{State: state}) })
}

// expectReplies has the program look at packets to no VIP, or not.
type expectReplies struct{ On bool }

func (s expectReplies) String() string {
	if s.On {
		return "look for replies"
	}
	return "look for no replies"
}

func (s expectReplies) apply(t *tables) error {
	storeWord(&t.arrays.ExpectsReplies, uint64(boolWord(s.On)))
	return nil
}

func (t *tables) readReplies(s *State) error {
	all, err := readAll[lbReply](t.objects.Replies)
	if err != nil {
		return err
	}
	for i, r := range all {
		if r.State != uint32(lbEntryENTRY_USED) {
			continue
		}
		id := replyID{unmapped(r.Address), bigEndian16(r.Port), lb.Protocol(r.Protocol)}
		s.Replies[id] = replyEntry{Place: uint32(i), VIP: uint32(r.Vip), Port: bigEndian16(r.VipPort), Backend: r.Backend}
	}
	s.ExpectsReplies = t.arrays.ExpectsReplies != 0
	return nil
}

func compareReplies(a, b replyID) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}
