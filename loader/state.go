package loader

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A State is what the tables of a data plane hold, in Go's terms. Plan computes
// the next one from it; readState reads it back from the maps, so that a new
// daemon goes on where the last one stopped. Nothing in it is changed once it
// is complete.
type State struct {
	VIPs     map[netip.Addr]vipEntry
	Ports    map[uint32][]portRun // by port table; in order, none touches another of the same service
	Services map[uint16]serviceEntry
	Slots    map[uint16][]slot // by service number
	Backends map[uint32]backendEntry
	Rules    map[ruleID]bool // whether they allow
	Pairs    map[uint32]pairEntry
	Replies  map[replyID]replyEntry // of nat without source NAT

	ExpectsReplies bool                      // the program looks for them
	Nodes          [lbLimitsMAX_NODES]uint64 // MAC addresses of other nodes, the first byte lowest; 0: none

	generation uint32 // the highest that any backend has or had
}

// A portRun is ports in a row that are one service's.
type portRun struct {
	First, Last uint16
	Service     uint16 // number
}

// service returns the number of the service that a port of a table is, or 0.
func (s *State) service(table uint32, port uint16) uint16 {
	for _, r := range s.Ports[table] {
		if r.First <= port && port <= r.Last {
			return r.Service
		}
	}
	return 0
}

// A ruleID is a prefix of clients of a service.
type ruleID struct {
	Service uint16
	Prefix  netip.Prefix // masked
}

type vipEntry struct {
	Index  uint32
	Tables [2]uint32 // port tables of TCP and UDP; 0: none
	Source bool      // a source address of a nat service
}

type serviceEntry struct {
	First, Count uint32 // slots
	Forward      lb.Forward
	Flags        lbServiceFlags
	Limit        lb.SourceLimit
}

type backendEntry struct {
	Service    uint16
	Address    netip.AddrPort
	NextHop    lb.NextHop
	Generation uint32
	Choice     uint32 // first in nat_choices
	Pairs      []uint32
	Alive      bool
	Leaving    uint32 // since when it is not in the configuration, s of CLOCK_BOOTTIME; 0: it is
}

func (b backendEntry) equal(o backendEntry) bool {
	return b.Service == o.Service && b.Address == o.Address && b.NextHop == o.NextHop &&
		b.Generation == o.Generation && b.Choice == o.Choice && b.Alive == o.Alive && b.Leaving == o.Leaving &&
		slices.Equal(b.Pairs, o.Pairs)
}

type pairEntry struct {
	Source   netip.Addr
	Address  netip.AddrPort // backend's; with port 0 of one that has all ports of its service
	Protocol lb.Protocol
	VIP      uint32       // index of Source
	Key      uint32       // place in nat_keys
	Share    lb.PortRange // this node's ports of Source
	Filling  bool         // a daemon was killed while it gave the pair its ports
}

func (e serviceEntry) protocol() lb.Protocol {
	if e.Flags&lbServiceFlagsSERVICE_UDP != 0 {
		return lb.UDP
	}
	return lb.TCP
}

func newState() *State {
	return &State{
		VIPs:     map[netip.Addr]vipEntry{},
		Ports:    map[uint32][]portRun{},
		Services: map[uint16]serviceEntry{},
		Slots:    map[uint16][]slot{},
		Backends: map[uint32]backendEntry{},
		Rules:    map[ruleID]bool{},
		Pairs:    map[uint32]pairEntry{},
		Replies:  map[replyID]replyEntry{},
	}
}

// clone returns a state that may be changed; tables of slots are replaced, never
// written to, so they are shared.
func (s *State) clone() *State {
	return &State{
		VIPs: maps.Clone(s.VIPs), Ports: maps.Clone(s.Ports), Services: maps.Clone(s.Services),
		Slots: maps.Clone(s.Slots), Backends: maps.Clone(s.Backends), Rules: maps.Clone(s.Rules), Pairs: maps.Clone(s.Pairs),
		Replies: maps.Clone(s.Replies), ExpectsReplies: s.ExpectsReplies, Nodes: s.Nodes, generation: s.generation,
	}
}

// place finds room in a table with open addressing, the way the XDP program
// probes it.
func place(what string, hash, size uint32, used func(index uint32) bool) (uint32, error) {
	for i := range uint32(lbLimitsPROBES) {
		if index := (hash + i) & (size - 1); !used(index) {
			return index, nil
		}
	}
	return 0, fmt.Errorf("no room for %s: its place in the table is taken %d times over", what, lbLimitsPROBES)
}

// runs are the parts of a table that are in use, in order.
type runs []run

type run struct{ first, count uint32 }

func newRuns(used []run) runs {
	r := slices.DeleteFunc(used, func(u run) bool { return u.count == 0 })
	slices.SortFunc(r, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	return r
}

// take finds the lowest n free numbers in a row below limit.
func (r *runs) take(what string, n, limit uint32) (uint32, error) {
	at, i := uint32(0), 0
	for ; i < len(*r) && (*r)[i].first-at < n; i++ {
		at = (*r)[i].first + (*r)[i].count
	}
	if uint64(at)+uint64(n) > uint64(limit) {
		return 0, fmt.Errorf("no room for %s: %d more do not fit, the table holds %d", what, n, limit)
	}
	*r = slices.Insert(*r, i, run{at, n})
	return at, nil
}

// A numbering hands out numbers from 1 on that nothing has. What a plan frees is free
// for the next plan only, so no search begins before where the last one ended.
type numbering struct{ last, limit uint32 }

func freeNumber[K ~uint16 | ~uint32, V any](what string, n *numbering, used map[K]V) (K, error) {
	for next := n.last + 1; next < n.limit; next++ {
		if _, ok := used[K(next)]; !ok {
			n.last = next
			return K(next), nil
		}
	}
	return 0, fmt.Errorf("no room for another %s: the table holds %d", what, n.limit-1)
}
