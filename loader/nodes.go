package loader

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// macNumber is a MAC address as the program knows other nodes by: the first byte is
// the lowest.
func macNumber(mac [6]byte) uint64 {
	var b [8]byte
	copy(b[:], mac[:])
	return binary.LittleEndian.Uint64(b[:])
}

// nodes plans whose packets are not sent on: those of all nodes that a service is spread
// over. One that stays keeps its place, so that it is never out of it.
func (p *planner) nodes() error {
	var want []uint64
	for _, b := range p.next.Backends {
		if p.next.Services[b.Service].Forward != lb.Proxy || !b.NextHop.Known() || b.NextHop == lb.Here {
			continue
		}
		if mac := macNumber(b.NextHop.Destination); !slices.Contains(want, mac) {
			want = append(want, mac)
		}
	}
	if len(want) > len(p.next.Nodes) {
		return fmt.Errorf("no room for another node: a service is spread over %d others at most", len(p.next.Nodes))
	}
	slices.Sort(want)
	for i, mac := range p.next.Nodes {
		if k := slices.Index(want, mac); k >= 0 {
			want = slices.Delete(want, k, k+1)
		} else {
			p.next.Nodes[i] = 0
		}
	}
	for _, mac := range want {
		p.next.Nodes[slices.Index(p.next.Nodes[:], 0)] = mac
	}
	if p.next.Nodes != p.have.Nodes {
		p.add = append(p.add, setNodes{p.next.Nodes})
	}
	return nil
}

type setNodes struct{ MACs [lbLimitsMAX_NODES]uint64 }

func (s setNodes) String() string {
	text := "set nodes"
	for _, mac := range s.MACs {
		if mac != 0 {
			text += " " + net.HardwareAddr(binary.LittleEndian.AppendUint64(nil, mac)[:6]).String()
		}
	}
	return text
}

func (s setNodes) apply(t *tables) error {
	for i, mac := range s.MACs {
		storeWord(&t.arrays.Nodes[i], mac)
	}
	return nil
}
