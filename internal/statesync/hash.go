// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A hash takes 64-bit words. Two nodes have the same one of the same words; it is no
// secret, and nothing but mending depends on it.
type hash uint64

func (h hash) add(w uint64) hash {
	h = (h ^ hash(w)) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// sum spreads what was added over all bits.
func (h hash) sum() uint64 {
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return uint64(h ^ h>>32)
}

func (h hash) addEndpoint(a netip.AddrPort) hash {
	v, last := a.Addr().As16(), uint64(a.Port())<<1
	if a.Addr().Is4() {
		last |= 1
	}
	return h.add(binary.BigEndian.Uint64(v[:8])).add(binary.BigEndian.Uint64(v[8:])).add(last)
}

// hashID is of what makes a flow the same one on two nodes.
func hashID(seed uint64, id *lb.FlowID) uint64 {
	h := hash(seed).add(uint64(id.Kind)<<8 | uint64(id.Protocol))
	return h.addEndpoint(id.Client).addEndpoint(id.VIP).sum()
}

// hashState is of what two nodes must agree on, with the hash of the flow's identity.
// How long it is idle and by which neighbour its client is reached each node knows by
// itself.
func hashState(id uint64, s *lb.FlowState) uint64 {
	h := hash(id).add(uint64(s.Phase)).addEndpoint(s.Backend)
	if s.Kind == lb.FlowTranslated {
		h = h.addEndpoint(s.Source).add(uint64(flowFlags(s)))
		if s.Protocol == lb.TCP {
			h = h.add(uint64(s.Sequence))
		}
	}
	return h.sum()
}
